"""Tiles on a CPU: the same step as on whole arrays, in any dtype, without parameter-sized temporaries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import ramda_jax as rj
from ramda_jax import backends
from ramda_jax.backends import cpu
from tests.backends.steps import METHODS, PAIRS, normal, step_of, train, tree_of

# With tiles of 2000 and 500 entries: sizes that do and do not divide into equal tiles, and a small leaf.
SHAPES = {
    "dense": {"kernel": (101, 60), "bias": (60,)},
    "conv": {"kernel": (3, 3, 24, 16)},
    "small": {"kernel": (7, 5)},
    "twin": {"kernel": (101, 60)},
}
TILES = {"cpu": cpu.tiled((2000, 500))}


@pytest.fixture
def _in_tiles():
    with backends.injected(TILES):
        yield


@pytest.mark.parametrize(("name", "psi"), PAIRS, ids=str)
def test_tiles_and_whole_arrays_give_the_same_step(name, psi):
    found = []
    with jax.enable_x64(True):
        for table in (TILES, {}):
            with backends.injected(table):
                params, state = train(METHODS[name](psi), SHAPES, jnp.float64)
            structured = rj.structured_params(state, params, values="minimizer")
            residual = rj.solver_stats(state)["residual"]
            found.append(jax.tree.map(np.asarray, (params, structured, residual)))
    tiles, whole = found
    for one, other in zip(jax.tree.leaves(tiles), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)
    for one, other in zip(jax.tree.leaves(tiles[1]), jax.tree.leaves(whole[1]), strict=True):
        np.testing.assert_array_equal(one == 0, other == 0)


def test_arrays_of_one_kind_share_a_program_and_keep_their_strengths():
    def stated(names):
        shapes = {name: {"kernel": (101, 60)} for name in names}
        psis = {name: {"kernel": rj.GroupLasso(0.02 * (1 + k))} for k, name in enumerate(names)}
        return rj.ramda(0.1, psis), shapes

    def loops(names):
        tx, shapes = stated(names)
        params = normal(0, shapes, jnp.float64)
        program = jax.jit(step_of(tx)).lower(params, tx.init(params), params).compile()
        return program.as_text().count(" while(")

    with jax.enable_x64(True):
        with backends.injected(TILES):
            assert loops("abcde") == loops("ab") > 0
            tiles, _ = train(*stated("abcde"), jnp.float64)
        with backends.injected({}):
            whole, _ = train(*stated("abcde"), jnp.float64)
    for one, other in zip(jax.tree.leaves(tiles), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)


@pytest.fixture(scope="module")
def ramda():
    """(transformation, its update), compiled once for each type."""
    tx = rj.ramda(0.1, rj.GroupLasso(0.05))
    return tx, jax.jit(tx.update)


@pytest.mark.usefixtures("_in_tiles")
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_tiles_take_narrow_parameters_and_wide_gradients(ramda, dtype):
    params, grads = normal(0, SHAPES, dtype), normal(1, SHAPES)
    tx, update = ramda
    wide = update(grads, tx.init(params), params)[0]
    narrow = jax.tree.map(lambda u, p: u.dtype == p.dtype, wide, params)
    assert all(jax.tree.leaves(narrow))
    exact = update(grads, tx.init(params), jax.tree.map(jnp.float32, params))[0]
    for u, v in zip(jax.tree.leaves(wide), jax.tree.leaves(exact), strict=True):
        np.testing.assert_array_equal(u, v.astype(dtype))


def temporary_memory(tx, params):
    """Of a donated training update, in units of the parameters."""
    step = jax.jit(step_of(tx), donate_argnums=(0, 1))
    compiled = step.lower(params, tx.init(params), params).compile()
    size = sum(x.nbytes for x in jax.tree.leaves(params))
    return compiled.memory_analysis().temp_size_in_bytes / size


# Not with groups of one entry (the norms are as many as the parameters), nor for entrywise psi (their residual is a norm
# over what XLA's CPU backend writes out first).
LARGE_GROUPS = [
    (name, psi) for name, psi in PAIRS if not isinstance(psi, rj.L1) and psi.group_axis != (-2, -1)
]


@pytest.mark.usefixtures("_in_tiles")
@pytest.mark.parametrize(("name", "psi"), LARGE_GROUPS, ids=str)
def test_temporaries_are_less_than_half_the_parameters(name, psi):
    shapes = {f"layer{i}": {"kernel": (3, 3, 60, 121)} for i in range(2)}
    shapes |= {f"dense{i}": {"kernel": (199, 301)} for i in range(2)}
    assert temporary_memory(METHODS[name](psi), tree_of(jnp.ones, shapes)) <= 0.5


@pytest.mark.usefixtures("_in_tiles")
def test_tiles_work_inside_shard_map():
    params, grads, tx = normal(0, SHAPES), normal(1, SHAPES), rj.ramda(0.1, rj.GroupLasso(0.02))
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
    same, own = run(grads, params)
    expected = jax.jit(tx.update)(grads, tx.init(params), params)[0]
    for a, b, c in zip(*map(jax.tree.leaves, (same, own, expected)), strict=True):
        np.testing.assert_allclose(a, c, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(b[0], c, rtol=1e-5, atol=1e-6)
