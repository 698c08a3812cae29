"""A trained model made smaller by `--compact`: the same figures, a file, and no training again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ramda_jax as rj
from examples import compact, in_memory, loop, train
from examples.checkpoint import last_run
from examples.data.pipeline import as_stream
from examples.folder import LOCK
from examples.generate import trained_model
from examples.recipe import RecipeError
from examples.recipes import RECIPES
from examples.task import Task
from tests.examples import tiny
from tests.examples.test_mnist_linear import read_json

COMMAND = ["tiny", "strength=0.03", "checkpoint_every=4"]


@pytest.fixture(scope="module")
def quick():
    """The tiny recipe by its name, and no more time for latencies than a call takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RECIPES, "tiny", tiny.RECIPE)
        patch.setattr(compact, "_SECONDS", 0.0)
        yield


@pytest.fixture(scope="module")
def finished(quick, tmp_path_factory):
    """The folder of a run with `--compact`."""
    out = tmp_path_factory.mktemp("run")
    assert train.main([*COMMAND, "--out", str(out), "--compact"]) == 0
    return out


@pytest.fixture(scope="module")
def fitted():
    """A task whose structured point has zeros, what it came to, and its data."""
    run = tiny.tiny_run(strength=0.03)
    dataset = run.recipe.load(None)
    program = loop.prepare(run, dataset)
    fit = loop.fit(program, 0)
    variables = compact.Variables(fit.structured, fit.model_state)
    return program.task, variables, as_stream(dataset)


def test_a_run_ends_with_a_smaller_model_of_the_same_figures(finished):
    found, summary = read_json(finished / "compact.json"), read_json(finished / "summary.json")
    parameters = found["parameters"]
    assert parameters["whole"] == 6 * 8 + 8 + 2 * 8 + 8 * 3 + 3
    assert parameters["compact"] < 0.9 * parameters["whole"]
    assert found["flops"]["compact"] < found["flops"]["whole"] == 2 * (6 * 8 + 8 * 3)
    whole, small = found["figures"]["whole"], found["figures"]["compact"]
    assert whole["accuracy"] == summary["final"]["structured_test_accuracy"]
    assert whole["loss"] == pytest.approx(summary["final"]["structured_test_loss"], rel=1e-5)
    assert small["accuracy"] == whole["accuracy"]
    assert small["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    assert found["examples"] == summary["data"]["test_examples"] == 25
    assert found["changed_classes"] == 0
    assert [row["examples"] for row in found["latency"]] == [1, 128]


def test_the_file_gives_what_the_structured_point_gives(finished, fitted):
    inputs = jnp.asarray(next(compact.test_batches(fitted[2], 5)).inputs)
    structured = trained_model(finished, last_run(finished), structured=True)
    model = rj.load_compact(finished / "compact.zip")
    rows = [model(inputs[k : k + 1])[0] for k in range(5)]
    np.testing.assert_allclose(jnp.concatenate(rows), structured(inputs), rtol=1e-5, atol=1e-6)


def test_a_finished_run_is_compacted_without_training(finished, capsys, monkeypatch):
    def epoch(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(in_memory.InMemory, "epoch", epoch)
    command = [*COMMAND, "--out", str(finished), "--resume", "--compact"]
    assert train.main([*command, "--new-statistics", "3", "--multiple-of", "8"]) == 0
    shown = capsys.readouterr().out
    assert "The structured point, compacted" in shown
    assert "compact.zip" in shown
    found = read_json(finished / "compact.json")
    assert (found["new_statistics"], found["multiple_of"]) == (3, 8)
    assert found["arrays"]["params/outer/kernel"]["after"] == [8, 3]  # all that there are


def test_a_run_that_is_refused_leaves_what_was_there(finished, capsys, monkeypatch):
    kept = {path.name: path.read_bytes() for path in finished.iterdir() if path.is_file()}
    with monkeypatch.context() as patch:
        names = Task.figure_names
        patch.setattr(Task, "figure_names", lambda task: [*names(task), "new"])
        for words in ([], ["--compact"]):
            assert train.main([*COMMAND, *words, "--out", str(finished), "--resume"]) == 2
            assert "new is missing there, a figure here: go on with" in capsys.readouterr().err
    other = [word.replace("0.03", "0.04") for word in COMMAND]
    assert train.main([*other, "--out", str(finished), "--resume"]) == 2
    assert "method.strength is 0.03 there, 0.04 here" in capsys.readouterr().err
    for name, content in kept.items():
        if name != LOCK:
            assert (finished / name).read_bytes() == content, name


def test_new_statistics_are_the_means_over_batches_of_those_of_the_batches(fitted):
    task, variables, stream = fitted
    batches = list(compact.training_batches(task, stream, 3))
    found = compact.new_statistics(task, *variables, iter(batches))
    inner = variables.params["inner"]
    hidden = [np.asarray(b.inputs) @ inner["kernel"][...] + inner["bias"][...] for b in batches]
    mean = np.mean([h.mean(axis=0) for h in hidden], axis=0)
    var = np.mean([h.var(axis=0) for h in hidden], axis=0)
    np.testing.assert_allclose(found["norm"]["mean"][...], mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["norm"]["var"][...], var, rtol=1e-4)
    assert not np.allclose(variables.model_state["norm"]["mean"][...], mean, rtol=1e-2)
    same = compact.new_statistics(task, *variables, iter(batches))
    np.testing.assert_array_equal(same["norm"]["var"][...], found["norm"]["var"][...])


def test_ties_and_changed_classes_are_counted_among_real_examples():
    whole = jnp.array([[1.0, 1.0 - 1e-6, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 9.0]])
    small = jnp.array([[1.0 - 1e-6, 1.0, 0.0], [2.0, 1e-6, 0.0], [9.0, 0.0, 0.0]])
    found = compact._differences(True, whole, small, jnp.array([1.0, 1.0, 0.0]))
    assert {name: int(found[name]) for name in ("examples", "ties", "changed")} == {
        "examples": 2, "ties": 1, "changed": 1,
    }  # fmt: skip
    assert float(found["error"]) == pytest.approx(1e-6, rel=0.1)
    assert float(found["scale"]) == 2.0


def test_a_memory_runs_through_the_batches_of_both_models():
    run = tiny.counting_run()
    stream = tiny.counting_stream()
    program = loop.prepare(run, stream)
    state = program.start(0)
    variables = compact.Variables(state.params, state.model_state)
    first = next(compact.test_batches(stream, 4)).inputs
    small = compact.compacted(program.task, variables, first)
    compared = compact.compare(program.task, variables, small, compact.test_batches(stream, 4))
    assert compared.whole == compared.compact == {"loss": 4.0, "last": 4.0, "double": 8.0}
    assert compared.ties is None
    assert "Nothing could be cut" in small.one.report().reasons[0]


def test_another_model_is_refused(fitted):
    task, variables, stream = fitted
    first = next(compact.test_batches(stream, 16)).inputs
    small = compact.compacted(task, variables, first)
    wrong = variables._replace(params=jax.tree.map(lambda x: 1.5 * x, variables.params))
    compared = compact.compare(task, wrong, small, compact.test_batches(stream, 16))
    assert compared.error > 0.1
    with pytest.raises(RecipeError, match="the outputs of the compact model differ by"):
        compact._refuse_another_model(task, compared)


def test_what_cannot_be_compacted_says_why(fitted):
    task, variables, stream = fitted
    first = next(compact.test_batches(stream, 1)).inputs
    nan = variables._replace(params=jax.tree.map(lambda x: x * jnp.nan, variables.params))
    with pytest.raises(RecipeError, match="--compact: the parameter 'params/inner/bias'"):
        compact.compacted(task, nan, first)
    counter = loop.prepare(tiny.counting_run(), tiny.counting_stream())
    state = counter.start(0)
    with pytest.raises(RecipeError, match="expected a model with batch norms"):
        compact.new_statistics(counter.task, state.params, state.model_state, iter(()))
    with pytest.raises(RecipeError, match="expected at least one training batch"):
        compact.new_statistics(task, *variables, iter(()))


BAD_OPTIONS = {
    "--new-statistics: expected --compact": ["--new-statistics", "3"],
    "--multiple-of: expected --compact": ["--multiple-of", "8"],
    "--new-statistics: expected at least 0": ["--compact", "--new-statistics", "-1"],
    "--multiple-of: expected at least 1": ["--compact", "--multiple-of", "0"],
    "--compact: expected one process": ["--compact", "--distributed"],
}


@pytest.mark.parametrize("message", BAD_OPTIONS)
def test_options_that_do_not_fit_are_refused_before_the_training(message, tmp_path, capsys):
    command = ["mnist_linear", "--out", str(tmp_path / "run"), *BAD_OPTIONS[message]]
    assert train.main(command) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
