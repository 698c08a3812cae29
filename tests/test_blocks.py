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

pytestmark = pytest.mark.unoptimized

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
    return params, rj.structured_params(state, params, values="minimizer"), rj.solver_stats(state)


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


SOLVERS = {
    "ramda": rj.ProximalGradient(20, rtol=None, tolerance=1e-6),
    "prox_adamw": rj.AcceleratedProximalGradient(20, tolerance=1e-6),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_of_whole_arrays_take_a_block_as_one(name):
    run = both(name, solver=SOLVERS[name])
    blocks, arrays = in_numpy(run(draw(0), draw(1, lead=(STEPS,))))
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
    make = METHODS["rmda"]
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
        steps = optax.MultiSteps(make(COUPLED), 2, accumulator_dtype=jnp.float64)
        return (
            training(steps.gradient_transformation(), params, twice),
            training(optax.masked(make(COUPLED), shown), params, grads),
            training(optax.partition(parts, labels), params, grads),
        )

    in_mini_steps, masked, partitioned = in_numpy(run(params, grads, twice))
    first, second = ["lasso", "sparse"], ["mcp"]
    assert_same(in_mini_steps, on_one_device("rmda"))
    assert_same(only(first, masked), only(first, on_one_device("rmda")))
    assert_same(only(first, partitioned), only(first, on_one_device("rmda")))
    assert_same(only(second, partitioned), only(second, on_one_device("prox_sgd")))
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
    specs = dict.fromkeys(PSIS, cuts) | {"bias": P()}
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


# Each method in some way. For a method of each kind of metric: both kinds of mesh, cut or not, and both maps.
PAIRS = [
    *(("ramda", way) for way in ("auto mesh", "cut, explicit mesh", "shard_map")),
    *(("prox_sgd", way) for way in ("explicit mesh", "cut, auto mesh", "pmap")),
    ("rmda", "shard_map"),
    ("prox_adamw", "pmap"),
    ("prox_ssi", "explicit mesh"),
]


@pytest.mark.parametrize(("name", "way"), PAIRS)
def test_eight_devices_solve_blocks_as_one_does(name, way):
    assert_same(WAYS[way](METHODS[name]), on_one_device(name))


def test_nothing_needs_to_vary_over_every_axis_of_a_mesh():
    found = with_cut_parameters(METHODS["prox_sgd"], AxisType.Auto, ALIKE)
    assert_same(found, on_one_device("prox_sgd"))


def test_eight_devices_bring_a_block_together_for_a_solver_of_whole_arrays():
    make = functools.partial(METHODS["ramda"], solver=SOLVERS["ramda"])
    expected, _ = both("ramda", solver=SOLVERS["ramda"])(draw(0), draw(1, lead=(STEPS,)))
    assert_same(with_cut_parameters(make, AxisType.Auto), in_numpy(expected))


# Backends.


def injected(table, name, trees, rules=COUPLED):
    """(the result of `training` under a table of backends, the program)."""
    with backends.injected(table):
        lowered = jax.jit(functools.partial(training, METHODS[name](rules))).lower(*trees)
        return in_numpy(lowered.compile()(*trees)), lowered.as_text()


@pytest.mark.parametrize("name", ["ramda", "prox_sgd"])
def test_blocks_are_the_same_in_tiles_and_in_vectors_of_all_groups(name):
    trees = [draw(0, groups=40), draw(1, (STEPS,), groups=40)]
    trees = [{net: tree[net] for net in ("lasso", "mcp")} for tree in trees]
    plain, whole = injected({}, name, trees)
    tiles, in_tiles = injected({"cpu": cpu.tiled((300, 60))}, name, trees)
    vectors, _ = injected({"cpu": gpu.run}, name, trees)
    assert in_tiles.count("stablehlo.while") >= whole.count("stablehlo.while") + 2
    for found in (tiles, vectors):
        assert_same(found, plain, stats=["iterations", "residual"])


def test_the_tpu_kernel_leaves_blocks_to_what_takes_them():
    trees = []
    for seed, lead in ((0, ()), (1, (STEPS,))):
        tree = draw(seed, lead, dtype=jnp.float32)
        kernel = np.random.default_rng(seed).standard_normal((*lead, 64, 128))
        trees.append({"lasso": tree["lasso"], "kernel": jnp.asarray(kernel, jnp.float32)})
    rules = rj.by_path([("kernel", rj.GroupLasso(0.05)), (".*", COUPLED)])
    plain, whole = injected({}, "prox_sgd", trees, rules)
    mixed, in_kernel = injected({"cpu": tpu.with_kernel(64 * 1024, True)}, "prox_sgd", trees, rules)
    assert whole != in_kernel  # the single array goes through the interpreted kernel
    assert_same(mixed, plain, atol=2e-5, stats=["iterations", "residual"])


# Views: members that are parts of an array, or seen in another shape.

View = rj.View
VIEWED = {
    # 6 positions of 4 channels, flattened with channels last, and the convolution that reads the same channels.
    "flat": [("flat/dense", View(1, shape=(6, 4, 5))), ("flat/conv", -2)],
    "alone": [("alone/dense", View(1, shape=(6, 4, 5)))],
    # Halves of one array, and what reads their product.
    "halves": [
        ("halves/in", View(1, window=((0, 5), (0, 8)))),
        ("halves/in", View(1, window=((0, 5), (8, 16)))),
        ("halves/out", 0),
    ],
    # The values of 3 heads of 2 each, behind queries and keys that are left alone, and what reads them.
    "heads": [
        ("heads/qkv", View(1, shape=(4, 3, 2), window=((0, 4), (12, 18)))),
        ("heads/out", View(0, shape=(3, 2, 4))),
    ],
    # One array of which two blocks have rows each, and nobody the last ones.
    "top": [("table/all", View(0, window=((0, 4), (0, 3)))), ("table/top", 0)],
    "low": [("table/all", View(0, window=((4, 8), (0, 3)))), ("table/low", 0)],
    # One group per index along two axes, in one order and in the other.
    "pairs": [("pairs/one", (0, 1)), ("pairs/other", (2, 0))],
}
VIEWED_SHAPES = {
    "flat": {"dense": (24, 5), "conv": (3, 3, 4, 2)},
    "alone": {"dense": (24, 5)},
    "halves": {"in": (5, 16), "out": (8, 3)},
    "heads": {"qkv": (4, 18), "out": (6, 4)},
    "table": {"all": (12, 3), "top": (4, 5), "low": (4, 2)},
    "pairs": {"one": (2, 3, 4), "other": (3, 4, 2)},
}


# At these, some groups die.
VIEWED_STRENGTHS = {"ramda": 0.7, "prox_sgd": 0.28}


def draw_viewed(seed, lead=(), scale=1.0):
    rng = np.random.default_rng(seed)
    array = lambda shape: jnp.asarray(scale * rng.standard_normal((*lead, *shape)))
    return jax.tree.map(array, VIEWED_SHAPES, is_leaf=lambda s: isinstance(s, tuple))


def unviewed(tree):
    """One array for each block of `VIEWED`, and what is in none."""
    flat, halves, heads, table, pairs = (
        tree[k] for k in ("flat", "halves", "heads", "table", "pairs")
    )
    channels = lambda x: rows(x.reshape(6, 4, 5), 1)
    values, side = heads["qkv"][:, 12:], lambda *xs: jnp.concatenate(xs, axis=1)
    return {
        "flat": side(channels(flat["dense"]), rows(flat["conv"], 2)),
        "alone": channels(tree["alone"]["dense"]),
        "halves": side(halves["in"][:, :8].T, halves["in"][:, 8:].T, halves["out"]),
        "heads": side(rows(values.reshape(4, 3, 2), 1), heads["out"].reshape(3, 8)),
        "top": side(table["all"][:4], table["top"]),
        "low": side(table["all"][4:8], table["low"]),
        "pairs": side(rows(pairs["one"], (0, 1)), rows(pairs["other"], (2, 0))),
        "rest": {"rows": table["all"][8:], "columns": heads["qkv"][:, :12]},
    }


def view_rules(psi):
    return rj.coupled(VIEWED, psi), {
        **{name: dataclasses.replace(psi, group_axis=0) for name in VIEWED},
        "rest": {"rows": None, "columns": None},
    }


@functools.cache
def viewed_on_one_device(name):
    """What a method does to views, and to the arrays that they make."""
    params, grads = draw_viewed(0, scale=0.1), draw_viewed(1, lead=(STEPS,))
    coupled, joined = view_rules(rj.GroupLasso(VIEWED_STRENGTHS[name]))

    def run(params, grads):
        one = unviewed(params), jax.vmap(unviewed)(grads)
        viewed = training(METHODS[name](coupled), params, grads)
        return viewed, training(METHODS[name](joined), *one)

    return in_numpy(jax.jit(run)(params, grads))


@pytest.mark.parametrize("name", ["ramda", "prox_sgd"])
def test_a_member_may_be_a_window_of_an_array_or_seen_in_another_shape(name):
    (params, structured, stats), arrays = viewed_on_one_device(name)
    dead = [np.all(arrays[1][block] == 0, axis=1).mean() for block in VIEWED]
    assert 0.1 < np.mean(dead) < 0.9, dead
    assert_same((unviewed(params), unviewed(structured), stats), arrays)


def test_eight_devices_take_views_of_arrays_that_are_cut():
    mesh = mesh_of(AxisType.Auto, (4, 2), ("data", "model"))
    cuts = {
        "dense": P("data"),
        "in": P(None, "model"),
        "qkv": P("data", "model"),
        "one": P("model"),
    }
    params, grads = draw_viewed(0, scale=0.1), draw_viewed(1, lead=(STEPS,))
    specs = {net: {k: cuts.get(k, P()) for k in tree} for net, tree in params.items()}
    coupled, _ = view_rules(rj.GroupLasso(VIEWED_STRENGTHS["prox_sgd"]))
    tx = METHODS["prox_sgd"](coupled, placement=rj.Placement("data", mesh, specs))
    lay = lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))
    params = jax.tree.map(lay, params, specs)
    grads = jax.tree.map(lay, grads, jax.tree.map(lambda spec: P(None, *spec), specs))
    found = in_numpy(jax.jit(functools.partial(training, tx))(params, grads))
    assert_same(found, viewed_on_one_device("prox_sgd")[0])


# What users read.


def test_measures_and_tables_count_a_block_as_one_array():
    _, structured, stats = on_one_device("ramda")
    joined = side_by_side(structured)
    assert set(stats) == {
        f"{kind}{name}"
        for kind in ("iterations", "residual")
        for name in ("", *(f"/neuron/{net}" for net in PSIS))
    }
    for measure in (rj.group_sparsity, rj.weighted_group_sparsity):
        assert 0 < measure(structured, COUPLED) < 1
        np.testing.assert_allclose(measure(structured, COUPLED), measure(joined, JOINED))
    found, expected = rj.summary(structured, COUPLED), rj.summary(joined, JOINED)
    renamed = {name.replace("neuron/", ""): value for name, value in found.items()}
    assert renamed == pytest.approx(expected)
    assert found["neuron/lasso/groups"] == GROUPS
    lines = rj.describe(structured, COUPLED).splitlines()
    counts = {line.split()[0]: line.split()[-2:] for line in lines}
    assert counts["lasso/conv"] == [str(GROUPS), "96"]
    assert counts["lasso/gate"] == ["-", "96"]  # its groups are counted with the first member's
    assert counts["bias"] == ["-", "3"]
    assert counts["total"] == [str(3 * GROUPS), str(3 * (96 + 96 + GROUPS) + 3)]
    (line,) = [line for line in lines if line.startswith("lasso/gate")]
    assert "neuron/lasso: GroupLasso(strength=0.05, size_weighted=True)" in line


def test_the_size_of_a_group_counts_all_members():
    params = {"mlp": {"up": jnp.full((4, 2), 3.0), "down": jnp.full((2, 5), 2.0)}}
    kinds = {"neuron": [("{mlp}/up", 1), ("{mlp}/down", 0)]}
    by_hand = 2 * np.sqrt(4 + 5) * np.sqrt(4 * 9 + 5 * 4)
    value = rj.objective(1.0, params, rj.coupled(kinds, rj.GroupLasso(0.5)))
    np.testing.assert_allclose(value, 1.0 + 0.5 * by_hand)
    plain = rj.coupled(kinds, rj.GroupLasso(0.5, size_weighted=False))
    np.testing.assert_allclose(rj.objective(1.0, params, plain), 1.0 + 0.5 * by_hand / 3)
    gradient = jax.grad(lambda p: rj.objective(0.0, p, plain))(params)
    np.testing.assert_allclose(gradient["mlp"]["up"], 0.5 * 3 / np.sqrt(56))


def test_coupled_is_no_schedule_and_its_strengths_are_leaves():
    rule = rj.coupled(NEURON, rj.SparseGroupLasso(0.1, 0.2))
    assert not callable(rule)
    assert jax.tree.leaves(rule) == [0.1, 0.2]
    assert jax.tree.leaves(jax.tree.map(lambda s: 2 * s, rule)) == [0.2, 0.4]
    doubled = jax.tree.map(lambda s: 2 * s, rule).assign(draw(0))["lasso"]["gate"]
    assert (doubled.l1, doubled.group) == (0.2, 0.4)


# Errors.

LASSO = rj.GroupLasso(0.1)
MLP = {
    "enc": {"up": jnp.ones((3, 4)), "down": jnp.ones((4, 3))},
    "dec": {"up": jnp.ones((3, 6)), "down": jnp.ones((6, 3))},
}


def error_of(build, kind=ValueError):
    with pytest.raises(kind) as caught:
        build()
    return str(caught.value)


def init(kinds, params=MLP, rules=lambda c: c):
    return lambda: rj.ramda(0.1, rules(rj.coupled(kinds, LASSO))).init(params)


@pytest.mark.parametrize(
    ("kinds", "words"),
    [
        (
            {"a": [("{m}/up", 1), ("{m}/down", 0)], "b": [("{m}/up", 0)]},
            ["dec/up", "'a/dec'", "'b/dec'", "two groups"],
        ),
        (
            {"a": [("enc/up", View(1, window=((0, 3), (0, 3))))], "b": [("enc/up", View(1, window=((0, 3), (2, 4))))]},
            ["enc/up", "'a'", "'b'"],
        ),
        ({"a": [("enc/up", 0), ("enc/up", 0)]}, ["enc/up", "'a'"]),
        ({"a": [("{m}/up", 1), ("{m}/middle", 0)]}, ["'a/dec'", "dec/middle", "dec/up"]),
        (
            {"a": [("{m}/up", 0), ("{m}/down", 0)]},
            ["dec/up", "(3, 6)", "has 3", "dec/down", "(6, 3)", "has 6"],
        ),
        ({"a": [("enc/up", 2)]}, ["axis 2", "enc/up", "(3, 4)"]),
        ({"a": [("enc/up", (0, -2))]}, ["(0, -2)", "enc/up", "(3, 4)"]),
        ({"a": [("enc/up", View(0, shape=(5, 2)))]}, ["enc/up", "(3, 4)", "(5, 2)"]),
        (
            {"a": [("enc/up", View(0, window=((0, 3), (0, 5))))]},
            ["enc/up", "(3, 4)", "((0, 3), (0, 5))"],
        ),
        ({"a": [("enc/up", View(0, window=((0, 3),)))]}, ["enc/up", "(3, 4)", "((0, 3),)"]),
        ({"a": [("nowhere/{m}", 0)]}, ["coupled['a'] matches no parameter", "nowhere/{m}"]),
    ],
)  # fmt: skip
def test_a_block_that_does_not_fit_says_which_array_and_why(kinds, words):
    message = error_of(init(kinds))
    for word in words:
        assert word in message, message


def test_windows_that_only_touch_do_not_overlap():
    window = lambda a, b: View(1, window=((0, 3), (a, b)))
    init({"a": [("enc/up", window(0, 2))], "b": [("enc/up", window(2, 4))]})()


def test_an_array_of_a_block_that_a_tree_regularizes_too_is_named():
    rules = lambda c: rj.by_path([("enc/up", LASSO), (".*", c)])
    message = error_of(init({"a": [("{m}/up", 1), ("{m}/down", 0)]}, rules=rules))
    assert "'a/enc'" in message  # the first rule took a member away
    assert "enc/up" in message


@pytest.mark.parametrize("wrap", ["masked", "partition"])
def test_a_member_that_optax_hides_is_named(wrap):
    coupled = rj.ramda(0.1, rj.coupled({"a": [("{m}/up", 1), ("{m}/down", 0)]}, LASSO))
    shown = {"enc": True, "dec": {"up": True, "down": False}}
    tx = optax.masked(coupled, shown)
    if wrap == "partition":
        labels = jax.tree.map(lambda show: "a" if show else "b", shown)
        tx = optax.partition({"a": coupled, "b": optax.sgd(0.1)}, labels)
    message = error_of(lambda: tx.init(MLP))
    for word in ("'a/dec'", "dec/down", "dec/up", "must not split"):
        assert word in message, message


@pytest.mark.parametrize(
    ("kinds", "psi", "words"),
    [
        ({"a": [("{m}/up", 1), ("{n}/down", 0)]}, LASSO, ["placeholders", "{m}/up", "{n}/down"]),
        ({"a": [("{m}/up", 1), ("enc/down", 0)]}, LASSO, ["placeholders", "enc/down"]),
        ({"a": [("{m}/up", 1)]}, rj.L1(0.1), ["group norms", "L1"]),
        ({"a": [("{m}/up", 1)]}, rj.NuclearNorm(0.1), ["group norms", "NuclearNorm"]),
        ({"a": [("{m}/up", 1)]}, 0.1, ["group norms", "0.1"]),
        ({"a": [("{m}/up", 1.5)]}, LASSO, ["'a'", "1.5"]),
        ({"a": [("{m}/up", True)]}, LASSO, ["'a'", "True"]),
        ({"a": [("{m}/up", ())]}, LASSO, ["'a'", "()"]),
        ({"a": ["{m}/up"]}, LASSO, ["'a'", "{m}/up"]),
        ({"a": []}, LASSO, ["'a'", "none"]),
        ({}, LASSO, ["{}"]),
        ([("a", 0)], LASSO, ["dict", "[('a', 0)]"]),
    ],
    ids=str,
)
def test_coupled_refuses_what_makes_no_block(kinds, psi, words):
    message = error_of(lambda: rj.coupled(kinds, psi))
    for word in words:
        assert word in message, message


def test_a_placeholder_that_comes_twice_matches_the_same_text_and_dots_are_dots():
    params = {
        "l.0": {"l.0": jnp.ones((3, 4)), "out": jnp.ones((4, 2))},
        "lx0": {"l.0": jnp.ones((3, 4)), "out": jnp.ones((4, 2))},
    }
    assigned = rj.coupled({"a": [("{m}/{m}", 1), ("{m}/out", 0)]}, LASSO)
    message = error_of(lambda: rj.ramda(0.1, assigned).init(params))
    assert "'a/lx0'" in message  # lx0/l.0 is no lx0/lx0
    del params["lx0"]
    rj.ramda(0.1, assigned).init(params)


# Any members.


@st.composite
def members(draw_from):
    """(shapes, axis of the groups of each) of two or three members, and a seed."""
    groups = draw_from(st.integers(1, 5))
    found = []
    for _ in range(draw_from(st.integers(2, 3))):
        shape = draw_from(st.lists(st.integers(1, 3), max_size=3))
        axis = draw_from(st.integers(0, len(shape)))
        from_behind = draw_from(st.booleans())
        shape = (*shape[:axis], groups, *shape[axis:])
        found.append((shape, axis - len(shape) if from_behind else axis))
    return found, draw_from(st.integers(0, 1000))


@hypothesis.settings(max_examples=4)
@hypothesis.given(members(), st.sampled_from(sorted(PSIS)), st.sampled_from(["ramda", "prox_sgd"]))
def test_blocks_of_any_members_are_the_arrays_that_they_make(given, net, name):
    found, seed = given
    rng = np.random.default_rng(seed)
    names = [f"m{k}" for k in range(len(found))]
    array = lambda shape, *lead: jnp.asarray(rng.standard_normal((*lead, *shape)))
    params = {n: array(shape) for n, (shape, _) in zip(names, found, strict=True)}
    grads = {n: array(shape, 3) for n, (shape, _) in zip(names, found, strict=True)}
    axes = dict(zip(names, (axis for _, axis in found), strict=True))
    join = lambda t: {"all": jnp.concatenate([rows(t[n], axes[n]) for n in names], axis=1)}
    rules = rj.coupled({"all": list(axes.items())}, PSIS[net])
    whole = {"all": dataclasses.replace(PSIS[net], group_axis=0)}

    @jax.jit
    def run(params, grads):
        one = training(METHODS[name](rules), params, grads)
        return one, training(METHODS[name](whole), join(params), jax.vmap(join)(grads))

    (found_params, structured, stats), expected = in_numpy(run(params, grads))
    assert_same((join(found_params), join(structured), stats), expected)
