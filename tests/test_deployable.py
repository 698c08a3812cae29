"""structured_params: W with What's amount of structure, against NumPy; in every wrapper, dtype and layout."""

import functools

import chex
import equinox as eqx
import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import ramda_jax as rj
from ramda_jax import _numerics
from tests.methods import METHODS, layer_grads, layer_params, layer_tx, needs_eight

RESTART = 50
LOOKS = (1, 10, RESTART, RESTART + 1, RESTART + 10, RESTART + 50)
AVERAGING = METHODS[:2]

# Channel 0, 1 and 2 of `up` are read by two rows of `down` each, as after flattening.
READERS = {"channel": [("up", -1), ("down", rj.View(1, shape=(2, 3, 4)))]}
REGULARIZER = rj.by_path(
    [
        ("^(up|down)$", rj.coupled(READERS, rj.GroupLasso(0.5))),
        ("entries", rj.L1(0.1)),
        ("half", rj.LHalf(0.02)),
        ("groups", rj.GroupLasso(0.3)),
        ("sparse", rj.SparseGroupLasso(0.06, 0.04)),
        ("mcp", rj.GroupMCP(0.08, 3.0)),
        ("rank", rj.NuclearNorm(0.15, stack_axes=0)),
        ("signs", rj.Binarize(0.3)),
        ("free", None),
    ]
)
SHAPES = {
    "up": (5, 3),
    "down": (6, 4),
    "entries": (3, 4),
    "half": (3, 4),
    "groups": (3, 6, 2),
    "sparse": (8, 5),
    "mcp": (6, 3),
    "rank": (3, 4, 6),
    "signs": (4, 5),
    "free": (4, 2),
}


def start(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return {name: jnp.asarray(rng.standard_normal(s), dtype) for name, s in SHAPES.items()}


def loss(params, key):
    """The quadratic around a point that is partly small, with noise."""
    total = 0.0
    for k, name in enumerate(sorted(params)):
        x = params[name]
        scale = jnp.linspace(0.02, 1.0, x.shape[-2])[:, None]
        wanted = scale * jax.random.normal(jax.random.fold_in(jax.random.key(7), k), x.shape)
        noise = jax.random.normal(jax.random.fold_in(key, k), x.shape)
        total += 0.5 * jnp.sum((x.astype(jnp.float32) - wanted - 0.3 * noise) ** 2)
    return total


def train(method, steps, dtype=jnp.float32, regularizer=REGULARIZER):
    """[(params, state)] after each step."""
    rate = 0.3 if method.scalar_metric else 0.1
    tx = method(regularizer, learning_rate=rate, momentum=0.1, restart_steps=(RESTART,))

    def step(carry, key):
        params, state = carry
        grads = jax.grad(loss)(params, key)
        updates, state = tx.update(grads, state, params)
        carry = optax.apply_updates(params, updates), state
        return carry, carry

    params = start(dtype)
    keys = jax.random.split(jax.random.key(1), steps)
    _, trace = jax.jit(lambda carry: jax.lax.scan(step, carry, keys))((params, tx.init(params)))
    return [jax.tree.map(lambda x, k=k: x[k], trace) for k in range(steps)]


@functools.cache
def trained(method):
    return train(method, LOOKS[-1])


deployable = jax.jit(rj.structured_params)
minimizer = jax.jit(lambda state, params: rj.structured_params(state, params, values="minimizer"))


def largest(sizes, count):
    """A mask of the `count` largest; of equals the first."""
    mask = np.zeros(sizes.size, bool)
    mask[np.argsort(-sizes.ravel(), kind="stable")[: max(count, 0)]] = True
    return mask.reshape(sizes.shape)


def expected(name, w, what):
    """The oracle for one array."""
    w, what = (np.asarray(x, np.float64) for x in (w, what))
    if name in ("entries", "half"):
        return w * largest(np.abs(w), np.sum(what != 0))
    if name in ("groups", "mcp", "sparse"):
        axes = tuple(a for a in range(w.ndim) if a != w.ndim - 2)
        norms = np.sqrt(np.sum(w * w, axis=axes, keepdims=True))
        kept = w * largest(norms, np.sum(np.any(what != 0, axis=axes)))
        if name != "sparse":
            return kept
        size = np.abs(kept)
        first = (size == size.max(axis=axes, keepdims=True)) & (size > 0)
        return kept * largest(np.where(first, np.inf, size), np.sum(what != 0))
    if name == "rank":
        found = []
        for one, model in zip(w, what, strict=True):
            rank = np.linalg.matrix_rank(model, tol=1e-6 * np.linalg.norm(model))
            u, s, vt = np.linalg.svd(one, full_matrices=False)
            found.append((u[:, :rank] * s[:rank]) @ vt[:rank])
        return np.stack(found)
    if name == "signs":
        near = largest(-np.abs(np.abs(w) - 1), np.sum(np.abs(what) == 1))
        return np.where(near, np.where(w < 0, -1.0, 1.0), w)
    return w


def expected_pair(w, what):
    """The oracle for the coupled arrays: channel i is column i of the one, rows i and 3 + i of the other."""
    rows = lambda tree: np.concatenate(
        [np.asarray(tree["up"]).T]
        + [np.asarray(tree["down"]).reshape(2, 3, 4)[k] for k in range(2)],
        axis=1,
    )
    alive = np.sum(np.any(rows(what) != 0, axis=1))
    kept = largest(np.linalg.norm(rows(w), axis=1), alive)
    down = np.asarray(w["down"]).reshape(2, 3, 4) * kept[:, None]
    return {"up": np.asarray(w["up"]) * kept, "down": down.reshape(6, 4)}


@pytest.mark.parametrize("method", AVERAGING[:1], ids=lambda m: m.name)
def test_it_is_w_with_the_count_of_what_at_the_first_steps_of_stages_and_later(method):
    seen = set()
    for look in LOOKS:
        params, state = trained(method)[look - 1]
        point, what = deployable(state, params), minimizer(state, params)
        wanted = {name: expected(name, params[name], what[name]) for name in SHAPES}
        wanted |= expected_pair(params, what)
        for name in SHAPES:
            tolerance = 2e-5 if name == "rank" else 0
            np.testing.assert_allclose(
                point[name], wanted[name], rtol=0, atol=tolerance, err_msg=f"{name} at {look}"
            )
        for name, x in point.items():
            structured = np.abs(x) == 1 if name == "signs" else np.asarray(x) == 0
            if structured.any() and not structured.all():
                seen.add(name)
        rank = rj.NuclearNorm(1.0, stack_axes=0)
        ranks = [np.asarray(jnp.sum(~rank.zero_groups(tree["rank"]), -1)) for tree in (point, what)]
        np.testing.assert_array_equal(*ranks)
        if (ranks[0] < 4).any():
            seen.add("rank")
    # Counts that say something, in most kinds.
    assert seen >= {"entries", "groups", "sparse", "mcp", "rank", "signs", "up", "down"}


@pytest.mark.parametrize("method", AVERAGING[:1], ids=lambda m: m.name)
def test_early_in_a_stage_it_is_nearer_to_w_than_late(method):
    """What's count errs on the side of W there: the threshold has not yet outgrown the metric."""
    zeros = []
    for look in (RESTART + 1, RESTART + 50):
        params, state = trained(method)[look - 1]
        zeros.append(np.sum(np.asarray(deployable(state, params)["entries"]) == 0))
    assert zeros[0] < zeros[1]


def test_zeros_are_exact_in_narrow_dtypes_and_counted_in_the_accumulators():
    rules = [("entries", rj.L1(0.1)), ("groups", rj.GroupLasso(0.3))]
    some = rj.by_path([*rules, ("rank", rj.NuclearNorm(0.15, stack_axes=0)), ("", None)])
    tx, params = rj.rmda(0.3, some, momentum=0.1), start(jnp.bfloat16)
    with jax.numpy_dtype_promotion("strict"):
        state, step = tx.init(params), jax.jit(tx.update)
        for k in range(12):
            grads = jax.grad(loss)(params, jax.random.key(k))
            updates, state = step(grads, state, params)
            params = optax.apply_updates(params, updates)
        point = deployable(state, params)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    what = minimizer(state, wide)  # not rounded
    chex.assert_trees_all_equal_dtypes(point, params)
    for name in ("entries", "groups"):
        exact = expected(name, params[name], what[name])
        np.testing.assert_array_equal(np.asarray(point[name], np.float64), exact, err_msg=name)
        assert (exact == 0).any(), name
    rounding = float(jnp.finfo(jnp.bfloat16).eps) * np.abs(wide["rank"]).max()
    ranked = expected("rank", params["rank"], what["rank"])
    np.testing.assert_allclose(point["rank"].astype(jnp.float32), ranked, atol=rounding)


def test_of_equal_groups_as_many_are_kept_as_what_has():
    params = {"kernel": jnp.ones((6, 2))}
    tx = rj.ramda(0.1, rj.GroupLasso(0.5), momentum=1e-9)
    grads = {"kernel": jnp.linspace(0.0, 3.0, 6)[:, None] * jnp.ones((6, 2))}
    updates, state = tx.update(grads, tx.init(params), params)
    params = optax.apply_updates(params, updates)  # all as good as equal
    alive = lambda tree: np.flatnonzero(np.any(np.asarray(tree["kernel"]) != 0, axis=1))
    count = len(alive(minimizer(state, params)))
    assert 0 < count < 6
    np.testing.assert_array_equal(np.unique(np.asarray(params["kernel"])), [1.0])
    np.testing.assert_array_equal(alive(deployable(state, params)), range(count))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_the_largest_are_found_exactly(dtype):
    rng = np.random.default_rng(0)
    with jax.enable_x64(dtype == "float64"):
        for shape in [(9,), (3, 5), (4, 1, 6), (), (0, 3)]:
            x = jnp.asarray(np.abs(rng.standard_normal(shape)).round(1), dtype)  # with ties
            x = jnp.where(x < 0.4, 1e-4 * x, x)
            for count in range(-1, x.size + 2):
                found = _numerics.largest(x, jnp.int32(count))
                np.testing.assert_array_equal(found, largest(np.asarray(x, np.float64), count))


def test_what_is_not_a_number_is_kept_and_seen():
    x = jnp.array([1.0, jnp.nan, jnp.inf, 0.0, -jnp.nan])
    np.testing.assert_array_equal(
        _numerics.largest(x, jnp.int32(3)), [False, True, True, False, True]
    )
    broken = {"kernel": jnp.ones((3, 2)).at[1, 1].set(jnp.nan)}
    state = rj.ramda(0.1, rj.GroupLasso(0.1)).init(broken)
    _, state = rj.ramda(0.1, rj.GroupLasso(0.1)).update(broken, state, broken)
    assert np.isnan(rj.structured_params(state, broken)["kernel"][1, 1])


def test_all_or_none_are_kept_where_what_keeps_all_or_none():
    params = start()
    for strength, kept in ((1e-9, True), (1e9, False)):
        tx = rj.ramda(0.1, rj.by_path([("groups|entries", rj.L1(strength)), ("", None)]))
        updates, state = tx.update(start(), tx.init(params), params)
        moved = optax.apply_updates(params, updates)
        point = rj.structured_params(state, moved)
        if kept:
            chex.assert_trees_all_equal(point, moved)
        else:
            assert not point["groups"].any()
            assert not point["entries"].any()


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_without_averaging_it_is_w(method):
    params = layer_params()
    full = {"momentum": 1.0} if method.averages else {}
    tx = method(rj.GroupLasso(0.1), learning_rate=0.1, **full)
    state = tx.init(params)
    chex.assert_trees_all_equal(rj.structured_params(state, params), params)  # nor before a step
    (grads,) = layer_grads(params, 1)
    updates, state = jax.jit(tx.update)(grads, state, params)
    params = optax.apply_updates(params, updates)
    assert np.any(np.asarray(params["body"]["kernel"]) == 0)
    chex.assert_trees_all_equal(deployable(state, params), params)


def test_another_regularizer_that_does_not_say_how_gives_what():
    @rj.regularizers.base.regularizer
    class Ridge(rj.Regularizer):
        def value(self, x):
            return 0.5 * jnp.sum(x * x)

        def prox(self, x, step):
            return x / (1 + step)

        def group_norms(self, x):
            return jnp.abs(x)

        def num_groups(self, shape):
            return int(np.prod(shape))

    params = {"kernel": jnp.ones((3, 2))}
    tx = rj.rmda(0.1, Ridge())
    updates, state = tx.update(params, tx.init(params), params)
    params = optax.apply_updates(params, updates)
    chex.assert_trees_all_close(rj.structured_params(state, params), minimizer(state, params))


def test_other_values_are_an_error():
    tx = layer_tx(METHODS[0])
    with pytest.raises(ValueError, match='values must be "average" or "minimizer"'):
        rj.structured_params(tx.init(layer_params()), layer_params(), values="mean")


# ---------------------------------------------------------------------------------------- wrappers


def wrapped(name, tx):
    """(transformation, steps of its own per step of `tx`)."""
    if name == "chain":
        return optax.chain(optax.identity(), tx), 1
    if name == "partition":
        return optax.partition(
            {"a": tx, "b": optax.set_to_zero()},
            {"body": {"kernel": "a", "bias": "b"}, "head": {"scale": "b"}},
        ), 1
    if name == "masked":
        return optax.masked(tx, {"body": True, "head": False}), 1
    if name == "multi_steps":
        return optax.MultiSteps(tx, 2), 2
    if name == "apply_if_finite":
        return optax.apply_if_finite(tx, 3), 1
    factory = lambda strength: rj.ramda(0.1, rj.GroupLasso(strength), momentum=0.3)
    return optax.inject_hyperparams(factory)(strength=0.1), 1


WRAPPERS = ("chain", "partition", "masked", "multi_steps", "apply_if_finite", "inject_hyperparams")


@functools.cache
def bare():
    tx, params = rj.ramda(0.1, rj.GroupLasso(0.1), momentum=0.3), layer_params()
    grads = layer_grads(params, 2)
    state, update = tx.init(params), jax.jit(tx.update)
    for grad in grads:
        updates, state = update(grad, state, params)
        params = optax.apply_updates(params, updates)
    return tx, grads, deployable(state, params)["body"]["kernel"]


@pytest.mark.parametrize("name", WRAPPERS)
def test_it_is_found_in_every_wrapper(name):
    inner, grads, wanted = bare()
    tx, times = wrapped(name, inner)
    params = layer_params()
    state, update = tx.init(params), jax.jit(tx.update)
    for grad in grads:
        for _ in range(times):
            updates, state = update(grad, state, params)
            params = optax.apply_updates(params, updates)
    point = deployable(state, params)
    chex.assert_trees_all_equal_structs(point, params)
    zero = np.asarray(point["body"]["kernel"] == 0)
    np.testing.assert_array_equal(zero, np.asarray(wanted == 0))
    assert 0 < zero.sum() < zero.size
    assert not np.any(np.asarray(params["body"]["kernel"]) == 0)
    chex.assert_trees_all_close(point["body"]["kernel"], wanted, rtol=1e-5, atol=1e-7)
    chex.assert_trees_all_equal(point["head"], params["head"])


def test_it_can_be_mapped_over_states():
    pairs = [trained(AVERAGING[0])[look - 1] for look in LOOKS]
    params, states = jax.tree.map(lambda *xs: jnp.stack(xs), *pairs)
    points = jax.jit(jax.vmap(rj.structured_params))(states, params)
    for k, (w, state) in enumerate(pairs):
        one = jax.tree.map(lambda x, k=k: x[k], points)
        chex.assert_trees_all_close(one, deployable(state, w), atol=1e-5)


# ------------------------------------------------------------------------------------------ devices


def cut(mesh, tree):
    """Every array cut along its last axis that the devices divide."""

    def put(x):
        axes = [a for a, n in enumerate(x.shape) if n % 8 == 0]
        spec = [("data" if axes and a == axes[-1] else None) for a in range(x.ndim)]
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))

    return jax.tree.map(put, tree)


CUT = {
    "along": rj.GroupLasso(0.15),
    "across": rj.GroupLasso(0.15),
    "sparse": rj.SparseGroupLasso(0.1, 0.05),
    "entries": rj.L1(0.15),
    "rank": rj.NuclearNorm(0.5),
    "gate": None,
    "down": None,
}
CUT_SHAPES = {
    "along": (16, 3),
    "across": (6, 8),
    "sparse": (4, 16),
    "entries": (16, 3),
    "rank": (8, 5),
    "gate": (3, 8),
    "down": (8, 2),
}


def cut_transformation(placement=None):
    neurons = rj.coupled({"neuron": [("gate", -1), ("down", -2)]}, rj.GroupLasso(0.7))
    rules = [(name, psi) for name, psi in CUT.items() if psi is not None]
    return rj.ramda(0.1, rj.by_path([*rules, ("", neurons)]), momentum=0.3, placement=placement)


@functools.cache
def on_one_device():
    """(params, state, point) after some steps."""
    rng = np.random.default_rng(2)
    rows = {name: np.linspace(0.02, 1, s[0])[:, None] for name, s in CUT_SHAPES.items()}
    draw = lambda: {
        name: jnp.asarray(rng.standard_normal(s) * rows[name], jnp.float32)
        for name, s in CUT_SHAPES.items()
    }
    tx, params = cut_transformation(), draw()
    state, update = tx.init(params), jax.jit(tx.update)
    for _ in range(2):
        updates, state = update(draw(), state, params)
        params = optax.apply_updates(params, updates)
    point = jax.device_get(deployable(state, params))
    for name, x in point.items():
        assert name == "rank" or 0 < np.sum(x == 0) < x.size, name
    return *jax.device_get((params, state)), point


def as_laid_out(values, like):
    """The arrays of a state in the layout, and with the static parts, of another."""
    pairs = zip(jax.tree.leaves(values), jax.tree.leaves(like), strict=True)
    laid = [jax.device_put(x, y.sharding) for x, y in pairs]
    return jax.tree.unflatten(jax.tree.structure(like), laid)


@needs_eight
@pytest.mark.parametrize("kind", ["parameters", "explicit mesh", "placement"])
def test_cut_arrays_give_the_same_point_and_stay_where_they_are(kind):
    params, state, expected = on_one_device()
    axis_type = AxisType.Explicit if kind == "explicit mesh" else AxisType.Auto
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    with jax.set_mesh(mesh):
        if kind == "placement":
            params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
            tx = cut_transformation(rj.Placement("data", mesh))
            shardings = rj.state_sharding(tx, params)
            state = as_laid_out(state, jax.jit(tx.init, out_shardings=shardings)(params))
        else:
            params, state = cut(mesh, params), cut(mesh, state)
        point = deployable(state, params)
        chex.assert_trees_all_close(jax.device_get(point), expected, atol=1e-5)
        zeros = lambda tree: jax.tree.map(lambda x: np.asarray(x) == 0, tree)
        chex.assert_trees_all_equal(zeros(point), zeros(expected))
        for name, x in point.items():
            where = params[name].sharding
            assert x.sharding.is_equivalent_to(where, x.ndim), (name, x.sharding)


@needs_eight
def test_inside_shard_map_it_is_the_same():
    params, state, expected = on_one_device()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    tx = cut_transformation(rj.Placement("data"))
    shardings = rj.state_sharding(tx, params, mesh)
    state = as_laid_out(state, jax.jit(tx.init, out_shardings=shardings)(params))
    specs, everywhere = jax.tree.map(lambda s: s.spec, shardings), PartitionSpec()
    look = jax.shard_map(
        rj.structured_params, mesh=mesh, in_specs=(specs, everywhere), out_specs=everywhere
    )
    chex.assert_trees_all_close(jax.device_get(jax.jit(look)(state, params)), expected, atol=1e-5)


# ------------------------------------------------------------------------------- into a model


def test_coupled_channels_are_cut_out_of_the_deployed_model():
    """Deployed and compacted: smaller, and the same results; the training state is as it was."""
    model = nnx.Sequential(
        nnx.Linear(4, 8, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(8, 3, rngs=nnx.Rngs(1))
    )
    x = jax.random.normal(jax.random.key(0), (16, 4))
    regularizer = rj.network(model, x[:1]).channels(rj.GroupLasso(0.3))
    optimizer = nnx.Optimizer(model, rj.ramda(0.1, regularizer, momentum=0.2), wrt=nnx.Param)
    grads = nnx.grad(lambda m: jnp.mean((m(x) - 1) ** 2))
    for _ in range(3):
        optimizer.update(model, grads(model))
    params = nnx.state(model, nnx.Param)
    kept = jax.tree.map(jnp.copy, params)
    deployed = nnx.clone(model)
    nnx.update(deployed, rj.structured_params(optimizer.opt_state, params))
    chex.assert_trees_all_equal(nnx.state(model, nnx.Param), kept)
    sparsity = rj.group_sparsity(nnx.state(deployed, nnx.Param), regularizer)
    assert 0 < sparsity < 1
    assert rj.group_sparsity(kept, regularizer) == 0
    small = rj.compact(deployed, x[:1])
    assert sum(y.size for y in jax.tree.leaves(small.params)) < sum(
        y.size for y in jax.tree.leaves(kept)
    )
    chex.assert_trees_all_close(small.apply(small.params, x), deployed(x), atol=1e-5)


def trained_on_ones(apply, params):
    """(params, state) after some steps of RAMDA on a regression."""
    tx = rj.ramda(0.1, rj.by_path([(".*", rj.L1(0.2))]), momentum=0.2)
    state = tx.init(params)
    for _ in range(3):
        grads = jax.grad(lambda p: jnp.mean((apply(p) - 1) ** 2))(params)
        updates, state = tx.update(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return params, state


def test_into_a_linen_model():
    model, x = flax.linen.Dense(3), jax.random.normal(jax.random.key(0), (5, 4))
    params = model.init(jax.random.key(1), x)["params"]
    params, state = trained_on_ones(lambda p: model.apply({"params": p}, x), params)
    point = rj.structured_params(state, params)
    assert 0 < np.sum(np.asarray(point["kernel"]) == 0) < 12
    assert not np.any(np.asarray(params["kernel"]) == 0)
    deployed = model.apply({"params": point}, x)
    np.testing.assert_allclose(deployed, x @ point["kernel"] + point["bias"], rtol=1e-5, atol=1e-6)


def test_into_an_equinox_model():
    model = eqx.nn.Linear(4, 3, key=jax.random.key(1))
    x = jax.random.normal(jax.random.key(0), (5, 4))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    apply = lambda p: jax.vmap(eqx.combine(p, static))(x)
    params, state = trained_on_ones(apply, params)
    deployed = eqx.combine(rj.structured_params(state, params), static)
    assert 0 < np.sum(np.asarray(deployed.weight) == 0) < 12
    assert not np.any(np.asarray(params.weight) == 0)
    expected = x @ deployed.weight.T + deployed.bias
    np.testing.assert_allclose(jax.vmap(deployed)(x), expected, rtol=1e-5, atol=1e-6)
