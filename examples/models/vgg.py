"""VGG19 with batch norm for 32 x 32 images.

Simonyan & Zisserman, ICLR 2015, configuration E; for CIFAR the three dense layers of the original
give way to one.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from examples.models.layers import ConvNorm, max_pool_2x2

VGG19_WIDTHS = ((64,) * 2, (128,) * 2, (256,) * 4, (512,) * 4, (512,) * 4)
"""Channels of the convolutions between poolings."""


class VGG(nnx.Module):
    """Stages of 3 x 3 convolutions, each followed by a 2 x 2 pooling, and one dense layer.

    Args:
        classes: number of classes.
        widths: channels of the convolutions of each stage.
        channels: of the images.
        dtype: type computed in.
        rngs: stream `params`.
    """

    def __init__(
        self,
        classes: int = 10,
        *,
        widths: Sequence[Sequence[int]] = VGG19_WIDTHS,
        channels: int = 3,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        stages = []
        for stage in widths:
            layers = []
            for width in stage:
                layers.append(ConvNorm(channels, width, (3, 3), dtype=dtype, rngs=rngs))
                channels = width
            stages.append(nnx.List(layers))
        self.stages = nnx.List(stages)
        normal = nnx.initializers.normal(0.01)
        self.dense = nnx.Linear(channels, classes, dtype=dtype, kernel_init=normal, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """(n, 32, 32, channels) -> logits (n, classes) in float32."""
        x = images
        for stage in self.stages:
            for layer in stage:
                x = nnx.relu(layer(x))
            x = max_pool_2x2(x)
        # A single position for 32 x 32 images; larger ones are averaged.
        return self.dense(jnp.mean(x, axis=(1, 2))).astype(jnp.float32)
