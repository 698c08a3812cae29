"""From a log mel spectrogram back to sound, which has to guess what the spectrogram left out.

Griffin & Lim, Signal estimation from modified short-time Fourier transform, IEEE Trans. ASSP 1984:
given magnitudes without phases, take those of the sound whose transform has nearly these magnitudes.
"""

import numpy as np

from examples.data.audio import Audio, mel_filters, spectrum, window

_TINY = 1e-12


def sound_from_mel(
    mel: np.ndarray, audio: Audio, *, iterations: int = 60, seed: int = 0
) -> np.ndarray:
    """Log mel spectrogram (frames, mels) -> samples ((frames - 1) hop,) float32.

        S <- magnitudes * phase(transform(inverse transform(S)))

    Args:
        mel: from `mel_spectrogram`, or like it; at least two frames.
        audio: how it was made.
        iterations: how often the phases are improved.
        seed: of the first phases.
    """
    magnitudes = linear_magnitudes(mel, audio)
    turns = np.random.default_rng(seed).uniform(size=magnitudes.shape)
    transform = magnitudes * np.exp(2j * np.pi * turns)
    for _ in range(iterations):
        again = spectrum(_inverse(transform, audio), audio)[: len(transform)]
        transform = magnitudes * again / np.maximum(np.abs(again), _TINY)
    return _inverse(transform, audio).astype(np.float32)


def linear_magnitudes(mel: np.ndarray, audio: Audio, iterations: int = 100) -> np.ndarray:
    """Magnitudes X >= 0 (frames, fft // 2 + 1) with filters X = exp(mel) as nearly as may be.

        X <- X * (Y F) / (X F^T F),        F the filters, Y = exp(mel)

    never increases ||X F^T - Y|| and keeps X positive (Lee & Seung, NeurIPS 2000).
    """
    filters = mel_filters(audio).astype(np.float64)
    target = np.exp(mel.astype(np.float64))
    wanted, gram = target @ filters, filters.T @ filters
    x = np.maximum(target @ np.linalg.pinv(filters).T, _TINY)
    for _ in range(iterations):
        x *= wanted / np.maximum(x @ gram, _TINY)
    return x


def _inverse(transform: np.ndarray, audio: Audio) -> np.ndarray:
    """The sound ((frames - 1) hop,) whose transform is nearest to this one, in squares."""
    shape = window(audio)
    frames = np.fft.irfft(transform, n=audio.fft, axis=-1) * shape
    length = (len(frames) - 1) * audio.hop
    total, weight = np.zeros((2, length + audio.fft))
    for number, frame in enumerate(frames):
        place = slice(number * audio.hop, number * audio.hop + audio.fft)
        total[place] += frame
        weight[place] += shape**2
    half = audio.fft // 2
    inside = slice(half, half + length)
    return total[inside] / np.maximum(weight[inside], _TINY)
