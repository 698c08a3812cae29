"""ProxAdamW: ProxGen with Adam's metric and decoupled weight decay."""

import dataclasses
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from ramda_jax import model as base
from ramda_jax.models.adam import Adam
from ramda_jax.solvers import Solver
from ramda_jax.transform import proximal_transformation


def _pieces(arrays, scalars):
    """The subproblem times eta: v = eta mhat_t, x0 = (1 - eta wd) W^{t-1}, D = sqrt(nhat_t) + eps."""
    grad_average, grad_sq_average, params = arrays
    step, shrink, correction, eps = scalars
    return step * grad_average, shrink * params, jnp.sqrt(grad_sq_average / correction) + eps


class ProxAdamWState(NamedTuple):
    """Adam's moments.

    Attributes:
      grad_average: m_t = b1 m_{t-1} + (1 - b1) G_t.
      grad_sq_average: n_t = b2 n_{t-1} + (1 - b2) G_t^2.
      grad_sq_max: the running maximum of n_t (AMSGrad), or None.
    """

    grad_average: chex.ArrayTree
    grad_sq_average: chex.ArrayTree
    grad_sq_max: chex.ArrayTree | None


@dataclasses.dataclass(frozen=True)
class ProxAdamW(Adam):
    """Hyperparameters of ProxAdamW; see `prox_adamw`."""

    amsgrad: bool

    def init(self, params: chex.ArrayTree) -> ProxAdamWState:
        largest = base.zeros_like(params) if self.amsgrad else None
        return ProxAdamWState(base.zeros_like(params), base.zeros_like(params), largest)

    def accumulate(
        self,
        state: ProxAdamWState,
        grads: chex.ArrayTree,
        params: chex.ArrayTree,
        count: chex.Array,
    ) -> ProxAdamWState:
        first, second = self.moments(state.grad_average, state.grad_sq_average, grads, count)
        largest = None
        if self.amsgrad:
            largest = jax.tree.map(jnp.maximum, state.grad_sq_max, second)
        return ProxAdamWState(first, second, largest)

    def subproblem(
        self, state: ProxAdamWState, params: chex.ArrayTree, count: chex.Array
    ) -> base.Subproblem:
        eta, shrink, correction1, correction2, eps = self.constants(count)
        squares = state.grad_sq_max if self.amsgrad else state.grad_sq_average
        trees = (state.grad_average, squares, params)
        scalars = (eta / correction1, shrink, correction2, eps)
        return base.Subproblem(trees, scalars, eta, _pieces)


def prox_adamw(
    learning_rate: Any,
    regularizer: Any,
    *,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    weight_decay: Any = 0.0,
    amsgrad: bool = False,
    solver: Solver | None = None,
    accumulator_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """ProxAdamW (ProxGen with Adam): AdamW whose step minimises over the regularizer, too.

    With Adam's bias-corrected moments mhat_t and nhat_t:

      W^t = argmin_X  <mhat_t, X> + 1 / (2 eta) <X - x0, (sqrt(nhat_t) + eps) (X - x0)> + psi(X),  x0 = (1 - eta wd) W^{t-1}

    With regularizer=None this is AdamW. It must be the last transformation of a chain. The subproblem is solved times eta,
    and so is the residual of `solver_stats` stated.

    Args:
      learning_rate, regularizer, solver, accumulator_dtype: as in `ramda`.
      b1, b2: decay rates of the moments, in [0, 1).
      eps: > 0, added to the root of the second moment.
      weight_decay: >= 0, decoupled (times the learning rate).
      amsgrad: use the running maximum of the second moment (before its bias correction, as PyTorch does).

    Returns:
      An `optax.GradientTransformationExtraArgs`; `update` needs `params`.

    Raises:
      ValueError: as `ramda`.

    Example:
      >>> import jax.numpy as jnp, ramda_jax as rj
      >>> tx = rj.prox_adamw(1e-3, rj.GroupLasso(0.1), weight_decay=1e-2)
      >>> state = tx.init({"kernel": jnp.ones((3, 2))})

    Source: Yun, Lozano & Yang, Adaptive proximal gradient methods for structured neural networks, NeurIPS 2021.
    """
    model = ProxAdamW(learning_rate, b1, b2, eps, weight_decay, bool(amsgrad))
    return proximal_transformation(model, regularizer, solver, accumulator_dtype)
