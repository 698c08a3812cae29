"""What the Adam-like methods (ProxAdamW, ProxSSI) share: hyperparameters and moments."""

import dataclasses
from typing import Any, NamedTuple

import chex
import jax.numpy as jnp

from ramda_jax import _numerics, _validation
from ramda_jax import model as base


class Constants(NamedTuple):
    """The numbers of one step, 0-d.

    Attributes:
      learning_rate: eta_t.
      shrink: 1 - eta_t wd.
      correction1, correction2: 1 - b1^t and 1 - b2^t.
      eps: added to the root of the second moment.
    """

    learning_rate: chex.Array
    shrink: chex.Array
    correction1: chex.Array
    correction2: chex.Array
    eps: chex.Array


@dataclasses.dataclass(frozen=True)
class Adam(base.Model):
    """Hyperparameters of the Adam-like methods; see `prox_adamw`.

    Raises:
      ValueError: naming argument, value and range.
    """

    learning_rate: Any
    b1: Any
    b2: Any
    eps: Any
    weight_decay: Any

    def __post_init__(self) -> None:
        _validation.check_positive("learning_rate", self.learning_rate)
        _validation.check_decay("b1", self.b1)
        _validation.check_decay("b2", self.b2)
        _validation.check_positive("eps", self.eps, schedule=False)
        _validation.check_nonnegative("weight_decay", self.weight_decay)

    def constants(self, count: chex.Array) -> Constants:
        """At the 0-based step `count`."""
        learning_rate = _numerics.evaluate(self.learning_rate, count)
        weight_decay = _numerics.evaluate(self.weight_decay, count)
        t = count + 1
        return Constants(
            learning_rate,
            1 - learning_rate * weight_decay,
            bias_correction(_numerics.evaluate(self.b1, count), t),
            bias_correction(_numerics.evaluate(self.b2, count), t),
            _numerics.as_scalar(self.eps),
        )

    def rates(self, count: chex.Array) -> tuple[chex.Array, ...]:
        """(b1, 1 - b1, b2, 1 - b2), the scalars of `moments`: subtracted before they are rounded to a leaf's dtype."""
        b1, b2 = _numerics.evaluate(self.b1, count), _numerics.evaluate(self.b2, count)
        return b1, 1 - b1, b2, 1 - b2


def moments(
    first: chex.Array, second: chex.Array, grad: chex.Array, rates: tuple[chex.Array, ...]
) -> tuple[chex.Array, chex.Array]:
    """(m_t, n_t) from m_{t-1}, n_{t-1} and G_t; one array each."""
    b1, new1, b2, new2 = rates
    return b1 * first + new1 * grad, b2 * second + new2 * (grad * grad)


def bias_correction(rate: chex.Array, t: chex.Array) -> chex.Array:
    """1 - rate^t without cancellation, 0-d."""
    return -jnp.expm1(t.astype(rate.dtype) * jnp.log1p(rate - 1))
