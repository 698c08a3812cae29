"""What every reader returns, and the one error it raises."""

import gzip
import io
import os
import stat
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath
from typing import Any, BinaryIO, Literal, NamedTuple, cast

import grain
import numpy as np

Split = Literal["valid", "test"]
"""What is evaluated: a search of hyperparameters is on `valid`, and never sees the test set."""

_CHUNK = 1 << 20
_LONGEST_LINE = 4096
_LONGEST_REASON = 200
_NONBLOCK = getattr(os, "O_NONBLOCK", 0)  # not on Windows


class DataError(Exception):
    """A data file or folder is missing or is not what it should be. The message names the path."""


class Batch(NamedTuple):
    """What the model gets in one step.

    Attributes:
        inputs: array, or tree of arrays, (examples, ...).
        targets: array, or tree of arrays, (examples, ...).
        weights: (examples,): each example's share in means; 0 for padding.
    """

    inputs: Any
    targets: Any
    weights: Any


@dataclass(frozen=True)
class Dataset:
    """A training and a test set held in memory.

    Attributes:
        train_inputs: array (train examples, ...).
        train_targets: array (train examples, ...).
        test_inputs: array (test examples, ...).
        test_targets: array (test examples, ...).
        source: where it came from, in words, for the run's summary.
    """

    train_inputs: np.ndarray
    train_targets: np.ndarray
    test_inputs: np.ndarray
    test_targets: np.ndarray
    source: str

    @property
    def train_examples(self) -> int:
        return len(self.train_inputs)

    @property
    def test_examples(self) -> int:
        return len(self.test_inputs)

    def first(self, train: int, test: int) -> "Dataset":
        """The first so many examples of each set, and its source says so; 0 is all."""
        part = replace(
            self,
            train_inputs=self.train_inputs[: train or None],
            train_targets=self.train_targets[: train or None],
            test_inputs=self.test_inputs[: test or None],
            test_targets=self.test_targets[: test or None],
        )
        counts = f"{part.train_examples:,} + {part.test_examples:,}"
        whole = counts == f"{self.train_examples:,} + {self.test_examples:,}"
        return self if whole else replace(part, source=f"the first {counts} of {self.source}")

    def evaluated_on(self, split: Split, held_out: int) -> "Dataset":
        """The same, or for `valid` the training set alone: its last so many examples are tested on."""
        if split == "test":
            return self
        if held_out >= self.train_examples:
            raise DataError(
                f"{self.source}: expected more than the {held_out:,} training examples that are "
                f"held out for validation, found {self.train_examples:,}"
            )
        return Dataset(
            self.train_inputs[:-held_out],
            self.train_targets[:-held_out],
            self.train_inputs[-held_out:],
            self.train_targets[-held_out:],
            f"{self.source}, tested on the last {held_out:,} training examples",
        )


@dataclass(frozen=True)
class Stream:
    """A training and a test set read batch by batch, in bounded memory.

    Where several processes train together each reads its rows of every batch; sizes are of those.

    Attributes:
        train: (batch size, seed) -> one pass of training batches, all of them full, in an order
            that `repeat` draws anew for each pass.
        train_in_order: batch size -> the training set as it is evaluated: unaugmented, in a fixed
            order, the last batch padded with examples of weight 0.
        test: batch size -> the test set, in the same way.
        train_examples: how many there are.
        test_examples: how many there are.
        source: where it came from, in words, for the run's summary.
        threads: how many threads read and transform batches ahead of the device.
        vocabulary: of a text, its words by their numbers.
    """

    train: Callable[[int, int], grain.MapDataset[Batch]]
    train_in_order: Callable[[int], grain.MapDataset[Batch]]
    test: Callable[[int], grain.MapDataset[Batch]]
    train_examples: int
    test_examples: int
    source: str
    threads: int = 2
    vocabulary: tuple[str, ...] = ()


def require_folder(path: Path, holding: str) -> Path:
    """The folder itself, which has to exist."""
    if not os.path.isdir(path):  # `Path.is_dir` raises where the folder above may not be read
        raise DataError(f"{path}: expected a folder with {holding}, found no such folder")
    return path


def open_file(path: Path, what: str, limit: int) -> io.BufferedReader:
    """A regular file, or a link to one, opened for reading.

    Pipes and devices are refused before they are opened: some wait for a writer, some never end.

    Args:
        path: of the file.
        what: what it should be, in words, for the error.
        limit: bytes that such a file has at most.

    Raises:
        DataError: the file is missing, of another kind or too large, or may not be read.
    """
    try:
        _check_kind(path, path.stat(), what, limit)
        # Without O_NONBLOCK, a pipe that takes the file's place in between would be waited for.
        opener = lambda name, flags: os.open(name, flags | _NONBLOCK)
        file = open(path, "rb", opener=opener)  # noqa: SIM115  (the caller closes it)
    except FileNotFoundError:
        raise DataError(f"{path}: expected {what}, found no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise DataError(
            f"{path}: expected {what}, but cannot read it ({in_words(error)})"
        ) from None
    try:
        _check_kind(path, os.fstat(file.fileno()), what, limit)
    except DataError:
        file.close()
        raise
    return file


def _check_kind(path: Path, found: os.stat_result, what: str, limit: int) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe, a device or a socket"
        raise DataError(f"{path}: expected {what}, found {kind}")
    if found.st_size > limit:
        raise DataError(
            f"{path}: expected {what} of at most {limit:,} bytes, found {found.st_size:,}"
        )


def read_bytes(path: Path, what: str, limit: int) -> bytes:
    """All of a file.

    Args:
        path: of the file.
        what: what it should be, in words, for the error.
        limit: bytes that such a file has at most.

    Raises:
        DataError: the file cannot be opened or read, or changes while it is read.
    """
    with open_file(path, what, limit) as file:
        size = os.fstat(file.fileno()).st_size
        content = read_up_to(path, file, what, size + 1)
    if len(content) != size:
        raise DataError(f"{path}: expected {what} of {size:,} bytes, but it changed while read")
    return content


def read_up_to(path: Path, file: BinaryIO, what: str, limit: int) -> bytes:
    """The next bytes of an open file or gzip stream, at most so many; memory follows what comes.

    Raises:
        DataError: the file cannot be read, or is no sound gzip file.
    """
    parts = []
    try:
        while limit and (part := file.read(min(limit, _CHUNK))):
            parts.append(part)
            limit -= len(part)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}: expected {what}, but it is truncated or corrupt ({in_words(error)})"
        ) from error
    return b"".join(parts)


def read_text(path: Path, what: str, limit: int) -> str:
    """All of a text in UTF-8, with or without a byte order mark, gzipped if the name says so.

    Args:
        path: of the file.
        what: what it should be, in words, for the error.
        limit: bytes that such a text has at most, packed or not.

    Raises:
        DataError: the file cannot be read, is too large, or is no text.
    """
    if path.suffix == ".gz":
        with open_file(path, what, limit) as file, gzip.GzipFile(fileobj=file) as unpacked:
            content = read_up_to(path, cast(BinaryIO, unpacked), what, limit + 1)
        if len(content) > limit:
            raise DataError(f"{path}: expected {what} of at most {limit:,} bytes, found more")
    else:
        content = read_bytes(path, what, limit)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: expected {what} in UTF-8, but it is truncated or corrupt ({error.reason})"
        ) from error


def read_lines(path: Path, what: str, limit: int) -> list[str]:
    """The lines of a text; only a line feed ends one, so that no other sign moves their numbers.

    Args:
        path: of the file.
        what: what it should be, in words, for the error.
        limit: bytes that such a text has at most, packed or not.

    Raises:
        DataError: as `read_text`, or a line is too long.
    """
    lines = read_text(path, what, limit).split("\n")
    for number, line in enumerate(lines, start=1):
        if len(line) > _LONGEST_LINE:
            raise DataError(
                f"{path}: expected {what} with lines of at most {_LONGEST_LINE:,} characters, "
                f"found {len(line):,} in line {number}"
            )
    return lines if lines[-1] else lines[:-1]


def path_inside(folder: Path, name: str, listed: str) -> Path:
    """The path of a file in a folder by a name that a file tells.

    Args:
        folder: which it may not leave.
        name: of the file, with slashes if it is further inside.
        listed: where the name stands, for the error.

    Raises:
        DataError: the name leads out of the folder.
    """
    # Drives and backslashes lead out on Windows alone, and a data set has none anywhere.
    parts = name.replace("\\", "/").split("/")
    if "\0" in name or not name or {"", ".", ".."} & set(parts) or PureWindowsPath(name).drive:
        raise DataError(f"{listed}: expected the name of a file inside the folder, found {name!r}")
    return folder / name


def in_words(error: BaseException) -> str:
    """What an error of a library says, as part of one line: short, without control characters."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    printable = "".join(sign if sign.isprintable() else " " for sign in str(text))
    return " ".join(printable.split())[:_LONGEST_REASON]
