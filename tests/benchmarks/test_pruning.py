"""The command that compares targets with pruning counts and cuts right, and goes on where it was stopped."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.pruning import __main__ as command
from benchmarks.pruning import lenet
from benchmarks.pruning.results import kept


@pytest.fixture(scope="module")
def params():
    return lenet.first(0)


def test_the_network_by_columns_is_the_network_and_has_its_gradient(params):
    images = jax.random.normal(jax.random.key(1), (3, 28, 28, 1))
    weights = jax.random.normal(jax.random.key(2), (3, 10))
    value = lambda apply: jax.jit(
        jax.value_and_grad(lambda p: jnp.sum(weights * apply(p, images)))
    )(params)
    (expected, slopes), (found, own) = value(lenet.apply), value(lenet.by_columns)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6 * float(jnp.abs(b).max()))
    jax.tree.map(close, own, slopes)


@pytest.mark.parametrize("share", [0.5, 0.2, 0.05])
def test_even_widths_take_the_flops_that_are_asked_for_and_no_more(share):
    left = lenet.flops(lenet.even_widths(share)) / lenet.flops(lenet.WIDTHS)
    assert 0.98 * share < left <= share
    shares = np.divide(lenet.even_widths(share), lenet.WIDTHS)
    assert shares.max() < 2.5 * shares.min()
    assert lenet.even_widths(1.0) == lenet.WIDTHS


def test_the_smallest_channels_are_cut_and_counted_as_compaction_counts(params):
    # The first channels of every space are made the smallest.
    small = jax.tree.map(jnp.asarray, params)
    small["convs"][0]["kernel"] = small["convs"][0]["kernel"].at[..., :5].multiply(1e-3)
    small["convs"][1]["kernel"] = small["convs"][1]["kernel"].at[:, :, :5].multiply(1e-3)
    masks = lenet.smallest(small, 0.6, "layer", 0.0)
    assert not masks[0][:5].any()
    cut, flops = lenet.cut(lenet.without(small, masks))
    assert lenet.widths_of(cut) == lenet.even_widths(0.6)
    assert flops == lenet.flops(lenet.widths_of(cut))
    in_order = lenet.smallest(small, 0.6, "tree", 0.05)
    left = lenet.flops([mask.sum() for mask in in_order]) / lenet.flops(lenet.WIDTHS)
    assert 0.55 < left <= 0.6
    assert not in_order[0][:5].any()


def test_a_run_that_has_left_its_file_is_not_run_again(tmp_path):
    calls = []

    def run():
        calls.append(1)
        return {"accuracy": 0.5}

    assert kept(tmp_path, "a", run) == kept(tmp_path, "a", run) == {"accuracy": 0.5}
    assert len(calls) == 1
    with pytest.raises(
        ValueError, match=r"a\.json: expected 'widths', found accuracy, .* remove the"
    ):
        kept(tmp_path, "a", run)["widths"]
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(ValueError, match=r"a\.json: expected 'result', found nothing, "):
        kept(tmp_path, "a", run)


def test_tables_and_picture_are_made_of_what_is_there(tmp_path, monkeypatch, capsys):
    row = {"accuracy": 0.875, "share of FLOPs": 0.1998, "widths": (8, 21, 215)}
    kept(tmp_path, "lenet-ramda-layer-2-0.2-0", lambda: row)
    drawn = tmp_path / "picture.png"
    arguments = ["pruning", "--out", str(tmp_path), "--tables", "--picture", str(drawn)]
    monkeypatch.setattr("sys.argv", arguments)
    command.main()
    assert "| ramda, layer-2 | - | - | **87.50** (87.50); 20.0% (8, 21, 215) | - |" in (
        capsys.readouterr().out
    )
    assert drawn.stat().st_size > 1000


def test_the_search_decides_only_where_it_is_complete(tmp_path):
    trials = {
        command._search("ramda", choice): {"accuracy": 0.1 * k}
        for k, choice in enumerate(command.runs.CHOICES)
    }
    assert command.chosen(trials.get, "ramda") == command.runs.CHOICES[-1]
    del trials[command._search("ramda", command.runs.CHOICES[1])]
    assert command.chosen(trials.get, "ramda") == command.runs.CHOICES[0]
