"""The training loop, one for all recipes: an epoch is one program, and data stays on the device.

An epoch draws a new order of the examples, scans over its batches and evaluates the result on both
sets, all inside one `jax.jit` with donated state; nothing is fetched from the device before the
epoch has ended.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import ramda_jax as rj
from examples.data import Dataset
from examples.recipe import Recipe, RecipeError, Run

Row = dict[str, float]
"""The figures of one epoch, by name; every row of a run has the same names."""


class Split(NamedTuple):
    """Inputs and targets of one set, on the device."""

    inputs: jax.Array
    targets: jax.Array


class Arrays(NamedTuple):
    """What an epoch reads."""

    train: Split
    test: Split


class TrainState(NamedTuple):
    """What an epoch changes."""

    params: nnx.State
    opt_state: optax.OptState
    key: jax.Array


@dataclass(frozen=True)
class Program:
    """A run compiled for its data; it can be fitted from several seeds without compiling again.

    Attributes:
        run: what was compiled.
        steps_per_epoch: full batches in a pass.
        start: seed -> state at the initial point.
        epoch: (state, arrays) -> (state, metrics); the state passed in is given up.
        arrays: the data, on the device.
        compile_seconds: how long tracing and compiling the epoch took.
    """

    run: Run
    steps_per_epoch: int
    start: Callable[[int], TrainState]
    epoch: Callable[[TrainState, Arrays], tuple[TrainState, dict[str, jax.Array]]]
    arrays: Arrays
    compile_seconds: float


@dataclass(frozen=True)
class Fit:
    """What a training run came to.

    Attributes:
        seed: what it started from.
        rows: one per epoch, as far as the objective stayed finite.
        params: the training iterate W.
        structured: the structured iterate What.
        train_seconds: wall time of the epochs, evaluation included, compilation not.
    """

    seed: int
    rows: list[Row]
    params: nnx.State
    structured: nnx.State
    train_seconds: float

    @property
    def diverged(self) -> bool:
        return not math.isfinite(self.rows[-1]["objective"])


def prepare(run: Run, dataset: Dataset) -> Program:
    """Puts the data on the device and compiles the epoch."""
    count, batch_size = len(dataset.train_inputs), run.settings.batch_size
    if batch_size > count:
        raise RecipeError(
            f"batch_size: expected at most {count} (all training examples), got {batch_size}"
        )
    steps = count // batch_size
    transformation = run.transformation(steps)

    def start(seed: int) -> TrainState:
        params = nnx.state(run.recipe.model(nnx.Rngs(seed)), nnx.Param)
        return TrainState(params, transformation.init(params), jax.random.key(seed))

    graphdef, _ = nnx.split(run.recipe.model(nnx.Rngs(0)), nnx.Param)
    arrays = Arrays(
        Split(jnp.asarray(dataset.train_inputs), jnp.asarray(dataset.train_targets)),
        Split(jnp.asarray(dataset.test_inputs), jnp.asarray(dataset.test_targets)),
    )
    begun = time.perf_counter()
    epoch = jax.jit(epoch_function(run, graphdef, transformation, steps), donate_argnums=0)
    compiled = epoch.lower(start(run.settings.seed), arrays).compile()
    return Program(run, steps, start, compiled, arrays, time.perf_counter() - begun)


def epoch_function(
    run: Run,
    graphdef: nnx.GraphDef[nnx.Module],
    transformation: optax.GradientTransformationExtraArgs,
    steps: int,
) -> Callable[[TrainState, Arrays], tuple[TrainState, dict[str, jax.Array]]]:
    """The pure function of one pass over the training set and the evaluation after it."""
    recipe, batch_size = run.recipe, run.settings.batch_size

    def mean_loss(params: nnx.State, batch: Split) -> jax.Array:
        outputs = nnx.merge(graphdef, params)(batch.inputs)
        return jnp.mean(recipe.loss(outputs, batch.targets))

    def epoch(state: TrainState, arrays: Arrays) -> tuple[TrainState, dict[str, jax.Array]]:
        key, order_key = jax.random.split(state.key)
        order = jax.random.permutation(order_key, len(arrays.train.inputs))

        def step(
            carry: tuple[nnx.State, Any], indices: jax.Array
        ) -> tuple[tuple[nnx.State, Any], jax.Array]:
            params, opt_state = carry
            batch = Split(arrays.train.inputs[indices], arrays.train.targets[indices])
            grads = jax.grad(mean_loss)(params, batch)
            updates, opt_state = transformation.update(grads, opt_state, params)
            params = optax.apply_updates(params, updates)
            return (params, opt_state), rj.solver_stats(opt_state)["iterations"]

        batches = order[: steps * batch_size].reshape(steps, batch_size)
        (params, opt_state), iterations = jax.lax.scan(
            step, (state.params, state.opt_state), batches
        )
        structured = rj.structured_params(opt_state, params)
        metrics = {
            **evaluate(recipe, run.regularizer(), graphdef, params, arrays),
            **{
                f"structured_{name}": value
                for name, value in evaluate(
                    recipe, run.regularizer(), graphdef, structured, arrays
                ).items()
            },
            "solver_iterations": jnp.mean(iterations.astype(jnp.float32)),
            "solver_residual": rj.solver_stats(opt_state)["residual"],
        }
        return TrainState(params, opt_state, key), metrics

    return epoch


def evaluate(
    recipe: Recipe,
    regularizer: Any,
    graphdef: nnx.GraphDef[nnx.Module],
    params: nnx.State,
    arrays: Arrays,
) -> dict[str, jax.Array]:
    """Training objective, loss and metrics on both sets in full, and the structure of `params`."""
    model = nnx.merge(graphdef, params)
    figures: dict[str, jax.Array] = {}
    for part, split in (("train", arrays.train), ("test", arrays.test)):
        outputs = model(split.inputs)
        for name, per_example in {"loss": recipe.loss, **recipe.metrics}.items():
            figures[f"{part}_{name}"] = jnp.mean(per_example(outputs, split.targets))
    name, sparsity = recipe.sparsity
    return {
        "objective": rj.objective(figures["train_loss"], params, regularizer),
        **figures,
        name: sparsity(params, regularizer),
    }


def figure_names(recipe: Recipe) -> list[str]:
    """An epoch's figures in reading order (compiled functions sort their dictionaries)."""
    parts = [f"{part}_{name}" for part in ("train", "test") for name in ("loss", *recipe.metrics)]
    names = ["objective", *parts, recipe.sparsity[0]]
    return [
        *names,
        *(f"structured_{name}" for name in names),
        "solver_iterations",
        "solver_residual",
    ]


def fit(program: Program, seed: int, on_epoch: Callable[[Row], None] = lambda row: None) -> Fit:
    """Trains from one seed; stops early where the objective is no longer finite.

    Args:
        program: from `prepare`.
        seed: of the initial point and of the order of the examples.
        on_epoch: called with each epoch's row, while the device works on the next epoch.
    """
    state = program.start(seed)
    rows: list[Row] = []
    pending: dict[str, jax.Array] | None = None
    begun = time.perf_counter()

    def record(metrics: dict[str, jax.Array]) -> None:
        figures = jax.device_get(metrics)
        row: Row = {"epoch": len(rows) + 1, "step": (len(rows) + 1) * program.steps_per_epoch}
        row["seconds"] = round(time.perf_counter() - begun, 4)
        rows.append(row | {name: float(figures[name]) for name in figure_names(program.run.recipe)})
        on_epoch(rows[-1])

    for _ in range(program.run.settings.epochs):
        state, metrics = program.epoch(state, program.arrays)
        if pending is not None:
            record(pending)
            if not math.isfinite(rows[-1]["objective"]):
                pending = None
                break
        pending = metrics
    if pending is not None:
        record(pending)
    seconds = time.perf_counter() - begun
    return Fit(
        seed, rows, state.params, rj.structured_params(state.opt_state, state.params), seconds
    )
