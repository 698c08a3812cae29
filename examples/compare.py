"""Trains every method of a recipe and puts them side by side: `python -m examples.compare RECIPE
[--seeds N] ...`.

Leaves a folder per run as `examples.train` does, and over all of them `comparison.csv`,
`comparison.md`, `comparison.png` (the first seed's curves), `metric.png` and `structure.png` (mean and range over
seeds). With `checkpoint_every=N`, `--resume` goes on with a comparison that was interrupted.
"""

import argparse
import sys
from collections.abc import Sequence

from examples import loop, parallel, plots, report
from examples.checkpoint import Checkpoints, any_in
from examples.command import Session, argument_parser, parse_command, run_command, session
from examples.folder import claimed, writing
from examples.recipe import (
    Recipe,
    RecipeError,
    Run,
    find_method,
    make_run,
    run_fields,
    split_overrides,
)
from examples.recipes import find
from examples.train import train_into


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, 1 if a method diverged, 2 if what was asked for is wrong."""
    parser = argument_parser(
        "python -m examples.compare", "Train every method of a recipe, side by side."
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=1,
        metavar="N",
        help="runs per method, from seed on (default: 1)",
    )
    parser.add_argument(
        "--methods",
        metavar="NAME,NAME",
        help="some of the recipe's methods (default: all)",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from the checkpoints in the output folder; runs that have none begin anew",
    )
    options = parse_command(parser, arguments)
    return run_command(lambda: _compare(options))


def _compare(options: argparse.Namespace) -> int:
    if options.seeds < 1:
        raise RecipeError(f"--seeds: expected at least 1, got {options.seeds}")
    recipe = find(options.recipe)
    names = options.methods.split(",") if options.methods else list(recipe.methods)
    runs = method_runs(recipe, options.scale, split_overrides(options.overrides), names)
    # All runs are over the same data.
    with session(options, runs[0].recipe, f"{recipe.name}-compare") as at:
        results = [(run, *_fits(at, run)) for run in runs]
        if parallel.leads():
            with writing(at.out):
                _write(at, results)
    diverged = [run.optimizer for run, _, fits in results if any(fit.diverged for fit in fits)]
    if diverged and parallel.leads():
        print(f"the objective did not stay finite: {', '.join(diverged)} diverged", file=sys.stderr)
    return int(bool(diverged))


def _fits(at: Session, run: Run) -> tuple[loop.Program, list[loop.Fit]]:
    """A method's program, and what it came to from every seed, each in a folder of its own."""
    program = loop.prepare(run, at.dataset, at.devices)
    fits, seeds = [], at.options.seeds
    for seed in range(run.settings.seed, run.settings.seed + seeds):
        folder = at.out / (run.optimizer if seeds == 1 else f"{run.optimizer}-seed{seed}")
        resume = at.options.resume and any_in(folder)
        with claimed(folder), Checkpoints(folder, run, seed, resume) as checkpoints:
            fits.append(train_into(at, folder, program, seed, checkpoints))
    return program, fits


def _write(at: Session, results: Sequence[report.Result]) -> None:
    """What is left over all runs: tables, pictures, and the table on the terminal."""
    out = at.out
    (out / "comparison.md").write_text(report.markdown_table(results, at.dataset))
    with report.csv_log(out / "comparison.csv") as log:
        for row in report.comparison_rows(results):
            log(row)
    plots.plot_comparison(out / "comparison.png", [(run, fits[0]) for run, _, fits in results])
    plots.plot_over_seeds(out, [(run, fits) for run, _, fits in results])
    report.print_table(at.console, results)
    at.console.print(
        "comparison.csv, comparison.md, comparison.png, metric.png, structure.png and a folder per run "
        f"are in {out}",
        soft_wrap=True,
    )


def method_runs(
    recipe: Recipe, scale: str, overrides: dict[str, str], names: Sequence[str]
) -> list[Run]:
    """A run per method; a field that only some methods have is set for those."""
    known = {name: set(run_fields(recipe, find_method(recipe, name))) for name in names}
    for name in overrides:
        if not any(name in fields for fields in known.values()):
            raise RecipeError(f"{name}: no method of {recipe.name} has such a field")
    return [
        make_run(
            recipe,
            method,
            scale,
            {name: text for name, text in overrides.items() if name in known[method]},
        )
        for method in names
    ]


if __name__ == "__main__":
    sys.exit(main())
