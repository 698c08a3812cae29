"""Rules of masks, primitive by primitive: which entries of a result are not zero, and which of the operands it asks for.

A mask is an array of bool, as large as the value; a *cut* says of every axis whether it may be cut. Coarse where that is
cheap (convolutions and products look at channels, not at places), never too small.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ramda_jax.network.flat import CUMULATIVE, REDUCTIONS, UNITS, WINDOWS, Constant, Equation
from ramda_jax.network.flow import ELEMENTWISE_NAMES

Mask = Any  # an array of bool; NumPy's own types make a scalar of what may be an array
Cut = tuple[bool, ...]


def is_elementwise(name: str) -> bool:
    return name in ELEMENTWISE_NAMES or name.removeprefix("unit ") in UNITS


def has_rule(equation: Equation, shapes: Sequence[tuple[int, ...]]) -> bool:
    """Whether an equation with operands of these shapes is understood; what is not stays whole."""
    name, p = equation.name, equation.equation.params
    if is_elementwise(name):
        return len(equation.results) == 1
    if name == "conv_general_dilated":
        return bool(p["batch_group_count"] == 1)
    if name == "gather":
        return is_lookup(equation, shapes[0])
    return name in REDUCTIONS | POOLS or name in MOVES or name == "dot_general"


def made(
    equation: Equation,
    masks: Sequence[Mask],
    cuts: Sequence[Cut],
    shapes: Sequence[tuple[int, ...]],
) -> list[tuple[Mask, Cut]]:
    """Of every result: what may not be zero, and which axes may be cut; `shapes`: of the results."""
    name, p, shape = equation.name, equation.equation.params, shapes[0] if shapes else ()
    if not has_rule(equation, [m.shape for m in masks]):
        return [(np.ones(s, bool), (False,) * len(s)) for s in shapes]
    if is_elementwise(name):
        full = [c for m, c in zip(masks, cuts, strict=True) if m.ndim == len(shape)]
        cut = tuple(any(column) for column in zip(*full, strict=True))
        return [(_elementwise(equation, masks, shape), cut)]
    if name in REDUCTIONS:
        axes = p["axes"]
        cut = tuple(c for d, c in enumerate(cuts[0]) if d not in axes)
        return [(masks[0].any(axis=tuple(axes)), cut)]
    if name == "dot_general":
        return [_dot(masks, cuts, p["dimension_numbers"])]
    if name == "conv_general_dilated":
        return [_conv(masks, cuts, p, shape)]
    if name == "gather":
        return [_lookup(masks, cuts, p, shape)]
    if name in MOVES:
        return MOVES[name](masks, cuts, p, shapes)
    return [_pooled(masks[0], cuts[0], shape)]


def asked(
    equation: Equation, wanted: Sequence[Mask], masks: Sequence[Mask], cuts: Sequence[Cut]
) -> list[Mask]:
    """What is asked of every operand for what is wanted of the results."""
    name, p = equation.name, equation.equation.params
    if not has_rule(equation, [m.shape for m in masks]):
        return [np.ones(m.shape, bool) for m in masks]
    want = wanted[0]
    if is_elementwise(name):
        return _elementwise_asked(name, want, masks)
    if name in REDUCTIONS:
        return [np.broadcast_to(np.expand_dims(want, p["axes"]), masks[0].shape)]
    if name == "dot_general":
        return _dot_asked(want, masks, cuts, p["dimension_numbers"])
    if name == "conv_general_dilated":
        return _conv_asked(want, masks, p)
    if name == "gather":
        return _lookup_asked(want, masks, p)
    if name in MOVES:
        return _moved_back(name, wanted, masks, p)
    first = _pooled(want, (), masks[0].shape)[0]
    return [first, *(np.ones(m.shape, bool) for m in masks[1:])]


# Elementwise functions.


def _elementwise(equation: Equation, masks: Sequence[Mask], shape: Any) -> Mask:
    spread = [np.broadcast_to(m, shape) for m in masks]
    name = equation.name
    if name in ("mul", "and"):
        return functools.reduce(np.logical_and, spread)
    if name == "div":
        return spread[0]
    if name == "select_n":
        return functools.reduce(np.logical_or, spread[1:])
    if not _keeps_zero(equation):
        return np.ones(shape, bool)
    values = [
        s
        for s, a in zip(spread, equation.operands, strict=True)
        if not (isinstance(a, Constant) and np.ndim(a.value) == 0)
    ]
    return functools.reduce(np.logical_or, values) if values else np.ones(shape, bool)


def _elementwise_asked(name: str, want: Mask, masks: Sequence[Mask]) -> list[Mask]:
    asked = []
    for k, mask in enumerate(masks):
        mine = want
        if name in ("mul", "and"):
            others = [np.broadcast_to(m, want.shape) for j, m in enumerate(masks) if j != k]
            mine = functools.reduce(np.logical_and, others, want)
        asked.append(_summed(mine, mask.shape))
    return asked


@functools.cache
def _zero_of(primitive: Any, params: tuple[Any, ...], dtypes: tuple[Any, ...]) -> bool:
    """Whether the function is zero where all that varies is; `dtypes`: a dtype, or (dtype, number) of what does not."""
    values = [
        np.zeros((), d) if not isinstance(d, tuple) else np.asarray(d[1], d[0]) for d in dtypes
    ]
    try:
        with jax.ensure_compile_time_eval():
            result = primitive.bind(*values, **dict(params))
        return bool(np.all(np.asarray(result) == 0))
    except Exception:  # whatever a primitive finds to say: then nothing is known
        return False


def _keeps_zero(equation: Equation) -> bool:
    if equation.name.removeprefix("unit ") in UNITS:
        return True
    dtypes: list[Any] = []
    for atom, var in zip(equation.operands, equation.equation.invars, strict=True):
        dtype = np.dtype(var.aval.dtype) if not hasattr(var.aval.dtype, "_rules") else None
        if dtype is None:
            return False
        if isinstance(atom, Constant) and np.ndim(atom.value) == 0:
            dtypes.append((dtype, np.asarray(atom.value).item()))
        else:
            dtypes.append(dtype)
    try:
        params = tuple(sorted(equation.equation.params.items()))
        return _zero_of(equation.equation.primitive, params, tuple(dtypes))
    except TypeError:  # parameters that cannot be hashed
        return False


def _summed(mask: Mask, shape: tuple[int, ...]) -> Mask:
    """Any over the axes along which something of this shape was repeated."""
    if len(shape) < mask.ndim:
        return np.broadcast_to(mask.any(), shape)
    axes = tuple(d for d, (a, b) in enumerate(zip(mask.shape, shape, strict=True)) if a != b)
    return mask.any(axis=axes, keepdims=True) if axes else mask


# Products: any over free axes first, so that what is multiplied is as large as the weights.


def _orders(ndim: int, contracted: Any, batch: Any) -> tuple[int, ...]:
    return tuple(d for d in range(ndim) if d not in contracted and d not in batch)


def _matrix(mask: Mask, contracted: Any, batch: Any) -> Mask:
    """(batch, contracted, free) as three axes."""
    free = _orders(mask.ndim, contracted, batch)
    ordered = np.transpose(mask, (*batch, *contracted, *free))
    b, c, f = (math.prod(mask.shape[d] for d in axes) for axes in (batch, contracted, free))
    return ordered.reshape(b, c, f)


def _from_matrix(matrix: Mask, shape: Any, contracted: Any, batch: Any) -> Mask:
    order = (*batch, *contracted, *_orders(len(shape), contracted, batch))
    back = matrix.reshape([shape[d] for d in order])
    return np.transpose(back, [order.index(d) for d in range(len(shape))])


def _any_of_product(a: Mask, b: Mask) -> Mask:
    """Whether any term of a matrix product is not zero; (..., m, k) and (..., k, n)."""
    return (a.astype(np.float32) @ b.astype(np.float32)) > 0


def _dot(masks: Sequence[Mask], cuts: Sequence[Any], numbers: Any) -> tuple[Mask, tuple[bool, ...]]:
    ((lc, rc), (lb, rb)) = numbers
    left, right = _matrix(masks[0], lc, lb), _matrix(masks[1], rc, rb)
    free = [_orders(masks[0].ndim, lc, lb), _orders(masks[1].ndim, rc, rb)]
    # The larger side is collapsed: what differs along its free axes is not told apart, unless they come from parameters.
    sides = [left, right]
    for k in (0, 1):
        if not any(cuts[k][d] for d in free[k]):
            sides[k] = sides[k].any(axis=2, keepdims=True)
    made = _any_of_product(np.swapaxes(sides[0], 1, 2), sides[1])
    full = np.broadcast_to(made, (left.shape[0], left.shape[2], right.shape[2]))
    shape = [masks[0].shape[d] for d in (*lb, *free[0])] + [masks[1].shape[d] for d in free[1]]
    cut = [cuts[0][a] or cuts[1][b] for a, b in zip(lb, rb, strict=True)]
    cut += [cuts[0][d] for d in free[0]] + [cuts[1][d] for d in free[1]]
    return full.reshape(shape), tuple(cut)


def _dot_asked(want: Mask, masks: Sequence[Mask], cuts: Sequence[Any], numbers: Any) -> list[Mask]:
    ((lc, rc), (lb, rb)) = numbers
    axes = ((lc, lb), (rc, rb))
    sides = [_matrix(m, *a) for m, a in zip(masks, axes, strict=True)]
    wanted = want.reshape(sides[0].shape[0], sides[0].shape[2], sides[1].shape[2])
    told = [any(cuts[k][d] for d in _orders(masks[k].ndim, *axes[k])) for k in (0, 1)]
    asked = []
    for k in (0, 1):
        mine, other = sides[k], sides[1 - k]
        w = wanted if k == 0 else np.swapaxes(wanted, 1, 2)  # (batch, my free, its free)
        if not told[k]:
            w = w.any(axis=1, keepdims=True)
        if not told[1 - k]:
            w, other = w.any(axis=2, keepdims=True), other.any(axis=2, keepdims=True)
        terms = _any_of_product(other, np.swapaxes(w, 1, 2))  # (batch, contracted, my free)
        full = np.broadcast_to(terms, mine.shape)
        asked.append(_from_matrix(full, masks[k].shape, *axes[k]))
    return asked


class _ConvSides:
    """A convolution by channels: (groups, inputs, outputs)."""

    def __init__(self, masks: Sequence[Mask], p: Any) -> None:
        numbers = p["dimension_numbers"]
        self.groups = p["feature_group_count"]
        self.image, self.kernel = numbers.lhs_spec[1], numbers.rhs_spec
        self.out = numbers.out_spec[1]
        kernel = np.moveaxis(masks[1], self.kernel[:2], (0, 1))
        outputs, inputs = kernel.shape[:2]
        self.channels = kernel.any(axis=tuple(range(2, kernel.ndim))).reshape(
            self.groups, outputs // self.groups, inputs
        )
        others = tuple(d for d in range(masks[0].ndim) if d != self.image)
        self.read = masks[0].any(axis=others).reshape(self.groups, inputs)

    def along(self, vector: Mask, axis: int, shape: Any) -> Mask:
        """A vector over channels, spread over all other axes."""
        ones = [1] * len(shape)
        ones[axis] = -1
        return np.broadcast_to(vector.reshape(ones), shape)


def _conv(
    masks: Sequence[Mask], cuts: Sequence[Any], p: Any, shape: Any
) -> tuple[Mask, tuple[bool, ...]]:
    sides = _ConvSides(masks, p)
    made = _any_of_product(sides.channels, sides.read[..., None]).reshape(-1)
    cut = tuple(d == sides.out and cuts[1][sides.kernel[0]] for d in range(len(shape)))
    return sides.along(made, sides.out, shape), cut


def _conv_asked(want: Mask, masks: Sequence[Mask], p: Any) -> list[Mask]:
    sides = _ConvSides(masks, p)
    others = tuple(d for d in range(want.ndim) if d != sides.out)
    wanted = want.any(axis=others).reshape(sides.groups, -1)
    read = _any_of_product(np.swapaxes(sides.channels, 1, 2), wanted[..., None]).reshape(-1)
    kernel = (wanted[..., None] & sides.read[:, None]).reshape(-1, sides.read.shape[1])
    shape = masks[1].shape
    order = (*sides.kernel[:2], *(d for d in range(len(shape)) if d not in sides.kernel[:2]))
    spread = kernel.reshape(*kernel.shape, *(1,) * (len(shape) - 2))
    whole = np.broadcast_to(spread, [shape[d] for d in order])
    back = np.transpose(whole, [order.index(d) for d in range(len(shape))])
    return [sides.along(read, sides.image, masks[0].shape), back]


# Embeddings.


def is_lookup(equation: Equation, shape: tuple[int, ...]) -> bool:
    """Whether a gather takes whole slices along all axes but those that are indexed, and drops these."""
    p = equation.equation.params
    d = p["dimension_numbers"]
    gone = d.collapsed_slice_dims
    kept = [k for k in range(len(shape)) if k not in gone]
    return not d.operand_batching_dims and all(p["slice_sizes"][k] == shape[k] for k in kept)


def _lookup(
    masks: Sequence[Mask], cuts: Sequence[Any], p: Any, shape: Any
) -> tuple[Mask, tuple[bool, ...]]:
    d = p["dimension_numbers"]
    kept = [k for k in range(masks[0].ndim) if k not in d.collapsed_slice_dims]
    rows = masks[0].any(axis=tuple(d.collapsed_slice_dims))
    ones = [1] * len(shape)
    cut = [False] * len(shape)
    for place, k in zip(d.offset_dims, kept, strict=True):
        ones[place], cut[place] = masks[0].shape[k], cuts[0][k]
    return np.broadcast_to(rows.reshape(ones), shape), tuple(cut)


def _lookup_asked(want: Mask, masks: Sequence[Mask], p: Any) -> list[Mask]:
    d = p["dimension_numbers"]
    rows = want.any(axis=tuple(k for k in range(want.ndim) if k not in d.offset_dims))
    spread = np.broadcast_to(np.expand_dims(rows, d.collapsed_slice_dims), masks[0].shape)
    return [spread, np.ones(masks[1].shape, bool)]


# Pooling: by channels.

POOLS = WINDOWS | CUMULATIVE


def _pooled(mask: Mask, cut: Any, shape: Any) -> tuple[Mask, tuple[bool, ...]]:
    """By the axes that are as long as before and may be cut; of the others, any."""
    axes = tuple(d for d in range(len(shape)) if not (cut[d] if cut else mask.shape[d] == shape[d]))
    return np.broadcast_to(mask.any(axis=axes, keepdims=True), shape), tuple(cut)


# Rearrangements.


def _reshape_cut(cut: Any, before: Sequence[int], after: Sequence[int]) -> tuple[bool, ...]:
    made = [False] * len(after)
    for left, right in reshape_groups(before, after):
        if any(cut[d] for d in left):
            for d in right:
                made[d] = after[d] != 1
    return tuple(made)


def reshape_groups(
    before: Sequence[int], after: Sequence[int]
) -> list[tuple[list[int], list[int]]]:
    """Which axes of a reshape become which: the smallest sets of neighbours of as many entries.

    Sizes are only multiplied and compared for equality, so that they may be symbols.
    """
    groups, i, j = [], 0, 0
    while i < len(before) and j < len(after):
        ends = ((m, n) for m in range(i + 1, len(before) + 1) for n in range(j + 1, len(after) + 1))
        same = (e for e in ends if math.prod(before[i : e[0]]) == math.prod(after[j : e[1]]))
        m, n = next(same, (len(before), len(after)))
        groups.append(([*range(i, m)], [*range(j, n)]))
        i, j = m, n
    if i < len(before) or j < len(after):  # of length 1
        groups.append(([*range(i, len(before))], [*range(j, len(after))]))
    return groups


def _moves() -> dict[str, Any]:
    def transpose(masks: Any, cuts: Any, p: Any, shapes: Any) -> Any:
        order = p["permutation"]
        return [(np.transpose(masks[0], order), tuple(cuts[0][d] for d in order))]

    def reshape(masks: Any, cuts: Any, p: Any, shapes: Any) -> Any:
        cut = _reshape_cut(cuts[0], masks[0].shape, shapes[0])
        return [(masks[0].reshape(shapes[0]), cut)]

    def squeeze(masks: Any, cuts: Any, p: Any, shapes: Any) -> Any:
        cut = tuple(c for d, c in enumerate(cuts[0]) if d not in p["dimensions"])
        return [(masks[0].reshape(shapes[0]), cut)]

    def broadcast(masks: Any, cuts: Any, p: Any, shapes: Any) -> Any:
        shape, places = shapes[0], p["broadcast_dimensions"]
        ones, cut = [1] * len(shape), [False] * len(shape)
        for d, place in enumerate(places):
            ones[place] = masks[0].shape[d]
            cut[place] = cuts[0][d] and ones[place] == shape[place]
        return [(np.broadcast_to(masks[0].reshape(ones), shape), tuple(cut))]

    def cut_out(masks: Any, cuts: Any, p: Any, shapes: Any) -> Any:
        index = _slices(p)
        return [(masks[0][index], cuts[0])]

    def split(masks: Any, cuts: Any, p: Any, shapes: Any) -> Any:
        parts = np.split(masks[0], np.cumsum(p["sizes"])[:-1], axis=p["axis"])
        return [(part, cuts[0]) for part in parts]

    def concatenate(masks: Any, cuts: Any, p: Any, shapes: Any) -> Any:
        cut = tuple(any(column) for column in zip(*cuts, strict=True))
        return [(np.concatenate(masks, axis=p["dimension"]), cut)]

    def reverse(masks: Any, cuts: Any, p: Any, shapes: Any) -> Any:
        return [(np.flip(masks[0], p["dimensions"]), cuts[0])]

    def pad(masks: Any, cuts: Any, p: Any, shapes: Any) -> Any:
        made = np.broadcast_to(masks[1], shapes[0]).copy()
        inside, there = padded(masks[0].shape, shapes[0], p["padding_config"])
        made[np.ix_(*there)] = masks[0][np.ix_(*inside)]
        return [(made, cuts[0])]

    def dynamic_slice(masks: Any, cuts: Any, p: Any, shapes: Any) -> Any:
        return [_at_any(masks[0], cuts[0], shapes[0])]

    def dynamic_update_slice(masks: Any, cuts: Any, p: Any, shapes: Any) -> Any:
        update, cut = _at_any(masks[1], cuts[1], shapes[0])
        cut = tuple(
            n == m and (a or b)
            for n, m, a, b in zip(masks[1].shape, shapes[0], cut, cuts[0], strict=True)
        )
        return [(masks[0] | update, cut)]

    return {
        "rev": reverse,
        "pad": pad,
        "dynamic_slice": dynamic_slice,
        "dynamic_update_slice": dynamic_update_slice,
        "transpose": transpose,
        "reshape": reshape,
        "squeeze": squeeze,
        "broadcast_in_dim": broadcast,
        "slice": cut_out,
        "split": split,
        "concatenate": concatenate,
    }


MOVES = _moves()


def padded(
    before: Sequence[int], after: Sequence[int], config: Any
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Of `pad`, along every axis: the entries that are still there, and where they are."""
    inside, there = [], []
    for n, m, (low, _, between) in zip(before, after, config, strict=True):
        places = low + np.arange(n) * (between + 1)
        kept = np.flatnonzero((places >= 0) & (places < m))
        inside.append(kept)
        there.append(places[kept])
    return inside, there


def _at_any(mask: Mask, cut: Any, shape: Any) -> tuple[Mask, Cut]:
    """Slices somewhere along the axes whose lengths differ: anything there may be anywhere."""
    same = [n == m for n, m in zip(mask.shape, shape, strict=True)]
    others = tuple(d for d, ok in enumerate(same) if not ok)
    spread = np.broadcast_to(mask.any(axis=others, keepdims=True), shape)
    return spread, tuple(c and ok for c, ok in zip(cut, same, strict=False))


def _slices(p: Any) -> tuple[slice, ...]:
    strides = p["strides"] or (1,) * len(p["start_indices"])
    bounds = zip(p["start_indices"], p["limit_indices"], strides, strict=True)
    return tuple(slice(*b) for b in bounds)


def _moved_back(name: str, wanted: Sequence[Mask], masks: Sequence[Mask], p: Any) -> list[Mask]:
    """What is asked of the operands: the way back."""
    want = wanted[0]
    if name == "transpose":
        return [np.transpose(want, np.argsort(p["permutation"]))]
    if name in ("reshape", "squeeze"):
        return [want.reshape(masks[0].shape)]
    if name == "broadcast_in_dim":
        places = p["broadcast_dimensions"]
        others = tuple(d for d in range(want.ndim) if d not in places)
        return [_summed(want.any(axis=others), masks[0].shape)]
    if name == "slice":
        asked = np.zeros(masks[0].shape, bool)
        asked[_slices(p)] = want
        return [asked]
    if name == "rev":
        return [np.flip(want, p["dimensions"])]
    if name == "pad":
        asked = np.zeros(masks[0].shape, bool)
        inside, there = padded(asked.shape, want.shape, p["padding_config"])
        asked[np.ix_(*inside)] = want[np.ix_(*there)]
        return [asked, np.asarray(want.any())]
    if name in ("dynamic_slice", "dynamic_update_slice"):
        starts = [np.ones((), bool)] * want.ndim
        arrays = masks[: len(masks) - want.ndim]
        return [*(_at_any(want, (), mask.shape)[0] for mask in arrays), *starts]
    if name == "split":
        return [np.concatenate(wanted, axis=p["axis"])]
    sizes = np.cumsum([m.shape[p["dimension"]] for m in masks])[:-1]
    return list(np.split(want, sizes, axis=p["dimension"]))
