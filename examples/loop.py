"""The training loop, one for all recipes: epochs, their figures, and checkpoints between them."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, overload

import jax
from flax import nnx

from examples import in_memory, interrupt, streaming
from examples.checkpoint import Checkpoints
from examples.data import Dataset, Stream
from examples.data.pipeline import as_stream
from examples.in_memory import InMemory
from examples.parallel import ONE_DEVICE, OneDevice
from examples.recipe import Run
from examples.streaming import Feed, Streaming
from examples.task import OnStep, TrainState, unwatched
from examples.timing import Pace

Row = dict[str, float]
"""The figures of one epoch, by name; every row of a run has the same names."""

# What every row has besides its figures.
_OF_TIME = ("epoch", "step", "seconds", "seconds_per_step")

Program = InMemory | Streaming

# What an epoch may still take after a signal, where a checkpoint can be written at its end.
_PATIENCE_SECONDS = 5.0


@dataclass(frozen=True)
class Fit:
    """What a training run came to.

    Attributes:
        seed: what it started from.
        rows: one per epoch, as far as the objective stayed finite.
        params: the training iterate W.
        structured: the point to deploy, W with What's amount of structure.
        model_state: what the model holds besides parameters.
        train_seconds: wall time of the epochs, evaluation included, compilation not.
    """

    seed: int
    rows: list[Row]
    params: nnx.State
    structured: nnx.State
    model_state: nnx.State
    train_seconds: float

    @property
    def diverged(self) -> bool:
        return not math.isfinite(self.rows[-1]["objective"])

    @property
    def step_seconds(self) -> float:
        """Of a training step, evaluation excluded: the mean, as steps may cost more early than late."""
        return statistics.fmean(row["seconds_per_step"] for row in self.rows)


@overload
def prepare(run: Run, dataset: Dataset, parallel: OneDevice = ...) -> InMemory: ...
@overload
def prepare(run: Run, dataset: Stream, parallel: OneDevice = ...) -> Streaming: ...
def prepare(run: Run, dataset: Dataset | Stream, parallel: OneDevice = ONE_DEVICE) -> Program:
    """The run and its data, ready to be fitted on the devices of `parallel`."""
    if isinstance(dataset, Stream):
        return streaming.prepare(run, dataset, parallel)
    if run.settings.stream:
        return streaming.prepare(run, as_stream(dataset), parallel)
    return in_memory.prepare(run, dataset, parallel)


class _Recorder:
    """Turns the figures of epochs into rows, a while after their computation was started."""

    def __init__(
        self,
        program: Program,
        rows: list[Row],
        on_epoch: Callable[[Row], None],
        checkpoints: Checkpoints | None,
    ) -> None:
        self.program, self.rows, self.on_epoch = program, rows, on_epoch
        self.checkpoints = checkpoints
        self.names = program.task.figure_names()
        self.before = rows[-1]["seconds"] if rows else 0.0
        self.begun = time.perf_counter()
        self.compiled = program.compile_seconds
        self.pending: tuple[dict[str, Any], float] | None = None

    @property
    def seconds(self) -> float:
        """Since the run began, compilation on the way not counted."""
        compiling = self.program.compile_seconds - self.compiled
        return self.before + time.perf_counter() - self.begun - compiling

    @property
    def finite(self) -> bool:
        return not self.rows or math.isfinite(self.rows[-1]["objective"])

    def flush(self) -> None:
        """Fetches the figures that are due, if any are."""
        if self.pending is None:
            return
        (metrics, step_seconds), self.pending = self.pending, None
        figures, epoch = jax.device_get(metrics), len(self.rows) + 1
        row: Row = {"epoch": epoch, "step": epoch * self.program.steps_per_epoch}
        row["seconds"] = round(self.seconds, 4)
        row["seconds_per_step"] = round(step_seconds, 7)
        self.rows.append(row | {name: float(figures[name]) for name in self.names})
        self.on_epoch(self.rows[-1])

    def timed_epoch(
        self, state: TrainState, feed: Any, watch: OnStep
    ) -> tuple[TrainState, jax.Array, float]:
        """An epoch and its seconds per step; the last one's figures are recorded meanwhile."""
        jax.block_until_ready(self.pending)  # evaluation is not part of the epoch's time
        begun, compiled = time.perf_counter(), self.program.compile_seconds
        state, iterations = self.program.epoch(state, feed, watch)
        self.flush()
        jax.block_until_ready((state, iterations))
        seconds = time.perf_counter() - begun - (self.program.compile_seconds - compiled)
        return state, iterations, seconds / self.program.steps_per_epoch

    def interrupted(self, number: int, where: str) -> interrupt.Interrupted:
        """What a signal ends the run with, once its last checkpoint is written."""
        run = self.program.run
        last = self.checkpoints.wait() if self.checkpoints else None
        if last:
            then = f"--resume goes on from epoch {last + 1}"
        else:
            why = "none is written yet" if run.settings.checkpoint_every else "checkpoint_every=0"
            then = f"no checkpoint ({why}), so the run begins anew"
        return interrupt.Interrupted(
            number, f"{where} of {run.settings.epochs} ({run.optimizer}): {then}"
        )


def fit(
    program: Program,
    seed: int,
    on_epoch: Callable[[Row], None] = lambda row: None,
    checkpoints: Checkpoints | None = None,
    start: nnx.State | None = None,
    on_estimate: Callable[[float], None] = lambda seconds: None,
) -> Fit:
    """Trains from one seed; stops early where the objective is no longer finite.

    Args:
        program: from `prepare`.
        seed: of the initial point and of the order of the examples.
        on_epoch: called with each epoch's row, while the device works on the next epoch; first of
            all with the rows of a run that is resumed.
        checkpoints: where to write them, and to resume from.
        start: parameters to start from in place of the seed's.
        on_estimate: called with the seconds that the run will take, once in its first epoch, where the
            steps of that are programs of their own and take a while.

    Raises:
        Interrupted: by a signal, after a checkpoint where there is one to be.
    """
    with interrupt.deferred(_PATIENCE_SECONDS if checkpoints and checkpoints.every else 0):
        state, feed = program.start(seed, start), program.feed(seed)
        rows: list[Row] = []
        names = [*_OF_TIME, *program.task.figure_names()]
        if checkpoints and (restored := checkpoints.restore(state, names)):
            state, position, rows = restored
            if isinstance(feed, Feed):
                feed.seek(position)
            for row in rows:
                on_epoch(row)
        recorder = _Recorder(program, rows, on_epoch, checkpoints)
        if number := interrupt.waiting():  # the run before this one in a comparison was at its end
            raise recorder.interrupted(number, f"before epoch {len(rows) + 1}")
        epochs, first = program.run.settings.epochs, len(rows) + 1
        left = lambda steps: steps_to_go(program, epochs - first + 1) - steps
        tell = lambda seconds, steps: on_estimate(seconds * left(steps))
        watch: OnStep = Pace(tell, lambda: program.compile_seconds)
        for epoch in range(first, epochs + 1):
            if not recorder.finite:
                break
            try:
                state, iterations, step_seconds = recorder.timed_epoch(state, feed, watch)
            except interrupt.Interrupted as stop:
                raise recorder.interrupted(stop.number, f"in epoch {epoch}") from None
            watch = unwatched
            if not recorder.finite:
                break
            metrics = {**program.evaluate(state), "solver_iterations": iterations}
            recorder.pending = (metrics, step_seconds)
            number = interrupt.waiting() if epoch < epochs else 0  # after the last all is done
            if checkpoints and (checkpoints.due(epoch) or (number and checkpoints.every)):
                recorder.flush()
                if recorder.finite:
                    # A set in memory needs no position: the state's key says the order.
                    position = feed.taken if isinstance(feed, Feed) else None
                    checkpoints.save(epoch, state, position, recorder.rows)
            if number:
                recorder.flush()
                raise recorder.interrupted(number, f"after epoch {epoch}")
        recorder.flush()
        seconds = recorder.seconds
        structured = program.task.structured(state.opt_state, state.params)
        params, structured, model_state = program.task.parallel.local(
            (state.params, structured, state.model_state)
        )
        return Fit(seed, recorder.rows, params, structured, model_state, seconds)


def steps_to_go(program: Program, epochs: int) -> float:
    """How many steps take as long as so many epochs, evaluation included: to call a model is a third of
    what a step does with an example, which calls it and goes back twice as far.
    """
    per_epoch = program.evaluations / (3 * program.run.settings.batch_size)
    return epochs * (program.steps_per_epoch + per_epoch)
