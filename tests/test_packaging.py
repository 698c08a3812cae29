"""The sdist is the repository."""

import os
import pathlib
import shutil
import subprocess
import sys
import tarfile

import pytest

ROOT = pathlib.Path(__file__).parent.parent
# What setuptools adds; the folder is its own.
ADDED, ADDED_FOLDER = {"PKG-INFO", "setup.cfg"}, "ramda_jax.egg-info"
BUILD = "import sys, setuptools.build_meta as backend; print(backend.build_sdist(sys.argv[1]))"


@pytest.mark.skipif(
    not (ROOT / ".git").exists() or shutil.which("git") is None,
    reason="not a clone, or no git: nothing says which files there are to be",
)
def test_the_sdist_holds_every_file_of_the_repository_and_no_other(tmp_path):
    pytest.importorskip("setuptools", minversion="77", reason="needs setuptools>=77 (extra test)")
    # A variable of git's own, as a hook has them, would say where another repository is.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    run = lambda *words, cwd: subprocess.run(
        words, cwd=cwd, env=clean, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    tracked = run("git", "-c", "core.quotePath=off", "ls-files", cwd=ROOT)
    there = [path for path in tracked if (ROOT / path).exists()]  # not what is about to be removed
    for path in there:
        copy = tmp_path / "copy" / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, copy)
    name = run(sys.executable, "-c", BUILD, str(tmp_path), cwd=tmp_path / "copy")[-1]
    with tarfile.open(tmp_path / name) as archive:
        members = [member.name.partition("/")[2] for member in archive if member.isfile()]
    packed = {path for path in members if path.partition("/")[0] != ADDED_FOLDER} - ADDED
    assert sorted(packed) == sorted(there)
