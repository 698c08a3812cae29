"""Checkpoints of a run by Orbax: written beside the training, whole or not at all.

A checkpoint holds everything that the rest of the run depends on: parameters, the method's state,
the model's other state, keys, memory, the position in the data, and the epochs' figures so far. A
run that resumes ends bit for bit where it would have ended.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from examples.overrides import plain_fields
from examples.recipe import RecipeError, Run, changed
from examples.recipes import find
from examples.task import TrainState

FOLDER = "checkpoints"

# What may differ between the run that wrote a checkpoint and the one that goes on with it.
_FREE = ("settings.epochs", "settings.checkpoint_every", "scale")
_LENGTH = "settings.epochs (the schedule depends on them)"


class Checkpoints:
    """The checkpoints of one run, in a folder of their own; a context manager that waits for
    what is still being written.

    Args:
        out: the run's folder.
        run: what is trained.
        seed: what it started from.
        resume: whether to go on from what is there; if not, nothing may be there.

    Raises:
        RecipeError: there is nothing to resume, or something to lose, or it is of another run.
    """

    def __init__(self, out: Path, run: Run, seed: int, resume: bool) -> None:
        self.folder, self.identity = (out / FOLDER).absolute(), identity(run, seed)
        self._manager: ocp.CheckpointManager | None = None
        found = any_in(out)
        if resume and not found:
            raise RecipeError(f"--resume: expected checkpoints in {self.folder}, found none")
        if found and not resume:
            raise RecipeError(
                f"{self.folder}: holds checkpoints of an earlier run: give --resume to go on with "
                "it, or another --out"
            )
        self.every, self.last = run.settings.checkpoint_every, run.settings.epochs
        self.resume = resume
        if resume or self.every:
            options = ocp.CheckpointManagerOptions(max_to_keep=2, create=True)
            self._manager = ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: object) -> None:
        if self._manager:
            self._manager.close()

    def due(self, epoch: int) -> bool:
        """Whether one is to be written after this epoch."""
        return bool(self.every) and (epoch % self.every == 0 or epoch == self.last)

    def save(
        self, epoch: int, state: TrainState, position: Any, rows: Sequence[Mapping[str, float]]
    ) -> None:
        """Starts to write a checkpoint; training may go on, and give the state up, at once.

        Args:
            epoch: how many are done.
            state: after them.
            position: of the data, as JSON.
            rows: their figures.
        """
        assert self._manager
        # Copies: the next epoch gives up the arrays of this state while they are being written.
        arrays = jax.tree.map(jnp.copy, _by_path(state))
        notes = {"identity": self.identity, "position": position, "rows": list(rows)}
        self._manager.save(
            epoch,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(arrays), notes=ocp.args.JsonSave(notes)
            ),
        )

    def restore(self, start: TrainState) -> tuple[TrainState, Any, list[dict[str, float]]] | None:
        """State, position of the data and figures of the last checkpoint; None without --resume.

        Args:
            start: any state of the run, for the shapes.
        """
        if not self.resume:
            return None
        assert self._manager
        epoch = self._manager.latest_step()
        if epoch is None:
            raise RecipeError(f"--resume: expected a whole checkpoint in {self.folder}, found none")
        with _damage_named(self.folder / str(epoch)):
            notes = _notes(self._manager, epoch)
            _refuse_another_run(self.folder, notes["identity"], self.identity)
            arrays = self._manager.restore(
                epoch, args=ocp.args.Composite(state=ocp.args.StandardRestore(_by_path(start)))
            )["state"]
        return _from_path(start, arrays), notes["position"], notes["rows"]


def any_in(out: Path) -> bool:
    """Whether a run's folder holds checkpoints."""
    folder = out / FOLDER
    return folder.is_dir() and any(folder.iterdir())


@contextmanager
def _damage_named(checkpoint: Path) -> Iterator[None]:
    """What reading a damaged checkpoint raises, as one line that names it."""
    try:
        yield
    except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RecipeError(
            f"{checkpoint}: expected a whole checkpoint of this run, "
            f"but it is damaged ({first_line})"
        ) from error


def _notes(manager: ocp.CheckpointManager, epoch: int) -> Any:
    return manager.restore(epoch, args=ocp.args.Composite(notes=ocp.args.JsonRestore()))["notes"]


def last_run(out: Path) -> Run:
    """The run that the checkpoints in a folder are of."""
    folder = (out / FOLDER).absolute()
    if not folder.is_dir():
        raise RecipeError(
            f"{folder}: expected the checkpoints of a run, which examples.train writes with "
            "checkpoint_every=N, found no such folder"
        )
    with ocp.CheckpointManager(folder) as manager:
        epoch = manager.latest_step()
        if epoch is None:
            raise RecipeError(f"{folder}: expected a whole checkpoint, found none")
        with _damage_named(folder / str(epoch)):
            return run_of(_notes(manager, epoch)["identity"])


def run_of(identity: Mapping[str, Any]) -> Run:
    """The run of an identity; what the identity leaves out is as the recipe has it."""
    recipe, optimizer = find(identity["recipe"]), identity["method.name"]
    changes = {
        name.removeprefix("settings.").removeprefix("method."): (
            tuple(value) if isinstance(value, list) else value
        )
        for name, value in identity.items()
        if name not in ("recipe", "method.name", _LENGTH)
    }
    return changed(
        Run(recipe, optimizer, "paper", recipe.settings, recipe.methods[optimizer]), changes
    )


def identity(run: Run, seed: int) -> dict[str, Any]:
    """What has to be equal for a run to go on with a checkpoint, as flat JSON."""
    recipe = run.recipe
    parts = {
        "recipe": recipe.name,
        "method": {"name": run.optimizer, **asdict(run.method)},
        "settings": {**asdict(run.settings), "seed": seed},
        "model": plain_fields(recipe.model),
        "data": plain_fields(recipe.load),
    }
    flat: dict[str, Any] = json.loads(json.dumps(_flatten(parts)))
    # A rate that falls to the end of the run depends on where the end is.
    if run.method.schedule != "stages":
        flat[_LENGTH] = run.settings.epochs
    return flat


def _refuse_another_run(folder: Path, found: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    for name in [*asked, *(name for name in found if name not in asked)]:
        if name not in _FREE and found.get(name) != asked.get(name):
            raise RecipeError(
                f"--resume: the checkpoint in {folder} is of another run: {name} is "
                f"{found.get(name)} there, {asked.get(name)} here"
            )


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _by_path(state: TrainState) -> dict[str, jax.Array]:
    """The arrays by their paths, keys as the numbers behind them: what any reader can open.

    Arrays without elements (a solver's slots for what it does not solve) hold nothing to save, and
    Orbax saves none.
    """
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (
            jax.random.key_data(leaf) if _is_key(leaf) else jnp.asarray(leaf)
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if leaf.size
    }


def _from_path(pattern: TrainState, arrays: Mapping[str, jax.Array]) -> TrainState:
    """The inverse of `_by_path`."""

    def leaf(path: Any, like: Any) -> Any:
        if not like.size:
            return like
        array = arrays[jax.tree_util.keystr(path, simple=True, separator="/")]
        return jax.random.wrap_key_data(array) if _is_key(like) else array

    return jax.tree_util.tree_map_with_path(leaf, pattern)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
