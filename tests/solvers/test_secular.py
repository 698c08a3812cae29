"""Newton's method on the secular equation: against bisection in float64, and against its own theory."""

import functools
import itertools

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ramda_jax as rj
from ramda_jax.solvers import secular
from ramda_jax.subproblem import Along

# Newton updates from the free start that suffice, at a tolerance of 1e-6, by condition number of D.
ITERATIONS = {1e0: 1, 1e2: 5, 1e4: 8, 1e6: 9, 1e8: 10, 1e12: 12}


@functools.partial(jax.jit, static_argnames=("tolerance", "max_iterations"))
def newton(b, d, level, guess=None, tolerance=None, max_iterations=30):
    """Rows are groups: (x, r, zero, certified residual, iterations)."""
    rows = secular.Member((b, d), lambda arrays: arrays, Along((0,)))
    problem = secular.GroupProblem((rows,), level)
    (found,) = secular.solve([problem], [guess], tolerance, max_iterations)
    x = secular.point(problem, 0, found.r)
    return x, found.r, found.r == 0, found.residual, found.iterations


def oracle(b, d, level):
    """The minimiser of each row by bisection on r in float64, in units in which nothing overflows."""
    b, d, level = (np.asarray(a, np.float64) for a in (b, d, level))
    unit_b = np.maximum(np.abs(b).max(1, keepdims=True), 1e-300)
    unit_d = d.max(1, keepdims=True)
    b, d, level = b / unit_b, d / unit_d, level / unit_b
    norm = lambda y: np.sqrt((y * y).sum(1, keepdims=True))
    zero = norm(b) <= level
    low, high = np.zeros_like(level), norm(b / d)
    for _ in range(200):
        r = 0.5 * (low + high)
        above = norm(b / np.where(d * r + level == 0, 1, d * r + level)) > 1
        low, high = np.where(above, r, low), np.where(above, high, r)
    with np.errstate(divide="ignore"):
        x = b / (d + level / np.where(zero, 1, 0.5 * (low + high)))
    return np.where(zero, 0.0, x * (unit_b / unit_d)), zero


def residual(x, b, d, level):
    """Distance from 0 to the subdifferential, per row, in float64."""
    x, b, d, level = (np.asarray(a, np.float64) for a in (x, b, d, level))
    unit = np.abs(x).max(1, keepdims=True)
    y = x / np.where(unit > 0, unit, 1)
    length = np.sqrt((y * y).sum(1, keepdims=True))
    smooth = d * x - b
    norm = lambda s: np.sqrt((s * s).sum(1))
    at_zero = np.maximum(norm(smooth) - level[:, 0], 0)
    away = norm(smooth + level * y / np.where(length > 0, length, 1))
    return np.where(unit[:, 0] > 0, away, at_zero)


def adversarial(rng, groups, n, condition, dtype):
    """Random b and D of the given condition number: log-uniform or two-valued D, b in the spaces of x or of gradients."""
    spread = np.exp(rng.uniform(-1, 0, (groups, n)) * np.log(condition))
    two = np.where(rng.random((groups, n)) < rng.random((groups, 1)), 1.0, 1 / condition)
    d = np.where(rng.random((groups, 1)) < 0.5, spread, two)
    b = rng.standard_normal((groups, n)) * np.exp(rng.uniform(-4, 4, (groups, n)))
    b = b * np.where(rng.random((groups, 1)) < 0.5, d, 1.0)
    d = d * 10.0 ** rng.uniform(-6, 6, (groups, 1))
    b, d = b.astype(dtype), d.astype(dtype)
    fraction = rng.choice([0, 1e-8, 1e-4, 0.1, 0.5, 0.9, 0.99, 0.9999, 1.1], (groups, 1))
    level = (fraction * np.linalg.norm(b.astype(np.float64), axis=1, keepdims=True)).astype(dtype)
    return b, d, level


@pytest.mark.parametrize("condition", ITERATIONS)
@pytest.mark.parametrize("n", [1, 2, 17, 1000])
def test_float64_root_is_exact_within_the_stated_iterations(condition, n):
    with jax.enable_x64(True):
        rng = np.random.default_rng(int(condition) % 97 + n)
        b, d, level = adversarial(rng, 200, n, condition, np.float64)
        loose = newton(b, d, level, tolerance=1e-6)
        x, _, zero, certified, _ = newton(b, d, level)
        true_x, true_zero = oracle(b, d, level)
        np.testing.assert_array_equal(zero, true_zero)
        size = np.linalg.norm(b, axis=1)
        assert np.all(residual(x, b, d, level) <= 1e-12 * size)
        assert np.all(residual(loose[0], b, d, level) <= loose[3][:, 0] + 1e-14 * size)
        assert np.all(certified[:, 0] <= 1e-12 * size)
        # x itself is as exact as the equation is well conditioned in r: where ||b|| is not almost the threshold.
        clear = level[:, 0] <= 0.991 * size
        error = np.linalg.norm(x - true_x, axis=1) <= 1e-8 * np.linalg.norm(true_x, axis=1)
        assert np.all(error | ~clear)
    assert int(loose[4]) <= ITERATIONS[condition]


@pytest.mark.parametrize("condition", [c for c in ITERATIONS if c <= 1e8])
@pytest.mark.parametrize("n", [1, 3, 257, 10_000])
def test_float32_relative_residual_is_below_1e_5_in_at_most_10_iterations(condition, n):
    rng = np.random.default_rng(int(condition) % 89 + n)
    b, d, level = adversarial(rng, 100, n, condition, np.float32)
    x, _, zero, certified, iterations = newton(b, d, level)
    size = np.linalg.norm(b.astype(np.float64), axis=1)
    true = residual(x, b, d, level)
    assert np.all(true <= 1e-5 * size)
    assert np.all(certified[:, 0] <= 1e-5 * size)
    np.testing.assert_array_equal(zero, oracle(b, d, level)[1])
    assert int(iterations) <= 10


@pytest.mark.parametrize("n", [100_000, 1_000_000])
def test_float32_is_accurate_for_groups_of_a_million(n):
    rng = np.random.default_rng(n)
    b, d, level = adversarial(rng, 6, n, 1e8, np.float32)
    x, _, _, _, iterations = newton(b, d, level)
    size = np.linalg.norm(b.astype(np.float64), axis=1)
    assert np.all(residual(x, b, d, level) <= 1e-5 * size)
    assert int(iterations) <= 10


def test_a_good_warm_start_needs_one_or_two_iterations_and_a_bad_one_is_harmless():
    rng = np.random.default_rng(0)
    b, d, level = adversarial(rng, 300, 64, 1e4, np.float32)
    _, r, zero, _, _ = newton(b, d, level)
    nearby = newton(b * 1.0001, d, level, r)
    assert int(nearby[4]) <= 2
    for factor in (1e-6, 1e3, 1e6):
        x, _, again, _, iterations = newton(b, d, level, r * factor)
        np.testing.assert_array_equal(again, zero)
        size = np.linalg.norm(b.astype(np.float64), axis=1)
        assert np.all(residual(x, b, d, level) <= 1e-5 * size)
        assert int(iterations) <= 10


def test_iterates_increase_to_the_root_from_below():
    with jax.enable_x64(True):
        rng = np.random.default_rng(5)
        b, d, level = adversarial(rng, 100, 20, 1e6, np.float64)
        root = newton(b, d, level)[1]
        radii = [newton(b, d, level, max_iterations=k)[1] for k in range(1, 8)]
        for earlier, later in itertools.pairwise(radii):
            assert np.all(later >= earlier * (1 - 1e-12))
            assert np.all(later <= root * (1 + 1e-9))


FLOATS = st.one_of(
    st.floats(-(2.0**100), 2.0**100, width=32),
    st.sampled_from([0.0, 1e-45, -1e-40, 1e-38, 1e-30, -1e-15, 1e15, -1e30]),
)


@hypothesis.given(
    b=hnp.arrays(np.float32, (4, 5), elements=FLOATS),
    exponents=hnp.arrays(np.float32, (4, 5), elements=st.floats(-4, 4, width=32)),
    scale=st.floats(-8, 8, width=32),
    fraction=st.sampled_from([0.0, 1e-6, 0.1, 0.7, 0.999, 1.0, 1.001, 2.0]),
)
def test_any_float32_input_gives_a_certified_finite_point(b, exponents, scale, fraction):
    d = (10.0 ** (exponents + scale)).astype(np.float32)
    b = np.where(np.abs(b) < np.finfo(np.float32).tiny, 0, b)  # XLA flushes subnormals
    largest = np.abs(b).max(1, keepdims=True).astype(np.float64)
    size = largest * np.linalg.norm(b / np.maximum(largest, 1e-300), axis=1, keepdims=True)
    level = (fraction * size).astype(np.float32)
    x, _, zero, _, iterations = (np.asarray(a) for a in newton(b, d, level))
    representable = (np.abs(b / d.astype(np.float64)) < 3e38).all(1)
    true_x, _ = oracle(b, d, level)
    normal = (np.abs(true_x) == 0) | (np.abs(true_x) > 1e-36)
    ok = representable & normal.all(1) & ((level[:, 0] == 0) | (level[:, 0] > 1e-36))
    assert np.all(np.isfinite(x[representable]))
    assert np.all(residual(x[ok], b[ok], d[ok], level[ok]) <= 1e-5 * size[ok, 0])
    if fraction not in (1.0, 0.999, 1.001):
        np.testing.assert_array_equal((x == 0).all(1)[ok], (size <= level)[ok, 0])
    # What has no level is b / D: nothing makes it zero, even where its squares are.
    np.testing.assert_array_equal(zero[ok, 0], (x == 0).all(1)[ok] & (level[ok, 0] > 0))
    if np.all(
        ok | (size[:, 0] == 0)
    ):  # near the least normal number D r is flushed to 0, and the loop runs to its end
        assert int(iterations) <= 10


def test_nan_is_neither_hidden_in_a_zero_group_nor_spreads_to_other_groups():
    b = np.ones((3, 4), np.float32)
    b[1, 2] = np.nan
    found = newton(b, np.ones_like(b), np.full((3, 1), 0.5, np.float32))
    x, _, _, certified, iterations = (np.asarray(a) for a in found)
    assert np.isnan(x[1]).any()
    assert np.isnan(certified[1])
    assert np.isfinite(x[[0, 2]]).all()
    assert int(iterations) <= 2


@pytest.mark.parametrize("reg", [rj.GroupLasso(0.3), rj.SparseGroupLasso(0.1, 0.3)])
def test_solution_never_has_a_larger_objective_than_the_start(reg):
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        d = np.exp(rng.uniform(-8, 0, (30, 40)))
        x0 = rng.standard_normal((30, 40))
        q = lambda z: 0.5 * np.sum(d * (z - x0) ** 2) + float(reg.value(jnp.asarray(z)))
        best = np.asarray(reg.weighted_prox(jnp.asarray(x0), jnp.asarray(d), 1.0))
        for start in [x0, 0 * x0, best, best * 1.001, best + 1e-6 * x0]:
            assert q(best) <= q(start) * (1 + 1e-15)
