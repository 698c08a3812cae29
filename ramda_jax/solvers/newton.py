"""Newton's method on the secular equation of every group, all blocks in one loop."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ramda_jax import _numerics, _validation
from ramda_jax.regularizers import GroupNorm, Regularizer
from ramda_jax.solvers import base, capped, secular
from ramda_jax.solvers.closed_form import ClosedForm
from ramda_jax.solvers.secular import GroupProblem
from ramda_jax.subproblem import Along, Block, Part, Pieces, Quadratic, Solution, Subproblem


@dataclasses.dataclass(frozen=True)
class Newton(base.Solver):
    """Exact solver for group norms in a diagonal metric: one scalar equation per group (`ramda_jax.solvers.secular`).

    Quadratically and monotonically convergent from a free start, warm-started from the group norms of the last step:
    mostly 1 or 2 iterations. Separable regularizers in the same tree need no loop and get their closed form.

    Args:
      tolerance: on the residual of a group relative to its threshold, ||s_g|| / (weight lambda sqrt|g|). None: 1e-6, or
        1e-13 for float64 arrays.
      max_iterations: Newton updates at most, >= 1.

    Raises:
      ValueError: for constants out of range.

    Example:
      >>> import jax.numpy as jnp, ramda_jax as rj
      >>> params = {"kernel": jnp.arange(6.0).reshape(3, 2)}
      >>> tx = rj.ramda(0.1, rj.GroupLasso(0.1), solver=rj.Newton(tolerance=1e-4, max_iterations=5))
      >>> _, state = tx.update(params, tx.init(params), params)
      >>> rj.solver_stats(state)["iterations"] <= 5
      True

    Source: derived in `ramda_jax.solvers.secular`; it replaces Algorithm 2 of Huang & Lee, NeurIPS 2024.
    """

    separable: ClassVar[bool] = True
    spans: ClassVar[bool] = True
    tolerance: float | None = None
    max_iterations: int = secular.MAX_ITERATIONS

    def __post_init__(self) -> None:
        if self.tolerance is not None:
            _validation.check_positive("Newton.tolerance", self.tolerance)
        _validation.check_integer("Newton.max_iterations", self.max_iterations, 1)

    def supports(self, psi: Regularizer) -> bool:
        return isinstance(psi, GroupNorm) or psi.closed_form

    def init(self, block: Block, start: jax.Array, dtype: DTypeLike) -> base.Warm:
        if not isinstance(block.psi, GroupNorm):
            return None
        if len(block.members) > 1:
            return jnp.zeros((block.number,), dtype)
        shape = block.shape
        axes = block.axes(0)
        return jnp.zeros(tuple(n if a in axes else 1 for a, n in enumerate(shape)), dtype)

    def solve(
        self, problems: Sequence[Subproblem], warm: Sequence[base.Warm], arrange: base.Arrangement
    ) -> list[Solution]:
        groups = [i for i, p in enumerate(problems) if isinstance(p.psi, GroupNorm)]
        others = [i for i in range(len(problems)) if i not in groups]
        own = ClosedForm().solve([problems[i] for i in others], [warm[i] for i in others], arrange)
        solutions = dict(zip(others, own, strict=True))
        stated = {i: group_problem(problems[i]) for i in groups}
        for algorithm, mine in (
            (secular.solve, [i for i in groups if problems[i].psi.convex]),
            (capped.solve, [i for i in groups if not problems[i].psi.convex]),
        ):
            if mine:
                found = arrange(
                    algorithm,
                    [stated[i] for i in mine],
                    [warm[i] for i in mine],
                    self.tolerance,
                    self.max_iterations,
                )
                for i, roots in zip(mine, found, strict=True):
                    solutions[i] = _solution(stated[i], roots)
        return [solutions[i] for i in range(len(problems))]

    def recall(self, problem: Subproblem, warm: base.Warm) -> tuple[jax.Array, ...]:
        if not isinstance(problem.psi, GroupNorm):
            return ClosedForm().recall(problem, warm)
        assert warm is not None  # of `init`
        groups = group_problem(problem)
        r = secular.implicit(groups, warm)
        return tuple(secular.point(groups, k, r) for k in range(len(groups.members)))

    def check_derivative(self, block: Block) -> None:
        pass


def _solution(problem: GroupProblem, roots: secular.Roots) -> Solution:
    x = tuple(secular.point(problem, k, roots.r) for k in range(len(problem.members)))
    return Solution(x, roots.r, roots.iterations, _numerics.norm(roots.residual))


def group_problem(problem: Subproblem) -> GroupProblem:
    """The scalar equations of a block under a group norm."""
    block: Block = problem.block
    psi: Any = problem.psi
    numbers = psi.numbers(problem.weight, block.group_size)
    pieces = _pieces(problem.pieces, problem.scalars, numbers.threshold)
    along = along_of(problem)
    pairs = zip(problem.parts, along, strict=True)
    members = [secular.Member(part, pieces, where) for part, where in pairs]
    if problem.resident:  # few enough to be kept
        members = [
            secular.Member(m.pieces(m.arrays), secular.as_they_are, m.along) for m in members
        ]
    return GroupProblem(
        tuple(members),
        jnp.asarray(numbers.level),
        numbers.kappa,
        numbers.cap,
        problem.resident,
        problem.names,
    )


def along_of(problem: Subproblem) -> Sequence[Along]:
    """How the groups lie in the members; where one device has them whole: in a vector if there are several members."""
    block, starts = problem.block, problem.starts
    if problem.along:
        return problem.along
    if len(starts) == 1:
        return [Along(block.axes(0))]
    number = math.prod(starts[0].shape[a] for a in block.axes(0))
    return [Along(block.axes(k), number) for k in range(len(starts))]


def _pieces(
    pieces: Pieces, scalars: tuple[jax.Array, ...], threshold: jax.Array | None
) -> Callable[[Part], tuple[jax.Array, jax.Array]]:
    """(b, D) of a member; b is thresholded where psi has entrywise terms."""

    def b_and_d(part: Part) -> tuple[jax.Array, jax.Array]:
        smooth = Quadratic(*pieces(part.arrays, part.start, scalars))
        b = smooth.at_zero()
        return (b if threshold is None else _numerics.soft_threshold(b, threshold)), smooth.d

    return b_and_d
