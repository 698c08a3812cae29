"""Several processes on this host: they train as one does, fail together, and resume."""

import csv
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from examples import loop
from examples.checkpoint import FOLDER, UNFINISHED, saved_epochs
from tests.examples.runs import assert_same, changed, fitted, prepared, without_times

ROOT = Path(__file__).parents[2]
SETTINGS = ["stages=2", "checkpoint_every=1"]
# Far more than they take here; without it a process that hangs would hang the tests.
SECONDS = 300


def start(folder, processes, *arguments, devices=1, **environment):
    """Processes of one run on this host."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tests.examples.worker", "plain"]
    command += ["--distributed"] if processes > 1 else []
    command += ["--out", str(folder), *SETTINGS, *arguments]
    started = []
    for number in range(processes):
        variables = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            # Less optimization is less compilation, which is most of what these processes do.
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} "
            "--xla_backend_optimization_level=0",
            "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
            "JAX_NUM_PROCESSES": str(processes),
            "JAX_PROCESS_ID": str(number),
            **environment,
        }
        with Path(f"{folder}-{number}.log").open("w") as log:
            started.append(
                subprocess.Popen(command, cwd=ROOT, env=variables, stdout=log, stderr=log)
            )
    return started


def end(processes):
    """Their exit statuses; none is left running."""
    deadline = time.monotonic() + SECONDS
    try:
        return [process.wait(max(0, deadline - time.monotonic())) for process in processes]
    finally:
        for process in processes:
            process.kill()


def logs(folder):
    return "\n".join(
        path.read_text() for path in sorted(folder.parent.glob(f"{folder.name}-*.log"))
    )


def rows(folder):
    with (folder / "metrics.csv").open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def program():
    return prepared(stages="2")


@pytest.fixture(scope="module")
def one_process(program):
    return loop.fit(program, 0).rows


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """Four processes, of which the third is killed after three of four epochs."""
    folder = tmp_path_factory.mktemp("four") / "run"
    processes = start(folder, 4, "--parallel", "shard_map", END_AT="2,3")
    return folder, end(processes)


def test_four_processes_train_as_one_until_one_is_killed_and_then_all_end(broken, one_process):
    folder, statuses = broken
    assert all(status != 0 for status in statuses), logs(folder)
    assert 2 <= len(rows(folder)) <= 3
    assert_same(rows(folder), one_process[: len(rows(folder))])


def test_two_processes_go_on_with_the_checkpoint_of_four(broken, one_process, tmp_path):
    folder = shutil.copytree(broken[0], tmp_path / "run")
    statuses = end(start(folder, 2, "--resume", "--parallel", "pmap", devices=2))
    assert statuses == [0, 0], logs(folder)
    assert_same(rows(folder), one_process)
    device = json.loads((folder / "summary.json").read_text())["device"]
    assert (device["parallel"], device["count"], device["processes"]) == ("pmap", 4, 2)


def test_one_process_goes_on_with_the_checkpoint_of_four(broken, one_process, program, tmp_path):
    folder = shutil.copytree(broken[0], tmp_path / "run")
    fit = fitted(folder, changed(program, checkpoint_every=1), resume=True)
    assert_same(fit.rows, one_process)


def test_two_processes_read_their_parts_of_a_stream_and_train_as_one(tmp_path):
    folder = tmp_path / "run"
    # How data is read does not depend on the method: the one that is compiled soonest.
    started = start(folder, 2, "--optimizer", "sgd", "stream=true", devices=2)
    streamed = loop.fit(prepared(optimizer="sgd", stages="2", stream="true"), 0)
    assert end(started) == [0, 0], logs(folder)
    assert_same(rows(folder), streamed.rows)
    # Only the first process prints.
    assert "objective of W" in Path(f"{folder}-0.log").read_text()
    assert "objective" not in Path(f"{folder}-1.log").read_text()


@pytest.mark.nightly
@pytest.mark.parametrize("stream", ["false", "true"])
@pytest.mark.parametrize(("number", "kills"), [(1, 20), (2, 10)])
def test_kills_at_any_time_lose_nothing_that_was_saved(tmp_path, number, kills, stream):
    """Of any process, at random times from its first new checkpoint on (an epoch and its save: 0.05 s or more)."""
    rng, settings = random.Random(stream), ["--optimizer", "sgd", "epochs=300", f"stream={stream}"]
    straight, folder = tmp_path / "straight", tmp_path / "run"
    assert end(start(straight, number, *settings)) == [0] * number, logs(straight)
    saved, within_a_save = 0, 0
    for kill in range(kills):
        processes = start(folder, number, *settings, *(["--resume"] if saved else []))
        deadline = time.monotonic() + SECONDS
        while last_checkpoint(folder) <= saved:
            assert time.monotonic() < deadline, logs(folder)
            assert all(process.poll() is None for process in processes), logs(folder)
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))
        rng.choice(processes).kill()
        assert all(status != 0 for status in end(processes)), logs(folder)
        assert last_checkpoint(folder) > saved  # whatever was whole stays so
        saved = last_checkpoint(folder)
        within_a_save += any(UNFINISHED in path.name for path in (folder / FOLDER).iterdir())
        print(f"kill {kill + 1}: {saved} epochs are saved, {within_a_save} kills within a save")
    assert end(start(folder, number, *settings, "--resume")) == [0] * number, logs(folder)
    # To the last bit.
    assert without_times(rows(folder)) == without_times(rows(straight))
    summaries = [json.loads((run / "summary.json").read_text()) for run in (folder, straight)]
    assert summaries[0]["structure"] == summaries[1]["structure"]


def last_checkpoint(folder):
    """Its epoch; 0 if there is none."""
    return max(saved_epochs(folder / FOLDER), default=0)
