"""The voice of the Asterisk telephone exchange: recordings of one speaker and what she says.

A stand-in for LJSpeech: 24 minutes of real speech in two packages of Debian,
`asterisk-core-sounds-en-wav` (8 kHz WAV files in folders) and `asterisk-core-sounds-en` (their
texts, lines `folder/name: text`), CC-BY-SA-3.0. The archives that Asterisk itself publishes hold
both in one folder.

- Left out: what is not said, `[ascending tones]` and `(10 seconds of silence)`, also within a text;
  and recordings whose text says nothing else, as those of tones and silence.
- Digits are spelled one by one, as nearly all of them are spoken; texts then become symbols as those
  of LJSpeech do.
- Spectrograms are those of telephone sound: windows of 50 ms every 12.5 ms, filters to 4 kHz.
"""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from examples.data.audio import Audio, count_samples
from examples.data.base import DataError, Stream, path_inside, read_lines, require_folder
from examples.data.ljspeech import Clip, SpeechReader, encode

SOUNDS = Path("/usr/share/asterisk/sounds/en_US_f_Allison")
TEXTS = Path("/usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz")
"""Where the Debian packages put them."""

_WAVS = "the WAV files of the Debian package asterisk-core-sounds-en-wav (install it)"
_LIST = "the list of texts of the Debian package asterisk-core-sounds-en (install it)"
_LARGEST_LIST = 2**20
# Bounded, or a line of brackets that nothing closes would be read once for each of them.
_UNSPOKEN = re.compile(r"\[[^]]{0,500}\]|\([^)]{0,500}\)")
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

TELEPHONE = Audio(sample_rate=8000, fft=512, window=400, hop=100, high=4000.0)


@dataclass(frozen=True)
class AsteriskSounds(SpeechReader):
    """Reads the recordings, from where Debian puts them or from the folder of the archives.

    Attributes:
        max_seconds: longer recordings are left out (one of 73 s is more than twice the next).
    """

    test_clips: int = 40
    buckets: int = 4
    audio: Audio = field(default_factory=lambda: TELEPHONE)
    threads: int = 2
    max_seconds: float = 32.0

    def __call__(self, data_dir: Path | None) -> Stream:
        sounds = require_folder(data_dir or SOUNDS, _WAVS)
        clips = []
        listed = find_texts(data_dir) if data_dir else TEXTS
        for name, text in read_texts(listed).items():
            path = path_inside(sounds, f"{name}.wav", str(listed))
            if not os.path.exists(path):  # the list has a text or two more than were recorded
                continue
            samples = count_samples(path, self.audio)
            if samples <= self.max_seconds * self.audio.sample_rate:
                clips.append(Clip(path, encode(text), self.audio.frames(samples)))
        return self.stream(clips, sounds, "Asterisk's English voice")


def find_texts(folder: Path) -> Path:
    """The list of texts in a folder, plain or gzipped."""
    plain = folder / TEXTS.stem
    return plain if os.path.exists(plain) else folder / TEXTS.name


def read_texts(path: Path) -> dict[str, str]:
    """What is said in each recording, by its name; recordings that say nothing are left out."""
    texts = {}
    for number, line in enumerate(read_lines(path, _LIST, _LARGEST_LIST), start=1):
        if not line.strip() or line.startswith(";"):
            continue
        name, colon, said = line.partition(":")
        if not colon:
            raise DataError(f"{path}: expected name: text in line {number}, found {line[:40]!r}")
        if spoken := as_spoken(said):
            texts[name.strip()] = spoken
    return texts


def as_spoken(text: str) -> str:
    """A text without what is not said, its digits as words."""
    text = _UNSPOKEN.sub(" ", text)
    return " ".join(re.sub(r"\d", lambda digit: f" {_DIGITS[int(digit[0])]} ", text).split())
