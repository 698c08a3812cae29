"""The pictures of docs/compaction.md can be drawn, and what they show is what `rj.compact` does."""

from pathlib import Path

import numpy as np

import ramda_jax as rj
from benchmarks import compaction_pictures as pictures


def test_the_picture_of_weights_shows_what_is_cut(tmp_path, monkeypatch):
    weights, kept = pictures.zeros_and_kept()
    params = {name: np.asarray(w, np.float32) for name, w in weights.items()}
    x = np.random.default_rng(1).normal(size=(3, 6)).astype(np.float32)
    small = rj.compact(pictures.block, params, x[:1])
    for name, (rows, columns) in kept.items():
        np.testing.assert_array_equal(small.params[name], params[name][np.ix_(rows, columns)])
    np.testing.assert_allclose(
        small.apply(small.params, x), pictures.block(params, x), rtol=1e-5, atol=1e-5
    )
    monkeypatch.setattr("sys.argv", ["pictures", "--out", str(tmp_path)])
    monkeypatch.chdir(Path(__file__).parents[2])
    pictures.main()
    drawn = sorted(path.name for path in tmp_path.iterdir())
    page = Path("docs/compaction.md").read_text()
    compaction = [f"compaction-{name}.png" for name in ("coupled", "times", "weights")]
    assert drawn == [*compaction, "sizes.png"]
    assert all(f"({name})" in page for name in compaction)
    assert "docs/sizes.png" in Path("README.md").read_text()
