"""Sets that fit on the device: an epoch is one program, and data stays where it is computed with.

An epoch draws a new order of the examples and scans over its batches, inside one `jax.jit` with
donated state; nothing is fetched from the device before it has ended. (On a CPU, where a
convolution in a loop is slow, a step is a program instead.)
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from examples import interrupt
from examples.data import Batch, Dataset
from examples.parallel import WHOLE, Compiled, OneDevice, require_divisible
from examples.recipe import RecipeError, Run
from examples.task import Figures, OnStep, Task, TrainState, make_task, unwatched


class Split(NamedTuple):
    """Inputs and targets of one set, on the device."""

    inputs: jax.Array
    targets: jax.Array


class Arrays(NamedTuple):
    """What an epoch reads."""

    train: Split
    test: Split


class BySteps(NamedTuple):
    """An epoch as one program per step."""

    draw: Compiled
    step: Compiled
    parallel: OneDevice
    steps: int

    @property
    def seconds(self) -> float:
        return self.draw.seconds + self.step.seconds

    def __call__(
        self, state: TrainState, arrays: Arrays, watch: OnStep
    ) -> tuple[TrainState, jax.Array]:
        start = (self.draw(state.key, arrays), self.parallel.place(jnp.float32(0), WHOLE))
        (key, drawn), total = self.parallel.enter(start, WHOLE)
        state = state._replace(key=key)
        for number in range(self.steps):
            interrupt.between_steps()
            state, total = self.step(state, arrays, drawn, np.int32(number), total)
            watch(total)
        return state, total / self.steps


@dataclass(frozen=True)
class InMemory:
    """A run compiled for its data; it can be fitted from several seeds without compiling again.

    Attributes:
        task: what is trained.
        steps_per_epoch: steps that count as an epoch.
        training: (state, arrays) -> (state, mean iterations); the state passed in is given up.
        evaluation: (state, arrays) -> figures.
        arrays: the data, on every device.
    """

    task: Task
    steps_per_epoch: int
    training: Compiled | BySteps
    evaluation: Compiled
    arrays: Arrays

    @property
    def run(self) -> Run:
        return self.task.run

    @property
    def compile_seconds(self) -> float:
        return self.training.seconds + self.evaluation.seconds

    def start(self, seed: int, params: nnx.State | None = None) -> TrainState:
        return self.task.start(seed, params)

    def feed(self, seed: int) -> Arrays:
        return self.arrays

    @property
    def evaluations(self) -> int:
        """Examples that the model is called with after an epoch, those of all points together."""
        train, test = (len(split.inputs) for split in self.arrays)
        return 2 * min(self.run.settings.eval_train_examples or train, train) + 3 * test

    def epoch(
        self, state: TrainState, arrays: Arrays, watch: OnStep = unwatched
    ) -> tuple[TrainState, jax.Array]:
        """A pass over the data; `watch` is called after every step that is a program of its own."""
        parallel, specs, training = self.task.parallel, self.task.specs, self.training
        entered = parallel.enter((state, arrays), (specs, WHOLE))
        watched = (watch,) if isinstance(training, BySteps) else ()
        return parallel.leave(training(*entered, *watched), (specs, WHOLE))

    def evaluate(self, state: TrainState) -> Figures:
        return self.evaluation(state, self.arrays)


def prepare(run: Run, dataset: Dataset, parallel: OneDevice) -> InMemory:
    """Puts the data on the devices and makes the programs; they are compiled when first needed."""
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
    require_divisible(settings.batch_size, parallel)
    steps = count // settings.batch_size
    if settings.steps_per_epoch > steps:
        raise RecipeError(
            f"steps_per_epoch: expected at most {steps} (a pass), got {settings.steps_per_epoch}"
        )
    steps = settings.steps_per_epoch or steps
    task = make_task(run, steps, parallel)
    arrays = Arrays(
        Split(jnp.asarray(dataset.train_inputs), jnp.asarray(dataset.train_targets)),
        Split(jnp.asarray(dataset.test_inputs), jnp.asarray(dataset.test_targets)),
    )
    return InMemory(
        task,
        steps,
        training_programs(task, steps),
        parallel.whole(evaluation_function(task)),
        parallel.place(arrays, WHOLE),
    )


def epoch_function(task: Task, steps: int) -> Callable[[TrainState, Arrays], Any]:
    """The pure function of one pass over the training set."""
    one_step = step_function(task)

    def epoch(state: TrainState, arrays: Arrays) -> tuple[TrainState, jax.Array]:
        def step(state: TrainState, drawn: Drawn) -> tuple[TrainState, jax.Array]:
            keep = lambda state: task.parallel.keep(state, task.specs)
            state, iterations = one_step(keep(state), arrays, drawn)
            return keep(state), iterations

        key, drawn = draw(task, steps, state.key, arrays)
        state, iterations = jax.lax.scan(step, state._replace(key=key), drawn)
        return state, jnp.mean(iterations)

    return epoch


class Drawn(NamedTuple):
    """What a step draws by chance: its examples (size,) and a key; or those of all steps."""

    indices: jax.Array
    key: jax.Array


def step_function(task: Task) -> Callable[[TrainState, Arrays, Drawn], Any]:
    """The pure function of one step."""

    def step(state: TrainState, arrays: Arrays, drawn: Drawn) -> tuple[TrainState, jax.Array]:
        indices = task.parallel.own(drawn.indices)
        inputs, targets = arrays.train.inputs[indices], arrays.train.targets[indices]
        return task.train_step(state, Batch(inputs, targets, jnp.ones(len(indices))), drawn.key)

    return step


def draw(task: Task, steps: int, key: jax.Array, arrays: Arrays) -> tuple[jax.Array, Drawn]:
    """The next key of a run, and a new order of the examples and a key for each step."""
    size = task.run.settings.batch_size
    key, order_key = jax.random.split(key)
    order = jax.random.permutation(order_key, len(arrays.train.inputs))
    keys = jax.random.split(jax.random.fold_in(order_key, 1), steps)
    return key, Drawn(order[: steps * size].reshape(steps, size), keys)


def training_programs(task: Task, steps: int) -> Compiled | BySteps:
    """The epoch as one program, or, where that is slow, as one program per step."""
    parallel, specs = task.parallel, task.specs
    if not _slow_in_loops(task):
        epoch = epoch_function(task, steps)
        return parallel.step(epoch, (specs, WHOLE), (specs, WHOLE), donate=(0,))
    one_step = step_function(task)

    def step(
        state: TrainState, arrays: Arrays, drawn: Drawn, number: jax.Array, total: jax.Array
    ) -> tuple[TrainState, jax.Array]:
        state, iterations = one_step(state, arrays, jax.tree.map(lambda a: a[number], drawn))
        return state, total + iterations

    inputs = (specs, WHOLE, WHOLE, WHOLE, WHOLE)
    return BySteps(
        parallel.whole(partial(draw, task, steps)),
        parallel.step(step, inputs, (specs, WHOLE), donate=(0,)),
        parallel,
        steps,
    )


def _slow_in_loops(task: Task) -> bool:
    """Whether the model has convolutions and the device is a CPU.

    XLA's CPU compiler runs the gradient of a convolution inside a loop nine times slower than
    outside (a LeNet at batch 128: 818 ms against 89 ms), and a scan over steps is a loop.
    """
    convolutions = any(leaf.ndim > 2 for leaf in jax.tree.leaves(task.params))
    return convolutions and jax.default_backend() == "cpu"


def evaluation_function(task: Task) -> Callable[[TrainState, Arrays], Figures]:
    """The pure function that evaluates, in batches of bounded size, W and What on both sets, and the
    point to deploy on the test set: a fourth more than without it.
    """
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
            batch = task.parallel.spread(batch)
            return task.evaluate_batch(params, model_state, batch, ())[0]

        parts = jax.lax.map(evaluate, jnp.arange(0, count, size))
        return jax.tree.map(lambda part: jnp.sum(part, axis=0), parts)

    def evaluate(state: TrainState, arrays: Arrays) -> Figures:
        deployed = method.structured_params(state.opt_state, state.params)
        minimizer = method.minimizer(state.opt_state, state.params)
        test = sums(deployed, state.model_state, arrays.test, 0)
        figures: Figures = {
            f"structured_{name}": value
            for name, value in task.deployed_figures(deployed, test).items()
        }
        figures["solver_residual"] = method.solver_stats(state.opt_state)[1]
        for prefix, params in (("", state.params), ("minimizer_", minimizer)):
            train = sums(params, state.model_state, arrays.train, settings.eval_train_examples)
            test = sums(params, state.model_state, arrays.test, 0)
            figures |= {
                f"{prefix}{name}": value
                for name, value in task.figures(params, train, test).items()
            }
        return figures

    return evaluate
