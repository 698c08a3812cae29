"""Solvers of the common subproblem."""

from ramda_jax.regularizers import GroupNorm, Regularizer
from ramda_jax.solvers.base import LeafProblem, LeafSolution, Solver
from ramda_jax.solvers.closed_form import ClosedForm
from ramda_jax.solvers.douglas_rachford import DouglasRachford
from ramda_jax.solvers.newton import Newton
from ramda_jax.solvers.proximal_gradient import (
    AcceleratedProximalGradient,
    ProximalGradient,
)

__all__ = [
    "AcceleratedProximalGradient",
    "ClosedForm",
    "DouglasRachford",
    "LeafProblem",
    "LeafSolution",
    "Newton",
    "ProximalGradient",
    "Solver",
    "choose",
]


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
