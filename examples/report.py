"""What a run leaves behind: `metrics.csv`, `summary.json`, and what it shows on the terminal."""

import csv
import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import ramda_jax as rj
from examples.data import Dataset, Stream
from examples.folder import writing
from examples.loop import Fit, Program, Row
from examples.methods import Dense
from examples.overrides import plain_fields
from examples.recipe import Recipe, RecipeError, Run

OnEpoch = Callable[[Row], None]

_FILE_WIDTH = 160
_PACKAGES = ("jax", "jaxlib", "optax", "flax", "numpy")


def spoken(seconds: float) -> str:
    """A duration, to two digits or the second."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        number = seconds / size
        if number >= 2:
            return f"{round(number, 1 if number < 10 else 0):g} {unit}"
    return f"{seconds:.0f} seconds"


@contextmanager
def csv_log(path: Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A function that appends a row to a CSV file whose header is the names of the first row. What the
    file held goes with the first row: a run that is refused before it has one loses nothing.
    """
    with writing(path):
        file = path.open("a", newline="")
    writer: csv.DictWriter[str] | None = None

    def write(row: Mapping[str, Any]) -> None:
        nonlocal writer, file
        with writing(path):
            if writer is None:
                file.close()
                file = path.open("w", newline="")
                writer = csv.DictWriter(file, fieldnames=list(row))
                writer.writeheader()
            writer.writerow(row)
            file.flush()

    try:
        yield write
    finally:
        with suppress(OSError):  # every row was flushed; one that could not be has said so
            file.close()


@contextmanager
def tensorboard_log(folder: Path | None) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A function that writes the figures of a row with an `epoch` for TensorBoard; None: nothing is written.

    Raises:
        RecipeError: the package tensorboardX is not there.
    """
    if folder is None:
        yield lambda row: None
        return
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise RecipeError(
            "--tensorboard: expected the package tensorboardX (pip install -e '.[tensorboard]')"
        ) from None
    with writing(folder), SummaryWriter(str(folder)) as writer:

        def write(row: Mapping[str, Any]) -> None:
            for name, value in row.items():
                if name != "epoch" and isinstance(value, (int, float)):
                    writer.add_scalar(name, value, row["epoch"])
            writer.flush()

        yield write


class Shown(NamedTuple):
    """How a run shows how far it is.

    Attributes:
        epoch: to be called with the row of every epoch.
        estimate: with the seconds that are left, as soon as they are known.
    """

    epoch: OnEpoch
    estimate: Callable[[float], None]


@contextmanager
def progress_bar(console: Console, run: Run) -> Iterator[Shown]:
    """Moves a progress bar by an epoch; without a terminal, ten lines in all, and how long it will take."""
    epochs, recipe, ends = run.settings.epochs, run.recipe, list[float]()
    estimates = list[float]()
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
                words = f"{run.optimizer} epoch {row['epoch']}/{epochs} {figures}"
                console.print(words, highlight=False, soft_wrap=True)
            # Of two epochs that come one after the other the second compiles nothing.
            ends.append(time.monotonic())
            if lines and len(ends) == 2 and row["epoch"] < epochs and not estimates:
                estimate((ends[1] - ends[0]) * (epochs - row["epoch"]))

        def estimate(left: float) -> None:
            estimates.append(left)
            console.print(f"about {spoken(left)} to go", highlight=False)

        yield Shown(advance, estimate)


def progress_figures(recipe: Recipe, row: Row) -> str:
    """The few figures worth watching while a run goes on."""
    metric, (sparsity, _) = recipe.headline, recipe.sparsity
    return (
        f"objective {row['objective']:.4f} {metric} {row[f'test_{metric}']:.4f} "
        f"(to deploy {row[f'structured_test_{metric}']:.4f}) "
        f"sparsity W {row[sparsity]:.1%} to deploy {row[f'structured_{sparsity}']:.1%}"
    )


Result = tuple[Run, Program, Sequence[Fit]]
"""A method and its fits from several seeds."""


def print_table(console: Console, results: Sequence[Result]) -> None:
    """Shows the table; where there is no terminal that would limit it, as wide as it is."""
    if not console.is_terminal:
        console = Console(file=console.file, width=_FILE_WIDTH, quiet=console.quiet)
    console.print(result_table(results, console.encoding))


def result_table(results: Sequence[Result], encoding: str = "utf-8") -> Table:
    """What the last epoch came to, a column per method; mean and deviation over seeds.

    Args:
        encoding: of where it is shown; signs that it lacks are spelled out.
    """
    table = Table(title=results[0][0].recipe.title)
    table.add_column("", no_wrap=True)
    for run, _, _ in results:
        table.add_column(run.optimizer, justify="right", no_wrap=True)
    for label, cells in _result_rows(results):
        table.add_row(*(_spelled(text, encoding) for text in (label, *cells)))
    return table


def _spelled(text: str, encoding: str) -> str:
    for sign, words in (("\u0174", "What"), ("\u00b1", "+-")):
        if sign in text and sign.encode(encoding, "ignore").decode(encoding) != sign:
            text = text.replace(sign, words)
    return text


def markdown_table(results: Sequence[Result], dataset: Dataset | Stream) -> str:
    """The same as Markdown, a row per method, under a paragraph that says what was run, and where."""
    run, program, fits = results[0]
    settings, parallel = run.settings, program.task.parallel
    stages = ", ".join(map(str, settings.stages)) or "none"
    words = [
        f"{run.recipe.title} ({run.recipe.name}, scale {run.scale})",
        dataset.source,
        f"{settings.epochs} epochs of {program.steps_per_epoch} steps of {settings.batch_size}, "
        f"stages after {stages}",
        f"seeds {', '.join(str(fit.seed) for fit in fits)}",
        f"{parallel.devices} x {jax.devices()[0].device_kind}",
        ", ".join(f"{name} {number}" for name, number in versions().items()),
    ]
    rows = list(_result_rows(results))
    table = [["method", *(label for label, _ in rows)], ["---"] * (len(rows) + 1)]
    for number, (run, _, _) in enumerate(results):
        cells = (cells[number].replace("\n", " ") for _, cells in rows)
        table.append([run.optimizer, *cells])
    lines = [f"| {' | '.join(line)} |" for line in table]
    return f"{'; '.join(words)}.\n\n" + "\n".join(lines) + "\n"


def _result_rows(results: Sequence[Result]) -> Iterator[tuple[str, list[str]]]:
    """Labels, and a cell per method."""
    recipe = results[0][0].recipe
    metric, (sparsity, _) = recipe.headline, recipe.sparsity
    structure = sparsity.replace("_", " ")
    yield "learning rate", [f"{run.method.learning_rate:g}" for run, _, _ in results]
    yield "strength", [f"{run.method.strength:g}" for run, _, _ in results]
    for name, label, pattern in (
        ("objective", "objective", ".6f"),
        (f"test_{metric}", f"test {metric}", ".4f"),
        (sparsity, structure, ".2%"),
    ):
        for prefix, point in (("", "W"), ("minimizer_", "Ŵ"), ("structured_", "what to deploy")):
            if prefix + name not in results[0][2][0].rows[-1]:
                continue
            values = [[fit.rows[-1][prefix + name] for fit in fits] for _, _, fits in results]
            yield f"{label} of {point}", [_cell(row, pattern) for row in values]
    moved = [[late_range(fit.rows, sparsity) for fit in fits] for _, _, fits in results]
    yield f"range of {structure} of W, last tenth", [_cell(row, ".2%") for row in moved]
    yield from _cost_rows(results)


def late_range(rows: Sequence[Row], name: str) -> float:
    """How much a figure still moved over the last tenth of the epochs, and at least three of them."""
    late = [row[name] for row in rows[-max(3, len(rows) // 10) :]]
    return max(late) - min(late)


def _cost_rows(results: Sequence[Result]) -> Iterator[tuple[str, list[str]]]:
    """What a step costs; the overhead is over the cheapest dense method, where there is one."""
    iterations = [
        [_mean([row["solver_iterations"] for row in fit.rows]) for fit in fits]
        for _, _, fits in results
    ]
    yield "solver iterations per step", [_cell(values, ".2f") for values in iterations]
    steps = [[1e3 * fit.step_seconds for fit in fits] for _, _, fits in results]
    yield "milliseconds per step", [_cell(values, ".3f") for values in steps]
    dense = dense_step_seconds(results)
    if dense is not None:
        over = [[fit.step_seconds / dense - 1 for fit in fits] for _, _, fits in results]
        yield "time over dense", [_cell(values, "+.0%") for values in over]
    seconds = [[fit.train_seconds for fit in fits] for _, _, fits in results]
    yield "training seconds", [_cell(values, ".1f") for values in seconds]
    yield "compilation seconds", [f"{program.compile_seconds:.1f}" for _, program, _ in results]


def dense_step_seconds(results: Sequence[Result]) -> float | None:
    """Seconds per step of the cheapest dense method, mean over its seeds."""
    means = [
        _mean([fit.step_seconds for fit in fits])
        for run, _, fits in results
        if isinstance(run.method, Dense)
    ]
    return min(means, default=None)


def comparison_rows(results: Sequence[Result]) -> Iterator[dict[str, Any]]:
    """A row per method and seed: the figures of its last epoch and what a step cost."""
    dense, (sparsity, _) = dense_step_seconds(results), results[0][0].recipe.sparsity
    for run, _, fits in results:
        for fit in fits:
            over = fit.step_seconds / dense - 1 if dense else math.nan
            yield {
                "optimizer": run.optimizer,
                "seed": fit.seed,
                **fit.rows[-1],
                f"{sparsity}_late_range": late_range(fit.rows, sparsity),
                "step_seconds": fit.step_seconds,
                "overhead_over_dense": over,
                "train_seconds": fit.train_seconds,
            }


def _cell(values: Sequence[float], pattern: str) -> str:
    spread = f"\n± {statistics.stdev(values):{pattern.lstrip('+')}}" if len(values) > 1 else ""
    return f"{_mean(values):{pattern}}{spread}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def summary(program: Program, fit: Fit, dataset: Dataset | Stream) -> dict[str, Any]:
    """Everything needed to know what a run was and what it came to, as plain values."""
    run, device = program.run, jax.devices()[0]
    return {
        "recipe": run.recipe.name,
        "optimizer": run.optimizer,
        "scale": run.scale,
        "settings": {**asdict(run.settings), "seed": fit.seed},
        "method": asdict(run.method),
        "model": plain_fields(run.recipe.model),
        "data": {
            "source": dataset.source,
            "train_examples": dataset.train_examples,
            "test_examples": dataset.test_examples,
            **plain_fields(run.recipe.load),
        },
        "diverged": fit.diverged,
        "final": fit.rows[-1],
        "structure": {
            "params": _structure(run, fit.params),
            "structured": _structure(run, fit.structured),
        },
        "compile_seconds": program.compile_seconds,
        "train_seconds": fit.train_seconds,
        "step_seconds": fit.step_seconds,
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": program.task.parallel.devices,
            "processes": jax.process_count(),
            "parallel": program.task.parallel.mode,
        },
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of what the figures depend on."""
    packages = {name: version(name) for name in _PACKAGES}
    return {"ramda_jax": rj.__version__, "python": platform.python_version(), **packages}


def write_json(path: Path, content: Any) -> None:
    """Strict JSON: a figure that is not finite becomes null."""
    path.write_text(json.dumps(_finite_or_none(content), indent=2, allow_nan=False) + "\n")


def _structure(run: Run, params: Any) -> dict[str, float]:
    """The library's summary of zeros, groups and ranks, computed as one program."""
    figures = jax.jit(lambda params: rj.summary(params, run.regularizer()))(params)
    return {name: float(value) for name, value in jax.device_get(figures).items()}


def _finite_or_none(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _finite_or_none(value) for name, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite_or_none(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
