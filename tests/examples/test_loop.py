"""The training loop: model state, streams, memory, evaluation, precision, dense methods, estimates."""

import io
import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from rich.console import Console

from examples import loop, parallel, report
from examples.data import Batch
from examples.data.pipeline import iterate
from examples.recipe import RecipeError, make_run, split_overrides
from examples.streaming import Feed
from examples.timing import Pace
from tests.examples import tiny

SPARSITY = tiny.RECIPE.sparsity[:1]


def fitted(run, seed=0):
    return loop.fit(loop.prepare(run, run.recipe.load(None)), seed)


@pytest.fixture(scope="module")
def in_memory():
    return loop.prepare(tiny.tiny_run(), tiny.RECIPE.load(None))


@pytest.fixture(scope="module")
def streamed():
    return loop.prepare(tiny.tiny_run(stream="true"), tiny.RECIPE.load(None))


@pytest.fixture(scope="module")
def fit_in_memory(in_memory):
    return loop.fit(in_memory, 0)


def test_batch_statistics_and_dropout_keys_move_and_training_learns(fit_in_memory):
    fit = fit_in_memory
    assert fit.rows[-1]["objective"] < fit.rows[0]["objective"]
    assert fit.rows[-1]["test_accuracy"] > 0.8
    assert np.all(fit.model_state["norm"]["mean"][...] != 0)
    assert fit.model_state["dropout"]["rngs"]["count"][...] == 4 * 4  # one draw a step


def test_evaluation_is_that_of_the_whole_set_at_once_in_evaluation_mode(fit_in_memory):
    fit, dataset = fit_in_memory, tiny.RECIPE.load(None)
    model = tiny.Model()(nnx.Rngs(0), jnp.float32)
    nnx.update(model, fit.params, fit.model_state)
    model.eval()
    for part in ("train", "test"):  # 70 and 25 examples in batches of 16: the last is part full
        inputs, targets = getattr(dataset, f"{part}_inputs"), getattr(dataset, f"{part}_targets")
        logits = model(jnp.asarray(inputs))
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()
        np.testing.assert_allclose(fit.rows[-1][f"{part}_loss"], loss, rtol=1e-5)
        accuracy = (logits.argmax(-1) == targets).mean()
        np.testing.assert_allclose(fit.rows[-1][f"{part}_accuracy"], accuracy, rtol=1e-6)


def test_a_streamed_set_is_trained_and_evaluated_like_one_in_memory(fit_in_memory, streamed):
    fit = loop.fit(streamed, 0)
    assert list(fit.rows[-1]) == list(fit_in_memory.rows[-1])
    assert fit.rows[-1]["step"] == 16
    # Another order of the examples, but the same evaluation, so the same quality.
    assert fit.rows[-1]["test_accuracy"] == pytest.approx(
        fit_in_memory.rows[-1]["test_accuracy"], abs=0.1
    )
    again = loop.fit(streamed, 0)
    assert [row["objective"] for row in again.rows] == [row["objective"] for row in fit.rows]


def test_a_stream_evaluates_the_same_weights_as_the_device_does(in_memory, streamed):
    state = in_memory.start(0)
    state, _ = in_memory.epoch(state, in_memory.feed(0))
    for name, value in in_memory.evaluate(state).items():
        np.testing.assert_allclose(streamed.evaluate(state)[name], value, rtol=1e-5, atol=1e-7)


def test_a_step_as_a_program_is_the_epoch_as_a_program(monkeypatch):
    run = tiny.tiny_run("sgd", epochs=1)
    dataset = run.recipe.load(None)
    states = []
    for slow in (False, True):
        monkeypatch.setattr("examples.in_memory._slow_in_loops", lambda state, slow=slow: slow)
        program = loop.prepare(run, dataset)
        states.append(program.epoch(program.start(0), program.arrays))
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_dense_method_has_no_solver_and_one_iterate(optimizer):
    row = fitted(tiny.tiny_run(optimizer, epochs=2)).rows[-1]
    assert row["solver_iterations"] == row["weighted_group_sparsity"] == 0
    assert row["objective"] == row["minimizer_objective"] == row["train_loss"]


def test_sgd_is_momentum_with_the_decay_in_the_gradient():
    run = tiny.tiny_run("sgd", stages="", learning_rate=0.5, weight_decay=0.25)
    transformation = run.transformation(10)
    p, m = jnp.array([2.0]), 0.0
    state, params = transformation.init(p), p
    for g in (1.0, -3.0):
        updates, state = transformation.update(jnp.array([g]), state, params)
        params = optax.apply_updates(params, updates)
        m = 0.9 * m + g + 0.25 * p
        p = p - 0.5 * m
        np.testing.assert_allclose(params, p, rtol=1e-6)


def test_bfloat16_changes_the_arithmetic_and_keeps_parameters_and_statistics_float32():
    exact, rough = (
        fitted(tiny.tiny_run("sgd", epochs=1, compute_dtype=t)) for t in ("float32", "bfloat16")
    )
    assert exact.rows[-1]["train_loss"] != rough.rows[-1]["train_loss"]
    assert rough.rows[-1]["train_loss"] == pytest.approx(exact.rows[-1]["train_loss"], rel=0.1)
    leaves = jax.tree.leaves((rough.params, rough.model_state["norm"]))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}


def test_gradients_are_clipped_to_the_norm():
    transformation = tiny.tiny_run("sgd", clip_norm=0.1, weight_decay=0, stages="").transformation(
        5
    )
    params = {"kernel": jnp.zeros((6, 3))}
    updates, _ = transformation.update(
        {"kernel": jnp.ones((6, 3))}, transformation.init(params), params
    )
    assert optax.global_norm(updates) == pytest.approx(0.1 * 0.1)


@pytest.mark.parametrize(
    ("schedule", "middle"), [("stages", 0.1), ("cosine", 0.5), ("linear", 0.5)]
)
def test_the_rate_falls_by_stages_or_smoothly_to_the_end(schedule, middle):
    run = tiny.tiny_run("sgd", schedule=schedule, learning_rate=1, weight_decay=0, momentum=0)
    transformation = run.transformation(steps_per_epoch=5)  # 20 steps, the second stage from 10
    params = jnp.zeros(1)
    state, rates = transformation.init(params), []
    for _ in range(20):
        updates, state = transformation.update(jnp.ones(1), state, params)
        rates.append(-float(updates[0]))
    assert rates[0] == 1
    assert rates[10] == pytest.approx(middle)
    assert rates[19] < 0.11


@pytest.mark.parametrize("mode", [None, "jit", "pmap"])
def test_a_memory_runs_through_a_pass_and_starts_anew_with_the_next(mode):
    run = tiny.counting_run()
    devices = parallel.MODES[mode](jax.devices()[:4]) if mode else parallel.ONE_DEVICE
    program = loop.prepare(run, tiny.counting_stream(), devices)
    state, feed, memories = program.start(0), program.feed(0), []
    for _ in range(3):  # 6 steps of a pass of 3
        state, _ = program.epoch(state, feed)
        memories.append(float(state.memory[0, 0]))
    assert memories == [4.0, 2.0, 6.0]
    # Evaluation has a memory of its own: 2, 4, 6 whatever training remembers.
    figures = program.evaluate(state)
    assert figures["test_last"] == figures["minimizer_train_last"] == pytest.approx(4.0)
    assert figures["test_double"] == pytest.approx(8.0)


def test_a_model_with_a_memory_needs_a_stream():
    recipe = tiny.changed(memory=lambda model, size: jnp.zeros(size))
    run = tiny.tiny_run(recipe=recipe)
    with pytest.raises(RecipeError, match="needs a stream"):
        loop.prepare(run, run.recipe.load(None))


def test_augmentation_and_scaling_are_applied_where_they_belong():
    recipe = tiny.changed(
        augment=lambda key, inputs: inputs * 0 + jnp.nan, prepare=lambda inputs: inputs / 2
    )
    run = tiny.tiny_run("sgd", recipe, epochs=1)
    program = loop.prepare(run, run.recipe.load(None))
    start = program.start(0)
    plain = loop.prepare(tiny.tiny_run("sgd", epochs=1), run.recipe.load(None))
    assert np.isfinite(program.evaluate(start)["test_loss"])  # not augmented
    assert program.evaluate(start)["test_loss"] != plain.evaluate(start)["test_loss"]  # scaled
    state, _ = program.epoch(start, program.arrays)
    assert np.isnan(state.params["inner"]["kernel"][...]).all()  # augmented


def test_nested_fields_are_set_from_the_command_line_and_by_scales():
    run = make_run(
        tiny.RECIPE, "ramda", "smoke", split_overrides(["data.train=40", "schedule=cosine"])
    )
    assert (run.recipe.model.hidden, run.settings.epochs) == (4, 1)
    assert (run.recipe.load.train, run.method.schedule) == (40, "cosine")
    run = make_run(tiny.RECIPE, "ramda", "smoke", {"model.hidden": "5"})
    assert run.recipe.model.hidden == 5
    for name, text, message in (
        ("model.width", "3", "model.width: no such field for ramda, which has epochs"),
        ("model.hidden", "x", "model.hidden: expected an integer, got 'x'"),
        ("schedule", "fast", "schedule: expected one of stages, cosine, linear, got 'fast'"),
        ("compute_dtype", "int8", "compute_dtype: expected one of float32, bfloat16"),
        ("eval_batch_size", "0", "eval_batch_size: expected at least 1, got 0"),
    ):
        with pytest.raises(RecipeError, match=message):
            make_run(tiny.RECIPE, "ramda", "paper", {name: text})


def test_a_scale_can_change_a_field_of_one_method():
    recipe = tiny.changed(scales={"small": {"ramda.strength": 0.5, "epochs": 2}})
    for optimizer, strength in (("ramda", 0.5), ("adamw", 0.0)):
        run = make_run(recipe, optimizer, "small")
        assert (run.method.strength, run.settings.epochs) == (strength, 2)


def test_batches_of_several_shapes_are_compiled_once_each():
    recipe = tiny.changed(loss=lambda outputs, targets: outputs[:, 0], metrics={})
    run = tiny.tiny_run("sgd", recipe, stream="true")
    streaming = loop.prepare(run, recipe.load(None))
    state, total = streaming.start(0), jnp.zeros(())
    compiled = []
    for size in (16, 8, 16, 8):
        batch = Batch(jnp.ones((size, 6)), jnp.zeros(size, jnp.int32), jnp.ones(size))
        state, total = streaming.step(state, batch, total)
        compiled.append(streaming.step.seconds)
    assert 0 < compiled[0] < compiled[1] == compiled[2] == compiled[3]


def test_batches_read_ahead_are_not_taken_yet():
    ones = tiny.counting_stream().train(4, 0).repeat()
    feed = Feed(iterate(ones, 0), lambda batch: batch, ahead=2)
    feed.take()
    feed.fill()
    assert feed.taken == 1
    feed.take()
    feed.seek(5)
    feed.take()
    assert feed.taken == 6


def test_the_pace_is_that_of_steps_without_their_compilation(monkeypatch):
    clock, compiled, told = [0.0], [0.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    pace = Pace(lambda *found: told.append(found), lambda: compiled[0], least=12.0)
    for number in range(40):
        if number in (0, 5):  # another shape is compiled on the way
            clock[0], compiled[0] = clock[0] + 100.0, compiled[0] + 100.0
        clock[0] += 9.0 if number == 0 else 1.0
        pace(jnp.zeros(()))
    assert told == [(1.0, 16)]  # after 8 steps it is 7 seconds, which do not suffice


@pytest.mark.parametrize("kind", ["stream", "by steps", "one program"])
def test_a_run_says_in_its_first_epoch_how_long_it_will_take(kind, monkeypatch):
    monkeypatch.setattr("examples.in_memory._slow_in_loops", lambda task: kind == "by steps")
    run = tiny.tiny_run("sgd", epochs=3, batch_size=5, stages="", eval_train_examples=30)
    run = replace(run, settings=replace(run.settings, stream=kind == "stream"))
    program, estimates, epochs = loop.prepare(run, run.recipe.load(None)), [], []

    def pace(tell, compiling):
        steps = iter(range(1, 100))
        return lambda computed: tell(2.0, n) if (n := next(steps)) == 10 else None

    monkeypatch.setattr(loop, "Pace", pace)
    estimate = lambda seconds: estimates.append((seconds, len(epochs)))
    loop.fit(program, 0, epochs.append, on_estimate=estimate)
    # 14 steps of 5, then 30 training and 25 test examples at W and What, and 25 at the point to
    # deploy (a stream reads the 30 for that, too): each a third of an example's share of a step.
    evaluated = {"stream": 3 * 30 + 3 * 25, "by steps": 2 * 30 + 3 * 25}
    if kind in evaluated:
        left = 2.0 * (3 * (14 + evaluated[kind] / (3 * 5)) - 10)
        assert estimates == [(pytest.approx(left), 0)]
    else:
        assert not estimates  # an epoch is over before anything is known


@pytest.mark.parametrize("early", [True, False])
def test_how_long_a_run_takes_is_said_once(early):
    file, run = io.StringIO(), tiny.tiny_run("sgd", epochs=3)
    row = {f"{p}{n}": 0.5 for p in ("", "structured_") for n in ("test_accuracy", *SPARSITY)}
    with report.progress_bar(Console(file=file), run) as shown:
        if early:
            shown.estimate(125.0)
        for epoch in (1, 2, 3):
            shown.epoch({**row, "objective": 1.0, "epoch": epoch})
    lines = file.getvalue().splitlines()
    said = [number for number, line in enumerate(lines) if line.endswith(" to go")]
    assert said == [0 if early else 2]
    assert not early or lines[0] == "about 2.1 minutes to go"
