"""The folder that a run leaves its files in: it can be written, and no other run writes there."""

import argparse
import errno
import fcntl
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from examples import parallel
from examples.recipe import RecipeError

LOCK = "run.lock"
ROOT = Path("runs")

# Where one of these is, a run has left its results.
_RESULTS = ("summary.json", "metrics.csv", "comparison.csv", "search.csv", "path.csv")

# What an operating system says of a place that cannot be written; anything else is a bug.
_UNWRITABLE = {
    errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EISDIR, errno.ENOENT, errno.ENOSPC,
    errno.ENOTDIR, errno.EPERM, errno.EROFS,
}  # fmt: skip


def output_folder(options: argparse.Namespace, name: str) -> Path:
    """The folder that a command is to write into.

    Without `--out` it is `runs/NAME`, or where that holds results `runs/NAME-2` and so on; with `--resume` the last of
    them that there is.
    """
    if options.out is not None:
        return options.out
    numbered = (ROOT / (name if k == 1 else f"{name}-{k}") for k in itertools.count(1))
    found = list(itertools.takewhile(_holds_results, numbered))
    free = ROOT / (f"{name}-{len(found) + 1}" if found else name)
    parallel.together("folder")  # before the first process writes there
    if options.overwrite:
        return ROOT / name
    return found[-1] if _resumes(options) and found and not free.exists() else free


def keep_results(path: Path, options: argparse.Namespace) -> None:
    """Lets no command write over what another one left.

    Raises:
        RecipeError: the folder holds results, and nobody said that they may go or are gone on with.
    """
    if parallel.leads() and not (options.overwrite or _resumes(options)) and _holds_results(path):
        go_on = "--resume to go on with it, " if hasattr(options, "resume") else ""
        raise RecipeError(
            f"--out {path}: holds the results of an earlier run: give {go_on}another --out, or --overwrite"
        )


def _resumes(options: argparse.Namespace) -> bool:
    return getattr(options, "resume", False)  # not every command can


def _holds_results(path: Path) -> bool:
    return any((path / name).exists() for name in _RESULTS)


def make_folder(path: Path) -> Path:
    """Makes a folder where there is none.

    Raises:
        RecipeError: it cannot be made, or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(
            f"--out {path}: expected a folder that can be written ({error.strerror})"
        ) from error
    return path


@contextmanager
def claimed(path: Path) -> Iterator[Path]:
    """A run's folder, made where there is none, for one run at a time; the first process claims it.

    The system gives the claim up when the process ends, however it does; the file stays. What was
    made for a run that left nothing there, as what was asked for was wrong, goes again.

    Raises:
        RecipeError: another run has it, or it cannot be written.
    """
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    make_folder(path)
    if not parallel.leads():
        yield path
        return
    with ExitStack() as stack:
        with writing(path / LOCK):
            file = stack.enter_context((path / LOCK).open("a+"))
            _lock(path, file.fileno())
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
        try:
            yield path
        finally:
            _leave_nothing(path, made)


def _leave_nothing(path: Path, made: Sequence[Path]) -> None:
    with suppress(OSError):  # something else has come to be there, or all is gone
        if made and [entry.name for entry in path.iterdir()] == [LOCK]:
            (path / LOCK).unlink()
            for folder in made:
                folder.rmdir()


def _lock(path: Path, file: int) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = (path / LOCK).read_text().strip()
        raise RecipeError(
            f"--out {path}: another run is writing there (process {owner}): wait for its end or "
            "give another --out"
        ) from error
    except OSError:
        pass  # some network file systems have no locks: better unlocked than no run


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """What a disk that is full or read-only raises, as one line that names the file.

    Raises:
        RecipeError: it could not be written.
    """
    try:
        yield path
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        raise RecipeError(
            f"{path}: could not be written ({error.strerror}): make room, or give another --out"
        ) from error


def reason(error: BaseException) -> str:
    """What the operating system said, where an error holds it; else its first line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    # TensorStore's: "RESOURCE_EXHAUSTED: ... [OS error 28: ENOSPC No space left on device] ..."
    if found := re.search(r"\[OS error \d+: [A-Z0-9]+ ([^\]]+)\]", str(error)):
        return found[1]
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
