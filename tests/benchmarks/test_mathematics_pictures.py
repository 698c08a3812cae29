"""What the picture of docs/mathematics.md shows is what the page says."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import mathematics_pictures as pictures


@pytest.mark.parametrize("strength", [0.05, 0.5, 2.0])
def test_newtons_steps_increase_to_the_minimiser(strength):
    b, d = pictures.B, pictures.D
    found = np.array(pictures.newton(strength))
    np.testing.assert_allclose(  # the free start of the page
        found[0], (np.linalg.norm(b) - strength) * np.linalg.norm(b) ** 2 / np.sum(b * d * b)
    )
    assert (np.diff(found)[:-1] > 0).all()  # the last to rounding
    x = b * found[-1] / (d * found[-1] + strength)
    np.testing.assert_allclose(d * x - b + strength * x / np.linalg.norm(x), 0, atol=1e-12)


def test_from_the_norm_of_b_on_the_group_is_zero():
    largest = np.linalg.norm(pictures.B)
    assert pictures.newton(largest) == [0]
    assert pictures.newton(0.999 * largest)[-1] > 0


def test_the_picture_is_drawn_and_on_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["pictures", "--out", str(tmp_path)])
    pictures.main()
    (drawn,) = tmp_path.iterdir()
    assert drawn.stat().st_size > 10_000
    assert f"({drawn.name})" in (Path(__file__).parents[2] / "docs" / "mathematics.md").read_text()
