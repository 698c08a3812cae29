"""How long a call takes."""

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


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, first and third quartile."""
    if len(values) == 1:
        low = high = values[0]
    else:
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": statistics.median(values), "low": low, "high": high}
