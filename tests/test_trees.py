"""Trees of arrays: what fits together, what a leaf may be, and that every dtype is said aloud."""

import collections
import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.linen import meta
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import ramda_jax as rj
from ramda_jax import backends, trees
from ramda_jax.backends import cpu

pytestmark = pytest.mark.unoptimized

LASSO = rj.GroupLasso(0.1)
METHODS = {
    "ramda": functools.partial(rj.ramda, 0.1),
    "rmda": functools.partial(rj.rmda, 0.1),
    "prox_sgd": functools.partial(rj.prox_sgd, 0.1),
    "prox_adamw": functools.partial(rj.prox_adamw, 0.1),
    "prox_ssi": functools.partial(rj.prox_ssi, 0.1),
}


def message_of(build):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (every test reads the message)
        build()
    return str(caught.value)


# Gradients that are not those of the parameters.

KERNEL, BIAS = jnp.ones((4, 3)), jnp.ones(3)
PARAMS = {"one": {"kernel": KERNEL, "bias": BIAS}, "two": {"kernel": KERNEL}}
Ordered = collections.OrderedDict


@pytest.mark.parametrize(
    ("params", "grads", "words"),
    [
        (PARAMS, {"one": {"kernel": KERNEL, "bias": BIAS}}, ["'two/kernel'", "1 missing"]),
        (PARAMS, {"one": {"kernel": KERNEL}}, ["'one/bias'", "2 missing"]),
        (PARAMS, {**PARAMS, "three": {"kernel": KERNEL}}, ["'three/kernel'", "not expected"]),
        (PARAMS, {"one": PARAMS["one"], "too": PARAMS["two"]}, ["'two/kernel'"]),
        (PARAMS, {"one": {"kernel": None, "bias": BIAS}, "two": PARAMS["two"]}, ["'one/kernel'"]),
        (
            PARAMS,
            {"one": {"kernel": KERNEL.T, "bias": BIAS}, "two": PARAMS["two"]},
            ["'one/kernel'", "(3, 4)", "(4, 3)"],
        ),
        (PARAMS, {"one": {"kernel": KERNEL, "bias": jnp.ones(())}, "two": PARAMS["two"]}, ["'one/bias'", "()", "(3,)"]),
        (
            Ordered(first=KERNEL, second=2 * KERNEL),
            Ordered(second=KERNEL, first=KERNEL),
            ["'second'", "'first'", "order"],
        ),
        ({"a": KERNEL, "b": KERNEL}, Ordered(b=KERNEL, a=KERNEL), ["'b'", "'a'", "order"]),
        ({"a": KERNEL, "b": KERNEL}, Ordered(a=KERNEL, b=KERNEL), ["container"]),
        ([KERNEL, KERNEL], (KERNEL, KERNEL), ["container"]),
        ({"a": [KERNEL, KERNEL]}, {"a": [KERNEL]}, ["'a/1'"]),
        (KERNEL, [KERNEL], ["''"]),
    ],
)  # fmt: skip
def test_gradients_of_another_tree_name_the_first_difference(params, grads, words):
    for tx in (rj.ramda(0.1, None), rj.prox_sgd(0.1, rj.by_path([(".*", rj.L1(0.1))]))):
        state = tx.init(params)
        message = message_of(lambda tx=tx, state=state: tx.update(grads, state, params))
        assert "gradients" in message
        for word in words:
            assert word in message, message


def test_parameters_of_another_tree_than_the_state_name_the_first_difference():
    tx = rj.ramda(0.1, None)
    state = tx.init(Ordered(first=KERNEL, second=2 * KERNEL))
    other = Ordered(second=2 * KERNEL, first=KERNEL)
    message = message_of(lambda: tx.update(other, state, other))
    for word in ("the state", "'first'", "'second'", "order"):
        assert word in message, message


@pytest.mark.parametrize(
    ("params", "grads"),
    [
        (PARAMS, {"two": PARAMS["two"], "one": {"bias": BIAS, "kernel": KERNEL}}),  # dicts are sorted
        ({"a": KERNEL, "b": None}, {"a": KERNEL, "b": None}),
        ({"a": KERNEL, "b": {}}, {"a": KERNEL, "b": {}}),
    ],
)  # fmt: skip
def test_trees_that_are_the_same_are_taken(params, grads):
    tx = rj.ramda(0.1, None)
    updates, _ = tx.update(grads, tx.init(params), params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)


# Wrappers are what Flax says they are.


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Attention:
    query: jax.Array
    key: jax.Array
    value: jax.Array
    scale: jax.Array


def test_a_field_called_value_is_in_its_path():
    params = {"attention": Attention(KERNEL, KERNEL, KERNEL, BIAS)}
    rules = rj.by_path([(r"attention/(query|key|value)$", LASSO), (".*", None)])
    assert rules.assign(params)["attention"] == Attention(LASSO, LASSO, LASSO, None)
    assert trees.flatten(params)[0] == [
        f"attention/{name}" for name in ("query", "key", "value", "scale")
    ]
    tx = rj.ramda(0.1, rules)
    _, state = tx.update(params, tx.init(params), params)
    assert {f"residual/attention/{name}" for name in ("query", "key", "value")} <= set(
        rj.solver_stats(state)
    )


class _Module(nnx.Module):
    def __init__(self):
        self.value = nnx.Param(KERNEL)
        self.inner = nnx.Linear(4, 3, rngs=nnx.Rngs(0))


def test_variables_of_nnx_and_boxes_of_linen_leave_no_trace():
    nnx_params = nnx.state(_Module(), nnx.Param)
    assert trees.flatten(nnx_params)[0] == ["inner/bias", "inner/kernel", "value"]
    boxed = {
        "Dense_0": {
            "kernel": meta.Partitioned(KERNEL, ("in", "out")),
            "value": meta.Partitioned(KERNEL, (None, None)),
        }
    }
    assert trees.flatten(boxed)[0] == ["Dense_0/kernel", "Dense_0/value"]
    for params, name in ((nnx_params, "inner/kernel"), (boxed, "Dense_0/kernel")):
        tx = rj.ramda(0.1, rj.by_path([("kernel$", LASSO), (".*", None)]))
        updates, state = tx.update(params, tx.init(params), params)
        assert jax.tree.structure(updates) == jax.tree.structure(params)
        assert f"residual/{name}" in rj.solver_stats(state)
        assert f"{name}/zero_groups" in rj.summary(params, LASSO)
        structured = rj.structured_params(state, params, values="minimizer")
        assert jax.tree.structure(structured) == jax.tree.structure(params)


def test_gradients_may_be_bare_where_parameters_are_wrapped():
    params = {"kernel": meta.Partitioned(KERNEL, (None, None)), "bias": BIAS}
    grads = {"kernel": KERNEL, "bias": BIAS}
    tx = rj.prox_sgd(0.1, LASSO)
    updates, _ = tx.update(grads, tx.init(params), params)
    expected, _ = tx.update(grads, tx.init(grads), grads)
    for x, y in zip(jax.tree.leaves(updates), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(x, y)


@jax.tree_util.register_pytree_with_keys_class
class Mimic:
    """A layer of the user with attributes that wrappers of Flax have, too."""

    def __init__(self, kernel, value):
        self.kernel, self.value = kernel, value

    def get_value(self):
        raise AssertionError("not called")

    unbox = replace_boxed = get_metadata = add_axis = remove_axis = get_value

    def tree_flatten_with_keys(self):
        names = ("kernel", "value")
        return [(jax.tree_util.GetAttrKey(name), getattr(self, name)) for name in names], None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


def test_what_only_looks_like_a_wrapper_is_none():
    params = {"layer": Mimic(KERNEL, 2 * KERNEL)}
    assert not trees.is_wrapper(params["layer"])
    assert trees.flatten(params)[0] == ["layer/kernel", "layer/value"]
    tx = rj.ramda(0.1, rj.by_path([("value$", LASSO), (".*", None)]))
    updates, state = tx.update(params, tx.init(params), params)
    assert isinstance(updates["layer"], Mimic)
    assert isinstance(rj.structured_params(state, params, values="minimizer")["layer"], Mimic)


# What a leaf may be.


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Model:
    """As a whole module of Equinox: arrays, and what is none, in one tree."""

    weight: jax.Array
    activation: object


BAD = {
    "complex": (KERNEL.astype(jnp.complex64), ["complex", "real and imaginary"]),
    "integers": (jnp.arange(3), ["int32"]),
    "booleans": (jnp.ones(3, bool), ["bool"]),
    "an integer of NumPy": (np.int64(3), ["int64"]),
    "keys": (jax.random.key(0), ["key"]),
    "old keys": (jax.random.PRNGKey(0), ["uint32"]),
    "a function": (jax.nn.relu, ["equinox.filter"]),
    "a text": ("relu", ["str"]),
    "a bool": (True, ["bool"]),
}


@pytest.mark.parametrize("name", BAD)
def test_leaves_that_cannot_be_trained_are_named(name):
    leaf, words = BAD[name]
    bad, good = {"layer": [KERNEL, leaf]}, {"layer": [KERNEL, KERNEL]}
    tx = rj.ramda(0.1, None)
    for build in (
        lambda: tx.init(bad),
        lambda: tx.update(good, tx.init(good), bad),
        lambda: tx.update(bad, tx.init(good), good),
    ):
        message = message_of(build)
        for word in ("'layer/1'", *words):
            assert word in message, message


def test_a_whole_module_is_refused_naming_what_is_no_array():
    model = Model(KERNEL, jax.nn.relu)
    for regularizer in (None, rj.by_path([("weight", LASSO), (".*", None)])):
        tx = rj.ramda(0.1, regularizer)
        message = message_of(lambda tx=tx: tx.init(model))
        assert "'activation'" in message
        assert "equinox.filter" in message
    arrays = Model(KERNEL, None)  # as equinox.filter leaves it
    tx = rj.ramda(0.1, rj.by_path([("weight", LASSO)]))
    tx.update(arrays, tx.init(arrays), arrays)


@pytest.mark.parametrize("method", METHODS)
def test_numbers_of_python_are_parameters(method):
    tx = METHODS[method](rj.by_path([("scale", rj.L1(0.1)), (".*", None)]))
    params, grads = (
        {"kernel": KERNEL, "scale": 2.0, "shift": 1},
        {"kernel": KERNEL, "scale": 0.5, "shift": 0.5},
    )
    arrays = lambda tree: jax.tree.map(jnp.float32, tree)
    updates, state = tx.update(grads, tx.init(params), params)
    expected, same = tx.update(arrays(grads), tx.init(arrays(params)), arrays(params))
    for x, y in zip(
        jax.tree.leaves((updates, state)), jax.tree.leaves((expected, same)), strict=True
    ):
        np.testing.assert_array_equal(x, y)
    assert updates["scale"] != 0
    structured = rj.structured_params(
        state, optax.apply_updates(params, updates), values="minimizer"
    )
    assert np.isfinite(structured["scale"])


# Dtypes.

MLP = {"neuron": [("{m}/up/kernel", -1), ("{m}/down/kernel", -2)]}
REGULARIZERS = {
    "None": None,
    "L1": rj.L1(0.05),
    "group lasso": rj.GroupLasso(0.05),
    "group MCP": rj.GroupMCP(0.05, 5.0),
    "nuclear norm": rj.NuclearNorm(0.1),
    "coupled": rj.coupled(MLP, rj.SparseGroupLasso(0.02, 0.05)),
}


def draw(seed, dtype):
    rng = np.random.default_rng(seed)
    fade = np.linspace(0, 1, 8) ** 2
    array = lambda *shape: rng.standard_normal(shape)
    tree = {
        "mlp": {
            "up": {"kernel": array(3, 8) * fade, "bias": array(8)},
            "down": {"kernel": array(8, 5) * fade[:, None]},
        }
    }
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)


KINDS = {
    "float32": (jnp.float32, False),
    "bfloat16": (jnp.bfloat16, False),
    "float16": (jnp.float16, False),
    "float8": (jnp.float8_e4m3fn, False),
    "float32 in x64": (jnp.float32, True),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", REGULARIZERS)
def test_everything_works_under_strict_promotion(name, kind):
    dtype, double = KINDS[kind]
    psi = REGULARIZERS[name]

    def look(params, grads):
        """Every method, and all that is read of parameters and states."""
        found = []
        for method in METHODS.values():
            tx = method(psi)
            updates, state = tx.update(grads, tx.init(params), params)
            new = optax.apply_updates(params, updates)
            updates, state = tx.update(grads, state, new)
            found.append(
                (
                    updates,
                    rj.structured_params(state, new, values="minimizer"),
                    rj.solver_stats(state),
                )
            )
        return found, rj.summary(params, psi), rj.objective(jnp.zeros([], dtype), params, psi)

    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.enable_x64(double))
        params, grads = draw(0, dtype), draw(1, dtype)
        stack.enter_context(jax.numpy_dtype_promotion("strict"))
        found, _, _ = jax.eval_shape(look, params, grads)
    for updates, structured, _ in found:
        for tree in (updates, structured):
            assert {x.dtype for x in jax.tree.leaves(tree)} == {jnp.dtype(dtype)}


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
@pytest.mark.parametrize("method", ["ramda", "prox_sgd"])
def test_every_backend_says_its_dtypes(method, platform):
    rules = [
        ("mlp", REGULARIZERS["coupled"]),
        ("lasso", rj.GroupLasso(0.1)),
        ("mcp", rj.GroupMCP(0.1, 3.0)),
        ("l1", rj.L1(0.1)),
        (".*", None),
    ]
    tx = METHODS[method](rj.by_path(rules))
    kernel = jax.ShapeDtypeStruct((64, 128), jnp.bfloat16)
    params = {**draw(0, jnp.bfloat16), **dict.fromkeys(("l1", "lasso", "mcp", "free"), kernel)}
    table = {**backends.TABLE, "cpu": cpu.tiled((300, 60))}
    with jax.numpy_dtype_promotion("strict"), backends.injected(table):
        state = jax.eval_shape(tx.init, params)
        traced = jax.jit(tx.update).trace(params, state, params)
        text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("tpu_custom_call" in text) == (platform == "tpu")


@pytest.mark.parametrize("name", ["L1", "group lasso", "nuclear norm", "coupled"])
def test_steps_on_a_mesh_say_their_dtypes(name):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    specs = {"mlp": {"up": {"kernel": P(None, "model"), "bias": P()}, "down": {"kernel": P()}}}
    placement = rj.Placement("data", mesh, specs)
    params = draw(0, jnp.bfloat16)
    for method in ("ramda", "prox_sgd"):
        tx = METHODS[method](REGULARIZERS[name], placement=placement)
        with jax.numpy_dtype_promotion("strict"):
            state = jax.eval_shape(tx.init, params)
            updates, after = jax.eval_shape(tx.update, params, state, params)
            jax.eval_shape(rj.structured_params, after, params)
        assert {x.dtype for x in jax.tree.leaves(updates)} == {jnp.dtype(jnp.bfloat16)}
        same = jax.tree.map(lambda x, y: x.dtype == y.dtype, state, after)
        assert all(jax.tree.leaves(same))


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_strict_promotion_changes_no_number(kind):
    dtype, _ = KINDS[kind]
    psi = rj.by_path(
        [
            ("up/kernel", rj.GroupLasso(0.05)),
            ("down/kernel", rj.NuclearNorm(0.1)),
            (".*", rj.L1(0.05)),
        ]
    )
    tx = rj.ramda(0.1, psi, momentum=optax.constant_schedule(0.1), restart_steps=(1,))
    params, grads = draw(0, dtype), draw(1, dtype)
    results = []
    for mode in ("strict", "standard"):
        with jax.numpy_dtype_promotion(mode):
            updates, state = tx.update(grads, tx.init(params), params)
            updates, state = tx.update(grads, state, params)
            stats, summary = rj.solver_stats(state), rj.summary(params, psi)
            measures = rj.group_sparsity(params, psi), rj.low_rank_level(params, psi)
            results.append(
                (
                    updates,
                    rj.structured_params(state, params, values="minimizer"),
                    stats,
                    summary,
                    measures,
                )
            )
    for x, y in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(
    ("method", "name"),
    [
        *((method, "group lasso") for method in METHODS),
        ("ramda", "group MCP"),
        ("ramda", "coupled"),
    ],
)
def test_parameters_in_eight_bits_take_group_norms_and_their_zeros(method, name):
    dtype = jnp.float8_e4m3fn
    make = functools.partial(METHODS[method], REGULARIZERS[name])
    params, grads = draw(0, dtype), draw(1, dtype)

    @jax.jit
    def run(params, grads):
        tx = make()
        updates, state = tx.update(grads, tx.init(params), params)
        return updates, rj.structured_params(state, params, values="minimizer"), state.method

    updates, structured, accumulators = run(params, grads)
    assert {x.dtype for x in jax.tree.leaves((updates, structured))} == {jnp.dtype(dtype)}
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(accumulators) if x.ndim)
    wide = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float32), tree)
    exact, exact_structured, _ = run(wide(params), wide(grads))
    for x, y in zip(jax.tree.leaves(updates), jax.tree.leaves(exact), strict=True):
        np.testing.assert_array_equal(x, y.astype(dtype))
    up = lambda tree: np.asarray(wide(tree)["mlp"]["up"]["kernel"])
    dead = np.all(up(exact_structured) == 0, axis=0)
    if method in ("ramda", "rmda"):
        np.testing.assert_array_equal(up(structured), up(exact_structured).astype(dtype))
    else:  # the training iterate is the structured one
        dead = np.all(up(params) + up(exact) == 0, axis=0)
        np.testing.assert_array_equal((up(params) + up(updates))[:, dead], 0)
    assert 0 < dead.sum() < dead.size
