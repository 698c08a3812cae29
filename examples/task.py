"""A run as pure functions: the first state, one training step, the evaluation of one batch.

`in_memory.py` and `streaming.py` put these together to epochs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import ramda_jax as rj
from examples.data import Batch
from examples.parallel import WHOLE, Compiled, OneDevice, Specs, is_key, rows_axis
from examples.recipe import Run

Figures = dict[str, jax.Array]

OnStep = Callable[[jax.Array], None]
"""Called after a step, with something that the step computes."""


class TrainState(NamedTuple):
    """What training changes.

    Attributes:
        params: the training iterate W, float32.
        opt_state: the method's.
        model_state: what the model holds besides parameters: batch statistics, dropout keys.
        key: of the order of the examples and of their augmentation.
        memory: what a recurrent model hands from batch to batch; `()` for others.
    """

    params: nnx.State
    opt_state: optax.OptState
    model_state: nnx.State
    key: jax.Array
    memory: Any


@dataclass(frozen=True)
class Task:
    """A run with its model taken apart.

    Attributes:
        run: what is trained, and how.
        transformation: the method.
        train_graph: the model's structure in training (dropout on, batch statistics moving).
        eval_graph: the model's structure in evaluation.
        params: shapes and types of the parameters.
        parallel: where it is computed.
        structured: (method state, W) -> the point to deploy as one program; operation by operation
            it can outlast the training.
    """

    run: Run
    transformation: optax.GradientTransformationExtraArgs
    train_graph: nnx.GraphDef[nnx.Module]
    eval_graph: nnx.GraphDef[nnx.Module]
    params: nnx.State
    parallel: OneDevice
    structured: Compiled

    @cached_property
    def specs(self) -> Specs:
        """How the devices share a state: a `TrainState` of `PartitionSpec`s."""
        opt_state = self.parallel.state_specs(self.transformation, self.params)
        specs: Any = TrainState
        return specs(WHOLE, opt_state, WHOLE, WHOLE, rows_axis(self.memory))

    def start(self, seed: int, params: nnx.State | None = None) -> TrainState:
        """The initial point; `params`: other ones than the seed's."""
        model, parallel, specs = make_model(self.run, seed), self.parallel, self.specs
        params = nnx.state(model, nnx.Param) if params is None else params
        params = parallel.place(params, specs.params)
        return TrainState(
            params,
            parallel.init(self.transformation, params, specs.opt_state),
            parallel.place(nnx.state(model, nnx.Not(nnx.Param)), specs.model_state),
            parallel.place(jax.random.key(seed), specs.key),
            self.placed_memory(self.run.settings.batch_size),
        )

    def memory(self, batch_size: int) -> Any:
        """The memory before the first batch."""
        recipe = self.run.recipe
        if not recipe.memory:
            return ()
        # Only its sizes are asked for.
        model = nnx.eval_shape(lambda: make_model(self.run, 0))
        return recipe.memory(model, batch_size)

    def placed_memory(self, batch_size: int) -> Any:
        """The same on the devices."""
        return self.parallel.place(self.memory(batch_size), self.specs.memory)

    def train_step(
        self, state: TrainState, batch: Batch, key: jax.Array
    ) -> tuple[TrainState, jax.Array]:
        """One step; returns the state after it and the solver's iterations in it.

        Where a step sees one device's rows, each device draws its own augmentation and dropout.
        """
        recipe, parallel = self.run.recipe, self.parallel
        inputs, total = batch.inputs, parallel.sum(jnp.sum(batch.weights))
        if recipe.augment:
            inputs = recipe.augment(parallel.own_key(key), inputs)
        own_state = jax.tree.map(parallel.own_key, state.model_state)

        def loss(params: nnx.State) -> tuple[jax.Array, tuple[nnx.State, Any]]:
            """This device's share of the mean over the batch."""
            outputs, model_state, memory = self.call(
                self.train_graph, params, own_state, inputs, state.memory
            )
            values = recipe.loss(outputs, batch.targets)
            return jnp.sum(values * batch.weights) / total, (model_state, memory)

        grads, (model_state, memory) = jax.grad(loss, has_aux=True)(state.params)
        grads = parallel.sum(grads)
        updates, opt_state = self.transformation.update(grads, state.opt_state, state.params)
        iterations, _ = self.run.method.solver_stats(opt_state)
        after = TrainState(
            optax.apply_updates(state.params, updates),
            opt_state,
            _with_keys_of(state.model_state, model_state),
            state.key,
            jax.lax.stop_gradient(memory),
        )
        return after, jnp.asarray(iterations, jnp.float32)

    def evaluate_batch(
        self, params: nnx.State, model_state: nnx.State, batch: Batch, memory: Any
    ) -> tuple[Figures, Any]:
        """Weighted sums of the loss and the metrics, and of the weights; and the next memory."""
        outputs, memory = self.predict(params, model_state, batch.inputs, memory)
        return self.sums(outputs, batch), memory

    def predict(
        self, params: nnx.State, model_state: nnx.State, inputs: Any, memory: Any
    ) -> tuple[Any, Any]:
        """Outputs in evaluation, for inputs as stored, and the next memory."""
        outputs, _, memory = self.call(self.eval_graph, params, model_state, inputs, memory)
        return outputs, memory

    def sums(self, outputs: Any, batch: Batch) -> Figures:
        """Weighted sums of the loss and the metrics over a batch, and of its weights."""
        recipe = self.run.recipe
        sums = {
            name: jnp.sum(per_example(outputs, batch.targets) * batch.weights)
            for name, per_example in {"loss": recipe.loss, **recipe.metrics}.items()
        }
        return sums | {"weight": jnp.sum(batch.weights)}

    def means(self, sums: Figures) -> Figures:
        """Loss, metrics and what derives from the loss, from sums."""
        recipe = self.run.recipe
        means = {name: sums[name] / sums["weight"] for name in ("loss", *recipe.metrics)}
        return means | {name: derive(means["loss"]) for name, derive in recipe.derived.items()}

    def figures(self, params: nnx.State, train: Figures, test: Figures) -> Figures:
        """Objective, loss and metrics on both sets from their sums, and the structure."""
        recipe, regularizer = self.run.recipe, self.run.regularizer()
        figures: Figures = {}
        for part, sums in (("train", train), ("test", test)):
            figures |= {f"{part}_{name}": value for name, value in self.means(sums).items()}
        name, sparsity = recipe.sparsity
        return {
            "objective": rj.objective(figures["train_loss"], params, regularizer),
            **figures,
            name: sparsity(params, regularizer),
        }

    def deployed_figures(self, params: nnx.State, test: Figures) -> Figures:
        """Of the point to deploy: what it does on the test set, and its structure."""
        name, sparsity = self.run.recipe.sparsity
        figures = {f"test_{name}": value for name, value in self.means(test).items()}
        return figures | {name: sparsity(params, self.run.regularizer())}

    def figure_names(self) -> list[str]:
        """An epoch's figures in reading order (compiled functions sort their dictionaries).

        Of W; of the point to deploy, `structured_`, without a pass over training examples; of What,
        `minimizer_`.
        """
        recipe = self.run.recipe
        parts = [f"{part}_{name}" for part in ("train", "test") for name in recipe.figures]
        names = ["objective", *parts, recipe.sparsity[0]]
        deployed = [name for name in names if name.startswith("test_") or name == names[-1]]
        structured = [f"structured_{name}" for name in deployed]
        minimizer = [f"minimizer_{name}" for name in names]
        return [*names, *structured, *minimizer, "solver_iterations", "solver_residual"]

    def call(
        self,
        graph: nnx.GraphDef[nnx.Module],
        params: nnx.State,
        model_state: nnx.State,
        inputs: Any,
        memory: Any,
    ) -> tuple[Any, nnx.State, Any]:
        """Outputs of the model of this graph, its other state after them, and the next memory."""
        recipe = self.run.recipe
        inputs = recipe.prepare(inputs) if recipe.prepare else inputs
        # `copy`: variables of this trace, which the model may write to.
        model = nnx.merge(graph, params, model_state, copy=True)
        outputs, memory = recipe.forward(model, inputs, memory)
        return outputs, nnx.state(model, nnx.Not(nnx.Param)), memory


def unwatched(computed: jax.Array) -> None:
    """What is called after a step of which nothing is asked."""


def make_model(run: Run, seed: int) -> nnx.Module:
    """The model at the initial point of a seed."""
    dtype = jnp.dtype(run.settings.compute_dtype)
    return run.recipe.model(nnx.Rngs(seed), dtype)


def make_task(run: Run, steps_per_epoch: int, parallel: OneDevice) -> Task:
    """Takes the run's model apart; its parameters are not made for that."""
    model = nnx.eval_shape(lambda: make_model(run, 0))
    model.eval()
    eval_graph = nnx.graphdef(model)
    model.train()
    for _, module in nnx.iter_modules(model):
        if isinstance(module, nnx.BatchNorm):
            module.axis_name = parallel.axis
    params = nnx.state(model, nnx.Param)
    transformation = run.transformation(steps_per_epoch, parallel.placement())
    train_graph, structured = nnx.graphdef(model), parallel.whole(run.method.structured_params)
    return Task(run, transformation, train_graph, eval_graph, params, parallel, structured)


def add(total: Mapping[str, jax.Array], sums: Mapping[str, jax.Array]) -> Figures:
    """Sums of more batches."""
    return {name: total[name] + sums[name] for name in total}


def _with_keys_of(before: nnx.State, after: nnx.State) -> nnx.State:
    """The state after a step; its keys are those of all devices (a model counts its draws)."""
    return jax.tree.map(lambda old, new: old if is_key(old) else new, before, after)
