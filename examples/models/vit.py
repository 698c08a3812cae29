"""A vision transformer that learns by filling in masked patches.

Dosovitskiy et al., ICLR 2021 (the encoder) and Xie et al., SimMIM, CVPR 2022 (the task): the
vectors of masked patches are replaced by one learned token, and a linear decoder with pixel shuffle
predicts the pixels of every patch. Only masked pixels count in the loss.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

_INIT = nnx.initializers.truncated_normal(0.02)
_EPSILON = 1e-12  # of the layer norms


class Block(nnx.Module):
    """Pre-norm self-attention and two dense layers, each added to its input.

    Args:
        features: size of the token vectors.
        heads: number of attention heads.
        hidden: units between the two dense layers.
        dtype: type computed in.
        rngs: stream `params`.
    """

    def __init__(
        self, features: int, heads: int, hidden: int, *, dtype: DTypeLike | None, rngs: nnx.Rngs
    ) -> None:
        def dense(inputs: int, outputs: int) -> nnx.Linear:
            return nnx.Linear(inputs, outputs, dtype=dtype, kernel_init=_INIT, rngs=rngs)

        self.attention_norm = nnx.LayerNorm(features, epsilon=_EPSILON, dtype=dtype, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            heads, features, dtype=dtype, kernel_init=_INIT, decode=False, rngs=rngs
        )
        self.mlp_norm = nnx.LayerNorm(features, epsilon=_EPSILON, dtype=dtype, rngs=rngs)
        self.expand, self.contract = dense(features, hidden), dense(hidden, features)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(n, tokens, features) -> the same shape."""
        x = x + self.attention(self.attention_norm(x))
        y = self.mlp_norm(x)
        return x + self.contract(nnx.gelu(self.expand(y), approximate=False))


class MaskedImageModel(nnx.Module):
    """Encoder and pixel decoder. The defaults are the paper's for CIFAR; patches of 4 x 4 are ours.

    Args:
        image_size: side of the square images.
        patch_size: side of a patch; divides `image_size`.
        channels: of the images.
        features: size of the token vectors.
        layers: number of blocks.
        heads: number of attention heads; divides `features`.
        hidden: units between the two dense layers of a block.
        dtype: type computed in.
        rngs: stream `params`.

    Raises:
        ValueError: for sizes that do not divide.
    """

    def __init__(
        self,
        *,
        image_size: int = 32,
        patch_size: int = 4,
        channels: int = 3,
        features: int = 192,
        layers: int = 4,
        heads: int = 4,
        hidden: int = 768,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        if image_size % patch_size:
            raise ValueError(f"patch_size must divide {image_size}, got {patch_size}.")
        if features % heads:
            raise ValueError(f"heads must divide {features}, got {heads}.")
        patch = (patch_size, patch_size)
        self.patch_size, self.grid = patch_size, image_size // patch_size
        self.patches = nnx.Conv(
            channels,
            features,
            patch,
            strides=patch,
            padding="VALID",
            dtype=dtype,
            kernel_init=_INIT,
            rngs=rngs,
        )
        self.class_token = nnx.Param(_INIT(rngs.params(), (1, 1, features), jnp.float32))
        self.mask_token = nnx.Param(jnp.zeros((1, 1, features)))
        self.positions = nnx.Param(
            _INIT(rngs.params(), (1, 1 + self.grid**2, features), jnp.float32)
        )
        self.blocks = nnx.List(
            [Block(features, heads, hidden, dtype=dtype, rngs=rngs) for _ in range(layers)]
        )
        self.norm = nnx.LayerNorm(features, epsilon=_EPSILON, dtype=dtype, rngs=rngs)
        self.decoder = nnx.Linear(
            features, patch_size**2 * channels, dtype=dtype, kernel_init=_INIT, rngs=rngs
        )

    def __call__(self, images: jax.Array, mask: jax.Array) -> jax.Array:
        """Images with the masked patches filled in.

        Args:
            images: (n, size, size, channels).
            mask: booleans (n, patches in rows and columns), true where the patch is hidden; see
                `random_mask`.

        Returns:
            Predicted pixels of all patches, (n, size, size, channels) in float32.
        """
        x = self.patches(images)
        x = x.reshape(x.shape[0], self.grid**2, -1)
        x = jnp.where(mask[..., None], self.mask_token[...].astype(x.dtype), x)
        token = jnp.broadcast_to(self.class_token[...], (x.shape[0], 1, x.shape[-1])).astype(
            x.dtype
        )
        x = jnp.concatenate([token, x], axis=1) + self.positions[...].astype(x.dtype)
        for block in self.blocks:
            x = block(x)
        pixels = self.decoder(self.norm(x)[:, 1:]).astype(jnp.float32)
        return unpatch(pixels, self.patch_size)

    def random_mask(self, key: jax.Array, count: int, ratio: float = 0.6) -> jax.Array:
        """Booleans (count, patches): ceil(ratio patches) of each image, drawn uniformly."""
        return random_mask(key, count, self.grid**2, ratio)


def random_mask(key: jax.Array, count: int, patches: int, ratio: float) -> jax.Array:
    """Booleans (count, patches): in each row ceil(ratio patches) are true, drawn uniformly."""
    hidden = math.ceil(ratio * patches)
    order = jnp.argsort(jax.random.uniform(key, (count, patches)), axis=-1)
    return jnp.argsort(order, axis=-1) < hidden


def unpatch(x: jax.Array, patch_size: int) -> jax.Array:
    """Pixel shuffle: (n, rows * columns, patch * patch * channels) of a square grid -> images.

    Returns:
        (n, rows * patch, columns * patch, channels).
    """
    count, patches, size = x.shape
    grid, channels = math.isqrt(patches), size // patch_size**2
    x = x.reshape(count, grid, grid, patch_size, patch_size, channels)
    return x.swapaxes(2, 3).reshape(count, grid * patch_size, grid * patch_size, channels)


def pixel_mask(mask: jax.Array, patch_size: int) -> jax.Array:
    """Booleans (n, patches) -> booleans (n, size, size, 1), one per pixel."""
    return unpatch(jnp.repeat(mask[..., None], patch_size**2, axis=-1), patch_size)


class MaskedPixels(NamedTuple):
    """What a reconstruction is compared with.

    Attributes:
        images: (n, size, size, channels).
        mask: booleans (n, patches), true where the patch was hidden.
    """

    images: jax.Array
    mask: jax.Array


def masked_l1(reconstruction: jax.Array, target: MaskedPixels) -> jax.Array:
    """Mean absolute error over the hidden pixels and their channels, per image (n,).

    Every image has as many hidden patches as the next, so the mean over images is the mean over all
    hidden pixels.
    """
    side = reconstruction.shape[1] // math.isqrt(target.mask.shape[1])
    hidden = pixel_mask(target.mask, side)
    error = jnp.abs(reconstruction - target.images.astype(jnp.float32))
    count = jnp.maximum(jnp.sum(hidden, axis=(1, 2, 3)), 1) * reconstruction.shape[-1]
    return jnp.sum(error * hidden, axis=(1, 2, 3)) / count
