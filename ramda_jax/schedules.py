"""The paper's schedules, in steps: optax schedules (functions of the 0-based step count)."""

from typing import Any

import chex
import jax.numpy as jnp
import optax

from ramda_jax import _numerics, _validation
from ramda_jax._numerics import Schedulable


def multistep(
    learning_rate: Schedulable, milestone_steps: Any, factor: Schedulable = 0.1
) -> optax.Schedule:
    """learning_rate * factor^(number of milestones reached): constant within stages.

    Args:
      learning_rate: > 0, of the first stage.
      milestone_steps: increasing 0-based step counts at which a stage starts (as `restart_steps` of `ramda`).
      factor: > 0, between stages.

    Returns:
      An optax schedule.

    Raises:
      ValueError: for constants out of range.

    Example:
      >>> schedule = multistep(0.1, (100, 200))
      >>> [round(float(schedule(step)), 4) for step in (0, 99, 100, 200)]
      [0.1, 0.1, 0.01, 0.001]

    Source: the stages of Huang & Lee, NeurIPS 2024.
    """
    _validation.check_positive("learning_rate", learning_rate)
    _validation.check_positive("factor", factor)
    steps = _validation.check_steps("milestone_steps", milestone_steps)

    def schedule(count: chex.Numeric) -> chex.Array:
        stage = jnp.sum(jnp.asarray(count) >= jnp.asarray(steps, jnp.int32)) if steps else 0
        return _numerics.as_scalar(learning_rate) * _numerics.as_scalar(
            factor
        ) ** _numerics.as_scalar(stage)

    return schedule


def final_momentum_schedule(momentum: Schedulable, start_step: int) -> optax.Schedule:
    """c_t = momentum before the last stage, then min(momentum sqrt(i), 1), i = 1, 2, ... steps into it.

    Where c_t has reached 1, W^t = What_t: the parameters get the structure.

    Args:
      momentum: c in (0, 1].
      start_step: 0-based step count at which the last stage starts, >= 0.

    Returns:
      An optax schedule.

    Raises:
      ValueError: for constants out of range.

    Example:
      >>> schedule = final_momentum_schedule(0.1, 1000)
      >>> [round(float(schedule(step)), 3) for step in (0, 999, 1000, 1003, 1099, 5000)]
      [0.1, 0.1, 0.1, 0.2, 1.0, 1.0]

    Source: Huang & Lee, NeurIPS 2024, Section 5.
    """
    _validation.check_momentum(momentum)
    _validation.check_integer("start_step", start_step, 0)

    def schedule(count: chex.Numeric) -> chex.Array:
        # The difference is taken in integers: float32 counts are inexact beyond 2^24.
        into = jnp.maximum(jnp.asarray(count) - start_step + 1, 1)
        return jnp.minimum(_numerics.as_scalar(momentum) * jnp.sqrt(_numerics.as_scalar(into)), 1.0)

    return schedule
