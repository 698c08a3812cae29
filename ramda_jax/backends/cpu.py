"""On a CPU that holds whole arrays: the solve goes tile by tile, and a tile stays in a cache.

b and D of a tile are kept while its groups are solved, so the accumulators are read once, whatever the iterations.
Arrays of one kind share a program, which is compiled once: tile by tile of one array after the other.
Accumulating and moving stay whole: XLA spreads such work over threads, and this pays only for large pieces.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

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

        alike: dict[Any, list[int]] = {}
        for i, pair in enumerate(zip(problems, warm, strict=True)):
            alike.setdefault(_kind(*pair), []).append(i)
        found: dict[int, Roots] = {}
        for places in alike.values():
            own, guesses = [problems[i] for i in places], [warm[i] for i in places]
            found |= zip(places, _in_tiles(solve, own, guesses, sizes), strict=True)
        return [found[i] for i in range(len(problems))]

    return arrange


class Products(secular.Apart):
    """Sums as products with a vector of ones.

    XLA's CPU backend adds up one entry after the other, each addition waiting for the last; its matrix products do not.
    """

    @staticmethod
    def add_up(along: Along, xs: Arrays) -> Arrays:
        # All terms in one pass, which writes them into the cache.
        return [_sum(along, x) for x in jax.lax.optimization_barrier(xs)]


def _sum(along: Along, x: jax.Array) -> jax.Array:
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


def _kind(problem: GroupProblem, warm: jax.Array | None) -> Any:
    """What problems have in common that one program solves: all but the numbers."""
    pieces = [jax.eval_shape(m.pieces, m.arrays) for m in problem.members]
    arrays = [m.arrays for m in problem.members]
    leaves, structure = jax.tree.flatten((pieces, arrays, _numbers(problem), warm))
    along = tuple(m.along for m in problem.members)
    return structure, *map(jax.typeof, leaves), along, problem.resident, problem.names


def _numbers(problem: GroupProblem) -> dict[str, Any]:
    return {name: getattr(problem, name) for name in ("level", "kappa", "cap")}


class _Cut(NamedTuple):
    """How a problem is cut into tiles: `length` of its `number` groups at a time.

    Attributes:
      axes: of every member, along which it is cut.
      axis: along which what there is per group is.
      vector: whether that is a vector.
    """

    axes: list[int]
    axis: int
    vector: bool
    number: int
    length: int


def _cut_of(problem: GroupProblem, size: int) -> _Cut | None:
    """In tiles of at most so many entries; None where it cannot be cut."""
    vector = problem.members[0].along.number is not None
    if vector and any(len(m.along.axes) != 1 for m in problem.members):
        return None
    axes = [axis for m in problem.members if (axis := _longest(m)) is not None]
    shapes = [m.shape for m in problem.members]
    if not axes:  # one group
        return None
    number = shapes[0][axes[0]]
    group_size = sum(math.prod(shape) for shape in shapes) // max(number, 1)
    length = _tile_length(number, group_size, size)
    return _Cut(axes, 0 if vector else axes[0], vector, number, length)


def _slice(x: jax.Array, cut: _Cut, axis: int, start: jax.Array) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, start, cut.length, axis) if x.ndim else x


def _tile(problem: GroupProblem, cut: _Cut, start: jax.Array) -> list[tuple[jax.Array, ...]]:
    """(b, D) of every member of a tile."""
    arrays = [
        jax.tree.map(lambda x, axis=axis: _slice(x, cut, axis, start), member.arrays)
        for member, axis in zip(problem.members, cut.axes, strict=True)
    ]
    return [m.pieces(own) for m, own in zip(problem.members, arrays, strict=True)]


def _in_tiles(
    solve: Callable[[GroupProblem, Any], Roots],
    problems: Sequence[GroupProblem],
    warm: Sequence[jax.Array | None],
    sizes: tuple[int, ...],
) -> list[Roots]:
    """The roots of problems of one kind, in tiles of whole groups, by one program.

    `sizes`: of the tiles, of the tiles within a tile, and so on.
    """
    first, alone = problems[0], len(problems) == 1
    cut = _cut_of(first, sizes[0]) if sizes else None
    if cut is None:
        return [solve(*pair) for pair in zip(problems, warm, strict=True)]
    number, length, axis = cut.number, cut.length, cut.axis
    if alone and length == number:
        return _in_tiles(solve, problems, warm, sizes[1:])
    # What is small is stacked; of the rest a tile at a time is taken from the problem whose turn it is.
    small = [(_numbers(p), guess) for p, guess in zip(problems, warm, strict=True)]
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *small)
    tiles = -(-number // length)

    def tile(k: jax.Array | int, start: jax.Array) -> Roots:
        choices = [functools.partial(_tile, p, cut) for p in problems]
        pieces = choices[0](start) if alone else jax.lax.switch(k, choices, start)
        shared = length if cut.vector else None
        members = [
            Member(pair, secular.as_they_are, Along(m.along.axes, shared))
            for pair, m in zip(pieces, first.members, strict=True)
        ]
        numbers, guess = jax.tree.map(lambda x: x[k], stacked)
        part = first._replace(members=tuple(members), resident=True, **numbers)
        guess = None if guess is None else _slice(guess, cut, axis, start)
        return _in_tiles(solve, [part], [guess], sizes[1:])[0]

    def body(i: jax.Array, whole: Roots) -> Roots:
        k = 0 if alone else i // tiles
        # The last tile may overlap its neighbour.
        start = jnp.minimum(i % tiles * length, number - length)
        part = tile(k, start)

        def put(x: jax.Array, y: jax.Array) -> jax.Array:
            at = [start if a == axis else 0 for a in range(y.ndim)]
            return jax.lax.dynamic_update_slice(x, y[None], [k, *at])

        return Roots(
            put(whole.r, part.r),
            put(whole.residual, part.residual),
            whole.iterations.at[k].max(part.iterations),
        )

    along, shape = first.members[0].along, first.members[0].shape
    kept = [number] if cut.vector else [n if a in along.axes else 1 for a, n in enumerate(shape)]
    dtype = jax.eval_shape(first.members[0].pieces, first.members[0].arrays)[0].dtype
    never = _numerics.never(([[m.arrays for m in p.members] for p in problems], small))
    numbers = jnp.full((len(problems), *kept), never.astype(dtype))
    empty = Roots(numbers, numbers, jnp.full(len(problems), never.astype(jnp.int32)))
    found = jax.lax.fori_loop(0, len(problems) * tiles, body, empty)
    return [jax.tree.map(lambda x, k=k: x[k], found) for k in range(len(problems))]


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
