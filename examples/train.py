"""Trains one recipe with one method: `python -m examples.train RECIPE [--optimizer NAME]
[field=value ...]`.

Leaves `metrics.csv`, `summary.json` and `curves.png` in the output folder, and with
`checkpoint_every=N` checkpoints from which `--resume` goes on.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from flax import nnx

import ramda_jax as rj
from examples import compact, loop, parallel, plots, report
from examples.checkpoint import Checkpoints, require_any
from examples.command import (
    Session,
    add_optimizer,
    argument_parser,
    parse_command,
    run_command,
    session,
)
from examples.folder import writing
from examples.recipe import RecipeError, make_run, split_overrides
from examples.recipes import find


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
    overrides = split_overrides(options.overrides)
    run = make_run(find(options.recipe), options.optimizer, options.scale, overrides)
    recipe, seed = run.recipe, run.settings.seed
    with session(options, recipe, f"{recipe.name}-{run.optimizer}") as at:
        if options.resume:
            require_any(at.out)
        checkpoints = Checkpoints(at.out, run, seed, options.resume)
        program = loop.prepare(run, at.dataset, at.devices)
        assignment = rj.describe(program.start(seed).params, run.regularizer())
        at.console.print(assignment, markup=False, highlight=False, soft_wrap=True)
        with checkpoints:
            board = at.out / "tensorboard" if options.tensorboard else None
            fit = train_into(at, at.out, program, seed, checkpoints, board=board)
        report.print_table(at.console, [(run, program, [fit])])
        at.console.print(
            f"metrics.csv, summary.json and curves.png are in {at.out}", soft_wrap=True
        )
        if options.compact and not fit.diverged:
            wanted = compact.Options(options.new_statistics, options.multiple_of)
            compact.compact_run(at.out, program.task, at.dataset, fit, at.console, wanted)
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
    at: Session,
    folder: Path,
    program: loop.Program,
    seed: int,
    checkpoints: Checkpoints | None = None,
    start: nnx.State | None = None,
    board: Path | None = None,
) -> loop.Fit:
    """Trains from one seed; the first process leaves the run's three files in the folder, and in `board`, if it is given,
    what TensorBoard reads.
    """
    run = program.run
    if not parallel.leads():
        return loop.fit(program, seed, checkpoints=checkpoints, start=start)
    with (
        report.tensorboard_log(board) as log_too,
        report.csv_log(folder / "metrics.csv") as log,
        report.progress_bar(at.console, run) as shown,
    ):

        def on_epoch(row: loop.Row) -> None:
            log(row)
            log_too(row)
            shown.epoch(row)

        fit = loop.fit(program, seed, on_epoch, checkpoints, start, shown.estimate)
    with writing(folder / "summary.json") as path:
        report.write_json(path, report.summary(program, fit, at.dataset))
    with writing(folder / "curves.png") as path:
        plots.plot_run(path, run, fit)
    return fit


if __name__ == "__main__":
    sys.exit(main())
