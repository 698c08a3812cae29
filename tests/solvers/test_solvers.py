"""Solvers against each other and against their certificates; inside a real RAMDA step."""

import dataclasses
import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ramda_jax as rj
from ramda_jax import solvers
from ramda_jax.methods.ramda import RamdaState
from ramda_jax.solvers import first_order
from ramda_jax.subproblem import Quadratic, Whole
from tests import reference
from tests.solvers.problems import solve_block

SHAPE = (24, 10)
PG = rj.ProximalGradient(max_iterations=5000, rtol=None, tolerance=1e-12)
APG = rj.AcceleratedProximalGradient(max_iterations=5000, tolerance=1e-12)
PSIS = [
    rj.GroupLasso(0.05, group_axis=-2),
    rj.GroupLasso(0.05, group_axis=-1),
    rj.SparseGroupLasso(0.02, 0.03, group_axis=-2),
    rj.NuclearNorm(0.05),
    rj.L1(0.05),
]


@functools.cache
def compiled(psi, solver):
    """(transformation, its update), compiled once per dtype."""
    tx = rj.ramda(0.1, psi, momentum=0.5, solver=solver)
    return tx, jax.jit(tx.update)


def state_after(psi, steps=6, solver=None, dtype=jnp.float64):
    """(transformation's state, params, previous params) after a few steps on a random problem."""
    rng = np.random.default_rng(0)
    params = {"kernel": jnp.asarray(rng.standard_normal(SHAPE), dtype)}
    tx, update = compiled(psi, solver)
    state = tx.init(params)
    previous = params
    for _ in range(steps):
        scale = np.exp(rng.uniform(-3, 0, SHAPE))
        grads = {"kernel": jnp.asarray(scale * rng.standard_normal(SHAPE), dtype)}
        updates, state = update(grads, state, params)
        previous, params = params, optax.apply_updates(params, updates)
    return state, params, previous


def pieces_of(method: RamdaState):
    """(v, x0, D, w) in float64 NumPy."""
    v, u, x0 = (np.asarray(t["kernel"], np.float64) for t in method[2:])
    return v, x0, np.cbrt(u) + float(method.eps), float(method.clock.weight_sum)


@pytest.fixture(autouse=True)
def _x64():
    with jax.enable_x64(True):
        yield


def theirs(psi):
    """The reference's regularizer with the same settings."""
    wanted = inspect.signature(getattr(reference, type(psi).__name__)).parameters
    return getattr(reference, type(psi).__name__)(
        **{f.name: getattr(psi, f.name) for f in dataclasses.fields(psi) if f.name in wanted}
    )


@pytest.mark.parametrize("psi", PSIS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("solver", [None, PG, APG], ids=["default", "pg", "apg"])
def test_every_solver_finds_the_minimiser(psi, solver):
    state, params, _ = state_after(psi, solver=solver)
    v, x0, d, w = pieces_of(state.method)
    what = np.asarray(rj.structured_params(state, params, values="minimizer")["kernel"])
    expected = reference.solve_subproblem(v, x0, d, w, theirs(psi))
    np.testing.assert_allclose(what, expected, atol=1e-6 * np.abs(expected).max())
    if not isinstance(psi, rj.NuclearNorm):
        np.testing.assert_array_equal(what == 0, expected == 0)


PAPER = rj.ProximalGradient()
APG_5 = rj.AcceleratedProximalGradient(max_iterations=5)
# Programs are shared with the other tests where the types are the same; in float32 each solver comes once or more.
NEVER_ABOVE = [
    *((psi, solver, "float64") for psi in PSIS for solver in (None, PAPER, APG_5)),
    *((psi, None, "float32") for psi in PSIS),
    *((psi, PAPER, "float32") for psi in PSIS[2:4]),
    *((psi, rj.ProximalGradient(max_iterations=3), "float32") for psi in PSIS[:1] + PSIS[3:4]),
    *((psi, APG_5, "float32") for psi in PSIS[1:2] + PSIS[3:4]),
]


@pytest.mark.parametrize(
    ("psi", "solver", "dtype"),
    NEVER_ABOVE,
    ids=lambda v: v if isinstance(v, str) else type(v).__name__,
)
def test_objective_never_ends_above_the_previous_iterate(psi, solver, dtype):
    for steps in (1, 4):
        state, params, previous = state_after(psi, steps, solver, dtype)
        v, x0, d, w = pieces_of(state.method)
        q = lambda x: reference.Q(np.asarray(x, np.float64), v, x0, d, w, theirs(psi))  # noqa: B023 (called within the turn)
        what = (
            np.asarray(params["kernel"], np.float64) - 0.5 * np.asarray(previous["kernel"])
        ) / 0.5
        start = q(previous["kernel"])
        assert q(what) <= start + 1e-5 * abs(start) * (dtype == "float32") + 1e-12 * abs(start)


@pytest.mark.parametrize(
    "psi", [p for p in PSIS if not isinstance(p, rj.L1)], ids=lambda p: type(p).__name__
)
@pytest.mark.parametrize(
    "solver",
    [None, PAPER, APG_5],
    ids=["default", "paper", "apg-5"],
)
def test_certified_residual_bounds_the_true_one(psi, solver):
    state, params, previous = state_after(psi, 5, solver)
    v, x0, d, w = pieces_of(state.method)
    what = (np.asarray(params["kernel"]) - 0.5 * np.asarray(previous["kernel"])) / 0.5
    # The prox-gradient mapping (x - prox(x - grad)) is at most the distance to the subdifferential.
    smooth = v + d * (what - x0)
    mapping = what - theirs(psi).prox(what - smooth, w)
    certified = rj.solver_stats(state)["residual"]
    assert np.linalg.norm(mapping) <= certified * (1 + 1e-6) + 1e-11 * np.linalg.norm(d * x0 - v)


def test_newton_is_more_accurate_than_the_papers_solver_at_its_stopping_rule():
    psi = rj.GroupLasso(0.05, group_axis=-2)
    errors = {}
    for name, solver in {"newton": rj.Newton(), "paper": rj.ProximalGradient()}.items():
        state, params, _ = state_after(psi, 5, solver, "float32")
        v, x0, d, w = pieces_of(state.method)
        what = np.asarray(rj.structured_params(state, params, values="minimizer")["kernel"])
        expected = reference.solve_subproblem(v, x0, d, w, theirs(psi))
        errors[name] = np.linalg.norm(what - expected) / np.linalg.norm(expected)
    assert errors["newton"] <= 1e-5
    assert errors["newton"] < errors["paper"]


def test_newton_is_warm_started_in_training():
    tx = rj.ramda(1e-2, rj.GroupLasso(0.01))
    params = {"kernel": jnp.ones((64, 32), jnp.float32)}
    target = jax.random.normal(jax.random.key(0), (64, 32), jnp.float32)

    def step(carry, key):
        w, state = carry
        grads = {"kernel": w["kernel"] - target + jax.random.normal(key, target.shape, jnp.float32)}
        updates, state = tx.update(grads, state, w)
        iterations = rj.solver_stats(state)["iterations"]
        return (optax.apply_updates(w, updates), state), iterations

    keys = jax.random.split(jax.random.key(1), 200)
    train = jax.jit(lambda params: jax.lax.scan(step, (params, tx.init(params)), keys)[1])
    iterations = train(params)
    assert iterations[0] <= 10
    assert np.all(iterations[20:] <= 2)


def test_solver_choice():
    choose = lambda psi, **kw: solvers.choose(None, psi, "p", **{"scalar_metric": False, **kw})
    assert isinstance(choose(rj.GroupLasso(0.1)), rj.Newton)
    assert isinstance(choose(rj.L1(0.1)), solvers.ClosedForm)
    assert isinstance(choose(rj.NuclearNorm(0.1)), rj.DouglasRachford)
    assert isinstance(choose(rj.NuclearNorm(0.1), scalar_metric=True), solvers.ClosedForm)


def test_in_a_scalar_metric_a_subproblem_is_one_prox():
    v, x0 = np.random.default_rng(0).standard_normal((2, 6, 4))
    d, weight = jnp.float64(2.0), jnp.float64(0.3)
    for psi in (rj.NuclearNorm(0.5), rj.L1(0.5)):
        problem = (solvers.ClosedForm(), (v, x0, d), weight, psi, x0, None)
        assert "while" not in str(solve_block.trace(*problem).jaxpr)
        solution = solve_block(*problem)
        expected = jax.jit(psi.prox)(x0 - v / 2.0, 0.15)
        np.testing.assert_array_equal(solution.x[0], expected)
        assert solution.iterations == 0


@jax.jit
def accelerated(v, x0, d, start, iterations):
    """(X, Q(X)) after so many iterations."""
    psi, smooth = rj.L1(0.02), Quadratic(v, x0, d)
    settings = first_order.Settings(iterations, 1, None, None, accelerated=True)
    problem = Whole(smooth, jnp.float64(1.0), psi, start)
    x = first_order.minimise(problem, start, jnp.ones_like(start, bool), settings).x
    return x, smooth.value(x) + psi.value(x)


@pytest.mark.parametrize("seed", [0, 1])
def test_momentum_never_makes_q_rise(seed):
    """Momentum overshoots in these problems: without a rejection Q rises by up to 0.015, after 36 iterations."""
    rng = np.random.default_rng(seed)
    d = np.exp(rng.uniform(-8, 0, 60))
    arrays = [rng.standard_normal(60), d * rng.standard_normal(60), 3 * rng.standard_normal(60)]
    x0, v, start = map(jnp.asarray, arrays)
    q = [float(accelerated(v, x0, jnp.asarray(d), start, k)[1]) for k in range(1, 70)]
    assert np.diff(q).max() <= 1e-12 * abs(q[0])
    assert q[-1] < q[0]


UNITS = [
    (rj.L1(0.05), rj.ProximalGradient(max_iterations=50, rtol=None)),
    (rj.GroupLasso(0.05, group_axis=1), rj.AcceleratedProximalGradient(max_iterations=50)),
    (rj.NuclearNorm(0.05), rj.DouglasRachford(tolerance=1e-4)),
]


@pytest.mark.parametrize(("psi", "solver"), UNITS, ids=lambda x: type(x).__name__)
def test_the_units_of_a_problem_do_not_matter(psi, solver):
    rng = np.random.default_rng(0)
    x0, v, start = (jnp.asarray(rng.standard_normal((12, 5)), jnp.float32) for _ in range(3))
    d = jnp.asarray(np.exp(rng.uniform(-4, 0, (12, 5))), jnp.float32)
    warm = jnp.zeros((2, 12, 5) if isinstance(solver, rj.DouglasRachford) else (12, 5), "float32")

    @jax.jit
    def solve(unit):
        smooth = Quadratic(unit * v, x0, unit * d)
        return solver.solve_one(Whole(smooth, unit, psi, start), warm)

    x, _, iterations, residual = solve(jnp.float32(1))
    assert iterations > 1
    for exponent in (-60, 60, 120):  # Q would be infinite at the last
        unit = jnp.float32(2.0**exponent)
        found = solve(unit)
        np.testing.assert_array_equal(found[0], x)
        assert found[2] == iterations
        assert found[3] == unit * residual


@pytest.mark.parametrize("method", [rj.ramda, rj.prox_sgd], ids=["iterated", "closed form"])
def test_matrices_of_one_shape_share_a_program_and_are_solved_as_if_alone(method):
    """Two kinds here: a matrix, twice, and a stack of two."""
    psis = {
        "a": rj.NuclearNorm(0.1),
        "b": rj.NuclearNorm(0.05),
        "c": rj.NuclearNorm(0.2, row_axes=1, stack_axes=0),
    }
    shapes = {"a": (12, 5), "b": (12, 5), "c": (2, 6, 5)}
    rng = np.random.default_rng(0)
    draw = lambda: {k: jnp.asarray(rng.standard_normal(n)) for k, n in shapes.items()}
    params, grads = draw(), [draw() for _ in range(3)]

    def run(names):
        pick = lambda tree: {k: tree[k] for k in names}
        tx = method(0.1, pick(psis))
        program = (
            jax.jit(tx.update).lower(pick(params), tx.init(pick(params)), pick(params)).compile()
        )
        w, state = pick(params), tx.init(pick(params))
        for g in grads:
            updates, state = program(pick(g), state, w)
            w = optax.apply_updates(w, updates)
        return program.as_text().count("lapack_dsyevd"), w, rj.solver_stats(state)

    number, together, stats = run(shapes)
    numbers = {}
    for name in shapes:
        numbers[name], alone, own = run(name)
        np.testing.assert_allclose(together[name], alone[name], rtol=1e-9, atol=1e-12)
        assert stats[f"iterations/{name}"] == own[f"iterations/{name}"]
    assert number == numbers["a"] + numbers["c"]
