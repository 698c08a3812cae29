"""From files on disk, or from a data package, to batches of arrays: one file per format.

| file | what is on disk | what comes out |
| --- | --- | --- |
| `idx.py` | MNIST, Fashion-MNIST: IDX files, plain or gzipped | arrays in memory |
| `cifar.py` | CIFAR-10, CIFAR-100: the Python batches | arrays in memory |
| `imagenet.py` | a folder of JPEG files per class | batches read as needed |
| `wikitext.py` | one text file per split, words separated by blanks | segments of parallel streams |
| `sotu.py` | a text file per State of the Union address | the same |
| `ljspeech.py` | `metadata.csv` and a folder of WAV files | batches padded to a few lengths |
| `asterisk.py` | a list of texts and folders of WAV files | the same |

Small sets are a `Dataset` of arrays that lives on the device; large ones a `Stream` of batches that
Grain reads, shuffles and transforms. Files that are missing or damaged raise `DataError`, and so do
those that are made to do harm: nothing in a file is run, no file is read beyond the limit of its
format, and no name in a file leads out of its folder. `tests/examples/test_untrusted_files.py` tries
damaged files of every format, and thousands of each with `pytest -m nightly`.
"""

from examples.data.base import Batch, DataError, Dataset, Stream
from examples.data.idx import idx_images, mnist, mnist_5k, read_idx

__all__ = [
    "Batch",
    "DataError",
    "Dataset",
    "Stream",
    "idx_images",
    "mnist",
    "mnist_5k",
    "read_idx",
]
