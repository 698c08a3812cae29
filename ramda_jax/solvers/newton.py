"""Newton's method on the secular equation of every group, all arrays in one loop."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import chex
import jax.numpy as jnp

from ramda_jax import _numerics, _validation, first_order, secular
from ramda_jax.regularizers.base import Regularizer
from ramda_jax.regularizers.group import GroupNorm
from ramda_jax.solvers import base
from ramda_jax.solvers.closed_form import ClosedForm


@dataclasses.dataclass(frozen=True)
class Newton(base.Solver):
    """Exact solver for group norms in a diagonal metric: one scalar equation per group (`ramda_jax.secular`).

    Quadratically and monotonically convergent from a free start, warm-started from the group norms of the last step:
    mostly 1 or 2 iterations. Separable regularizers in the same tree need no loop and get their closed form.

    Args:
      tolerance: on the residual of a group relative to its threshold, ||s_g|| / (weight lambda sqrt|g|). None: 1e-6, or
        1e-13 for float64 arrays.
      max_iterations: Newton updates at most, >= 1.

    Raises:
      ValueError: for constants out of range.

    Source: derived in `ramda_jax.secular`; it replaces Algorithm 2 of Huang & Lee, NeurIPS 2024.
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

    def init(self, psi: Regularizer, param: chex.Array, dtype: chex.ArrayDType) -> chex.Array:
        if not isinstance(psi, GroupNorm):
            return super().init(psi, param, dtype)
        axes = psi.axes(len(param.shape))
        shape = tuple(1 if a in axes else n for a, n in enumerate(param.shape))
        return jnp.zeros(shape, dtype)

    def solve(
        self, problems: Sequence[base.LeafProblem], warm: Sequence[chex.Array]
    ) -> list[base.LeafSolution]:
        solutions: dict[int, base.LeafSolution] = {}
        grouped: list[tuple[int, GroupNorm, secular.GroupProblem]] = []
        for i, problem in enumerate(problems):
            if isinstance(problem.psi, GroupNorm):
                grouped.append((i, problem.psi, _group_problem(problem, problem.psi)))
            else:
                solutions[i] = ClosedForm().solve_one(problem, warm[i])

        solve = secular.solve
        if any(problem.resident or problem.span for problem in problems):
            solve = secular.solve_together  # a block already, or parts of groups
        found = solve(
            [group for _, _, group in grouped],
            [warm[i] if psi.convex else None for i, psi, _ in grouped],
            self.tolerance,
            self.max_iterations,
        )
        for (i, _, group), solution in zip(grouped, found, strict=True):
            x, residual = secular.point(group, solution), _numerics.norm(solution.residual)
            solutions[i] = base.LeafSolution(x, solution.r, solution.iterations, residual)
        return [solutions[i] for i in range(len(problems))]


def _group_problem(problem: base.LeafProblem, psi: GroupNorm) -> secular.GroupProblem:
    arrays = (*problem.arrays, problem.start)

    def pieces(arrays, scalars):
        smooth = first_order.Quadratic(*problem.pieces(arrays[:-1], arrays[-1], scalars))
        return smooth.at_zero(), smooth.d

    shape = problem.start.shape if problem.span is None else problem.span.shape
    if problem.resident:  # few enough to be kept
        kept = pieces(arrays, problem.scalars)
        group = psi.secular_problem(kept, (), secular.as_they_are, shape, problem.weight)
        return group._replace(resident=True)
    group = psi.secular_problem(arrays, problem.scalars, pieces, shape, problem.weight)
    return group if problem.span is None else group._replace(names=problem.span.names)
