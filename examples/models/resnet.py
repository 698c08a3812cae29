"""ResNet50 for CIFAR and for ImageNet.

He et al., CVPR 2016, with the stride of a block in its 3 x 3 convolution ("v1.5").
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from examples.models.layers import ConvNorm, uniform_fan_in

RESNET50_BLOCKS = (3, 4, 6, 3)
"""Blocks of each stage."""

_EXPANSION = 4


class Bottleneck(nnx.Module):
    """1 x 1 to few channels, 3 x 3, 1 x 1 back to many; added to the input.

    Args:
        inputs: input channels.
        width: channels of the 3 x 3 convolution; four times as many come out.
        stride: of the 3 x 3 convolution.
        dtype: type computed in.
        rngs: stream `params`.
    """

    def __init__(
        self, inputs: int, width: int, stride: int, *, dtype: DTypeLike | None, rngs: nnx.Rngs
    ) -> None:
        outputs = _EXPANSION * width
        self.reduce = ConvNorm(inputs, width, (1, 1), dtype=dtype, rngs=rngs)
        self.spatial = ConvNorm(width, width, (3, 3), stride, dtype=dtype, rngs=rngs)
        self.expand = ConvNorm(width, outputs, (1, 1), dtype=dtype, rngs=rngs)
        self.projection = (
            ConvNorm(inputs, outputs, (1, 1), stride, dtype=dtype, rngs=rngs)
            if stride != 1 or inputs != outputs
            else None
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """(n, h, w, inputs) -> (n, h / stride, w / stride, 4 width)."""
        y = nnx.relu(self.reduce(x))
        y = nnx.relu(self.spatial(y))
        shortcut = x if self.projection is None else self.projection(x)
        return nnx.relu(self.expand(y) + shortcut)


class ResNet(nnx.Module):
    """Stages of bottleneck blocks, the average over positions, and one dense layer.

    Args:
        classes: number of classes.
        stem: "cifar" starts with a 3 x 3 convolution, "imagenet" with a 7 x 7 one of stride 2 and
            a 3 x 3 max-pooling of stride 2.
        blocks: number of blocks of each stage; each stage but the first halves the image.
        width: channels of the stem and of the first stage's bottlenecks; doubled at each stage.
        dtype: type computed in.
        rngs: stream `params`.

    Raises:
        ValueError: for another stem.
    """

    def __init__(
        self,
        classes: int = 10,
        *,
        stem: str = "cifar",
        blocks: Sequence[int] = RESNET50_BLOCKS,
        width: int = 64,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        if stem not in ("cifar", "imagenet"):
            raise ValueError(f"stem must be 'cifar' or 'imagenet', got {stem!r}.")
        size, stride = ((3, 3), 1) if stem == "cifar" else ((7, 7), 2)
        self.pooled = stem == "imagenet"
        self.stem = ConvNorm(3, width, size, stride, dtype=dtype, rngs=rngs)
        stages, channels = [], width
        for stage, count in enumerate(blocks):
            layers = []
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(
                    Bottleneck(channels, width * 2**stage, stride, dtype=dtype, rngs=rngs)
                )
                channels = _EXPANSION * width * 2**stage
            stages.append(nnx.List(layers))
        self.stages = nnx.List(stages)
        self.dense = nnx.Linear(
            channels, classes, dtype=dtype, kernel_init=uniform_fan_in, rngs=rngs
        )

    def __call__(self, images: jax.Array) -> jax.Array:
        """(n, height, width, 3) -> logits (n, classes) in float32."""
        x = nnx.relu(self.stem(images))
        if self.pooled:
            x = nnx.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        for stage in self.stages:
            for block in stage:
                x = block(x)
        return self.dense(jnp.mean(x, axis=(1, 2))).astype(jnp.float32)
