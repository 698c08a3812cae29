"""Every recipe as a whole: its scales and methods make runs, and the small ones train."""

import numpy as np
import pytest

from examples import compare, train
from examples.methods import Dense
from examples.recipe import SCALES, make_run
from examples.recipes import RECIPES
from tests.examples.test_mnist_linear import idx_dir, read_csv, read_json  # noqa: F401


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_every_scale_of_every_method_is_a_run_that_reaches_its_stages(recipe):
    for scale in SCALES:
        for optimizer in recipe.methods:
            settings = make_run(recipe, optimizer, scale).settings
            assert all(stage < settings.epochs for stage in settings.stages)
    methods = list(recipe.methods.values())
    assert any(isinstance(method, Dense) for method in methods)
    assert all(isinstance(m, Dense) or m.strength > 0 for m in methods)


FASHION = {
    "fashion_mnist_mlp": ("low_rank_level", ["model.widths=784,24,10"]),
    "fashion_mnist_convnet": ("weighted_group_sparsity", ["model.hidden=8"]),
}


@pytest.mark.parametrize("name", FASHION)
def test_a_fashion_mnist_recipe_trains(tmp_path, idx_dir, name):  # noqa: F811
    structure, overrides = FASHION[name]
    options = ["--scale", "smoke", "--data-dir", str(idx_dir), "--out", str(tmp_path / "run")]
    assert train.main([name, *options, *overrides, "batch_size=50", "momentum=0.5"]) == 0
    rows = read_csv(tmp_path / "run" / "metrics.csv")
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert 0 <= rows[-1][structure] <= rows[-1][f"structured_{structure}"] <= 1
    summary = read_json(tmp_path / "run" / "summary.json")
    assert summary["model"]
    assert summary["data"]["train_examples"] == 300
    assert summary["step_seconds"] == np.median([row["seconds_per_step"] for row in rows])


def test_a_run_goes_on_with_resume_from_the_command_line(tmp_path, idx_dir, capsys):  # noqa: F811
    out = tmp_path / "run"
    command = ["mnist_linear", "--optimizer", "sgd", "--scale", "smoke"]
    command += ["--data-dir", str(idx_dir), "--out", str(out), "checkpoint_every=1"]
    assert train.main([*command, "--resume"]) == 2
    assert "--resume: expected checkpoints" in capsys.readouterr().err
    assert not out.exists()
    assert train.main([*command, "epochs=2"]) == 0
    assert train.main([*command, "epochs=3"]) == 2
    assert "give --resume to go on with it" in capsys.readouterr().err
    assert train.main(["--resume", "epochs=3", *command]) == 0
    assert [row["epoch"] for row in read_csv(out / "metrics.csv")] == [1, 2, 3]
    assert train.main([*command, "--resume", "epochs=4", "learning_rate=1"]) == 2
    assert "method.learning_rate is 0.01 there, 1.0 here" in capsys.readouterr().err


def test_compare_takes_the_data_that_the_runs_ask_for(tmp_path, idx_dir, monkeypatch):  # noqa: F811
    asked = []
    monkeypatch.setattr(
        "examples.loop.prepare", lambda run, data: asked.append(data.train_examples)
    )
    monkeypatch.setattr("examples.compare.train_into", lambda *arguments: 1 / 0)
    command = ["fashion_mnist_mlp", "--scale", "smoke", "--data-dir", str(idx_dir)]
    with pytest.raises(ZeroDivisionError):
        compare.main([*command, "--out", str(tmp_path / "all"), "data.train_limit=100"])
    assert asked == [100]
