"""One prox, no iteration: separable regularizers in any diagonal metric, every regularizer in a scalar one."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from ramda_jax import _numerics
from ramda_jax.regularizers import NuclearNorm, Regularizer
from ramda_jax.solvers import base
from ramda_jax.subproblem import Block, Subproblem, Whole


@dataclasses.dataclass(frozen=True)
class ClosedForm(base.WholeSolver):
    """X = prox of (weight / D) psi at x0 - v / D: exact up to rounding, which is the residual; no iterations."""

    separable: ClassVar[bool] = True

    def supports(self, psi: Regularizer) -> bool:
        return psi.closed_form

    def shares(self, psi: Regularizer) -> bool:
        return not psi.closed_form

    def solve_one(
        self, problem: Whole, warm: base.Warm
    ) -> tuple[jax.Array, base.Warm, jax.Array, jax.Array]:
        x = self._prox(problem)
        # Exact but for rounding of x. A NaN or an infinity shows here, too: as a NaN.
        size = jnp.where(jnp.abs(x) < jnp.inf, problem.smooth.d * x, jnp.nan)
        rounding = jnp.finfo(x.dtype).eps * _numerics.norm(size)
        return x, warm, jnp.zeros([], jnp.int32), rounding

    def recall(self, problem: Subproblem, warm: base.Warm) -> tuple[jax.Array, ...]:
        del warm
        return problem.split(self._prox(problem.whole()))

    def _prox(self, problem: Whole) -> jax.Array:
        v, x0, d = problem.smooth
        free = x0 - v / d
        if d.ndim == 0:
            return problem.psi.prox(free, problem.weight / d)
        return problem.psi.weighted_prox(free, d, problem.weight)

    def check_derivative(self, block: Block) -> None:
        if isinstance(block.psi, NuclearNorm):  # that of an eigendecomposition is not finite
            super().check_derivative(block)
