"""Matrices of low rank: two factors in place of one array, where that is less.

A weight that one product reads is a matrix there: rows are the axes over which the product sums, columns those that it
makes. With W = L R of rank r, x W = (x L) R: r (m + n) entries and products in place of m n.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ramda_jax.network.flat import Flat, carry_bounds, programs


class Factors(NamedTuple):
    """A weight W of low rank, per matrix of a stack: W = sum over r of left[..., r] right[r, ...].

    Attributes:
      left: like W with the axes that the product makes replaced by one of length r; for a convolution in the place of the
        output axis, else last.
      right: (stack, r, axes that the product makes).
    """

    left: jax.Array
    right: jax.Array


class Matrix(NamedTuple):
    """How a weight is a matrix.

    Attributes:
      stack, rows, columns: its axes.
      place: of the factors' common axis in the left one.
    """

    stack: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    place: int


def matrix(flat: Flat, number: int) -> Matrix | None:
    """How an input of a program is a matrix; None if it is not the operand of one product and nothing else."""
    users = [(e, k) for e in flat.equations for k, a in enumerate(e.operands) if a == number]
    if len(users) != 1 or number in flat.outputs:
        return None
    equation, operand = users[0]
    p = equation.equation.params
    if equation.name == "convert_element_type":
        return matrix(flat, equation.results[0])
    if equation.name == "dot_general" and operand < 2:
        return of_dot(p, operand, len(flat.shapes[number]))
    plain = equation.name == "conv_general_dilated" and operand == 1
    if plain and p["feature_group_count"] == 1 == p["batch_group_count"]:
        return of_conv(p)
    if equation.name != "scan":
        return None
    (body,) = programs(equation.equation)
    first, last = carry_bounds(equation.equation)
    found = matrix(body, body.inputs[operand])
    if found is None or first <= operand < last:
        return None
    if operand < first:
        return found
    up = lambda axes: tuple(d + 1 for d in axes)
    return Matrix((0, *up(found.stack)), up(found.rows), up(found.columns), found.place + 1)


def of_dot(params: Any, operand: int, ndim: int) -> Matrix:
    """How an operand of `dot_general` is a matrix."""
    contracted, batch = (axes[operand] for axes in params["dimension_numbers"])
    rows, stack = tuple(sorted(contracted)), tuple(sorted(batch))
    columns = tuple(d for d in range(ndim) if d not in (*rows, *stack))
    return Matrix(stack, rows, columns, len(stack) + len(rows))


def of_conv(params: Any) -> Matrix:
    """How the kernel of a convolution without groups is a matrix."""
    out, *rows = params["dimension_numbers"].rhs_spec
    return Matrix((), tuple(sorted(rows)), (out,), out)


def factored(array: jax.Array, how: Matrix | None, multiple_of: int) -> jax.Array | Factors:
    """The factors of an array, where they are smaller.

    A singular value counts as zero up to rounding of float32 (or float64) entries: at most max(m, n) eps times the largest,
    as in `NuclearNorm.rank`. Stored in fewer bits, a matrix of low rank is none any more: it stays as it is, since what
    is cut off would be more than rounding of results. The common axis is as long as the largest rank in a stack needs.
    """
    if how is None or not how.columns or not how.rows:
        return array
    shape = [[array.shape[d] for d in axes] for axes in (how.stack, how.rows, how.columns)]
    b, m, n = map(math.prod, shape)
    if min(m, n) < 2 or not b:
        return array
    order = (*how.stack, *how.rows, *how.columns)
    wide = np.asarray(array, np.promote_types(np.float32, _numpy_dtype(array)))
    matrices = np.transpose(wide, order).reshape(b, m, n)
    if any(_fitting(_rank_at_least(x), multiple_of, m, n) is None for x in matrices):
        return array
    u, s, v = np.linalg.svd(matrices.astype(np.float64), full_matrices=False)
    relative = max(m, n) * np.finfo(matrices.dtype).eps
    ranks = np.count_nonzero(s > relative * s[:, :1], axis=1)
    rank = _fitting(int(np.max(ranks)), multiple_of, m, n)
    if rank is None:
        return array
    root = np.sqrt(s[:, :rank])
    left = (u[:, :, :rank] * root[:, None]).reshape(*shape[0], *shape[1], rank)
    right = (root[..., None] * v[:, :rank]).reshape(*shape[0], rank, *shape[2])
    return Factors(
        jnp.asarray(np.moveaxis(left, -1, how.place), array.dtype), jnp.asarray(right, array.dtype)
    )


def _numpy_dtype(array: jax.Array) -> Any:
    return array.dtype if array.dtype in (np.float32, np.float64) else np.float32


def _rank_at_least(x: np.ndarray) -> int:
    """A bound on the rank for a fraction of the work: eigenvalues of the Gram matrix that stand out of its rounding."""
    scaled = x / max(np.abs(x).max(), np.finfo(x.dtype).tiny)
    gram = scaled @ scaled.T if x.shape[0] < x.shape[1] else scaled.T @ scaled
    values = np.linalg.eigvalsh(gram)
    return int((values > max(x.shape) * np.finfo(x.dtype).eps * values[-1]).sum())


def _fitting(rank: int, multiple_of: int, m: int, n: int) -> int | None:
    """The length of the common axis, if two factors are smaller than the matrix."""
    length = -(-max(rank, 1) // multiple_of) * multiple_of
    return length if length * (m + n) < m * n else None


def product(x: jax.Array, w: Factors, numbers: Any, side: int, params: Any) -> jax.Array:
    """`dot_general` of x and a weight in factors; `side`: which operand the weight is."""
    (contracted, batch) = numbers
    rows, stack = sorted(contracted[side]), sorted(batch[side])
    places = [*stack, *rows]  # of the left factor's axes in the weight
    own = lambda axes: tuple(places.index(d) for d in axes)
    first = _dot(
        x,
        w.left,
        (contracted[1 - side], own(contracted[side])),
        (batch[1 - side], own(batch[side])),
        side,
        params,
    )
    # What came out: the stack, then x's free axes and r, or r and x's free axes.
    n = len(stack)
    there = first.ndim - 1 if side == 1 else n
    theirs, ours = tuple(range(n)), tuple(stack.index(d) for d in batch[side])
    return _dot(first, w.right, ((there,), (n,)), (theirs, ours), side, params)


def _dot(x: jax.Array, w: jax.Array, contracted: Any, batch: Any, side: int, params: Any) -> Any:
    x = x.astype(w.dtype)
    left, right = (x, w) if side == 1 else (w, x)
    order = lambda both: both if side == 1 else both[::-1]
    return jax.lax.dot_general(
        left,
        right,
        (order(contracted), order(batch)),
        precision=params["precision"],
        preferred_element_type=params["preferred_element_type"],
    )
