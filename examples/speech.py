"""What a speech recipe is made of: its call, its loss and the proxies for what an ear would say."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from examples.models.tacotron2 import Recording, Speech, Tacotron2, speech_loss, within

Targets = tuple[jax.Array, jax.Array]
"""Log mel spectrograms (n, frames, mels) and numbers of frames (n,)."""


def forward(model: Tacotron2, inputs: Any, memory: Any) -> tuple[tuple[Speech, jax.Array], Any]:
    """Every frame of an `Utterance` from the true frames before it.

    Returns:
        (speech, numbers of symbols (n,)), and the memory, which there is none of.
    """
    recording = Recording(inputs.mels, inputs.mel_lengths)
    speech = model(inputs.text, inputs.text_lengths, recording)
    return (speech, inputs.text_lengths), memory


def loss(outputs: tuple[Speech, jax.Array], targets: Targets) -> jax.Array:
    """Squared errors of both spectrograms and the gate's cross-entropy, a frame: (n,)."""
    return speech_loss(outputs[0], Recording(*targets)).total


def guided_loss(outputs: tuple[Speech, jax.Array], targets: Targets) -> jax.Array:
    """`loss` + 2 x `off_diagonal`: (n,).

    Attention that wanders costs, so that it is diagonal after hundreds of steps where the loss alone
    takes many thousands; with little data it may never be (Tachibana et al., ICASSP 2018).
    """
    speech, symbols = outputs
    return loss(outputs, targets) + 2 * off_diagonal(speech.alignments, targets[1], symbols)


def off_diagonal(
    alignments: jax.Array, frames: jax.Array, symbols: jax.Array, width: float = 0.2
) -> jax.Array:
    """How much attention is far from reading the text at a constant pace: in [0, 1).

        mean over frames t of sum_s A[t, s] (1 - exp(-d(t, s)^2 / (2 width^2)))

    with d(t, s) = (s + 1/2) / symbols - (t + 1/2) / frames.

    Args:
        alignments: A, (n, frames, symbols), 0 in the padding.
        frames: numbers of frames (n,).
        symbols: numbers of symbols (n,).
        width: distance from the diagonal that is still little.

    Returns:
        (n,).
    """
    far = 1 - jnp.exp(-(_from_diagonal(alignments.shape, frames, symbols) ** 2) / (2 * width**2))
    return jnp.sum(alignments * far, axis=(1, 2)) / frames


def mel_distance(outputs: tuple[Speech, jax.Array], targets: Targets) -> jax.Array:
    """Mean of |refined - true| over frames and mels, in natural logarithms of magnitude: (n,)."""
    mels, lengths = targets
    distance = jnp.mean(jnp.abs(outputs[0].refined - mels), axis=-1)
    mask = within(lengths, mels.shape[1])
    return jnp.sum(jnp.where(mask, distance, 0.0), axis=-1) / lengths


def alignment_diagonality(outputs: tuple[Speech, jax.Array], targets: Targets) -> jax.Array:
    """`diagonality` of each recording's attention: (n,)."""
    speech, text_lengths = outputs
    return diagonality(speech.alignments, targets[1], text_lengths)


def diagonality(alignments: jax.Array, frames: jax.Array, symbols: jax.Array) -> jax.Array:
    """How close attention is to reading the text at a constant pace.

        1 - 3 mean over frames t of sum_s A[t, s] |(s + 1/2) / symbols - (t + 1/2) / frames|

    It is 1 on the diagonal and 0 for attention to all symbols alike (|x - y| is 1/3 on average);
    speech has no constant pace, so that of good alignments stays below 1.

    Args:
        alignments: A, (n, frames, symbols), 0 in the padding.
        frames: numbers of frames (n,).
        symbols: numbers of symbols (n,).

    Returns:
        (n,).
    """
    distance = jnp.abs(_from_diagonal(alignments.shape, frames, symbols))
    return 1 - 3 * jnp.sum(alignments * distance, axis=(1, 2)) / frames


def _from_diagonal(shape: tuple[int, ...], frames: jax.Array, symbols: jax.Array) -> jax.Array:
    """(s + 1/2) / symbols - (t + 1/2) / frames, of the alignments' shape."""
    _, height, width = shape
    time = (jnp.arange(height) + 0.5) / frames[:, None]
    place = (jnp.arange(width) + 0.5) / symbols[:, None]
    return place[:, None, :] - time[:, :, None]


def warped_distance(generated: np.ndarray, recorded: np.ndarray) -> float:
    """Distance of spectrograms that differ in pace: the least over all ways to align their frames.

    Both are walked from start to end, one frame of either or of both at a time; a step costs the
    mean |difference| of the frames it leads to, twice for a step in both. The distance is the
    cheapest walk's cost over the number of frames of both (Sakoe & Chiba 1978).

    Args:
        generated: (frames, mels).
        recorded: (other frames, mels).
    """
    cost = np.mean(np.abs(generated[:, None] - recorded[None]), axis=-1)
    total = np.full((len(generated) + 1, len(recorded) + 1), np.inf)
    total[0, 0] = 0.0
    for i, j in np.ndindex(cost.shape):
        one = min(total[i, j + 1], total[i + 1, j]) + cost[i, j]
        total[i + 1, j + 1] = min(one, total[i, j] + 2 * cost[i, j])
    return float(total[-1, -1] / sum(cost.shape))
