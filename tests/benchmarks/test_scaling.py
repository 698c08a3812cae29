"""The scaling benchmark reports what the programs hold and send; the plan's page shows what is computed."""

from argparse import Namespace
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks import plan, scaling
from tests.methods import needs_eight

DOCS = Path(__file__).parents[2] / "docs" / "scaling.md"


@needs_eight
def test_a_sharded_state_is_an_eighth_and_sends_gradients_and_updates_once_outside_the_loops():
    args = Namespace(steps=["training"], states=scaling.STATES)
    rows = scaling.rows("tiny", "here", scaling.cpu_mesh(8), args, rounds=2)
    whole, cut = rows
    widths = scaling.TINY["tiny"]
    size = 4 * sum((a + 1) * b for a, b in pairwise(widths))
    assert whole["collectives"]["all-reduce"]["bytes"] == pytest.approx(size, rel=0.01)
    assert cut["state_bytes"] <= whole["state_bytes"] * (1 / 8 + 0.02)
    sent = {kind: one["bytes"] for kind, one in cut["collectives"].items()}
    assert sent == {kind: pytest.approx(size, rel=0.01) for kind in ("all-reduce", "all-gather")}
    assert cut["loops"] > 0
    assert cut["in_loops"] == 0
    assert all(row["seconds"]["count"] == 2 for row in rows)
    table = scaling.table(rows)
    assert "| tiny | here | training | sharded |" in table
    assert "in loops" in table


@pytest.mark.parametrize(("name", "size"), [("1B", 1_235_814_400), ("70B", 70_553_706_496)])
def test_the_models_of_the_plan_have_the_published_numbers_of_parameters(name, size):
    assert plan.MODELS[name].size == size


def test_on_one_chip_every_scheme_holds_twenty_bytes_per_parameter():
    model = plan.MODELS["1B"]
    for scheme in plan.SCHEMES:
        found = plan.memory(model, scheme, 1, 1024)
        assert found["parameters"] + found["gradients"] + found["V, U, W^0"] == 20 * model.size


def test_a_reduce_scatter_and_an_all_gather_take_as_long_as_an_all_reduce():
    hardware = plan.HARDWARE["H100"]
    for chips in (8, 64):
        one = plan.seconds_of_collectives({"all-reduce": 1e9}, hardware, chips)
        halves = {"reduce-scatter": 1e9, "all-gather": 1e9}
        assert plan.seconds_of_collectives(halves, hardware, chips) == pytest.approx(one)
    inside = 2 * 1e9 * 7 / 8 / 450e9  # two rings of eight over NVLink
    between = 2 * 1e9 / 8 * 7 / 8 / 50e9  # an eighth of it between the eight islands
    assert one == pytest.approx(inside + between)


def test_the_page_shows_the_tables_that_the_plan_computes():
    text = DOCS.read_text()
    for table in (plan.memory_table(), plan.time_table(), plan.rank_table()):
        assert table in text
