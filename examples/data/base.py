"""What every reader returns, and the one error it raises."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import grain
import numpy as np

Split = Literal["valid", "test"]
"""What is evaluated: a search of hyperparameters is on `valid`, and never sees the test set."""


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
    if not path.is_dir():
        raise DataError(f"{path}: expected a folder with {holding}, found no such folder")
    return path


def read_bytes(path: Path, what: str) -> bytes:
    """All of a file.

    Args:
        path: of the file.
        what: what it should be, in words, for the error.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: expected {what}, found no such file") from None
    except OSError as error:
        raise DataError(f"{path}: expected {what}, but cannot read it ({error.strerror})") from None
