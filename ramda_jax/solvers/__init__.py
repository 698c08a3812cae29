"""Solvers of the common subproblem."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ramda_jax import _numerics
from ramda_jax.regularizers import GroupNorm, Regularizer
from ramda_jax.regularizers.base import set_exact_prox
from ramda_jax.solvers.base import Arrangement, Solver, WholeSolver, together
from ramda_jax.solvers.closed_form import ClosedForm
from ramda_jax.solvers.douglas_rachford import DouglasRachford
from ramda_jax.solvers.newton import Newton
from ramda_jax.solvers.proximal_gradient import (
    AcceleratedProximalGradient,
    ProximalGradient,
)
from ramda_jax.solvers.scores import scores
from ramda_jax.subproblem import Part, Subproblem, single

__all__ = [
    "AcceleratedProximalGradient",
    "Arrangement",
    "ClosedForm",
    "DouglasRachford",
    "Newton",
    "ProximalGradient",
    "Solver",
    "WholeSolver",
    "choose",
    "scores",
    "together",
    "weighted_prox",
]

# Iterations of a prox that has no closed form, to (nearly) working precision.
_PROX_ITERATIONS = 5000


def choose(solver: Solver | None, psi: Regularizer, path: str, *, scalar_metric: bool) -> Solver:
    """The solver of one leaf: the user's, or the best exact one.

    Args:
      solver: what the user asked for; None: choose.
      psi: the leaf's regularizer.
      path: the leaf's path, for the error.
      scalar_metric: whether D is a multiple of the identity (then one prox is exact).

    Raises:
      ValueError: if `solver` cannot handle `psi`.
    """
    if solver is not None:
        if not solver.supports(psi):
            raise ValueError(
                f"solver {type(solver).__name__} cannot solve {type(psi).__name__}, the regularizer of {path!r}; "
                "use solver=None, ProximalGradient or AcceleratedProximalGradient."
            )
        return solver
    # With one D for all, the scalar equation of a convex group norm is solved by its start.
    if isinstance(psi, GroupNorm) and (psi.convex or not scalar_metric):
        return Newton()
    if scalar_metric or psi.closed_form:
        return ClosedForm()
    return DouglasRachford() if psi.convex else AcceleratedProximalGradient()


def weighted_prox(psi: Regularizer, x: jax.Array, metric: jax.Array, step: ArrayLike) -> jax.Array:
    """argmin_z 1/2 <z - x, metric (z - x)> + step psi(z) by the exact solver for psi; see `Regularizer.weighted_prox`."""
    wide = x.astype(_numerics.at_least_float32(x.dtype))
    d = jnp.asarray(metric, wide.dtype) * jnp.ones_like(wide)
    weight = jnp.asarray(step, wide.dtype)
    block = single(0, "", tuple(x.shape), psi)
    solver = choose(None, psi, "", scalar_metric=False)
    if isinstance(solver, DouglasRachford):
        solver = DouglasRachford(1e-13 if x.dtype == jnp.float64 else 1e-6, _PROX_ITERATIONS)
    problem = Subproblem(block, (Part((d,), wide),), (), _around_start, weight, psi)
    warm = solver.init(block, wide, wide.dtype)
    (solution,) = solver.solve([problem], [warm], together)
    return solution.x[0].astype(x.dtype)


def _around_start(
    arrays: tuple[jax.Array, ...], start: jax.Array, scalars: tuple[jax.Array, ...]
) -> tuple[jax.Array, ...]:
    """The `pieces` of a prox in the metric `arrays`: v = 0, x0 = the point."""
    return jnp.zeros_like(start), start, *arrays


set_exact_prox(weighted_prox)
