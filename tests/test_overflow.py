"""Finite gradients leave finite states, up to the largest float; counts that have come to their end stay there."""

import functools

import chex
import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ramda_jax as rj

MAX = float(np.finfo(np.float32).max)
METHODS = {
    "ramda": functools.partial(rj.ramda, 1e-2),
    "ramda, a large rate": functools.partial(rj.ramda, 1e4),
    "rmda": functools.partial(rj.rmda, 1e-2),
    "prox_sgd": functools.partial(rj.prox_sgd, 1e-2),
    "prox_adamw": functools.partial(rj.prox_adamw, 1e-2, amsgrad=True),
    "prox_ssi": functools.partial(rj.prox_ssi, 1e-2),
}
REGULARIZERS = {
    "none": None,
    "group lasso": rj.GroupLasso(0.1),
    "L1": rj.L1(0.1),
    "elastic net": rj.ElasticNet(0.1, 0.1),
    "sparse group lasso": rj.SparseGroupLasso(0.1, 0.1),
    "group MCP": rj.GroupMCP(0.1, 3.0),
    "L0": rj.L0(0.1),
    "L half": rj.LHalf(0.1),
    "L two thirds": rj.LTwoThirds(0.1),
    "nuclear norm": rj.NuclearNorm(0.1),
}
OFTEN = ("none", "group lasso", "L1")  # the others by night


@functools.cache
def updates(method, regularizer):
    tx = METHODS[method](REGULARIZERS[regularizer])
    params = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}

    @jax.jit
    def run(grads):
        def step(carry, grads):
            params, state = carry
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), grads)[0]

    return run


MAGNITUDES = st.sampled_from([0.0, 1e-45, 1e-38, 1e-20, 1.0, 1e10, 1.8e19, 2e19, 1e30, 1e38, MAX])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "regularizer",
    [pytest.param(r, marks=() if r in OFTEN else pytest.mark.nightly) for r in REGULARIZERS],
)
@hypothesis.settings(max_examples=40)
@hypothesis.given(
    sizes=hnp.arrays(np.float32, (3, 8), elements=MAGNITUDES),
    signs=hnp.arrays(np.float32, (3, 8), elements=st.sampled_from([-1.0, 1.0])),
)
def test_finite_gradients_leave_finite_states(method, regularizer, sizes, signs):
    grads = sizes * signs
    tree = {"kernel": grads[:, :6].reshape(3, 3, 2), "bias": grads[:, 6:]}
    params, state = updates(method, regularizer)(tree)
    chex.assert_tree_all_finite(state.method)
    if method not in ("rmda", "prox_sgd"):  # whose steps are as large as gradients
        chex.assert_tree_all_finite((params, state))


@pytest.mark.parametrize("method", METHODS)
def test_gradients_that_are_not_finite_are_seen(method):
    for bad in (np.inf, -np.inf, np.nan):
        grads = {"kernel": np.full((3, 3, 2), bad, np.float32), "bias": np.ones((3, 2), np.float32)}
        params, _ = updates(method, "none")(grads)
        assert not np.isfinite(params["kernel"]).any()
        assert np.isfinite(params["bias"]).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_count_at_its_end_stays_there(method):
    tx = METHODS[method](rj.GroupLasso(1e-6))
    params = {"kernel": jnp.ones((3, 2))}
    grads = {"kernel": jnp.full((3, 2), 1e-3)}
    _, state = tx.update(grads, tx.init(params), params)
    last = jnp.asarray(2**31 - 1, jnp.int32)
    old = jax.tree.map(lambda x: last if x.dtype == jnp.int32 and x.ndim == 0 else x, state)
    for _ in range(2):
        updates, old = tx.update(grads, old, params)
        moved = optax.apply_updates(params, updates)["kernel"]
        assert np.isfinite(moved).all()
        assert (moved != 0).all()
        assert int(old.count) == 2**31 - 1


def test_restarts_beyond_the_last_count_are_refused():
    with pytest.raises(ValueError, match="restart_steps must be at most 2147483647"):
        rj.ramda(0.1, None, restart_steps=(2**31,))
