"""The ways in which a step runs over the arrays: they agree, each is chosen where it belongs, and none wastes memory."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import ramda_jax as rj
from ramda_jax import _target, secular

# With blocks of 2000 and 500 entries: sizes that do and do not divide into equal blocks, and a small leaf.
BLOCK_SIZES = (2000, 500)
SHAPES = {
    "dense": {"kernel": (101, 60), "bias": (60,)},
    "conv": {"kernel": (3, 3, 24, 16)},
    "small": {"kernel": (7, 5)},
}
REGULARIZERS = [
    rj.GroupLasso(0.02),
    rj.GroupLasso(0.02, group_axis=-1),
    rj.GroupLasso(0.02, group_axis=(-2, -1)),
    rj.SparseGroupLasso(0.02, 0.02),
    rj.GroupMCP(0.02, 3.0),
    rj.L1(0.05),
]
METHODS = {
    "ramda": lambda psi: rj.ramda(0.1, psi, restart_steps=(2,)),
    "rmda": lambda psi: rj.rmda(0.1, psi, restart_steps=(2,)),
    "prox_sgd": lambda psi: rj.prox_sgd(0.1, psi),
    "prox_adamw": lambda psi: rj.prox_adamw(0.1, psi, weight_decay=0.1),
    "prox_ssi": lambda psi: rj.prox_ssi(0.1, psi, weight_decay=0.1),
}


def normal(seed, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    draw = lambda shape: jnp.asarray(rng.standard_normal(shape) * 0.3, dtype)
    return jax.tree.map(draw, SHAPES, is_leaf=lambda s: isinstance(s, tuple))


def steps(tx, params, dtype=jnp.float32, count=4):
    """(parameters, structured parameters, residual) after some steps."""

    @jax.jit
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for seed in range(count):
        params, state = step(params, state, normal(100 + seed, dtype))
    return params, rj.structured_params(state, params), rj.solver_stats(state)["residual"]


PAIRS = [("ramda", psi) for psi in REGULARIZERS] + [
    (name, REGULARIZERS[0]) for name in METHODS if name != "ramda"
]


@pytest.mark.parametrize(("name", "psi"), PAIRS, ids=str)
def test_blocks_and_whole_arrays_give_the_same_step(name, psi, monkeypatch):
    monkeypatch.setattr(secular, "BLOCK_SIZES", BLOCK_SIZES)
    jax.clear_caches()
    with jax.enable_x64(True):
        params = normal(0, jnp.float64)
        tx = METHODS[name](psi)
        blocks = steps(tx, params, jnp.float64)
        monkeypatch.setattr(_target, "select", lambda whole, local, *args: whole(*args))
        jax.clear_caches()
        whole = steps(tx, params, jnp.float64)
        monkeypatch.undo()
        jax.clear_caches()
    blocks, whole = jax.tree.map(np.asarray, (blocks, whole))
    for one, other in zip(jax.tree.leaves(blocks), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)
    for one, other in zip(jax.tree.leaves(blocks[1]), jax.tree.leaves(whole[1]), strict=True):
        np.testing.assert_array_equal(one == 0, other == 0)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_blocks_take_narrow_parameters_and_wide_gradients(dtype, monkeypatch):
    monkeypatch.setattr(secular, "BLOCK_SIZES", BLOCK_SIZES)
    jax.clear_caches()
    params = normal(0, dtype)
    tx = rj.ramda(0.1, rj.GroupLasso(0.05))
    wide = jax.jit(tx.update)(normal(1), tx.init(params), params)[0]
    narrow = jax.tree.map(lambda u, p: u.dtype == p.dtype, wide, params)
    assert all(jax.tree.leaves(narrow))
    exact = jax.jit(tx.update)(normal(1), tx.init(params), jax.tree.map(jnp.float32, params))[0]
    for u, v in zip(jax.tree.leaves(wide), jax.tree.leaves(exact), strict=True):
        np.testing.assert_array_equal(u, v.astype(dtype))
    jax.clear_caches()


def lowered(tx, params, state):
    return jax.jit(tx.update).lower(params, state, params).as_text()


def test_one_device_works_in_blocks_and_several_on_whole_arrays(monkeypatch):
    monkeypatch.setattr(secular, "BLOCK_SIZES", BLOCK_SIZES)
    jax.clear_caches()
    params = normal(0)
    tx = rj.ramda(0.1, rj.GroupLasso(0.05))
    state = tx.init(params)
    assert "dynamic_update_slice" in lowered(tx, params, state)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    put = lambda tree: jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))
    assert "dynamic_update_slice" not in lowered(tx, put(params), put(state))
    jax.clear_caches()


def temporary_memory(tx, params):
    """Of a donated training update, in units of the parameters."""

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, tx.init(params), params).compile()
    size = sum(x.nbytes for x in jax.tree.leaves(params))
    return compiled.memory_analysis().temp_size_in_bytes / size


# Not with groups of one entry (the norms are as many as the parameters), nor for entrywise psi (their residual is a norm
# over what XLA's CPU backend writes out first).
LARGE_GROUPS = [
    (name, psi) for name, psi in PAIRS if not isinstance(psi, rj.L1) and psi.group_axis != (-2, -1)
]


@pytest.mark.parametrize(("name", "psi"), LARGE_GROUPS, ids=str)
def test_temporaries_are_less_than_half_the_parameters(name, psi, monkeypatch):
    monkeypatch.setattr(secular, "BLOCK_SIZES", BLOCK_SIZES)
    jax.clear_caches()
    shapes = {f"layer{i}": {"kernel": (3, 3, 60, 121)} for i in range(4)}
    shapes |= {f"dense{i}": {"kernel": (199, 301)} for i in range(4)}
    params = jax.tree.map(jnp.ones, shapes, is_leaf=lambda s: isinstance(s, tuple))
    assert temporary_memory(METHODS[name](psi), params) <= 0.5


def test_blocks_work_inside_shard_map(monkeypatch):
    monkeypatch.setattr(secular, "BLOCK_SIZES", BLOCK_SIZES)
    jax.clear_caches()
    params, tx = normal(0), rj.ramda(0.1, rj.GroupLasso(0.02))
    kinds = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((2,), ("data",), axis_types=kinds, devices=jax.devices()[:2])

    def update(grads, params):
        mean = jax.tree.map(lambda g: jax.lax.pmean(g, "data"), grads)
        local = jax.tree.map(lambda g: g * (1 + jax.lax.axis_index("data")), grads)
        same = tx.update(mean, tx.init(params), params)[0]
        own = tx.update(local, tx.init(params), params)[0]
        return same, jax.tree.map(lambda x: x[None], own)

    one, two = PartitionSpec(), PartitionSpec("data")
    specs = (jax.tree.map(lambda _: one, params), jax.tree.map(lambda _: two, params))
    run = jax.jit(jax.shard_map(update, mesh=mesh, in_specs=(one, one), out_specs=specs))
    same, own = run(normal(1), params)
    expected = jax.jit(tx.update)(normal(1), tx.init(params), params)[0]
    for a, b, c in zip(*map(jax.tree.leaves, (same, own, expected)), strict=True):
        np.testing.assert_allclose(a, c, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(b[0], c, rtol=1e-5, atol=1e-6)
    jax.clear_caches()
