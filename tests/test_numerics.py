"""Small numerical helpers: roots and their derivatives at zero, selection by bits, compensated sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ramda_jax import _numerics


def test_cube_roots_are_within_two_units_over_the_whole_range():
    exponents = np.random.default_rng(0).uniform(-37.5, 38.5, 20_000)
    x = np.float32(10.0) ** exponents.astype(np.float32)
    exact = np.cbrt(x.astype(np.float64))
    assert np.max(np.abs(np.asarray(_numerics.cbrt(x)) - exact) / exact) <= 2e-7
    special = np.asarray(_numerics.cbrt(np.float32([0, np.inf, np.nan])))
    np.testing.assert_array_equal(special, [0, np.inf, np.nan])


@pytest.mark.parametrize(("root", "power"), [(_numerics.cbrt, 3), (_numerics.sqrt, 2)])
def test_derivatives_of_roots_are_right_and_zero_at_zero(root, power):
    x = np.float32([0.0, 1e-6, 0.5, 3.0])
    first, second = jax.vmap(jax.grad(root)), jax.vmap(jax.grad(jax.grad(root)))
    alive, p = x[1:].astype(np.float64), 1 / power
    np.testing.assert_allclose(first(x)[1:], p * alive ** (p - 1), rtol=1e-5)
    np.testing.assert_allclose(second(x)[1:], p * (p - 1) * alive ** (p - 2), rtol=1e-5)
    assert first(x)[0] == 0
    assert np.isfinite(second(x)[0])


def test_the_largest_integers_that_meet_conditions():
    limits = jnp.asarray([0, 1, 5, 1000, 2**30 + 7, 2**31 - 1], jnp.int32)
    found = _numerics.bitwise(31, [jnp.zeros_like(limits)], lambda tried: [tried[0] <= limits])
    np.testing.assert_array_equal(found[0], limits)


def test_compensated_sums_keep_what_rounding_loses():
    total = error = jnp.zeros([], jnp.float32)
    for increment in [1e8] + [1.0] * 50:
        total, error = _numerics.compensated_add(total, error, jnp.float32(increment))
    assert float(total) + float(error) == 1e8 + 50


def test_norms_leave_the_float_range_only_where_they_are_out_of_it():
    x = jnp.asarray([[3e30, 4e30], [3e-30, 4e-30], [0, 0], [np.inf, 1]], jnp.float32)
    np.testing.assert_allclose(_numerics.norms(x, (1,))[:, 0], [5e30, 5e-30, 0, np.inf], rtol=1e-6)
    slopes = jax.grad(lambda x: jnp.sum(_numerics.norms(x, (1,))))(x[:3])
    np.testing.assert_allclose(slopes, [[0.6, 0.8], [0.6, 0.8], [0, 0]], rtol=1e-6)
