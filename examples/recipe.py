"""What a recipe is: a frozen description of a task; and how a command line makes it one run."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import jax
import numpy as np
import optax
from flax import nnx

from examples.data import Dataset
from examples.methods import Method, Stages

PerExample = Callable[[jax.Array, jax.Array], jax.Array]
"""(outputs (n, ...), targets (n, ...)) -> one number per example (n,)."""

SCALES = ("paper", "small", "smoke")


class RecipeError(Exception):
    """What was asked for does not exist or makes no sense. The message names it, in one line."""


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
        seed: of the initial point and of the order of the examples.
    """

    epochs: int
    batch_size: int
    stages: tuple[int, ...] = ()
    stage_factor: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        _require(self.epochs >= 1, "epochs", "at least 1", self.epochs)
        _require(self.batch_size >= 1, "batch_size", "at least 1", self.batch_size)
        rising = all(a < b for a, b in zip((0, *self.stages), self.stages, strict=False))
        _require(rising, "stages", "rising epochs, the first at least 1", self.stages)
        _require(self.stage_factor > 0, "stage_factor", "above 0", self.stage_factor)
        _require(0 <= self.seed < 2**32, "seed", "from 0 to 2^32 - 1", self.seed)


@dataclass(frozen=True)
class Recipe:
    """A task: everything the one training loop needs to know, as data.

    Attributes:
        name: what the command line calls it.
        title: one line for people.
        load: data folder, or `None` for the built-in data -> data set.
        model: random streams -> Flax NNX model, a map from inputs to outputs.
        loss: per-example loss.
        metrics: further per-example figures by name, reported as means; the first is the headline.
        regularizer: strength -> regularizer or assignment of `ramda_jax`.
        sparsity: name and function (params, regularizer) -> scalar of the structure metric.
        methods: hyperparameters of each method, by name.
        settings: those of the paper.
        scales: what the scales other than `paper` change of the settings.
        picture: params -> image (height, width) of the group norms of what is selected, where a
            picture makes sense.
    """

    name: str
    title: str
    load: Callable[[Path | None], Dataset]
    model: Callable[[nnx.Rngs], nnx.Module]
    loss: PerExample
    metrics: Mapping[str, PerExample]
    regularizer: Callable[[float], Any]
    sparsity: tuple[str, Callable[[Any, Any], jax.Array]]
    methods: Mapping[str, Method]
    settings: Settings
    scales: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    picture: Callable[[Any], np.ndarray] | None = None

    @property
    def headline(self) -> str:
        """Name of the one figure besides the objective that is always shown."""
        return next(iter(self.metrics), "loss")


@dataclass(frozen=True)
class Run:
    """One training run: a recipe, a method of it, and every setting decided."""

    recipe: Recipe
    optimizer: str
    scale: str
    settings: Settings
    method: Method

    def regularizer(self) -> Any:
        return self.recipe.regularizer(self.method.strength)

    def transformation(self, steps_per_epoch: int) -> optax.GradientTransformationExtraArgs:
        """The method as an optax transformation, its stages counted in steps."""
        steps = tuple(epoch * steps_per_epoch for epoch in self.settings.stages)
        try:
            return self.method.transformation(
                self.regularizer(), Stages(steps, self.settings.stage_factor)
            )
        except ValueError as error:  # a constant out of range: the library's message names it
            raise RecipeError(f"{self.optimizer}: {error}") from error


def make_run(
    recipe: Recipe, optimizer: str, scale: str = "paper", overrides: Mapping[str, str] | None = None
) -> Run:
    """One run of a recipe, with `field=value` overrides parsed by the type of the field.

    Raises:
        RecipeError: no such method or scale, no such field for this method, or a value of the
            wrong type or out of range.
    """
    if optimizer not in recipe.methods:
        raise RecipeError(
            f"optimizer: {recipe.name} has {_names(recipe.methods)}, got {optimizer!r}"
        )
    if scale not in SCALES:
        raise RecipeError(f"scale: expected one of {_names(SCALES)}, got {scale!r}")
    method = recipe.methods[optimizer]
    changes: dict[str, Any] = dict(recipe.scales.get(scale, {}))
    method_changes: dict[str, Any] = {}
    settings_types, method_types = field_types(recipe.settings), field_types(method)
    for name, text in (overrides or {}).items():
        if name in settings_types:
            changes[name] = _parse(name, settings_types[name], text)
        elif name in method_types:
            method_changes[name] = _parse(name, method_types[name], text)
        else:
            raise RecipeError(
                f"{name}: no such field for {optimizer}, "
                f"which has {_names([*settings_types, *method_types])}"
            )
    settings, method = replace(recipe.settings, **changes), replace(method, **method_changes)
    run = Run(recipe, optimizer, scale, settings, method)
    run.transformation(steps_per_epoch=1)  # so that constants out of range are found at once
    return run


def split_overrides(arguments: Sequence[str]) -> dict[str, str]:
    """`["epochs=5", ...]` to `{"epochs": "5", ...}`."""
    overrides: dict[str, str] = {}
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if not name or not equals:
            raise RecipeError(f"{argument}: expected field=value")
        if name in overrides:
            raise RecipeError(f"{name}: given twice")
        overrides[name] = text
    return overrides


def field_types(instance: Any) -> dict[str, Any]:
    """Type of each field of a dataclass instance, by name."""
    hints = get_type_hints(type(instance))
    return {entry.name: hints[entry.name] for entry in fields(instance)}


def _parse(name: str, kind: Any, text: str) -> Any:
    words, parse = _PARSERS[kind]
    try:
        return parse(text)
    except ValueError:
        raise RecipeError(f"{name}: expected {words}, got {text!r}") from None


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError
    return value


def _boolean(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError
    return text == "true"


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",")) if text else ()


_PARSERS: dict[Any, tuple[str, Callable[[str], Any]]] = {
    int: ("an integer", int),
    float: ("a finite number", _finite),
    bool: ("true or false", _boolean),
    tuple[int, ...]: ("integers separated by commas", _integers),
}


def _require(condition: bool, name: str, expected: str, value: Any) -> None:
    if not condition:
        raise RecipeError(f"{name}: expected {expected}, got {value}")


def _names(names: Any) -> str:
    return ", ".join(names)
