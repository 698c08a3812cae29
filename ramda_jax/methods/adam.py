"""What the Adam-like methods (ProxAdamW, ProxSSI) share: hyperparameters, moments, their checks."""

import abc
import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ramda_jax import _numerics, _validation
from ramda_jax._numerics import Schedulable
from ramda_jax.methods import base
from ramda_jax.trees import ArrayTree


class Constants(NamedTuple):
    """The numbers of one step, 0-d.

    Attributes:
      learning_rate: eta_t.
      shrink: 1 - eta_t wd.
      correction1, correction2: 1 - b1^t and 1 - b2^t.
      eps: added to the root of the second moment.
    """

    learning_rate: jax.Array
    shrink: jax.Array
    correction1: jax.Array
    correction2: jax.Array
    eps: jax.Array


class AdamState(NamedTuple):
    """Adam's moments.

    Attributes:
      grad_average: m_t = b1 m_{t-1} + (1 - b1) G_t.
      grad_sq_average: n_t = b2 n_{t-1} + (1 - b2) G_t^2.
      grad_sq_max: the running maximum of n_t (AMSGrad), or None.
    """

    grad_average: ArrayTree
    grad_sq_average: ArrayTree
    grad_sq_max: ArrayTree | None

    @property
    def accumulators(self) -> tuple[str, ...]:
        always = ("grad_average", "grad_sq_average")
        return always if self.grad_sq_max is None else (*always, "grad_sq_max")


def _accumulate(arrays, grad, scalars):
    """Adam's moments, and the running maximum of the second one if it is kept."""
    b1, new1, b2, new2 = scalars
    first = _numerics.saturated(b1 * arrays[0] + new1 * grad, grad)
    second = _numerics.saturated(b2 * arrays[1] + new2 * (grad * grad), grad)
    return (first, second, *(jnp.maximum(largest, second) for largest in arrays[2:]))


@dataclasses.dataclass(frozen=True)
class Adam(base.Method):
    """Hyperparameters of the Adam-like methods; see `prox_adamw`. What is left open is `terms`.

    Raises:
      ValueError: naming argument, value and range.
    """

    state = AdamState
    accumulate = staticmethod(_accumulate)
    learning_rate: Schedulable
    b1: Schedulable
    b2: Schedulable
    eps: Schedulable
    weight_decay: Schedulable
    amsgrad: bool = dataclasses.field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        _validation.check_positive("learning_rate", self.learning_rate)
        _validation.check_decay("b1", self.b1)
        _validation.check_decay("b2", self.b2)
        _validation.check_positive("eps", self.eps, schedule=False)
        _validation.check_nonnegative("weight_decay", self.weight_decay)

    def init(self, params: ArrayTree) -> AdamState:
        zeros = lambda: base.zeros_like(params)
        return AdamState(zeros(), zeros(), zeros() if self.amsgrad else None)

    def begin(
        self, state: AdamState, params: ArrayTree, count: jax.Array
    ) -> tuple[AdamState, tuple[jax.Array, ...]]:
        # 1 - b is subtracted before it is rounded to a leaf's dtype.
        b1, b2 = _numerics.evaluate(self.b1, count), _numerics.evaluate(self.b2, count)
        return state, (b1, 1 - b1, b2, 1 - b2)

    def constants(self, count: jax.Array) -> Constants:
        """At the 0-based step `count`."""
        learning_rate = _numerics.evaluate(self.learning_rate, count)
        weight_decay = _numerics.evaluate(self.weight_decay, count)
        t = optax.safe_increment(count)
        return Constants(
            learning_rate,
            1 - learning_rate * weight_decay,
            _bias_correction(_numerics.evaluate(self.b1, count), t),
            _bias_correction(_numerics.evaluate(self.b2, count), t),
            _numerics.as_scalar(self.eps),
        )

    @abc.abstractmethod
    def terms(self, state: AdamState, count: jax.Array) -> base.Terms:
        """The terms of the subproblem times eta."""


def _bias_correction(rate: jax.Array, t: jax.Array) -> jax.Array:
    """1 - rate^t without cancellation, 0-d."""
    return -jnp.expm1(t.astype(rate.dtype) * jnp.log1p(rate - 1))
