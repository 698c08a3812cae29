"""The program again, on arrays of which only some entries are left.

A `Piece` is a value of which, along some axes, only some indices are there. What is not there is zero or needed by nobody;
so where an operation wants an index that a piece lacks, it gets zeros. Every primitive has a rule for pieces, or runs on
whole arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from ramda_jax.network.flat import REDUCTIONS, UNITS, Constant, Equation, Flat
from ramda_jax.network.needs import POOLS, Keep, is_elementwise, is_lookup, reshape_groups


class Piece(NamedTuple):
    """A part of a value.

    Attributes:
      array: what is there.
      keep: along each axis the indices that are; None: all.
      shape: of the whole value.
    """

    array: chex.Array
    keep: Keep
    shape: tuple[int, ...]


def is_empty(keep: Keep) -> bool:
    """Whether nothing is kept of a value: nobody needs it."""
    return any(k is not None and not len(k) for k in keep)


def nothing(keep: Keep, shape: tuple[int, ...], dtype: Any) -> Piece:
    """A value of which nothing is kept."""
    sizes = [n if k is None else len(k) for n, k in zip(shape, keep, strict=True)]
    return Piece(jnp.zeros(sizes, dtype), keep, shape)


def given(array: Any, keep: Keep, shape: tuple[int, ...]) -> Piece:
    """A compact parameter. One of which nothing is kept has a single entry, which is not looked at."""
    return nothing(keep, shape, array.dtype) if is_empty(keep) else Piece(array, keep, shape)


def whole(array: Any) -> Piece:
    """A value of which all is there."""
    shape = tuple(np.shape(array))
    return Piece(array, (None,) * len(shape), shape)


def _same(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    if one is None or other is None:
        return one is other
    return np.array_equal(one, other)


def _taken(array: chex.Array, axis: int, have: Any, want: Any, size: int) -> chex.Array:
    """Other indices along one axis; zeros for those that are not there."""
    if _same(have, want):
        return array
    have = np.arange(size) if have is None else have
    want = np.arange(size) if want is None else want
    if len(have) == 0:
        shape = list(array.shape)
        shape[axis] = len(want)
        return jnp.zeros(shape, array.dtype)
    places = np.minimum(np.searchsorted(have, want), len(have) - 1)
    there = have[places] == want
    if np.array_equal(places, np.arange(len(have))):
        taken = array
    else:
        step = np.diff(places)
        if len(places) and (step == 1).all():
            taken = jax.lax.slice_in_dim(array, int(places[0]), int(places[-1]) + 1, axis=axis)
        else:
            taken = jnp.take(
                array, places, axis=axis, mode="clip", unique_indices=bool(there.all())
            )
    if there.all():
        return taken
    shape = [1] * array.ndim
    shape[axis] = -1
    return jnp.where(there.reshape(shape), taken, jnp.zeros((), array.dtype))


def align(piece: Piece, keep: Sequence[np.ndarray | None]) -> chex.Array:
    """The array with these indices along every axis."""
    array = piece.array
    for axis, (have, want, size) in enumerate(zip(piece.keep, keep, piece.shape, strict=True)):
        array = _taken(array, axis, have, want, size)
    return array


def run(flat: Flat, kept: dict[int, Keep], inputs: Sequence[Piece]) -> list[chex.Array]:
    """Run a program; `kept`: what to make of every value, by its number."""
    known: dict[int, Piece] = dict(zip(flat.inputs, inputs, strict=True))

    def read(atom: Any) -> Piece:
        return whole(atom.value) if isinstance(atom, Constant) else known[atom]

    for equation in flat.equations:
        operands = [read(atom) for atom in equation.operands]
        keeps = [kept[n] for n in equation.results]
        shapes = [flat.shapes[n] for n in equation.results]
        if all(map(is_empty, keeps)):
            for number, keep, shape, var in zip(
                equation.results, keeps, shapes, equation.equation.outvars, strict=True
            ):
                known[number] = nothing(keep, shape, var.aval.dtype)
            continue
        arrays = _made(equation, operands, keeps, shapes)
        for number, array, keep, shape in zip(equation.results, arrays, keeps, shapes, strict=True):
            known[number] = Piece(array, keep, shape)
    return [align(piece, (None,) * len(piece.shape)) for piece in map(read, flat.outputs)]


def _made(
    equation: Equation, operands: list[Piece], keeps: list[Keep], shapes: list[tuple[int, ...]]
) -> list[chex.Array]:
    cut = any(k is not None for keep in keeps for k in keep)
    cut = cut or any(k is not None for piece in operands for k in piece.keep)
    name, p, primitive = equation.name, equation.equation.params, equation.equation.primitive
    if not cut and not name.startswith("unit "):
        return _bound(primitive, [piece.array for piece in operands], p)
    if is_elementwise(name) and len(keeps) == 1:
        return _elementwise(equation, operands, keeps[0], shapes[0])
    rule = RULES.get(name) or (_pooled if name in POOLS else None)
    if name == "gather" and is_lookup(equation, operands[0].shape):
        rule = _lookup
    arrays = None if rule is None else rule(equation, operands, keeps, shapes)
    if arrays is not None:
        return arrays
    full = _bound(primitive, [align(x, (None,) * len(x.shape)) for x in operands], p)
    return [align(whole(x), keep) for x, keep in zip(full, keeps, strict=True)]


def _bound(primitive: Any, arrays: Sequence[Any], params: Any) -> list[chex.Array]:
    results = primitive.bind(*arrays, **params)
    return list(results) if primitive.multiple_results else [results]


def _elementwise(
    equation: Equation, operands: list[Piece], keep: Keep, shape: tuple[int, ...]
) -> list[chex.Array]:
    arrays = []
    for piece in operands:
        if len(piece.shape) != len(shape):  # a scalar
            arrays.append(piece.array)
            continue
        sizes = zip(keep, piece.shape, shape, strict=True)
        arrays.append(align(piece, [k if n == m else None for k, n, m in sizes]))
    unit = equation.name.removeprefix("unit ")
    if unit in UNITS:
        return [UNITS[unit](*arrays)]
    return _bound(equation.equation.primitive, arrays, equation.equation.params)


# Rules: (equation, operands, keeps of the results, their whole shapes) -> arrays; None: on whole arrays.


def _transpose(equation: Equation, operands: list[Piece], keeps: list[Keep], shapes: Any) -> Any:
    order = equation.equation.params["permutation"]
    wanted = [keeps[0][order.index(d)] for d in range(len(order))]
    return [jnp.transpose(align(operands[0], wanted), order)]


def _broadcast(equation: Equation, operands: list[Piece], keeps: list[Keep], shapes: Any) -> Any:
    places = equation.equation.params["broadcast_dimensions"]
    (piece,), shape, keep = operands, shapes[0], keeps[0]
    wanted = [
        keep[at] if n == shape[at] else None for at, n in zip(places, piece.shape, strict=True)
    ]
    sizes = [n if k is None else len(k) for n, k in zip(shape, keep, strict=True)]
    return [jax.lax.broadcast_in_dim(align(piece, wanted), sizes, places)]


def _squeeze(equation: Equation, operands: list[Piece], keeps: list[Keep], shapes: Any) -> Any:
    gone = equation.equation.params["dimensions"]
    rest = iter(keeps[0])
    wanted = [None if d in gone else next(rest) for d in range(len(operands[0].shape))]
    return [jax.lax.squeeze(align(operands[0], wanted), gone)]


def _flat_indices(shape: Sequence[int], keep: Sequence[np.ndarray | None]) -> np.ndarray:
    """Of the kept entries of an array, their places in the whole array."""
    found = np.zeros((), int)
    for n, k in zip(shape, keep, strict=True):
        found = found[..., None] * n + (np.arange(n) if k is None else k)
    return found.reshape(-1)


def _reshape(equation: Equation, operands: list[Piece], keeps: list[Keep], shapes: Any) -> Any:
    (piece,), shape, keep = operands, shapes[0], keeps[0]
    groups = reshape_groups(piece.shape, shape)
    own = piece.array.shape
    array = piece.array.reshape([int(np.prod([own[d] for d in left])) for left, _ in groups])
    for axis, (left, right) in enumerate(groups):
        before, after = [piece.keep[d] for d in left], [keep[d] for d in right]
        if all(k is None for k in (*before, *after)):
            continue
        have = _flat_indices([piece.shape[d] for d in left], before)
        want = _flat_indices([shape[d] for d in right], after)
        array = _taken(array, axis, have, want, int(np.prod([shape[d] for d in right])))
    return [array.reshape([n if k is None else len(k) for n, k in zip(shape, keep, strict=True)])]


def _slice(equation: Equation, operands: list[Piece], keeps: list[Keep], shapes: Any) -> Any:
    p, (piece,) = equation.equation.params, operands
    strides = p["strides"] or (1,) * len(piece.shape)
    return [_sliced(piece, p["start_indices"], p["limit_indices"], strides, keeps[0])]


def _sliced(piece: Piece, starts: Any, stops: Any, strides: Any, keep: Keep) -> chex.Array:
    array = piece.array
    for axis, (start, stop, stride) in enumerate(zip(starts, stops, strides, strict=True)):
        have, want = piece.keep[axis], keep[axis]
        if have is None and want is None:
            array = jax.lax.slice_in_dim(array, start, stop, stride, axis)
        else:
            indices = np.arange(start, stop, stride)
            indices = indices if want is None else indices[want]
            array = _taken(array, axis, have, indices, piece.shape[axis])
    return array


def _split(equation: Equation, operands: list[Piece], keeps: list[Keep], shapes: Any) -> Any:
    p, (piece,) = equation.equation.params, operands
    arrays, start, ones = [], 0, [1] * len(piece.shape)
    for n, keep in zip(p["sizes"], keeps, strict=True):
        starts, stops = [0] * len(piece.shape), list(piece.shape)
        starts[p["axis"]], stops[p["axis"]] = start, start + n
        arrays.append(_sliced(piece, starts, stops, ones, keep))
        start += n
    return arrays


def _concatenate(equation: Equation, operands: list[Piece], keeps: list[Keep], shapes: Any) -> Any:
    axis, keep = equation.equation.params["dimension"], keeps[0]
    parts, start = [], 0
    for piece in operands:
        n, wanted = piece.shape[axis], list(keep)
        along = keep[axis]
        if along is not None:
            wanted[axis] = along[(along >= start) & (along < start + n)] - start
        parts.append(align(piece, wanted))
        start += n
    return [jnp.concatenate(parts, axis)]


def _reduce(equation: Equation, operands: list[Piece], keeps: list[Keep], shapes: Any) -> Any:
    p, (piece,) = equation.equation.params, operands
    rest = iter(keeps[0])
    # A sum may leave out zeros; a maximum may not.
    inside = (
        piece.keep if equation.name in ("reduce_sum", "reduce_or") else [None] * len(piece.keep)
    )
    wanted = [inside[d] if d in p["axes"] else next(rest) for d in range(len(piece.shape))]
    return _bound(equation.equation.primitive, [align(piece, wanted)], p)


def _common(one: np.ndarray | None, other: np.ndarray | None) -> np.ndarray | None:
    """The indices that both have: a term is zero where either is."""
    if one is None or other is None:
        return other if one is None else one
    return np.intersect1d(one, other)


def _dot(equation: Equation, operands: list[Piece], keeps: list[Keep], shapes: Any) -> Any:
    p = equation.equation.params
    ((lc, rc), (lb, rb)) = p["dimension_numbers"]
    left, right = operands[:2]
    wanted: list[list[Any]] = [[None] * len(left.shape), [None] * len(right.shape)]
    for a, b in zip(lc, rc, strict=True):
        wanted[0][a] = wanted[1][b] = _common(left.keep[a], right.keep[b])
    rest = iter(keeps[0])
    for a, b in zip(lb, rb, strict=True):
        wanted[0][a] = wanted[1][b] = next(rest)
    for k, (piece, gone) in enumerate(((left, (*lc, *lb)), (right, (*rc, *rb)))):
        for d in range(len(piece.shape)):
            if d not in gone:
                wanted[k][d] = next(rest)
    arrays = [align(left, wanted[0]), align(right, wanted[1])]
    return _bound(equation.equation.primitive, arrays, p)


def _conv(equation: Equation, operands: list[Piece], keeps: list[Keep], shapes: Any) -> Any:
    p = equation.equation.params
    numbers, groups = p["dimension_numbers"], p["feature_group_count"]
    image, kernel = operands
    if p["batch_group_count"] != 1 or any(
        k is not None for d, k in enumerate(keeps[0]) if d != numbers.out_spec[1]
    ):
        return None
    at_image, (at_out, at_in) = numbers.lhs_spec[1], numbers.rhs_spec[:2]
    made = keeps[0][numbers.out_spec[1]]
    wanted_image: list[Any] = [None] * len(image.shape)
    wanted_kernel: list[Any] = [None] * len(kernel.shape)
    wanted_kernel[at_out] = made
    if groups == 1:
        both = _common(image.keep[at_image], kernel.keep[at_in])
        if both is not None and not len(both):
            both = np.zeros(1, int)  # no term is left; one that is zero stands in: XLA wants some
        wanted_image[at_image] = wanted_kernel[at_in] = both
    else:
        inputs, outputs = kernel.shape[at_in], kernel.shape[at_out] // groups
        every = np.arange(groups * outputs) if made is None else made
        left = np.unique(every // outputs)
        inner = [every[every // outputs == g] % outputs for g in left]
        if any(not np.array_equal(x, inner[0]) for x in inner):
            return None
        read = np.arange(inputs) if kernel.keep[at_in] is None else kernel.keep[at_in]
        wanted_kernel[at_in] = kernel.keep[at_in]
        wanted_image[at_image] = (left[:, None] * inputs + read).reshape(-1)
        groups = len(left)
    arrays = [align(image, wanted_image), align(kernel, wanted_kernel)]
    return _bound(equation.equation.primitive, arrays, {**p, "feature_group_count": groups})


def _lookup(equation: Equation, operands: list[Piece], keeps: list[Keep], shapes: Any) -> Any:
    p, (table, indices) = equation.equation.params, operands
    d = p["dimension_numbers"]
    kept = [k for k in range(len(table.shape)) if k not in d.collapsed_slice_dims]
    wanted: list[Any] = [None] * len(table.shape)
    for place, k in zip(d.offset_dims, kept, strict=True):
        wanted[k] = keeps[0][place]
    array = align(table, wanted)
    sizes = tuple(array.shape[k] if k in kept else n for k, n in enumerate(p["slice_sizes"]))
    params = {**p, "slice_sizes": sizes}
    return _bound(equation.equation.primitive, [array, indices.array], params)


def _pooled(equation: Equation, operands: list[Piece], keeps: list[Keep], shapes: Any) -> Any:
    p, (piece, *others) = equation.equation.params, operands
    windows = p.get("window_dimensions")
    cut = [d for d, k in enumerate((*keeps[0],)) if k is not None or piece.keep[d] is not None]
    if others or len(keeps) > 1:
        return None
    if windows is None:
        along = p["axis"]
        if along in cut:
            return None
    elif any(windows[d] != 1 for d in cut):
        return None
    return _bound(equation.equation.primitive, [align(piece, keeps[0])], p)


RULES = {
    "transpose": _transpose,
    "broadcast_in_dim": _broadcast,
    "squeeze": _squeeze,
    "reshape": _reshape,
    "slice": _slice,
    "split": _split,
    "concatenate": _concatenate,
    "dot_general": _dot,
    "conv_general_dilated": _conv,
    **dict.fromkeys(REDUCTIONS, _reduce),
}
