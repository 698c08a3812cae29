"""Proximal gradient solvers: any regularizer with a prox."""

import dataclasses

import chex
import jax.numpy as jnp

from ramda_jax import _validation, first_order
from ramda_jax.regularizers.base import Regularizer
from ramda_jax.regularizers.group import GroupNorm
from ramda_jax.solvers import base


def _check(self: "ProximalGradient | AcceleratedProximalGradient") -> None:
    name = type(self).__name__
    if self.max_iterations is not None:
        _validation.check_integer(f"{name}.max_iterations", self.max_iterations, 1)
    _validation.check_integer(f"{name}.min_iterations", self.min_iterations, 1)
    if self.rtol is not None:
        _validation.check_nonnegative(f"{name}.rtol", self.rtol)
    if self.tolerance is not None:
        _validation.check_positive(f"{name}.tolerance", self.tolerance)


def _active(problem: base.LeafProblem, smooth: first_order.Quadratic) -> chex.Array:
    """False in the groups which the screening rule proves to be zero at the optimum; the parameter's shape."""
    psi = problem.psi
    zero = psi.screen(smooth.at_zero(), smooth.d, problem.weight)
    if isinstance(psi, GroupNorm):
        zero = jnp.expand_dims(zero, psi.axes(problem.start.ndim))
    return ~zero & jnp.ones_like(problem.start, bool)


def _best(
    smooth: first_order.Quadratic, psi: Regularizer, weight: chex.Array, *points: chex.Array
) -> chex.Array:
    """The point with the smallest Q."""
    best, best_value = points[0], psi.value(points[0])
    for point in points[1:]:
        value = psi.value(point)
        better = smooth.decrease(best, point) + weight * (best_value - value) > 0
        best, best_value = jnp.where(better, point, best), jnp.where(better, value, best_value)
    return best


@dataclasses.dataclass(frozen=True)
class ProximalGradient(base.PerArraySolver):
    """The RAMDA paper's solver (Algorithm 2), with screening; for every regularizer that has a prox.

    Z_j = prox_{theta w psi}(Z_{j-1} - theta (v + D (Z_{j-1} - x0))), theta = 1 / max D (half of it if psi is nonconvex),
    from W^{t-1}. Per parameter array.

    Args:
      max_iterations: at most; >= 1.
      rtol: stop when (Q(Z_{j-1}) - Q(Z_j)) / (|Q(Z_j)| + 1) < rtol; None: no such rule. 1e-8 is the paper's, and
        below the resolution of float32.
      tolerance: stop when the certified residual ||s|| <= tolerance ||D x0 - v||; None: no such rule.
      min_iterations: before the rule of `rtol` may stop (the paper's ProxGen uses 2).

    Raises:
      ValueError: for constants out of range.

    Source: Huang & Lee, NeurIPS 2024, Algorithm 2.
    """

    max_iterations: int = 100
    rtol: float | None = 1e-8
    tolerance: float | None = None
    min_iterations: int = 1

    def __post_init__(self) -> None:
        _check(self)

    def supports(self, psi: Regularizer) -> bool:
        return True

    def solve_one(self, problem: base.LeafProblem, warm: chex.Array) -> base.LeafSolution:
        smooth = problem.smooth()
        settings = first_order.Settings(
            self.max_iterations, self.min_iterations, self.rtol, self.tolerance, accelerated=False
        )
        result = first_order.minimise(
            smooth, problem.psi, problem.weight, problem.start, _active(problem, smooth), settings
        )
        return base.LeafSolution(result.x, warm, result.iterations, result.residual)


@dataclasses.dataclass(frozen=True)
class AcceleratedProximalGradient(base.PerArraySolver):
    """Proximal gradient with Nesterov's momentum and adaptive restart, warm-started from the last solution.

    It starts from whichever of W^{t-1}, the last step's solution and x0 - v / D has
    the smallest Q, and never accepts a step that increases Q. It keeps one array of the parameter's size.

    Args:
      max_iterations: at most; >= 1. None: 500, or 20,000 for float64, which is there for verification.
      rtol: as in `ProximalGradient`; None (the default): no such rule.
      tolerance: stop when the certified residual ||s|| <= tolerance ||D x0 - v||. None: 1e-4, or 1e-13 for float64.
      min_iterations: before the rule of `rtol` may stop.

    Raises:
      ValueError: for constants out of range.

    Source: Beck & Teboulle, FISTA, SIAM J. Imaging Sciences 2009; O'Donoghue & Candes, Adaptive restart for accelerated
    gradient schemes, FoCM 2015.
    """

    max_iterations: int | None = None
    rtol: float | None = None
    tolerance: float | None = None
    min_iterations: int = 1

    def __post_init__(self) -> None:
        _check(self)

    def supports(self, psi: Regularizer) -> bool:
        return True

    def init(self, psi: Regularizer, param: chex.Array, dtype: chex.ArrayDType) -> chex.Array:
        return jnp.zeros_like(param, dtype=dtype)

    def solve_one(self, problem: base.LeafProblem, warm: chex.Array) -> base.LeafSolution:
        smooth, psi, weight = problem.smooth(), problem.psi, problem.weight
        double = warm.dtype == jnp.float64
        limit = self.max_iterations or (20_000 if double else 500)
        tolerance = self.tolerance or (1e-13 if double else 1e-4)
        settings = first_order.Settings(
            limit, self.min_iterations, self.rtol, tolerance, accelerated=True
        )
        start = _best(smooth, psi, weight, problem.start, warm, smooth.x0 - smooth.v / smooth.d)
        active = _active(problem, smooth)
        result = first_order.minimise(smooth, psi, weight, start, active, settings)
        return base.LeafSolution(result.x, result.x, result.iterations, result.residual)
