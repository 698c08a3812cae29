"""CIFAR-10 and CIFAR-100 from the Python batches of the authors' archives."""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from examples.data import pickled
from examples.data.base import DataError, Dataset, in_words, read_bytes, require_folder

# Per-channel mean and standard deviation of the 50,000 training images, as fractions of 255.
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CIFAR100_MEAN, CIFAR100_STD = (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)

_MOST_IMAGES = {10: 10_000, 100: 50_000}
"""In a file, by the number of classes."""

_LARGEST_IMAGE = 2 * 3072 + 512
"""Bytes of a file for an image: Python 3 writes a byte as two in protocol 2; labels and a name."""


@dataclass(frozen=True)
class Cifar:
    """Loads CIFAR as bytes: inputs (n, 32, 32, 3) uint8, targets (n,) int32.

    Scaling and augmentation are left to the device: `augment.py`.

    Attributes:
        train_limit: how many of the 50,000 training images to take, from the first; 0 is all.
        test_limit: how many of the 10,000 test images to take, from the first; 0 is all.
    """

    classes: ClassVar[int]
    train_limit: int = 0
    test_limit: int = 0

    def __call__(self, data_dir: Path | None) -> Dataset:
        name = f"cifar{self.classes}"
        folder, train_files, test_file, label_key = _LAYOUTS[self.classes]
        if data_dir is None:
            raise DataError(
                f"{name}: expected --data-dir with the folder {folder}, which "
                f"`python -m examples.download {name}` fetches; or take the fashion_mnist_ recipe "
                "of this model, which trains it on Fashion-MNIST"
            )
        inside = data_dir / folder
        root = require_folder(inside if inside.is_dir() else data_dir, f"the batches of {folder}")
        parts = [read_batch(root / file, label_key, self.classes) for file in train_files]
        test_images, test_labels = read_batch(root / test_file, label_key, self.classes)
        images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        count = f"{len(labels):,} + {len(test_labels):,}"
        dataset = Dataset(
            images, labels, test_images, test_labels, f"{count} CIFAR-{self.classes} images"
        )
        return dataset.first(self.train_limit, self.test_limit)


class Cifar10(Cifar):
    """CIFAR-10."""

    classes = 10


class Cifar100(Cifar):
    """CIFAR-100 with its fine labels."""

    classes = 100


_LAYOUTS: dict[int, tuple[str, tuple[str, ...], str, str]] = {
    10: (
        "cifar-10-batches-py",
        tuple(f"data_batch_{number}" for number in range(1, 6)),
        "test_batch",
        "labels",
    ),
    100: ("cifar-100-python", ("train",), "test", "fine_labels"),
}


def read_batch(path: Path, label_key: str, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 32, 32, 3) uint8 and labels (n,) int32 of one pickled batch.

    A batch is a dictionary with `data`, bytes (n, 3072): a red, a green and a blue plane of 32 x 32
    pixels per image; and with a list of n labels.

    Raises:
        DataError: the file is missing, truncated, or not such a batch.
    """
    content = read_bytes(path, "a Python batch of CIFAR", _MOST_IMAGES[classes] * _LARGEST_IMAGE)
    try:
        batch = pickled.load(content)
    except Exception as error:  # a damaged pickle can raise almost anything
        raise DataError(
            f"{path}: expected a pickled Python batch of CIFAR, "
            f"but it is truncated or corrupt ({type(error).__name__}: {in_words(error)})"
        ) from error
    data = _array(path, _entry(path, batch, "data"))
    if data is None or data.dtype != np.uint8 or data.shape[1:] != (3072,):
        raise DataError(f"{path}: expected data of shape (images, 3072) in bytes, found other data")
    targets = _labels(path, _entry(path, batch, label_key), len(data), classes)
    images = data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), targets


def _array(path: Path, found: Any) -> np.ndarray | None:
    """The array that an entry stands for; nothing if it stands for none."""
    try:
        return found.to_numpy() if isinstance(found, pickled.Array) else None
    except pickle.UnpicklingError as error:
        raise DataError(
            f"{path}: expected a pickled Python batch of CIFAR, "
            f"but it is truncated or corrupt ({error})"
        ) from error


def _labels(path: Path, found: Any, count: int, classes: int) -> np.ndarray:
    """Labels (n,) int32 from a list of integers or an array."""
    array = _array(path, found)
    labels = found if array is None else array.ravel().tolist()
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise DataError(f"{path}: expected {count} integer labels, one per image, found others")
    if len(labels) != count or (array is not None and array.ndim != 1):
        raise DataError(
            f"{path}: expected {count} integer labels, one per image, found {len(labels)}"
        )
    if not all(0 <= label < classes for label in labels):
        raise DataError(f"{path}: expected images with labels from 0 to {classes - 1}")
    return np.array(labels, np.int32)


def _entry(path: Path, batch: Any, key: str) -> Any:
    """An entry of the dictionary; its keys are bytes, or strings in files written anew."""
    if isinstance(batch, dict):
        for name in (key.encode(), key):
            if name in batch:
                return batch[name]
    raise DataError(f"{path}: expected a dictionary with the entry {key}, found none")
