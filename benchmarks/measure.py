"""How benchmarks measure: contenders take turns in one process, and every figure is a ratio within a round."""

import argparse
import datetime
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from examples import timing

PACKAGES = ("jax", "jaxlib", "optax", "flax", "torch")


@dataclass
class Contender:
    """Something that takes a step and keeps its own state.

    Attributes:
        name: for the table.
        step: takes one step and waits for it.
        facts: what else is known of it (compilation seconds, bytes, ...), shown and written as is.
        rounds: take part only in the first so many rounds (slow baselines); None: in all.
        seconds: of each measured step.
    """

    name: str
    step: Callable[[], None]
    facts: dict[str, Any] = field(default_factory=dict)
    rounds: int | None = None
    seconds: list[float] = field(default_factory=list)


def take_turns(contenders: list[Contender], rounds: int, warmup: int) -> None:
    """Measure `rounds` rounds in which each contender takes one step after the other.

    A machine that slows down slows all of them. The first `warmup` rounds are not measured.
    """
    for turn in range(warmup + rounds):
        for contender in contenders:
            if contender.rounds is not None and turn >= contender.rounds + min(warmup, 1):
                continue
            begin = time.perf_counter()
            contender.step()
            seconds = time.perf_counter() - begin
            if turn >= (warmup if contender.rounds is None else min(warmup, 1)):
                contender.seconds.append(seconds)


def compare(contender: Contender, baseline: Contender) -> dict[str, Any]:
    """Median and quartiles of the seconds, and of the ratio to the baseline in the same round."""
    ratios = [a / b for a, b in zip(contender.seconds, baseline.seconds, strict=False)]
    return {
        "name": contender.name,
        "seconds": spread(contender.seconds),
        "ratio": spread(ratios),
        **contender.facts,
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median, first and third quartile, number."""
    return {**timing.spread(values), "count": len(values)}


def compiled(
    function: Callable[..., Any], donate: tuple[int, ...], *args: Any
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """(the compiled function, seconds to compile it and its temporary bytes)."""
    begin = time.perf_counter()
    executable = jax.jit(function, donate_argnums=donate).lower(*args).compile()
    seconds = time.perf_counter() - begin
    memory = executable.memory_analysis()
    return executable, {
        "compile_seconds": seconds,
        "temporary_bytes": getattr(memory, "temp_size_in_bytes", None),
    }


def bandwidth(megabytes: int = 256, repeats: int = 7) -> float:
    """Bytes per second of x <- 0.5 x in place, read plus written: what the floors are computed with."""
    x = jnp.ones((megabytes * 2**18,), jnp.float32)
    scale = jax.jit(lambda x: 0.5 * x, donate_argnums=0)
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        x = jax.block_until_ready(scale(x))
        times.append(time.perf_counter() - begin)
    return 2 * x.nbytes / statistics.median(times[1:])


def environment() -> dict[str, Any]:
    """Device, versions and date, without names of machines or paths."""
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    device = jax.devices()[0]
    return {
        "date": datetime.date.today().isoformat(),
        "device": device.device_kind,
        "platform": device.platform,
        "devices": jax.device_count(),
        "cpu_cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        **versions,
    }


def add_output_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, help="write all figures to this file, too")


def write(path: Path | None, report: Mapping[str, Any]) -> None:
    """The report as JSON, if a path is given."""
    if path is not None:
        path.write_text(json.dumps(report, indent=1) + "\n")


def milliseconds(value: Mapping[str, float]) -> str:
    return f"{1e3 * value['median']:.1f} [{1e3 * value['low']:.1f}, {1e3 * value['high']:.1f}]"


def times(value: Mapping[str, float]) -> str:
    return f"{value['median']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"
