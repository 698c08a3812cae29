"""The code of README and docs runs as it stands, prints what it says, and links lead somewhere."""

import importlib.util
import inspect
import pathlib
import re
import tomllib
from importlib import metadata

import jax
import numpy as np
import pytest

import ramda_jax as rj

ROOT = pathlib.Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *PAGES]


def run(path):
    """The names that the blocks of a page leave behind, run one after the other."""
    text = (ROOT / path).read_text()
    names = {"__name__": "page"}
    exec(compile("".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)), path, "exec"), names)
    return names


def promised(path):
    """Lines of the outputs that a page shows."""
    blocks = re.findall(r"```text\n(.*?)```", (ROOT / path).read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def test_the_readmes_code_prints_what_it_says(capsys):
    run("README.md")
    printed = capsys.readouterr().out.splitlines()
    said = promised("README.md")
    accuracies = [line for line in said if line.startswith("test accuracy")]
    assert printed[: len(said) - len(accuracies)] == said[: -len(accuracies)]
    for line in printed[len(said) - len(accuracies) : len(said)]:  # rounding differs by machine
        assert float(line.split()[-1]) == pytest.approx(float(accuracies[0].split()[-1]), abs=0.02)


@pytest.mark.parametrize(
    "path", ["docs/assignments.md", "docs/from-optax.md", "docs/from-pytorch.md"]
)
def test_the_code_of_a_page_runs(path):
    run(path)


def test_compaction_reports_what_its_page_shows(capsys):
    run("docs/compaction.md")
    assert capsys.readouterr().out.splitlines() == promised("docs/compaction.md")


def test_ten_minutes_end_in_zeros_and_a_smaller_model(capsys):
    names = run("docs/tutorials/ten-minutes.md")
    printed = capsys.readouterr().out.splitlines()
    described = promised("docs/tutorials/ten-minutes.md")[
        :-2
    ]  # then figures, which rounding changes
    assert printed[: len(described)] == described
    middle, last = names["history"]
    assert middle[0] == 0  # W is dense until late
    assert min(middle[1:]) > 0
    assert len(set(last)) == 1
    assert last[0] > 0.2
    report = names["small"].report()
    assert report.parameters < 0.7 * report.parameters_before


def test_a_target_gives_the_widths_that_the_page_shows(capsys):
    names = run("docs/tutorials/target.md")
    printed = capsys.readouterr().out.splitlines()
    table = promised("docs/tutorials/target.md")
    assert printed[: len(table)] == table
    whole, cut, dense, dense_small = names["results"].values()
    assert whole == cut
    assert whole > dense - 0.1
    assert dense_small > 0.8


def test_an_equinox_model_keeps_the_input_that_matters():
    names = run("docs/tutorials/equinox.md")
    weight = np.asarray(names["deployed"].layers[0].weight)
    assert np.any(weight[:, 0])
    assert np.sum(~weight.any(0)) >= 4


def test_a_regularizer_and_a_method_from_outside_do_what_their_formulas_say():
    names = run("docs/tutorials/own.md")
    np.testing.assert_allclose(names["new"]["kernel"], [[0.4, 0], [0, 1.9]], rtol=1e-6)
    start = np.linspace(-1, 1, 12).reshape(6, 2)
    metric = np.abs(np.cos(start))  # sqrt(U) after one step
    adagrad = start - 0.5 * np.cos(start) / metric
    np.testing.assert_allclose(names["steps"]["none"], adagrad, rtol=1e-5)
    own = np.maximum(adagrad - 0.5 * 0.1 / metric, 0)
    np.testing.assert_allclose(names["steps"]["own"], own, atol=1e-6)
    x = np.asarray(
        names["steps"]["groups"], np.float64
    )  # stationary: D (x - adagrad) + eta psi' = 0
    alive = x.any(-1)
    norms = np.linalg.norm(x[alive], axis=-1, keepdims=True)
    rest = metric * (x - adagrad)
    np.testing.assert_allclose(rest[alive], -0.5 * 0.3 * 2**0.5 * x[alive] / norms, atol=1e-5)
    assert np.all(np.linalg.norm(rest[~alive], axis=-1) <= 0.5 * 0.3 * 2**0.5 + 1e-5)
    assert 0 < alive.sum() < 6


def test_the_code_of_the_devices_page_runs_and_all_ways_agree():
    names = run("docs/devices.md")
    for other in ("by_shard_map", "by_pmap"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), names["by_jit"], names[other]
        )


def anchors(path):
    """What a link may name in a page: its headings, as GitHub and the site make anchors of them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    inline = re.findall(r"\]\(([^)\s]+)\)", text)
    for target in [*inline, *re.findall(r"^\[[^\]]+\]: (\S+)$", text, re.MULTILINE)]:
        if "://" in target:
            continue
        place, _, anchor = target.partition("#")
        path = page.parent / place if place else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target


def test_the_readmes_links_of_its_own_are_in_one_place():
    """So that one line each is to be changed where the project gets an address."""
    text = (ROOT / "README.md").read_text()
    assert not [t for t in re.findall(r"\]\(([^)]+)\)", text) if "://" not in t]
    defined = set(re.findall(r"^\[(\w+)\]: ", text, re.MULTILINE))
    used = set(re.findall(r"\]\[(\w+)\]", text))
    assert used == defined


def test_the_version_is_said_once_and_the_citation_agrees():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    cited = re.findall(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert cited == [newest[1]] == [project["version"]]
    assert rj.__version__ == metadata.version("ramda-jax")


def test_the_readme_is_narrow():
    assert max(map(len, (ROOT / "README.md").read_text().splitlines())) < 120


@pytest.mark.parametrize("name", rj.__all__)
def test_every_public_name_is_documented_with_an_example(name):
    pages = "".join(path.read_text() for path in (ROOT / "docs" / "api").glob("*.md"))
    found = re.findall(rf"\.\. auto(\w+):: ramda_jax\.{name}\n", pages)
    thing = getattr(rj, name)
    assert found == ["class" if inspect.isclass(thing) else "function"]
    assert "\nExample:\n" in inspect.cleandoc(thing.__doc__)
    # As it stands: what the example's module has imported a reader has not.
    assert re.search(r">>> import .*\bramda_jax as rj\b", thing.__doc__)


def test_docstrings_become_what_the_site_shows():
    spec = importlib.util.spec_from_file_location("docstrings", ROOT / "docs" / "docstrings.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = """Of |x| and a_*.

      y = x_i * 2

    `One` thing.

    Args:
      x: a `name`,
        and more.

    Example:
      >>> 1 + 1
      2

    Source: A,
    B."""
    lines = [line for line in module.converted(inspect.cleandoc(text).splitlines()) if line]
    assert lines == [
        r"Of \|x\| and a\_\*.", "::", "  y = x_i * 2", "``One`` thing.",
        "**Args**", "``x``", "    a ``name``,", "    and more.",
        "**Example**", ">>> 1 + 1", "2", "**Source**", "A,", "B.",
    ]  # fmt: skip
