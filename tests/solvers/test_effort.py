"""What a solution costs: iterations on fixed problems in float64, and the size of decompositions. What is slower but right
passes every other test.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ramda_jax as rj
from ramda_jax.solvers import capped, secular
from ramda_jax.subproblem import Along
from tests.solvers.problems import solve_block


@pytest.fixture(autouse=True)
def _x64():
    with jax.enable_x64(True):
        yield


def metric(rng, condition, shape):
    return np.exp(rng.uniform(-np.log(condition), 0, shape))


def solve(solver, psi, v, x0, d, weight, start, warm):
    """(x, iterations)"""
    found = solve_block(solver, (v, x0, d), weight, psi, start, warm)
    return found.x[0], found.iterations


@jax.jit
def flat_beyond_a_cap(b, d, kappa, cap):
    rows = secular.Member((b, d), secular.as_they_are, Along((0,)))
    (found,) = capped.solve(
        [secular.GroupProblem((rows,), jnp.ones([]), kappa, cap)], [None], None, 30
    )
    return found.iterations


@pytest.mark.parametrize(("condition", "most"), [(1.0, 2), (1e2, 7), (1e4, 9)])
def test_newton_below_a_cap_sees_that_it_is_done(condition, most):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        d, b = metric(rng, condition, (6, 50)), rng.standard_normal((6, 50))
        kappa = 0.3 * d.min()
        assert flat_beyond_a_cap(b, d, kappa, 1 / kappa) <= most


def test_the_splitting_extrapolates_from_more_than_one_difference():
    """87 iterations; from one difference 111. The units of x do not matter."""
    solver = rj.DouglasRachford(tolerance=1e-8, max_iterations=1000)
    for unit in (1.0, 1e-8):
        total = 0
        for seed in range(5):
            rng = np.random.default_rng(seed)
            d, x0 = metric(rng, 1e2, (24, 10)), unit * rng.standard_normal((24, 10))
            v, warm = unit * d * rng.standard_normal(d.shape), np.zeros((2, 24, 10))
            total += solve(solver, rj.NuclearNorm(0.2), v, x0, d, 0.5 * unit, x0, warm)[1]
        assert total <= 95


@pytest.mark.parametrize(
    ("solver", "most"),
    [
        (rj.ProximalGradient(max_iterations=500, rtol=None, tolerance=1e-8), 20),
        (rj.AcceleratedProximalGradient(tolerance=1e-8), 17),
    ],
    ids=["plain", "accelerated"],
)
def test_groups_dead_by_their_scores_do_not_shorten_the_steps(solver, most):
    """17 and 14 iterations; with the steps that the stiff dead groups allow some thousands."""
    rng = np.random.default_rng(0)
    shape = (20, 4)
    d, x0 = metric(rng, np.e, shape), rng.standard_normal(shape)
    v = d * rng.standard_normal(shape)
    d[::4], x0[::4] = 1e4 * d[::4], 1e-6
    psi = rj.GroupLasso(0.8, group_axis=0)
    x, iterations = solve(solver, psi, v, x0, d, 1.0, x0, np.zeros(shape))
    assert iterations <= most
    assert not x[::4].any()
    assert x.any()


def test_accelerated_proximal_gradient_starts_from_the_best_it_knows():
    rng = np.random.default_rng(0)
    shape = (20, 4)
    d, x0 = metric(rng, 1e2, shape), rng.standard_normal(shape)
    v, far = d * rng.standard_normal(shape), 100 * rng.standard_normal(shape)
    solver, psi = rj.AcceleratedProximalGradient(tolerance=1e-8), rj.GroupLasso(0.1, group_axis=0)
    x, cold = solve(solver, psi, v, x0, d, 1.0, far, np.zeros(shape))
    assert cold > 10
    assert solve(solver, psi, v, x0, d, 1.0, far, x)[1] == 1  # its own solution
    assert solve(solver, psi, v, x0, d, 1.0, x, far)[1] == 1  # W^{t-1}
    # x0 - v / D, where the regularizer is next to nothing
    assert solve(solver, rj.GroupLasso(1e-12, group_axis=0), v, x0, d, 1.0, far, far)[1] <= 2


@pytest.mark.parametrize("shape", [(6, 40), (40, 6)])
def test_the_smaller_gram_matrix_is_decomposed(shape):
    program = str(jax.make_jaxpr(lambda x: rj.NuclearNorm(1.0).prox(x, 1.0))(np.ones(shape)))
    assert "eigh" in program
    assert "f64[6,6]" in program
    assert "f64[40,40]" not in program
