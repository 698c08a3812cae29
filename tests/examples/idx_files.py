"""Small files in the format of MNIST, which several test modules read."""

import gzip
import struct

import numpy as np


def write_idx(path, array):
    """Writes unsigned bytes as an IDX file, gzipped if the name says so."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    content = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_digits(folder):
    """Four small files in the format of full MNIST; the digits are bright bars, easy to learn."""
    rng = np.random.default_rng(0)
    for prefix, count, suffix in (("train", 300, ""), ("t10k", 100, ".gz")):
        labels = rng.integers(0, 10, count)
        images = rng.integers(0, 40, (count, 28, 28))
        images[np.arange(count), 4 + 2 * labels, 5:20] = 255
        write_idx(folder / f"{prefix}-images-idx3-ubyte{suffix}", images)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte{suffix}", labels)
