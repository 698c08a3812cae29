"""RAMDA: regularized adaptive momentum dual averaging."""

import dataclasses
from typing import NamedTuple

import jax
import optax
from jax.typing import DTypeLike

from ramda_jax import _numerics, _validation
from ramda_jax._numerics import Schedulable
from ramda_jax.assignment import Regularization
from ramda_jax.methods import base, dual_averaging
from ramda_jax.sharding import Placement
from ramda_jax.solvers import Solver
from ramda_jax.transform import proximal_transformation
from ramda_jax.trees import ArrayTree


def _accumulate(arrays, grad, scalars):
    """V_t = V_{t-1} + s_t G_t, U_t = U_{t-1} + s_t G_t^2; W^0 stays."""
    grad_sum, grad_sq_sum, anchor = arrays
    weighted = scalars[0] * grad
    return (
        dual_averaging.add(grad_sum, weighted, grad, scalars),
        dual_averaging.add(grad_sq_sum, weighted * grad, grad, scalars),
        anchor,
    )


def _pieces(arrays, param, scalars):
    """v = V_t, x0 = W^0, D = cbrt(U_t) + eps."""
    grad_sum, grad_sq_sum, anchor = arrays
    return grad_sum, anchor, _numerics.cbrt(grad_sq_sum) + scalars[0]


class RamdaState(NamedTuple):
    """The dual averages of the current stage.

    Attributes:
      clock: t and alpha_t.
      eps: the stage's eps.
      grad_sum: V_t = sum of s_i G_i.
      grad_sq_sum: U_t = sum of s_i G_i * G_i.
      anchor: W^0, the parameters at the stage's start.
    """

    clock: dual_averaging.Clock
    eps: jax.Array
    grad_sum: ArrayTree
    grad_sq_sum: ArrayTree
    anchor: ArrayTree

    @property
    def accumulators(self) -> tuple[str, ...]:
        return ("grad_sum", "grad_sq_sum", "anchor")

    def terms(self) -> base.Terms:
        """<V_t, X> + 1/2 <X - W^0, (cbrt(U_t) + eps)(X - W^0)> + alpha_t psi(X)."""
        return base.Terms(self.clock.weight_sum, (self.eps,), _pieces)


@dataclasses.dataclass(frozen=True)
class Ramda(base.Method):
    """Hyperparameters of RAMDA; see `ramda`."""

    state = RamdaState
    accumulate = staticmethod(_accumulate)
    learning_rate: Schedulable
    momentum: Schedulable
    eps: Schedulable
    restart_steps: tuple[int, ...]
    restart_eps_decay: Schedulable

    def init(self, params: ArrayTree) -> RamdaState:
        return RamdaState(
            clock=dual_averaging.start_clock(),
            eps=_numerics.as_scalar(self.eps),
            grad_sum=base.zeros_like(params),
            grad_sq_sum=base.zeros_like(params),
            anchor=params,
        )

    def begin(
        self, state: RamdaState, params: ArrayTree, count: jax.Array
    ) -> tuple[RamdaState, tuple[jax.Array, ...]]:
        restart, stage = dual_averaging.restarts(count, self.restart_steps)
        learning_rate = _numerics.evaluate(self.learning_rate, count)
        clock, weight = dual_averaging.tick(state.clock, learning_rate, restart)
        decay = _numerics.as_scalar(self.restart_eps_decay)
        state = state._replace(
            clock=clock,
            eps=_numerics.as_scalar(self.eps) * decay ** _numerics.as_scalar(stage),
            anchor=dual_averaging.new_anchor(restart, params, state.anchor),
        )
        return state, dual_averaging.step_scalars(weight, restart)

    def terms(self, state: RamdaState, count: jax.Array) -> base.Terms:
        return state.terms()

    def stages(self) -> tuple[int, ...]:
        return self.restart_steps

    def averaging(self, count: jax.Array) -> jax.Array:
        return _numerics.evaluate(self.momentum, count)


def ramda(
    learning_rate: Schedulable,
    regularizer: Regularization,
    *,
    momentum: Schedulable = 0.01,
    eps: Schedulable = 1e-6,
    solver: Solver | None = None,
    restart_steps: tuple[int, ...] = (),
    restart_eps_decay: Schedulable = 0.1,
    accumulator_dtype: DTypeLike | None = None,
    placement: Placement | None = None,
) -> optax.GradientTransformationExtraArgs:
    """RAMDA: dual averaging with an adaptive diagonal metric, momentum, and an exactly solved subproblem.

    With s_t = learning_rate_t sqrt(t), alpha_t = sum s_i, V_t = sum s_i G_i, U_t = sum s_i G_i^2:

      What_t = argmin_X  alpha_t psi(X) + <V_t, X> + 1/2 <X - W^0, (cbrt(U_t) + eps) (X - W^0)>
      W^t    = (1 - c_t) W^{t-1} + c_t What_t

    It must be the last transformation of a chain: what comes after it would move the parameters off the structure.
    W^t gets the zeros of What_t where c_t reaches 1 (`stages`, `final_momentum_schedule`); `structured_params` is a point
    with zeros to deploy at any time. With regularizer=None this is MADGRAD. Gradients that are not finite make the
    parameters NaN, as in Adam, and the residual in `solver_stats` where they are regularized; wrap in
    `optax.apply_if_finite` to skip such steps.

    Args:
      learning_rate: eta_t > 0; a number, a 0-d array or an optax schedule of the 0-based step count.
      regularizer: None, a regularizer (meaning `kernels(regularizer)`), a tree of regularizers and Nones with the
        structure of params, or an assignment (`by_path`, `kernels`, `coupled`).
      momentum: c_t in (0, 1], the weight of What_t; 1 = no averaging. Number, array or schedule.
      eps: > 0, added to the metric; a number or a 0-d array.
      solver: None (the best exact one per regularizer), `Newton`, `DouglasRachford`,
        `ProximalGradient` or `AcceleratedProximalGradient`.
      restart_steps: 0-based step counts at which a new stage starts: t, alpha, V, U are reset, W^0 is the current W.
        The learning rate is not touched: `multistep` lowers it at the same steps.
      restart_eps_decay: > 0; eps is multiplied by it at each restart.
      accumulator_dtype: dtype of V, U, W^0, as a string such as "float32" (a scalar type is callable, and
        `optax.inject_hyperparams` would take it for a schedule); None: the parameter's, but at least float32.
      placement: how the state and the step are spread over devices (`Placement`); None: as parameters and state are.

    Returns:
      An `optax.GradientTransformationExtraArgs`; updates have the parameters' dtypes. `update` needs `params`.

    Raises:
      ValueError: constants out of range (naming argument, value and range), missing params, a regularizer that cannot
        apply to its array (naming path and shape), an assignment that regularizes nothing.

    Example:
      >>> import jax.numpy as jnp, optax, ramda_jax as rj
      >>> params = {"dense": {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}}
      >>> tx = optax.chain(optax.clip_by_global_norm(1.0), rj.ramda(0.1, rj.GroupLasso(0.1), momentum=1.0))
      >>> state = tx.init(params)
      >>> updates, state = tx.update(params, state, params)
      >>> params = optax.apply_updates(params, updates)
      >>> params["dense"]["kernel"].shape
      (3, 2)

    Source: Huang & Lee, Regularized adaptive momentum dual averaging with an efficient inexact subproblem solver for
    training structured neural network, NeurIPS 2024.
    """
    _validation.check_positive("learning_rate", learning_rate)
    _validation.check_momentum(momentum)
    _validation.check_positive("eps", eps, schedule=False)
    _validation.check_positive("restart_eps_decay", restart_eps_decay, schedule=False)
    steps = _validation.check_steps("restart_steps", restart_steps)
    method = Ramda(learning_rate, momentum, eps, steps, restart_eps_decay)
    return proximal_transformation(method, regularizer, solver, accumulator_dtype, placement)
