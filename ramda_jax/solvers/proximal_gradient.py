"""Proximal gradient solvers: any regularizer with a prox."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ramda_jax import _validation
from ramda_jax.regularizers import GroupNorm, Regularizer
from ramda_jax.solvers import base, first_order
from ramda_jax.subproblem import Block, Quadratic, Subproblem, Whole


def _check(self: "ProximalGradient | AcceleratedProximalGradient") -> None:
    name = type(self).__name__
    if self.max_iterations is not None:
        _validation.check_integer(f"{name}.max_iterations", self.max_iterations, 1)
    _validation.check_integer(f"{name}.min_iterations", self.min_iterations, 1)
    if self.rtol is not None:
        _validation.check_nonnegative(f"{name}.rtol", self.rtol)
    if self.tolerance is not None:
        _validation.check_positive(f"{name}.tolerance", self.tolerance)


def _active(problem: Whole) -> jax.Array:
    """False in the groups which their scores prove to be zero at the optimum; the shape of the block as one array."""
    psi, smooth = problem.psi, problem.smooth
    everywhere = jnp.ones_like(problem.start, bool)
    if psi.scored is None or psi.structure != "groups":
        return everywhere
    scores = psi.scores(smooth.at_zero(), smooth.d, problem.weight)
    alive = ~(scores <= getattr(psi, psi.scored))  # a NaN is alive
    if isinstance(psi, GroupNorm):
        alive = jnp.expand_dims(alive, psi.axes(problem.start.ndim))
    return alive & everywhere


def _best(smooth: Quadratic, psi: Regularizer, weight: jax.Array, *points: jax.Array) -> jax.Array:
    """The point with the smallest Q."""
    best, best_value = points[0], psi.value(points[0])
    for point in points[1:]:
        value = psi.value(point)
        better = smooth.decrease(best, point) + weight * (best_value - value) > 0
        best, best_value = jnp.where(better, point, best), jnp.where(better, value, best_value)
    return best


class _KeepsSolution(base.WholeSolver):
    """What is kept between steps is the solution itself."""

    def supports(self, psi: Regularizer) -> bool:
        return True

    def init(self, block: Block, start: jax.Array, dtype: DTypeLike) -> base.Warm:
        return jnp.zeros_like(start, dtype=dtype)

    def recall(self, problem: Subproblem, warm: base.Warm) -> tuple[jax.Array, ...]:
        assert warm is not None  # of `init`
        return problem.split(warm)


@dataclasses.dataclass(frozen=True)
class ProximalGradient(_KeepsSolution):
    """The RAMDA paper's solver (Algorithm 2), for every regularizer that has a prox; groups dead by score left out.

    Z_j = prox_{theta w psi}(Z_{j-1} - theta (v + D (Z_{j-1} - x0))), theta = 1 / max D (half of it if psi is nonconvex),
    from W^{t-1}. Per block. It keeps one array of the block's size, What,
    which `structured_params(..., values="minimizer")` returns.

    Args:
      max_iterations: at most; >= 1.
      rtol: stop when (Q(Z_{j-1}) - Q(Z_j)) / (|Q(Z_j)| + 1) < rtol; None: no such rule. 1e-8 is the paper's, and
        below the resolution of float32.
      tolerance: stop when the certified residual ||s|| <= tolerance ||D x0 - v||; None: no such rule.
      min_iterations: before the rule of `rtol` may stop (the paper's ProxGen uses 2).

    Raises:
      ValueError: for constants out of range.

    Example:
      >>> import ramda_jax as rj
      >>> tx = rj.ramda(0.1, rj.GroupLasso(0.1), solver=rj.ProximalGradient())  # as in the paper
      >>> low_rank = rj.ramda(0.1, rj.NuclearNorm(0.1), solver=rj.ProximalGradient(max_iterations=5, rtol=1e-3))

    Source: Huang & Lee, NeurIPS 2024, Algorithm 2.
    """

    max_iterations: int = 100
    rtol: float | None = 1e-8
    tolerance: float | None = None
    min_iterations: int = 1

    def __post_init__(self) -> None:
        _check(self)

    def solve_one(
        self, problem: Whole, warm: base.Warm
    ) -> tuple[jax.Array, base.Warm, jax.Array, jax.Array]:
        problem, unit = problem.in_units()
        settings = first_order.Settings(
            self.max_iterations, self.min_iterations, self.rtol, self.tolerance, accelerated=False
        )
        x, residual, iterations = first_order.minimise(
            problem, problem.start, _active(problem), settings, 1 / unit
        )
        return x, x, iterations, unit * residual


@dataclasses.dataclass(frozen=True)
class AcceleratedProximalGradient(_KeepsSolution):
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

    Example:
      >>> import ramda_jax as rj
      >>> solver = rj.AcceleratedProximalGradient(tolerance=1e-3)
      >>> tx = rj.ramda(0.1, rj.GroupMCP(0.1, gamma=3.0), solver=solver)

    Source: Beck & Teboulle, FISTA, SIAM J. Imaging Sciences 2009; O'Donoghue & Candes, Adaptive restart for accelerated
    gradient schemes, FoCM 2015.
    """

    max_iterations: int | None = None
    rtol: float | None = None
    tolerance: float | None = None
    min_iterations: int = 1

    def __post_init__(self) -> None:
        _check(self)

    def solve_one(
        self, problem: Whole, warm: base.Warm
    ) -> tuple[jax.Array, base.Warm, jax.Array, jax.Array]:
        assert warm is not None  # as `init` gives it
        problem, unit = problem.in_units()
        smooth = problem.smooth
        double = warm.dtype == jnp.float64
        settings = first_order.Settings(
            self.max_iterations or (20_000 if double else 500),
            self.min_iterations,
            self.rtol,
            self.tolerance or (1e-13 if double else 1e-4),
            accelerated=True,
        )
        free = smooth.x0 - smooth.v / smooth.d
        start = _best(smooth, problem.psi, problem.weight, problem.start, warm, free)
        x, residual, iterations = first_order.minimise(
            problem, start, _active(problem), settings, 1 / unit
        )
        return x, x, iterations, unit * residual
