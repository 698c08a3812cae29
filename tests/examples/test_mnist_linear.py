"""The main job, through its command line, at a scale of seconds."""

import csv
import json

import numpy as np
import pytest

from examples import compare, data, train
from tests.examples.idx_files import write_idx

METHODS = ["ramda", "rmda", "prox_sgd", "prox_adamw", "prox_ssi", "sgd", "adamw"]
FILES = ("metrics.csv", "summary.json", "curves.png")


def read_csv(path):
    with path.open() as file:
        return [
            {name: value if name == "optimizer" else float(value) for name, value in row.items()}
            for row in csv.DictReader(file)
        ]


def read_json(path):
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_the_main_job_learns_and_leaves_its_files(tmp_path, capsys):
    out = tmp_path / "run"
    assert train.main(["mnist_linear", "--scale", "smoke", "--out", str(out)]) == 0
    rows, summary = read_csv(out / "metrics.csv"), read_json(out / "summary.json")
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[-1]["step"] == 6 * 31
    assert rows[-1]["objective"] < rows[0]["objective"] < np.log(10)
    assert rows[-1]["test_accuracy"] > 0.85
    # The averaged iterate is dense long after What has its zeros.
    assert rows[-1]["weighted_group_sparsity"] == 0
    assert rows[-1]["structured_weighted_group_sparsity"] > 0.2
    assert rows[-1]["solver_iterations"] < 10
    assert summary["final"] == rows[-1]
    assert summary["settings"]["batch_size"] == 128
    assert summary["method"] == {
        "learning_rate": 0.01,
        "strength": 0.001,
        "schedule": "stages",
        "solver_iterations": 0,
        "solver_rtol": 1e-8,
        "momentum": 0.01,
    }
    assert summary["data"]["train_examples"] == 4000
    assert summary["versions"]["jax"]
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    for word in (
        "GroupLasso",
        "objective of W",
        "weighted group sparsity of Ŵ",
        "solver iterations",
    ):
        assert word in shown


def test_idx_files_give_the_images_they_hold(idx_dir):
    dataset = data.mnist(idx_dir)
    assert dataset.train_inputs.shape == (300, 784)
    assert dataset.test_targets.shape == (100,)
    images = data.read_idx(idx_dir / "train-images-idx3-ubyte", dimensions=3).reshape(300, 784)
    expected = (images / 255 - 0.1307) / 0.3081
    np.testing.assert_allclose(dataset.train_inputs, expected, rtol=1e-6)


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tmp_path, idx_dir):
    objectives = []
    for number, seed in enumerate((0, 0, 1)):
        out = tmp_path / str(number)
        options = ["--scale", "smoke", "--data-dir", str(idx_dir), "--out", str(out)]
        command = ["mnist_linear", "--optimizer", "rmda", *options]  # compiled sooner than ramda
        assert train.main([*command, f"seed={seed}", "epochs=2"]) == 0
        objectives.append(read_csv(out / "metrics.csv")[-1]["objective"])
    assert objectives[0] == objectives[1] != objectives[2]


def test_compare_trains_all_methods_and_puts_them_side_by_side(tmp_path, idx_dir, capsys):
    out = tmp_path / "all"
    options = ["--scale", "smoke", "--seeds", "2", "--data-dir", str(idx_dir), "--out", str(out)]
    assert compare.main(["mnist_linear", *options, "epochs=2", "momentum=0.5"]) == 0
    rows = read_csv(out / "comparison.csv")
    assert [row["optimizer"] for row in rows] == [name for name in METHODS for _ in range(2)]
    assert [row["seed"] for row in rows] == [0, 1] * 7
    for name in METHODS:
        assert all((out / f"{name}-seed1" / file).is_file() for file in FILES)
        first, last = read_csv(out / f"{name}-seed1" / "metrics.csv")
        assert last["objective"] < first["objective"]
    # A field that only some methods have is set for those.
    assert read_json(out / "rmda-seed1" / "summary.json")["method"]["momentum"] == 0.5
    assert read_json(out / "rmda-seed1" / "summary.json")["settings"]["seed"] == 1
    assert "momentum" not in read_json(out / "prox_adamw-seed0" / "summary.json")["method"]
    for picture in ("comparison.png", "metric.png", "structure.png"):
        assert (out / picture).read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    for word in ("±", "time over dense", "milliseconds per step"):
        assert word in shown
    about, _, header, _, *lines = (out / "comparison.md").read_text().splitlines()
    assert "300 + 100 MNIST images from IDX files; 2 epochs of 2 steps of 128" in about
    assert [line.split(" | ")[0] for line in lines] == [f"| {name}" for name in METHODS]
    column = header.split(" | ").index("test accuracy of W")
    mean = np.mean([row["test_accuracy"] for row in rows[:2]])
    assert lines[0].split(" | ")[column].startswith(f"{mean:.4f} ± ")


def test_a_run_that_diverges_says_so_and_still_leaves_strict_json(tmp_path, idx_dir, capsys):
    out = tmp_path / "run"
    arguments = ["mnist_linear", "--optimizer", "prox_sgd", "--data-dir", str(idx_dir)]
    overrides = ["learning_rate=1e38", "strength=0", "epochs=20"]
    assert train.main([*arguments, "--out", str(out), *overrides]) == 1
    assert "diverged" in capsys.readouterr().err
    assert read_json(out / "summary.json")["final"]["objective"] is None
    assert len(read_csv(out / "metrics.csv")) < 20


BAD_ARGUMENTS = {
    "unknown recipe": (["nonsense"], "recipe: expected one of mnist_linear"),
    "unknown optimizer": (
        ["mnist_linear", "--optimizer", "lion"],
        "methods: mnist_linear has ramda",
    ),
    "unknown scale": (["mnist_linear", "--scale", "huge"], "scale: expected one of paper"),
    "unknown field": (["mnist_linear", "epoch=3"], "epoch: no such field for ramda"),
    "field of another method": (["mnist_linear", "b1=0.5"], "b1: no such field for ramda"),
    "not an integer": (["mnist_linear", "epochs=many"], "epochs: expected an integer, got 'many'"),
    "not a number": (["mnist_linear", "momentum=x"], "momentum: expected a finite number"),
    "not finite": (["mnist_linear", "strength=nan"], "strength: expected a finite number"),
    "not integers": (["mnist_linear", "stages=1,b"], "stages: expected integers separated by"),
    "not true or false": (
        ["mnist_linear", "--optimizer", "prox_ssi", "bias_corrected_metric=1"],
        "bias_corrected_metric: expected true or false",
    ),
    "no value": (["mnist_linear", "epochs"], "epochs: expected field=value"),
    "twice": (["mnist_linear", "epochs=1", "epochs=2"], "epochs: given twice"),
    "no epochs": (["mnist_linear", "epochs=0"], "epochs: expected at least 1, got 0"),
    "falling stages": (["mnist_linear", "stages=3,2"], "stages: expected rising epochs"),
    "batch too large": (["mnist_linear", "batch_size=5000"], "batch_size: expected at most 4000"),
    "momentum out of range": (["mnist_linear", "momentum=2"], "momentum"),
    "negative rate": (["mnist_linear", "learning_rate=-1"], "learning_rate"),
    "negative strength": (["mnist_linear", "strength=-1"], "strength"),
    "no such folder": (["mnist_linear", "--data-dir", "no/such"], "no/such: expected a folder"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS)
def test_wrong_arguments_end_in_one_clear_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert train.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "runs").exists()


def test_compare_refuses_a_field_no_method_has_no_seeds_and_an_unknown_method(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert compare.main(["mnist_linear", "epoch=3"]) == 2
    assert "epoch: no method of mnist_linear has such a field" in capsys.readouterr().err
    assert compare.main(["mnist_linear", "--seeds", "0"]) == 2
    assert "--seeds: expected at least 1" in capsys.readouterr().err
    assert compare.main(["mnist_linear", "--methods", "rmda,adam"]) == 2
    assert "methods: mnist_linear has ramda, rmda, " in capsys.readouterr().err


def _cut(content):
    return content[:-1]


BAD_FILES = {
    "missing": ("train-labels-idx1-ubyte", lambda content: None, "found no such file"),
    "truncated": ("train-images-idx3-ubyte", _cut, "expected 235200 bytes for 300 x 28 x 28"),
    "too long": ("train-labels-idx1-ubyte", lambda content: content + b"x", "too long"),
    "empty": ("train-labels-idx1-ubyte", lambda content: b"", "an empty file"),
    "header only in part": ("train-labels-idx1-ubyte", lambda content: content[:6], "header of 8"),
    "not IDX": ("train-images-idx3-ubyte", lambda content: b"PNG" + content, "starts with"),
    "truncated gzip": ("t10k-images-idx3-ubyte.gz", _cut, "expected a gzip file"),
    "not gzip": ("t10k-labels-idx1-ubyte.gz", lambda content: b"text", "expected a gzip file"),
    "label out of range": (
        "train-labels-idx1-ubyte",
        lambda content: content[:-1] + b"\x0b",
        "expected labels from 0 to 9, found 11",
    ),
}


@pytest.mark.parametrize(("name", "damage", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_damaged_data_file_is_named_with_what_was_expected(
    idx_dir, tmp_path, capsys, name, damage, message
):
    path = idx_dir / name
    content = damage(path.read_bytes())
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    arguments = ["mnist_linear", "--data-dir", str(idx_dir), "--out", str(tmp_path / "run")]
    assert train.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"error: {path}" in error
    assert message in error


def test_labels_that_do_not_match_the_images_are_refused(idx_dir):
    write_idx(idx_dir / "train-labels-idx1-ubyte", np.zeros(299))
    with pytest.raises(data.DataError, match=r"train-labels.*expected 300 labels.*found 299"):
        data.mnist(idx_dir)


def test_images_of_another_size_are_refused(idx_dir):
    write_idx(idx_dir / "train-images-idx3-ubyte", np.zeros((300, 8, 8)))
    with pytest.raises(data.DataError, match=r"train-images.*28 x 28 pixels, found 8 x 8"):
        data.mnist(idx_dir)


def test_an_output_folder_that_cannot_be_made_is_one_clear_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert train.main(["mnist_linear", "--out", str(tmp_path / "file" / "run")]) == 2
    assert "expected a folder that can be written" in capsys.readouterr().err
