"""Sums over thousands and millions of steps keep their digits: compiled as programs of users are, optimizations on."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ramda_jax as rj
from tests.methods import minimizer

Tree = Any


@pytest.mark.parametrize("name", ["ramda", "rmda"])
def test_tiny_bfloat16_gradients_add_up(name: str) -> None:
    """2,000 equal gradients: a bfloat16 sum stops growing once an addend is below 1/256 of it."""
    steps, gradient = 2000, 1e-3
    tx = getattr(rj, name)(1e-2, None, momentum=1.0)

    def structured(dtype: Any) -> jax.Array:
        """What_t - W^0 = -V/D after all steps, from parameters held still at the origin."""
        params = jnp.zeros(3, dtype)
        grad = jnp.full(3, gradient, dtype)

        def step(state: Tree, _: None) -> tuple[Tree, jax.Array]:
            updates, state = tx.update(grad, state, params)
            return state, updates

        return jax.jit(lambda: jax.lax.scan(step, tx.init(params), length=steps)[1][-1])()

    weight = sum(1e-2 * math.sqrt(t) for t in range(1, steps + 1))
    g = float(jnp.bfloat16(gradient))
    metric = math.sqrt(steps) if name == "rmda" else (weight * g * g) ** (1 / 3) + 1e-6
    wanted = -weight * g / metric
    np.testing.assert_allclose(np.asarray(structured(jnp.bfloat16), float), wanted, rtol=5e-3)
    np.testing.assert_allclose(structured(jnp.float32), -weight * 1e-3 / metric, rtol=2e-3)


@pytest.mark.parametrize("name", ["prox_adamw", "prox_ssi"])
def test_a_constant_bfloat16_gradient_moves_every_adam_step_by_the_rate(name: str) -> None:
    """With equal gradients mhat/sqrt(nhat) = 1: a second moment that stalls would show here."""
    rate, params, grad = 2.0**-6, jnp.zeros(3, jnp.bfloat16), jnp.full(3, 0.75, jnp.bfloat16)
    tx = getattr(rj, name)(rate, None)

    def step(state: Tree, _: None) -> tuple[Tree, jax.Array]:
        updates, state = tx.update(grad, state, params)
        return state, updates

    updates = jax.jit(lambda: jax.lax.scan(step, tx.init(params), length=3000)[1])()
    np.testing.assert_allclose(np.asarray(updates, float), -rate, rtol=5e-3)


@pytest.mark.parametrize("name", ["ramda", "rmda"])
def test_the_sum_of_step_weights_keeps_seven_digits_over_a_million_steps(name: str) -> None:
    """Without gradients What = x0 - alpha lambda / D, hence alpha = (x0 - What) D / lambda."""
    steps, rate = 1_200_000, 1e-2
    alpha = rate * float(np.sqrt(np.arange(1, steps + 1, dtype=np.float64)).sum())
    metric = 1.0 if name == "ramda" else math.sqrt(steps)
    # Strength such that 9/10 of the starting point 1 is gone at the end.
    strength = float(np.float32(0.9 * metric / alpha))
    options = {"eps": 1.0} if name == "ramda" else {}
    tx = getattr(rj, name)(rate, rj.by_path([(".*", rj.L1(strength))]), momentum=1.0, **options)
    start, zero = jnp.ones(()), jnp.zeros(())

    def step(carry: tuple[Tree, Tree], _: None) -> tuple[tuple[Tree, Tree], None]:
        params, state = carry
        updates, state = tx.update(zero, state, params)
        return (optax.apply_updates(params, updates), state), None

    train = jax.jit(lambda params: jax.lax.scan(step, (params, tx.init(params)), length=steps)[0])
    params, state = train(start)
    found = (1.0 - float(params)) * metric / strength
    # The float32 subtraction itself leaves 6e-8 / 0.9; the next test shows what a plain sum gives.
    assert abs(found / alpha - 1.0) <= 1e-6
    np.testing.assert_allclose(minimizer(state, params), params, rtol=1e-5)


def test_a_plain_float32_sum_of_step_weights_would_fail_the_test_above() -> None:
    weights = jnp.float32(1e-2) * jnp.sqrt(jnp.arange(1, 1_200_001, dtype=jnp.float32))
    plain = jax.lax.scan(lambda total, s: (total + s, None), jnp.float32(0.0), weights)[0]
    exact = 1e-2 * float(np.sqrt(np.arange(1, 1_200_001, dtype=np.float64)).sum())
    assert abs(float(plain) / exact - 1.0) > 1e-5
