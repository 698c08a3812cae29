"""What the dual-averaging methods (RAMDA, RMDA) share: the weights s_t and the stages."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from ramda_jax import _numerics


class Clock(NamedTuple):
    """Time within a stage.

    Attributes:
      step: t, int32; 1 at the first step of a stage.
      weight_sum: alpha_t = sum of s_i = eta_i sqrt(i).
      weight_error: what rounding has left out of alpha_t (Kahan): float32 alone drifts by 2 % in 1e7 steps.
    """

    step: chex.Array
    weight_sum: chex.Array
    weight_error: chex.Array


def start_clock() -> Clock:
    """t = 0, alpha = 0."""
    return Clock(jnp.zeros([], jnp.int32), _numerics.as_scalar(0.0), _numerics.as_scalar(0.0))


def restarts(count: chex.Array, restart_steps: tuple[int, ...]) -> tuple[Any, chex.Array]:
    """(whether a stage starts at this step, how many have started); the former is False if there are no stages."""
    if not restart_steps:
        return False, jnp.zeros([], jnp.int32)
    steps = jnp.asarray(restart_steps, jnp.int32)
    return jnp.any(count == steps), jnp.sum(count >= steps)


def tick(clock: Clock, learning_rate: chex.Array, restart: Any) -> tuple[Clock, chex.Array]:
    """(the clock after one more step, s_t)."""
    clock = select(restart, start_clock(), clock)
    step = clock.step + 1
    # The count is cast first: the square root of an int32 is a float32 even under x64.
    weight = learning_rate * jnp.sqrt(_numerics.as_scalar(step))
    total, error = _numerics.compensated_add(clock.weight_sum, clock.weight_error, weight)
    return Clock(step, total, error), weight


def select(restart: Any, fresh: Any, old: Any) -> Any:
    """`fresh` where a stage starts, else `old`; no work at all where there are no stages."""
    if restart is False:
        return old
    return jax.tree.map(lambda a, b: jnp.where(restart, a, b), fresh, old)


def add(total: Any, increment: Any, restart: Any) -> Any:
    """total + increment, or increment alone where a stage starts; trees."""
    if restart is False:
        return jax.tree.map(jnp.add, total, increment)
    return jax.tree.map(lambda a, b: jnp.where(restart, 0.0, a) + b, total, increment)
