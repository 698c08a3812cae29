"""Sets that do not fit on the device: a step is one program, and Grain brings the batches.

A pass holds as many batches in memory as Grain reads ahead, and a few on the devices. Batches may
have several shapes (speech padded to a few lengths): each shape is compiled when it first comes.
Each process reads its own rows of every batch.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grain
import jax
import jax.numpy as jnp
from flax import nnx

from examples import interrupt
from examples.data import Batch, Stream
from examples.data.pipeline import iterate
from examples.parallel import ROWS, WHOLE, Compiled, OneDevice, require_divisible
from examples.recipe import RecipeError, Run
from examples.task import Figures, OnStep, Task, TrainState, add, make_task, unwatched


class Feed:
    """The training batches of one run, without end; where they are is part of a checkpoint.

    Args:
        batches: as they are read.
        put: moves one to the devices.
        ahead: how many wait there for their step.
    """

    def __init__(
        self,
        batches: grain.DatasetIterator[Batch],
        put: Callable[[Batch], Batch],
        ahead: int = 2,
    ) -> None:
        self._batches, self._put, self._ahead = batches, put, ahead
        self._waiting: deque[Batch] = deque()

    def take(self) -> Batch:
        """The next batch."""
        return self._waiting.popleft() if self._waiting else self._read()

    def fill(self) -> None:
        """Reads ahead: to be called when a step has been started, and the device works on it."""
        while len(self._waiting) < self._ahead:
            self._waiting.append(self._read())

    def _read(self) -> Batch:
        return self._put(next(self._batches))

    @property
    def taken(self) -> int:
        """How many batches were taken; what is read ahead does not count."""
        return self._batches.get_state()["next_index"] - len(self._waiting)

    def seek(self, taken: int) -> None:
        """Goes to where so many were taken."""
        self._waiting.clear()
        self._batches.set_state({"next_index": taken})


@dataclass(frozen=True)
class Streaming:
    """A run over a stream; it can be fitted from several seeds without compiling again.

    Attributes:
        task: what is trained.
        steps_per_epoch: steps that count as an epoch.
        steps_per_pass: after how many the data begins again.
        stream: the data.
        step: (state, batch, iterations so far) -> (state, iterations); gives up the first.
        minimizer: (method state, W) -> What as one program.
        evaluation: (points, model state, batch, memories) -> (sums, memories), each of W, of What and
            of the point to deploy.
        figures: (state, points, training sums, test sums) -> figures.
    """

    task: Task
    steps_per_epoch: int
    steps_per_pass: int
    stream: Stream
    step: Compiled
    minimizer: Compiled
    evaluation: Compiled
    figures: Compiled

    @property
    def run(self) -> Run:
        return self.task.run

    @property
    def compile_seconds(self) -> float:
        parts = (self.step, self.minimizer, self.evaluation, self.task.structured, self.figures)
        return sum(part.seconds for part in parts)

    @property
    def eval_rows(self) -> int:
        """Examples evaluated at a time: as many more as it takes to share them evenly."""
        devices = self.task.parallel.devices
        return -(-self.run.settings.eval_batch_size // devices) * devices

    def start(self, seed: int, params: nnx.State | None = None) -> TrainState:
        return self.task.start(seed, params)

    def feed(self, seed: int) -> Feed:
        batches = self.stream.train(own_rows(self.run.settings.batch_size), seed).repeat()
        return Feed(iterate(batches, self.stream.threads), self.task.parallel.put_rows)

    @property
    def evaluations(self) -> int:
        """Examples that the model is called with after an epoch, those of all points together."""
        train = self.stream.train_examples
        limit = min(self.run.settings.eval_train_examples or train, train)
        return 3 * (limit + self.stream.test_examples)

    def epoch(
        self, state: TrainState, feed: Feed, watch: OnStep = unwatched
    ) -> tuple[TrainState, jax.Array]:
        """Takes the next steps, `watch` is called after each; a memory starts anew where the data does."""
        parallel, specs = self.task.parallel, self.task.specs
        start = (state, parallel.place(jnp.float32(0), WHOLE))
        state, iterations = parallel.enter(start, (specs, WHOLE))
        for _ in range(self.steps_per_epoch):
            interrupt.between_steps()
            if self.run.recipe.memory and feed.taken % self.steps_per_pass == 0:
                memory = self.task.placed_memory(self.run.settings.batch_size)
                state = state._replace(memory=parallel.enter(memory, specs.memory))
            state, iterations = self.step(state, feed.take(), iterations)
            feed.fill()
            watch(iterations)
        return parallel.leave((state, iterations / self.steps_per_epoch), (specs, WHOLE))

    def evaluate(self, state: TrainState) -> Figures:
        """Figures of W, What and the point to deploy, each batch read once."""
        settings, size = self.run.settings, self.eval_rows
        minimizer = self.minimizer(state.opt_state, state.params)
        points = (state.params, minimizer, self.task.structured(state.opt_state, state.params))
        limit = settings.eval_train_examples or self.stream.train_examples
        in_order = self.stream.train_in_order(own_rows(size))
        train = self._sums(state, points, in_order, -(-limit // size))
        test = self._sums(state, points, self.stream.test(own_rows(size)), None)
        return self.figures(state, points, train, test)

    def _sums(
        self,
        state: TrainState,
        points: tuple[nnx.State, ...],
        batches: grain.MapDataset[Batch],
        limit: int | None,
    ) -> tuple[Figures, ...]:
        part = batches[:limit] if limit is not None and limit < len(batches) else batches
        memory = self.task.placed_memory(self.eval_rows)
        memories, total = (memory,) * len(points), None
        for batch in iterate(part, self.stream.threads):
            sums, memories = self.evaluation(
                points,
                state.model_state,
                self.task.parallel.put_whole_rows(batch),
                memories,
            )
            total = sums if total is None else tuple(map(add, total, sums))
        if total is None:
            raise RecipeError(f"{self.stream.source}: expected at least one batch to evaluate")
        return total


def own_rows(batch_size: int) -> int:
    """How many rows of each batch a process reads."""
    return batch_size // jax.process_count()


def prepare(run: Run, stream: Stream, parallel: OneDevice) -> Streaming:
    """Makes the programs; each is compiled when its first batch comes."""
    settings = run.settings
    require_divisible(settings.batch_size, parallel)
    steps_per_pass = len(stream.train(own_rows(settings.batch_size), settings.seed))
    if steps_per_pass == 0:
        raise RecipeError(
            f"batch_size: expected at most {stream.train_examples} (all training examples), "
            f"got {settings.batch_size}"
        )
    steps = settings.steps_per_epoch or steps_per_pass
    task = make_task(run, steps, parallel)

    def step(state: TrainState, batch: Batch, iterations: jax.Array) -> tuple[TrainState, Any]:
        key, step_key = jax.random.split(state.key)
        state, last = task.train_step(state._replace(key=key), batch, step_key)
        return state, iterations + last

    def evaluation(
        points: tuple[nnx.State, ...],
        model_state: nnx.State,
        batch: Batch,
        memories: tuple[Any, ...],
    ) -> tuple[tuple[Figures, ...], tuple[Any, ...]]:
        pairs = [
            task.evaluate_batch(params, model_state, batch, memory)
            for params, memory in zip(points, memories, strict=True)
        ]
        sums, after = zip(*pairs, strict=True)
        return sums, after

    def figures(
        state: TrainState,
        points: tuple[nnx.State, ...],
        train: tuple[Figures, ...],
        test: tuple[Figures, ...],
    ) -> Figures:
        of_minimizer = task.figures(points[1], train[1], test[1])
        of_deployed = task.deployed_figures(points[2], test[2])
        return {
            **task.figures(points[0], train[0], test[0]),
            **{f"minimizer_{name}": value for name, value in of_minimizer.items()},
            **{f"structured_{name}": value for name, value in of_deployed.items()},
            "solver_residual": run.method.solver_stats(state.opt_state)[1],
        }

    specs, memory = task.specs, task.specs.memory
    return Streaming(
        task,
        steps,
        steps_per_pass,
        stream,
        parallel.step(step, (specs, ROWS, WHOLE), (specs, WHOLE), donate=(0,)),
        parallel.whole(run.method.minimizer),
        parallel.whole(evaluation, (WHOLE, (memory,) * 3)),
        parallel.whole(figures),
    )
