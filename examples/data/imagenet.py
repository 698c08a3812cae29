"""ImageNet as it is on disk: a folder per class, full of JPEG files, for each split.

    DIR/train/n01440764/n01440764_10026.JPEG ...      DIR/val/n01440764/ILSVRC2012_val_....JPEG

The classes are the names of the folders in `train`, sorted, numbered from 0.
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from examples.data.base import DataError, Stream, in_words, open_file, read_up_to, require_folder
from examples.data.pipeline import batches_in_order, training_batches

# Per-channel mean and standard deviation of the training images, as fractions of 255.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_SUFFIXES = {".jpeg", ".jpg"}

# What files begin with, whatever their names say: one of ImageNet's is PNG. No other of Pillow's
# readers is asked; some run programs on what they read.
_READERS: dict[bytes, type[ImageFile]] = {
    b"\xff\xd8\xff": JpegImageFile,
    b"\x89PNG\r\n\x1a\n": PngImageFile,
}
_LARGEST_FILE, _MOST_PIXELS = 2**26, 2**26
# Deflate packs up to 1,032 bytes in one, of 8 pixels each in black and white; JPEG packs less.
_PIXELS_A_BYTE = 8 * 1032
# The crop takes this share of the area, at this ratio of width to height.
_AREA, _RATIO = (0.08, 1.0), (3 / 4, 4 / 3)

HOW_TO_GET_IT = (
    "ImageNet is given out only to who accepts its terms: register at https://image-net.org, "
    "download ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, unpack them to one folder per "
    "class under train and val, and give that folder as --data-dir"
)

Record = tuple[Path, int]
"""A JPEG file and its class."""


@dataclass(frozen=True)
class ImageNet:
    """Reads class folders as a stream: inputs (n, size, size, 3) uint8, targets (n,) int32.

    Scaling is left to the device, so that a batch is a quarter of the bytes on its way there.

    Attributes:
        classes: how many of the classes to take, from the first; 0 is all.
        size: height and width of what the network sees.
        resize: shorter side of the whole image in evaluation, of which the center is taken.
        threads: how many decode images.
    """

    classes: int = 0
    size: int = 224
    resize: int = 256
    threads: int = 16

    def __call__(self, data_dir: Path | None) -> Stream:
        if data_dir is None:
            raise DataError(HOW_TO_GET_IT)
        if self.size > self.resize:
            raise DataError(
                f"imagenet: expected data.resize of at least data.size={self.size}, "
                f"found {self.resize}"
            )
        require_folder(data_dir, "the folders train and val of ImageNet")
        classes = class_folders(data_dir / "train")
        for name in class_folders(data_dir / "val"):
            if name not in classes:
                raise DataError(
                    f"{data_dir / 'val' / name}: expected a class that is in train too, found none"
                )
        classes = classes[: self.classes or None]
        train = read_index(data_dir / "train", classes)
        val = read_index(data_dir / "val", classes)
        training = lambda record, rng: (
            random_crop(read_image(record[0]), self.size, rng),
            _label(record),
        )
        evaluation = lambda record: (
            center_crop(read_image(record[0]), self.resize, self.size),
            _label(record),
        )
        return Stream(
            train=lambda size, seed: training_batches(train, size, seed, training),
            train_in_order=lambda size: batches_in_order(_spread(train), size, evaluation),
            test=lambda size: batches_in_order(val, size, evaluation),
            train_examples=len(train),
            test_examples=len(val),
            source=f"{len(train):,} + {len(val):,} images of {len(classes):,} classes",
            threads=self.threads,
        )


def class_folders(folder: Path) -> list[str]:
    """Names of the classes of a split, sorted."""
    require_folder(folder, "one folder of JPEG files per class")
    found = [name for name in visible(folder) if os.path.isdir(folder / name)]
    if not found:
        raise DataError(f"{folder}: expected one folder of JPEG files per class, found none")
    return found


def visible(folder: Path) -> list[str]:
    """Names in a folder, sorted, without the hidden ones that systems leave there."""
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise DataError(
            f"{folder}: expected a folder that can be read ({in_words(error)})"
        ) from error


def read_index(folder: Path, classes: list[str]) -> list[Record]:
    """Every JPEG file of these classes of a split, in order; a split may lack some of them.

    Raises:
        DataError: a class without images, or no class.
    """
    records: list[Record] = []
    for number, name in enumerate(classes):
        if os.path.isdir(folder / name):
            paths = [folder / name / file for file in visible(folder / name)]
            files = [path for path in paths if path.suffix.lower() in _SUFFIXES]
            if not files:
                raise DataError(f"{folder / name}: expected JPEG files, found none")
            records += [(path, number) for path in files]
    if not records:
        raise DataError(
            f"{folder}: expected images of one of {len(classes)} classes ({classes[0]}, ...), "
            "found none"
        )
    return records


def read_image(path: Path) -> Image.Image:
    """A JPEG or PNG file as RGB (a few of ImageNet's are grey or CMYK).

    Raises:
        DataError: the file is missing, of another format, damaged, or claims too many pixels.
    """
    with open_file(path, "a JPEG file", _LARGEST_FILE) as file:
        start = read_up_to(path, file, "a JPEG file", max(map(len, _READERS)))
        file.seek(0)
        for magic, reader in _READERS.items():
            if start.startswith(magic):
                return _decode(path, file, reader)
    raise DataError(f"{path}: expected a JPEG file, found another format: corrupt or renamed")


def _decode(path: Path, file: BinaryIO, reader: type[ImageFile]) -> Image.Image:
    """The pixels, for which no memory is taken before their number is known to be sound."""
    most = min(_MOST_PIXELS, _PIXELS_A_BYTE * os.fstat(file.fileno()).st_size)
    try:
        with reader(file) as image:
            width, height = image.size
            if width * height <= most:
                image.info.pop("transparency", None)  # which RGB has not; Pillow would warn of it
                return image.convert("RGB")
    except Exception as error:  # a damaged image can raise almost anything
        raise DataError(
            f"{path}: expected a JPEG file, but it is truncated or corrupt ({in_words(error)})"
        ) from error
    raise DataError(
        f"{path}: expected a JPEG file of at most {most:,} pixels, found {width} x {height}"
    )


def random_crop(image: Image.Image, size: int, rng: np.random.Generator) -> np.ndarray:
    """A random part of random shape, resized to (size, size, 3), mirrored or not, in bytes.

    The part's area and its ratio of sides are drawn (the ratio's logarithm uniformly) up to ten
    times until it fits; then it is the largest central one of allowed ratio.
    """
    width, height = image.size
    for _ in range(10):
        area = rng.uniform(*_AREA) * width * height
        ratio = math.exp(rng.uniform(math.log(_RATIO[0]), math.log(_RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
            break
    else:
        w, h = min(width, round(height * _RATIO[1])), min(height, round(width / _RATIO[0]))
        left, top = (width - w) // 2, (height - h) // 2
    box = (left, top, left + w, top + h)
    crop = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    if rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(crop)


def center_crop(image: Image.Image, resize: int, size: int) -> np.ndarray:
    """The center (size, size, 3) of the image with its shorter side resized, in bytes.

    Args:
        image: in RGB.
        resize: the shorter side, at least `size`.
        size: height and width of the center.
    """
    scale = resize / min(image.size)
    # Only what is seen is resized: the whole of a line of pixels would be large.
    width, height = round(image.width * scale), round(image.height * scale)
    x, y = (width - size) // 2, (height - size) // 2
    left, right = (image.width * edge / width for edge in (x, x + size))
    top, bottom = (image.height * edge / height for edge in (y, y + size))
    box = (left, top, right, bottom)
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))


def _label(record: Record) -> np.int32:
    return np.int32(record[1])


def _spread(records: list[Record]) -> list[Record]:
    """The records in a fixed order in which the first few are not all of one class."""
    order = np.random.default_rng(0).permutation(len(records))
    return [records[index] for index in order]
