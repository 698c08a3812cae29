"""Checks of constants that users type. Traced values pass unchecked: they cannot be compared in Python."""

import itertools
import math
import numbers
import warnings
from typing import Any

import jax
import numpy as np


def _concrete(value: Any) -> float | None:
    """`value` as a float if it is a number or a concrete 0-d array, else None (schedule, tracer)."""
    if isinstance(value, (bool, jax.core.Tracer)):
        return None
    if isinstance(value, (numbers.Real, np.number, np.ndarray)):
        return float(value)
    is_here = isinstance(value, jax.Array) and value.is_fully_addressable
    return float(value) if is_here else None


def _reject_other_types(name: str, value: Any, schedule: bool) -> None:
    is_number = isinstance(value, (numbers.Real, np.number)) and not isinstance(value, bool)
    is_scalar_array = hasattr(value, "shape") and hasattr(value, "dtype") and value.shape == ()
    if not (is_number or is_scalar_array or (schedule and callable(value))):
        what = "a number, a 0-d array or a schedule (a function of the step count)"
        what = what if schedule else "a number or a 0-d array (it cannot be a schedule)"
        raise ValueError(f"{name} must be {what}, got {value!r}.")


def check_range(
    name: str,
    value: Any,
    low: float,
    high: float = math.inf,
    *,
    low_open: bool = False,
    high_open: bool = False,
    schedule: bool = True,
) -> None:
    """Raise ValueError naming argument, value and range unless low <= value <= high.

    `low_open` and `high_open` exclude the ends, `schedule` says whether a schedule will do, too. NaN and infinity are
    always rejected.
    """
    _reject_other_types(name, value, schedule)
    number = _concrete(value)
    if number is None:
        return
    above = number > low if low_open else number >= low
    below = number < high if high_open else number <= high
    if not (above and below and math.isfinite(number)):
        left = "(" if low_open else "["
        right = ")" if high_open or math.isinf(high) else "]"
        raise ValueError(f"{name} must be in {left}{low:g}, {high:g}{right}, got {value!r}.")


def check_positive(name: str, value: Any, *, schedule: bool = True) -> None:
    """0 < value < inf."""
    check_range(name, value, 0.0, low_open=True, schedule=schedule)


def check_nonnegative(name: str, value: Any) -> None:
    """0 <= value < inf."""
    check_range(name, value, 0.0)


def check_momentum(value: Any) -> None:
    """0 < momentum <= 1: the weight of the newest point (or gradient). Warns of what looks like that of the old ones."""
    check_range("momentum", value, 0.0, 1.0, low_open=True)
    number = _concrete(value)
    if number is not None and 0.8 <= number < 1:
        warnings.warn(
            f"momentum={value!r} is the weight of the newest point here, so there is hardly any averaging; where other "
            f"optimizers call {number:g} the momentum, give {1 - number:.2g}.",
            stacklevel=3,
        )


def check_decay(name: str, value: Any) -> None:
    """0 <= value < 1: the decay rate of an exponential average."""
    check_range(name, value, 0.0, 1.0, high_open=True)


def check_integer(name: str, value: Any, low: int) -> None:
    """An integer >= low."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < low:
        raise ValueError(f"{name} must be an integer in [{low}, inf), got {value!r}.")


def check_steps(name: str, steps: Any) -> tuple[int, ...]:
    """A strictly increasing sequence of positive step counts that an int32 can hold, as a tuple."""
    try:
        steps = tuple(steps)
    except TypeError:
        raise ValueError(
            f"{name} must be a sequence of step counts in [1, inf), got {steps!r}."
        ) from None
    for step in steps:
        check_integer(name, step, 1)
    largest = 2**31 - 1
    if any(step > largest for step in steps):
        raise ValueError(
            f"{name} must be at most {largest}, where counts of steps end, got {steps!r}."
        )
    if any(later <= earlier for earlier, later in itertools.pairwise(steps)):
        raise ValueError(f"{name} must be strictly increasing, got {steps!r}.")
    return tuple(int(step) for step in steps)
