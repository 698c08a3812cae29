"""The LeNet-style convolutional network of the paper, for the 28 x 28 images of FashionMNIST."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from examples.models.layers import (
    he_normal_fan_in,
    he_normal_fan_out,
    max_pool_2x2,
    uniform_fan_in,
)

_SIDE, _FILTER = 28, 5


class ConvNet(nnx.Module):
    """Convolution, pooling, convolution, pooling, dense, dense.

    LeCun et al., Proc. IEEE 1998, with ReLU, max-pooling and the widths of the paper.

    Args:
        classes: number of classes.
        widths: channels of the two 5 x 5 convolutions.
        hidden: units of the first dense layer.
        dtype: type computed in.
        rngs: stream `params`.
    """

    def __init__(
        self,
        classes: int = 10,
        *,
        widths: tuple[int, int] = (20, 50),
        hidden: int = 500,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        convs, channels, side = [], 1, _SIDE
        for width in widths:
            convs.append(
                nnx.Conv(
                    channels,
                    width,
                    (_FILTER, _FILTER),
                    padding="VALID",
                    dtype=dtype,
                    kernel_init=he_normal_fan_out,
                    rngs=rngs,
                )
            )
            channels, side = width, (side - _FILTER + 1) // 2
        self.convs = nnx.List(convs)
        self.hidden = nnx.Linear(
            side * side * channels, hidden, dtype=dtype, kernel_init=he_normal_fan_in, rngs=rngs
        )
        self.output = nnx.Linear(
            hidden, classes, dtype=dtype, kernel_init=uniform_fan_in, rngs=rngs
        )

    def __call__(self, images: jax.Array) -> jax.Array:
        """(n, 28, 28, 1), or anything with these 784 pixels -> logits (n, classes) in float32."""
        x = images.reshape(images.shape[0], _SIDE, _SIDE, 1)
        for conv in self.convs:
            x = max_pool_2x2(nnx.relu(conv(x)))
        x = nnx.relu(self.hidden(x.reshape(x.shape[0], -1)))
        return self.output(x).astype(jnp.float32)
