"""Convolutions, each in the way that is fast where it runs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Convolve = Callable[[jax.Array, jax.Array], jax.Array]

# XLA for CPUs has a routine of its own for at most so many output channels.
_NARROW = 16


def convolution(bind: Convolve, x: jax.Array, w: jax.Array, numbers: Any) -> jax.Array:
    """x * w.

    On a CPU one input channel to at most 16 goes with outputs of zeros as one to 17: XLA's routine for narrow ones takes
    three times as long (jaxlib 0.10 to 0.12; two input channels and more do not gain; benchmarks/RESULTS.md, Compaction).

    Args:
      bind: of (x, w): the convolution as it was written.
      x, w: image and kernel.
      numbers: where their dimensions lie.
    """
    if x.shape[numbers.lhs_spec[1]] != 1 or w.shape[numbers.rhs_spec[0]] > _NARROW:
        return bind(x, w)
    widened = functools.partial(_widened, bind, numbers)
    return jax.lax.platform_dependent(x, w, cpu=widened, default=bind)


def _widened(bind: Convolve, numbers: Any, x: jax.Array, w: jax.Array) -> jax.Array:
    at_out = numbers.rhs_spec[0]
    outputs = w.shape[at_out]
    edges = [(0, 0, 0)] * w.ndim
    edges[at_out] = (0, _NARROW + 1 - outputs, 0)
    made = bind(x, jax.lax.pad(w, jnp.zeros((), w.dtype), edges))
    return jax.lax.slice_in_dim(made, 0, outputs, axis=numbers.out_spec[1])
