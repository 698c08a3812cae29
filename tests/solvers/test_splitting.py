"""Douglas-Rachford splitting: against Algorithm 2 in float64, and against its own certificates."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ramda_jax as rj
from ramda_jax.solvers import splitting
from tests import reference
from tests.solvers.problems import block_of, solve_block

STRENGTH = 0.3


def problem(seed, shape=(40, 24), condition=1e5, rank=None, weight=1.0):
    """(v, x0, D, w, W^{t-1}) in float64: D over `condition`, a tenth of the rows dead (least D, no v)."""
    rng = np.random.default_rng(seed)
    matrix = (int(np.prod(shape[:-1])), shape[-1])
    rank = rank or min(matrix)
    x0 = rng.standard_normal((matrix[0], rank)) @ rng.standard_normal((rank, matrix[1]))
    x0 /= np.sqrt(rank)
    D = np.exp(rng.uniform(-np.log(condition), 0, matrix)) * 3
    v = 0.3 * D * rng.standard_normal(matrix)
    dead = rng.random(matrix[0]) < 0.1
    D[dead], v[dead] = 3 / condition, 0.0
    start = x0 + 0.1 * rng.standard_normal(matrix)
    return *(a.reshape(shape) for a in (v, x0, D)), weight, start.reshape(shape)


def solve(data, solver, dtype="float64", warm=None, strength=STRENGTH):
    v, x0, D, w, start = (jnp.asarray(a, dtype) for a in data)
    psi = rj.NuclearNorm(jnp.asarray(strength, dtype))
    fresh = solver.init(block_of(psi, start), start, jnp.dtype(dtype))
    found = solve_block(solver, (v, x0, D), w, psi, start, fresh if warm is None else warm)
    return found._replace(x=found.x[0])


def value(x, data, strength=STRENGTH):
    return reference.Q(np.asarray(x, np.float64), *data[:4], reference.NuclearNorm(strength))


def paper(data, iterations, rtol=None, strength=STRENGTH):
    """Algorithm 2 from W^{t-1} in float64: theta = 1 / max D."""
    v, x0, D, w, x = data
    reg, theta = reference.NuclearNorm(strength), 1 / np.max(D)
    q = value(x, data, strength)
    for _ in range(iterations):
        x = reg.prox(x - theta * (v + D * (x - x0)), theta * w)
        old, q = q, value(x, data, strength)
        if rtol is not None and (old - q) / (abs(q) + 1) < rtol:
            break
    return x


def least_subgradient(x, data, strength=STRENGTH):
    """min ||s|| over dQ(x): with G = b - D x and x = U S V^T, G against l (U V^T + W), W in the complement."""
    v, x0, D, w, _ = (np.asarray(a, np.float64) for a in data)
    matrix = lambda a: a.reshape(-1, a.shape[-1])
    x = np.asarray(x, np.float64)
    gap, level = matrix(D * (x0 - x) - v), float(w) * strength
    u, s, vt = np.linalg.svd(matrix(x), full_matrices=False)
    kept = s > 1e-9 * s[0]
    u, vt = u[:, kept], vt[kept]
    outside = gap - u @ (u.T @ gap)
    outside = outside - (outside @ vt.T) @ vt
    inside = gap - outside - level * u @ vt
    excess = np.maximum(np.linalg.svd(outside, compute_uv=False) - level, 0)
    return np.hypot(np.linalg.norm(inside), np.linalg.norm(excess))


# A program is compiled for each shape and each setting of the solver, so most settings do not meet all shapes.
SHAPED = [{"shape": (24, 40)}, {"shape": (64, 4)}, {"shape": (3, 3, 4, 9)}]
OF_ONE_SHAPE = [{}, {"condition": 1e2}, {"rank": 3}, {"weight": 1e-3}, {"weight": 4.0}]
CASES = OF_ONE_SHAPE + SHAPED
TIGHT = rj.DouglasRachford(tolerance=1e-11, max_iterations=5000)
HUNDRED = rj.DouglasRachford(tolerance=1e-4, max_iterations=100)


@pytest.fixture(autouse=True)
def _x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_minimiser_and_a_second_solve_that_knows_it(case):
    data = problem(0, **case)
    found = solve(data, TIGHT)
    b = data[2] * data[1] - data[0]
    assert found.residual <= 1e-11 * np.linalg.norm(b)
    assert least_subgradient(found.x, data) <= 1e-10 * np.linalg.norm(b)
    again = solve(data, TIGHT, warm=found.warm)
    assert int(again.iterations) == 0
    np.testing.assert_array_equal(again.x, found.x)


def test_parallel_differences_share_their_weight():
    """As near a solution; without regularization their system is singular."""
    step = jnp.arange(1.0, 4.0)
    rows, gram = jnp.stack([step] * 3), jnp.full((3, 3), step @ step)
    history = splitting._History(rows, 2 * rows, gram, jnp.int32(0))
    point = splitting._Point(step, *[jnp.float64(0)] * 6)._replace(change=0.5 * step)
    np.testing.assert_allclose(splitting._extrapolate(history, point), step, rtol=1e-10)


CERTIFIED = [
    *((rj.DouglasRachford(tolerance=t), case) for t in (1e-1, 1e-2) for case in OF_ONE_SHAPE),
    *((rj.DouglasRachford(tolerance=1e-2), case) for case in SHAPED[2:]),
    *((HUNDRED, case) for case in CASES),
]


@pytest.mark.parametrize(("solver", "case"), CERTIFIED, ids=str)
def test_the_certificate_bounds_the_least_subgradient_and_q(solver, case):
    data, tolerance = problem(1, **case), solver.tolerance
    found = solve(data, solver)
    b = data[2] * data[1] - data[0]
    assert least_subgradient(found.x, data) <= found.residual + 1e-10 * np.linalg.norm(b)
    assert found.residual <= tolerance * np.linalg.norm(b)
    assert value(found.x, data) <= value(data[-1], data) + 1e-12 * abs(value(data[-1], data))


def later(data, seed, noise):
    """The problem of a next step: other v and D, a larger weight, and W^{t-1} as it was."""
    v, x0, D, w, start = data
    rng = np.random.default_rng(seed)
    v = v + noise * np.abs(v) * rng.standard_normal(v.shape)
    D = D * np.exp(noise * rng.standard_normal(v.shape))
    return v, x0, D, (1 + noise) * w, start


def kept_residual(data, x, subgradient, strength):
    """||D x - b + w lambda Y||; Y in the subdifferential of the nuclear norm at x is told by spectral norm and product."""
    v, x0, D, w, _ = data
    x, Y = np.asarray(x, np.float64), np.asarray(subgradient, np.float64)
    matrix = lambda a: a.reshape(-1, a.shape[-1])
    assert np.linalg.norm(matrix(Y), 2) <= 1 + 1e-12
    nuclear = np.linalg.svd(matrix(x), compute_uv=False).sum()
    np.testing.assert_allclose(np.sum(Y * x), nuclear, rtol=1e-12)
    return np.linalg.norm(D * (x - x0) + v + w * strength * Y)


@pytest.mark.parametrize("case", OF_ONE_SHAPE + SHAPED[2:], ids=str)
def test_a_solution_stays_without_a_decomposition_while_its_certificate_holds(case):
    """Under other v, D and weights, and another strength: the dual scales with both."""
    loose = rj.DouglasRachford(tolerance=1e-2)
    old = solve(problem(6, **case), loose)
    new, strength = later(problem(6, **case), 0, 1e-4), 1.001 * STRENGTH
    found = solve(new, loose, warm=old.warm, strength=strength)
    assert int(found.iterations) == 0
    np.testing.assert_array_equal(found.x, old.x)
    np.testing.assert_array_equal(found.warm, old.warm)
    by_hand = kept_residual(new, found.x, found.warm[1], strength)
    np.testing.assert_allclose(found.residual, by_hand, rtol=1e-9)
    assert least_subgradient(found.x, new, strength) <= by_hand * (1 + 1e-9)
    assert value(found.x, new, strength) <= value(new[-1], new, strength)
    # Far from there it goes, whatever the residual was.
    moved = solve(later(problem(6, **case), 0, 0.3), loose, warm=old.warm)
    assert int(moved.iterations) > 0


ANYTHING = rj.DouglasRachford(tolerance=1e9, max_iterations=1)


def test_nothing_stays_that_is_no_better_than_the_last_iterate():
    """The second half of condition (7): with W^{t-1} at the minimum, only the minimum may stay."""
    *data, _ = problem(7)
    best = np.asarray(solve(problem(7), TIGHT).x)
    elsewhere = solve(later(problem(7), 0, 0.1), TIGHT).warm
    assert int(solve(problem(7), ANYTHING, warm=elsewhere).iterations) == 0
    found = solve((*data, best), ANYTHING, warm=elsewhere)
    assert int(found.iterations) > 0
    assert value(found.x, (*data, best)) <= value(best, (*data, best)) * (1 + 1e-12)


def test_nothing_stays_without_a_dual_of_its_own():
    """At first, and where what the paper's solver made was better: its solution has no dual."""
    data = problem(2)
    fresh = solve(data, ANYTHING)
    assert int(fresh.iterations) > 0
    # From a dual that misleads, one iteration is worse than the paper's five.
    misled = jnp.stack([100 * jnp.asarray(data[-1]), jnp.asarray(data[-1])])
    theirs = solve(data, rj.DouglasRachford(tolerance=1e-9, max_iterations=1), warm=misled)
    assert int(theirs.iterations) > 1
    np.testing.assert_array_equal(theirs.warm[1], 0)
    assert int(solve(data, ANYTHING, warm=theirs.warm).iterations) > 0


def test_a_proximal_step_is_always_taken():
    """Its x0 is where it stands: no solution is within a share of a move of zero length."""
    v, _, D, w, _ = problem(9)
    stand = solve(problem(9), rj.DouglasRachford(), "float32")
    x = np.asarray(stand.x)
    for size in (1e-2, 1e-4):
        found = solve((size * v, x, D, w, x), rj.DouglasRachford(), "float32", warm=stand.warm)
        assert int(found.iterations) > 0


@pytest.mark.parametrize("seed", range(3))
def test_a_small_residual_alone_does_not_end_it(seed):
    """From another problem's solution, the first points of small residual are worse than a W^{t-1} that is all but best."""
    *data, start = problem(seed)
    best = solve((*data, start), TIGHT).x
    elsewhere = solve(problem(seed + 10), TIGHT).warm
    found = solve((*data, np.asarray(best)), rj.DouglasRachford(tolerance=0.3), warm=elsewhere)
    at_best = value(best, (*data, start))
    assert value(found.x, (*data, start)) <= at_best + 1e-9 * abs(at_best)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_q_is_never_worse_than_the_papers(case, seed):
    data = problem(seed, **case)
    found = value(solve(data, rj.DouglasRachford(), "float32").x, data)
    slack = 1e-6 * abs(found)  # rounding of the stored float32 entries
    assert found <= value(paper(data, 5), data) + slack
    assert found <= value(paper(data, 5, 1e-3), data) + slack


@pytest.mark.parametrize("case", CASES, ids=str)
def test_q_is_never_worse_than_a_hundred_iterations(case):
    data = problem(5, **case)
    found = value(solve(data, HUNDRED).x, data)
    best = value(solve(data, TIGHT).x, data)
    theirs = value(paper(data, 100, 1e-8), data)
    assert found <= theirs + 1e-7 * (value(data[-1], data) - best)


CUT_SHORT = [(case, n) for case in OF_ONE_SHAPE for n in (1, 3)] + list(
    zip(SHAPED, (1, 3, 1), strict=True)
)


@pytest.mark.parametrize(("case", "iterations"), CUT_SHORT, ids=str)
def test_cut_short_the_papers_solver_competes(case, iterations):
    data = problem(2, **case)
    found = solve(data, rj.DouglasRachford(tolerance=1e-9, max_iterations=iterations))
    ours = value(found.x, data)
    assert ours <= value(paper(data, 5, 1e-3), data) + 1e-12 * abs(ours)
    b = data[2] * data[1] - data[0]
    assert least_subgradient(found.x, data) <= found.residual + 1e-10 * np.linalg.norm(b)


@pytest.mark.parametrize("iterations", [1, 4])
def test_proximal_gradient_is_still_the_papers(iterations):
    data = problem(3)
    solver = rj.ProximalGradient(max_iterations=iterations, rtol=None)
    np.testing.assert_allclose(solve(data, solver).x, paper(data, iterations), atol=1e-12)


def test_edges():
    solver = rj.DouglasRachford()
    data = problem(4)
    zero = solve(data, solver, strength=1e3)
    np.testing.assert_array_equal(zero.x, 0)
    free = solve(data, solver, strength=0.0)
    np.testing.assert_allclose(free.x, data[1] - data[0] / data[2], rtol=1e-6, atol=1e-9)
    nan = solve((data[0] * np.nan, *data[1:]), solver)
    assert np.isnan(nan.residual)
    for shape in [(0, 3), (3, 0), (1, 1), (1, 5)]:
        empty = tuple(np.ones(shape) for _ in range(3))
        found = solve((*empty, 1.0, np.ones(shape)), solver)
        assert found.x.shape == shape
        assert np.all(np.isfinite(found.x))
        assert np.isfinite(found.residual)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_few_decompositions_per_step_in_training(dtype):
    tx = rj.ramda(1e-2, rj.NuclearNorm(0.02), momentum=0.1)
    params = {"kernel": jnp.asarray(np.random.default_rng(0).standard_normal((48, 32)), dtype)}
    target = jax.random.normal(jax.random.key(0), (48, 4)) @ jnp.ones((4, 32)) / 4

    def step(carry, key):
        w, state = carry
        noise = jax.random.normal(key, target.shape)
        grads = {"kernel": (w["kernel"] - target + noise).astype(dtype)}
        updates, state = tx.update(grads, state, w)
        stats = rj.solver_stats(state)
        return (optax.apply_updates(w, updates), state), (stats["iterations"], stats["residual"])

    keys = jax.random.split(jax.random.key(1), 100)
    scan = jax.jit(lambda params: jax.lax.scan(step, (params, tx.init(params)), keys)[1])
    iterations, residual = scan(params)
    assert np.all(np.isfinite(residual))
    assert np.max(iterations) <= 25
    assert np.mean(iterations[20:]) <= 6
