"""Scaling and augmentation of image batches, on the device."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

CROP_PADDING = 4
"""Pixels around a CIFAR image from which the crop is taken."""


def standardize(mean: Sequence[float], std: Sequence[float]) -> Callable[[jax.Array], jax.Array]:
    """A function from bytes (n, h, w, channels) to float32 of zero mean and unit variance.

    Args:
        mean: per channel, of pixels in [0, 1].
        std: per channel.
    """

    def prepare(images: jax.Array) -> jax.Array:
        return (images.astype(jnp.float32) / 255.0 - jnp.asarray(mean)) / jnp.asarray(std)

    return prepare


def crop_and_flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Each image shifted by up to four pixels either way (black comes in), mirrored or not.

    Args:
        key: for this batch.
        images: (n, h, w, channels), before scaling, so that 0 is black.
    """
    shift_key, flip_key = jax.random.split(key)
    shifts = jax.random.randint(shift_key, (len(images), 2), 0, 2 * CROP_PADDING + 1)
    flips = jax.random.bernoulli(flip_key, 0.5, (len(images),))
    around = (CROP_PADDING, CROP_PADDING)
    padded = jnp.pad(images, ((0, 0), around, around, (0, 0)))

    def one(image: jax.Array, shift: jax.Array, flip: jax.Array) -> jax.Array:
        crop = jax.lax.dynamic_slice(image, (shift[0], shift[1], 0), images.shape[1:])
        return jnp.where(flip, crop[:, ::-1], crop)

    return jax.vmap(one)(padded, shifts, flips)
