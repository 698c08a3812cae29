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
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

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
    found = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    if not found:
        raise DataError(f"{folder}: expected one folder of JPEG files per class, found none")
    return found


def read_index(folder: Path, classes: list[str]) -> list[Record]:
    """Every JPEG file of these classes of a split, in order; a split may lack some of them.

    Raises:
        DataError: a class without images, or no class.
    """
    records: list[Record] = []
    for number, name in enumerate(classes):
        if (folder / name).is_dir():
            files = sorted(p for p in (folder / name).iterdir() if p.suffix.lower() in _SUFFIXES)
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
    """The center (size, size, 3) of the image with its shorter side resized, in bytes."""
    scale = resize / min(image.size)
    width, height = (round(side * scale) for side in image.size)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def _label(record: Record) -> np.int32:
    return np.int32(record[1])


def _spread(records: list[Record]) -> list[Record]:
    """The records in a fixed order in which the first few are not all of one class."""
    order = np.random.default_rng(0).permutation(len(records))
    return [records[index] for index in order]
