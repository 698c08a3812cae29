"""Sets that fit on the device: an epoch is one program, and data stays where it is computed with.

An epoch draws a new order of the examples and scans over its batches, inside one `jax.jit` with
donated state; nothing is fetched from the device before it has ended. (On a CPU, where a
convolution in a loop is slow, a step is a program instead.)
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from examples.data import Batch, Dataset
from examples.recipe import RecipeError, Run
from examples.task import Figures, Task, TrainState, make_task


class Split(NamedTuple):
    """Inputs and targets of one set, on the device."""

    inputs: jax.Array
    targets: jax.Array


class Arrays(NamedTuple):
    """What an epoch reads."""

    train: Split
    test: Split


@dataclass(frozen=True)
class InMemory:
    """A run compiled for its data; it can be fitted from several seeds without compiling again.

    Attributes:
        task: what was compiled.
        steps_per_epoch: steps that count as an epoch.
        epoch: (state, arrays) -> (state, mean iterations); the state passed in is given up.
        evaluate_state: (state, arrays) -> figures.
        arrays: the data, on the device.
        compile_seconds: how long tracing and compiling took.
    """

    task: Task
    steps_per_epoch: int
    epoch: Callable[[TrainState, Arrays], tuple[TrainState, jax.Array]]
    evaluate_state: Callable[[TrainState, Arrays], Figures]
    arrays: Arrays
    compile_seconds: float

    @property
    def run(self) -> Run:
        return self.task.run

    def start(self, seed: int) -> TrainState:
        return self.task.start(seed)

    def feed(self, seed: int) -> Arrays:
        return self.arrays

    def evaluate(self, state: TrainState) -> Figures:
        return self.evaluate_state(state, self.arrays)


def prepare(run: Run, dataset: Dataset) -> InMemory:
    """Puts the data on the device and compiles epoch and evaluation."""
    settings, count = run.settings, dataset.train_examples
    if run.recipe.memory:
        raise RecipeError(
            f"{run.recipe.name}: a model with a memory needs a stream of batches, not a set of rows"
        )
    if settings.batch_size > count:
        raise RecipeError(
            f"batch_size: expected at most {count} (all training examples), "
            f"got {settings.batch_size}"
        )
    steps = count // settings.batch_size
    if settings.steps_per_epoch > steps:
        raise RecipeError(
            f"steps_per_epoch: expected at most {steps} (a pass), got {settings.steps_per_epoch}"
        )
    steps = settings.steps_per_epoch or steps
    task = make_task(run, steps)
    arrays = Arrays(
        Split(jnp.asarray(dataset.train_inputs), jnp.asarray(dataset.train_targets)),
        Split(jnp.asarray(dataset.test_inputs), jnp.asarray(dataset.test_targets)),
    )
    state = task.start(settings.seed)
    begun = time.perf_counter()
    epoch = compile_epoch(task, steps, state, arrays)
    evaluate = jax.jit(evaluation_function(task)).lower(state, arrays).compile()
    return InMemory(task, steps, epoch, evaluate, arrays, time.perf_counter() - begun)


def epoch_function(task: Task, steps: int) -> Callable[[TrainState, Arrays], Any]:
    """The pure function of one pass over the training set."""
    step = step_function(task)

    def epoch(state: TrainState, arrays: Arrays) -> tuple[TrainState, jax.Array]:
        state, batches, keys = draw(task, steps, state, arrays)
        state, iterations = jax.lax.scan(
            lambda state, drawn: step(state, arrays, *drawn), state, (batches, keys)
        )
        return state, jnp.mean(iterations)

    return epoch


def step_function(task: Task) -> Callable[[TrainState, Arrays, jax.Array, jax.Array], Any]:
    """The pure function of one step: (state, arrays, examples (size,), key)."""

    def step(
        state: TrainState, arrays: Arrays, indices: jax.Array, key: jax.Array
    ) -> tuple[TrainState, jax.Array]:
        inputs, targets = arrays.train.inputs[indices], arrays.train.targets[indices]
        return task.train_step(state, Batch(inputs, targets, jnp.ones(len(indices))), key)

    return step


def draw(
    task: Task, steps: int, state: TrainState, arrays: Arrays
) -> tuple[TrainState, jax.Array, jax.Array]:
    """A new order of the examples, (steps, size), and a key for each step; and the next state."""
    size = task.run.settings.batch_size
    key, order_key = jax.random.split(state.key)
    order = jax.random.permutation(order_key, len(arrays.train.inputs))
    keys = jax.random.split(jax.random.fold_in(order_key, 1), steps)
    return state._replace(key=key), order[: steps * size].reshape(steps, size), keys


def compile_epoch(
    task: Task, steps: int, state: TrainState, arrays: Arrays
) -> Callable[[TrainState, Arrays], tuple[TrainState, jax.Array]]:
    """The epoch as one program, or, where that is slow, as one program per step."""
    if not _slow_in_loops(state):
        epoch = jax.jit(epoch_function(task, steps), donate_argnums=0)
        return epoch.lower(state, arrays).compile()
    drawing = jax.jit(partial(draw, task, steps), donate_argnums=0).lower(state, arrays).compile()
    state, batches, keys = jax.eval_shape(partial(draw, task, steps), state, arrays)
    jitted = jax.jit(step_function(task), donate_argnums=0)
    step = jitted.lower(state, arrays, *jax.tree.map(_row, (batches, keys))).compile()

    def by_steps(state: TrainState, arrays: Arrays) -> tuple[TrainState, jax.Array]:
        state, batches, keys = drawing(state, arrays)
        total = jnp.zeros(())
        for indices, key in zip(batches, keys, strict=True):
            state, iterations = step(state, arrays, indices, key)
            total += iterations
        return state, total / steps

    return by_steps


def _slow_in_loops(state: TrainState) -> bool:
    """Whether the model has convolutions and the device is a CPU.

    XLA's CPU compiler runs the gradient of a convolution inside a loop nine times slower than
    outside (a LeNet at batch 128: 818 ms against 89 ms), and a scan over steps is a loop.
    """
    convolutions = any(leaf.ndim > 2 for leaf in jax.tree.leaves(state.params))
    return convolutions and jax.default_backend() == "cpu"


def _row(array: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape[1:], array.dtype)


def evaluation_function(task: Task) -> Callable[[TrainState, Arrays], Figures]:
    """The pure function that evaluates W and What on both sets, in batches of bounded size."""
    settings, method = task.run.settings, task.run.method

    def sums(params: nnx.State, model_state: nnx.State, split: Split, limit: int) -> Figures:
        count = min(limit or len(split.inputs), len(split.inputs))
        size = min(settings.eval_batch_size, count)

        def evaluate(start: jax.Array) -> Figures:
            # The last batch reaches back over examples already counted, at weight 0.
            first = jnp.minimum(start, count - size)
            take = lambda array: jax.lax.dynamic_slice_in_dim(array, first, size)
            weights = (first + jnp.arange(size) >= start).astype(jnp.float32)
            batch = Batch(take(split.inputs), take(split.targets), weights)
            return task.evaluate_batch(params, model_state, batch, ())[0]

        parts = jax.lax.map(evaluate, jnp.arange(0, count, size))
        return jax.tree.map(lambda part: jnp.sum(part, axis=0), parts)

    def evaluate(state: TrainState, arrays: Arrays) -> Figures:
        structured = method.structured_params(state.opt_state, state.params)
        figures: Figures = {"solver_residual": method.solver_stats(state.opt_state)[1]}
        for prefix, params in (("", state.params), ("structured_", structured)):
            train = sums(params, state.model_state, arrays.train, settings.eval_train_examples)
            test = sums(params, state.model_state, arrays.test, 0)
            figures |= {
                f"{prefix}{name}": value
                for name, value in task.figures(params, train, test).items()
            }
        return figures

    return evaluate
