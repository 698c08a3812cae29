"""Searches settings of one method of a recipe: `python -m examples.search RECIPE --optimizer NAME
field=value1|value2 ...`.

Trains once with every combination of the values that are given, on one seed, and leaves
`search.csv`: a row per trial with what it was and the figures of its last epoch. With
`data.split=valid`, for the sets that have it, the test set is not looked at.
"""

import argparse
import itertools
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from rich.table import Table

from examples import loop, parallel, report
from examples.command import (
    add_optimizer,
    argument_parser,
    parse_command,
    run_command,
    session,
)
from examples.overrides import RecipeError
from examples.recipe import Run, make_run, split_overrides
from examples.recipes import find

Trial = Mapping[str, str]
"""The overrides of one run."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, or 2 if what was asked for is wrong."""
    parser = argument_parser(
        "python -m examples.search", "Train one method of a recipe with many settings."
    )
    add_optimizer(parser)
    options = parse_command(parser, arguments)
    return run_command(lambda: _search(options))


def _search(options: argparse.Namespace) -> int:
    recipe, overrides = find(options.recipe), split_overrides(options.overrides)
    varied = [name for name, text in overrides.items() if "|" in text]
    if any(name.startswith("data.") for name in varied):
        raise RecipeError("data.: expected one value for all trials, which share their data")
    runs = [
        (trial, make_run(recipe, options.optimizer, options.scale, trial))
        for trial in trials(overrides)
    ]
    first = runs[0][1]
    with session(options, first.recipe, f"{recipe.name}-{options.optimizer}-search") as at:
        rows, silent = [], nullcontext(lambda row: None)
        with report.csv_log(at.out / "search.csv") if parallel.leads() else silent as log:
            for trial, run in runs:
                program = loop.prepare(run, at.dataset, at.devices)
                chosen = {name: trial[name] for name in varied}
                at.console.print(" ".join(f"{name}={text}" for name, text in chosen.items()))
                rows.append({**_settings(run), **chosen, **_last(program)})
                log(rows[-1])
    at.console.print(_table(first, varied, rows))
    at.console.print(f"search.csv is in {at.out}", soft_wrap=True)
    return 0


def trials(overrides: Mapping[str, str]) -> list[Trial]:
    """Every combination of the values, the last name's running fastest.

    >>> trials({"strength": "1e-4|1e-3", "epochs": "2"})
    [{'strength': '1e-4', 'epochs': '2'}, {'strength': '1e-3', 'epochs': '2'}]
    """
    values = [text.split("|") for text in overrides.values()]
    return [dict(zip(overrides, chosen, strict=True)) for chosen in itertools.product(*values)]


def _settings(run: Run) -> dict[str, Any]:
    """What every trial is known by, whether it was varied or not."""
    method = run.method
    return {
        "optimizer": run.optimizer,
        "learning_rate": method.learning_rate,
        "strength": method.strength,
    }


def _last(program: loop.Program) -> dict[str, Any]:
    """The figures of a trial's last epoch; not finite where it diverged."""
    fit = loop.fit(program, program.run.settings.seed)
    return {**fit.rows[-1], "step_seconds": fit.step_seconds}


def _table(run: Run, varied: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Table:
    """The trials with the few figures that one chooses by."""
    metric, (sparsity, _) = run.recipe.headline, run.recipe.sparsity
    names = [f"test_{metric}", f"structured_test_{metric}", sparsity, f"structured_{sparsity}"]
    table = Table(*varied, *names, title=f"{run.recipe.name}, {run.optimizer}")
    for row in rows:
        table.add_row(*(row[name] for name in varied), *(f"{row[name]:.4f}" for name in names))
    return table


if __name__ == "__main__":
    sys.exit(main())
