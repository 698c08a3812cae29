"""The paper's schedules, in steps: optax schedules (functions of the 0-based step count)."""

import itertools
from collections.abc import Callable, Sequence
from typing import TypedDict

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ramda_jax import _numerics, _validation
from ramda_jax._numerics import Schedulable


def multistep(
    learning_rate: Schedulable, milestone_steps: Sequence[int], factor: Schedulable = 0.1
) -> Callable[[ArrayLike], jax.Array]:
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
      >>> import ramda_jax as rj
      >>> schedule = rj.multistep(0.1, (100, 200))
      >>> [round(float(schedule(step)), 4) for step in (0, 99, 100, 200)]
      [0.1, 0.1, 0.01, 0.001]

    Source: the stages of Huang & Lee, NeurIPS 2024.
    """
    _validation.check_positive("learning_rate", learning_rate)
    _validation.check_positive("factor", factor)
    steps = _validation.check_steps("milestone_steps", milestone_steps)

    def schedule(count: ArrayLike) -> jax.Array:
        stage = jnp.sum(jnp.asarray(count) >= jnp.asarray(steps, jnp.int32)) if steps else 0
        return _numerics.as_scalar(learning_rate) * _numerics.as_scalar(
            factor
        ) ** _numerics.as_scalar(stage)

    return schedule


def final_momentum_schedule(
    momentum: Schedulable, start_step: int
) -> Callable[[ArrayLike], jax.Array]:
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
      >>> import ramda_jax as rj
      >>> schedule = rj.final_momentum_schedule(0.1, 1000)
      >>> [round(float(schedule(step)), 3) for step in (0, 999, 1000, 1003, 1099, 5000)]
      [0.1, 0.1, 0.1, 0.2, 1.0, 1.0]

    Source: Huang & Lee, NeurIPS 2024, Section 5.
    """
    _validation.check_momentum(momentum)
    _validation.check_integer("start_step", start_step, 0)

    def schedule(count: ArrayLike) -> jax.Array:
        # The difference is taken in integers: float32 counts are inexact beyond 2^24.
        into = jnp.maximum(jnp.asarray(count) - start_step + 1, 1)
        return jnp.minimum(_numerics.as_scalar(momentum) * jnp.sqrt(_numerics.as_scalar(into)), 1.0)

    return schedule


class Stages(TypedDict):
    """What `stages` gives."""

    learning_rate: Callable[[ArrayLike], jax.Array]
    momentum: Callable[[ArrayLike], jax.Array]
    restart_steps: tuple[int, ...]


def stages(learning_rate: ArrayLike, total_steps: int, stages: int = 3) -> Stages:
    """Keyword arguments for `ramda` and `rmda` with which W ends exactly structured, however short the run.

    Of T steps in all, stages start at 0.6 T and 0.8 T, each with a tenth of the learning rate (and of RAMDA's eps, which
    is its default). The momentum is c = clip(150 / T, 0.01, 0.15), and in the last stage, of L steps,

      c_i = min(1, max(c, sqrt(2 i / L))),   i = 1, 2, ... steps into it:

    it is 1 from the middle of that stage on, so that W_t = What_t. Two stages: the second starts at 0.7 T with a hundredth
    of the rate; more zeros, a higher objective. Found by search on small networks and 300 to 3,000 steps, with rates of
    1e-2 to 2e-2 for RAMDA. The steps are those of the optimizer: under `optax.MultiSteps` count updates, not batches.

    Args:
      learning_rate: > 0, of the first stage; a number or a 0-d array.
      total_steps: T; a run may be longer (the last stage goes on), not shorter.
      stages: 3 or 2.

    Returns:
      `learning_rate` and `momentum`, both optax schedules, and `restart_steps`.

    Raises:
      ValueError: for constants out of range, and for runs so short that a stage has no step.

    Example:
      >>> import ramda_jax as rj
      >>> tx = rj.ramda(regularizer=rj.GroupLasso(1e-3), **rj.stages(1e-2, total_steps=2_000))
      >>> settings = rj.stages(1e-2, total_steps=2_000)
      >>> settings["restart_steps"]
      (1200, 1600)
      >>> [round(float(settings["momentum"](step)), 3) for step in (0, 1599, 1600, 1649, 1799, 1999)]
      [0.075, 0.075, 0.075, 0.5, 1.0, 1.0]
    """
    _validation.check_positive("learning_rate", learning_rate, schedule=False)
    _validation.check_steps("total_steps", (total_steps,))
    if stages not in _STAGES:
        raise ValueError(f"stages must be 2 or 3, got {stages!r}.")
    tenths, factor = _STAGES[stages]
    steps = tuple(int(total_steps) * n // 10 for n in tenths)
    if any(a >= b for a, b in itertools.pairwise((0, *steps, total_steps))):
        least = 3 if stages == 3 else 2
        raise ValueError(
            f"total_steps must be at least {least} for {stages} stages, got {total_steps!r}: each takes a step or more."
        )
    momentum = min(max(150 / total_steps, 0.01), 0.15)
    return {
        "learning_rate": multistep(learning_rate, steps, factor),
        "momentum": _momentum_of_stages(momentum, steps[-1], total_steps - steps[-1]),
        "restart_steps": steps,
    }


# By their number: the tenths of the run after which a stage starts, and by what the learning rate is multiplied there.
_STAGES = {3: ((6, 8), 0.1), 2: ((7,), 0.01)}


def _momentum_of_stages(
    momentum: float, start_step: int, length: int
) -> Callable[[ArrayLike], jax.Array]:
    """c before the last stage, then min(1, max(c, sqrt(2 i / length)))."""

    def schedule(count: ArrayLike) -> jax.Array:
        # In integers, as in `final_momentum_schedule`; no longer than the stage, so that twice it does not overflow.
        into = jnp.clip(jnp.asarray(count) - start_step + 1, 0, length)
        share = 2 * _numerics.as_scalar(into) / length
        return jnp.clip(jnp.sqrt(share), _numerics.as_scalar(momentum), 1.0)

    return schedule
