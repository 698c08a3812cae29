"""A function of tiles of some arrays as a Pallas kernel for TPUs: one read and one write of every array.

The grid goes over tiles along one axis. What the function does, and that tiles are independent, is the caller's business.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

# Entries of a tile: with some twenty arrays of this size, double-buffered ones included, 11 of 16 MB of vector memory.
TILE_SIZE = 131_072

# Of the last axis but one, and of the last one: what a hardware tile of float32 holds.
_TILE = (8, 128)


def tile_length(
    shape: tuple[int, ...],
    axis: int | None,
    dtype: Any,
    narrowest: int = 4,
    tile_size: int = TILE_SIZE,
) -> int | None:
    """How many indices along `axis` a tile has: a divisor of what there are; None: the kernel cannot take the array.

    Args:
      shape: of the array.
      axis: along which its tiles are independent; None: there is none.
      dtype: of the accumulators.
      narrowest: bytes of the narrowest entry that the kernel reads or writes: hardware tiles of narrow ones are taller.
      tile_size: entries of a tile at most.
    """
    if axis is None or len(shape) < 2 or dtype != jnp.float32:
        return None
    number = shape[axis]
    per_index = 1
    for k, n in enumerate(shape):
        if k != axis:
            per_index *= _padded(n, k - len(shape))
    tile = _TILE[axis - len(shape)] if axis >= len(shape) - 2 else 1
    if axis == len(shape) - 2:
        tile *= 4 // narrowest
    fitting = [
        length
        for length in range(1, number + 1)
        if number % length == 0
        and (length == number or length % tile == 0)
        and _padded(length, axis - len(shape)) * per_index <= tile_size
    ]
    return max(fitting, default=None)


def _padded(n: int, axis: int) -> int:
    """Entries that n take in vector memory along an axis (counted from the end)."""
    if axis < -2:
        return n
    tile = _TILE[axis]
    return -(-n // tile) * tile


def call(
    step: Callable[[Any, Any, Any], tuple[Any, jax.Array, jax.Array, jax.Array]],
    updated: Any,
    read: Any,
    scalars: Any,
    out: jax.ShapeDtypeStruct,
    axis: int,
    length: int,
    interpret: bool = False,
) -> tuple[Any, jax.Array, jax.Array, jax.Array]:
    """`step` of all tiles: (the updated arrays, out, the most iterations, the norm of the residuals).

    Args:
      step: (tiles of `updated`, tiles of `read`, `scalars`) -> (new tiles of `updated`, tile of `out`, iterations,
        residual), the last two 0-d.
      updated: pytree of arrays that are written over.
      read: pytree of arrays that are only read. All arrays have the same size along `axis`.
      scalars: pytree of 0-d arrays; they are handed over in float32.
      out: shape and dtype of the other result.
      axis, length: the tiles.
      interpret: run in Python (for tests on a CPU).
    """
    mine, mine_tree = jax.tree.flatten(updated)
    others, others_tree = jax.tree.flatten(read)
    numbers, numbers_tree = jax.tree.flatten(scalars)
    tiles = out.shape[axis] // length

    def spec(x: Any) -> pl.BlockSpec:
        shape = tuple(length if k == axis else n for k, n in enumerate(x.shape))
        return pl.BlockSpec(shape, lambda i: tuple(i if k == axis else 0 for k in range(x.ndim)))

    def kernel(numbers_ref: Any, *refs: Any) -> None:
        old, rest, new = (
            refs[: len(mine)],
            refs[len(mine) : len(mine) + len(others)],
            refs[len(mine) + len(others) :],
        )
        *written, out_ref, iterations_ref, residual_ref = new
        values, tile, iterations, residual = step(
            jax.tree.unflatten(mine_tree, [ref[...] for ref in old]),
            jax.tree.unflatten(others_tree, [ref[...] for ref in rest]),
            jax.tree.unflatten(numbers_tree, [numbers_ref[0, k] for k in range(len(numbers))]),
        )
        for ref, x in zip(written, jax.tree.leaves(values), strict=True):
            ref[...] = x
        out_ref[...] = tile
        i = pl.program_id(0)
        iterations_ref[0, i] = iterations
        residual_ref[0, i] = residual

    whole = pl.BlockSpec(memory_space=pltpu.SMEM)

    def like(shape: tuple[int, ...], dtype: Any) -> Any:
        """Abstract; inside `shard_map` it varies over the devices over which any of the inputs does."""
        mixed = lambda *xs: sum(jnp.sum(x).astype(dtype) for x in xs) * jnp.ones(shape, dtype)
        return jax.eval_shape(mixed, *mine, *others, *numbers)

    *new, moved, iterations, residual = pl.pallas_call(
        kernel,
        grid=(tiles,),
        in_specs=[whole, *map(spec, mine), *map(spec, others)],
        out_specs=[*map(spec, mine), spec(out), whole, whole],
        out_shape=[
            *(like(x.shape, x.dtype) for x in (*mine, out)),
            like((1, tiles), jnp.int32),
            like((1, tiles), jnp.float32),
        ],
        input_output_aliases={k + 1: k for k in range(len(mine))},
        interpret=interpret,
    )(jnp.stack([x.astype(jnp.float32) for x in numbers])[None], *mine, *others)
    norm = jnp.sqrt(jnp.sum(jnp.square(residual)))
    return jax.tree.unflatten(mine_tree, new), moved, jnp.max(iterations), norm
