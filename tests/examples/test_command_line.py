"""What a command says before it runs, where it writes, and on what terminals."""

import csv
import io
import re
import sys

import pytest

from examples import compare, report, search, train
from examples.command import argument_parser, parse_command, run_command
from examples.folder import output_folder
from examples.recipes import RECIPES

FAST = ["mnist_linear", "--scale", "smoke", "epochs=1", "stages=", "eval_train_examples=100"]
DENSE = [*FAST, "--optimizer", "sgd"]  # which compiles fast


@pytest.mark.parametrize("name", ["mnist_linear", "cifar_vit_mim", "sotu_transformer_xl"])
def test_help_with_a_recipe_lists_every_setting_as_it_would_be_typed(name, capsys):
    with pytest.raises(SystemExit) as end:
        train.main([name, "--help", "--scale", "small"])
    assert end.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{name}: {RECIPES[name].title}"
    listed = {line.split()[0]: line.split()[1:] for line in lines[3:]}
    assert {"epochs", "learning_rate", "strength", "checkpoint_every"} <= set(listed)
    # What is listed is what it takes: given back, it is the same run.
    words = [f"{name}={''.join(value)}" for name, value in listed.items() if value]
    with pytest.raises(SystemExit):
        train.main([name, *words, "--help", "--scale", "small"])
    assert capsys.readouterr().out.splitlines() == lines


def test_help_of_a_recipe_shows_changes_and_other_methods(capsys):
    with pytest.raises(SystemExit):
        train.main(["mnist_linear", "--help", "--optimizer", "rmda", "epochs=7"])
    out = capsys.readouterr().out
    assert "settings of rmda at scale paper" in out
    assert any(line.split() == ["epochs", "7"] for line in out.splitlines())


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["mnist_liner"], "mnist_linear"),
        (["mnist_linear", "--optimizer", "prox_adam"], "prox_adamw"),
        (["mnist_linear", "epoch=3"], "epochs"),
        (["mnist_linear", "--scale", "smal"], "small"),
    ],
)
def test_what_is_mistyped_is_asked_about(words, meant, capsys):
    assert train.main(words) == 2
    assert capsys.readouterr().err.rstrip().endswith(f"(did you mean {meant}?)")


def test_version_is_said(capsys):
    with pytest.raises(SystemExit) as end:
        train.main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("ramda_jax ")


def scalars(folder):
    """{(tag, step): value} of an event file, which is a sequence of length, checksum, message, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    (path,) = folder.iterdir()
    data, found = path.read_bytes(), {}
    while data:
        size = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + size])
        found |= {(v.tag, event.step): v.simple_value for v in event.summary.value}
        data = data[16 + size :]
    return found


def test_figures_reach_tensorboard_and_a_long_run_says_how_long(tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    words = [word.replace("epochs=1", "epochs=3") for word in [*DENSE, "--out", str(out)]]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "tensorboardX", None)
        assert train.main([*words, "--tensorboard"]) == 2
    assert "expected the package tensorboardX" in capsys.readouterr().err
    assert train.main([*words, "--tensorboard"]) == 0
    assert re.search(r"^about \d+ seconds to go$", capsys.readouterr().out, re.MULTILINE)
    rows = list(csv.DictReader((out / "metrics.csv").read_text().splitlines()))
    found = scalars(out / "tensorboard")
    assert {step for _, step in found} == {1, 2, 3}
    for row in rows:
        for name, value in row.items():
            if name != "epoch":
                figure = found[name, int(row["epoch"])]
                assert figure == pytest.approx(float(value), rel=1e-6, nan_ok=True)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (3.4, "3 seconds"),
        (119, "119 seconds"),
        (125, "2.1 minutes"),
        (5976, "100 minutes"),
        (7000, "117 minutes"),
        (7200, "2 hours"),
        (3e5, "3.5 days"),
    ],
)
def test_durations_are_spoken(seconds, words):
    assert report.spoken(seconds) == words


def test_results_are_not_written_over(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "runs" / "mnist_linear-sgd"
    assert train.main([*DENSE, "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    first = (out / "summary.json").read_text()
    # The same again goes beside it; where a folder is named, it is refused.
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdout", terminal)
        assert train.main([*DENSE, "seed=1"]) == 0
    terminal.seek(0)
    assert "test accuracy of What" in terminal.read()
    assert (out.parent / "mnist_linear-sgd-2" / "summary.json").exists()
    assert (out / "summary.json").read_text() == first
    assert train.main([*DENSE, "--out", str(out)]) == 2
    assert "holds the results of an earlier run" in capsys.readouterr().err
    for command in (compare, search):
        assert command.main([*FAST, "--out", str(out)]) == 2
    assert (out / "summary.json").read_text() == first
    allowed = options("--overwrite", "--out", str(out))
    assert output_folder(allowed, "run") == out


def options(*words):
    parser = argument_parser("command", "")
    parser.add_argument("--resume", action="store_true")
    return parse_command(parser, ["mnist_linear", *words])


def test_resuming_takes_the_last_folder_there_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chosen = lambda *words: str(output_folder(options(*words), "run"))
    assert chosen() == chosen("--resume") == "runs/run"
    (tmp_path / "runs" / "run").mkdir(parents=True)
    (tmp_path / "runs" / "run" / "summary.json").touch()
    assert chosen() == "runs/run-2"
    assert (
        chosen("--resume") == chosen("--overwrite") == "runs/run"
    )  # at its end, say for --compact
    (tmp_path / "runs" / "run-2" / "checkpoints").mkdir(parents=True)
    assert chosen() == chosen("--resume") == "runs/run-2"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_output_survives_any_terminal(encoding, monkeypatch):
    bytes_out = io.BytesIO()
    stream = io.TextIOWrapper(bytes_out, encoding=encoding, newline="\n")
    monkeypatch.setattr("sys.stdout", stream)
    label = "test accuracy of \u0174"

    def command():
        print(report._spelled(label, encoding), report._spelled("\u00b1", encoding), "\u0174")
        return 0

    assert run_command(command) == 0
    stream.flush()
    text = bytes_out.getvalue().decode(encoding)
    sign = {"ascii": "+-", "cp1252": "\u00b1", "utf-8": "\u00b1"}[encoding]
    name = "\u0174" if encoding == "utf-8" else "What"
    left = "\u0174" if encoding == "utf-8" else "?"
    assert text == f"test accuracy of {name} {sign} {left}\n"
