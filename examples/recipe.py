"""What a recipe is: a frozen description of a task; and how a command line makes it one run."""

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import ramda_jax as rj
from examples.data import Dataset, Stream
from examples.methods import Method, Regularization, Stages
from examples.overrides import (
    RecipeError,
    field_types,
    likely,
    parse,
    replace_fields,
    split_overrides,
)

__all__ = ["Recipe", "RecipeError", "Run", "Settings", "make_run", "split_overrides"]

PerExample = Callable[[Any, Any], jax.Array]
"""(outputs (n, ...), targets (n, ...)) -> one number per example (n,)."""

Forward = Callable[[Any, Any, Any], tuple[Any, Any]]
"""(model, inputs, memory) -> (outputs, memory for the next batch)."""

SCALES = ("paper", "small", "smoke")


@dataclass(frozen=True)
class Settings:
    """What a run can vary whatever its method.

    Attributes:
        epochs: passes over the training set.
        batch_size: examples a step; the tail of a pass that fills no batch is left out (the order
            is new each pass).
        stages: epochs after which the second, third, ... stage begins; those past the end are not
            reached.
        stage_factor: what the learning rate is multiplied by as each begins.
        steps_per_epoch: steps that count as an epoch; 0 is as many as a pass has full batches.
        clip_norm: gradients of a larger global norm are scaled down to it; 0 is no clipping.
        compute_dtype: of the model's arithmetic; parameters, statistics, losses and the optimizer's
            state are float32 in any case.
        stream: whether a set that fits on the device is fed batch by batch nevertheless.
        eval_batch_size: examples evaluated at a time.
        eval_train_examples: training examples, from the first, on which objective and training
            metrics are evaluated; 0 is all.
        checkpoint_every: epochs between checkpoints; 0 is none.
        seed: of the initial point, of the order of the examples and of whatever else is random.
    """

    epochs: int
    batch_size: int
    stages: tuple[int, ...] = ()
    stage_factor: float = 0.1
    steps_per_epoch: int = 0
    clip_norm: float = 0.0
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    stream: bool = False
    eval_batch_size: int = 1000
    eval_train_examples: int = 0
    checkpoint_every: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "eval_batch_size"):
            _require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in ("steps_per_epoch", "clip_norm", "eval_train_examples", "checkpoint_every"):
            _require(getattr(self, name) >= 0, name, "at least 0", getattr(self, name))
        rising = all(a < b for a, b in zip((0, *self.stages), self.stages, strict=False))
        _require(rising, "stages", "rising epochs, the first at least 1", self.stages)
        _require(self.stage_factor > 0, "stage_factor", "above 0", self.stage_factor)
        _require(0 <= self.seed < 2**32, "seed", "from 0 to 2^32 - 1", self.seed)


def plain_forward(model: Any, inputs: Any, memory: Any) -> tuple[Any, Any]:
    """Of a model without a memory: the outputs for the inputs."""
    return model(inputs), memory


@dataclass(frozen=True)
class Recipe:
    """A task: everything the one training loop needs to know, as data.

    Where `load` or `model` is a frozen dataclass with a `__call__`, its fields can be set from the
    command line, as `data.FIELD=value` and `model.FIELD=value`.

    Attributes:
        name: what the command line calls it.
        title: one line for people.
        load: data folder, or `None` for the built-in data -> `Dataset` or `Stream`.
        model: (random streams, type to compute in) -> Flax NNX model. Its `nnx.Param`s are float32
            and trained; whatever else it holds (batch statistics, dropout keys) is carried from
            step to step. What goes into the loss it returns in float32.
        loss: per-example loss.
        metrics: further per-example figures by name, reported as means; the first is the headline.
        regularizer: strength -> regularizer or assignment of `ramda_jax`.
        grouping: which arrays it is for, and along which axes: "kernels", as it says itself, or what
            the network's computation says (`rj.network`): its "inputs", or "matrices".
        example: shapes of inputs for the model, of one example; for a `grouping` by the network.
        sparsity: name and function (params, regularizer) -> scalar of the structure metric.
        methods: hyperparameters of each method, by name.
        settings: those of the paper.
        scales: what the scales other than `paper` change, by the names of the command line;
            `METHOD.FIELD` is a field of one method.
        derived: functions of the mean loss by name, such as a perplexity; the first is the headline
            where there are no metrics.
        check: (load, model) -> None; raises `RecipeError` where they do not fit each other.
        headline_figure: name of the headline where it is another one, such as the loss.
        forward: how the model is called.
        memory: (model, batch size) -> memory before the first batch of a pass, for a `forward` that
            has one. The data is then a `Stream` whose batches follow each other, and no gradient
            flows from a batch into the one before.
        prepare: inputs as stored, or as `augment` leaves them -> inputs of the model, on the device
            (scaling of bytes).
        augment: (key, inputs as stored) -> the same, changed at random, on the device; in training
            only, before `prepare`.
        picture: params -> image (height, width) of the group norms of what is selected, where a
            picture makes sense.
    """

    name: str
    title: str
    load: Callable[[Path | None], Dataset | Stream]
    model: Callable[[nnx.Rngs, jnp.dtype], nnx.Module]
    loss: PerExample
    metrics: Mapping[str, PerExample]
    regularizer: Callable[[float], rj.Regularizer]
    sparsity: tuple[str, Callable[[nnx.State, Regularization], jax.Array]]
    methods: Mapping[str, Method]
    settings: Settings
    scales: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    derived: Mapping[str, Callable[[jax.Array], jax.Array]] = field(default_factory=dict)
    check: Callable[[Any, Any], None] = lambda load, model: None
    headline_figure: str = ""
    forward: Forward = plain_forward
    memory: Callable[[Any, int], Any] | None = None
    prepare: Callable[[Any], Any] | None = None
    augment: Callable[[jax.Array, Any], Any] | None = None
    picture: Callable[[nnx.State], np.ndarray] | None = None
    grouping: Literal["kernels", "inputs", "matrices"] = "kernels"
    example: jax.ShapeDtypeStruct | None = None

    @property
    def headline(self) -> str:
        """Name of the one figure besides the objective that is always shown."""
        return self.headline_figure or next(iter([*self.metrics, *self.derived]), "loss")

    @property
    def figures(self) -> list[str]:
        """Names of what is evaluated on each set."""
        return ["loss", *self.metrics, *self.derived]


@dataclass(frozen=True)
class Run:
    """One training run: a recipe, a method of it, and every setting decided."""

    recipe: Recipe
    optimizer: str
    scale: str
    settings: Settings
    method: Method

    def regularizer(self) -> Regularization:
        recipe = self.recipe
        psi = recipe.regularizer(self.method.strength)
        if recipe.grouping == "kernels":
            return psi
        dtype = jnp.dtype(self.settings.compute_dtype)
        net = _network(recipe.model, recipe.forward, recipe.example, dtype)
        return net.inputs(psi) if recipe.grouping == "inputs" else net.matrices(psi)

    def transformation(
        self, steps_per_epoch: int, placement: rj.Placement | None = None
    ) -> optax.GradientTransformationExtraArgs:
        """The method as an optax transformation, its stages counted in steps."""
        settings = self.settings
        stages = Stages(
            steps=tuple(epoch * steps_per_epoch for epoch in settings.stages),
            factor=settings.stage_factor,
            total=settings.epochs * steps_per_epoch,
        )
        try:
            method = self.method.transformation(self.regularizer(), stages, placement)
        except ValueError as error:  # a constant out of range: the library's message names it
            raise RecipeError(f"{self.optimizer}: {error}") from error
        if not settings.clip_norm:
            return method
        return optax.chain(optax.clip_by_global_norm(settings.clip_norm), method)


@functools.lru_cache(maxsize=16)  # a comparison makes many runs of one model
def _network(
    make: Callable[[nnx.Rngs, jnp.dtype], nnx.Module],
    forward: Forward,
    example: jax.ShapeDtypeStruct | None,
    dtype: jnp.dtype,
) -> rj.Network:
    """The model as its computation shows it, in evaluation."""
    model = nnx.eval_shape(lambda: make(nnx.Rngs(0), dtype))
    model.eval()
    return rj.network(lambda m, inputs: forward(m, inputs, ())[0], model, example)


def make_run(
    recipe: Recipe, optimizer: str, scale: str = "paper", overrides: Mapping[str, str] | None = None
) -> Run:
    """One run of a recipe, with `field=value` overrides parsed by the type of the field.

    Raises:
        RecipeError: no such method or scale, no such field for this method, or a value of the
            wrong type or out of range.
    """
    method = find_method(recipe, optimizer)
    if scale not in SCALES:
        raise RecipeError(
            f"scale: expected one of {_names(SCALES)}, got {scale!r}{likely(scale, SCALES)}"
        )
    types = run_fields(recipe, method)
    changes = scale_changes(recipe, optimizer, scale)
    for name, text in (overrides or {}).items():
        if name not in types:
            raise RecipeError(
                f"{name}: no such field for {optimizer}, which has {_names(types)}{likely(name, types)}"
            )
        changes[name] = parse(name, types[name], text)
    run = changed(Run(recipe, optimizer, scale, recipe.settings, method), changes)
    run.recipe.check(run.recipe.load, run.recipe.model)
    run.transformation(steps_per_epoch=1)  # so that constants out of range are found at once
    return run


def find_method(recipe: Recipe, optimizer: str) -> Method:
    """The method of this name, or a `RecipeError` that says which there are."""
    if optimizer not in recipe.methods:
        raise RecipeError(
            f"methods: {recipe.name} has {_names(recipe.methods)}, got {optimizer!r}"
            f"{likely(optimizer, recipe.methods)}"
        )
    return recipe.methods[optimizer]


def scale_changes(recipe: Recipe, optimizer: str, scale: str) -> dict[str, Any]:
    """What a scale changes for one method, by the names of the command line."""
    changes = {}
    for name, value in recipe.scales.get(scale, {}).items():
        head, _, field_name = name.partition(".")
        if head == optimizer:
            changes[field_name] = value
        elif head not in recipe.methods:
            changes[name] = value
    return changes


def run_fields(recipe: Recipe, method: Method) -> dict[str, Any]:
    """Type of every field of a run, by its name on the command line."""
    return {
        **field_types(recipe.settings),
        **field_types(method),
        **field_types(recipe.model, "model."),
        **field_types(recipe.load, "data."),
    }


def run_settings(run: Run) -> dict[str, Any]:
    """Value of every field of a run, by its name on the command line."""
    parts = (
        ("", run.settings),
        ("", run.method),
        ("model.", run.recipe.model),
        ("data.", run.recipe.load),
    )
    return {
        prefix + name: functools.reduce(getattr, name.split("."), part)
        for prefix, part in parts
        for name in field_types(part)
    }


def changed(run: Run, changes: Mapping[str, Any]) -> Run:
    """The run with fields changed, each where it belongs."""
    settings_names, method_names = field_types(run.settings), field_types(run.method)
    parts: dict[str, dict[str, Any]] = {"settings": {}, "method": {}, "model": {}, "data": {}}
    for name, value in changes.items():
        head, dot, rest = name.partition(".")
        if name in settings_names:
            parts["settings"][name] = value
        elif name in method_names:
            parts["method"][name] = value
        elif dot and head in ("model", "data"):
            parts[head][rest] = value
        else:
            raise RecipeError(f"{name}: no such field for {run.optimizer}")
    recipe = replace(
        run.recipe,
        model=replace_fields(run.recipe.model, parts["model"]),
        load=replace_fields(run.recipe.load, parts["data"]),
    )
    return replace(
        run,
        recipe=recipe,
        settings=replace_fields(run.settings, parts["settings"]),
        method=replace_fields(run.method, parts["method"]),
    )


def _require(condition: bool, name: str, expected: str, value: object) -> None:
    if not condition:
        raise RecipeError(f"{name}: expected {expected}, got {value}")


def _names(names: Iterable[str]) -> str:
    return ", ".join(names)
