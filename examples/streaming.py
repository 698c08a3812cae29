"""Sets that do not fit on the device: a step is one program, and Grain brings the batches.

A pass holds as many batches in memory as Grain reads ahead. Batches may have several shapes (speech
padded to a few lengths): each shape is compiled when it first comes.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
from flax import nnx

from examples.data import Batch, Stream
from examples.data.pipeline import iterate
from examples.recipe import RecipeError, Run
from examples.task import Figures, Task, TrainState, add, make_task


class Compiled:
    """A jitted function that compiles once per shape of its arguments, and knows how long it took.

    Attributes:
        seconds: spent tracing and compiling so far.
    """

    def __init__(self, function: Callable[..., Any], donate: tuple[int, ...] = ()) -> None:
        self._jitted = jax.jit(function, donate_argnums=donate)
        self._programs: dict[Any, Any] = {}
        self.seconds = 0.0

    def __call__(self, *arguments: Any) -> Any:
        leaves, structure = jax.tree.flatten(arguments)
        shapes = (structure, *((leaf.shape, leaf.dtype) for leaf in leaves))
        if shapes not in self._programs:
            begun = time.perf_counter()
            self._programs[shapes] = self._jitted.lower(*arguments).compile()
            self.seconds += time.perf_counter() - begun
        return self._programs[shapes](*arguments)


class Feed(NamedTuple):
    """The training batches of one run, without end; where they are is part of a checkpoint."""

    batches: grain.DatasetIterator[Batch]


@dataclass(frozen=True)
class Streaming:
    """A run over a stream; it can be fitted from several seeds without compiling again.

    Attributes:
        task: what is trained.
        steps_per_epoch: steps that count as an epoch.
        steps_per_pass: after how many the data begins again.
        stream: the data.
        step: (state, batch, iterations so far) -> (state, iterations); gives up the first.
        evaluation: (W, What, model state, batch, memories) -> (sums, memories).
        structured: state -> What.
        figures: (state, What, training sums, test sums) -> figures.
    """

    task: Task
    steps_per_epoch: int
    steps_per_pass: int
    stream: Stream
    step: Compiled
    evaluation: Compiled
    structured: Compiled
    figures: Compiled

    @property
    def run(self) -> Run:
        return self.task.run

    @property
    def compile_seconds(self) -> float:
        parts = (self.step, self.evaluation, self.structured, self.figures)
        return sum(part.seconds for part in parts)

    def start(self, seed: int) -> TrainState:
        return self.task.start(seed)

    def feed(self, seed: int) -> Feed:
        batches = self.stream.train(self.run.settings.batch_size, seed).repeat()
        return Feed(iterate(batches, self.stream.threads))

    def epoch(self, state: TrainState, feed: Feed) -> tuple[TrainState, jax.Array]:
        """Takes the next steps; a memory starts anew where the data does."""
        iterations = jnp.zeros(())
        for _ in range(self.steps_per_epoch):
            if self.run.recipe.memory and self._position(feed) % self.steps_per_pass == 0:
                state = state._replace(memory=self.task.memory(self.run.settings.batch_size))
            batch = jax.tree.map(jnp.asarray, next(feed.batches))
            state, iterations = self.step(state, batch, iterations)
        return state, iterations / self.steps_per_epoch

    def evaluate(self, state: TrainState) -> Figures:
        """Figures of W and What on both sets, each batch read once."""
        settings, structured = self.run.settings, self.structured(state)
        size = settings.eval_batch_size
        limit = settings.eval_train_examples or self.stream.train_examples
        train = self._sums(state, structured, self.stream.train_in_order(size), -(-limit // size))
        test = self._sums(state, structured, self.stream.test(size), None)
        return self.figures(state, structured, train, test)

    def _sums(
        self,
        state: TrainState,
        structured: nnx.State,
        batches: grain.MapDataset[Batch],
        limit: int | None,
    ) -> tuple[Figures, Figures]:
        part = batches[:limit] if limit is not None and limit < len(batches) else batches
        memory = self.task.memory(self.run.settings.eval_batch_size)
        memories, total = (memory, memory), None
        for batch in iterate(part, self.stream.threads):
            sums, memories = self.evaluation(
                state.params,
                structured,
                state.model_state,
                jax.tree.map(jnp.asarray, batch),
                memories,
            )
            total = sums if total is None else (add(total[0], sums[0]), add(total[1], sums[1]))
        if total is None:
            raise RecipeError(f"{self.stream.source}: expected at least one batch to evaluate")
        return total

    @staticmethod
    def _position(feed: Feed) -> int:
        return feed.batches.get_state()["next_index"]


def prepare(run: Run, stream: Stream) -> Streaming:
    """Makes the programs; each is compiled when its first batch comes."""
    settings = run.settings
    steps_per_pass = len(stream.train(settings.batch_size, settings.seed))
    if steps_per_pass == 0:
        raise RecipeError(
            f"batch_size: expected at most {stream.train_examples} (all training examples), "
            f"got {settings.batch_size}"
        )
    steps = settings.steps_per_epoch or steps_per_pass
    task = make_task(run, steps)

    def step(state: TrainState, batch: Batch, iterations: jax.Array) -> tuple[TrainState, Any]:
        key, step_key = jax.random.split(state.key)
        state, last = task.train_step(state._replace(key=key), batch, step_key)
        return state, iterations + last

    def evaluation(
        params: nnx.State,
        structured: nnx.State,
        model_state: nnx.State,
        batch: Batch,
        memories: tuple[Any, Any],
    ) -> tuple[tuple[Figures, Figures], tuple[Any, Any]]:
        first, memory = task.evaluate_batch(params, model_state, batch, memories[0])
        second, structured_memory = task.evaluate_batch(structured, model_state, batch, memories[1])
        return (first, second), (memory, structured_memory)

    def structured(state: TrainState) -> nnx.State:
        return run.method.structured_params(state.opt_state, state.params)

    def figures(
        state: TrainState,
        structured: nnx.State,
        train: tuple[Figures, Figures],
        test: tuple[Figures, Figures],
    ) -> Figures:
        of_structured = task.figures(structured, train[1], test[1])
        return {
            **task.figures(state.params, train[0], test[0]),
            **{f"structured_{name}": value for name, value in of_structured.items()},
            "solver_residual": run.method.solver_stats(state.opt_state)[1],
        }

    parts = [Compiled(part) for part in (evaluation, structured, figures)]
    return Streaming(task, steps, steps_per_pass, stream, Compiled(step, (0,)), *parts)
