"""The registry of methods under test, and the small problem that the contract tests share.

A new method gets one line in `METHODS`; every parametrized test then runs on it. Compiling dominates the
time of these tests, so transformations and their steps are made once and shared.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ramda_jax as rj

Tree = Any

needs_eight = pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 (fake) devices")


@dataclasses.dataclass(frozen=True, eq=False)
class Method:
    """One method: its name in `rj`, a rate that converges on every target, its other options."""

    name: str
    learning_rate: float
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    averages: bool = False  # the training iterate is an average: W_t differs from What_t
    has_momentum: bool = False
    scalar_metric: bool = False  # one prox solves the subproblem: no solver argument

    def __call__(self, regularizer: Any = None, **overrides: Any) -> optax.GradientTransformation:
        arguments = {"learning_rate": self.learning_rate, **self.options, **overrides}
        learning_rate = arguments.pop("learning_rate")
        return getattr(rj, self.name)(learning_rate, regularizer, **arguments)


METHODS = (
    Method("ramda", 1e-2, {"momentum": 1e-2}, averages=True, has_momentum=True),
    Method("rmda", 1e-2, {"momentum": 0.1}, averages=True, has_momentum=True, scalar_metric=True),
    Method("prox_sgd", 1e-3, {"momentum": 0.1}, has_momentum=True, scalar_metric=True),
    Method("prox_adamw", 1e-2),
    Method("prox_ssi", 1e-2),
)
# Where what matters is the regularizer, two methods stand for the two kinds of metric.
EITHER_METRIC = (METHODS[0], METHODS[2])
# Options that take another path through the code; only some checks run on them as well.
VARIANTS = (
    Method("ramda", 1e-2, {"restart_steps": (2,)}, averages=True, has_momentum=True),
    Method("rmda", 1e-2, {"restart_steps": (2,)}, averages=True, has_momentum=True),
    Method("prox_adamw", 1e-2, {"amsgrad": True, "weight_decay": 1e-2}),
    Method("prox_ssi", 1e-2, {"bias_corrected_metric": False, "weight_decay": 1e-2}),
)


def method_id(method: Method) -> str:
    """A readable test id."""
    extra = [str(key) for key in method.options if key != "momentum"]
    return "-".join([method.name, *extra])


def with_structure(params: Tree, strength: Any = 1e-8) -> Any:
    """Group lasso on every leaf with two or more axes and L1 on the others, leaf by leaf.

    A bare array has no tree to mirror (a bare regularizer means "kernels"), so it gets a rule.
    """
    if hasattr(params, "shape"):
        return rj.by_path([(".*", rj.L1(strength))])
    return jax.tree.map(
        lambda leaf: rj.GroupLasso(strength) if leaf.ndim >= 2 else rj.L1(strength), params
    )


def kernels_only(params: Tree, strength: Any = 1e-8) -> Any:
    """The usual rule."""
    del params
    return rj.GroupLasso(strength)


def without(params: Tree, strength: Any = 0.0) -> None:
    """No regularizer at all."""
    del params, strength


REGULARIZERS: tuple[Callable[..., Any], ...] = (without, with_structure)


# A small network, with rows that training would kill: `DEAD` inputs get almost no gradient.
DEAD, INPUTS, OUTPUTS = 2, 6, 5
# At this rate and strength exactly the `DEAD` rows vanish, for all methods, from the first step on.
LAYER_RATE, LAYER_STRENGTH = 0.1, 0.1


def layer_params(dtype: Any = jnp.float32) -> dict[str, dict[str, jax.Array]]:
    """A dense layer and a scale; every leaf has its own shape, so a shape identifies its parameter."""
    rng = np.random.default_rng(0)

    def small(*shape: int) -> jax.Array:
        return jnp.asarray(1e-3 * rng.standard_normal(shape), dtype)

    return {
        "body": {"kernel": small(INPUTS, OUTPUTS), "bias": small(OUTPUTS)},
        "head": {"scale": small(OUTPUTS + 2)},
    }


def two_layer_params() -> dict[str, dict[str, jax.Array]]:
    """As `layer_params`, with a dense layer for a head."""
    rng = np.random.default_rng(5)
    kernel = jnp.asarray(1e-3 * rng.standard_normal((INPUTS + 1, OUTPUTS + 2)), jnp.float32)
    return {
        "body": layer_params()["body"],
        "head": {"kernel": kernel, "bias": layer_params()["head"]["scale"]},
    }


def layer_grads(params: Tree, steps: int, seed: int = 1) -> list[Tree]:
    """Gradients for `layer_params`: large ones, except in the first `DEAD` rows of a kernel."""
    rng = np.random.default_rng(seed)

    def draw(leaf: jax.Array) -> jax.Array:
        grad = 5.0 * rng.standard_normal(leaf.shape)
        if leaf.ndim >= 2:
            grad[..., :DEAD, :] *= 1e-4
        return jnp.asarray(grad, leaf.dtype)

    return [jax.tree.map(draw, params) for _ in range(steps)]


@functools.cache
def layer_tx(
    method: Method, regularizer: Callable[..., Any] = with_structure
) -> optax.GradientTransformation:
    """The method on `layer_params`, made once."""
    return method(regularizer(layer_params(), LAYER_STRENGTH), learning_rate=LAYER_RATE)


@functools.cache
def jitted_init(tx: optax.GradientTransformation) -> Callable[[Tree], Tree]:
    """`tx.init`, compiled once per transformation."""
    return jax.jit(tx.init)


def make_step(tx: optax.GradientTransformation) -> Callable[..., tuple[Tree, Tree]]:
    """(params, state, grad) -> (params, state), not jitted."""

    def step(params: Tree, state: Tree, grad: Tree) -> tuple[Tree, Tree]:
        updates, state = tx.update(grad, state, params)
        return optax.apply_updates(params, updates), state

    return step


@functools.cache
def jitted_step(tx: optax.GradientTransformation) -> Callable[..., tuple[Tree, Tree]]:
    """`make_step`, compiled once per transformation."""
    return jax.jit(make_step(tx))


minimizer = jax.jit(lambda state, params: rj.structured_params(state, params, values="minimizer"))
"""What, by one program."""


def run(
    tx: optax.GradientTransformation, params: Tree, grads: list[Tree], state: Tree = None
) -> tuple[Tree, Tree]:
    """(params, state) after one jitted step per gradient."""
    state = jitted_init(tx)(params) if state is None else state
    for grad in grads:
        params, state = jitted_step(tx)(params, state, grad)
    return params, state
