"""Arrays of which only some entries are left.

A `Piece` is a value of which, along some axes, only some indices are there. What is not there is zero or needed by nobody;
so where an operation wants an index that a piece lacks, it gets zeros.

In a loop every turn may have indices of its own: (turns, number kept). Then what an array is to be taken by is a table, of
which the turn at hand takes its row.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ramda_jax.network.needs import Indices, Keep


class Piece(NamedTuple):
    """A part of a value.

    Attributes:
      array: what is there: an array, or its `Factors`, which only the product that reads them meets.
      keep: along each axis the indices that are; None: all.
      shape: of the whole value.
    """

    array: Any
    keep: Keep
    shape: tuple[int, ...]


def sizes(keep: Keep, shape: Sequence[int]) -> list[int]:
    """The shape of what is kept."""
    return [n if k is None else k.shape[-1] for n, k in zip(shape, keep, strict=True)]


def is_empty(keep: Keep) -> bool:
    """Whether nothing is kept of a value: nobody needs it."""
    return any(k is not None and not k.shape[-1] for k in keep)


def cut(array: Any, keep: Keep) -> jax.Array:
    """What is kept; one entry of what nobody needs, since many tools do not take empty arrays."""
    array = jnp.asarray(array)
    if is_empty(keep):
        keep = tuple(None if k is None else np.zeros(1, int) for k in keep)
    return align(whole(array), keep)


def nothing(keep: Keep, shape: tuple[int, ...], dtype: Any) -> Piece:
    """A value of which nothing is kept."""
    return Piece(jnp.zeros(sizes(keep, shape), dtype), keep, shape)


def given(array: Any, keep: Keep, shape: tuple[int, ...]) -> Piece:
    """A compact parameter. One of which nothing is kept has a single entry, which is not looked at."""
    return nothing(keep, shape, array.dtype) if is_empty(keep) else Piece(array, keep, shape)


def whole(array: Any) -> Piece:
    """A value of which all is there."""
    shape = tuple(np.shape(array))
    return Piece(array, (None,) * len(shape), shape)


# Indices.


class Ragged(Exception):
    """Turns of a loop want different numbers of indices: what does runs on whole arrays."""


def each(function: Callable[..., np.ndarray], *indices: np.ndarray) -> np.ndarray:
    """A function of indices, turn by turn where they differ between turns."""
    turns = max((len(k) for k in indices if k.ndim == 2), default=None)
    if turns is None:
        return function(*indices)
    rows = [function(*(k[t] if k.ndim == 2 else k for k in indices)) for t in range(turns)]
    if any(len(row) != len(rows[0]) for row in rows):
        raise Ragged
    return _plain(np.stack(rows))


def _plain(table: np.ndarray) -> np.ndarray:
    """A table whose rows are the same is one row."""
    return table[0] if table.ndim == 2 and (table == table[:1]).all() else table


def or_all(indices: Indices, size: int) -> np.ndarray:
    return np.arange(size) if indices is None else indices


def _same(one: Indices, other: Indices) -> bool:
    if one is None or other is None:
        return one is other
    return np.array_equal(one, other)


def common(one: Indices, other: Indices) -> Indices:
    """The indices that both have: a term is zero where either is. Or those of one side, where turns differ."""
    if one is None or other is None:
        return other if one is None else one
    if one.ndim == other.ndim == 1:
        return np.intersect1d(one, other)
    return min(one, other, key=lambda k: k.shape[-1])


def taken(
    array: jax.Array, axis: int, have: Indices, want: Indices, size: int, turn: Any = None
) -> jax.Array:
    """Other indices along one axis; zeros for those that are not there.

    Args:
      size: of the whole axis.
      turn: of the loop; None: the array has all turns, along its first axis.
    """
    if _same(have, want):
        return array
    have, want = or_all(have, size), or_all(want, size)
    if not have.shape[-1]:
        shape = list(array.shape)
        shape[axis] = want.shape[-1]
        return jnp.zeros(shape, array.dtype)
    last = have.shape[-1] - 1
    places = each(lambda h, w: np.minimum(np.searchsorted(h, w), last), have, want)
    there = each(lambda h, p, w: h[p] == w, have, places, want)
    found = _at(array, axis, places, turn, bool(there.all()))
    if there.all():
        return found
    return jnp.where(_row(there, axis, array.ndim, turn), found, jnp.zeros((), array.dtype))


def _at(array: jax.Array, axis: int, places: np.ndarray, turn: Any, unique: bool) -> jax.Array:
    """The entries at these places along one axis."""
    if _same(places, np.arange(array.shape[axis])):
        return array
    if places.ndim == 2:
        if turn is None:
            return jnp.take_along_axis(array, _row(places, axis, array.ndim, None), axis)
        return _gathered(array, jnp.asarray(places)[turn], axis, unique)
    if len(places) and (np.diff(places) == 1).all():
        return jax.lax.slice_in_dim(array, int(places[0]), int(places[-1]) + 1, axis=axis)
    return _gathered(array, jnp.asarray(places), axis, unique)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _gathered(array: jax.Array, places: jax.Array, axis: int, unique: bool) -> jax.Array:
    """`jnp.take`, in the way that is fast where it runs.

    XLA for CPUs puts the axis that is taken from first, and transposes back after whatever elementwise operations come
    next: two passes with strides. Taken entry by entry it stays in place and is part of the loop of its readers; on a TPU
    that reads the array once an entry. GPUs do either in one loop. (jaxlib 0.10 to 0.12; benchmarks/RESULTS.md, Compaction)
    """
    return jax.lax.platform_dependent(
        array,
        places,
        cpu=functools.partial(_by_entry, axis=axis),
        default=functools.partial(_take, axis=axis, unique=unique),
    )


@_gathered.defjvp
def _gathered_jvp(axis: int, unique: bool, primals: Any, tangents: Any) -> Any:
    # The transpose of `take` adds slices, that of single entries adds them one by one.
    (array, places), (tangent, _) = primals, tangents
    return _gathered(array, places, axis, unique), _take(tangent, places, axis, unique)


def _take(array: jax.Array, places: jax.Array, axis: int, unique: bool) -> jax.Array:
    return jnp.take(array, places, axis=axis, mode="clip", unique_indices=unique)


def _by_entry(array: jax.Array, places: jax.Array, axis: int) -> jax.Array:
    others = tuple(d for d in range(array.ndim) if d != axis)
    shape = [*array.shape]
    shape[axis] = len(places)
    numbers = jax.lax.GatherDimensionNumbers(
        offset_dims=(),
        collapsed_slice_dims=(axis,),
        start_index_map=(axis,),
        operand_batching_dims=others,
        start_indices_batching_dims=others,
    )
    starts = jax.lax.broadcast_in_dim(places, (*shape, 1), (axis,))
    one = (1,) * array.ndim
    return jax.lax.gather(
        array, starts, numbers, one, mode=jax.lax.GatherScatterMode.PROMISE_IN_BOUNDS
    )


def _row(table: np.ndarray, axis: int, ndim: int, turn: Any) -> jax.Array:
    """What holds along one axis, to be broadcast; of a table: of this turn, or all along the first axis."""
    shape = [1] * ndim
    shape[axis] = table.shape[-1]
    row = jnp.asarray(table)
    if table.ndim == 2 and turn is None:
        shape[0] = len(table)
    elif table.ndim == 2:
        row = row[turn]
    return row.reshape(shape)


def align(piece: Piece, keep: Sequence[Indices], turn: Any = None) -> jax.Array:
    """The array with these indices along every axis."""
    array = piece.array
    for axis, (have, want, size) in enumerate(zip(piece.keep, keep, piece.shape, strict=True)):
        array = taken(array, axis, have, want, size, turn)
    return array
