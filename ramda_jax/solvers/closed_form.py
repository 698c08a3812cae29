"""One prox, no iteration: separable regularizers in any diagonal metric, every regularizer in a scalar one."""

import dataclasses
from typing import ClassVar

import chex
import jax.numpy as jnp

from ramda_jax import _numerics
from ramda_jax.regularizers.base import Regularizer
from ramda_jax.solvers import base


@dataclasses.dataclass(frozen=True)
class ClosedForm(base.PerArraySolver):
    """X = prox of (weight / D) psi at x0 - v / D: exact up to rounding, which is the residual; no iterations."""

    separable: ClassVar[bool] = True

    def supports(self, psi: Regularizer) -> bool:
        return psi.closed_form

    def solve_one(self, problem: base.LeafProblem, warm: chex.Array) -> base.LeafSolution:
        v, x0, d = problem.smooth()
        free = x0 - v / d
        if d.ndim == 0:
            x = problem.psi.prox(free, problem.weight / d)
        else:
            x = problem.psi.weighted_prox(free, d, problem.weight)
        # Exact but for rounding of x; a NaN or an infinity shows here, too.
        rounding = jnp.finfo(x.dtype).eps * _numerics.norm(d * x)
        return base.LeafSolution(x, warm, jnp.zeros([], jnp.int32), rounding)
