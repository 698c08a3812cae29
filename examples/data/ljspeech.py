"""LJSpeech as it is on disk: `metadata.csv` (name|text|normalized text) and `wavs/name.wav`.

Recordings differ in length, and a compiled program has fixed shapes: recordings of similar length
are batched together, padded to the longest of their bucket.
"""

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import grain
import numpy as np

from examples.data.audio import Audio, count_samples, mel_spectrogram, read_sound
from examples.data.base import (
    Batch,
    DataError,
    Split,
    Stream,
    path_inside,
    read_lines,
    require_folder,
)
from examples.data.pipeline import Example, batches_in_order, this_process, training_batches

SYMBOLS = "_~ !'(),-.:;?abcdefghijklmnopqrstuvwxyz"
"""Padding, end of text, and what texts are made of; a symbol's number is its place here."""

_END = 1
_LARGEST_LIST = 2**24
"""Bytes of `metadata.csv`, which has 2.9 million."""


class Utterance(NamedTuple):
    """Texts and recordings of a batch, padded.

    Attributes:
        text: symbols (n, symbols) int32.
        text_lengths: (n,) int32.
        mels: log mel spectrograms (n, frames, mels) float32.
        mel_lengths: frames (n,) int32.
    """

    text: np.ndarray
    text_lengths: np.ndarray
    mels: np.ndarray
    mel_lengths: np.ndarray


class Clip(NamedTuple):
    """One recording: what is read when its turn comes."""

    path: Path
    symbols: np.ndarray
    frames: int


@dataclass(frozen=True)
class SpeechReader:
    """Settings of all readers of recordings, and the stream they make.

    Inputs are `Utterance`, targets (mels, mel_lengths). An example's weight is the number of its
    frames, so that means are over frames.

    Attributes:
        test_clips: how many recordings, drawn with a fixed seed, are kept for the test set.
        split: what is evaluated; `valid` are as many others, which are then not trained on.
        buckets: different lengths that training batches are padded to, at most.
        audio: how sound becomes a spectrogram.
        threads: how many read and transform.
    """

    test_clips: int = 500
    buckets: int = 8
    audio: Audio = field(default_factory=Audio)
    threads: int = 8
    split: Split = "test"

    def stream(self, clips: Sequence[Clip], path: Path, name: str) -> Stream:
        """Recordings as a stream.

        Args:
            clips: all of them.
            path: where they are from, for messages.
            name: of the set.
        """
        held_out = self.test_clips * (1 if self.split == "test" else 2)
        if len(clips) <= held_out:
            twice = "" if self.split == "test" else "twice "
            raise DataError(
                f"{path}: expected more than {twice}data.test_clips={self.test_clips} "
                f"recordings, found {len(clips)}"
            )
        order = np.random.default_rng(0).permutation(len(clips))
        test, train = ([clips[i] for i in part] for part in np.split(order, [held_out]))
        test = test[-self.test_clips :]
        return Stream(
            train=lambda size, seed: bucketed(train, size, seed, self.buckets, self._read),
            train_in_order=lambda size: in_order(train, size, self._read),
            test=lambda size: in_order(test, size, self._read),
            train_examples=len(train),
            test_examples=len(test),
            source=f"{name}: {len(train):,} + {len(test):,} recordings",
            threads=self.threads,
        )

    def _read(self, clip: Clip) -> Example:
        """Symbols and spectrogram of one recording."""
        return clip.symbols, mel_spectrogram(read_sound(clip.path, self.audio), self.audio)


@dataclass(frozen=True)
class LJSpeech(SpeechReader):
    """Reads LJSpeech."""

    def __call__(self, data_dir: Path | None) -> Stream:
        if data_dir is None:
            raise DataError(
                "ljspeech: expected --data-dir with metadata.csv and wavs; "
                "`python -m examples.download ljspeech` fetches them"
            )
        inside = data_dir / "LJSpeech-1.1"
        root = require_folder(inside if inside.is_dir() else data_dir, "metadata.csv and wavs")
        return self.stream(read_clips(root, self.audio), root / "metadata.csv", "LJSpeech")


def read_clips(root: Path, audio: Audio) -> list[Clip]:
    """Every recording that `metadata.csv` lists; its sound is not read, only its length."""
    path = root / "metadata.csv"
    clips = []
    for number, line in enumerate(read_lines(path, "a text file", _LARGEST_LIST), start=1):
        parts = line.split("|")
        if len(parts) < 2 or not parts[0]:
            raise DataError(
                f"{path}: expected name|text or name|text|normalized text in line {number}, "
                f"found {line[:40]!r}"
            )
        sound = path_inside(root / "wavs", f"{parts[0]}.wav", f"{path}, line {number}")
        frames = audio.frames(count_samples(sound, audio))
        clips.append(Clip(sound, encode(parts[-1].strip() or parts[1]), frames))
    if not clips:
        raise DataError(f"{path}: expected a line per recording, found an empty file")
    return clips


def encode(text: str) -> np.ndarray:
    """A text as symbols (n,) int32 with its end: lower case, accents dropped, others left out."""
    plain = unicodedata.normalize("NFKD", text).lower()
    plain = " ".join(plain.replace("\u2019", "'").replace("\u2014", "-").split())
    known = [SYMBOLS.index(letter) for letter in plain if letter in SYMBOLS[_END + 1 :]]
    return np.array([*known, _END], np.int32)


def bucketed(
    clips: Sequence[Clip],
    batch_size: int,
    seed: int,
    buckets: int,
    read: Callable[[Clip], Example],
) -> grain.MapDataset[Batch]:
    """One pass of batches (of this process) of similar lengths, in random order.

    Clips are sorted by length and cut into buckets of equal number, of at least a batch each; each
    is shuffled and padded on its own, and the order of all batches is shuffled.
    """
    ordered = sorted(clips, key=lambda clip: clip.frames)
    count = max(1, min(buckets, len(ordered) // (batch_size * this_process().hosts)))
    parts = []
    for number, indices in enumerate(np.array_split(np.arange(len(ordered)), count)):
        part = [ordered[i] for i in indices]
        transform: Callable[[Any, Any], Example] = lambda clip, _: read(clip)
        parts.append(
            training_batches(
                part, batch_size, (seed + number) % 2**32, transform, stack=padding_to(part)
            )
        )
    return grain.MapDataset.concatenate(parts).shuffle(seed=seed)


def in_order(
    clips: Sequence[Clip], batch_size: int, read: Callable[[Clip], Example]
) -> grain.MapDataset[Batch]:
    """All clips in order, padded to the longest, the last batch filled up at weight 0."""
    return batches_in_order(clips, batch_size, read, stack=padding_to(clips))


def padding_to(clips: Sequence[Clip]) -> Callable[[Sequence[Example]], Batch]:
    """A function that stacks examples, padded to the longest text and recording of `clips`."""
    symbols = max(len(clip.symbols) for clip in clips)
    frames = max(clip.frames for clip in clips)

    def stack(examples: Sequence[Example]) -> Batch:
        texts, mels = zip(*examples, strict=True)
        utterance = Utterance(
            np.stack([np.pad(text, (0, symbols - len(text))) for text in texts]),
            np.array([len(text) for text in texts], np.int32),
            np.stack([np.pad(mel, ((0, frames - len(mel)), (0, 0))) for mel in mels]),
            np.array([len(mel) for mel in mels], np.int32),
        )
        targets = (utterance.mels, utterance.mel_lengths)
        return Batch(utterance, targets, utterance.mel_lengths.astype(np.float32))

    return stack
