"""Checkpoints of a run by Orbax: written beside the training, whole or not at all.

A checkpoint holds everything that the rest of the run depends on: parameters, the method's state,
the model's other state, keys, memory, the position in the data, and the epochs' figures so far. A
run that resumes ends bit for bit where it would have ended. What is read is verified by the digests
in it; where a checkpoint is damaged the one before is gone on with.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

import ramda_jax as rj
from examples import digests
from examples.digests import DamageError
from examples.folder import reason
from examples.overrides import plain_fields
from examples.quiet import quiet_orbax
from examples.recipe import RecipeError, Run, changed, find_method, run_fields
from examples.recipes import find
from examples.task import TrainState

FOLDER = "checkpoints"

# What the notes hold; a program that reads or writes others has another number.
_FORMAT = 2

# In the name of a folder that Orbax is still writing, or was when its process ended.
UNFINISHED = ".orbax-checkpoint-tmp"

_KEPT = 2  # so that there is one to go on from where the last is damaged

# What may differ between the run that wrote a checkpoint and the one that goes on with it.
_FREE = ("settings.epochs", "settings.checkpoint_every", "scale")
_LENGTH = "settings.epochs (the schedule depends on them)"

_GO_ON = "go on with that version, or begin anew in another --out"


class Checkpoints:
    """The checkpoints of one run, in a folder of their own; a context manager that waits for
    what is still being written. The last two are kept.

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
        if resume:
            require_any(out)
        elif any_in(out):
            raise RecipeError(
                f"{self.folder}: holds checkpoints of an earlier run: give --resume to go on with "
                "it, or another --out"
            )
        self.every, self.last = run.settings.checkpoint_every, run.settings.epochs
        self.resume = resume
        self._damaged: list[int] = []

    def __enter__(self) -> "Checkpoints":
        if self.resume or self.every:
            quiet_orbax()
            with self._failure_named():
                self._manager = ocp.CheckpointManager(self.folder, options=_options())
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if not self._manager:
            return
        if kind:
            with suppress(Exception):  # what is on its way says more
                self._manager.close()
            return
        with self._failure_named():
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

        Raises:
            RecipeError: it cannot be written, or the one before could not.
        """
        assert self._manager
        # Copies: the next epoch gives up the arrays of this state while they are being written.
        arrays = jax.tree.map(jnp.copy, _by_path(state))
        notes = {
            "format": _FORMAT,
            "ramda_jax": rj.__version__,
            "epoch": epoch,
            "identity": self.identity,
            "position": position,
            "rows": list(rows),
            "arrays": digests.of_arrays(arrays),
        }
        with self._failure_named():
            # Orbax writes none that is older than one it knows; these were damaged.
            while self._damaged:
                self._manager.delete(self._damaged.pop())
            written = self._manager.save(
                epoch,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(arrays),
                    notes=ocp.args.JsonSave(digests.seal(notes)),
                ),
            )
        assert written, f"Orbax did not write the checkpoint of epoch {epoch}"

    def wait(self) -> int | None:
        """The epoch of the last checkpoint, once it is written; None if there is none.

        Raises:
            RecipeError: it could not be written.
        """
        if not self._manager:
            return None
        with self._failure_named():
            self._manager.wait_until_finished()
        return max(saved_epochs(self.folder), default=None)

    def restore(
        self, start: TrainState, figures: Sequence[str] | None = None
    ) -> tuple[TrainState, Any, list[dict[str, float]]] | None:
        """State, position of the data and figures of the last checkpoint that is whole; None without
        --resume. One that is damaged is named on stderr.

        Args:
            start: any state of the run, for the shapes.
            figures: what the figures of an epoch are called that more of them are to follow; None: no
                matter.

        Raises:
            RecipeError: none is whole, or it is of another run or another version of the program.
        """
        if not self.resume:
            return None
        epochs = _found_epochs(self.folder)
        for epoch in epochs:
            try:
                return self._read(epoch, start, figures)
            except DamageError as error:
                # Several processes may not have read the same, and would go on from two epochs.
                alone = jax.process_count() == 1
                if epoch == epochs[-1] or not alone:
                    raise RecipeError(
                        f"{self.folder / str(epoch)}: expected a whole checkpoint of this run, but it "
                        f"is damaged ({error}): " + _way_out(epochs, epoch)
                    ) from error
                print(
                    f"{self.folder / str(epoch)}: this checkpoint is damaged ({error}): going on "
                    "from the one before",
                    file=sys.stderr,
                )
                self._damaged.append(epoch)
        raise AssertionError  # the last one has returned or raised

    def _read(
        self, epoch: int, start: TrainState, figures: Sequence[str] | None
    ) -> tuple[TrainState, Any, Any]:
        assert self._manager
        checkpoint, wanted = self.folder / str(epoch), _by_path(start)
        notes = _notes(self._manager, checkpoint)
        _refuse_another_run(self.folder, notes["identity"], self.identity)
        _refuse_another_tree(checkpoint, notes, wanted)
        if figures is not None:
            _refuse_other_figures(checkpoint, notes, figures)
        with _damage_noticed():
            arrays = self._manager.restore(
                epoch, args=ocp.args.Composite(state=ocp.args.StandardRestore(wanted))
            )["state"]
        digests.verify({path: arrays[path] for path in wanted}, notes["arrays"])
        return _from_path(start, arrays), notes["position"], notes["rows"]

    @contextmanager
    def _failure_named(self) -> Iterator[None]:
        """Whatever Orbax raises where it cannot write, as one line that says how to go on."""
        try:
            yield
        except Exception as error:
            last = max(saved_epochs(self.folder), default=None)
            after = f"then --resume goes on from epoch {last + 1}" if last else "then begin anew"
            raise RecipeError(
                f"{self.folder}: expected a folder that checkpoints can be written to "
                f"({reason(error)}): make room or make it writable, {after}"
            ) from error


def any_in(out: Path) -> bool:
    """Whether a run's folder holds checkpoints, or what may be some under other names; one that was
    never finished is none.
    """
    folder = out / FOLDER
    return folder.is_dir() and any(UNFINISHED not in entry.name for entry in folder.iterdir())


def require_any(out: Path) -> None:
    """There has to be something to resume.

    Raises:
        RecipeError: there is nothing.
    """
    if not any_in(out):
        raise RecipeError(
            f"--resume: expected checkpoints in {(out / FOLDER).absolute()}, found none"
        )


def saved_epochs(folder: Path) -> list[int]:
    """Of the checkpoints in a folder, the last first: each is a folder of its epoch's number."""
    if not folder.is_dir():
        return []
    names = (entry.name for entry in folder.iterdir() if entry.is_dir())
    return sorted((int(name) for name in names if name.isdecimal()), reverse=True)


def _found_epochs(folder: Path) -> list[int]:
    epochs = saved_epochs(folder)
    if not epochs:
        names = ", ".join(sorted(entry.name for entry in folder.iterdir())[:5])
        raise RecipeError(
            f"--resume: expected a whole checkpoint in {folder}, a folder named by the number of its "
            f"epoch; found {names or 'none'}"
        )
    return epochs


def _way_out(epochs: Sequence[int], epoch: int) -> str:
    if epoch == epochs[-1]:
        return "no older one is left, so begin anew in another --out"
    return "delete it to go on from the one before"


def _options() -> ocp.CheckpointManagerOptions:
    # Where a folder cannot be made in the background, Orbax waits five minutes for it.
    in_turn = ocp.AsyncOptions(create_directories_asynchronously=False)
    return ocp.CheckpointManagerOptions(max_to_keep=_KEPT, create=True, async_options=in_turn)


@contextmanager
def _damage_noticed() -> Iterator[None]:
    """Whatever reading raises, as damage: there is no telling what damaged bytes lead a reader to."""
    try:
        yield
    except Exception as error:
        raise DamageError(reason(error)) from error


def _notes(manager: ocp.CheckpointManager, checkpoint: Path) -> Any:
    """The notes of a checkpoint, if they are as they were written, and there.

    Raises:
        DamageError: they are not as they were written.
        RecipeError: they are of another version of the program, or of another epoch.
    """
    with _damage_noticed():
        args = ocp.args.Composite(notes=ocp.args.JsonRestore())
        sealed = manager.restore(int(checkpoint.name), args=args)["notes"]
    if isinstance(sealed, dict) and sealed.keys() == {"identity", "position", "rows"}:
        raise RecipeError(
            f"{checkpoint}: was written by an earlier version of this program, without digests: "
            + _GO_ON
        )
    notes = digests.unseal(sealed)
    if notes["format"] != _FORMAT:
        raise RecipeError(
            f"{checkpoint}: was written by another version of this program (ramda_jax "
            f"{notes['ramda_jax']}, format {notes['format']}; here format {_FORMAT}): {_GO_ON}"
        )
    if str(notes["epoch"]) != checkpoint.name:
        raise RecipeError(
            f"{checkpoint}: holds the checkpoint of epoch {notes['epoch']}: rename the folder to "
            f"{notes['epoch']}"
        )
    return notes


def last_run(out: Path) -> Run:
    """The run that the checkpoints in a folder are of."""
    folder = (out / FOLDER).absolute()
    if not folder.is_dir():
        raise RecipeError(
            f"{folder}: expected the checkpoints of a run, which examples.train writes with "
            "checkpoint_every=N, found no such folder"
        )
    epochs = _found_epochs(folder)
    quiet_orbax()
    with ocp.CheckpointManager(folder) as manager:
        for epoch in epochs:
            try:
                notes = _notes(manager, folder / str(epoch))
                return _run_of_notes(folder / str(epoch), notes)
            except DamageError as error:
                if epoch == epochs[-1]:
                    raise RecipeError(
                        f"{folder / str(epoch)}: expected a whole checkpoint, but it is damaged "
                        f"({error})"
                    ) from error
    raise AssertionError  # the last one has returned or raised


def _run_of_notes(checkpoint: Path, notes: Mapping[str, Any]) -> Run:
    try:
        return run_of(notes["identity"])
    except RecipeError as error:
        raise RecipeError(
            f"{checkpoint}: is of a run that this version of the program does not know (ramda_jax "
            f"{notes['ramda_jax']} there, {rj.__version__} here; {error}): take that version, or "
            "train anew"
        ) from error


def run_of(identity: Mapping[str, Any]) -> Run:
    """The run of an identity; what the identity leaves out is as the recipe has it.

    Raises:
        RecipeError: there is no such recipe, method or setting.
    """
    recipe, optimizer = find(identity["recipe"]), identity["method.name"]
    method = find_method(recipe, optimizer)
    changes = {
        name.removeprefix("settings.").removeprefix("method."): (
            tuple(value) if isinstance(value, list) else value
        )
        for name, value in identity.items()
        if name not in ("recipe", "method.name", _LENGTH)
    }
    known = run_fields(recipe, method)
    if unknown := [name for name in changes if name not in known]:
        raise RecipeError(f"{unknown[0]}: no such field for {optimizer}")
    return changed(Run(recipe, optimizer, "paper", recipe.settings, method), changes)


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
    """A setting that only one side has is one of another version of the program."""
    for name in _names_of_both(asked, found):
        there, here = (part.get(name, "missing") for part in (found, asked))
        if name not in _FREE and there != here:
            raise RecipeError(
                f"--resume: the checkpoint in {folder} is of another run: {name} is {there} there, "
                f"{here} here: ask for what it was, or begin anew in another --out"
            )


def _refuse_another_tree(
    checkpoint: Path, notes: Mapping[str, Any], wanted: Mapping[str, jax.Array]
) -> None:
    """The state of the same run may have changed with the program that it is of."""
    there = {path: _kind_words(record) for path, record in notes["arrays"].items()}
    here = {path: _kind_words(digests.kind(array)) for path, array in wanted.items()}
    _refuse_another_version(checkpoint, notes, "the state", there, here)


def _refuse_other_figures(
    checkpoint: Path, notes: Mapping[str, Any], figures: Sequence[str]
) -> None:
    """All epochs of a run have the same figures; of another version's there may be others."""
    for row in notes["rows"]:
        there, here = (dict.fromkeys(names, "a figure") for names in (row, figures))
        _refuse_another_version(checkpoint, notes, "figures", there, here)


def _refuse_another_version(
    checkpoint: Path,
    notes: Mapping[str, Any],
    what: str,
    there: Mapping[str, str],
    here: Mapping[str, str],
) -> None:
    for name in _names_of_both(here, there):
        if there.get(name) != here.get(name):
            raise RecipeError(
                f"--resume: {checkpoint} holds {what} of another version of this program (ramda_jax "
                f"{notes['ramda_jax']} there, {rj.__version__} here): {name} is "
                f"{there.get(name, 'missing')} there, {here.get(name, 'missing')} here: {_GO_ON}"
            )


def _names_of_both(first: Iterable[str], second: Iterable[str]) -> Iterable[str]:
    return dict.fromkeys([*first, *second])


def _kind_words(record: Mapping[str, Any]) -> str:
    return f"{record['dtype']} {tuple(record['shape'])}"


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
