"""The fully connected network that the paper trains to low rank on FashionMNIST."""

from collections.abc import Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from examples.models.layers import he_normal_fan_in

FASHION_MNIST_WIDTHS = (784, 512, 256, 128, 64, 32, 16, 10)
"""Inputs, hidden layers, classes."""


class MLP(nnx.Module):
    """Dense layers with ReLU between them.

    Args:
        widths: number of inputs, units of each hidden layer, number of outputs.
        dtype: type computed in.
        rngs: stream `params`.
    """

    def __init__(
        self,
        widths: Sequence[int] = FASHION_MNIST_WIDTHS,
        *,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        self.layers = nnx.List(
            [
                nnx.Linear(inputs, outputs, dtype=dtype, kernel_init=he_normal_fan_in, rngs=rngs)
                for inputs, outputs in pairwise(widths)
            ]
        )

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """(n, ...) with widths[0] numbers an example -> logits (n, widths[-1]) in float32."""
        x = inputs.reshape(inputs.shape[0], -1)
        for layer in self.layers[:-1]:
            x = nnx.relu(layer(x))
        return self.layers[-1](x).astype(jnp.float32)
