"""ProxAdamW: ProxGen with Adam's metric and decoupled weight decay."""

import dataclasses

import jax
import optax
from jax.typing import DTypeLike

from ramda_jax import _numerics
from ramda_jax._numerics import Schedulable
from ramda_jax.assignment import Regularization
from ramda_jax.methods import adam, base
from ramda_jax.sharding import Placement
from ramda_jax.solvers import Solver
from ramda_jax.transform import proximal_transformation


def _pieces(arrays, param, scalars):
    """The subproblem times eta: v = eta mhat_t, x0 = (1 - eta wd) W^{t-1}, D = sqrt(nhat_t) + eps."""
    step, shrink, correction, eps = scalars
    # Not the root of the quotient, which may be infinite.
    metric = _numerics.sqrt(arrays[-1]) / _numerics.sqrt(correction) + eps
    return step * arrays[0], shrink * param, metric


@dataclasses.dataclass(frozen=True)
class ProxAdamW(adam.Adam):
    """Hyperparameters of ProxAdamW; see `prox_adamw`."""

    def terms(self, state: adam.AdamState, count: jax.Array) -> base.Terms:
        eta, shrink, correction1, correction2, eps = self.constants(count)
        return base.Terms(eta, (eta / correction1, shrink, correction2, eps), _pieces)


def prox_adamw(
    learning_rate: Schedulable,
    regularizer: Regularization,
    *,
    b1: Schedulable = 0.9,
    b2: Schedulable = 0.999,
    eps: Schedulable = 1e-8,
    weight_decay: Schedulable = 0.0,
    amsgrad: bool = False,
    solver: Solver | None = None,
    accumulator_dtype: DTypeLike | None = None,
    placement: Placement | None = None,
) -> optax.GradientTransformationExtraArgs:
    """ProxAdamW (ProxGen with Adam): AdamW whose step minimises over the regularizer, too.

    With Adam's bias-corrected moments mhat_t and nhat_t:

      W^t = argmin_X  <mhat_t, X> + 1 / (2 eta) <X - x0, (sqrt(nhat_t) + eps) (X - x0)> + psi(X),  x0 = (1 - eta wd) W^{t-1}

    With regularizer=None this is AdamW. It must be the last transformation of a chain. The subproblem is solved times eta,
    and so is the residual of `solver_stats` stated.

    Args:
      learning_rate, regularizer, solver, accumulator_dtype, placement: as in `ramda`.
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
    method = ProxAdamW(learning_rate, b1, b2, eps, weight_decay, amsgrad=bool(amsgrad))
    return proximal_transformation(method, regularizer, solver, accumulator_dtype, placement)
