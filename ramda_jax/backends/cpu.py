"""On a CPU that holds whole arrays: the solve goes tile by tile, and a tile stays in a cache.

b and D of a tile are kept while its groups are solved, so the accumulators are read once, whatever the iterations.
Accumulating and moving stay whole: XLA spreads such work over threads, and this pays only for large pieces.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from ramda_jax import _numerics
from ramda_jax.solvers import secular
from ramda_jax.solvers.secular import Arrays, GroupProblem, Member, Roots
from ramda_jax.step import Inputs, Job, Outputs, step
from ramda_jax.subproblem import Along

# Entries of a tile, and of the tiles it is divided into: b and D are made in larger ones, because XLA spreads such work
# over threads; they are solved in smaller ones, of which a few arrays fit a second-level cache.
TILE_SIZES = (262_144, 32_768)


def run(job: Job, inputs: Inputs) -> Outputs:
    """See above."""
    return tiled(TILE_SIZES)(job, inputs)


@functools.cache
def tiled(sizes: tuple[int, ...]) -> Callable[[Job, Inputs], Outputs]:
    """The backend with tiles of other sizes."""
    arrange = arrangement(sizes)

    def backend(job: Job, inputs: Inputs) -> Outputs:
        return step(job, inputs, arrange)

    return backend


@functools.cache
def arrangement(sizes: tuple[int, ...]) -> Callable[..., list[Roots]]:
    """How groups are worked on: problem by problem, in tiles of these sizes."""

    def arrange(
        algorithm: Callable,
        problems: list[GroupProblem],
        warm: list[Any],
        tolerance: float | None,
        max_iterations: int,
    ) -> list[Roots]:
        def solve(problem: GroupProblem, guess: Any) -> Roots:
            alone = algorithm([problem], [guess], tolerance, max_iterations, pack=Products)
            return alone[0]

        return [_in_tiles(solve, p, guess, sizes) for p, guess in zip(problems, warm, strict=True)]

    return arrange


class Products(secular.Apart):
    """Sums as products with a vector of ones.

    XLA's CPU backend adds up one entry after the other, each addition waiting for the last; its matrix products do not.
    """

    @staticmethod
    def add_up(along: Along, xs: Arrays) -> Arrays:
        # All terms in one pass, which writes them into the cache.
        return [_sum(along, x) for x in jax.lax.optimization_barrier(xs)]


def _sum(along: Along, x: chex.Array) -> chex.Array:
    """`along.sum(x)`, most of it as a product: over the axes behind the groups, or else over those before them."""
    first, last = min(along.axes, default=x.ndim), max(along.axes, default=-1)
    behind, before = math.prod(x.shape[last + 1 :]), math.prod(x.shape[:first])
    if behind > 1:
        y = x.reshape(-1, behind) @ jnp.ones((behind,), x.dtype)
        x = y.reshape(*x.shape[: last + 1], *[1] * (x.ndim - last - 1))
    elif before > 1:
        y = jnp.ones((before,), x.dtype) @ x.reshape(before, -1)
        x = y.reshape(*[1] * first, *x.shape[first:])
    return along.sum(x)


def _in_tiles(
    solve: Callable[[GroupProblem, Any], Roots],
    problem: GroupProblem,
    warm: chex.Array | None,
    sizes: tuple[int, ...],
) -> Roots:
    """The roots of one problem, in tiles of whole groups; `sizes`: of the tiles, of the tiles within a tile, and so on."""
    vector = problem.members[0].along.number is not None
    if not sizes or (vector and any(len(m.along.axes) != 1 for m in problem.members)):
        return solve(problem, warm)
    axes = [_longest(m) for m in problem.members]
    shapes = [m.shape for m in problem.members]
    if axes[0] is None:  # one group
        return solve(problem, warm)
    number = shapes[0][axes[0]]
    size = sum(math.prod(shape) for shape in shapes) // max(number, 1)
    length = _tile_length(number, size, sizes[0])
    if length == number:
        return _in_tiles(solve, problem, warm, sizes[1:])
    axis = 0 if vector else axes[0]  # of what there is per group

    def tile(start: chex.Array) -> Roots:
        cut = lambda x, axis: jax.lax.dynamic_slice_in_dim(x, start, length, axis) if x.ndim else x
        members = []
        for member, along in zip(problem.members, axes, strict=True):
            arrays = jax.tree.map(lambda x, along=along: cut(x, along), member.arrays)
            shared = length if vector else None
            where = Along(member.along.axes, shared)
            members.append(Member(member.pieces(arrays), secular.as_they_are, where))
        part = problem._replace(members=tuple(members), resident=True)
        return _in_tiles(solve, part, None if warm is None else cut(warm, axis), sizes[1:])

    def body(k: chex.Array, whole: Roots) -> Roots:
        start = jnp.minimum(k * length, number - length)  # the last tile may overlap its neighbour
        part = tile(start)
        put = lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, start, axis) if y.ndim else y
        new = jax.tree.map(put, whole, part)
        return new._replace(iterations=jnp.maximum(whole.iterations, part.iterations))

    abstract = jax.eval_shape(tile, jnp.zeros([], jnp.int32))
    full = lambda y: tuple(number if a == axis else n for a, n in enumerate(y.shape))
    arrays = [m.arrays for m in problem.members]
    never = _numerics.never((arrays, problem.level, problem.kappa, problem.cap, warm))
    empty = jax.tree.map(lambda y: jnp.full(full(y), never.astype(y.dtype)), abstract)
    return jax.lax.fori_loop(0, -(-number // length), body, empty)


def _longest(member: Member) -> int | None:
    """Along which axis a member is cut into tiles: the longest along which its groups lie."""
    return max(member.along.axes, key=member.shape.__getitem__, default=None)


def _tile_length(number: int, size: int, tile_size: int) -> int:
    """How many of `number` groups of this size a tile has; a divisor where there is one in reach."""
    at_most = max(1, tile_size // max(size, 1))
    if number <= at_most:
        return number
    divisors = [n for n in range(max(1, at_most // 2), at_most + 1) if number % n == 0]
    return max(divisors, default=-(-number // -(-number // at_most)))
