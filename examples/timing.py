"""How long a call takes, and a step among others."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax


def seconds_per_call(call: Callable[..., Any], *arguments: Any, at_least: float = 0.05) -> float:
    """Seconds of a call, of as many as take this long together."""
    number, begun = 0, time.perf_counter()
    while True:
        jax.block_until_ready(call(*arguments))
        number += 1
        passed = time.perf_counter() - begun
        if passed > at_least:
            return passed / number


class Pace:
    """Says once how long a step takes, by the first steps of a run.

    Devices work while the program goes on, so what a step has computed is waited for, after the first
    step (it may have to be compiled), the second, the fourth, the eighth, ...

    Args:
        tell: called with the mean seconds of steps after the first, and the number of steps so far.
        compiling: () -> seconds spent compiling so far, which do not count.
        least: seconds of steps it takes.
    """

    def __init__(
        self,
        tell: Callable[[float, int], None],
        compiling: Callable[[], float],
        least: float = 10.0,
    ) -> None:
        self._tell, self._compiling, self._least = tell, compiling, least
        self._steps, self._begun, self._told = 0, 0.0, False

    def __call__(self, computed: Any) -> None:
        """To be called after each step with something that it computes."""
        self._steps += 1
        if self._told or self._steps & (self._steps - 1):
            return
        jax.block_until_ready(computed)
        now = time.perf_counter() - self._compiling()
        if self._steps == 1:
            self._begun = now
        # Fewer than seven are too few where batches differ in size.
        elif self._steps >= 8 and now - self._begun >= self._least:
            self._told = True
            self._tell((now - self._begun) / (self._steps - 1), self._steps)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, first and third quartile."""
    if len(values) == 1:
        low = high = values[0]
    else:
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": statistics.median(values), "low": low, "high": high}
