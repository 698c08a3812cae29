"""Eight devices do what one does, each with a share of the state: data parallel three ways, cut parameters, wrappers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import ramda_jax as rj
from ramda_jax import state as states
from ramda_jax.sharding import placement
from tests.sharding.meshes import DEVICES, auto_mesh, cut_as, is_laid

pytestmark = pytest.mark.unoptimized

EXAMPLES, STEPS = 16, 20
# What divides by eight along its groups, what does not, what is cut at the input of a convolution.
SHAPES = {
    "dense": {"kernel": (16, 12), "bias": (12,)},
    "conv": {"kernel": (2, 2, 8, 8)},
    "odd": {"kernel": (7, 5)},
}
METHODS = {
    "ramda": functools.partial(rj.ramda, 0.1, restart_steps=(12,)),
    "rmda": functools.partial(rj.rmda, 0.1, restart_steps=(12,)),
    "prox_sgd": functools.partial(rj.prox_sgd, 0.1),
    "prox_adamw": functools.partial(rj.prox_adamw, 0.1, weight_decay=0.1),
    "prox_ssi": functools.partial(rj.prox_ssi, 0.1, weight_decay=0.1),
}
STRUCTURES = {"groups": rj.GroupLasso(0.05), "rank": rj.NuclearNorm(0.2)}


def drawn(seed, lead=()):
    rng = np.random.default_rng(seed)
    draw = lambda shape: 0.3 * rng.standard_normal((*lead, *shape))
    return jax.tree.map(draw, SHAPES, is_leaf=lambda s: isinstance(s, tuple))


def normal(seed, dtype=jnp.float64):
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), drawn(seed))


def batches_of(number, dtype=jnp.float64):
    """Examples around a mean of which some groups, and some directions, are small and the others are not."""
    fade = lambda x: x * np.linspace(1, 0, x.shape[-2])[:, None] ** 2 if x.ndim > 1 else x
    mean = jax.tree.map(fade, drawn(0))
    noisy = lambda m, n: jnp.asarray(2 * m + 0.3 * n, dtype)
    return [
        jax.tree.map(noisy, mean, drawn(seed, lead=(EXAMPLES,))) for seed in range(1, 1 + number)
    ]


def loss(params, batch):
    """The mean over examples of a quadratic of their own."""
    each = jax.tree.map(lambda p, t: jnp.sum((p - t) ** 2 * (1 + t**2)), params, batch)
    return sum(jax.tree.leaves(each)) / len(jax.tree.leaves(batch)[0])


def step_of(tx, average=lambda params, batch: jax.grad(loss)(params, batch)):
    """A training step; `average`: how the gradient over all devices' examples is made."""

    def step(params, state, batch):
        grads = average(params, batch)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def average_in_shard_map(params, batch):
    """The gradient of the mean of all devices' losses: parameters are the same on all, and JAX knows it."""
    return jax.grad(lambda p: jax.lax.pmean(loss(p, batch), "data"))(params)


def average_in_pmap(params, batch):
    """The mean of the devices' gradients: each device's parameters are its own."""
    return jax.lax.pmean(jax.grad(loss)(params, batch), "data")


def train(step, params, state, batches):
    for batch in batches:
        params, state = step(params, state, batch)
    return params, state


def on_one_device(make, params, batches):
    tx = make()
    params, state = train(jax.jit(step_of(tx)), params, tx.init(params), batches)
    return params, rj.structured_params(state, params, values="minimizer"), rj.solver_stats(state)


def by_jit(make, params, batches):
    mesh = auto_mesh()
    tx = make(placement=rj.Placement("data", mesh))
    whole, rows = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    params = jax.device_put(params, whole)
    state = jax.jit(tx.init, out_shardings=rj.state_sharding(tx, params))(params)
    batches = [jax.device_put(batch, rows) for batch in batches]
    params, state = train(jax.jit(step_of(tx)), params, state, batches)
    return (
        params,
        rj.structured_params(state, params, values="minimizer"),
        rj.solver_stats(state),
        replicas(params),
    )


def by_shard_map(make, params, batches):
    mesh = auto_mesh()
    tx = make(placement=rj.Placement("data"))
    shardings = rj.state_sharding(tx, params, mesh)
    specs = jax.tree.map(lambda s: s.spec, shardings)
    state = jax.jit(tx.init, out_shardings=shardings)(params)
    step = jax.shard_map(
        step_of(tx, average_in_shard_map),
        mesh=mesh,
        in_specs=(P(), specs, P("data")),
        out_specs=(P(), specs),
    )
    params, state = train(jax.jit(step), params, state, batches)
    return (
        params,
        rj.structured_params(state, params, values="minimizer"),
        rj.solver_stats(state),
        replicas(params),
    )


def by_pmap(make, params, batches):
    tx = make(placement=rj.Placement("data"))
    params = jax.tree.map(lambda x: jnp.stack([x] * DEVICES), params)
    cut = lambda x: x.reshape(DEVICES, EXAMPLES // DEVICES, *x.shape[1:])
    batches = [jax.tree.map(cut, batch) for batch in batches]
    state = jax.pmap(tx.init, axis_name="data")(params)
    step = jax.pmap(step_of(tx, average_in_pmap), axis_name="data")
    params, state = train(step, params, state, batches)
    structured = jax.pmap(
        functools.partial(rj.structured_params, values="minimizer"), axis_name="data"
    )(state, params)
    stats = {name: value[0] for name, value in rj.solver_stats(state).items()}
    first = lambda tree: jax.tree.map(lambda x: x[0], tree)
    copies = [np.asarray(x) for x in jax.tree.leaves(params)]
    return first(params), first(structured), stats, copies


def replicas(params):
    """Each array as every device has it."""
    return [np.stack([s.data for s in x.addressable_shards]) for x in jax.tree.leaves(params)]


WAYS = {"jit": by_jit, "shard_map": by_shard_map, "pmap": by_pmap}


def assert_close(tree, expected, rtol):
    for x, y in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        np.testing.assert_allclose(x, y, rtol=0, atol=rtol * np.abs(y).max())
        np.testing.assert_array_equal(x == 0, y == 0)


# Each method goes each way, and each structure; each structure goes each way.
TRIALS = [
    ("ramda", "groups", ("jit", "shard_map", "pmap")),
    ("ramda", "rank", ("shard_map",)),
    ("rmda", "groups", ("shard_map",)),
    ("rmda", "rank", ("jit", "pmap")),
    ("prox_sgd", "groups", ("jit", "pmap")),
    ("prox_sgd", "rank", ("shard_map",)),
    ("prox_adamw", "groups", ("jit", "shard_map")),
    ("prox_adamw", "rank", ("pmap",)),
    ("prox_ssi", "groups", ("shard_map", "pmap")),
    ("prox_ssi", "rank", ("jit",)),
]


@pytest.mark.parametrize(
    ("method", "structure", "ways"), TRIALS, ids=lambda v: v if isinstance(v, str) else "+".join(v)
)
def test_eight_devices_train_as_one_does(method, structure, ways):
    psi = STRUCTURES[structure]
    make = functools.partial(METHODS[method], regularizer=psi)
    with jax.enable_x64(True):
        params, batches = normal(0), batches_of(STEPS)
        if structure == "rank":  # a matrix that is cut and one that is not are enough
            params, *batches = [{k: t[k] for k in ("dense", "odd")} for t in (params, *batches)]
        one, structured, stats = on_one_device(make, params, batches)
        measure = rj.group_sparsity if structure == "groups" else rj.low_rank_level
        assert 0 < measure(structured, psi) < 1  # the structure is not trivial
        for way in ways:
            params_there, structured_there, stats_there, copies = WAYS[way](make, params, batches)
            assert_close(params_there, one, 1e-10)
            assert_close(structured_there, structured, 1e-10)
            assert set(stats_there) == set(stats), way
            assert stats_there["iterations"] == stats["iterations"], way
            np.testing.assert_allclose(stats_there["residual"], stats["residual"], atol=1e-12)
            for x in copies:
                np.testing.assert_array_equal(x, x[:1].repeat(len(x), 0))


def narrow(single, half):
    """Arrays of both narrow types in one tree, so that one program takes steps on both."""
    return {
        "float32": {k: single[k] for k in ("dense", "odd")},
        "bfloat16": {k: half[k] for k in ("dense", "conv")},
    }


def narrow_problem():
    """(what makes the transformation, parameters, batches)."""
    types = (jnp.float32, jnp.bfloat16)
    make = functools.partial(rj.ramda, 0.1, rj.GroupLasso(0.1))
    batches = map(narrow, *(batches_of(6, dtype) for dtype in types))
    return make, narrow(*(normal(0, dtype) for dtype in types)), list(batches)


@functools.cache
def narrow_on_one_device():
    return on_one_device(*narrow_problem())


@pytest.mark.parametrize("way", WAYS)
def test_narrow_types_agree_to_rounding(way):
    # The means over examples are summed in another order, which moves a gradient by some eps of its terms; the solve
    # is a contraction of that. bfloat16 gradients round at 2^-8, and the accumulators, in float32, average it out.
    one, structured, _ = narrow_on_one_device()
    there, structured_there, _, _ = WAYS[way](*narrow_problem())
    for tree, expected in ((there, one), (structured_there, structured)):
        for dtype, rtol in (("float32", 1e-5), ("bfloat16", 4e-2)):
            both = zip(jax.tree.leaves(tree[dtype]), jax.tree.leaves(expected[dtype]), strict=True)
            for x, y in both:
                assert x.dtype == y.dtype == dtype
                x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
                np.testing.assert_allclose(x, y, rtol=0, atol=rtol * np.abs(y).max())


# Parameters that are cut themselves: across groups over "model", along them over "data", or not at all.
SPECS = {
    "dense": {"kernel": P(None, "model"), "bias": P("model")},
    "conv": {"kernel": P(None, None, "model", "data")},
    "odd": {"kernel": P()},
}
CUT = {
    "group lasso": (rj.GroupLasso(0.1), None),
    "sparse group lasso": (rj.SparseGroupLasso(0.05, 0.1), None),
    "group MCP": (rj.GroupMCP(0.1, 30.0), None),
    "L1": (rj.L1(0.1), None),
    "nuclear norm": (rj.NuclearNorm(0.4), None),
    "a solver of whole arrays": (
        rj.GroupLasso(0.1),
        rj.ProximalGradient(50, rtol=None, tolerance=1e-9),
    ),
}


AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit
# Both kinds of mesh for the two kinds of solve, of entries and of whole matrices; one for what the others add.
CUT_ON = [
    ("group lasso", AUTO),
    ("group lasso", EXPLICIT),
    ("sparse group lasso", AUTO),
    ("group MCP", EXPLICIT),
    ("L1", AUTO),
    ("L1", EXPLICIT),
    ("nuclear norm", AUTO),
    ("nuclear norm", EXPLICIT),
    ("a solver of whole arrays", AUTO),
]


def cut_problem(case):
    """(what makes the transformation, parameters, gradients)."""
    psi, solver = CUT[case]
    make = functools.partial(rj.ramda, 0.1, psi, solver=solver, restart_steps=(3,))
    params = normal(0)
    slope = jax.jit(jax.grad(loss))
    return make, params, [slope(params, batch) for batch in batches_of(5)]


@functools.cache
def uncut(case):
    """(parameters, structured parameters, statistics) on one device."""
    make, params, grads = cut_problem(case)
    tx = make()
    params, state = train_on(tx, params, tx.init(params), grads)
    return params, rj.structured_params(state, params, values="minimizer"), rj.solver_stats(state)


@pytest.mark.parametrize(("case", "kind"), CUT_ON, ids=str)
def test_cut_parameters_give_the_same_and_everything_keeps_its_sharding(case, kind):
    with jax.enable_x64(True):
        make, params, grads = cut_problem(case)
        one, structured, stats = uncut(case)
        mesh = auto_mesh((4, 2), ("data", "model"), kind)
        with jax.set_mesh(mesh):
            # An explicit mesh knows how parameters are cut.
            specs = None if kind == AxisType.Explicit else SPECS
            tx = make(placement=rj.Placement("data", mesh, specs))
            put = lambda tree: jax.tree.map(
                lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)), tree, SPECS
            )
            params = put(params)
            shardings = rj.state_sharding(tx, params)
            state = jax.jit(tx.init)(params)
            assert is_laid(state.method, shardings.method)
            there, state = train_on(tx, params, state, [put(g) for g in grads])
            assert is_laid(state, shardings)
            assert is_laid(there, jax.tree.map(lambda x: x.sharding, params))
            assert_close(there, one, 1e-10)
            assert_close(rj.structured_params(state, there, values="minimizer"), structured, 1e-10)
            stats_there = rj.solver_stats(state)
        assert stats_there["iterations"] == stats["iterations"]
        np.testing.assert_allclose(
            stats_there["residual"], stats["residual"], rtol=1e-3, atol=1e-12
        )
        assert cut_as(state.method.grad_sum["dense"]["kernel"]) == P("data", "model")


def step_given(tx):
    """A step for gradients."""

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def train_on(tx, params, state, grads):
    return train(jax.jit(step_given(tx)), params, state, grads)


def test_large_arrays_that_do_not_divide_are_cut_across_their_groups():
    columns = 8 * (placement.LARGE // 56 + 1)
    psi = rj.GroupLasso(0.05)
    params = {"kernel": jnp.ones((7, columns)), "other": {"kernel": jnp.ones((3, 5))}}
    slope = np.linspace(-1, 1, 7 * columns, dtype=np.float32).reshape(7, columns)
    grads = {"kernel": jnp.asarray(slope), "other": {"kernel": jnp.ones((3, 5))}}
    tx = rj.ramda(0.1, psi)
    expected, _ = train_on(tx, params, tx.init(params), [grads] * 3)
    tx = rj.ramda(0.1, psi, placement=rj.Placement("data", auto_mesh()))
    found, state = train_on(tx, params, tx.init(params), [grads] * 3)
    assert cut_as(state.method.anchor["kernel"]) == P(None, "data")
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5)


def some(tree):
    return {k: tree[k] for k in ("dense", "odd")}


@functools.cache
def plain_step():
    """What one device does, compiled once: (parameters, state, gradients) -> (parameters, state)."""
    tx = rj.ramda(0.1, rj.GroupLasso(0.1))
    return tx, jax.jit(step_given(tx))


def assert_near(found, expected):
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)


def clipped(grads, norm=0.5):
    whole = np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(grads)))
    assert whole > norm
    return jax.tree.map(lambda x: x * (norm / whole), grads)


@pytest.mark.parametrize(
    ("wrap", "meant"),
    [
        (lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(), lambda g: [g]),
        (lambda tx: optax.apply_if_finite(tx, 3), lambda g: [g] * 2),
        (
            lambda tx: optax.chain(optax.clip_by_global_norm(0.5), tx),
            lambda g: [clipped(g)] * 2,
        ),
    ],
    ids=["MultiSteps", "apply_if_finite", "chain"],
)
def test_wrapped_transformations_are_spread_as_well(wrap, meant):
    """`meant`: the gradients of the bare transformation that two of the wrapped one come to."""
    params, grads = some(normal(0, jnp.float32)), some(normal(1, jnp.float32))
    plain, step = plain_step()
    expected, _ = train(step, params, plain.init(params), meant(grads))
    tx = wrap(rj.ramda(0.1, rj.GroupLasso(0.1), placement=rj.Placement("data", auto_mesh())))
    found, state = train_on(tx, params, tx.init(params), [grads] * 2)
    assert_near(found, expected)
    (mine,) = states.find_states(state)
    assert cut_as(mine.method.anchor["dense"]["kernel"]) == P("data")


def test_a_placement_can_be_injected():
    mesh = auto_mesh()
    tx = optax.inject_hyperparams(rj.ramda)(
        learning_rate=0.1, regularizer=rj.GroupLasso(0.1), placement=rj.Placement("data", mesh)
    )
    params = some(normal(0, jnp.float32))
    found, _ = train_on(tx, params, tx.init(params), [params])
    plain, step = plain_step()
    assert_near(found, step(params, plain.init(params), params)[0])


def test_a_gradient_that_is_not_finite_shows_in_the_residual_on_all_devices():
    tx = rj.ramda(0.1, rj.GroupLasso(0.1), placement=rj.Placement("data", auto_mesh()))
    params, grads = some(normal(0, jnp.float32)), some(normal(1, jnp.float32))
    grads["dense"]["kernel"] = grads["dense"]["kernel"].at[3, 2].set(jnp.nan)
    there, state = train_on(tx, params, tx.init(params), [grads])
    assert np.isnan(rj.solver_stats(state)["residual/dense/kernel"])
    assert np.isnan(there["dense"]["kernel"][3]).any()
    assert np.isfinite(there["dense"]["kernel"][:3]).all()
