"""Group norms that are flat beyond a cap: the global minimiser of every group, against float64, and its certificate."""

import jax
import numpy as np
import pytest

import ramda_jax as rj
from ramda_jax.solvers import Newton
from tests import reference
from tests.solvers.problems import solve_block

SHAPE = (40, 6)


@pytest.fixture(autouse=True)
def _x64():
    with jax.enable_x64(True):
        yield


def solve(v, x0, d, weight, psi):
    """(x, residual)"""
    found = solve_block(Newton(), (v, x0, d), weight, psi, x0, np.zeros((SHAPE[0], 1)))
    return found.x[0], found.residual


def objectives(x, v, x0, d, weight, psi):
    """Q of every group."""
    rows = range(SHAPE[0])
    return [reference.Q(x[[g]], v[[g]], x0[[g]], d[[g]], weight, psi) for g in rows]


@pytest.mark.parametrize("condition", [1.0, 30.0, 1e4])
@pytest.mark.parametrize("gamma", [1.2, 3.0, 30.0])
def test_every_group_has_its_global_minimiser(condition, gamma):
    """Groups that are zero, below the cap, flat, and flat though there is a root below the cap or at zero."""
    strength, kinds = 0.3, np.zeros(3, int)
    for seed in range(4):
        rng = np.random.default_rng(seed)
        d = np.exp(rng.uniform(-np.log(condition), 0, SHAPE)) * 4
        x0 = rng.standard_normal(SHAPE) * np.exp(rng.uniform(-3, 4, (SHAPE[0], 1)))
        v = 0.1 * d * rng.standard_normal(SHAPE)
        x, residual = map(
            np.asarray, solve(v, x0, d, 1.5, rj.GroupMCP(strength, gamma, group_axis=0))
        )
        psi = reference.GroupMCP(strength, gamma, group_axis=0)
        expected = reference.solve_subproblem(v, x0, d, 1.5, psi)
        theirs = objectives(expected, v, x0, d, 1.5, psi)
        np.testing.assert_allclose(objectives(x, v, x0, d, 1.5, psi), theirs, rtol=1e-9)
        np.testing.assert_allclose(x, expected, rtol=1e-6, atol=1e-9)
        assert residual <= 1e-11 * np.linalg.norm(d * x0 - v)
        norms = np.linalg.norm(x, axis=1)
        cap = gamma * strength * np.sqrt(SHAPE[1])
        kinds += [np.sum(norms == 0), np.sum((norms > 0) & (norms < cap)), np.sum(norms >= cap)]
    assert kinds[0] > 5
    assert kinds[2] > 5
    assert condition > 30 or gamma < 3 or kinds[1] > 5


def test_zero_groups_have_no_residual():
    v = np.full(SHAPE, 1e-3)
    x, residual = solve(
        v, np.zeros(SHAPE), np.ones(SHAPE), 1.0, rj.GroupMCP(1.0, 3.0, group_axis=0)
    )
    assert not np.any(x)
    assert residual == 0
