"""RMDA: regularized dual averaging with momentum, no adaptive metric."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from ramda_jax import _numerics, _validation
from ramda_jax._numerics import Schedulable
from ramda_jax.assignment import Regularization
from ramda_jax.methods import base, dual_averaging
from ramda_jax.sharding import Placement
from ramda_jax.transform import proximal_transformation
from ramda_jax.trees import ArrayTree


def _accumulate(arrays, grad, scalars):
    """V_t = V_{t-1} + s_t G_t; W^0 stays."""
    grad_sum, anchor = arrays
    return dual_averaging.add(grad_sum, scalars[0] * grad, grad, scalars), anchor


def _pieces(arrays, param, scalars):
    """v = V_t, x0 = W^0, D = sqrt(t)."""
    grad_sum, anchor = arrays
    return grad_sum, anchor, scalars[0]


class RmdaState(NamedTuple):
    """The dual averages of the current stage.

    Attributes:
      clock: t and alpha_t.
      grad_sum: V_t = sum of s_i G_i.
      anchor: W^0, the parameters at the stage's start.
    """

    clock: dual_averaging.Clock
    grad_sum: ArrayTree
    anchor: ArrayTree

    @property
    def accumulators(self) -> tuple[str, ...]:
        return ("grad_sum", "anchor")

    def terms(self) -> base.Terms:
        """<V_t, X> + sqrt(t) / 2 ||X - W^0||^2 + alpha_t psi(X)."""
        metric = jnp.sqrt(_numerics.as_scalar(self.clock.step))
        return base.Terms(self.clock.weight_sum, (metric,), _pieces)


@dataclasses.dataclass(frozen=True)
class Rmda(base.Method):
    """Hyperparameters of RMDA; see `rmda`."""

    scalar_metric: ClassVar[bool] = True
    state = RmdaState
    accumulate = staticmethod(_accumulate)
    learning_rate: Schedulable
    momentum: Schedulable
    restart_steps: tuple[int, ...]

    def init(self, params: ArrayTree) -> RmdaState:
        return RmdaState(dual_averaging.start_clock(), base.zeros_like(params), params)

    def begin(
        self, state: RmdaState, params: ArrayTree, count: jax.Array
    ) -> tuple[RmdaState, tuple[jax.Array, ...]]:
        restart, _ = dual_averaging.restarts(count, self.restart_steps)
        learning_rate = _numerics.evaluate(self.learning_rate, count)
        clock, weight = dual_averaging.tick(state.clock, learning_rate, restart)
        anchor = dual_averaging.new_anchor(restart, params, state.anchor)
        state = state._replace(clock=clock, anchor=anchor)
        return state, dual_averaging.step_scalars(weight, restart)

    def terms(self, state: RmdaState, count: jax.Array) -> base.Terms:
        return state.terms()

    def stages(self) -> tuple[int, ...]:
        return self.restart_steps

    def averaging(self, count: jax.Array) -> jax.Array:
        return _numerics.evaluate(self.momentum, count)


def rmda(
    learning_rate: Schedulable,
    regularizer: Regularization,
    *,
    momentum: Schedulable = 0.1,
    restart_steps: tuple[int, ...] = (),
    accumulator_dtype: DTypeLike | None = None,
    placement: Placement | None = None,
) -> optax.GradientTransformationExtraArgs:
    """RMDA: RAMDA's predecessor, with the metric sqrt(t) I.

    With s_t = learning_rate_t sqrt(t), alpha_t = sum s_i, V_t = sum s_i G_i:

      What_t = argmin_X  alpha_t psi(X) + <V_t, X> + sqrt(t) / 2 ||X - W^0||^2
      W^t    = (1 - c_t) W^{t-1} + c_t What_t

    One prox per step, no iteration. It must be the last transformation of a chain.

    Args:
      learning_rate, regularizer, restart_steps, accumulator_dtype, placement: as in `ramda`.
      momentum: c_t in (0, 1].

    Returns:
      An `optax.GradientTransformationExtraArgs`; `update` needs `params`.

    Raises:
      ValueError: as `ramda`.

    Example:
      >>> import jax.numpy as jnp, ramda_jax as rj
      >>> tx = rj.rmda(0.1, rj.GroupLasso(0.1))
      >>> state = tx.init({"kernel": jnp.ones((3, 2))})

    Source: Huang & Lee, Training structured neural networks through manifold identification and variance reduction,
    ICLR 2022.
    """
    _validation.check_positive("learning_rate", learning_rate)
    _validation.check_momentum(momentum)
    steps = _validation.check_steps("restart_steps", restart_steps)
    method = Rmda(learning_rate, momentum, steps)
    return proximal_transformation(method, regularizer, None, accumulator_dtype, placement)
