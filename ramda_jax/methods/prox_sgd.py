"""ProxSGD: proximal stochastic gradient descent with momentum."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from ramda_jax import _numerics, _validation
from ramda_jax._numerics import Schedulable
from ramda_jax.assignment import Regularization
from ramda_jax.methods import base
from ramda_jax.sharding import Placement
from ramda_jax.transform import proximal_transformation
from ramda_jax.trees import ArrayTree


def _accumulate(arrays, grad, scalars):
    """m_t = (1 - c_t) m_{t-1} + c_t G_t."""
    (grad_average,) = arrays
    older, newest = scalars
    return (_numerics.saturated(older * grad_average + newest * grad, grad),)


def _pieces(arrays, param, scalars):
    """The subproblem times eta: v = eta m_t, x0 = W^{t-1}, D = 1 (well defined at eta = 0, too)."""
    return scalars[0] * arrays[0], param, jnp.ones_like(scalars[0])


class ProxSgdState(NamedTuple):
    """grad_average: m_t = (1 - c) m_{t-1} + c G_t, m_0 = 0."""

    grad_average: ArrayTree

    @property
    def accumulators(self) -> tuple[str, ...]:
        return ("grad_average",)


@dataclasses.dataclass(frozen=True)
class ProxSgd(base.Method):
    """Hyperparameters of ProxSGD; see `prox_sgd`."""

    scalar_metric: ClassVar[bool] = True
    state = ProxSgdState
    accumulate = staticmethod(_accumulate)
    learning_rate: Schedulable
    momentum: Schedulable

    def init(self, params: ArrayTree) -> ProxSgdState:
        return ProxSgdState(base.zeros_like(params))

    def begin(
        self, state: ProxSgdState, params: ArrayTree, count: jax.Array
    ) -> tuple[ProxSgdState, tuple[jax.Array, ...]]:
        newest = _numerics.evaluate(self.momentum, count)
        return state, (1 - newest, newest)

    def terms(self, state: ProxSgdState, count: jax.Array) -> base.Terms:
        learning_rate = _numerics.evaluate(self.learning_rate, count)
        return base.Terms(learning_rate, (learning_rate,), _pieces)


def prox_sgd(
    learning_rate: Schedulable,
    regularizer: Regularization,
    *,
    momentum: Schedulable = 0.1,
    accumulator_dtype: DTypeLike | None = None,
    placement: Placement | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Proximal SGD with momentum.

      m_t = (1 - c) m_{t-1} + c G_t
      W^t = prox_{eta psi}(W^{t-1} - eta m_t) = argmin_X  <m_t, X> + 1 / (2 eta) ||X - W^{t-1}||^2 + psi(X)

    It must be the last transformation of a chain. With regularizer=None and momentum=1 this is `optax.sgd`.

    Args:
      learning_rate, regularizer, accumulator_dtype, placement: as in `ramda`.
      momentum: c in (0, 1], the weight of the newest gradient; 1 = no momentum.

    Returns:
      An `optax.GradientTransformationExtraArgs`; `update` needs `params`.

    Raises:
      ValueError: as `ramda`.

    Example:
      >>> import jax.numpy as jnp, ramda_jax as rj
      >>> tx = rj.prox_sgd(0.1, rj.GroupLasso(0.1))
      >>> state = tx.init({"kernel": jnp.ones((3, 2))})

    Source: Yang, Yuan, Chatzimichailidis, van Sloun, Lei & Chatzinotas, ProxSGD, ICLR 2020.
    """
    _validation.check_positive("learning_rate", learning_rate)
    _validation.check_momentum(momentum)
    return proximal_transformation(
        ProxSgd(learning_rate, momentum), regularizer, None, accumulator_dtype, placement
    )
