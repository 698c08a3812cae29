"""Groups that span arrays: a block is the one array that its members make side by side, groups over entries."""

import dataclasses
import functools
import math

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import ramda_jax as rj
from ramda_jax import backends
from ramda_jax.backends import cpu, gpu, tpu

GROUPS, STEPS = 16, 5
# Arrays of one, three and four axes; where in them the groups of a block lie.
SHAPES = {"conv": (1, 2, GROUPS, 3), "gate": (2, 3, GROUPS), "scale": (GROUPS,)}
AXES = {"conv": -2, "gate": -1, "scale": 0}
NEURON = {"neuron": [("{net}/" + name, axis) for name, axis in AXES.items()]}
PSIS = {
    "lasso": rj.GroupLasso(0.05),
    "mcp": rj.GroupMCP(0.05, 5.0),
    "sparse": rj.SparseGroupLasso(0.02, 0.05),
}
METHODS = {
    "ramda": functools.partial(rj.ramda, 0.1, restart_steps=(3,)),
    "rmda": functools.partial(rj.rmda, 0.1, restart_steps=(3,)),
    "prox_sgd": functools.partial(rj.prox_sgd, 0.1),
    "prox_adamw": functools.partial(rj.prox_adamw, 0.1, weight_decay=0.1),
    "prox_ssi": functools.partial(rj.prox_ssi, 0.1, weight_decay=0.1),
}
# Three blocks, of one regularizer each, in one tree: they are solved in one step, and compiled once.
COUPLED = rj.by_path(
    [(f"^{net}/", rj.coupled(NEURON, psi)) for net, psi in PSIS.items()] + [(".*", None)]
)
JOINED = rj.by_path(
    [(f"^{net}$", dataclasses.replace(psi, group_axis=0)) for net, psi in PSIS.items()]
    + [(".*", None)]
)


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def draw(seed, lead=(), groups=GROUPS, dtype=jnp.float64):
    """A tree with a block for each regularizer; the groups fade, so that some of them die."""
    rng = np.random.default_rng(seed)
    fade = np.linspace(0, 1, groups) ** 2

    def array(name):
        shape = tuple(groups if n == GROUPS else n for n in SHAPES[name])
        along = np.moveaxis(np.ones(shape), AXES[name], -1) * fade
        return jnp.asarray(
            rng.standard_normal((*lead, *shape)) * np.moveaxis(along, -1, AXES[name]), dtype
        )

    tree = {net: {name: array(name) for name in SHAPES} for net in PSIS}
    return tree | {"bias": jnp.asarray(rng.standard_normal((*lead, 3)), dtype)}


def rows(x, axis):
    """(groups, entries) of an array with groups along one axis, or several in this order."""
    axes = (axis,) if isinstance(axis, int) else axis
    x = jnp.moveaxis(x, axes, range(len(axes)))
    return x.reshape(math.prod(x.shape[: len(axes)]), -1)


def side_by_side(tree, lead=0):
    """The tree with one array for each block."""
    if lead:
        return jax.vmap(lambda t: side_by_side(t, lead - 1))(tree)
    whole = {
        net: jnp.concatenate([rows(tree[net][name], axis) for name, axis in AXES.items()], axis=1)
        for net in PSIS
    }
    return whole | {"bias": tree["bias"]}


def training(tx, params, grads):
    """(parameters, structured parameters, statistics) after a step for each of the stacked gradients."""

    def step(carry, grads):
        params, state = carry
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, state), _ = jax.lax.scan(step, (params, tx.init(params)), grads)
    return params, rj.structured_params(state, params), rj.solver_stats(state)


def in_numpy(tree):
    return jax.tree.map(np.asarray, tree)


def assert_same(found, expected, atol=1e-10, stats=None):
    """Parameters, structured ones with their zeros, iterations and residuals of what `training` returns."""
    for k in range(2):
        for x, y in zip(jax.tree.leaves(found[k]), jax.tree.leaves(expected[k]), strict=True):
            np.testing.assert_allclose(x, y, rtol=0, atol=atol)
            np.testing.assert_array_equal(x == 0, y == 0)
    for name in stats or expected[2]:
        value = expected[2][name]
        np.testing.assert_allclose(found[2][name], value, rtol=0, atol=atol, err_msg=name)


def as_one(result):
    """The result of `training` on blocks, as that on arrays."""
    params, structured, stats = result
    names = {name: name.replace("neuron/", "") for name in stats}
    renamed = {names[name]: value for name, value in stats.items()}
    return side_by_side(params), side_by_side(structured), renamed


@functools.cache
def both(name, **options):
    """(parameters, gradients) -> `training` on blocks, and on the arrays that they make; compiled once."""
    make = functools.partial(METHODS[name], **options)

    def run(params, grads):
        blocks = training(make(COUPLED), params, grads)
        return blocks, training(make(JOINED), side_by_side(params), side_by_side(grads, 1))

    return jax.jit(run)


@functools.cache
def on_one_device(name):
    """What a method does to blocks."""
    return in_numpy(both(name)(draw(0), draw(1, lead=(STEPS,))))[0]


@pytest.mark.parametrize("name", METHODS)
def test_a_block_is_the_array_that_its_members_make(name):
    blocks, arrays = in_numpy(both(name)(draw(0), draw(1, lead=(STEPS,))))
    for net in PSIS:
        dead = np.all(arrays[1][net] == 0, axis=1)
        assert 0 < dead.sum() < GROUPS
    assert_same(as_one(blocks), arrays)
    assert blocks[2]["residual"] < 1e-8


SOLVERS = (
    rj.ProximalGradient(20, rtol=None, tolerance=1e-6),
    rj.AcceleratedProximalGradient(20, tolerance=1e-6),
)


@pytest.mark.parametrize("name", ["ramda", "prox_adamw", "prox_ssi"])
def test_solvers_of_whole_arrays_take_a_block_as_one(name):
    params, grads = draw(0), draw(1, lead=(STEPS,))

    @jax.jit
    def run(params, grads):
        one = side_by_side(params), side_by_side(grads, 1)
        make = lambda rules, solver: METHODS[name](rules, solver=solver)
        return [
            (training(make(COUPLED, s), params, grads), training(make(JOINED, s), *one))
            for s in SOLVERS
        ]

    for blocks, arrays in in_numpy(run(params, grads)):
        assert_same(as_one(blocks), arrays)
        assert blocks[2]["iterations"] > 1


# What optax and JAX do with transformations.


def test_a_batch_of_states_is_a_loop_over_them():
    runs = [(draw(k), draw(k + 1, lead=(STEPS,))) for k in (0, 5)]
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *runs)
    tx = METHODS["ramda"](COUPLED)
    found = in_numpy(jax.jit(jax.vmap(functools.partial(training, tx)))(*stacked))
    for k, run in enumerate(runs):
        expected = in_numpy(both("ramda")(*run)[0])
        iterations = [name for name in expected[2] if name.startswith("iterations")]
        for name in iterations:  # a loop ends when the last one of a batch has
            assert found[2][name][k] >= expected[2].pop(name)
        assert_same(jax.tree.map(lambda x, k=k: x[k], found), expected)


def only(nets, result):
    """Of a result what belongs to some of the blocks."""
    params, structured, stats = result
    own = {name: x for name, x in stats.items() if name.rsplit("/", 1)[-1] in nets}
    return {net: params[net] for net in nets}, {net: structured[net] for net in nets}, own


def test_mini_steps_masks_and_partitions_take_blocks():
    make = METHODS["ramda"]
    params, grads = draw(0), draw(1, lead=(STEPS,))
    twice = jax.tree.map(lambda g: jnp.repeat(g, 2, axis=0), grads)
    labels = {"lasso": "first", "mcp": "second", "sparse": "first", "bias": "rest"}
    parts = {
        "first": make(COUPLED),
        "second": METHODS["prox_sgd"](COUPLED),
        "rest": optax.sgd(0.1),
    }
    shown = {"lasso": True, "mcp": False, "sparse": True, "bias": False}

    @jax.jit
    def run(params, grads, twice):
        steps = optax.MultiSteps(make(COUPLED), 2).gradient_transformation()
        return (
            training(steps, params, twice),
            training(optax.masked(make(COUPLED), shown), params, grads),
            training(optax.partition(parts, labels), params, grads),
        )

    in_mini_steps, masked, partitioned = in_numpy(run(params, grads, twice))
    assert_same(in_mini_steps, on_one_device("ramda"))
    assert_same(only(["lasso", "sparse"], masked), only(["lasso", "sparse"], on_one_device("ramda")))
    assert_same(only(["lasso", "sparse"], partitioned), only(["lasso", "sparse"], masked))
    assert_same(only(["mcp"], partitioned), only(["mcp"], on_one_device("prox_sgd")))
    for found in masked[:2]:  # nobody owns what a mask hides
        moved = jax.tree.map(lambda p, g: p + jnp.sum(g, axis=0), params["mcp"], grads["mcp"])
        for x, y in zip(jax.tree.leaves(found["mcp"]), jax.tree.leaves(moved), strict=True):
            np.testing.assert_allclose(x, y, atol=1e-12)


# Eight devices, in every way there is.

# How parameters are cut by themselves. Along groups over one mesh axis or the other, or across them:
UNLIKE = {"conv": P(None, None, "data"), "gate": P("model"), "scale": P("model")}
# All along groups over the one, and nothing of a certificate varies over the other:
ALIKE = {"conv": P(None, None, "data"), "gate": P(None, None, "data"), "scale": P("data")}


def mesh_of(kind, shape=(8,), names=("data",)):
    return jax.make_mesh(shape, names, axis_types=(kind,) * len(shape))


def on_a_mesh(make, kind):
    mesh = mesh_of(kind)
    tx = make(COUPLED, placement=rj.Placement("data", mesh))
    with jax.set_mesh(mesh):
        whole = NamedSharding(mesh, P())
        given = jax.device_put((draw(0), draw(1, lead=(STEPS,))), whole)
        return in_numpy(jax.jit(functools.partial(training, tx))(*given))


def with_cut_parameters(make, kind, cuts=UNLIKE):
    specs = {net: cuts for net in PSIS} | {"bias": P()}
    mesh = mesh_of(kind, (4, 2), ("data", "model"))
    told = None if kind == AxisType.Explicit else specs  # an explicit mesh knows it
    tx = make(COUPLED, placement=rj.Placement("data", mesh, told))
    with jax.set_mesh(mesh):
        lay = lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))
        params = jax.tree.map(lay, draw(0), specs)
        stacked = jax.tree.map(lambda spec: P(None, *spec), specs)
        grads = jax.tree.map(lay, draw(1, lead=(STEPS,)), stacked)
        return in_numpy(jax.jit(functools.partial(training, tx))(params, grads))


def in_shard_map(make):
    run = functools.partial(training, make(COUPLED, placement=rj.Placement("data")))
    mapped = jax.shard_map(run, mesh=mesh_of(AxisType.Auto), in_specs=P(), out_specs=P())
    return in_numpy(jax.jit(mapped)(draw(0), draw(1, lead=(STEPS,))))


def in_pmap(make):
    run = functools.partial(training, make(COUPLED, placement=rj.Placement("data")))
    copies = lambda tree: jax.tree.map(lambda x: jnp.stack([x] * 8), tree)
    mapped = jax.pmap(run, axis_name="data")
    found = in_numpy(mapped(copies(draw(0)), copies(draw(1, lead=(STEPS,)))))
    for x in jax.tree.leaves(found):
        np.testing.assert_array_equal(x, x[:1].repeat(8, 0))
    return jax.tree.map(lambda x: x[0], found)


WAYS = {
    "auto mesh": functools.partial(on_a_mesh, kind=AxisType.Auto),
    "explicit mesh": functools.partial(on_a_mesh, kind=AxisType.Explicit),
    "cut, auto mesh": functools.partial(with_cut_parameters, kind=AxisType.Auto),
    "cut, explicit mesh": functools.partial(with_cut_parameters, kind=AxisType.Explicit),
    "shard_map": in_shard_map,
    "pmap": in_pmap,
}


# All for a method of each kind of metric; for the others parts along groups, and everything else.
PAIRS = [(name, way) for name in ("ramda", "prox_sgd") for way in WAYS] + [
    (name, way)
    for name in ("rmda", "prox_adamw", "prox_ssi")
    for way in ("auto mesh", "cut, explicit mesh")
]


@pytest.mark.parametrize(("name", "way"), PAIRS)
def test_eight_devices_solve_blocks_as_one_does(name, way):
    assert_same(WAYS[way](METHODS[name]), on_one_device(name))


def test_nothing_needs_to_vary_over_every_axis_of_a_mesh():
    found = with_cut_parameters(METHODS["prox_sgd"], AxisType.Auto, ALIKE)
    assert_same(found, on_one_device("prox_sgd"))


def test_eight_devices_bring_a_block_together_for_a_solver_of_whole_arrays():
    make = functools.partial(METHODS["ramda"], solver=SOLVERS[0])
    expected = in_numpy(
        jax.jit(functools.partial(training, make(COUPLED)))(draw(0), draw(1, lead=(STEPS,)))
    )
    assert_same(with_cut_parameters(make, AxisType.Auto), expected)


# Backends.


def injected(table, name, trees, rules=COUPLED):
    """(the result of `training` under a table of backends, the program)."""
    with backends.injected(table):
        lowered = jax.jit(functools.partial(training, METHODS[name](rules))).lower(*trees)
        return in_numpy(lowered.compile()(*trees)), lowered.as_text()


@pytest.mark.parametrize("name", ["ramda", "prox_sgd"])
def test_blocks_are_the_same_in_tiles_and_in_vectors_of_all_groups(name):
    trees = draw(0, groups=40), draw(1, (STEPS,), groups=40)
    plain, whole = injected({}, name, trees)
    tiles, in_tiles = injected({"cpu": cpu.tiled((300, 60))}, name, trees)
    vectors, _ = injected({"cpu": gpu.run}, name, trees)
    assert in_tiles.count("stablehlo.while") >= whole.count("stablehlo.while") + len(PSIS)
    for found in (tiles, vectors):
        assert_same(found, plain, stats=["iterations", "residual"])


def test_the_tpu_kernel_leaves_blocks_to_what_takes_them():
    trees = []
    for seed, lead in ((0, ()), (1, (STEPS,))):
        tree = draw(seed, lead, dtype=jnp.float32)
        kernel = np.random.default_rng(seed).standard_normal((*lead, 64, 128))
        trees.append({"lasso": tree["lasso"], "kernel": jnp.asarray(kernel, jnp.float32)})
    rules = rj.by_path([("kernel", rj.GroupLasso(0.05)), (".*", COUPLED)])
    plain, whole = injected({}, "ramda", trees, rules)
    mixed, in_kernel = injected({"cpu": tpu.with_kernel(64 * 1024, True)}, "ramda", trees, rules)
    assert whole != in_kernel  # the single array goes through the interpreted kernel
    assert_same(mixed, plain, atol=2e-5, stats=["iterations", "residual"])
