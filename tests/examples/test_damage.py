"""Checkpoints that rotted, lost files, or are not what they are taken for: never another state."""

import json
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples import digests, loop
from examples.checkpoint import FOLDER, Checkpoints, last_run
from examples.recipe import RecipeError
from examples.recipes import RECIPES
from tests.examples import tiny
from tests.examples.runs import changed, fitted, prepared, without_times
from tests.examples.test_checkpoint import same

FLIPS = 80


@pytest.fixture(scope="module")
def program():
    """Wide enough that most bytes of a checkpoint are those of arrays."""
    return prepared(optimizer="sgd", **{"model.hidden": 512})


@pytest.fixture(scope="module")
def start(program):
    return program.start(0)


@pytest.fixture(scope="module")
def written(tmp_path_factory, program):
    """A run's folder with the checkpoints of two epochs."""
    out = tmp_path_factory.mktemp("damage") / "run"
    fitted(out, changed(program, epochs=2, checkpoint_every=1))
    return out


@pytest.fixture
def out(written, tmp_path):
    return shutil.copytree(written, tmp_path / "run")


def restored(out, program, start):
    """As training restores: further epochs are to follow those that are done."""
    names = [*loop._OF_TIME, *program.task.figure_names()]
    with Checkpoints(out, program.run, 0, resume=True) as checkpoints:
        return checkpoints.restore(start, names)


def equal(found, expected):
    return same(found[0], expected[0]) and found[1:] == expected[1:]


def noticed(out, program, start, whole, capsys):
    """Whether damage to the second checkpoint is: else it has to be where nothing is read."""
    found = restored(out, program, start)
    line = capsys.readouterr().err
    if not line:
        assert equal(found, whole)
        return False
    assert line.startswith(f"{out / FOLDER / '2'}: this checkpoint is damaged (")
    assert line.endswith("): going on from the one before\n")
    assert line.count("\n") == 1
    assert len(found[2]) == 1  # one epoch was done there
    return True


def files(out):
    return sorted(path for path in (out / FOLDER / "2").rglob("*") if path.is_file())


def test_no_flipped_bit_of_the_arrays_is_another_state(out, program, start, capsys):
    whole, rng, count = restored(out, program, start), random.Random(0), 0
    # What holds most of the arrays; a little of it is never read (earlier nodes of Orbax's index).
    data = [path for path in files(out) if path.parent.name == "d" and path.stat().st_size > 8192]
    for number in range(FLIPS):
        path = data[number % len(data)]
        content = path.read_bytes()
        flipped, bit = bytearray(content), rng.randrange(8 * len(content))
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        count += noticed(out, program, start, whole, capsys)
        path.write_bytes(content)
    assert count >= 0.8 * FLIPS  # and the others left every bit of the state as it was


def test_files_that_are_gone_cut_or_empty_are_noticed_where_they_are_read(
    out, program, start, capsys
):
    whole, count = restored(out, program, start), 0
    for path in files(out):
        content = path.read_bytes()
        for left in (None, content[: len(content) // 3], b""):
            path.unlink() if left is None else path.write_bytes(left)
            count += noticed(out, program, start, whole, capsys)
            path.write_bytes(content)
    assert count >= 9  # the notes, the index and the arrays, each in three ways


def test_every_bit_of_every_type_counts():
    arrays = [jnp.arange(5, dtype=dtype) for dtype in ("float32", "bfloat16", "uint32", "int8")]
    for array in [*arrays, jnp.float32(1), jax.random.key_data(jax.random.key(3))]:
        records, plain = digests.of_arrays({"a": array}), np.array(array)
        for bit in range(8 * plain.nbytes):
            plain.reshape(-1).view(np.uint8)[bit // 8] ^= 1 << bit % 8
            with pytest.raises(digests.DamageError, match="the array a is not the one"):
                digests.verify({"a": jnp.asarray(plain)}, records)
            plain.reshape(-1).view(np.uint8)[bit // 8] ^= 1 << bit % 8
        digests.verify({"a": array}, records)


def test_a_run_goes_on_from_the_checkpoint_before_to_the_same_end(
    out, program, tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(RECIPES, "plain", tiny.PLAIN)
    straight = fitted(tmp_path / "straight", changed(program, epochs=3))
    (out / FOLDER / "2" / "notes" / "metadata").write_bytes(b"{}")
    assert last_run(out).settings.batch_size == program.run.settings.batch_size
    resumed = fitted(out, changed(program, epochs=3, checkpoint_every=1), resume=True)
    assert "going on from the one before" in capsys.readouterr().err
    assert without_times(resumed.rows) == without_times(straight.rows)
    assert same(resumed.params, straight.params)
    assert sorted(path.name for path in (out / FOLDER).iterdir()) == ["2", "3"]
    assert equal(restored(out, program, program.start(0))[1:], (None, resumed.rows))


def test_where_none_is_whole_one_line_says_so(out, program, start, capsys):
    for epoch in "12":
        (out / FOLDER / epoch / "notes" / "metadata").unlink()
    with pytest.raises(RecipeError, match=r"/1: .*is damaged .*begin anew in another --out"):
        restored(out, program, start)
    with pytest.raises(RecipeError, match="is damaged"):
        last_run(out)
    assert capsys.readouterr().err.count("\n") == 1  # of the second


def rewrite(out, change):
    """Notes as another program would have written them."""
    path = out / FOLDER / "2" / "notes" / "metadata"
    notes = change(json.loads(path.read_text())["content"])
    path.write_text(json.dumps(digests.seal(notes) if "format" in notes else notes))


def without(flat, name):
    return {key: value for key, value in flat.items() if key != name}


def with_array(notes, path, record):
    return {**notes, "ramda_jax": "0.0.9", "arrays": without(notes["arrays"], path) | record}


OTHERS = {
    "format": (
        lambda notes: {**notes, "format": 3, "ramda_jax": "9.9"},
        r"was written by another version of this program \(ramda_jax 9\.9, format 3; here format 2",
    ),
    "without digests": (
        lambda notes: {name: notes[name] for name in ("identity", "position", "rows")},
        "was written by an earlier version of this program, without digests",
    ),
    "array missing": (
        lambda notes: with_array(notes, "key", {}),
        r"the state of another version .*0\.0\.9 there.*: key is missing there, uint32 \(2,\) here",
    ),
    "array too many": (
        lambda notes: with_array(notes, "", {"old": {"dtype": "int8", "shape": []}}),
        r"the state of another version .*: old is int8 \(\) there, missing here",
    ),
    "figure missing": (
        lambda notes: {**notes, "rows": [without(row, "train_loss") for row in notes["rows"]]},
        r"/2 holds figures of another version .*: train_loss is missing there, a figure here: go on",
    ),
    "figure too many": (
        lambda notes: {**notes, "rows": [*notes["rows"][:1], notes["rows"][1] | {"old": 1.0}]},
        r"/2 holds figures of another version .*: old is a figure there, missing here: go on with",
    ),
    "setting unknown": (
        lambda notes: {**notes, "identity": notes["identity"] | {"method.old": 1}},
        r"of another run: method\.old is 1 there, missing here: ask for what it was, or begin anew",
    ),
    "setting new": (
        lambda notes: {**notes, "identity": without(notes["identity"], "settings.clip_norm")},
        r"of another run: settings\.clip_norm is missing there, 0\.0 here: ask for what it was, or",
    ),
    "epoch": (
        lambda notes: {**notes, "epoch": 1},
        r"/2: holds the checkpoint of epoch 1: rename the folder to 1",
    ),
}


@pytest.mark.parametrize(("change", "message"), OTHERS.values(), ids=OTHERS)
def test_what_is_not_damaged_is_called_what_it_is(out, program, start, change, message):
    rewrite(out, change)
    with pytest.raises(RecipeError, match=message) as error:
        restored(out, program, start)
    assert "is damaged" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": "old"}, r"recipe: .* got 'old'"),
        ({"method.name": "old"}, r"methods: .* got 'old'"),
        ({"method.old": 1}, "old: no such field for sgd"),
        ({"model.old.deep": 1}, r"model\.old\.deep: no such field for sgd"),
    ],
)
def test_a_run_of_a_version_that_knew_more_is_named(out, change, message, monkeypatch):
    monkeypatch.setitem(RECIPES, "plain", tiny.PLAIN)
    rewrite(out, lambda notes: {**notes, "identity": notes["identity"] | change})
    known = rf"/2: is of a run that this version .*{message}.*\): take that version, or train anew"
    with pytest.raises(RecipeError, match=known):
        last_run(out)


def test_a_folder_of_another_name_is_not_taken_for_a_checkpoint(out, program, start):
    (out / FOLDER / "1").rename(out / FOLDER / "1.old")
    assert len(restored(out, program, start)[2]) == 2
    (out / FOLDER / "2").rename(out / FOLDER / "two")
    with pytest.raises(RecipeError, match=r"a folder named by .* its epoch; found 1\.old, two"):
        restored(out, program, start)
    with pytest.raises(RecipeError, match=r"found 1\.old, two"):
        last_run(out)


def test_what_was_never_finished_is_no_checkpoint(out, program):
    for epoch in "12":
        (out / FOLDER / epoch).rename(out / FOLDER / f"{epoch}.orbax-checkpoint-tmp")
    fitted(out, changed(program, epochs=1, checkpoint_every=1))
    assert (out / FOLDER / "1").is_dir()
