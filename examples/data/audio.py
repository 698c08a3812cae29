"""Mel spectrograms as Tacotron 2 defines them, from WAV files.

    power-free magnitude of the STFT -> mel filters -> log(max(., 1e-5))

The filters are triangles on Slaney's mel scale (linear up to 1 kHz, then logarithmic), each of area
2 over its support, so that a filter's output does not grow with its width.
"""

import os
import wave
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np

from examples.data.base import DataError, in_words, open_file

_LONGEST_SECONDS = 120
"""Of a recording; those of the sets read here have up to 10 seconds, and one of Asterisk's 73."""


@dataclass(frozen=True)
class Audio:
    """How sound becomes a spectrogram.

    Attributes:
        sample_rate: Hz.
        fft: samples of a transform.
        window: samples of the Hann window, at most `fft`.
        hop: samples from a frame to the next.
        mels: filters.
        low: lowest frequency, Hz.
        high: highest frequency, Hz.
        floor: magnitudes below it are raised to it before the logarithm.
    """

    sample_rate: int = 22_050
    fft: int = 1024
    window: int = 1024
    hop: int = 256
    mels: int = 80
    low: float = 0.0
    high: float = 8000.0
    floor: float = 1e-5

    def frames(self, samples: int) -> int:
        """Number of frames of so many samples."""
        return 1 + samples // self.hop


def mel_spectrogram(sound: np.ndarray, audio: Audio) -> np.ndarray:
    """Samples in [-1, 1] (n,) -> (frames, mels) float32; frames are centered on multiples of hop."""
    magnitudes = np.abs(spectrum(sound, audio)).astype(np.float32)
    mel = magnitudes @ mel_filters(audio).T
    return np.log(np.maximum(mel, audio.floor)).astype(np.float32)


def spectrum(sound: np.ndarray, audio: Audio) -> np.ndarray:
    """The short-time Fourier transform: samples (n,) -> (frames, fft // 2 + 1), complex."""
    half = audio.fft // 2
    # Reflection needs more samples than it adds.
    sound = np.pad(sound, (0, max(0, half + 1 - len(sound))))
    padded = np.pad(sound, half, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, audio.fft)[:: audio.hop]
    return np.fft.rfft(frames * window(audio), axis=-1)


@lru_cache
def mel_filters(audio: Audio) -> np.ndarray:
    """The filters (mels, fft // 2 + 1) float32."""
    frequencies = np.linspace(0, audio.sample_rate / 2, audio.fft // 2 + 1)
    edges = _mel_to_hz(np.linspace(_hz_to_mel(audio.low), _hz_to_mel(audio.high), audio.mels + 2))
    left, center, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising = (frequencies - left) / (center - left)
    falling = (right - frequencies) / (right - center)
    triangles = np.maximum(0, np.minimum(rising, falling))
    return (triangles * (2 / (right - left))).astype(np.float32)


# Slaney's scale: 200/3 Hz a mel up to 1 kHz, then 27 mels for each factor of 6.4.
_HZ_PER_MEL, _KNEE_HZ, _LOG_STEP = 200 / 3, 1000.0, np.log(6.4) / 27


def _hz_to_mel(hz: float) -> float:
    if hz < _KNEE_HZ:
        return hz / _HZ_PER_MEL
    return _KNEE_HZ / _HZ_PER_MEL + float(np.log(hz / _KNEE_HZ)) / _LOG_STEP


def _mel_to_hz(mel: np.ndarray) -> np.ndarray:
    knee = _KNEE_HZ / _HZ_PER_MEL
    above = _KNEE_HZ * np.exp(_LOG_STEP * np.maximum(0, mel - knee))
    return np.where(mel < knee, mel * _HZ_PER_MEL, above)


@lru_cache
def window(audio: Audio) -> np.ndarray:
    """A periodic Hann window, centered in the transform."""
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(audio.window) / audio.window)
    before = (audio.fft - audio.window) // 2
    return np.pad(hann, (before, audio.fft - audio.window - before))


def count_samples(path: Path, audio: Audio) -> int:
    """Samples of a WAV file by its header, which is checked; and the file's size against it.

    Raises:
        DataError: the file is missing, damaged, of another kind of sound, or too long.
    """
    with open_file(path, "a WAV file", _largest_file(audio)) as file:
        return _check_sound(path, _open_wave(path, file), os.fstat(file.fileno()).st_size, audio)


def _largest_file(audio: Audio) -> int:
    """Bytes of the longest sound, and as many as for half a second for what else a file tells."""
    return round(2 * audio.sample_rate * (_LONGEST_SECONDS + 0.5))


def _open_wave(path: Path, file: BinaryIO) -> wave.Wave_read:
    try:
        return wave.open(file, "rb")
    except Exception as error:  # a damaged header can raise almost anything
        raise DataError(
            f"{path}: expected a WAV file, but it is truncated or corrupt ({in_words(error)})"
        ) from error


def _check_sound(path: Path, sound: wave.Wave_read, size: int, audio: Audio) -> int:
    """Samples of a sound; `size` is that of its file."""
    found = (sound.getnchannels(), sound.getsampwidth(), sound.getframerate())
    samples = sound.getnframes()
    if found != (1, 2, audio.sample_rate):
        channels, width, rate = found
        raise DataError(
            f"{path}: expected one channel of 16 bits at {audio.sample_rate} Hz, "
            f"found {channels} of {8 * width} at {rate} Hz"
        )
    if samples == 0 or size < 2 * samples:
        raise DataError(
            f"{path}: expected {samples} samples by its header (and at least one), "
            f"found {size} bytes: truncated"
        )
    if samples > _LONGEST_SECONDS * audio.sample_rate:
        raise DataError(
            f"{path}: expected at most {_LONGEST_SECONDS} seconds, "
            f"found {samples / audio.sample_rate:.1f}"
        )
    return samples


def read_sound(path: Path, audio: Audio) -> np.ndarray:
    """The samples of a WAV file in [-1, 1) (n,) float32.

    Raises:
        DataError: as `count_samples`, or the file is truncated.
    """
    with open_file(path, "a WAV file", _largest_file(audio)) as file:
        sound = _open_wave(path, file)
        expected = _check_sound(path, sound, os.fstat(file.fileno()).st_size, audio)
        content = sound.readframes(expected)
    if len(content) != 2 * expected:
        raise DataError(
            f"{path}: expected {expected} samples by its header, "
            f"found {len(content) // 2}: truncated"
        )
    return np.frombuffer(content, "<i2").astype(np.float32) / 32768.0


def write_sound(path: Path, sound: np.ndarray, audio: Audio) -> None:
    """Samples (n,) as a WAV file of 16 bits; what is outside [-1, 1) is cut off."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(audio.sample_rate)
        samples = np.clip(np.round(sound * 32768.0), -32768, 32767)
        file.writeframes(samples.astype("<i2").tobytes())
