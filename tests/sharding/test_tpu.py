"""The TPU compiler takes data-parallel training steps, and what they hold and send is what the design says."""

import importlib.util
import json
import subprocess
import sys
from itertools import pairwise

import pytest

from benchmarks import scaling

CHIPS = {"v5e:2x4": 8, "v6e:2x4": 8, "v5e:16x16": 256}

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="the TPU compiler (extra `tpu`) is not installed",
)


def kernel_bytes(model):
    return sum(4 * a * b for a, b in pairwise(scaling.TINY[model]))


def parameter_bytes(model):
    return kernel_bytes(model) + sum(4 * n for n in scaling.TINY[model][1:])


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Reports by (model, topology, state), from the command itself: its settings stay in its own process."""
    path = tmp_path_factory.mktemp("tpu") / "scaling.json"
    found = report(path, "--topologies", *CHIPS, "--models", *scaling.TINY)
    return {(row["model"], row["where"], row["state"]): row for row in found}


def report(path, *arguments):
    command = [sys.executable, "-m", "benchmarks.scaling", "--devices", *arguments]
    command += ["--steps", "training", "--json", str(path)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(path.read_text())["rows"]


def sent(row):
    return sum(one["bytes"] for one in row["collectives"].values())


@pytest.mark.parametrize("topology", CHIPS)
@pytest.mark.parametrize("model", scaling.TINY)
def test_with_a_replicated_state_gradients_are_summed_and_nothing_else_is_sent(
    rows, model, topology
):
    row = rows[model, topology, "replicated"]
    assert row["devices"] == CHIPS[topology]
    assert row["state_bytes"] >= 3 * parameter_bytes(model)
    assert set(row["collectives"]) == {"all-reduce"}
    assert sent(row) == pytest.approx(parameter_bytes(model), rel=0.01)


@pytest.mark.parametrize("topology", CHIPS)
@pytest.mark.parametrize("model", scaling.TINY)
def test_a_sharded_state_is_cut_by_the_number_of_chips_and_its_loops_send_nothing(
    rows, model, topology
):
    row = rows[model, topology, "sharded"]
    whole = rows[model, topology, "replicated"]["state_bytes"]
    assert row["state_bytes"] <= whole * (1 / CHIPS[topology] + 0.02)
    assert row["in_loops"] == 0
    assert row["loops"] + row["kernels"] > 0  # there was something to look into


@pytest.mark.parametrize("topology", CHIPS)
def test_group_lasso_with_a_sharded_state_sends_gradients_and_updates_once(rows, topology):
    row = rows["tiny", topology, "sharded"]
    assert sent(row) == pytest.approx(2 * parameter_bytes("tiny"), rel=0.01)
    assert row["kernels"] == 3  # one for each array


@pytest.mark.parametrize("topology", CHIPS)
def test_the_nuclear_norm_with_a_sharded_state_sends_the_pieces_besides(rows, topology):
    # b, D, W and the warm start of two arrays to the owner of a matrix, solution and warm start back.
    pieces = (5 + 3) * kernel_bytes("tiny_nuclear")
    expected = 2 * parameter_bytes("tiny_nuclear") + pieces
    assert sent(rows["tiny_nuclear", topology, "sharded"]) == pytest.approx(expected, rel=0.01)


def test_gradients_of_large_arrays_are_reduce_scattered_to_a_sharded_state(tmp_path):
    path = tmp_path / "scaling.json"
    where = ("--topologies", "v5e:2x4", "--models", "wide_mlp", "--states", "sharded")
    (row,) = report(path, *where)
    kernels = sum(4 * a * b for a, b in pairwise(scaling.WIDE))
    assert row["collectives"]["reduce-scatter"]["bytes"] == kernels
    assert row["in_loops"] == 0
