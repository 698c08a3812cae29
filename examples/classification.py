"""Losses and metrics of classifiers, per example."""

import jax
import jax.numpy as jnp
import optax

from examples.recipe import PerExample


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """-log softmax(logits)[label]: (n, classes), (n,) -> (n,), in float32."""
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)


def smoothed_cross_entropy(smoothing: float) -> PerExample:
    """The cross-entropy with (1 - smoothing) one-hot(label) + smoothing / classes, in float32."""

    def loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
        # Not from one-hot vectors: those of a label that is no class are zeros, and would not show.
        evenly = -jnp.mean(jax.nn.log_softmax(logits.astype(jnp.float32)), axis=-1)
        return (1 - smoothing) * cross_entropy(logits, labels) + smoothing * evenly

    return loss


def correct(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """1 where the largest logit is the label's: (n, classes), (n,) -> (n,)."""
    return (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
