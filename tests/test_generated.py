"""Thousands of generated problems: every method with every regularizer against the float64 reference, in every dtype, in
blocks, with restarts, and spread over eight devices. Long: `pytest -m nightly tests/test_generated.py`.

A program (method, regularizer, shapes, dtype, placement) is compiled once and given many problems: parameters, gradients
and strengths are arrays. `RAMDA_CASES` is how many problems each program gets.
"""

import functools
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import ramda_jax as rj
from tests import reference

pytestmark = pytest.mark.nightly

CASES = int(os.environ.get("RAMDA_CASES", "35"))
STEPS = 5
METHODS: dict[str, dict[str, Any]] = {
    "ramda": {"learning_rate": 0.05, "momentum": 0.3, "restart_steps": (3,)},
    "rmda": {"learning_rate": 0.1, "momentum": 0.2, "restart_steps": (3,)},
    "prox_sgd": {"learning_rate": 0.05, "momentum": 0.1},
    "prox_adamw": {"learning_rate": 0.02, "weight_decay": 0.05},
    "prox_ssi": {"learning_rate": 0.02, "weight_decay": 0.05},
}


class Kind(NamedTuple):
    """A regularizer here and in the reference.

    Attributes:
      ours, theirs: of a strength.
      followed: how near trajectories come in float64; None: the minimiser jumps with the data, so that rounding may decide.
    """

    ours: Any
    theirs: Any
    followed: float | None


def pair(name: str, *more: Any, followed: float | None = 1e-8, **fields: Any) -> Kind:
    ours, theirs = getattr(rj, name), getattr(reference, name)
    return Kind(lambda s: ours(s, *more, **fields), lambda s: theirs(s, *more, **fields), followed)


KINDS = {
    "L1": pair("L1"),
    "elastic net": pair("ElasticNet", 0.1),
    "L0": pair("L0", followed=None),
    "L half": pair("LHalf", followed=None),
    "L two thirds": pair("LTwoThirds", followed=None),
    "binarize": pair("Binarize", followed=None),
    "group lasso": pair("GroupLasso"),
    "group lasso of outputs": pair("GroupLasso", group_axis=-1),
    "group lasso of two axes": pair("GroupLasso", group_axis=(-2, -1), size_weighted=False),
    "sparse group lasso": Kind(
        lambda s: rj.SparseGroupLasso(0.5 * s, s),
        lambda s: reference.SparseGroupLasso(0.5 * s, s),
        1e-8,
    ),
    "group MCP": pair("GroupMCP", 5.0, followed=None),
    "nuclear norm": pair("NuclearNorm", followed=1e-5),
}
SHAPES = ((7, 5), (3, 3, 4, 6))


@functools.cache
def program(method: str, name: str) -> Any:
    """(strength, parameters, gradients stacked) -> (W, What) of every step."""
    make = getattr(rj, method)

    def run(strength: Any, params: Any, grads: Any) -> Any:
        tx = make(regularizer=KINDS[name].ours(strength), **METHODS[method])

        def step(carry: Any, g: Any) -> Any:
            w, state = carry
            updates, state = tx.update(g, state, w)
            w = jax.tree.map(jnp.add, w, updates)
            what = rj.structured_params(state, w, values="minimizer")
            return (w, state), (w, what)

        (_, state), out = jax.lax.scan(step, (params, tx.init(params)), grads)
        return *out, state.method

    return jax.jit(run)


def problem(rng: np.random.Generator, spread: float) -> tuple[float, Any, Any]:
    """A strength, parameters, and gradients of sizes e^-spread to 1, of which some rows and whole steps are zero."""
    params = {f"{k}/kernel": 0.3 * rng.standard_normal(s) for k, s in enumerate(SHAPES)}
    size = np.exp(rng.uniform(-spread, 0))
    grads = {}
    for key, w in params.items():
        scale = size * np.exp(rng.uniform(-spread, 0, w.shape))
        scale = scale * (rng.random((*w.shape[:-1], 1)) > 0.2) * (rng.random(w.shape[-1]) > 0.1)
        steps = rng.standard_normal((STEPS, *w.shape)) + 0.5 * w
        grads[key] = scale * steps * (rng.random((STEPS, *[1] * w.ndim)) > 0.1)
    return float(size * np.exp(rng.uniform(-7, 1))), params, grads


def seed_of(*names: Any) -> list[int]:
    return [int.from_bytes(str(name).encode(), "little") % 2**32 for name in names]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_float64_follows_the_reference(method, name):
    """W and What at every step; where a minimiser jumps: of the first, all but the few entries that rounding decides."""
    rng = np.random.default_rng(seed_of(method, name))
    kind = KINDS[name]
    for case in range(CASES):
        strength, params, grads = problem(rng, 3.0)
        steps = [{key: g[k] for key, g in grads.items()} for k in range(STEPS)]
        regs = dict.fromkeys(params, kind.theirs(strength))
        with jax.enable_x64(True):
            ours = jax.tree.map(np.asarray, program(method, name)(strength, params, grads))
        where = f"case {case}, strength {strength}"
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(ours)), where
        if kind.followed is None:
            # The first step's problem is the same for both, whatever was decided before it.
            steps = steps[:1]
        expected = getattr(reference, method)(params, steps, regs, **METHODS[method])
        for found, wanted in zip(ours[:2], expected, strict=True):
            for key in params:
                for k, w in enumerate(x[key] for x in wanted):
                    if kind.followed is None:
                        assert same_or_tied(found[key][k], w), (where, key)
                        continue
                    error = np.abs(found[key][k] - w).max()
                    assert error <= kind.followed * max(np.abs(w).max(), 1e-3), (where, key, k)


def same_or_tied(found: Any, expected: Any) -> bool:
    """All but a few entries are the same: where two minima are as deep, rounding chooses."""
    near = np.abs(found - expected) <= 1e-6 * max(np.abs(expected).max(), 1e-3)
    return bool(near.mean() > 0.98)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", [*KINDS])
@pytest.mark.parametrize("method", METHODS)
def test_short_floats_stay_finite_and_keep_their_kind(method, name, dtype):
    """Gradients of all sizes that the type has: shapes and dtypes stay, nothing is infinite or not a number, W + update has
    What's exact zeros where the momentum is one.
    """
    rng = np.random.default_rng(seed_of(method, name, dtype))
    largest = float(jnp.finfo(dtype).max)
    for case in range(CASES):
        strength, params, grads = problem(rng, 20.0)
        # Up to the largest number; the nuclear norm is finite while squares of weights are: see below.
        if case % 4 == 0 and name != "nuclear norm":
            grads = jax.tree.map(
                lambda g: np.clip(g * 10 ** rng.uniform(0, 40), -largest, largest), grads
            )
        params, grads = jax.tree.map(lambda x: jnp.asarray(x, dtype), (params, grads))
        w, what, accumulators = program(method, name)(jnp.float32(strength), params, grads)
        where = f"case {case}, strength {strength}"
        for tree in (w, what, accumulators):
            for x in jax.tree.leaves(tree):
                if jnp.issubdtype(x.dtype, jnp.floating):
                    assert np.isfinite(np.asarray(x, np.float64)).all(), where
        for tree in (w, what):
            assert {x.dtype for x in jax.tree.leaves(tree)} == {jnp.dtype(dtype)}, where
        if method.startswith("prox"):  # W is What
            for x, y in zip(jax.tree.leaves(w), jax.tree.leaves(what), strict=True):
                np.testing.assert_array_equal(np.asarray(x) == 0, np.asarray(y) == 0, where)


def test_a_nuclear_norm_of_very_large_weights_stays_finite():
    rng = np.random.default_rng(0)
    _, params, grads = problem(rng, 3.0)
    grads = jax.tree.map(lambda g: g * 1e34, grads)
    params, grads = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (params, grads))
    for tree in program("ramda", "nuclear norm")(jnp.float32(1e-3), params, grads)[:2]:
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(tree))


MADE = {
    "group lasso": lambda s: rj.by_path([(".*", rj.GroupLasso(s))]),
    "L1": lambda s: rj.by_path([(".*", rj.L1(s))]),
    "sparse group lasso": lambda s: rj.by_path([(".*", rj.SparseGroupLasso(0.5 * s, s))]),
    "nuclear norm": lambda s: rj.by_path([(".*", rj.NuclearNorm(s))]),
    "coupled": lambda s: rj.coupled({"unit": [("{m}/up", -1), ("{m}/down", -2)]}, rj.GroupLasso(s)),
}
SPECS = {"a": {"up": P(None, "model"), "down": P("model")}}


@pytest.mark.parametrize("cut", [False, True], ids=["replicated", "cut"])
@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("method", METHODS)
def test_eight_devices_step_as_one(method, name, cut):
    rng = np.random.default_rng(seed_of(method, name, cut))
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    placement = rj.Placement("data", mesh, SPECS if cut else None)
    options = {k: v for k, v in METHODS[method].items() if k != "restart_steps"}

    def run(strength: Any, params: Any, grads: Any, placement: Any) -> Any:
        tx = getattr(rj, method)(regularizer=MADE[name](strength), placement=placement, **options)
        state = tx.init(params)
        for k in range(2):
            updates, state = tx.update(jax.tree.map(lambda g, k=k: g[k], grads), state, params)
            params = jax.tree.map(jnp.add, params, updates)
        return params, rj.structured_params(state, params, values="minimizer")

    with jax.enable_x64(True):
        one, many = (jax.jit(functools.partial(run, placement=p)) for p in (None, placement))
        for case in range(CASES):
            draw = lambda *shape: rng.standard_normal(shape)
            params = {"a": {"up": draw(6, 8), "down": draw(8, 5)}}
            grads = {"a": {"up": draw(2, 6, 8), "down": draw(2, 8, 5)}}
            strength = float(np.exp(rng.uniform(-6, 0)))
            with jax.set_mesh(mesh):
                found = many(strength, params, grads)
            expected = one(strength, params, grads)
            for x, y in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
                np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-10, err_msg=f"case {case}")
