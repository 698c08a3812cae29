"""Every recipe as a whole: its scales and methods make runs, and the small ones train."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from examples import compare, download, loop, train
from examples.data import Batch
from examples.methods import Dense
from examples.recipe import SCALES, make_run
from examples.recipes import RECIPES
from ramda_jax import assignment
from tests.examples.test_checkpoint import changed, fitted, same, without_times
from tests.examples.test_data import write_cifar
from tests.examples.test_mnist_linear import read_csv, read_json


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_every_scale_of_every_method_is_a_run_that_reaches_its_stages(recipe):
    # Each run traces its network: every scale with the first method, every method at the first scale.
    first, *others = recipe.methods
    runs = [(first, scale) for scale in SCALES] + [(other, next(iter(SCALES))) for other in others]
    for optimizer, scale in runs:
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
def test_a_fashion_mnist_recipe_trains(tmp_path, idx_dir, name):
    structure, overrides = FASHION[name]
    options = ["--scale", "smoke", "--data-dir", str(idx_dir), "--out", str(tmp_path / "run")]
    assert train.main([name, *options, *overrides, "batch_size=40", "momentum=0.5"]) == 0
    rows = read_csv(tmp_path / "run" / "metrics.csv")
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert 0 <= rows[-1][structure] <= rows[-1][f"structured_{structure}"] <= 1
    summary = read_json(tmp_path / "run" / "summary.json")
    assert summary["model"]
    assert summary["data"]["train_examples"] == 300
    assert summary["step_seconds"] == pytest.approx(np.mean([r["seconds_per_step"] for r in rows]))


def test_a_page_names_every_recipe_and_every_set_that_can_be_fetched():
    page = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
    assert [name for name in (*RECIPES, *download.SETS) if f"`{name}`" not in page] == []


def shades(rng, count):
    """Noise whose brightness, which crops and flips leave alone, tells the label."""
    labels = rng.integers(0, 10, count)
    return 24 * labels[:, None, None, None] + rng.integers(0, 24, (count, 32, 32, 3)), labels


def write_image_folders(folder):
    """Classes of one colour each, in the layout of ImageNet."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 40), ("val", 10)):
        for number in range(3):
            (folder / split / f"n0{number}").mkdir(parents=True)
            for file in range(count):
                pixels = rng.integers(0, 200, (40, 48, 3)).astype(np.uint8)
                pixels[..., number] = 255
                Image.fromarray(pixels).save(folder / split / f"n0{number}" / f"{file}.JPEG")


@pytest.fixture
def image_data(tmp_path, idx_dir):
    """What the data of each recipe on images begins with -> a small set in the same format."""
    for classes, count in ((10, 40), (100, 200)):
        (tmp_path / f"cifar{classes}").mkdir()
        write_cifar(tmp_path / f"cifar{classes}", classes, count, shades)
    write_image_folders(tmp_path / "imagenet")
    return {
        "cifar": tmp_path / "cifar10",
        "cifar100": tmp_path / "cifar100",
        "imagenet": tmp_path / "imagenet",
        "fashion": idx_dir,
    }


# By network: its structure, a method, and what makes it small and shows structure after a few steps.
NETWORKS = {
    "vgg19": (
        "weighted_group_sparsity",
        "ramda",
        {"model.convolutions": "1", "strength": "3e-2", "momentum": "0.5"},
    ),
    "resnet50": (
        "weighted_group_sparsity",
        "prox_sgd",
        {"model.blocks": "1", "strength": "0.2"},
    ),
    "vit_mim": (
        "low_rank_level",
        "prox_sgd",
        # Not the paper's linear fall of the rate: a run with that cannot go on for longer.
        {
            "model.hidden": "16",
            "strength": "2e-3",
            "learning_rate": "1",
            "schedule": "stages",
        },
    ),
}
IMAGES = {name: n for name in RECIPES for n in NETWORKS if name.endswith(n)}
# Each network and each set of images.
WHOLE = ("cifar100_vgg19", "fashion_mnist_resnet50", "imagenet_resnet50", "cifar_vit_mim")


def program_of(name, image_data):
    _, method, overrides = NETWORKS[IMAGES[name]]
    run = make_run(RECIPES[name], method, "smoke", {"batch_size": "10", **overrides})
    return loop.prepare(run, run.recipe.load(image_data[name.split("_")[0]]))


@pytest.mark.parametrize("name", [name for name in IMAGES if name not in WHOLE])
def test_a_step_of_an_image_recipe_takes_its_data(image_data, name):
    """Their networks are trained on another set below."""
    program = program_of(name, image_data)
    start = lambda: program.start(0)
    rows = jax.tree.map(lambda x: x[:10], program.arrays.train)
    batch = Batch(rows.inputs, rows.targets, np.ones(10, np.float32))
    state = jax.eval_shape(start)
    after, _ = jax.eval_shape(program.task.train_step, state, batch, jax.random.key(0))
    same = jax.tree.map(lambda x, y: (x.shape, x.dtype) == (y.shape, y.dtype), after, state)
    assert all(jax.tree.leaves(same))


@pytest.mark.parametrize("name", WHOLE)
def test_an_image_recipe_learns_gains_structure_and_goes_on_where_it_stopped(
    tmp_path, image_data, name
):
    structure, program = NETWORKS[IMAGES[name]][0], program_of(name, image_data)
    whole = fitted(tmp_path / "whole", program)
    assert whole.rows[-1]["train_loss"] < whole.rows[0]["train_loss"]
    assert max(row[f"structured_{structure}"] for row in whole.rows) > 0
    fitted(tmp_path / "parts", changed(program, epochs=1, checkpoint_every=1))
    parts = fitted(tmp_path / "parts", program, resume=True)
    assert without_times(parts.rows) == without_times(whole.rows)
    assert same(parts.params, whole.params)
    assert same(parts.model_state, whole.model_state)


def test_the_stand_in_for_cifar_is_asked_for_by_name_and_says_what_it_is(idx_dir, capsys):
    assert train.main(["cifar_vgg19", "--scale", "smoke"]) == 2
    assert "take the fashion_mnist_ recipe of this model" in capsys.readouterr().err
    stand_ins = [r for r in RECIPES.values() if f"cifar{r.name[len('fashion_mnist') :]}" in RECIPES]
    assert len(stand_ins) == 3
    for recipe in stand_ins:
        words = recipe.title + recipe.load(idx_dir).source
        assert "CIFAR" not in words
        assert words.count("padded and tripled to 32 x 32 x 3") == 2


def test_a_run_goes_on_with_resume_from_the_command_line(tmp_path, idx_dir, capsys):
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


def test_compare_takes_the_data_that_the_runs_ask_for(tmp_path, idx_dir, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "examples.loop.prepare", lambda run, data, _: asked.append(data.train_examples)
    )
    monkeypatch.setattr("examples.compare.train_into", lambda *arguments: 1 / 0)
    command = ["fashion_mnist_mlp", "--scale", "smoke", "--data-dir", str(idx_dir)]
    with pytest.raises(ZeroDivisionError):
        compare.main([*command, "--out", str(tmp_path / "all"), "data.train_limit=100"])
    assert asked == [100]


def test_a_comparison_that_was_interrupted_goes_on(tmp_path, idx_dir):
    options = ["--scale", "smoke", "--data-dir", str(idx_dir), "--methods", "sgd,prox_sgd"]
    options += ["checkpoint_every=1", "epochs=3"]

    def comparison(name, *more):
        status = compare.main(["mnist_linear", *options, "--out", str(tmp_path / name), *more])
        rows = read_csv(tmp_path / name / "comparison.csv")
        return status, [(row["optimizer"], row["epoch"], row["objective"]) for row in rows]

    status, whole = comparison("whole")
    assert status == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "prox_sgd")  # not begun
    shutil.rmtree(tmp_path / "parts" / "sgd" / "checkpoints" / "3")  # in its last epoch
    assert compare.main(["mnist_linear", *options, "--out", str(tmp_path / "parts")]) == 2
    assert comparison("parts", "--resume") == (0, whole)


# (regularized arrays, groups or singular values) of every recipe, as they were before networks were seen.
GROUPS = {
    "mnist_linear": (1, 784),
    "fashion_mnist_mlp": (7, 1018),
    "fashion_mnist_convnet": (4, 1321),
    "cifar_vgg19": (17, 5507),
    "cifar100_vgg19": (17, 5507),
    "fashion_mnist_vgg19": (17, 5507),
    "cifar_resnet50": (54, 24_579),
    "cifar100_resnet50": (54, 24_579),
    "fashion_mnist_resnet50": (54, 24_579),
    "imagenet_resnet50": (54, 24_579),
    "cifar_vit_mim": (26, 4704),
    "fashion_mnist_vit_mim": (26, 4704),
    "wikitext_transformer_xl": (80, 65_536),
    "sotu_transformer_xl": (80, 65_536),
    "ljspeech_tacotron2": (25, 14_658),
    "asterisk_tacotron2": (25, 14_658),
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_have_the_papers_groups_and_guess_nothing(name):
    run = make_run(RECIPES[name], next(iter(RECIPES[name].methods)))
    model = nnx.eval_shape(lambda: run.recipe.model(nnx.Rngs(0), jnp.float32))
    found = assignment.resolve(run.regularizer(), nnx.state(model, nnx.Param))
    numbers = [block.psi.num_groups(block.shape) for block in found.blocks]
    assert (len(numbers), sum(numbers)) == GROUPS[name]
    assert assignment.guesses(found.blocks) == ()
