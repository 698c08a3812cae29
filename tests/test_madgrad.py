"""Without a regularizer `ramda` is MADGRAD: optax's own implementation is the oracle."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ramda_jax as rj
from tests.methods import run

Tree = Any

STEPS = 200


def network_params() -> dict[str, Any]:
    """A convolution, a dense layer and their biases."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    return {
        "conv": {"kernel": normal(3, 3, 4, 8), "bias": normal(8)},
        "dense": {"kernel": normal(12, 7), "bias": normal(7)},
    }


def random_grads(params: Tree, steps: int) -> list[Tree]:
    rng = np.random.default_rng(1)
    return [
        jax.tree.map(lambda p: jnp.asarray(rng.standard_normal(p.shape), jnp.float32), params)
        for _ in range(steps)
    ]


def trajectory(tx: optax.GradientTransformation, params: Tree, grads: list[Tree]) -> Tree:
    """Every iterate, stacked."""
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *grads)

    def step(carry: tuple[Tree, Tree], grad: Tree) -> tuple[tuple[Tree, Tree], Tree]:
        params, state = carry
        updates, state = tx.update(grad, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    return jax.jit(lambda: jax.lax.scan(step, (params, tx.init(params)), stacked)[1])()


def to_float64(tree: Tree) -> Tree:
    """The tree as float64 NumPy arrays."""
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


@pytest.mark.parametrize("momentum", [1.0, 0.1, 0.01])
@pytest.mark.parametrize("learning_rate", [1e-2, 1e-1])
def test_ramda_without_regularizer_is_madgrad(learning_rate: float, momentum: float) -> None:
    """optax adds eps to the rate too; its momentum weighs the old point where c weighs the new.

    Every entry at every step agrees to 1e-6 with optax run in float64, and the whole trajectory with
    optax run in float32, whose own rounding (1e-6 in single entries where c = 0.01) is the larger.
    """
    eps = 1e-6
    params = network_params()
    grads = random_grads(params, STEPS)
    oracle = optax.contrib.madgrad(learning_rate, momentum=1.0 - momentum, eps=eps)
    ours = rj.ramda(learning_rate + eps, None, momentum=momentum, eps=eps)
    found = to_float64(trajectory(ours, params, grads))
    single = to_float64(trajectory(oracle, params, grads))
    with jax.enable_x64(True):
        wide_params, wide_grads = jax.tree.map(jnp.asarray, to_float64((params, grads)))
        double = to_float64(trajectory(oracle, wide_params, wide_grads))
    for (path, actual), in_single, in_double in zip(
        jax.tree_util.tree_leaves_with_path(found),
        jax.tree.leaves(single),
        jax.tree.leaves(double),
        strict=True,
    ):
        name = jax.tree_util.keystr(path)
        worst = np.max(np.abs(actual - in_double)) / np.max(np.abs(in_double))
        assert worst <= 1e-6, (name, worst)
        distance = np.linalg.norm(actual - in_single) / np.linalg.norm(in_single)
        assert distance <= 1e-6, (name, distance)
        assert np.max(np.abs(actual[-1] - actual[0])) > 0.01, f"{name} has not moved"


@pytest.mark.filterwarnings("ignore:momentum=0.9")
def test_the_two_differences_from_optax_are_visible_at_this_precision() -> None:
    """Had either convention been swapped, the equality above would have failed."""
    params = network_params()
    grads = random_grads(params, 20)
    eps = 1e-3
    expected, _ = run(optax.contrib.madgrad(1e-2, momentum=0.9, eps=eps), params, grads)

    def distance(learning_rate: float, momentum: float) -> float:
        found, _ = run(rj.ramda(learning_rate, None, momentum=momentum, eps=eps), params, grads)
        return max(
            float(jnp.max(jnp.abs(a - b)))
            for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
        )

    assert distance(1e-2 + eps, 0.1) < 1e-6
    assert distance(1e-2, 0.1) > 1e-4
    assert distance(1e-2 + eps, 0.9) > 1e-2


def test_structured_params_without_regularizer_are_the_point_that_is_averaged() -> None:
    params = network_params()
    grads = random_grads(params, 3)
    averaged = rj.ramda(1e-2, None, momentum=0.1)
    plain, _ = run(rj.ramda(1e-2, None, momentum=1.0), params, grads)
    found, state = run(averaged, params, grads)
    structured = rj.structured_params(state, found, values="minimizer")
    for a, b in zip(jax.tree.leaves(structured), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
