"""What the dual-averaging methods (RAMDA, RMDA) share: the weights s_t and the stages."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ramda_jax import _numerics


class Clock(NamedTuple):
    """Time within a stage.

    Attributes:
      step: t, int32; 1 at the first step of a stage.
      weight_sum: alpha_t = sum of s_i = eta_i sqrt(i).
      weight_error: what rounding has left out of alpha_t (Kahan): float32 alone drifts by 2 % in 1e7 steps.
    """

    step: jax.Array
    weight_sum: jax.Array
    weight_error: jax.Array


def start_clock() -> Clock:
    """t = 0, alpha = 0."""
    return Clock(jnp.zeros([], jnp.int32), _numerics.as_scalar(0.0), _numerics.as_scalar(0.0))


def restarts(count: jax.Array, restart_steps: tuple[int, ...]) -> tuple[Any, jax.Array]:
    """(whether a stage starts at this step, how many have started); the former is False if there are no stages."""
    if not restart_steps:
        return False, jnp.zeros([], jnp.int32)
    steps = jnp.asarray(restart_steps, jnp.int32)
    return jnp.any(count == steps), jnp.sum(count >= steps)


def tick(clock: Clock, learning_rate: jax.Array, restart: Any) -> tuple[Clock, jax.Array]:
    """(the clock after one more step, s_t)."""
    clock = select(restart, start_clock(), clock)
    step = optax.safe_increment(clock.step)
    # The count is cast first: the square root of an int32 is a float32 even under x64.
    weight = learning_rate * jnp.sqrt(_numerics.as_scalar(step))
    total, error = _numerics.compensated_add(clock.weight_sum, clock.weight_error, weight)
    return Clock(step, total, error), weight


def select(restart: Any, fresh: Any, old: Any) -> Any:
    """`fresh` where a stage starts, else `old`: scalars. No work at all where there are no stages."""
    if restart is False:
        return old
    return jax.tree.map(lambda a, b: jnp.where(restart, a, b), fresh, old)


def new_anchor(restart: Any, params: Any, anchor: Any) -> Any:
    """W^0: `params` where a stage starts, else `anchor`, which is then not touched; trees."""
    if restart is False:
        return anchor
    copied = lambda p, a: jax.tree.map(lambda x, y: x.astype(y.dtype), p, a)
    return jax.lax.cond(restart, copied, lambda p, a: a, params, anchor)


def step_scalars(weight: jax.Array, restart: Any) -> tuple[jax.Array, ...]:
    """The scalars of `accumulate`: s_t, and 1 where a stage starts (else 0) if there are stages at all."""
    return (weight,) if restart is False else (weight, restart.astype(weight.dtype))


def add(
    total: jax.Array, increment: jax.Array, grad: jax.Array, scalars: tuple[jax.Array, ...]
) -> jax.Array:
    """total + increment, which `grad` makes, or increment alone where a stage starts (see `step_scalars`); one array."""
    for restart in scalars[1:]:
        total = jnp.where(restart > 0, jnp.zeros_like(total), total)
    return _numerics.saturated(total + increment, grad)
