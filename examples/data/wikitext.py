"""WikiText as it is on disk: `wiki.train.tokens`, `wiki.valid.tokens`, `wiki.test.tokens`.

Each is a text of words separated by blanks. The model reads several streams of it at once, in
segments that follow each other, so that its memory of one segment is there for the next:

    text   w0 w1 w2 ...                          n = (words - 1) // batch words a stream
    stream b, segment i    inputs w[b n + i tgt : b n + (i + 1) tgt], targets one word later
"""

import io
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import grain
import numpy as np

from examples.data.base import Batch, DataError, Split, Stream, in_words, open_file, require_folder
from examples.data.pipeline import Shard, this_process

END, UNKNOWN = "<eos>", "<unk>"
# WikiText-103 has 541 million bytes, 267,735 different words and no line of a million characters.
_LARGEST_FILE, _MOST_WORDS, _LONGEST_LINE = 2**30, 2**22, 2**22

PADDING = -1
"""The target where there is no word; a loss leaves it out."""


@dataclass(frozen=True)
class WikiText:
    """Reads a text as a stream of segments, in order.

    A batch's inputs are (words, targets) and its targets again the targets, all (batch, words)
    int32, as a model with an adaptive softmax needs the targets to compute its loss. An example is a
    segment of one stream; its weight is the number of its words that are not padding, over `words`.

    Attributes:
        words: of a segment.
        vocabulary: at most so many words, the most frequent ones of the training text; the others
            read as `<unk>`. 267,735 are all of WikiText-103.
        split: what is evaluated.
        test_limit: how many of its words to take, from the first; 0 is all.
    """

    words: int = 192
    vocabulary: int = 267_735
    split: Split = "test"
    test_limit: int = 0

    def __call__(self, data_dir: Path | None) -> Stream:
        if data_dir is None:
            raise DataError(
                "wikitext: expected --data-dir with the file wiki.train.tokens; "
                "`python -m examples.download wikitext103` fetches it"
            )
        inside = data_dir / "wikitext-103"
        root = require_folder(inside if inside.is_dir() else data_dir, "the files wiki.*.tokens")
        train, numbers = encode_training_text(root / "wiki.train.tokens", self.vocabulary)
        text = encode(root / f"wiki.{self.split}.tokens", numbers)
        test = text[: self.test_limit or None]
        return text_stream(train, test, numbers, self.words, "WikiText")

    @staticmethod
    def tokens(text: str) -> list[str]:
        """The words of a text that somebody typed."""
        return text.split()


def text_stream(
    train: np.ndarray, test: np.ndarray, numbers: dict[str, int], words: int, name: str
) -> Stream:
    """Both texts as segments in order.

    Args:
        train: word numbers (n,).
        test: word numbers (m,).
        numbers: of the words.
        words: of a segment.
        name: of the set.
    """
    return Stream(
        train=lambda size, seed: segments(train, size, words, full=True),
        train_in_order=lambda size: segments(train, size, words),
        test=lambda size: segments(test, size, words),
        train_examples=len(train) // words,
        test_examples=len(test) // words,
        source=f"{name}: {len(train):,} + {len(test):,} words, {len(numbers):,} different",
        threads=1,
        vocabulary=tuple(sorted(numbers, key=numbers.__getitem__)),
    )


def segments(
    text: np.ndarray, batch_size: int, words: int, full: bool = False, shard: Shard | None = None
) -> grain.MapDataset[Batch]:
    """The text's segments in order, as batches (batch size, words).

    Args:
        text: word numbers (n,).
        batch_size: streams that this host reads side by side.
        words: of a segment.
        full: whether to leave out a last segment that is shorter; else it is padded.
        shard: whose streams of those of all hosts; the default is this JAX process's.
    """
    host, hosts = shard or this_process()
    streams, own = batch_size * hosts, slice(host * batch_size, (host + 1) * batch_size)
    length = (len(text) - 1) // streams
    count = length // words if full else -(-length // words)
    inputs = text[: streams * length].reshape(streams, length)[own]
    targets = text[1 : streams * length + 1].reshape(streams, length)[own]

    def segment(index: int) -> Batch:
        columns = slice(index * words, (index + 1) * words)
        missing = ((0, 0), (0, words - inputs[:, columns].shape[1]))
        x = np.pad(inputs[:, columns], missing)
        y = np.pad(targets[:, columns], missing, constant_values=PADDING)
        return Batch((x, y), y, np.mean(y != PADDING, axis=1, dtype=np.float32))

    return grain.MapDataset.range(count).map(segment)


def encode_training_text(path: Path, limit: int) -> tuple[np.ndarray, dict[str, int]]:
    """The training text of a file, numbered; see `number_words`."""
    return number_words(_lines(path), limit, path)


def number_words(
    lines: Iterable[Sequence[str]], limit: int, path: Path
) -> tuple[np.ndarray, dict[str, int]]:
    """A text as numbers (n,) int32, and the number of each word: 0 is the most frequent one.

    Words of equal frequency are numbered in the order they first come in. One pass over the text:
    words are numbered as they come, and renumbered when all have been counted.

    Args:
        lines: the words of each line.
        limit: words to number; the rarest beyond it read as `<unk>`.
        path: of the text, for messages.
    """
    first: dict[str, int] = {}
    numbers = array("i")
    for line in lines:
        numbers.extend([first.setdefault(word, len(first)) for word in line])
        if len(first) > _MOST_WORDS:
            raise DataError(f"{path}: expected at most {_MOST_WORDS:,} different words, found more")
    text = np.frombuffer(numbers, np.int32)
    by_frequency = np.argsort(-np.bincount(text), kind="stable")
    rank = np.empty(len(first), np.int32)
    rank[by_frequency] = np.arange(len(first), dtype=np.int32)
    words = list(first)
    if len(words) <= limit:
        return rank[text], {words[number]: int(rank[number]) for number in by_frequency}
    if UNKNOWN not in first:
        raise DataError(
            f"{path}: expected the word {UNKNOWN}, which stands for those beyond the most frequent "
            f"{limit:,}, found none; set data.vocabulary to at least {len(words):,}"
        )
    # `<unk>` takes the last place if it is not among the most frequent ones.
    unknown = min(int(rank[first[UNKNOWN]]), limit - 1)
    count = limit if rank[first[UNKNOWN]] < limit else limit - 1
    kept = np.where(rank < count, rank, unknown).astype(np.int32)
    known = {words[number]: int(rank[number]) for number in by_frequency[:count]}
    return kept[text], known | {UNKNOWN: unknown}


def encode(path: Path, numbers: dict[str, int]) -> np.ndarray:
    """The text of a file as numbers (n,) int32 by a known vocabulary."""
    return encode_words(_lines(path), numbers, path)


def encode_words(lines: Iterable[Sequence[str]], numbers: dict[str, int], path: Path) -> np.ndarray:
    """A text as numbers (n,) int32 by a known vocabulary.

    Args:
        lines: the words of each line.
        numbers: of the words.
        path: of the text, for messages.
    """
    unknown = numbers.get(UNKNOWN)
    text = array("i")
    for line in lines:
        for word in line:
            number = numbers.get(word, unknown)
            if number is None:
                raise DataError(
                    f"{path}: expected words of the training text (it has no {UNKNOWN}), "
                    f"found {word!r}"
                )
            text.append(number)
    return np.frombuffer(text, np.int32)


def _lines(path: Path) -> Iterator[list[str]]:
    """The words of each line and the end of line; only a line feed ends one."""
    found = 0
    try:
        with (
            open_file(path, "a text of words", _LARGEST_FILE) as file,
            io.TextIOWrapper(file, encoding="utf-8-sig", newline="\n") as text,
        ):
            while line := text.readline(_LONGEST_LINE):
                words = line.split()
                found += len(words)
                if "\0" in line:
                    raise DataError(f"{path}: expected a text in UTF-8, found zero bytes: corrupt")
                if len(line) == _LONGEST_LINE:
                    raise DataError(
                        f"{path}: expected lines of fewer than {_LONGEST_LINE:,} characters, "
                        "found a longer one"
                    )
                yield [*words, END]
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: expected a text in UTF-8, but it is truncated or corrupt ({error.reason})"
        ) from error
    except OSError as error:
        raise DataError(
            f"{path}: expected a text of words, cannot read it ({in_words(error)})"
        ) from error
    if not found:
        raise DataError(f"{path}: expected a text of words, found an empty file")
