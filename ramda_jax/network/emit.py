"""The program again, on arrays of which only some entries are left: every primitive has a rule, or runs on whole arrays."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ramda_jax.network.convolution import convolution
from ramda_jax.network.factors import Factors, Matrix, of_conv, of_dot, product
from ramda_jax.network.flat import (
    REDUCTIONS,
    UNITS,
    Constant,
    Equation,
    Flat,
    carry_bounds,
    programs,
    while_bounds,
)
from ramda_jax.network.masks import POOLS, is_elementwise, is_lookup, padded, reshape_groups
from ramda_jax.network.needs import Indices, Keep, Plan
from ramda_jax.network.pieces import (
    Piece,
    Ragged,
    align,
    common,
    each,
    is_empty,
    nothing,
    or_all,
    sizes,
    taken,
    whole,
)

# Running.


class _Step(NamedTuple):
    """One equation to be run.

    Attributes:
      equation: of the program.
      operands: what there is of them.
      keeps, shapes: of the results: what to keep, and the whole shapes.
      turn: of the loop that is run, if turns keep different indices.
      inner: of a loop: its `InnerPlan`.
    """

    equation: Equation
    operands: list[Piece]
    keeps: list[Keep]
    shapes: list[tuple[int, ...]]
    turn: Any
    inner: Any

    @property
    def params(self) -> Any:
        return self.equation.equation.params

    def align(self, piece: Piece, keep: Sequence[Indices]) -> jax.Array:
        return align(piece, keep, self.turn)

    def factors(self, piece: Piece, keep: Sequence[Indices], how: Matrix) -> Factors:
        """The factors of a weight with these indices."""
        part = lambda array, axes: self.align(
            Piece(
                array,
                tuple(None if d is None else piece.keep[d] for d in axes),
                tuple(
                    n if d is None else piece.shape[d]
                    for d, n in zip(axes, array.shape, strict=True)
                ),
            ),
            [None if d is None else keep[d] for d in axes],
        )
        left: list[int | None] = [*how.stack, *how.rows]
        left.insert(how.place, None)
        right = [*how.stack, None, *how.columns]
        return Factors(part(piece.array.left, left), part(piece.array.right, right))

    def bind(self, arrays: Sequence[Any], **changed: Any) -> list[jax.Array]:
        """The equation's own primitive."""
        primitive = self.equation.equation.primitive
        results = primitive.bind(*arrays, **{**self.params, **changed})
        return list(results) if primitive.multiple_results else [results]


def run(
    flat: Flat,
    plan: Plan,
    inputs: Sequence[Piece],
    wanted: Sequence[Keep] | None = None,
    turn: Any = None,
) -> list[jax.Array]:
    """Run a program.

    Args:
      flat: the program.
      plan: what to make of it.
      inputs: what there is of them.
      wanted: of the results; None: all.
      turn: see `_Step`.
    """
    known: dict[int, Piece] = dict(zip(flat.inputs, inputs, strict=True))

    def read(atom: Any) -> Piece:
        return whole(atom.value) if isinstance(atom, Constant) else known[atom]

    for place, equation in enumerate(flat.equations):
        operands = [read(atom) for atom in equation.operands]
        keeps = [plan.keeps[n] for n in equation.results]
        shapes = [flat.shapes[n] for n in equation.results]
        if all(map(is_empty, keeps)):
            dtypes = [var.aval.dtype for var in equation.equation.outvars]
            pieces = list(map(nothing, keeps, shapes, dtypes))
        else:
            step = _Step(equation, operands, keeps, shapes, turn, plan.inner.get(place))
            pieces = list(map(Piece, _made(step), keeps, shapes))
        known.update(zip(equation.results, pieces, strict=True))
    results = [read(atom) for atom in flat.outputs]
    if wanted is None:
        wanted = [(None,) * len(piece.shape) for piece in results]
    return [align(piece, keep, turn) for piece, keep in zip(results, wanted, strict=True)]


def _made(step: _Step) -> Sequence[jax.Array | Factors]:
    name = step.equation.name
    in_factors = [isinstance(piece.array, Factors) for piece in step.operands]
    if any(in_factors) and name == "convert_element_type":
        pair = step.operands[0].array
        return [Factors(*(x.astype(step.params["new_dtype"]) for x in pair))]
    keeps = [*step.keeps, *(piece.keep for piece in step.operands)]
    nothing_cut = all(k is None for keep in keeps for k in keep)
    own = name.startswith("unit ") or name == "conv_general_dilated"
    if nothing_cut and not any(in_factors) and not own:
        return step.bind([piece.array for piece in step.operands])
    if is_elementwise(name) and len(step.keeps) == 1:
        return _elementwise(step)
    rule = RULES.get(name) or (_pooled if name in POOLS else None)
    if name == "gather" and is_lookup(step.equation, step.operands[0].shape):
        rule = _lookup
    try:
        arrays = None if rule is None else rule(step)
    except Ragged:
        arrays = None
    if arrays is not None:
        return arrays
    full = step.bind([step.align(x, (None,) * len(x.shape)) for x in step.operands])
    return [step.align(whole(x), keep) for x, keep in zip(full, step.keeps, strict=True)]


def _elementwise(step: _Step) -> list[jax.Array]:
    (keep,), (shape,) = step.keeps, step.shapes
    arrays = []
    for piece in step.operands:
        if len(piece.shape) != len(shape):  # a scalar
            arrays.append(piece.array)
            continue
        pairs = zip(keep, piece.shape, shape, strict=True)
        arrays.append(step.align(piece, [k if n == m else None for k, n, m in pairs]))
    unit = step.equation.name.removeprefix("unit ")
    return [UNITS[unit](*arrays)] if unit in UNITS else step.bind(arrays)


# Rules: from a step to arrays; None: on whole arrays.


def _transpose(step: _Step) -> Any:
    order = step.params["permutation"]
    wanted = [step.keeps[0][order.index(d)] for d in range(len(order))]
    return [jnp.transpose(step.align(step.operands[0], wanted), order)]


def _broadcast(step: _Step) -> Any:
    places = step.params["broadcast_dimensions"]
    (piece,), shape, keep = step.operands, step.shapes[0], step.keeps[0]
    wanted = [
        keep[at] if n == shape[at] else None for at, n in zip(places, piece.shape, strict=True)
    ]
    array = step.align(piece, wanted)
    return [jax.lax.broadcast_in_dim(array, sizes(keep, shape), places)]


def _squeeze(step: _Step) -> Any:
    gone = step.params["dimensions"]
    rest = iter(step.keeps[0])
    wanted = [None if d in gone else next(rest) for d in range(len(step.operands[0].shape))]
    return [jax.lax.squeeze(step.align(step.operands[0], wanted), gone)]


def _flat_indices(shape: Sequence[int], keep: Sequence[Indices]) -> np.ndarray:
    """Of the kept entries of an array, their places in the whole array."""

    def flat(*indices: np.ndarray) -> np.ndarray:
        found = np.zeros((), int)
        for n, k in zip(shape, indices, strict=True):
            found = found[..., None] * n + k
        return found.reshape(-1)

    return each(flat, *map(or_all, keep, shape))


def _reshape(step: _Step) -> Any:
    (piece,), shape, keep = step.operands, step.shapes[0], step.keeps[0]
    groups = reshape_groups(piece.shape, shape)
    own = piece.array.shape
    array = piece.array.reshape([math.prod(own[d] for d in left) for left, _ in groups])
    for axis, (left, right) in enumerate(groups):
        before, after = [piece.keep[d] for d in left], [keep[d] for d in right]
        if all(k is None for k in (*before, *after)):
            continue
        have = _flat_indices([piece.shape[d] for d in left], before)
        want = _flat_indices([shape[d] for d in right], after)
        size = math.prod(shape[d] for d in right)
        array = taken(array, axis, have, want, size, step.turn)
    return [array.reshape(sizes(keep, shape))]


def _slice(step: _Step) -> Any:
    p, (piece,) = step.params, step.operands
    strides = p["strides"] or (1,) * len(piece.shape)
    starts, stops = p["start_indices"], p["limit_indices"]
    return [_sliced(piece, starts, stops, strides, step.keeps[0], step.turn)]


def _sliced(
    piece: Piece, starts: Any, stops: Any, strides: Any, keep: Keep, turn: Any
) -> jax.Array:
    array = piece.array
    for axis, (start, stop, stride) in enumerate(zip(starts, stops, strides, strict=True)):
        have, want = piece.keep[axis], keep[axis]
        if have is None and want is None:
            array = jax.lax.slice_in_dim(array, start, stop, stride, axis)
        else:
            indices = np.arange(start, stop, stride)
            indices = indices if want is None else indices[want]
            array = taken(array, axis, have, indices, piece.shape[axis], turn)
    return array


def _split(step: _Step) -> Any:
    p, (piece,) = step.params, step.operands
    arrays, start, ones = [], 0, [1] * len(piece.shape)
    for n, keep in zip(p["sizes"], step.keeps, strict=True):
        starts, stops = [0] * len(piece.shape), list(piece.shape)
        starts[p["axis"]], stops[p["axis"]] = start, start + n
        arrays.append(_sliced(piece, starts, stops, ones, keep, step.turn))
        start += n
    return arrays


def _within(start: int, stop: int, indices: np.ndarray) -> np.ndarray:
    return indices[(indices >= start) & (indices < stop)] - start


def _concatenate(step: _Step) -> Any:
    axis, keep = step.params["dimension"], step.keeps[0]
    parts, start = [], 0
    for piece in step.operands:
        n, wanted = piece.shape[axis], list(keep)
        along = keep[axis]
        if along is not None:
            wanted[axis] = each(functools.partial(_within, start, start + n), along)
        parts.append(step.align(piece, wanted))
        start += n
    return [jnp.concatenate(parts, axis)]


def _reverse(step: _Step) -> Any:
    (piece,), keep = step.operands, step.keeps[0]
    array = piece.array
    for axis in step.params["dimensions"]:
        size, want = piece.shape[axis], keep[axis]
        if piece.keep[axis] is None and want is None:
            array = jax.lax.rev(array, (axis,))
        else:
            want = size - 1 - or_all(want, size)
            array = taken(array, axis, piece.keep[axis], want, size, step.turn)
    rest = [
        want if d in step.params["dimensions"] else have
        for d, (have, want) in enumerate(zip(piece.keep, keep, strict=True))
    ]
    return [step.align(Piece(array, tuple(rest), piece.shape), keep)]


def _pad(step: _Step) -> Any:
    (piece, filler), (shape,), keep = step.operands, step.shapes, step.keeps[0]
    array, config = piece.array, list(step.params["padding_config"])
    inside, there = padded(piece.shape, shape, config)
    cut = [d for d, k in enumerate(keep) if k is not None or piece.keep[d] is not None]
    filled = isinstance(step.equation.operands[1], Constant) and not np.any(filler.array)
    for axis in cut:
        if config[axis] != (0, 0, 0) and not filled:
            return None
        places = np.full(shape[axis], piece.shape[axis])  # which nothing has: zeros
        places[there[axis]] = inside[axis]
        want = places if keep[axis] is None else places[keep[axis]]
        array = taken(array, axis, piece.keep[axis], want, piece.shape[axis], step.turn)
        config[axis] = (0, 0, 0)
    return step.bind([array, filler.array], padding_config=tuple(config))


def _dynamic_slice(step: _Step) -> Any:
    (piece, *starts), shape, keep = step.operands, step.shapes[0], step.keeps[0]
    rows = zip(keep, piece.shape, shape, strict=True)
    array = step.align(piece, [k if n == m else None for k, n, m in rows])
    width = tuple(m if k is None else k.shape[-1] for k, m in zip(keep, shape, strict=True))
    return step.bind([array, *(s.array for s in starts)], slice_sizes=width)


def _dynamic_update_slice(step: _Step) -> Any:
    piece, update, *starts = step.operands
    arrays = [step.align(x, step.keeps[0]) for x in (piece, update)]
    return step.bind([*arrays, *(s.array for s in starts)])


def _reduce(step: _Step) -> Any:
    p, (piece,) = step.params, step.operands
    rest = iter(step.keeps[0])
    # A sum may leave out zeros; a maximum may not.
    of_sum = step.equation.name in ("reduce_sum", "reduce_or")
    inside = piece.keep if of_sum else (None,) * len(piece.keep)
    wanted = [inside[d] if d in p["axes"] else next(rest) for d in range(len(piece.shape))]
    return step.bind([step.align(piece, wanted)])


def _met(
    value: Piece, weight: Piece, at: int, there: int, window: int = 1, results: Any = None
) -> Indices:
    """Which indices along a contracted axis to multiply: what the weight reads of what there is of the value; or all that
    there is, with zeros in the weight, where that costs less than to take them out.

    Nanoseconds of one CPU core, by measurement (benchmarks/RESULTS.md, Compaction): 1.2 for an entry that is taken, 2 for
    one that is read besides, and 1/40 for a multiplication and an addition.

    Args:
      at, there: the axis in the value, and in the weight.
      window: of a convolution, how many places it has.
      results: how often the weight is used; None: as often as the value has entries for an index.
    """
    have, read = value.keep[at], weight.keep[there]
    both = common(have, read)
    if both is None or any(k is not None and k.ndim == 2 for k in (have, read)):
        return both
    entries, outputs = _besides(value, at), _besides(weight, there)
    results = entries if results is None else results
    every, kept = sizes(value.keep, value.shape)[at], len(both)
    symbols = not (isinstance(entries, int) and isinstance(results, int))
    if symbols or not kept or kept == every:
        return both
    taking = 1.2 * entries * kept
    filling = (every - kept) * (2 * min(entries, window * results) + results * outputs / 40)
    return have if filling + 1.2 * every * outputs < taking else both


def _besides(piece: Piece, at: int) -> Any:
    """How many entries there are for each index along an axis; may be a symbol."""
    return math.prod(n for d, n in enumerate(sizes(piece.keep, piece.shape)) if d != at)


def _fewer(entries: Any, others: Any) -> bool:
    """Whether one number is smaller; not where one is a symbol."""
    return isinstance(entries, int) and isinstance(others, int) and entries < others


def _dot(step: _Step) -> Any:
    ((lc, rc), (lb, rb)) = step.params["dimension_numbers"]
    left, right = step.operands[:2]
    wanted: list[list[Any]] = [[None] * len(left.shape), [None] * len(right.shape)]
    for a, b in zip(lc, rc, strict=True):
        if len(lc) > 1 or lb:
            met = common(left.keep[a], right.keep[b])
        # What is read has more entries than what reads it.
        elif _fewer(_besides(left, a), _besides(right, b)):
            met = _met(right, left, b, a)
        else:
            met = _met(left, right, a, b)
        wanted[0][a] = wanted[1][b] = met
    rest = iter(step.keeps[0])
    for a, b in zip(lb, rb, strict=True):
        wanted[0][a] = wanted[1][b] = next(rest)
    for k, (piece, gone) in enumerate(((left, (*lc, *lb)), (right, (*rc, *rb)))):
        for d in range(len(piece.shape)):
            if d not in gone:
                wanted[k][d] = next(rest)
    for side, piece in enumerate((left, right)):
        if isinstance(piece.array, Factors):
            x = step.align(step.operands[1 - side], wanted[1 - side])
            w = step.factors(piece, wanted[side], of_dot(step.params, side, len(piece.shape)))
            return [product(x, w, step.params["dimension_numbers"], side, step.params)]
    return step.bind([step.align(left, wanted[0]), step.align(right, wanted[1])])


def _conv(step: _Step) -> Any:
    p = step.params
    numbers, groups = p["dimension_numbers"], p["feature_group_count"]
    image, kernel = step.operands
    if p["batch_group_count"] != 1 or any(
        k is not None for d, k in enumerate(step.keeps[0]) if d != numbers.out_spec[1]
    ):
        return None
    at_image, (at_out, at_in) = numbers.lhs_spec[1], numbers.rhs_spec[:2]
    made = step.keeps[0][numbers.out_spec[1]]
    wanted_image: list[Any] = [None] * len(image.shape)
    wanted_kernel: list[Any] = [None] * len(kernel.shape)
    wanted_kernel[at_out] = made
    if groups == 1:
        window = math.prod(kernel.shape[d] for d in numbers.rhs_spec[2:])
        results = math.prod(n for d, n in enumerate(step.shapes[0]) if d != numbers.out_spec[1])
        both = _met(image, kernel, at_image, at_in, window, results)
        if both is not None and not both.shape[-1]:
            both = np.zeros(1, int)  # no term is left; one that is zero stands in: XLA wants some
        wanted_image[at_image] = wanted_kernel[at_in] = both
    else:
        inputs, outputs = kernel.shape[at_in], kernel.shape[at_out] // groups
        left = each(functools.partial(_groups_left, outputs), or_all(made, groups * outputs))
        read = or_all(kernel.keep[at_in], inputs)
        wanted_kernel[at_in] = kernel.keep[at_in]
        of_groups = lambda left, read: (left[:, None] * inputs + read).reshape(-1)
        wanted_image[at_image] = each(of_groups, left, read)
        groups = left.shape[-1]
    x = step.align(image, wanted_image)
    bind = lambda x, w: step.bind([x, w], feature_group_count=groups)[0]
    if not isinstance(kernel.array, Factors):
        return [convolution(bind, x, step.align(kernel, wanted_kernel), numbers)]
    w = step.factors(kernel, wanted_kernel, of_conv(p))
    made, at = convolution(bind, x, w.left, numbers), numbers.out_spec[1]
    every = (((made.ndim - 1,), (0,)), ((), ()))
    made = jax.lax.dot_general(
        jnp.moveaxis(made, at, -1),
        w.right,
        every,
        precision=p["precision"] and p["precision"][1],
        preferred_element_type=p["preferred_element_type"],
    )
    return [jnp.moveaxis(made, -1, at)]


def _groups_left(outputs: int, made: np.ndarray) -> np.ndarray:
    """The groups of a convolution that make these channels; each has to make as many, at the same places."""
    left = np.unique(made // outputs)
    inner = [made[made // outputs == g] % outputs for g in left]
    if any(not np.array_equal(x, inner[0]) for x in inner):
        raise Ragged
    return left


def _lookup(step: _Step) -> Any:
    p, (table, indices) = step.params, step.operands
    d = p["dimension_numbers"]
    kept = [k for k in range(len(table.shape)) if k not in d.collapsed_slice_dims]
    wanted: list[Any] = [None] * len(table.shape)
    for place, k in zip(d.offset_dims, kept, strict=True):
        wanted[k] = step.keeps[0][place]
    array = step.align(table, wanted)
    width = tuple(array.shape[k] if k in kept else n for k, n in enumerate(p["slice_sizes"]))
    return step.bind([array, indices.array], slice_sizes=width)


def _pooled(step: _Step) -> Any:
    p, (piece, *others) = step.params, step.operands
    windows = p.get("window_dimensions")
    cut = [d for d, k in enumerate((*step.keeps[0],)) if k is not None or piece.keep[d] is not None]
    if others or len(step.keeps) > 1:
        return None
    if windows is None:
        along = p["axis"]
        if along in cut:
            return None
    elif any(windows[d] != 1 for d in cut):
        return None
    return step.bind([step.align(piece, step.keeps[0])])


# Loops and branches.


def _scan(step: _Step) -> Any:
    p, inner = step.params, step.inner
    first, last = carry_bounds(step.equation.equation)
    (flat,) = programs(step.equation.equation)
    constants, carry, stacks = (
        step.operands[:first],
        step.operands[first:last],
        step.operands[last:],
    )
    body = inner.programs[0]
    pieces = []
    for number, piece in zip(flat.inputs[last:], stacks, strict=True):
        # A table of turns that are not told apart here is taken apart now.
        own = step.turn is None and not inner.sliced
        rest = [
            want if own and k is not None and k.ndim == 2 else k
            for k, want in zip(piece.keep[1:], body.keeps[number], strict=True)
        ]
        pieces.append(Piece(step.align(piece, (None, *rest)), (None, *rest), piece.shape))
    kept = inner.carry
    wanted = [*kept, *(keep[1:] for keep in step.keeps[last - first :])]

    def turn(state: Any, given: Any) -> Any:
        number, slices = given
        inputs = [*constants]
        inputs += [Piece(x, k, c.shape) for x, k, c in zip(state, kept, carry, strict=True)]
        inputs += [Piece(x, s.keep[1:], s.shape[1:]) for x, s in zip(slices, pieces, strict=True)]
        results = run(flat, body, inputs, wanted, number if inner.sliced else step.turn)
        return results[: last - first], results[last - first :]

    start = list(map(step.align, carry, kept))
    numbers = jnp.arange(p["length"], dtype=jnp.int32)
    end, made = jax.lax.scan(
        turn,
        start,
        (numbers, [piece.array for piece in pieces]),
        length=p["length"],
        reverse=p["reverse"],
        unroll=p["unroll"],
    )
    return [*_carried(step, end), *made]


def _carried(step: _Step, end: Sequence[jax.Array]) -> list[jax.Array]:
    """What a loop carried, with what is kept of its results."""
    rows = zip(end, step.inner.carry, step.shapes, step.keeps, strict=False)
    return [step.align(Piece(x, have, shape), want) for x, have, shape, want in rows]


def _while(step: _Step) -> Any:
    kept = step.inner.carry
    first, last = while_bounds(step.equation.equation)
    condition, body = programs(step.equation.equation)
    plans = step.inner.programs
    carry = step.operands[last:]
    pieces = lambda state: [
        Piece(x, k, c.shape) for x, k, c in zip(state, kept, carry, strict=True)
    ]
    check = lambda state: run(
        condition, plans[0], [*step.operands[:first], *pieces(state)], [()], step.turn
    )[0]
    turn = lambda state: run(
        body, plans[1], [*step.operands[first:last], *pieces(state)], kept, step.turn
    )
    return _carried(step, jax.lax.while_loop(check, turn, list(map(step.align, carry, kept))))


def _branches(step: _Step) -> Any:
    which, *operands = step.operands
    branch = lambda flat, plan: lambda: run(flat, plan, operands, step.keeps, step.turn)
    flats = programs(step.equation.equation)
    return jax.lax.switch(which.array, list(map(branch, flats, step.inner.programs)))


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
    "rev": _reverse,
    "pad": _pad,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "scan": _scan,
    "while": _while,
    "cond": _branches,
    **dict.fromkeys(REDUCTIONS, _reduce),
}
