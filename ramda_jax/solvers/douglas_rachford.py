"""Douglas-Rachford splitting: any convex regularizer with a prox, however badly conditioned the metric."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ramda_jax import _validation
from ramda_jax.regularizers import Regularizer
from ramda_jax.solvers import base, splitting
from ramda_jax.subproblem import Block, Subproblem, Whole

# The default for the residual, of ||D x0 - v|| and of ||D (z - x0)||: docs/mathematics.md says why both.
_TOLERANCE, _SHARE = 1e-2, 0.1


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

    The solution of the last step with its dual has an s in this step's problem, too, which no decomposition is needed for.
    While it is small enough, and the other half of (7) holds, the solution stays: a step of 0 iterations. (Where psi is
    a norm times a strength, as the nuclear norm is: elsewhere a dual may not survive a change of the strengths.)

    Args:
      tolerance: stop when the certified residual ||s|| <= tolerance ||D x0 - v||. None: 1e-2, and at most
        0.1 ||D (z - x0)||, a share of the move from x0; or 1e-13 for float64.
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

    def init(self, block: Block, start: jax.Array, dtype: DTypeLike) -> base.Warm:
        """(What, its dual over the level), stacked; zeros: nothing known."""
        return jnp.stack([jnp.zeros_like(start, dtype=dtype)] * 2)

    def solve_one(
        self, problem: Whole, warm: base.Warm
    ) -> tuple[jax.Array, base.Warm, jax.Array, jax.Array]:
        assert warm is not None  # as `init` gives it
        problem, unit = problem.in_units()
        smooth, psi = problem.smooth, problem.psi
        everywhere = smooth.d * jnp.ones_like(problem.start)
        problem = problem._replace(smooth=smooth._replace(d=everywhere))
        start = jnp.where(jnp.any(warm != 0), warm[0], problem.start)
        # The dual is kept as a subgradient of the norm, which no weight and no strength enters.
        level = problem.weight * (getattr(psi, str(psi.scored)) if psi.is_norm else 1.0)
        known = jnp.any(warm[1] != 0) & psi.is_norm
        settings = self._settings(warm.dtype)
        found = splitting.minimise(problem, start, level * warm[1], known, settings)
        dual = jnp.where(level > 0, found.dual / jnp.where(level > 0, level, 1.0), 0.0)
        # What stays, stays to the last bit: nothing drifts over many steps.
        new = jnp.where(found.iterations > 0, jnp.stack([found.x, dual]), warm)
        return found.x, new, found.iterations, unit * found.residual

    def _settings(self, dtype: DTypeLike) -> splitting.Settings:
        double = dtype == jnp.float64
        most = self.max_iterations or (5000 if double else 20)
        if self.tolerance is None and not double:
            return splitting.Settings(most, _TOLERANCE, _SHARE)
        return splitting.Settings(most, self.tolerance or 1e-13)

    def recall(self, problem: Subproblem, warm: base.Warm) -> tuple[jax.Array, ...]:
        assert warm is not None
        return problem.split(warm[0])
