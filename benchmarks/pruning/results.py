"""One file per run, so that a command that was stopped goes on where it was."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import measure


class Result(dict[str, Any]):
    """What a file says a run came to.

    Args:
        path: the file.
        figures: its content.
    """

    def __init__(self, path: Path, figures: Mapping[str, Any]) -> None:
        super().__init__(figures)
        self._path = path

    def __missing__(self, name: str) -> Any:
        raise ValueError(
            f"{self._path}: expected {name!r}, found {', '.join(self) or 'nothing'}, as another version of this "
            "benchmark left: remove the file to have it run again"
        )


def kept(folder: Path, name: str, run: Callable[[], Mapping[str, Any]]) -> Result:
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
    return _read(path)


def present(folder: Path, name: str) -> Result | None:
    """The result of this name, None where there is none yet."""
    path = _path(folder, name)
    return _read(path) if path.exists() else None


def _read(path: Path) -> Result:
    return Result(path, Result(path, json.loads(path.read_text()))["result"])


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"
