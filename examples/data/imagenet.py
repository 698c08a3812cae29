"""ImageNet as it is on disk: a folder per class, full of JPEG files, for each split.

    DIR/train/n01440764/n01440764_10026.JPEG ...      DIR/val/n01440764/ILSVRC2012_val_....JPEG

The classes are the names of the folders in `train`, sorted, numbered from 0.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from examples.data.base import DataError, Stream, require_folder
from examples.data.pipeline import batches_in_order, training_batches

# Per-channel mean and standard deviation of the training images, as fractions of 255.
MEAN = np.array((0.485, 0.456, 0.406), np.float32)
STD = np.array((0.229, 0.224, 0.225), np.float32)

_SUFFIXES = {".jpeg", ".jpg"}
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
    """Reads class folders as a stream: inputs (n, size, size, 3) float32, targets (n,) int32.

    Attributes:
        size: height and width of what the network sees.
        resize: shorter side of the whole image in evaluation, of which the center is taken.
        threads: how many decode images.
    """

    size: int = 224
    resize: int = 256
    threads: int = 16

    def __call__(self, data_dir: Path | None) -> Stream:
        if data_dir is None:
            raise DataError(HOW_TO_GET_IT)
        require_folder(data_dir, "the folders train and val of ImageNet")
        train, classes = read_index(data_dir / "train")
        val, _ = read_index(data_dir / "val", classes)
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


def read_index(folder: Path, classes: list[str] | None = None) -> tuple[list[Record], list[str]]:
    """Every JPEG file of a split with its class, sorted; and the names of the classes.

    Args:
        folder: of the split.
        classes: that are known; the default is the split's own folders.

    Raises:
        DataError: no such folder, no class, an unknown class, or a class without images.
    """
    require_folder(folder, "one folder of JPEG files per class")
    found = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    if not found:
        raise DataError(f"{folder}: expected one folder of JPEG files per class, found none")
    numbers = {name: number for number, name in enumerate(classes or found)}
    records: list[Record] = []
    for name in found:
        if name not in numbers:
            raise DataError(f"{folder / name}: expected a class that is in train too, found none")
        files = sorted(p for p in (folder / name).iterdir() if p.suffix.lower() in _SUFFIXES)
        if not files:
            raise DataError(f"{folder / name}: expected JPEG files, found none")
        records += [(path, numbers[name]) for path in files]
    return records, classes or found


def read_image(path: Path) -> Image.Image:
    """A JPEG file as RGB (a few of ImageNet's are grey or CMYK)."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise DataError(f"{path}: expected a JPEG file, found no such file") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(
            f"{path}: expected a JPEG file, but it is truncated or corrupt ({error})"
        ) from error


def random_crop(image: Image.Image, size: int, rng: np.random.Generator) -> np.ndarray:
    """A random part of random shape, resized to (size, size, 3), mirrored or not, standardized.

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
    return _standardize(crop)


def center_crop(image: Image.Image, resize: int, size: int) -> np.ndarray:
    """The center (size, size, 3) of the image with its shorter side resized, standardized."""
    scale = resize / min(image.size)
    width, height = (round(side * scale) for side in image.size)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return _standardize(resized.crop((left, top, left + size, top + size)))


def _standardize(image: Image.Image) -> np.ndarray:
    return (np.asarray(image, np.float32) / 255.0 - MEAN) / STD


def _label(record: Record) -> np.int32:
    return np.int32(record[1])


def _spread(records: list[Record]) -> list[Record]:
    """The records in a fixed order in which the first few are not all of one class."""
    order = np.random.default_rng(0).permutation(len(records))
    return [records[index] for index in order]
