"""What several of the models are made of: initial distributions, and convolution with batch norm."""

from collections.abc import Sequence

import jax
from flax import nnx
from jax.typing import DTypeLike

# He et al. 2015, with the fan of the backward pass: what convolutions of VGG and ResNet start from.
he_normal_fan_out = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
# The same with the fan of the forward pass, for dense layers before a ReLU.
he_normal_fan_in = nnx.initializers.variance_scaling(2.0, "fan_in", "normal")
# Uniform on +-1/sqrt(fan in): the usual start of a dense classifier.
uniform_fan_in = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def xavier(gain: float) -> nnx.Initializer:
    """Glorot & Bengio 2010: uniform on +-gain sqrt(6 / (fan in + fan out))."""
    return nnx.initializers.variance_scaling(gain**2, "fan_avg", "uniform")


def max_pool_2x2(x: jax.Array) -> jax.Array:
    """(n, height, width, channels) -> (n, height / 2, width / 2, channels): the largest of each 2 x 2.

    The values of `nnx.max_pool(x, (2, 2), (2, 2))`; of an odd side the last entry is left out. Its
    gradient searches windows, which takes a CPU as long as the rest of a small network; windows that
    do not overlap need no search. Entries that share the largest value share the gradient.
    """
    n, height, width, channels = x.shape
    h, w = height // 2, width // 2
    return x[:, : 2 * h, : 2 * w].reshape(n, h, 2, w, 2, channels).max(axis=(2, 4))


class ConvNorm(nnx.Module):
    """Convolution without bias (the norm's shift would absorb it), then batch norm.

    The padding keeps the size for stride 1 and halves it for stride 2, the same on both sides
    ("SAME" would pad even sizes on one side only).

    Args:
        inputs: input channels.
        outputs: output channels.
        size: side of the filter, odd; one entry per spatial axis.
        stride: of every spatial axis.
        dtype: type computed in.
        rngs: stream `params`.
        kernel_init: distribution of the kernel.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: Sequence[int],
        stride: int = 1,
        *,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
        kernel_init: nnx.Initializer = he_normal_fan_out,
    ) -> None:
        self.conv = nnx.Conv(
            inputs,
            outputs,
            tuple(size),
            strides=stride,
            padding=[(side // 2, side // 2) for side in size],
            use_bias=False,
            dtype=dtype,
            kernel_init=kernel_init,
            rngs=rngs,
        )
        self.norm = nnx.BatchNorm(outputs, momentum=0.9, epsilon=1e-5, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """(n, ..., inputs) -> (n, ... / stride, outputs).

        Args:
            x: input.
            mask: booleans that broadcast to the output, true where it counts for the batch's mean
                and variance; `None` for everywhere.
        """
        return self.norm(self.conv(x), mask=mask)
