"""The recipes of text and speech on small files: they learn, resume, and write or speak."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from examples import compact, generate, loop
from examples.checkpoint import Checkpoints, last_run
from examples.data import audio
from examples.parallel import ONE_DEVICE
from examples.recipe import RecipeError, make_run
from examples.recipes import find
from examples.task import make_task
from tests.examples.test_data_sequences import write_wav

NOUNS, VERBS = ("cat", "dog", "bird", "man"), ("saw", "heard", "liked")
OVERRIDES = {
    "wikitext_transformer_xl": {
        "data.vocabulary": "12",
        "model.vocabulary": "12",
        "model.cutoffs": "6",
        "model.layers": "1",
        "model.features": "16",
        "model.hidden": "32",
        "model.head_size": "8",
        "data.words": "8",
    },
    "ljspeech_tacotron2": {"batch_size": "4", "eval_batch_size": "4", "data.test_clips": "2"},
}


def write_text(folder):
    """Sentences that are easy to guess: nouns and verbs take turns."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 200), ("test", 20)):
        lines = (
            f"the {rng.choice(NOUNS)} {rng.choice(VERBS)} the {rng.choice(NOUNS)} ."
            for _ in range(count)
        )
        (folder / f"wiki.{split}.tokens").write_text("\n".join([*lines, "<unk> <unk>"]) + "\n")


def write_speech(folder):
    """Texts of four letters, each a tone of its own for a tenth of a second; of one length, so that
    one program evaluates both sets."""
    (folder / "wavs").mkdir()
    rng, lines = np.random.default_rng(0), []
    for number in range(12):
        letters = rng.integers(0, 5, 4)
        time = np.arange(2205) / 22_050
        tones = [0.5 * np.sin(2 * np.pi * 300 * (1 + letter) * time) for letter in letters]
        write_wav(folder / "wavs" / f"{number}.wav", np.concatenate(tones))
        lines.append(f"{number}|" + "".join("abcde"[letter] for letter in letters))
    (folder / "metadata.csv").write_text("\n".join(lines))


# RMDA compiles in half the time of RAMDA, which matters for the many matrices of Tacotron 2.
METHODS = {"wikitext_transformer_xl": "ramda", "ljspeech_tacotron2": "rmda"}
WRITERS = {"wikitext_transformer_xl": write_text, "ljspeech_tacotron2": write_speech}


def fitted(program, out, epochs, resume=False):
    """Trains the compiled program to an epoch, a checkpoint after each."""
    out.mkdir(exist_ok=True)
    run = replace(program.run, settings=replace(program.run.settings, epochs=epochs))
    program = replace(program, task=replace(program.task, run=run))
    with Checkpoints(out, run, 0, resume) as checkpoints:
        return loop.fit(program, 0, checkpoints=checkpoints)


@pytest.fixture(scope="module", params=WRITERS)
def trained(request, tmp_path_factory):
    """Data folder, output folder of a whole run and of one that was interrupted, and their fits."""
    data = tmp_path_factory.mktemp("data")
    WRITERS[request.param](data)
    overrides = OVERRIDES[request.param] | {"checkpoint_every": "1", "epochs": "3"}
    run = make_run(find(request.param), METHODS[request.param], "smoke", overrides)
    program = loop.prepare(run, run.recipe.load(data))
    out = tmp_path_factory.mktemp("runs")
    whole = fitted(program, out / "whole", 3)
    fitted(program, out / "parts", 1)
    return request.param, data, out / "whole", whole, fitted(program, out / "parts", 3, resume=True)


def test_the_loss_falls_and_structure_appears(trained):
    _, _, _, fit, _ = trained
    first, last = fit.rows[0], fit.rows[-1]
    assert last["train_loss"] < 0.9 * first["train_loss"]
    assert last["test_loss"] < 0.9 * first["test_loss"]
    assert 0 < last["structured_weighted_group_sparsity"] < 1


def test_a_run_that_was_interrupted_ends_bit_for_bit_the_same(trained):
    _, _, _, whole, parts = trained
    for a, b in zip(
        *(jax.tree.leaves((f.params, f.structured)) for f in (whole, parts)), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    assert [row["test_loss"] for row in whole.rows] == [row["test_loss"] for row in parts.rows]


def test_the_trained_model_writes_or_speaks(trained, capsys):
    name, data, out, _, _ = trained
    command = [str(out), "--data-dir", str(data), "--length", "30"]
    assert generate.main([*command, "--text", "the dog"]) == 0
    shown = capsys.readouterr().out
    if name == "wikitext_transformer_xl":
        text = (out / "generated.txt").read_text()
        assert text in shown
        assert text.startswith("the dog ")
        assert set(text.split()) <= {"the", ".", *NOUNS, *VERBS}
        again = [*command, "--text", "the dog", "--iterate", "W", "--seed", "1"]
        assert generate.main(again) == 0
        assert (out / "generated.txt").read_text() != text
        assert generate.main([*command, "--text", "the zebra"]) == 2
        assert "expected words of the vocabulary, got 'zebra'" in capsys.readouterr().err
    else:
        settings = audio.Audio()
        assert "'the dog'" in shown
        assert len(audio.read_sound(out / "generated.wav", settings)) <= 29 * 256
        assert (out / "alignment.png").read_bytes().startswith(b"\x89PNG")
        assert generate.main([*command, "--iterate", "W"]) == 0  # the first test recording
        assert "mel distance to it after warping" in capsys.readouterr().out


def test_the_compact_model_has_the_same_figures(trained):
    name, data, out, fit, _ = trained
    run = last_run(out)
    task, stream = make_task(run, 1, ONE_DEVICE), run.recipe.load(data)
    variables, size = (
        compact.Variables(fit.structured, fit.model_state),
        run.settings.eval_batch_size,
    )
    first = next(compact.test_batches(stream, size)).inputs
    small = compact.compacted(task, variables, first)
    compared = compact.compare(task, variables, small, compact.test_batches(stream, size))
    assert compared.compact == pytest.approx(dict(compared.whole), rel=1e-5)
    assert compared.whole["loss"] == pytest.approx(fit.rows[-1]["structured_test_loss"], rel=1e-4)
    assert compared.error < 1e-5
    report = small.one.report()
    assert report.parameters < report.parameters_before
    # Speech is another program for one recording alone.
    assert (small.one is small.many) == (name == "wikitext_transformer_xl")


def test_what_cannot_be_generated_is_one_clear_line(tmp_path, trained, capsys):
    _, _, out, _, _ = trained
    for command, message in (
        ([str(tmp_path)], "expected the checkpoints of a run"),
        ([str(out), "--length", "0"], "--length: expected at least 1, got 0"),
        ([str(out), "--temperature", "0"], "--temperature: expected a number above 0, got 0.0"),
    ):
        assert generate.main(command) == 2
        assert message in capsys.readouterr().err


def test_data_and_model_have_to_fit():
    for name, overrides, message in (
        (
            "wikitext_transformer_xl",
            {"model.vocabulary": "10", "model.cutoffs": "4"},
            "10, got 267735",
        ),
        ("sotu_transformer_xl", {"model.cutoffs": "8000,4000"}, "expected rising numbers"),
        ("ljspeech_tacotron2", {"data.audio.mels": "40"}, "expected data.audio.mels = 40, got 80"),
        ("asterisk_tacotron2", {"model.sizes.symbols": "9"}, "model.sizes.symbols: expected at"),
        ("asterisk_tacotron2", {"model.sizes.decoder.text": "9"}, "expected an even number, got 9"),
    ):
        with pytest.raises(RecipeError, match=message):
            make_run(find(name), "ramda", "paper", overrides)
