"""Checkpoints: a run that was interrupted ends bit for bit where it would have ended."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples import loop
from examples.checkpoint import FOLDER, Checkpoints
from examples.recipe import RecipeError
from tests.examples import tiny
from tests.examples.runs import changed, fitted, without_times


def prepared(run):
    return loop.prepare(run, run.recipe.load(None))


def same(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    data = lambda x: np.asarray(jax.random.key_data(x) if is_key(x) else x)
    return all((data(x) == data(y)).all() for x, y in pairs)


@pytest.mark.parametrize("stream", ["false", "true"])
def test_four_epochs_are_two_and_two_more(tmp_path, stream):
    """Through a restart (stage), with batch statistics, dropout, and the order of the data."""
    program = prepared(tiny.tiny_run(stream=stream, stages="1,3"))
    straight = fitted(tmp_path / "straight", program)
    fitted(tmp_path / "out", changed(program, epochs=2, checkpoint_every=1))
    resumed = fitted(tmp_path / "out", changed(program, checkpoint_every=2), resume=True)
    assert without_times(resumed.rows) == without_times(straight.rows)
    assert same(resumed.params, straight.params)
    assert same(resumed.structured, straight.structured)
    assert same(resumed.model_state, straight.model_state)
    kept = sorted(entry.name for entry in (tmp_path / "out" / FOLDER).iterdir())
    assert kept == ["2", "4"]  # of 1, 2 and 4 the last two


@pytest.fixture(scope="module")
def checkpointed(tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    fitted(out, prepared(tiny.tiny_run("sgd", epochs=1, checkpoint_every=1)))
    return out


OTHER_RUNS = {
    "method": (("adamw", {}), "method.name is sgd there, adamw here"),
    "hyperparameter": (("sgd", {"learning_rate": 0.5}), "method.learning_rate is 0.1 there, 0.5"),
    "setting": (("sgd", {"batch_size": 8}), "settings.batch_size is 16 there, 8 here"),
    "model": (("sgd", {"model.hidden": 9}), "model.hidden is 8 there, 9 here"),
    "data": (("sgd", {"data.train": 50}), "data.train is 70 there, 50 here"),
    "schedule": (("sgd", {"schedule": "cosine"}), "method.schedule is stages there, cosine here"),
}


@pytest.mark.parametrize(("other", "message"), OTHER_RUNS.values(), ids=OTHER_RUNS)
def test_a_checkpoint_of_another_run_is_refused(checkpointed, other, message):
    run = tiny.tiny_run(other[0], **other[1])
    with (
        Checkpoints(checkpointed, run, 0, resume=True) as checkpoints,
        pytest.raises(RecipeError, match="is of another run") as error,
    ):
        checkpoints.restore(None)
    assert message in str(error.value)


def test_a_checkpoint_of_another_seed_is_refused(checkpointed):
    with (
        Checkpoints(checkpointed, tiny.tiny_run("sgd"), 1, resume=True) as checkpoints,
        pytest.raises(RecipeError, match=r"settings\.seed is 0 there, 1 here"),
    ):
        checkpoints.restore(None)


def test_checkpoints_of_an_earlier_run_are_not_overwritten(checkpointed):
    with pytest.raises(RecipeError, match="holds checkpoints of an earlier run: give --resume"):
        Checkpoints(checkpointed, tiny.tiny_run("sgd"), 0, resume=False)


def test_there_has_to_be_something_to_resume(tmp_path):
    with pytest.raises(RecipeError, match=r"--resume: expected checkpoints in .*found none"):
        Checkpoints(tmp_path, tiny.tiny_run("sgd"), 0, resume=True)


def test_a_checkpoint_that_was_not_finished_or_is_damaged_is_one_clear_line(checkpointed, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(checkpointed, out)
    folder = out / FOLDER / "1"
    for file in [path for path in (folder / "state").rglob("*") if path.is_file()]:
        file.write_bytes(file.read_bytes()[:3])
    run = tiny.tiny_run("sgd")
    program = loop.prepare(run, run.recipe.load(None))
    with (
        Checkpoints(out, run, 0, resume=True) as checkpoints,
        pytest.raises(RecipeError, match="expected a whole checkpoint of this run") as error,
    ):
        checkpoints.restore(program.start(0))
    assert "\n" not in str(error.value)
