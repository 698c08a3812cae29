"""What ends a run from outside: signals, disks that are full, folders that are another's."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from examples import compare, interrupt, loop, report, search, train
from examples.checkpoint import FOLDER, Checkpoints
from examples.folder import LOCK, claimed, make_folder
from examples.interrupt import Interrupted
from examples.recipe import RecipeError
from examples.recipes import RECIPES
from examples.streaming import Feed
from tests.examples import tiny
from tests.examples.runs import changed, fitted, prepared, without_times
from tests.examples.test_checkpoint import same

ROOT = Path(__file__).parents[2]
# Far more than anything here takes, on a machine with other work too; what used to wait for longer would fail.
SECONDS = 240


@pytest.fixture(scope="module")
def program():
    """Three epochs of four steps."""
    return prepared(optimizer="sgd", epochs=3, stages=2, stream="true")


@pytest.fixture(autouse=True)
def _signals_are_heeded():
    """Shells have what they start in the background ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def fit_with_signal(out, program, epoch, number=signal.SIGTERM, resume=False):
    """A fit that gets a signal from itself while this epoch's figures are read."""

    def send(row):
        if row["epoch"] == epoch:
            os.kill(os.getpid(), number)

    out.mkdir(exist_ok=True)
    with interrupt.handled(), Checkpoints(out, program.run, 0, resume) as checkpoints:
        return loop.fit(program, 0, send, checkpoints)


def test_a_run_that_a_signal_ended_goes_on_to_the_same_end(program, tmp_path):
    straight = fitted(tmp_path / "straight", program)
    with pytest.raises(Interrupted) as stop:
        # The first epoch's figures are read while the second is computed.
        fit_with_signal(tmp_path / "run", changed(program, checkpoint_every=3), 1)
    assert str(stop.value) == (
        "interrupted by SIGTERM after epoch 2 of 3 (sgd): --resume goes on from epoch 3"
    )
    assert stop.value.status == 143
    assert [path.name for path in (tmp_path / "run" / FOLDER).iterdir()] == ["2"]
    resumed = fitted(tmp_path / "run", changed(program, checkpoint_every=3), resume=True)
    assert without_times(resumed.rows) == without_times(straight.rows)
    assert same(resumed.params, straight.params)


def test_a_signal_in_the_last_epoch_leaves_a_run_that_is_done(program, tmp_path):
    fit = fit_with_signal(tmp_path / "run", changed(program, checkpoint_every=1), 3)
    assert len(fit.rows) == 3


def test_without_checkpoints_the_next_step_is_not_begun(program, monkeypatch):
    take, taken = Feed.take, []

    def take_and_send(feed):
        taken.append(feed)
        if len(taken) == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return take(feed)

    monkeypatch.setattr(Feed, "take", take_and_send)
    words = r"SIGINT in epoch 2 of 3 .*: no checkpoint \(checkpoint_every=0\), so .* begins anew"
    with pytest.raises(Interrupted, match=words), interrupt.handled():
        loop.fit(program, 0)
    assert len(taken) == 6


def test_an_epoch_that_does_not_end_in_time_is_given_up(program, tmp_path, monkeypatch):
    monkeypatch.setattr("examples.loop._PATIENCE_SECONDS", 0)
    out, every = tmp_path / "run", changed(program, checkpoint_every=1)
    words = "in epoch 3 of 3 .*: --resume goes on from epoch 3"
    # The second epoch's figures are read, and its checkpoint written, before the third begins.
    with pytest.raises(Interrupted, match=words):
        fit_with_signal(out, every, 2)
    assert len(fitted(out, every, resume=True).rows) == 3


def test_elsewhere_a_signal_is_an_exception_and_handlers_are_put_back():
    before = [signal.getsignal(number) for number in interrupt.SIGNALS]

    def wait_for_signal():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(SECONDS)

    with pytest.raises(Interrupted, match="interrupted by SIGINT") as stop, interrupt.handled():
        wait_for_signal()
    assert stop.value.status == 130
    assert [signal.getsignal(number) for number in interrupt.SIGNALS] == before


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupt.handled():
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def start(out, *arguments, first="pass"):
    """`examples.train` with the small recipe, in a process of its own; `first` is run before it."""
    # Where the caller has it ignore SIGINT (as a shell's background does), it would.
    heed = "signal.signal(signal.SIGINT, signal.default_int_handler)"
    # Grain warns of what it lacks with an older jaxlib.
    quiet = "from absl import logging; logging.set_verbosity(logging.ERROR)"
    code = f"import resource, signal, sys; {quiet}; {heed}; {first}; from examples import train; "
    code += "from examples.recipes import RECIPES; from tests.examples import tiny; "
    code += "RECIPES['plain'] = tiny.PLAIN; sys.exit(train.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "plain", "--optimizer", "sgd", "--out", str(out)]
    # Less optimization is less compilation, which is most of what these processes do.
    variables = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    return subprocess.Popen(
        [*command, "stages=1", *arguments], cwd=ROOT, env=variables, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def rows_in(out):
    path = out / "metrics.csv"
    return path.read_text().count("\n") - 1 if path.exists() else -1


def wait_for(condition):
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


ANNOUNCED = "ending after this step or epoch; again to end at once"


def test_a_command_has_its_folder_for_itself_and_ends_with_a_code_and_a_line(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(RECIPES, "plain", tiny.PLAIN)
    out = tmp_path / "run"
    process = start(out, "epochs=1000000", "checkpoint_every=100000")
    try:
        wait_for(lambda: rows_in(out) > 3)
        assert train.main(["plain", "--out", str(out)]) == 2
        assert f"another run is writing there (process {process.pid})" in capsys.readouterr().err
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    assert process.returncode == 130
    done = rows_in(out)
    assert errors.splitlines() == [
        f"SIGINT: {ANNOUNCED}",
        f"interrupted by SIGINT after epoch {done} of 1000000 (sgd): "
        f"--resume goes on from epoch {done + 1}",
    ]
    with claimed(out):  # the system has given the dead one's claim up
        pass


def test_a_second_signal_ends_at_once_what_the_first_waits_for(tmp_path):
    # A first epoch without end, for whose end the first signal waits as if for ever.
    mark, without_end = tmp_path / "mark", ["steps_per_epoch=1000000", "checkpoint_every=1"]
    first = (
        "from pathlib import Path; from examples import loop; from examples.streaming import Feed; "
    )
    first += f"loop._PATIENCE_SECONDS = 1e9; take = Feed.take; mark = Path({str(mark)!r}); "
    first += "Feed.take = lambda feed: (mark.touch(), take(feed))[1]"
    process = start(tmp_path / "run", "stream=true", *without_end, first=first)
    try:
        wait_for(mark.exists)
        process.send_signal(signal.SIGTERM)
        assert process.stderr.readline() == f"SIGTERM: {ANNOUNCED}\n"
        time.sleep(0.7)  # sooner it would be the same signal
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 143
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.communicate()


def test_a_checkpoint_that_there_is_no_room_for_is_one_line_within_seconds(tmp_path):
    # Files as large as a row of figures, and no larger: a disk that is full, without one.
    full = "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))"
    process = start(tmp_path / "run", "epochs=2", "checkpoint_every=1", first=full)
    try:
        _, errors = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    assert process.returncode == 2
    assert errors == (
        f"error: {tmp_path / 'run' / FOLDER}: expected a folder that checkpoints can be written to "
        "(File too large): make room or make it writable, then begin anew\n"
    )


def test_checkpoints_whose_folder_is_gone_say_where_to_go_on_and_do_not_wait(program, tmp_path):
    out, every = tmp_path / "run", changed(program, checkpoint_every=1)
    out.mkdir()

    def spoil(row):
        if row["epoch"] == 2:
            (out / FOLDER).rename(out / "gone")
            (out / FOLDER).write_text("")

    begun = time.monotonic()
    with (
        pytest.raises(RecipeError, match="expected a folder that checkpoints can be written to"),
        Checkpoints(out, every.run, 0, resume=False) as checkpoints,
    ):
        loop.fit(every, 0, spoil, checkpoints)
    assert time.monotonic() - begun < SECONDS / 4


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_figures_that_there_is_no_room_for_are_one_line(tmp_path):
    (tmp_path / "metrics.csv").symlink_to("/dev/full")
    with (
        pytest.raises(RecipeError, match=r"metrics\.csv: could not be written \(No space left"),
        report.csv_log(tmp_path / "metrics.csv") as log,
    ):
        log({"epoch": 1})


@pytest.mark.parametrize("command", [train, compare, search], ids=lambda module: module.__name__)
def test_an_out_that_is_no_folder_is_said_before_anything_is_read(tmp_path, capsys, command):
    (tmp_path / "file").write_text("kept")
    for out in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/run")):
        assert command.main(["mnist_linear", "--out", str(out), "--data-dir", "nowhere"]) == 2
        errors = capsys.readouterr().err
        assert errors.startswith(f"error: --out {out}: expected a folder that can be written (")
        assert errors.count("\n") == 1
    assert (tmp_path / "file").read_text() == "kept"


def test_a_folder_is_claimed_once_at_a_time(tmp_path):
    out = make_folder(tmp_path / "run")
    refused = pytest.raises(RecipeError, match="another run is writing there")
    with claimed(out), refused, claimed(out):
        pass
    with claimed(out):
        assert (out / LOCK).read_text() == f"{os.getpid()}\n"
