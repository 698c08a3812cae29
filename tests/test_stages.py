"""rj.stages: its schedules against the formulas, and runs whose W ends exactly structured, however short."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ramda_jax as rj


@pytest.mark.parametrize(
    ("total", "stages", "starts", "factor"),
    [(1000, 3, (600, 800), 0.1), (300, 2, (210,), 0.01), (20_000, 3, (12_000, 16_000), 0.1)],
)
def test_the_schedules_are_those_of_the_formulas(total, stages, starts, factor):
    found = rj.stages(0.02, total, stages)
    assert found["restart_steps"] == starts
    steps = np.arange(total)
    rates = 0.02 * factor ** sum((steps >= s).astype(float) for s in starts)
    np.testing.assert_allclose(
        jax.vmap(found["learning_rate"])(jnp.arange(total)), rates, rtol=1e-5
    )
    c = np.clip(150 / total, 0.01, 0.15)
    last = total - starts[-1]
    into = np.clip(steps - starts[-1] + 1, 0, None)
    wanted = np.minimum(1, np.maximum(c, np.sqrt(2 * into / last)))
    momentum = jax.vmap(found["momentum"])(jnp.arange(total))
    np.testing.assert_allclose(momentum, wanted, rtol=1e-5)
    assert float(found["momentum"](total + 10**6)) == 1.0  # a run that goes on
    assert momentum[starts[-1] + last // 2 :].min() == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1e-2, 2), "total_steps must be at least 3 for 3 stages, got 2"),
        ((1e-2, 1, 2), "total_steps must be at least 2 for 2 stages, got 1"),
        ((1e-2, 0), "total_steps"),
        ((1e-2, 10.0), "total_steps"),
        ((1e-2, 2**31), "total_steps"),
        ((1e-2, 100, 4), "stages must be 2 or 3, got 4"),
        ((-1.0, 100), "learning_rate"),
        ((lambda count: 0.1, 100), "learning_rate must be a number or a 0-d array"),
    ],
)
def test_errors_name_the_argument(arguments, message):
    with pytest.raises(ValueError, match=message):
        rj.stages(*arguments)


REGULARIZER = rj.by_path(
    [
        ("entries", rj.L1(0.1)),
        ("groups", rj.GroupLasso(0.2)),
        ("rank", rj.NuclearNorm(0.3)),
        ("pair", rj.coupled({"neuron": [("pair_up", -1), ("pair_down", -2)]}, rj.GroupLasso(0.5))),
        ("", None),
    ]
)
SHAPES = {
    "entries": (4, 3),
    "groups": (6, 2),
    "rank": (5, 4),
    "pair_up": (3, 4),
    "pair_down": (4, 2),
}


@functools.cache
def ends(name, total, stages):
    """W and What after each of the last steps of a run, by one scan."""
    rng = np.random.default_rng(0)
    scale = {k: np.linspace(0.02, 1.0, s[0])[:, None] for k, s in SHAPES.items()}
    wanted = {k: jnp.asarray(scale[k] * rng.standard_normal(s)) for k, s in SHAPES.items()}
    rate = 0.05 if name == "ramda" else 0.3
    tx = getattr(rj, name)(regularizer=REGULARIZER, **rj.stages(rate, total, stages))

    def step(carry, key):
        params, state = carry
        noise = {
            k: 0.1 * jax.random.normal(jax.random.fold_in(key, i), params[k].shape)
            for i, k in enumerate(SHAPES)
        }
        grads = jax.tree.map(lambda w, v, n: w - v + n, params, wanted, noise)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), None

    @jax.jit
    def run(params):
        keys = jax.random.split(jax.random.key(0), total)
        (params, state), _ = jax.lax.scan(step, (params, tx.init(params)), keys)
        what = rj.structured_params(state, params, values="minimizer")
        return params, what, rj.structured_params(state, params)

    return run({k: jnp.asarray(rng.standard_normal(s), jnp.float32) for k, s in SHAPES.items()})


@pytest.mark.parametrize(
    ("name", "total", "stages"),
    [("ramda", 60, 3), ("rmda", 60, 3), ("rmda", 60, 2), ("rmda", 7, 3)],
)
def test_w_ends_with_the_zeros_and_the_rank_of_what(name, total, stages):
    params, what, point = ends(name, total, stages)
    for key in SHAPES:
        zero = np.asarray(what[key]) == 0
        np.testing.assert_array_equal(np.asarray(params[key]) == 0, zero, err_msg=key)
        if key != "rank":
            np.testing.assert_array_equal(point[key], params[key], err_msg=key)
            assert total < 60 or 0 < zero.sum() < zero.size, key
    rank = rj.NuclearNorm(1.0).rank
    assert rank(params["rank"]) == rank(what["rank"]) == rank(point["rank"])
    assert total < 60 or rank(params["rank"]) < 4
