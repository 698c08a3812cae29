"""Many devices: jit, shard_map and pmap train as one device does, and read each other's state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from examples import loop, parallel
from examples.checkpoint import Checkpoints
from examples.data import Batch
from examples.recipe import RecipeError
from tests.examples import tiny
from tests.examples.runs import assert_same, changed, fitted, prepared

MODES = list(parallel.MODES)


@pytest.fixture(scope="module")
def in_memory():
    return {mode: prepared(mode, stages="2") for mode in (None, *MODES)}


@pytest.fixture(scope="module")
def fits(in_memory):
    return {mode: loop.fit(program, 0) for mode, program in in_memory.items()}


@pytest.fixture(scope="module")
def streams():
    return {
        mode: prepared(mode, stream="true", epochs=2, eval_batch_size=12)
        for mode in (None, "jit", "pmap")
    }


@pytest.mark.parametrize("mode", MODES)
def test_eight_devices_train_as_one_does(fits, mode):
    assert_same(fits[mode].rows, fits[None].rows)
    for name in ("params", "structured", "model_state"):
        ours, one = getattr(fits[mode], name), getattr(fits[None], name)
        for leaf, like in zip(jax.tree.leaves(ours), jax.tree.leaves(one), strict=True):
            np.testing.assert_allclose(leaf, like, rtol=1e-3, atol=1e-5)
            np.testing.assert_array_equal(leaf == 0, like == 0)


@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_eight_devices_train_on_a_stream_as_one_does(streams, mode):
    assert_same(loop.fit(streams[mode], 0).rows, loop.fit(streams[None], 0).rows)


def test_a_step_as_a_program_of_many_devices_is_the_epoch_as_a_program(fits, monkeypatch):
    monkeypatch.setattr("examples.in_memory._slow_in_loops", lambda task: True)
    assert_same(loop.fit(prepared("pmap", stages="2"), 0).rows, fits[None].rows)


@pytest.mark.parametrize("mode", MODES)
def test_replicas_are_bitwise_equal_and_the_state_is_cut(in_memory, mode):
    program = in_memory[mode]
    state, _ = program.epoch(program.start(0), program.arrays)
    for leaf in jax.tree.leaves(state.params):
        copies = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(copies) == 8
        assert all((copy == copies[0]).all() for copy in copies)
    cut = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.shape == (8, 3)]
    assert len(cut) >= 3  # V, U and W0 of the outer kernel: a group per input
    assert all(leaf.addressable_shards[0].data.shape == (1, 3) for leaf in cut)


@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_the_loss_is_the_weighted_mean_over_the_whole_batch(streams, mode):
    """Some devices have no example that counts, others two."""
    rng, states = np.random.default_rng(0), []
    batch = Batch(
        rng.normal(size=(16, 6)).astype(np.float32),
        rng.integers(0, 3, 16).astype(np.int32),
        np.array([0, 0, 1, 0, 1, 1, 2, 0.5] * 2, np.float32),
    )
    for program in (streams[mode], streams[None]):
        devices, specs = program.task.parallel, program.task.specs
        state = devices.enter(program.start(0), specs)
        state, _ = program.step(state, devices.put_rows(batch), devices.place(np.float32(0), P()))
        states.append(devices.local(devices.leave(state, specs).params))
    for leaf, like in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_allclose(leaf, like, rtol=1e-4, atol=1e-6)


def test_a_checkpoint_of_one_mode_is_read_by_the_others_and_by_one_device(
    tmp_path, in_memory, fits
):
    out = tmp_path / "out"
    settings = {"checkpoint_every": 1}
    fitted(out, changed(in_memory["pmap"], epochs=1, **settings))
    for epochs, mode in ((2, "shard_map"), (3, "jit"), (4, None)):
        fit = fitted(out, changed(in_memory[mode], epochs=epochs, **settings), resume=True)
    assert_same(fit.rows, fits[None].rows)


def test_a_checkpoint_of_eight_devices_is_read_by_two(tmp_path, in_memory):
    out = tmp_path / "out"
    fitted(out, changed(in_memory["jit"], epochs=1, checkpoint_every=1))
    program = prepared("jit", 2, stages="2")
    with Checkpoints(out, program.run, 0, resume=True) as checkpoints:
        state, _, rows = checkpoints.restore(program.start(0))
    assert len(rows) == 1
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(state)} == {2}


def test_devices_that_see_their_own_rows_draw_their_own_dropout():
    program = prepared("shard_map", recipe=tiny.RECIPE, optimizer="sgd", epochs=1)
    start = program.start(0)
    before = np.array(jax.random.key_data(start.model_state["dropout"]["rngs"]["key"][...]))
    state, _ = program.epoch(start, program.arrays)
    rngs = state.model_state["dropout"]["rngs"]
    # What is carried on is the same on all devices: a key and how often it was drawn from.
    assert (jax.random.key_data(rngs["key"][...]) == before).all()
    assert rngs["count"][...] == 4
    devices = program.task.parallel
    keys = devices.step(
        lambda key: jax.random.key_data(devices.own_key(key))[None], (P(),), P("data")
    )
    assert len(np.unique(np.asarray(keys(state.key)), axis=0)) == 8


@pytest.mark.parametrize("stream", ["false", "true"])
def test_a_batch_that_the_devices_cannot_share_is_refused(stream):
    with pytest.raises(RecipeError, match=r"batch_size: expected a multiple of 8 .*, got 12"):
        prepared("jit", stream=stream, batch_size=12)


def test_a_wrong_number_of_processes_is_one_clear_line(monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(RecipeError, match="--distributed: expected a cluster that JAX knows"):
        parallel.initialize()


def test_axes_that_grow_with_the_rows_are_cut():
    tree = parallel.rows_axis(lambda n: (jnp.zeros((3, n, 5)), jnp.zeros(7)))
    assert tree == (P(None, "data", None), P())
