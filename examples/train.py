"""Trains one recipe with one method: `python -m examples.train RECIPE [--optimizer NAME]
[field=value ...]`.

Leaves `metrics.csv`, `summary.json` and `curves.png` in the output folder, and with
`checkpoint_every=N` checkpoints from which `--resume` goes on.
"""

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flax import nnx
from rich.console import Console

import ramda_jax as rj
from examples import compact, interrupt, loop, parallel, plots, report
from examples.checkpoint import Checkpoints, require_any
from examples.data import DataError, Dataset, Stream
from examples.folder import claimed, keep_results, output_folder, writing
from examples.recipe import SCALES, RecipeError, Run, make_run, run_settings, split_overrides
from examples.recipes import RECIPES, find


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, 1 if training diverged, 2 if what was asked for is wrong, 130 or 143
    if SIGINT or SIGTERM ended it.
    """
    parser = argument_parser("python -m examples.train", "Train one recipe with one method.")
    add_optimizer(parser)
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from the last checkpoint in the output folder (checkpoint_every=N writes them)",
    )
    parser.add_argument(
        "--compact",
        action="store_true",
        help="then cut the structured point out of the model, compare, measure and export it; with "
        "--resume of a run at its end that is all",
    )
    parser.add_argument(
        "--new-statistics",
        type=int,
        default=0,
        metavar="N",
        help="with --compact: means and variances of batch norms estimated anew at the structured "
        "point, from N training batches (default: those of training)",
    )
    parser.add_argument(
        "--multiple-of",
        type=int,
        default=1,
        metavar="N",
        help="with --compact: numbers of channels rounded up to multiples of N, where odd ones cost "
        "more than they save (default: 1)",
    )
    parser.add_argument(
        "--tensorboard",
        action="store_true",
        help="write the figures of every epoch for TensorBoard too, to the folder tensorboard beside them "
        "(needs the extra tensorboard)",
    )
    options = parse_command(parser, arguments)
    return run_command(lambda: _train(options))


def _train(options: argparse.Namespace) -> int:
    check_compaction(options)
    devices, console = start_devices(options)
    run = make_run(
        find(options.recipe), options.optimizer, options.scale, split_overrides(options.overrides)
    )
    out = output_folder(options, f"{run.recipe.name}-{run.optimizer}")
    if options.resume:
        require_any(out)  # before a folder is made for nothing
    with claimed(out):
        keep_results(out, options)
        checkpoints = Checkpoints(out, run, run.settings.seed, options.resume)
        dataset = run.recipe.load(options.data_dir)
        program = loop.prepare(run, dataset, devices)
        console.print(f"{run.recipe.title}: {dataset.source}", soft_wrap=True)
        assignment = rj.describe(program.start(run.settings.seed).params, run.regularizer())
        console.print(assignment, markup=False, highlight=False, soft_wrap=True)
        with checkpoints:
            board = out / "tensorboard" if options.tensorboard else None
            fit = train_into(
                out, program, dataset, run.settings.seed, console, checkpoints, board=board
            )
        report.print_table(console, [(run, program, [fit])])
        console.print(f"metrics.csv, summary.json and curves.png are in {out}", soft_wrap=True)
        if options.compact and not fit.diverged:
            wanted = compact.Options(options.new_statistics, options.multiple_of)
            compact.compact_run(out, program.task, dataset, fit, console, wanted)
    if fit.diverged and parallel.leads():
        print(
            f"the objective is not finite after epoch {len(fit.rows)}: training diverged",
            file=sys.stderr,
        )
    return int(fit.diverged)


def check_compaction(options: argparse.Namespace) -> None:
    """What `--compact` needs is asked for before the training.

    Raises:
        RecipeError: it is not there.
    """
    for name, value, least in (
        ("--new-statistics", options.new_statistics, 0),
        ("--multiple-of", options.multiple_of, 1),
    ):
        if value < least:
            raise RecipeError(f"{name}: expected at least {least}, got {value}")
        if value > least and not options.compact:
            raise RecipeError(f"{name}: expected --compact, which it is for")
    if options.compact and options.distributed:
        raise RecipeError(
            "--compact: expected one process; train without it, then give --resume --compact on one host"
        )


def train_into(
    out: Path,
    program: loop.Program,
    dataset: Dataset | Stream,
    seed: int,
    console: Console,
    checkpoints: Checkpoints | None = None,
    start: nnx.State | None = None,
    board: Path | None = None,
) -> loop.Fit:
    """Trains from one seed; the first process leaves the run's three files in `out`, and in `board`, if it is given, what
    TensorBoard reads.
    """
    run: Run = program.run
    if not parallel.leads():
        return loop.fit(program, seed, checkpoints=checkpoints, start=start)
    with (
        report.tensorboard_log(board) as log_too,
        report.csv_log(out / "metrics.csv") as log,
        report.progress_bar(console, run) as shown,
    ):

        def on_epoch(row: loop.Row) -> None:
            log(row)
            log_too(row)
            shown.epoch(row)

        fit = loop.fit(program, seed, on_epoch, checkpoints, start, shown.estimate)
    with writing(out / "summary.json") as path:
        report.write_json(path, report.summary(run, program, fit, dataset))
    with writing(out / "curves.png") as path:
        plots.plot_run(path, run, fit)
    return fit


def argument_parser(program: str, description: str) -> argparse.ArgumentParser:
    """What the commands of this package have in common."""
    parser = argparse.ArgumentParser(prog=program, description=description, add_help=False)
    parser.add_argument(
        "-h",
        "--help",
        action="store_true",
        help="this; with a recipe, all its settings and their values",
    )
    parser.add_argument("--version", action="version", version=f"ramda_jax {rj.__version__}")
    parser.add_argument("--quiet", action="store_true", help="print errors only")
    parser.add_argument(
        "words",
        nargs="*",
        metavar="RECIPE [field=value ...]",
        help="recipe: "
        + ", ".join(f"{r.name} ({r.title})" for r in RECIPES.values())
        + "; and settings that differ from the recipe's, as in epochs=5 model.hidden=100",
    )
    parser.add_argument(
        "--scale",
        default="paper",
        metavar="|".join(SCALES),
        help="how long to train (default: paper)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for what the run leaves (default: one under runs that holds no results)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="write over the results that are in the folder"
    )
    parser.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="folder with the data (default: built-in data)"
    )
    parser.add_argument(
        "--parallel",
        choices=parallel.MODES,
        help="how a step runs on several devices (default: jit where there are several)",
    )
    parser.add_argument(
        "--distributed",
        action="store_true",
        help="join the other processes of this run, on this host or on others",
    )
    return parser


def add_optimizer(parser: argparse.ArgumentParser) -> None:
    """The option of the commands that train one method."""
    parser.add_argument(
        "--optimizer", metavar="NAME", default="ramda", help="the method (default: ramda)"
    )


def start_devices(options: argparse.Namespace) -> tuple[parallel.OneDevice, Console]:
    """The devices to train on, and where to print: only the first process does."""
    if options.distributed:
        parallel.initialize()
    return parallel.choose(options.parallel), Console(quiet=options.quiet or not parallel.leads())


def parse_command(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None
) -> argparse.Namespace:
    """Parses options, the recipe and its overrides, in any order."""
    options = parser.parse_intermixed_args(arguments)
    names = [word for word in options.words if "=" not in word]
    if options.help:
        parser.exit(run_command(lambda: _help(parser, options, names)))
    if not names:
        parser.error("the recipe is missing")
    options.recipe = names[0]
    options.overrides = [word for word in options.words if word is not names[0]]
    return options


def _help(
    parser: argparse.ArgumentParser, options: argparse.Namespace, names: Sequence[str]
) -> int:
    """Prints how to use a command, or of a recipe its settings with the values that they would have."""
    if not names:
        parser.print_help()
        return 0
    recipe = find(names[0])
    optimizer = getattr(options, "optimizer", next(iter(recipe.methods)))
    overrides = split_overrides([word for word in options.words if word != names[0]])
    run = make_run(recipe, optimizer, options.scale, overrides)
    print(f"{recipe.name}: {recipe.title}")
    print(f"methods: {', '.join(recipe.methods)}; scales: {', '.join(SCALES)}")
    print(f"settings of {optimizer} at scale {options.scale}, to be given as name=value:")
    values = run_settings(run)
    width = max(map(len, values))
    for name, value in values.items():
        print(f"  {name:<{width}}  {_as_typed(value)}".rstrip())
    return 0


def _as_typed(value: Any) -> str:
    """A setting's value as a command line has it."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def run_command(command: Callable[[], int]) -> int:
    """The command's exit status; what the user can put right is one line on stderr and 2, a signal
    one line and 128 more than its number, as a shell has it.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # no terminal is too narrow for a run to go on
    try:
        with interrupt.handled():
            return command()
    except (RecipeError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except interrupt.Interrupted as stop:
        print(stop, file=sys.stderr)
        return stop.status


if __name__ == "__main__":
    sys.exit(main())
