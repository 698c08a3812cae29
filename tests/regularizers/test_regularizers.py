"""Every value, prox and weighted prox against independent oracles: brute force, optimality conditions, theory."""

import dataclasses

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ramda_jax as rj
from tests import reference

PAIRS = {
    "L1": (rj.L1(0.7), reference.L1(0.7)),
    "ElasticNet": (rj.ElasticNet(0.5, 0.8), reference.ElasticNet(0.5, 0.8)),
    "L0": (rj.L0(0.4), reference.L0(0.4)),
    "LHalf": (rj.LHalf(0.6), reference.LHalf(0.6)),
    "LTwoThirds": (rj.LTwoThirds(0.6), reference.LTwoThirds(0.6)),
    "Binarize": (rj.Binarize(0.6), reference.Binarize(0.6)),
    "GroupLasso": (rj.GroupLasso(0.5), reference.GroupLasso(0.5)),
    "GroupLasso-unweighted": (
        rj.GroupLasso(0.9, group_axis=0, size_weighted=False),
        reference.GroupLasso(0.9, group_axis=0, size_weighted=False),
    ),
    "GroupLasso-tuple": (
        rj.GroupLasso(0.6, group_axis=(0, -1)),
        reference.GroupLasso(0.6, group_axis=(0, -1)),
    ),
    "SparseGroupLasso": (rj.SparseGroupLasso(0.3, 0.4), reference.SparseGroupLasso(0.3, 0.4)),
    "GroupMCP": (rj.GroupMCP(0.5, 2.5), reference.GroupMCP(0.5, 2.5)),
    "GroupMCP-sharp": (rj.GroupMCP(0.5, 0.3), reference.GroupMCP(0.5, 0.3)),
    "NuclearNorm": (rj.NuclearNorm(0.8), reference.NuclearNorm(0.8)),
}
ALL = pytest.mark.parametrize("name", PAIRS)
CONVEX = [n for n, (ours, _) in PAIRS.items() if ours.convex]
ELEMENTWISE = ["L1", "ElasticNet", "L0", "LHalf", "LTwoThirds", "Binarize"]
SHAPE = (3, 6, 4)

# Compiled once per kind of regularizer and dtype.
weighted_prox = jax.jit(lambda psi, x, metric, step: psi.weighted_prox(x, metric, step))


def arrays(seed, shape=SHAPE):
    rng = np.random.default_rng(seed)
    x = 1.5 * rng.standard_normal(shape)
    x[..., 1, :] *= 0.05
    return x, np.exp(rng.uniform(-3, 1, shape))


@pytest.fixture(autouse=True)
def _x64():
    with jax.enable_x64(True):
        yield


@ALL
def test_convex_is_what_no_midpoint_contradicts(name):
    psi, theirs = PAIRS[name]
    rng = np.random.default_rng(0)
    above = []
    for scale in np.exp(rng.uniform(-4, 1, 40)):
        # Of one sign, of both, and from zero.
        x = scale * rng.standard_normal(SHAPE)
        for y in (x * rng.uniform(0, 2), x + scale * rng.standard_normal(SHAPE), 0 * x):
            above.append(theirs.value((x + y) / 2) - (theirs.value(x) + theirs.value(y)) / 2)
    assert psi.convex == (max(above) <= 1e-12)


@ALL
def test_value_equals_the_reference(name):
    ours, theirs = PAIRS[name]
    x, _ = arrays(0)
    np.testing.assert_allclose(ours.value(jnp.asarray(x)), theirs.value(x), rtol=1e-13)


@ALL
@pytest.mark.parametrize("step", [0.1, 1.0, 3.0])
def test_prox_equals_the_reference(name, step):
    ours, theirs = PAIRS[name]
    x, _ = arrays(1)
    found = np.asarray(ours.prox(jnp.asarray(x), step))
    expected = theirs.prox(x, step)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-11)
    if name != "NuclearNorm":
        np.testing.assert_array_equal(found == 0, expected == 0)


@ALL
@pytest.mark.parametrize("step", [0.05, 0.5])
def test_weighted_prox_is_the_minimiser_in_the_metric(name, step):
    ours, theirs = PAIRS[name]
    x, metric = arrays(2)
    found = np.asarray(weighted_prox(ours, jnp.asarray(x), jnp.asarray(metric), step))
    expected = reference.solve_subproblem(np.zeros_like(x), x, metric, step, theirs)
    q = lambda z: reference.Q(z, np.zeros_like(x), x, metric, step, theirs)
    assert q(found) <= q(expected) + 1e-9 * abs(q(expected))
    np.testing.assert_allclose(found, expected, atol=1e-6 if name == "NuclearNorm" else 1e-9)


@ALL
def test_prox_is_the_weighted_prox_in_the_identity_metric(name):
    ours, _ = PAIRS[name]
    x = jnp.asarray(arrays(3)[0])
    weighted = weighted_prox(ours, x, jnp.ones_like(x), 0.7)
    np.testing.assert_allclose(weighted, ours.prox(x, 0.7), atol=1e-9)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise_prox_beats_a_fine_grid(name):
    ours, _ = PAIRS[name]
    entries = lambda z: np.asarray(ours.entries(jnp.asarray(z)))
    x = np.array([-2.5, -1.0, -0.3, 0.0, 1e-3, 0.6, 0.99, 1.0, 1.7])[:, None]
    metric = np.broadcast_to([0.2, 1.0, 7.0], (9, 3))
    x = np.broadcast_to(x, metric.shape)
    found = np.asarray(ours.weighted_prox(jnp.asarray(x), jnp.asarray(metric), 1.0))
    ours_cost = 0.5 * metric * (found - x) ** 2 + entries(found)
    grid = np.linspace(-4, 4, 40_001)
    penalty = entries(grid)
    for cost, at, weight in zip(ours_cost.ravel(), x.ravel(), metric.ravel(), strict=True):
        assert cost <= (0.5 * weight * (grid - at) ** 2 + penalty).min() + 1e-12


@pytest.mark.parametrize("name", CONVEX)
def test_convex_prox_is_firmly_nonexpansive_and_satisfies_the_subgradient_inequality(name):
    ours, _ = PAIRS[name]
    x, y = jnp.asarray(arrays(4)[0]), jnp.asarray(arrays(5)[0])
    p, q = ours.prox(x, 1.0), ours.prox(y, 1.0)
    assert jnp.vdot(p - q, x - y) >= jnp.vdot(p - q, p - q) - 1e-10
    # x - p is a subgradient at p: psi(z) >= psi(p) + <x - p, z - p>.
    for seed in range(20):
        z = jnp.asarray(arrays(100 + seed)[0])
        assert ours.value(z) >= ours.value(p) + jnp.vdot(x - p, z - p) - 1e-9


@pytest.mark.parametrize("name", ["GroupLasso", "SparseGroupLasso", "L1", "NuclearNorm"])
def test_everything_is_zero_from_lambda_max_on(name):
    x, metric = (jnp.asarray(a) for a in arrays(6))
    b = metric * x
    if name == "NuclearNorm":
        largest, make = jnp.linalg.norm(b.reshape(-1, 4), 2), rj.NuclearNorm
    elif name == "L1":
        largest, make = jnp.max(jnp.abs(b)), rj.L1
    else:
        psi = rj.GroupLasso(1.0)
        largest = jnp.max(psi.group_norms(b)) / psi.group_size(SHAPE) ** 0.5
        make = rj.GroupLasso if name == "GroupLasso" else lambda s: rj.SparseGroupLasso(0.0, s)
    assert not np.any(weighted_prox(make(float(largest) * (1 + 1e-12)), x, metric, 1.0))
    assert np.any(weighted_prox(make(float(largest) * 0.999), x, metric, 1.0))


def test_groups_of_size_one_are_the_lasso():
    x, metric = (jnp.asarray(a) for a in arrays(7, (5, 1)))
    group, lasso = rj.GroupLasso(0.4), rj.L1(0.4)
    np.testing.assert_allclose(
        group.weighted_prox(x, metric, 1.0), lasso.weighted_prox(x, metric, 1.0), atol=1e-13
    )
    np.testing.assert_allclose(group.value(x), lasso.value(x), rtol=1e-14)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_the_prox_of_the_largest_numbers_is_finite_and_theirs(name, dtype):
    largest = float(jnp.finfo(dtype).max)
    x = jnp.asarray([largest, -largest, 1e-3 * largest, 1.0, 0.0], dtype)
    for step in (1e-30, 1e-6, 1.0, 1e30):
        found = PAIRS[name][0].prox(x, jnp.asarray(step, dtype))
        assert jnp.isfinite(found).all(), step
        if name != "ElasticNet" or step < 1:  # which shrinks by a factor
            np.testing.assert_allclose(
                np.float64(found[:3]), np.float64(x[:3]), rtol=1e-5, err_msg=f"{step}"
            )


def test_a_large_gamma_is_the_group_lasso_and_large_groups_are_not_shrunk():
    x, metric = (jnp.asarray(a) for a in arrays(8))
    lasso = rj.GroupLasso(0.3).weighted_prox(x, metric, 1.0)
    np.testing.assert_allclose(
        rj.GroupMCP(0.3, 1e9).weighted_prox(x, metric, 1.0), lasso, atol=1e-7
    )
    far = 1e3 * x
    np.testing.assert_allclose(rj.GroupMCP(0.3, 3.0).weighted_prox(far, metric, 1.0), far)


@ALL
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.bfloat16])
def test_zero_strength_is_the_identity_and_a_zero_array_stays_zero(name, dtype):
    ours, _ = PAIRS[name]
    free = (
        jax.tree.map(lambda _: 0.0, ours)
        if not name.startswith("GroupMCP")
        else rj.GroupMCP(0.0, 2.0)
    )
    x = jnp.asarray(arrays(9)[0], dtype)
    metric = jnp.asarray(arrays(9)[1], dtype)
    eps = float(jnp.finfo(dtype).eps)
    for found in (free.prox(x, 1.0), weighted_prox(free, x, metric, jnp.asarray(1.0, dtype))):
        assert found.dtype == dtype
        np.testing.assert_allclose(
            np.asarray(found, np.float64), np.asarray(x, np.float64), rtol=40 * eps, atol=40 * eps
        )
    zero = jnp.zeros(SHAPE, dtype)
    if name != "Binarize":
        assert not np.any(ours.prox(zero, 0.0))
        assert not np.any(ours.prox(zero, 1.0))
        assert not np.any(weighted_prox(ours, zero, metric, jnp.asarray(1.0, dtype)))


@pytest.mark.parametrize("name", [n for n, (ours, _) in PAIRS.items() if ours.scored])
@pytest.mark.parametrize("step", [0.05, 0.5, 2.0])
def test_exactly_the_groups_whose_scores_the_strength_reaches_are_zero(name, step):
    ours, _ = PAIRS[name]
    x, metric = (jnp.asarray(a) for a in arrays(10))
    scores = np.asarray(ours.scores(metric * x, metric, step))
    ordered = np.sort(scores, axis=None)
    between = (ordered[1:] + ordered[:-1]) / 2
    for strength in (
        getattr(ours, ours.scored),
        0.9 * ordered[0],
        *between[:: 1 + between.size // 4],
        1.1 * ordered[-1],
    ):
        psi = dataclasses.replace(ours, **{ours.scored: strength})
        zeros = np.asarray(psi.zero_groups(weighted_prox(psi, x, metric, step)))
        # The score of a matrix is that of all of it.
        zeros = zeros if ours.structure == "groups" else zeros.all()
        np.testing.assert_array_equal(scores <= strength, zeros)


@pytest.mark.parametrize("name", [n for n, (ours, _) in PAIRS.items() if not ours.scored])
def test_where_no_strength_alone_says_what_dies_there_are_no_scores(name):
    ours, _ = PAIRS[name]
    x, metric = (jnp.asarray(a) for a in arrays(10))
    with pytest.raises(ValueError, match=f"{type(ours).__name__} has no scores"):
        ours.scores(metric * x, metric, 1.0)


def test_the_tie_of_l0_goes_to_zero():
    x = jnp.asarray([-1.0, 1.0, np.nextafter(np.float32(1), np.float32(2))])
    found = rj.L0(0.5).prox(x, 1.0)  # x^2 = 2 step strength
    np.testing.assert_array_equal(found, [0.0, 0.0, x[2]])


def test_a_strength_of_zero_leaves_groups_with_zero_entries_alone():
    x = jnp.array([[1.0, 0.0, 2.0], [0.0, 0.0, 0.0]])
    for dtype in (jnp.float32, jnp.float64):
        for psi in (rj.GroupMCP(0.0, 3.0, group_axis=0), rj.GroupLasso(0.0, group_axis=0)):
            found = psi.weighted_prox(x.astype(dtype), jnp.full(x.shape, 0.1, dtype), 1.0)
            np.testing.assert_allclose(found, x, rtol=1e-6)
    tx = rj.prox_adamw(0.1, rj.GroupMCP(lambda count: 0.01 * count, 3.0))
    params = {"kernel": jnp.array([[1.0, 0.0], [2.0, 1.0]])}
    grads = {"kernel": jnp.array([[1.0, 0.0], [0.5, 1.0]])}
    updates, state = tx.update(grads, tx.init(params), params)
    assert np.isfinite(updates["kernel"]).all()
    assert np.isfinite(rj.solver_stats(state)["residual"])


def test_gradient_of_the_objective_is_finite_at_zero_groups():
    x = jnp.zeros((4, 3)).at[0].set(1.0)
    for psi in (
        rj.GroupLasso(0.1),
        rj.SparseGroupLasso(0.1, 0.1),
        rj.GroupMCP(0.1, 3.0),
        rj.L1(0.1),
    ):
        assert np.isfinite(jax.grad(psi.value)(x)).all()


def test_norms_do_not_under_or_overflow():
    tiny, huge = jnp.full((2, 3), 1e-30, jnp.float32), jnp.full((2, 3), 1e30, jnp.float32)
    psi = rj.GroupLasso(0.1)
    np.testing.assert_allclose(psi.group_norms(tiny), 3**0.5 * 1e-30, rtol=1e-5)
    np.testing.assert_allclose(psi.group_norms(huge), 3**0.5 * 1e30, rtol=1e-5)
    assert not psi.zero_groups(tiny).any()


@hypothesis.given(
    x=hnp.arrays(np.float32, (8,), elements=st.floats(-(2.0**40), 2.0**40, width=32)),
    exponent=st.floats(-8, 8),
)
def test_power_prox_is_stationary_or_zero_in_float32_over_the_whole_range(x, exponent):
    t = np.float32(10.0**exponent)
    for psi, p, threshold in (
        (rj.LHalf(1.0), 1 / 2, 1.5 * float(t) ** (2 / 3)),
        (rj.LTwoThirds(1.0), 2 / 3, 2 * (2 * float(t) / 3) ** 0.75),
    ):
        z = np.asarray(psi.prox(jnp.asarray(x), t), np.float64)
        x64 = x.astype(np.float64)
        kept = z != 0
        edge = np.abs(np.abs(x64) - threshold) <= 1e-5 * threshold
        np.testing.assert_array_equal(kept[~edge], (np.abs(x64) > threshold)[~edge])
        gradient = z[kept] - x64[kept] + t * p * np.sign(z[kept]) * np.abs(z[kept]) ** (p - 1)
        assert np.all(np.abs(gradient) <= 1e-5 * np.abs(x64[kept]))


def test_strengths_are_leaves_and_geometry_is_static():
    psi = rj.GroupLasso(0.1, group_axis=(0, 1))
    assert jax.tree.leaves(psi) == [0.1]
    changed = jax.tree.map(lambda s: 2 * s, psi)
    assert changed == rj.GroupLasso(0.2, group_axis=(0, 1))
    value = jax.jit(lambda s, x: rj.GroupLasso(s).value(x))(0.1, jnp.ones((2, 3)))
    np.testing.assert_allclose(value, 0.1 * 3**0.5 * 2 * 3**0.5)
    batch = jax.vmap(lambda s: rj.L1(s).prox(jnp.ones(3), 1.0))(jnp.array([0.1, 0.5]))
    np.testing.assert_allclose(batch, [[0.9] * 3, [0.5] * 3])


def test_regularizers_and_solvers_are_not_callable():
    for ours, _ in PAIRS.values():
        assert not callable(ours)
    for solver in (rj.Newton(), rj.ProximalGradient(), rj.AcceleratedProximalGradient()):
        assert not callable(solver)
