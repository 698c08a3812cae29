"""Convolutions, each in the way that is fast where it runs."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp

# XLA for CPUs has a routine of its own for at most so many output channels.
_NARROW = 16


def convolution(bind: Any, x: chex.Array, w: chex.Array, params: Mapping[str, Any]) -> chex.Array:
    """x * w.

    On a CPU two kinds are not what XLA makes of them (jaxlib 0.10 to 0.12; benchmarks/RESULTS.md, Compaction): windows of a
    single place are products of matrices, and one input channel to at most 16 goes with outputs of zeros as one to 17.

    Args:
      bind: of (x, w): the convolution as it was written.
      x, w: image and kernel.
      params: of the primitive.
    """
    numbers = params["dimension_numbers"]
    if params["feature_group_count"] != 1 or params["batch_group_count"] != 1:
        return bind(x, w)
    outputs, inputs, *window = (w.shape[d] for d in numbers.rhs_spec)
    if set(window) <= {1} and _is_product(params, x.ndim):
        on_cpu = functools.partial(_product, params=params)
    elif inputs == 1 and outputs <= _NARROW:
        on_cpu = functools.partial(_widened, bind, params=params)
    else:
        return bind(x, w)
    return jax.lax.platform_dependent(x, w, cpu=on_cpu, default=bind)


def _is_product(params: Mapping[str, Any], ndim: int) -> bool:
    """Whether a window of one place meets every place of the image, channels last."""
    numbers = params["dimension_numbers"]
    last = (0, ndim - 1, *range(1, ndim - 1))
    plain = numbers.lhs_spec == numbers.out_spec == last
    padded = any(amount for pair in params["padding"] for amount in pair)
    return plain and not padded and set(params["lhs_dilation"]) <= {1}


def _product(x: chex.Array, w: chex.Array, params: Mapping[str, Any]) -> chex.Array:
    at_out, at_in = params["dimension_numbers"].rhs_spec[:2]
    steps = params["window_strides"]
    if set(steps) != {1}:
        x = jax.lax.slice(x, (0,) * x.ndim, x.shape, (1, *steps, 1))
    matrix = jax.lax.squeeze(w, [d for d in range(w.ndim) if d not in (at_out, at_in)])
    contracted = ((x.ndim - 1,), (0 if at_in < at_out else 1,))
    return jax.lax.dot_general(
        x,
        matrix,
        (contracted, ((), ())),
        precision=params["precision"],
        preferred_element_type=params["preferred_element_type"],
    )


def _widened(bind: Any, x: chex.Array, w: chex.Array, params: Mapping[str, Any]) -> chex.Array:
    numbers = params["dimension_numbers"]
    at_out, channels = numbers.rhs_spec[0], numbers.out_spec[1]
    outputs = w.shape[at_out]
    edges = [(0, 0, 0)] * w.ndim
    edges[at_out] = (0, _NARROW + 1 - outputs, 0)
    made = bind(x, jax.lax.pad(w, jnp.zeros((), w.dtype), edges))
    return jax.lax.slice_in_dim(made, 0, outputs, axis=channels)
