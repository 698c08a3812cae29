"""What models write and say: the loss, proxies for an ear, and sound from spectrograms."""

import jax.numpy as jnp
import numpy as np
import pytest

from examples import language, speech
from examples.data import audio
from examples.data.wikitext import PADDING
from examples.griffin_lim import linear_magnitudes, sound_from_mel


def test_the_loss_is_the_mean_over_words_that_are_no_padding():
    targets = jnp.array([[3, PADDING, 4], [PADDING] * 3])
    nll = jnp.array([[1.0, 100.0, 2.0], [1.0, 1.0, 1.0]])
    assert language.mean_nll(nll, targets).tolist() == [1.5, 0.0]


def test_diagonality_is_one_on_the_diagonal_and_nothing_for_attention_to_all_alike():
    diagonal = jnp.eye(40)
    alignments = jnp.stack([diagonal, jnp.full((40, 40), 1 / 40), diagonal[::-1]])
    lengths = jnp.full(3, 40)
    straight, flat, backwards = speech.diagonality(alignments, lengths, lengths)
    assert straight == pytest.approx(1.0)
    assert flat == pytest.approx(0.0, abs=1e-3)
    assert backwards == pytest.approx(-0.5, abs=1e-2)
    padded = jnp.zeros((1, 50, 60)).at[0, :40, :40].set(diagonal)
    assert speech.diagonality(padded, lengths[:1], lengths[:1])[0] == pytest.approx(1.0)


def test_attention_costs_where_it_is_off_the_diagonal():
    lengths = jnp.array([40, 40])
    alignments = jnp.zeros((2, 50, 60))
    alignments = alignments.at[0, :40, :40].set(jnp.eye(40))
    alignments = alignments.at[1, :40, :40].set(jnp.eye(40)[::-1])
    on, off = speech.off_diagonal(alignments, lengths, lengths)
    assert on == pytest.approx(0.0, abs=1e-6)
    d = (np.arange(40) - np.arange(40)[::-1]) / 40
    assert off == pytest.approx(np.mean(1 - np.exp(-(d**2) / (2 * 0.2**2))), rel=1e-5)


def test_speech_at_another_pace_is_at_no_distance():
    frames = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    slower = np.repeat(frames, [1, 3, 2, 1, 4], axis=0)
    assert speech.warped_distance(frames, slower) == 0.0
    assert speech.warped_distance(frames[:1], frames[:1] + 0.5) == 0.5
    assert speech.warped_distance(frames, slower[::-1]) > 0.2


def test_sound_from_a_spectrogram_has_that_spectrogram():
    settings = audio.Audio(sample_rate=8000, fft=256, window=256, hop=64, mels=40, high=4000.0)
    time = np.arange(4800) / 8000
    glide = 0.5 * np.sin(2 * np.pi * (300 * time + 1000 * time**2)).astype(np.float32)
    mel = audio.mel_spectrogram(glide, settings)
    linear = linear_magnitudes(mel, settings)
    np.testing.assert_allclose(linear @ audio.mel_filters(settings).T, np.exp(mel), atol=1e-2)
    sound = sound_from_mel(mel, settings, iterations=30)
    assert sound.shape == (4800,)
    found = audio.mel_spectrogram(sound, settings)
    loud = mel > mel.max() - 3
    assert np.abs(found - mel)[loud].mean() < 0.25
    rough = audio.mel_spectrogram(sound_from_mel(mel, settings, iterations=0), settings)
    assert np.abs(found - mel)[loud].mean() < 0.5 * np.abs(rough - mel)[loud].mean()


def test_sound_is_written_as_it_is_read(tmp_path):
    settings = audio.Audio(sample_rate=8000)
    audio.write_sound(tmp_path / "a.wav", np.array([0.25, -1.0, 0.5, 3.0]), settings)
    read = audio.read_sound(tmp_path / "a.wav", settings)
    assert read.tolist() == [0.25, -1.0, 0.5, 32767 / 32768]
