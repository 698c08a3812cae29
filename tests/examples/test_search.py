"""The search of settings, through its command line."""

import csv

import numpy as np
import pytest

from examples import compact, path, search
from examples.data import DataError, idx
from examples.recipes import find
from tests.examples.idx_files import write_digits


def test_a_search_trains_with_every_combination_and_records_it(tmp_path, idx_dir, capsys):
    out = tmp_path / "search"
    grid = ["strength=1e-4|3e-2", "learning_rate=1e-2|2e-2", "epochs=2", "stages=1"]
    command = ["mnist_linear", "--scale", "smoke", "--data-dir", str(idx_dir), "--out", str(out)]
    assert search.main([*command, *grid]) == 0
    with (out / "search.csv").open() as file:
        rows = list(csv.DictReader(file))
    chosen = [(row["strength"], row["learning_rate"]) for row in rows]
    assert chosen == [("1e-4", "1e-2"), ("1e-4", "2e-2"), ("3e-2", "1e-2"), ("3e-2", "2e-2")]
    assert {(row["optimizer"], row["epoch"]) for row in rows} == {("ramda", "2")}
    sparsities = [float(row["structured_weighted_group_sparsity"]) for row in rows]
    assert max(sparsities[:2]) < min(sparsities[2:])
    assert len({row["test_loss"] for row in rows}) == 4
    assert "search.csv is in" in capsys.readouterr().out


def test_a_search_over_the_data_or_with_a_bad_value_is_one_clear_line(tmp_path, idx_dir, capsys):
    command = ["fashion_mnist_mlp", "--data-dir", str(idx_dir), "--out", str(tmp_path / "search")]
    for override, message in (
        ("data.train_limit=10|20", "expected one value for all trials"),
        ("strength=1|two", "strength: expected a finite number, got 'two'"),
    ):
        assert search.main([*command, override]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "search").exists()


@pytest.mark.parametrize("warm", [[], ["--warm"]], ids=["cold", "warm"])
def test_a_path_compacts_every_point(warm, tmp_path, idx_dir, capsys, monkeypatch):
    monkeypatch.setattr(compact, "_TURNS", 2)
    monkeypatch.setattr(compact, "_SECONDS", 0.0)
    out = tmp_path / "path"
    command = ["mnist_linear", "--scale", "smoke", "--data-dir", str(idx_dir), "--out", str(out)]
    points = ["strength=3e-2|1e-4", "epochs=2", "stages=1"]
    assert path.main([*command, *points, *warm]) == 0
    with (out / "path.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["strength"] for row in rows] == ["0.0001", "0.03"]  # ascending
    assert int(rows[0]["flops"]) > int(rows[1]["flops"])
    for row in rows:
        assert int(row["whole_parameters"]) == 7850
        assert row["compact_test_accuracy"] == row["structured_test_accuracy"]
    assert (out / "path.md").read_text().count("\n| ") == 4
    assert (out / "path.png").stat().st_size > 10_000
    assert {p.name for p in out.iterdir() if p.is_dir()} == {"strength-0.0001", "strength-0.03"}
    losses = []
    for point in ("strength-0.0001", "strength-0.03"):
        with (out / point / "metrics.csv").open() as file:
            losses.append(float(next(csv.DictReader(file))["train_loss"]))
    # After an epoch from the weights of the point before, or from the beginning with the greater strength.
    assert (losses[1] < losses[0]) == bool(warm)
    assert "a folder per point are in" in capsys.readouterr().out


def test_a_path_that_cannot_be_gone_is_one_clear_line(tmp_path, idx_dir, capsys):
    command = ["mnist_linear", "--data-dir", str(idx_dir), "--out", str(tmp_path / "path")]
    for words, message in (
        (["epochs=2|3"], "epochs: expected one value, only strength= takes several"),
        (["--optimizer", "sgd"], "strength: expected values, as sgd has none in mnist_linear"),
        (["--distributed"], "--distributed: expected one process"),
    ):
        assert path.main([*command, *words]) == 2
        assert message in capsys.readouterr().err
    default = path.point_runs(find("mnist_linear"), "ramda", "smoke", {})
    assert len(default) == len(path.FACTORS)


def test_validation_examples_are_not_trained_on(tmp_path, monkeypatch):
    monkeypatch.setattr(idx, "_VALIDATION_IMAGES", 30)
    write_digits(tmp_path)
    whole, valid = idx.FashionMnist()(tmp_path), idx.FashionMnist(split="valid")(tmp_path)
    np.testing.assert_array_equal(valid.train_inputs, whole.train_inputs[:-30])
    np.testing.assert_array_equal(valid.train_targets, whole.train_targets[:-30])
    np.testing.assert_array_equal(valid.test_inputs, whole.train_inputs[-30:])
    np.testing.assert_array_equal(valid.test_targets, whole.train_targets[-30:])
    assert valid.source.endswith("tested on the last 30 training examples")
    few = idx.FashionMnistAsCifar(split="valid", train_limit=7)(tmp_path)
    assert (few.train_examples, few.test_examples) == (7, 30)
    monkeypatch.setattr(idx, "_VALIDATION_IMAGES", 300)
    with pytest.raises(DataError, match="expected more than the 300 training examples"):
        idx.FashionMnist(split="valid")(tmp_path)
