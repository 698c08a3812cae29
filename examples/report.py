"""What a run leaves behind: `metrics.csv`, `summary.json`, and what it shows on the terminal."""

import csv
import json
import math
import platform
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import ramda_jax as rj
from examples.data import Dataset
from examples.loop import Fit, Program, Row
from examples.recipe import Recipe, Run

OnEpoch = Callable[[Row], None]

_PACKAGES = ("jax", "jaxlib", "optax", "flax", "numpy")


@contextmanager
def csv_log(path: Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A function that appends a row to a CSV file whose header is the names of the first row."""
    with path.open("w", newline="") as file:
        writer: csv.DictWriter[str] | None = None

        def write(row: Mapping[str, Any]) -> None:
            nonlocal writer
            if writer is None:
                writer = csv.DictWriter(file, fieldnames=list(row))
                writer.writeheader()
            writer.writerow(row)
            file.flush()

        yield write


@contextmanager
def progress_bar(console: Console, run: Run) -> Iterator[OnEpoch]:
    """A function that moves a progress bar by an epoch; without a terminal, ten lines in all."""
    epochs, recipe = run.settings.epochs, run.recipe
    lines = not console.is_terminal
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=lines) as bar:
        task = bar.add_task(run.optimizer, total=epochs, figures="")

        def advance(row: Row) -> None:
            figures = progress_figures(recipe, row)
            bar.update(task, advance=1, figures=figures)
            if lines and row["epoch"] % max(1, epochs // 10) == 0:
                console.print(
                    f"{run.optimizer} epoch {row['epoch']}/{epochs} {figures}", highlight=False
                )

        yield advance


def progress_figures(recipe: Recipe, row: Row) -> str:
    """The few figures worth watching while a run goes on."""
    metric, (sparsity, _) = recipe.headline, recipe.sparsity
    return (
        f"objective {row['objective']:.4f} {metric} {row[f'test_{metric}']:.4f} "
        f"sparsity W {row[sparsity]:.1%} Ŵ {row[f'structured_{sparsity}']:.1%}"
    )


def result_table(results: Sequence[tuple[Run, Program, Sequence[Fit]]]) -> Table:
    """What the last epoch came to, a column per method; mean and deviation over seeds."""
    recipe = results[0][0].recipe
    metric, (sparsity, _) = recipe.headline, recipe.sparsity
    table = Table(title=recipe.title)
    table.add_column("")
    for run, _, _ in results:
        table.add_column(run.optimizer, justify="right", no_wrap=True)
    for name, label, pattern in (
        ("objective", "objective", ".6f"),
        (f"test_{metric}", f"test {metric}", ".4f"),
        (sparsity, sparsity.replace("_", " "), ".2%"),
    ):
        for prefix, iterate in (("", "W"), ("structured_", "Ŵ")):
            cells = [
                _cell([fit.rows[-1][prefix + name] for fit in fits], pattern)
                for _, _, fits in results
            ]
            table.add_row(f"{label} of {iterate}", *cells)
    iterations = [
        [_mean([row["solver_iterations"] for row in fit.rows]) for fit in fits]
        for _, _, fits in results
    ]
    table.add_row("solver iterations per step", *(_cell(values, ".2f") for values in iterations))
    table.add_row(
        "training seconds",
        *(_cell([fit.train_seconds for fit in fits], ".1f") for _, _, fits in results),
    )
    table.add_row(
        "compilation seconds", *(f"{program.compile_seconds:.1f}" for _, program, _ in results)
    )
    return table


def _cell(values: Sequence[float], pattern: str) -> str:
    spread = f"\n± {statistics.stdev(values):{pattern}}" if len(values) > 1 else ""
    return f"{_mean(values):{pattern}}{spread}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def summary(run: Run, program: Program, fit: Fit, dataset: Dataset) -> dict[str, Any]:
    """Everything needed to know what a run was and what it came to, as plain values."""
    device = jax.devices()[0]
    return {
        "recipe": run.recipe.name,
        "optimizer": run.optimizer,
        "scale": run.scale,
        "settings": {**asdict(run.settings), "seed": fit.seed},
        "method": asdict(run.method),
        "data": {
            "source": dataset.source,
            "train_examples": len(dataset.train_inputs),
            "test_examples": len(dataset.test_inputs),
        },
        "diverged": fit.diverged,
        "final": fit.rows[-1],
        "structure": {
            "params": _plain(rj.summary(fit.params, run.regularizer())),
            "structured": _plain(rj.summary(fit.structured, run.regularizer())),
        },
        "compile_seconds": program.compile_seconds,
        "train_seconds": fit.train_seconds,
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.device_count(),
        },
        "versions": {
            "ramda_jax": rj.__version__,
            "python": platform.python_version(),
            **{name: version(name) for name in _PACKAGES},
        },
    }


def write_json(path: Path, content: Any) -> None:
    """Strict JSON: a figure that is not finite becomes null."""
    path.write_text(json.dumps(_finite_or_none(content), indent=2, allow_nan=False) + "\n")


def _plain(figures: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in jax.device_get(figures).items()}


def _finite_or_none(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _finite_or_none(value) for name, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite_or_none(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
