"""On a GPU that holds whole arrays: as `xla`, but the numbers of all groups are in one vector.

A kernel costs more than what it moves where arrays are small. An update of Newton's method is so a few kernels for all
blocks, beside one per array that reads it, and the loop's condition reads one number.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ramda_jax.solvers import capped, secular
from ramda_jax.solvers.secular import Apart, Arrays, GroupProblem, Roots
from ramda_jax.step import Inputs, Job, Outputs, step
from ramda_jax.subproblem import Along


def run(job: Job, inputs: Inputs) -> Outputs:
    """See above."""
    return step(job, inputs, _joined)


def _joined(algorithm: Callable, *arguments: Any) -> list[Roots]:
    # Caps are rare, and what follows the loop there looks at each problem by itself.
    return algorithm(*arguments, pack=Apart if algorithm is capped.solve else Joined)


class Joined(Apart):
    """The groups of all problems in one vector.

    Of an array only the axes behind its groups are summed by themselves, which is one kernel. What is left, as of the
    window of a convolution, is summed for all arrays with as many of these entries per group together.
    """

    def __init__(self, problems: Sequence[GroupProblem]) -> None:
        super().__init__(problems)
        self._left = [_left(p) for p in problems]
        # Problems with as much left lie side by side.
        self._order = sorted(range(len(problems)), key=self._left.__getitem__)

    def sums(self, terms: Callable, rs: Sequence[Any], *, tied: bool = True) -> list[Arrays]:
        own = []
        for p, r in zip(self.problems, rs, strict=True):
            if len(p.members) > 1:
                own.append([x[None] for x in secular.sums_of(p, terms, r, tied=tied)])
            else:
                xs = secular.terms_of(p, 0, terms, r, tied=tied)
                own.append(_partial_sums(p.members[0].along, xs))
        return [[self._sum(column)] for column in zip(*own, strict=True)]

    def _sum(self, partial: Sequence[jax.Array]) -> jax.Array:
        pieces = []
        for left in sorted(set(self._left)):
            mine = [partial[i] for i in self._order if self._left[i] == left]
            pieces.append(jnp.sum(jnp.concatenate(mine, axis=1), axis=0))
        return jnp.concatenate(pieces)

    def join(self, xs: Sequence[jax.Array]) -> Arrays:
        return [jnp.concatenate([jnp.ravel(xs[i]) for i in self._order])]

    def split(self, xs: Sequence[jax.Array]) -> Arrays:
        shapes = [_shape(p) for p in self.problems]
        ends = np.cumsum([math.prod(shapes[i]) for i in self._order])
        pieces = jnp.split(xs[0], ends[:-1])
        found = {i: x.reshape(shapes[i]) for i, x in zip(self._order, pieces, strict=True)}
        return [found[i] for i in range(len(shapes))]

    def numbers(self, xs: Sequence[jax.Array]) -> Arrays:
        pairs = zip(xs, self.problems, strict=True)
        return self.join([jnp.broadcast_to(x, _shape(p)) for x, p in pairs])

    def residuals(self, xs: Sequence[jax.Array]) -> Arrays:
        sizes = np.array([math.prod(_shape(self.problems[i])) for i in self._order])
        starts = np.cumsum(sizes) - sizes
        # A row per problem, as long as the longest: one reduction for all.
        column = jax.lax.broadcasted_iota(jnp.int32, (len(sizes), int(sizes.max())), 1)
        inside = column < sizes[:, None]
        rows = jnp.where(inside, xs[0][jnp.where(inside, column + starts[:, None], 0)], 0.0)
        norms = jnp.sqrt(jnp.sum(rows * rows, axis=1))
        return [norms[self._order.index(i)] for i in range(len(sizes))]


def _shape(problem: GroupProblem) -> tuple[int, ...]:
    """Of what there is one number of per group."""
    along = problem.members[0].along
    if along.number is not None:
        return (along.number,)
    return tuple(n if a in along.axes else 1 for a, n in enumerate(problem.members[0].shape))


def _before(along: Along, ndim: int) -> list[int]:
    """The axes before the first along which groups lie."""
    return list(range(min(along.axes, default=0))) if ndim else []


def _left(problem: GroupProblem) -> int:
    """How many entries per group `_partial_sums` leaves."""
    if len(problem.members) > 1:
        return 1
    shape = problem.members[0].shape
    return math.prod(shape[a] for a in _before(problem.members[0].along, len(shape)))


def _partial_sums(along: Along, xs: Sequence[jax.Array]) -> Arrays:
    """Sums over all axes but those before the groups: (what is left, groups)."""
    shape = xs[0].shape
    before = _before(along, len(shape))
    others = tuple(a for a in range(len(shape)) if a not in along.axes and a not in before)
    left = math.prod(shape[a] for a in before)
    return [jnp.sum(x, axis=others).reshape(left, -1) for x in xs]
