"""One file per run, so that a command that was stopped goes on where it was."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import measure


def kept(folder: Path, name: str, run: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """The result of this name; where there is none yet, what `run` gives, written with versions and date."""
    found = present(folder, name)
    if found is not None:
        return found
    path = _path(folder, name)
    folder.mkdir(parents=True, exist_ok=True)
    report = {"result": dict(run()), "environment": measure.environment()}
    unfinished = path.with_suffix(".tmp")
    measure.write(unfinished, report)
    os.replace(unfinished, path)
    return json.loads(path.read_text())["result"]


def present(folder: Path, name: str) -> dict[str, Any] | None:
    """The result of this name, None where there is none yet."""
    path = _path(folder, name)
    return json.loads(path.read_text())["result"] if path.exists() else None


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"
