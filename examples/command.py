"""What the commands of this package share: options, where they work, how they end."""

import argparse
import functools
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

import ramda_jax as rj
from examples import interrupt, parallel
from examples.data import DataError, Dataset, Stream
from examples.folder import claimed, keep_results, output_folder
from examples.recipe import SCALES, Recipe, RecipeError, make_run, run_settings, split_overrides
from examples.recipes import RECIPES, find


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


@dataclass
class Session:
    """Where a command works.

    Attributes:
        options: of its command line.
        recipe: whose data are used.
        devices: to train on.
        console: where the first process prints, and no other.
        out: the folder that it may write into, as no other run does.
    """

    options: argparse.Namespace
    recipe: Recipe
    devices: parallel.OneDevice
    console: Console
    out: Path

    @functools.cached_property
    def dataset(self) -> Dataset | Stream:
        """Loaded where it is first asked for; the terminal says which it is."""
        dataset = self.recipe.load(self.options.data_dir)
        self.console.print(f"{self.recipe.title}: {dataset.source}", soft_wrap=True)
        return dataset


@contextmanager
def session(options: argparse.Namespace, recipe: Recipe, name: str) -> Iterator[Session]:
    """The command's devices, and its folder for as long as it works: `name`, where no other is given.

    Raises:
        RecipeError: the folder is another run's, holds results, or cannot be written.
    """
    if options.distributed:
        parallel.initialize()
    console = Console(quiet=options.quiet or not parallel.leads())
    devices = parallel.choose(options.parallel)
    with claimed(output_folder(options, name)) as out:
        keep_results(out, options)
        yield Session(options, recipe, devices, console, out)


def parse_command(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None
) -> argparse.Namespace:
    """Parses options, the recipe and its overrides, in any order."""
    options = parser.parse_intermixed_args(arguments)
    names = [word for word in options.words if "=" not in word]
    if options.help:
        parser.exit(run_command(lambda: _help(parser, options, names)))
    if not names:
        parser.error(f"the recipe is missing, one of {', '.join(RECIPES)}")
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
