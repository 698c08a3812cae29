"""Douglas-Rachford splitting: any convex regularizer with a prox, however badly conditioned the metric."""

import dataclasses
from typing import Any

import chex
import jax.numpy as jnp

from ramda_jax import _validation
from ramda_jax.regularizers import Regularizer
from ramda_jax.solvers import base, splitting
from ramda_jax.subproblem import Block, Subproblem, Whole


@dataclasses.dataclass(frozen=True)
class DouglasRachford(base.WholeSolver):
    """Douglas-Rachford splitting with Anderson's extrapolation, warm-started in primal and dual.

    The default for the nuclear norm. One prox, that is one decomposition, per iteration:

      z = prox_{w psi / sigma}(m),   s = D z - b + sigma (m - z) in dQ(z),   m <- m - s / (D + sigma),   b = D x0 - v.

    D is inverted entry by entry: unlike proximal gradient's, the rate does not suffer from entries of D that are far
    from the largest. It stops when both halves of condition (7) are certified: ||s|| is small, and
    <s, W - z> + 1/2 <W - z, D (W - z)> >= 0, which proves Q(z) <= Q(W) for W = W^{t-1}. Where `max_iterations` comes
    first, five iterations of the paper's solver from W^{t-1} compete, and the lower Q wins. It keeps two arrays of the
    parameter's size (z and its dual) between steps, and works in about a dozen.

    Args:
      tolerance: stop when the certified residual ||s|| <= tolerance ||D x0 - v||. None: 1e-3, or 1e-13 for float64.
      max_iterations: at most; >= 1. None: 20, or 5,000 for float64, which is there for verification.

    Raises:
      ValueError: for constants out of range.

    Example:
      >>> import ramda_jax as rj
      >>> tx = rj.ramda(1e-2, rj.NuclearNorm(1e-3), solver=rj.DouglasRachford(tolerance=1e-4))

    Source: Lions & Mercier, Splitting algorithms for the sum of two nonlinear operators, SIAM J. Numer. Anal. 1979;
    Walker & Ni, Anderson acceleration for fixed-point iterations, SIAM J. Numer. Anal. 2011.
    """

    tolerance: float | None = None
    max_iterations: int | None = None

    def __post_init__(self) -> None:
        if self.tolerance is not None:
            _validation.check_positive("DouglasRachford.tolerance", self.tolerance)
        if self.max_iterations is not None:
            _validation.check_integer("DouglasRachford.max_iterations", self.max_iterations, 1)

    def supports(self, psi: Regularizer) -> bool:
        return psi.convex

    def init(self, block: Block, start: chex.Array, dtype: chex.ArrayDType) -> Any:
        """(What, its dual / w), stacked; zeros: nothing known."""
        return jnp.stack([jnp.zeros_like(start, dtype=dtype)] * 2)

    def solve_one(
        self, problem: Whole, warm: Any
    ) -> tuple[chex.Array, Any, chex.Array, chex.Array]:
        double = warm.dtype == jnp.float64
        settings = splitting.Settings(
            self.max_iterations or (5000 if double else 20),
            self.tolerance or (1e-13 if double else 1e-3),
        )
        smooth, weight = problem.smooth, problem.weight
        smooth = smooth._replace(d=smooth.d * jnp.ones_like(problem.start))
        start = jnp.where(jnp.any(warm != 0), warm[0], problem.start)
        found = splitting.minimise(
            problem._replace(smooth=smooth), start, weight * warm[1], settings
        )
        dual = jnp.where(weight > 0, found.dual / jnp.where(weight > 0, weight, 1.0), 0.0)
        return found.x, jnp.stack([found.x, dual]), found.iterations, found.residual

    def recall(self, problem: Subproblem, warm: Any) -> tuple[chex.Array, ...]:
        return problem.split(warm[0])
