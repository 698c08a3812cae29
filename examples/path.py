"""A path of strengths: `python -m examples.path RECIPE [strength=1e-4|1e-3|...] [--warm]`.

Trains one method with one strength after the other, compacts what each comes to, and leaves a folder
per point as `examples.train --compact` does, `path.csv`, `path.md` and `path.png`: metric against
structure, FLOPs and latency of the compact model. With `--warm` every point starts from the weights
of the one before, the strengths ascending: fewer epochs do, but points have had more of them the
farther they are.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from flax import nnx
from rich.table import Table

from examples import compact, loop, plots, report
from examples.command import (
    Session,
    add_optimizer,
    argument_parser,
    parse_command,
    run_command,
    session,
)
from examples.data import Dataset, Stream
from examples.folder import claimed, writing
from examples.recipe import Recipe, RecipeError, Run, make_run, split_overrides
from examples.recipes import find
from examples.train import train_into

FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Times the recipe's strength, where none are given."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, 1 if a point diverged, 2 if what was asked for is wrong."""
    parser = argument_parser(
        "python -m examples.path", "Train a recipe over strengths; compact and time every point."
    )
    add_optimizer(parser)
    parser.add_argument(
        "--warm",
        action="store_true",
        help="start every point from the weights of the one before, the strengths ascending",
    )
    options = parse_command(parser, arguments)
    return run_command(lambda: _path(options))


def _path(options: argparse.Namespace) -> int:
    if options.distributed:
        raise RecipeError("--distributed: expected one process, which compacts every point")
    overrides = split_overrides(options.overrides)
    runs = point_runs(find(options.recipe), options.optimizer, options.scale, overrides)
    recipe = runs[0].recipe
    rows: list[dict[str, Any]] = []
    with session(options, recipe, f"{recipe.name}-{options.optimizer}-path") as at:
        start = None
        for run in runs:
            fit, row = _point(at, run, start)
            rows.append(row)
            if fit.diverged:
                break
            start = fit.params if options.warm else None
        with report.csv_log(at.out / "path.csv") as log:
            for row in rows:
                log(row)
        with writing(at.out / "path.md") as path:
            path.write_text(_markdown(recipe, rows, at.dataset))
        with writing(at.out / "path.png") as path:
            plots.plot_path(path, recipe, rows)
    at.console.print(_table(recipe, rows))
    at.console.print(
        f"path.csv, path.md, path.png and a folder per point are in {at.out}", soft_wrap=True
    )
    if fit.diverged:
        print("the objective did not stay finite: the path ends there", file=sys.stderr)
    return int(fit.diverged)


def point_runs(
    recipe: Recipe, optimizer: str, scale: str, overrides: Mapping[str, str]
) -> list[Run]:
    """A run per strength, ascending.

    Raises:
        RecipeError: other values than strengths vary.
    """
    varied = [name for name, text in overrides.items() if "|" in text and name != "strength"]
    if varied:
        raise RecipeError(f"{varied[0]}: expected one value, only strength= takes several")
    rest = {name: text for name, text in overrides.items() if name != "strength"}
    if "strength" in overrides:
        texts = overrides["strength"].split("|")
    else:
        own = make_run(recipe, optimizer, scale, rest).method.strength
        if not own > 0:
            raise RecipeError(
                f"strength: expected values, as {optimizer} has none in {recipe.name}"
            )
        texts = [f"{own * factor:.4g}" for factor in FACTORS]
    runs = [make_run(recipe, optimizer, scale, {**rest, "strength": text}) for text in texts]
    return sorted(runs, key=lambda run: run.method.strength)


def _point(at: Session, run: Run, start: nnx.State | None) -> tuple[loop.Fit, dict[str, Any]]:
    """What a point came to, in a folder of its own, and what is said of it."""
    program = loop.prepare(run, at.dataset, at.devices)
    at.console.print(f"strength={run.method.strength:g}")
    with claimed(at.out / f"strength-{run.method.strength:g}") as folder:
        fit = train_into(at, folder, program, run.settings.seed, start=start)
        row = _figures(run, fit)
        if not fit.diverged:
            wanted = compact.Options()
            found = compact.compact_run(folder, program.task, at.dataset, fit, at.console, wanted)
            row |= _compacted(run, found)
    return fit, row


def _figures(run: Run, fit: loop.Fit) -> dict[str, Any]:
    recipe, last = run.recipe, fit.rows[-1]
    metric, (sparsity, _) = recipe.headline, recipe.sparsity
    return {
        "strength": run.method.strength,
        f"test_{metric}": last[f"test_{metric}"],
        f"structured_test_{metric}": last[f"structured_test_{metric}"],
        f"structured_{sparsity}": last[f"structured_{sparsity}"],
    }


def _compacted(run: Run, found: Mapping[str, Any]) -> dict[str, Any]:
    """What `compact_run` says, as columns."""
    metric = run.recipe.headline
    row = {
        f"compact_test_{metric}": found["figures"]["compact"][metric],
        "parameters": found["parameters"]["compact"],
        "whole_parameters": found["parameters"]["whole"],
        "flops": found["flops"]["compact"],
        "whole_flops": found["flops"]["whole"],
    }
    for timed in found["latency"]:
        for name in ("whole", "compact"):
            column = f"{name}_seconds_{timed['examples']}"
            row[column] = timed["seconds"][name]["median"]
    return row


def _cells(recipe: Recipe, rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the tables for people."""
    metric, (sparsity, _) = recipe.headline, recipe.sparsity
    header = ["strength", f"W: test {metric}", f"compact: test {metric}", sparsity]
    header += ["parameters", "FLOPs", *(f"times faster, {n} a call" for n in compact.SIZES)]
    lines = []
    for row in rows:
        line = [f"{row['strength']:g}", f"{row[f'test_{metric}']:.4f}"]
        if "flops" not in row:
            lines.append([*line, *["diverged"] * (len(header) - 2)])
            continue
        line += [f"{row[f'compact_test_{metric}']:.4f}", f"{row[f'structured_{sparsity}']:.3f}"]
        line += [f"{row['parameters']:,d}", f"{row['flops']:,d}"]
        faster = [row[f"whole_seconds_{n}"] / row[f"compact_seconds_{n}"] for n in compact.SIZES]
        lines.append([*line, *(f"{ratio:.2f}" for ratio in faster)])
    return header, lines


def _table(recipe: Recipe, rows: Sequence[Mapping[str, Any]]) -> Table:
    header, lines = _cells(recipe, rows)
    table = Table(*header, title=f"{recipe.title}: a path of strengths")
    for line in lines:
        table.add_row(*line)
    return table


def _markdown(recipe: Recipe, rows: Sequence[Mapping[str, Any]], dataset: Dataset | Stream) -> str:
    header, lines = _cells(recipe, rows)
    table = [header, ["---"] * len(header), *lines]
    return "\n".join(
        [f"{recipe.title}: {dataset.source}", "", *(f"| {' | '.join(r)} |" for r in table), ""]
    )


if __name__ == "__main__":
    sys.exit(main())
