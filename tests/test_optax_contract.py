"""Every method passes what optax asks of its own, and works in the wrappers of optax and flax.

The claims are those optax.contrib checks for each of its optimizers (written anew here), for all
five methods, without a regularizer and with one. `methods.py` is the registry.
"""

import copy
import functools
import logging
import pickle
from collections.abc import Callable
from typing import Any

import chex
import flax.linen
import flax.serialization
import flax.training.train_state
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import ramda_jax as rj
from tests.methods import (
    DEAD,
    EITHER_METRIC,
    LAYER_RATE,
    LAYER_STRENGTH,
    METHODS,
    REGULARIZERS,
    VARIANTS,
    Method,
    kernels_only,
    layer_grads,
    layer_params,
    layer_tx,
    make_step,
    method_id,
    minimizer,
    needs_eight,
    run,
    two_layer_params,
    with_structure,
    without,
)

pytestmark = pytest.mark.unoptimized

Tree = Any

every_method = pytest.mark.parametrize("method", METHODS, ids=method_id)
OTHERS = tuple(method for method in METHODS if method not in EITHER_METRIC)
either_metric = pytest.mark.parametrize("method", EITHER_METRIC, ids=method_id)
every_method_and_variant = pytest.mark.parametrize("method", METHODS + VARIANTS, ids=method_id)
every_regularizer = pytest.mark.parametrize("regularizer", REGULARIZERS, ids=lambda r: r.__name__)


def with_structure_or_without(methods: tuple[Method, ...]) -> pytest.MarkDecorator:
    """All methods with a structure; without one, a method of each kind of metric: what is compiled is little."""
    pairs = [(method, with_structure) for method in methods]
    pairs += [(method, without) for method in EITHER_METRIC]
    return pytest.mark.parametrize(
        ("method", "regularizer"),
        pairs,
        ids=lambda v: method_id(v) if isinstance(v, Method) else v.__name__,
    )


STEPS = 3
adam_oracle = optax.adam(1e-2)


@functools.cache
def bare(method: Method) -> tuple[Any, Tree, list[Tree], Tree, Tree]:
    """(tx, params, grads, params and state after STEPS steps), regularizing kernels only."""
    tx, params = layer_tx(method, kernels_only), layer_params()
    grads = layer_grads(params, STEPS)
    return tx, params, grads, *run(tx, params, grads)


# ------------------------------------------------------------------------------- calling convention


@with_structure_or_without(METHODS)
def test_unexpected_extra_arguments_are_accepted_change_nothing_and_do_not_recompile(
    method: Method, regularizer: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    tx, params = layer_tx(method, regularizer), layer_params()
    grads = layer_grads(params, 2)
    expected = run(tx, params, grads)

    @jax.jit
    def step(params: Tree, state: Tree, grad: Tree, extra: jax.Array) -> tuple[Tree, Tree]:
        updates, state = tx.update(grad, state, params, nobody_expects_this=extra)
        return optax.apply_updates(params, updates), state

    state, compilations = tx.init(params), []
    for grad in grads:
        caplog.clear()
        with jax.log_compiles(), caplog.at_level(logging.WARNING):
            params, state = step(params, state, grad, jnp.ones(3))
        compilations.append(sum("Finished XLA compilation" in text for text in caplog.messages))
    chex.assert_trees_all_equal((params, state), expected)
    assert compilations[0] >= 1, "the log shows no compilation at all: the check has gone blind"
    assert compilations[1] == 0


@every_method_and_variant
@every_regularizer
def test_map_params_with_the_identity_changes_nothing(
    method: Method, regularizer: Callable[..., Any]
) -> None:
    tx = layer_tx(method, regularizer)
    state = tx.init(layer_params())
    leaves, structure = jax.tree.flatten(state)
    # Another value in each entry of each leaf.
    numbers = [k + np.arange(leaf.size).reshape(leaf.shape) / 64 for k, leaf in enumerate(leaves)]
    state = structure.unflatten(
        np.asarray(n, leaf.dtype) for n, leaf in zip(numbers, leaves, strict=True)
    )
    mapped = optax.tree.map_params(tx, lambda leaf: leaf, state)
    chex.assert_trees_all_equal_structs(mapped, state)
    chex.assert_trees_all_equal(mapped, state)


@every_method_and_variant
@every_regularizer
def test_map_params_gives_specs_to_the_parameter_shaped_accumulators_only(
    method: Method, regularizer: Callable[..., Any]
) -> None:
    tx, params = layer_tx(method, regularizer), layer_params()
    specs = {
        "body": {"kernel": PartitionSpec("a", "b"), "bias": PartitionSpec("c")},
        "head": {"scale": PartitionSpec("d")},
    }
    of_shape = {
        leaf.shape: spec
        for leaf, spec in zip(jax.tree.leaves(params), jax.tree.leaves(specs), strict=True)
    }
    nothing = PartitionSpec("not a parameter")
    state = tx.init(params)
    mapped = optax.tree.map_params(
        tx, lambda _, spec: spec, state, specs, transform_non_params=lambda _: nothing
    )
    # Where the state's structure follows that of the regularizers, one spec may stand for a subtree.
    mapped = jax.tree.broadcast(mapped, state)
    found = 0
    for leaf, spec in zip(jax.tree.leaves(state), jax.tree.leaves(mapped), strict=True):
        assert spec == of_shape.get(leaf.shape, nothing), leaf.shape
        found += leaf.shape in of_shape
    assert found > 0
    assert found % len(of_shape) == 0, found


# -------------------------------------------------------------------------------------- convergence

TARGETS: dict[str, tuple[Tree, Tree, Callable[[Tree], jax.Array]]] = {
    "parabola": (
        jnp.array([-1.0, 10.0, 1.0]),
        jnp.array([1.0, -1.0, 1.0]),
        lambda x: jnp.sum((x - jnp.array([1.0, -1.0, 1.0])) ** 2),
    ),
    "rosenbrock": (
        jnp.zeros(2),
        jnp.ones(2),
        lambda x: (1.0 - x[0]) ** 2 + 100.0 * (x[1] - x[0] ** 2) ** 2,
    ),
    "matrix": (
        jnp.zeros((2, 2)),
        jnp.array([[3.0, -2.0], [1.0, 4.0]]),
        lambda x: jnp.sum((x - jnp.array([[3.0, -2.0], [1.0, 4.0]])) ** 2),
    ),
    "mixed": (
        (jnp.zeros(3), jnp.zeros((2, 2))),
        (jnp.array([1.0, -1.0, 2.0]), jnp.array([[1.0, 0.0], [-1.0, 1.0]])),
        lambda x: (
            jnp.sum((x[0] - jnp.array([1.0, -1.0, 2.0])) ** 2)
            + jnp.sum((x[1] - jnp.array([[1.0, 0.0], [-1.0, 1.0]])) ** 2)
        ),
    ),
}


@functools.cache
def trained(method_index: int, regularizer: Callable[..., Any]) -> Tree:
    """All targets after 30,000 steps of one scan: leaves do not interact, so one program does."""
    params = {name: start for name, (start, _, _) in TARGETS.items()}
    tx = METHODS[method_index](regularizer(params))

    def loss(params: Tree) -> jax.Array:
        return sum(objective(params[name]) for name, (_, _, objective) in TARGETS.items())

    def step(carry: tuple[Tree, Tree], _: None) -> tuple[tuple[Tree, Tree], None]:
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def train(params: Tree) -> Tree:
        return jax.lax.scan(step, (params, tx.init(params)), length=30_000)[0][0]

    return train(params)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("index", range(len(METHODS)), ids=lambda i: METHODS[i].name)
@every_regularizer
def test_thirty_thousand_steps_in_a_scan_converge(
    index: int, regularizer: Callable[..., Any], target: str
) -> None:
    found = trained(index, regularizer)[target]
    chex.assert_trees_all_close(found, TARGETS[target][1], rtol=3e-2, atol=3e-2)


# ---------------------------------------------------------------------------------- hyperparameters


@with_structure_or_without(METHODS + VARIANTS)
def test_inject_hyperparams_gives_the_same_updates_and_inner_state(
    method: Method, regularizer: Callable[..., Any]
) -> None:
    params = layer_params()
    assignment = regularizer(params, LAYER_STRENGTH)
    factory = optax.inject_hyperparams(getattr(rj, method.name))
    injected = factory(LAYER_RATE, assignment, **method.options)
    (grad,) = layer_grads(params, 1)

    expected, expected_state = run(layer_tx(method, regularizer), params, [grad])
    found, state = run(injected, params, [grad])
    chex.assert_trees_all_close(found, expected, rtol=1e-5)
    chex.assert_trees_all_equal_shapes_and_dtypes(state.inner_state, expected_state)
    chex.assert_trees_all_close(state.inner_state, expected_state, rtol=1e-5, atol=1e-5)


@either_metric
def test_an_injected_learning_rate_schedule_equals_one_passed_directly(method: Method) -> None:
    params = layer_params()
    schedule = optax.piecewise_constant_schedule(LAYER_RATE, {2: 0.1})
    regularizer = rj.GroupLasso(LAYER_STRENGTH)
    grads = layer_grads(params, 4)
    direct, _ = run(method(regularizer, learning_rate=schedule), params, grads)
    factory = optax.inject_hyperparams(getattr(rj, method.name))
    injected, _ = run(factory(schedule, regularizer, **method.options), params, grads)
    chex.assert_trees_all_close(injected, direct, rtol=1e-5, atol=1e-7)
    constant, _ = run(layer_tx(method, kernels_only), params, grads)
    with pytest.raises(AssertionError):  # the schedule does matter in these four steps
        chex.assert_trees_all_close(direct, constant, rtol=1e-2)


@pytest.mark.parametrize(
    ("method", "wrap"),
    [(method, wrap) for method in EITHER_METRIC for wrap in (optax.constant_schedule, jnp.float32)]
    + list(
        zip(OTHERS, (optax.constant_schedule, jnp.float32, optax.constant_schedule), strict=True)
    ),
    ids=lambda v: method_id(v) if isinstance(v, Method) else v.__name__,
)
def test_constant_schedules_and_arrays_equal_floats(
    method: Method, wrap: Callable[[float], Any]
) -> None:
    """For the learning rate, the momentum and the strength."""
    _, params, grads, expected, expected_state = bare(method)
    wrapped = method(
        rj.GroupLasso(wrap(LAYER_STRENGTH)),
        learning_rate=wrap(LAYER_RATE),
        **{name: wrap(value) for name, value in method.options.items()},
    )
    found, state = run(wrapped, params, grads)
    close = functools.partial(chex.assert_trees_all_close, rtol=1e-6, atol=1e-7)
    close(found, expected)
    close(minimizer(state, found), minimizer(expected_state, expected))
    chex.assert_trees_all_equal_shapes_and_dtypes(state, expected_state)


@every_method
def test_a_strength_schedule_is_followed(method: Method) -> None:
    """Strength 0 for two steps, then far above the threshold: all kernels vanish at the third."""
    params = layer_params()
    tx = method(
        rj.GroupLasso(lambda count: jnp.where(count < 2, 0.0, 1e6)), learning_rate=LAYER_RATE
    )
    zeros = []
    state = None
    for grad in layer_grads(params, 3):
        params, state = run(tx, params, [grad], state)
        structured = minimizer(state, params)
        zeros.append(int(jnp.sum(structured["body"]["kernel"] == 0.0)))
    assert zeros == [0, 0, params["body"]["kernel"].size]


# --------------------------------------------------------------------------------- dtypes and state


@every_method_and_variant
@every_regularizer
@pytest.mark.parametrize(
    "dtype", [jnp.bfloat16, jnp.float16, jnp.float32], ids=lambda d: d.__name__
)
def test_the_update_has_the_dtype_of_the_parameter(
    method: Method, regularizer: Callable[..., Any], dtype: Any
) -> None:
    params = layer_params(dtype)
    tx = method(regularizer(params, LAYER_STRENGTH), learning_rate=LAYER_RATE)
    (grad,) = layer_grads(params, 1)
    state = tx.init(params)
    (wide_grad,) = layer_grads(layer_params(), 1)  # say, from a float32 all-reduce
    for given in (grad, wide_grad):
        after = jax.eval_shape(tx.update, given, state, params)
        chex.assert_trees_all_equal_shapes_and_dtypes(after, (params, state))


@with_structure_or_without(METHODS)
def test_multi_steps_of_four_updates_at_the_fourth_call_only(
    method: Method, regularizer: Callable[..., Any]
) -> None:
    """In bfloat16, where MultiSteps would fail on an update of another dtype than the parameter's."""
    params = layer_params(jnp.bfloat16)
    steps = optax.MultiSteps(layer_tx(method, regularizer), every_k_schedule=4)
    update = jax.jit(steps.update)
    state = jax.jit(steps.init)(params)
    for call, grad in enumerate(layer_grads(params, 4), start=1):
        updates, state = update(grad, state, params)
        moved = [bool(jnp.any(leaf != 0.0)) for leaf in jax.tree.leaves(updates)]
        assert all(moved) if call == 4 else not any(moved), call


@every_method_and_variant
@every_regularizer
@pytest.mark.parametrize(
    ("dtype", "x64"),
    [
        (jnp.float16, False),
        (jnp.bfloat16, False),
        (jnp.float32, False),
        (jnp.float32, True),
        (jnp.float64, True),
    ],
    ids=["float16", "bfloat16", "float32", "float32 under x64", "float64"],
)
def test_the_state_keeps_structure_shapes_and_dtypes_through_cond(
    method: Method, regularizer: Callable[..., Any], dtype: Any, x64: bool
) -> None:
    """Types alone decide, so nothing need be compiled: cond raises unless its branches agree in them."""
    with jax.enable_x64(x64):
        params = layer_params(dtype)
        tx = layer_tx(method, regularizer)
        state = tx.init(params)

        def step(params: Tree, state: Tree, grad: Tree, wanted: jax.Array) -> tuple[Tree, Tree]:
            updates, state = jax.lax.cond(
                wanted,
                lambda: tx.update(grad, state, params),
                lambda: (jax.tree.map(jnp.zeros_like, grad), state),
            )
            return optax.apply_updates(params, updates), state

        (grad,) = layer_grads(params, 1)
        after = jax.eval_shape(step, params, state, grad, jnp.asarray(True))
        chex.assert_trees_all_equal_shapes_and_dtypes(after, (params, state))


# ----------------------------------------------------------------------------------------- sharding


# A group is an index of axis -2: "dense" gives devices whole groups, "conv" cuts each in eight.
SHARDED = {
    "dense": ((16, 6), PartitionSpec("data", None)),
    "conv": ((3, 3, 4, 8), PartitionSpec(None, None, None, "data")),
    "bias": ((32,), PartitionSpec("data")),
}


def host_arrays(scale: float, seed: int) -> dict[str, np.ndarray]:
    """Random float32 arrays of the shapes in `SHARDED`."""
    rng = np.random.default_rng(seed)
    return {
        name: (scale * rng.standard_normal(shape)).astype(np.float32)
        for name, (shape, _) in SHARDED.items()
    }


@functools.cache
def on_one_device(method: Method, regularizer: Callable[..., Any]) -> tuple[Any, Tree]:
    """(tx, params after two steps) without sharding."""
    params = host_arrays(0.1, 0)
    tx = method(regularizer(params, 0.2), learning_rate=LAYER_RATE)
    arrays = jax.tree.map(jnp.asarray, (params, [host_arrays(1.0, 1), host_arrays(1.0, 2)]))
    return tx, jax.device_get(run(tx, *arrays)[0])


def put_on(mesh: jax.sharding.Mesh, specs: Tree, tree: Tree) -> Tree:
    """The tree on the mesh, sharded as the specs say."""
    return jax.device_put(tree, jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs))


AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit
MESHES = [
    *((method, with_structure, kind) for method in EITHER_METRIC for kind in (AUTO, EXPLICIT)),
    *(
        (m, with_structure, kind)
        for m, kind in zip(OTHERS, (EXPLICIT, AUTO, EXPLICIT), strict=True)
    ),
    *((method, without, EXPLICIT) for method in EITHER_METRIC),
]


@needs_eight
@pytest.mark.parametrize(
    ("method", "regularizer", "axis_type"),
    MESHES,
    ids=lambda v: method_id(v) if isinstance(v, Method) else getattr(v, "__name__", str(v)),
)
def test_sharded_parameters_and_state_keep_their_sharding_under_jit(
    method: Method, regularizer: Callable[..., Any], axis_type: AxisType
) -> None:
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    specs = {name: spec for name, (_, spec) in SHARDED.items()}
    tx, expected = on_one_device(method, regularizer)

    put = functools.partial(put_on, mesh)
    with jax.set_mesh(mesh):
        params = put(specs, host_arrays(0.1, 0))
        state = tx.init(params)
        state_specs = optax.tree.map_params(
            tx,
            lambda _, spec: spec,
            state,
            specs,
            transform_non_params=lambda _: PartitionSpec(),
        )
        state = put(state_specs, state)
        placed = jax.tree.map(lambda leaf: leaf.sharding, (params, state))

        step = jax.jit(make_step(tx))
        for seed in (1, 2):
            params, state = step(params, state, put(specs, host_arrays(1.0, seed)))

        by_path = jax.tree_util.tree_leaves_with_path((params, state))
        wanted = jax.tree.leaves(placed)
        sharded = 0
        for (path, leaf), sharding in zip(by_path, wanted, strict=True):
            if sharding.is_fully_replicated:
                continue  # where XLA leaves counters and group-sized scalars is its own business
            sharded += 1
            name = jax.tree_util.keystr(path)
            assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim), (name, leaf.sharding)
        assert sharded >= 2 * len(specs)
        # The first call may place counters; after it nothing moves, so nothing recompiles.
        assert step._cache_size() <= 2
    chex.assert_trees_all_close(jax.device_get(params), expected, rtol=1e-5, atol=1e-6)


# The rule rtol stops on rounding, which depends on the order of sums and hence on the sharding.
TIGHT = {"max_iterations": 2000, "rtol": None, "tolerance": 1e-6}


@needs_eight
@pytest.mark.parametrize(
    ("method", "regularizers", "solver"),
    [
        pytest.param(method, regularizers, solver, id=f"{method.name}-{name}")
        for name, regularizers, solver, methods in [
            ("exact", (rj.L1(0.2), rj.LHalf(0.2), rj.SparseGroupLasso(0.1, 0.1)), None, ...),
            ("nuclear norm", (rj.NuclearNorm(0.2),), None, ...),
            ("PG", (rj.GroupLasso(0.2),), rj.ProximalGradient(**TIGHT), "ramda"),
            ("FISTA", (rj.GroupLasso(0.2),), rj.AcceleratedProximalGradient(**TIGHT), "ramda"),
        ]
        for method in EITHER_METRIC
        if methods in (..., method.name)
    ],
)
def test_every_solver_works_on_parameters_cut_across_an_explicit_mesh(
    method: Method, regularizers: tuple[Any, ...], solver: Any
) -> None:
    shape, spec = SHARDED["conv"]
    rng = np.random.default_rng(0)
    params = [rng.standard_normal(shape).astype(np.float32) for _ in regularizers]
    options = {} if solver is None else {"solver": solver}
    tx = method(list(regularizers), learning_rate=LAYER_RATE, **options)
    expected, expected_state = run(tx, params, [params])
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        sharded = put_on(mesh, [spec for _ in params], params)
        found, state = jax.jit(make_step(tx))(sharded, tx.init(sharded), sharded)
        structured = minimizer(state, found)
        for leaf in jax.tree.leaves((found, structured)):
            assert leaf.sharding.spec == spec
    close = functools.partial(chex.assert_trees_all_close, rtol=1e-3, atol=1e-4)
    close(jax.device_get(found), jax.device_get(expected))
    wanted = minimizer(expected_state, expected)
    close(jax.device_get(structured), jax.device_get(wanted))


# ----------------------------------------------------------------------------- wrappers, one by one
#
# Oracle: the bare transformation on the same gradients. In the wrapped state must be found the same
# statistics and structured iterate, whose first rows are exactly zero (those of W need not be).


def assert_dead_rows_are_exactly_zero(structured: Tree) -> None:
    zero = np.asarray(structured["body"]["kernel"] == 0.0)
    assert zero[:DEAD].all()
    assert not zero[DEAD:].any()


def assert_same_extras(state: Tree, params: Tree, bare_state: Tree, bare_params: Tree) -> None:
    """structured_params and solver_stats of the wrapped state are those of the bare one."""
    structured = minimizer(state, params)
    expected = minimizer(bare_state, bare_params)
    assert_dead_rows_are_exactly_zero(expected)
    chex.assert_trees_all_close(structured, expected, rtol=1e-4, atol=1e-6)
    assert_dead_rows_are_exactly_zero(structured)
    stats = rj.solver_stats(state)
    chex.assert_tree_all_finite(stats)
    chex.assert_trees_all_close(stats, rj.solver_stats(bare_state), atol=1e-4)


@every_method
def test_the_structured_iterate_is_sparse_where_the_training_iterate_need_not_be(
    method: Method,
) -> None:
    _, _, _, params, state = bare(method)
    structured = minimizer(state, params)
    assert_dead_rows_are_exactly_zero(structured)
    if method.averages:
        assert not bool(jnp.any(params["body"]["kernel"] == 0.0))
    else:
        chex.assert_trees_all_equal(structured, params)


@every_method
def test_solver_stats_are_plain_scalars_with_a_small_residual(method: Method) -> None:
    _, _, _, _, state = bare(method)
    stats = rj.solver_stats(state)
    assert set(stats) == {
        "iterations",
        "residual",
        "iterations/body/kernel",
        "residual/body/kernel",
    }
    for name, value in stats.items():
        assert isinstance(value, int | float), name
        assert 0.0 <= value < (31 if name.startswith("iterations") else 1e-4), name


@every_method
def test_in_a_chain_after_clipping(method: Method) -> None:
    tx, params, grads, _, _ = bare(method)
    norm = 0.5 * min(float(optax.tree.norm(grad)) for grad in grads)
    scales = [np.float32(norm / optax.tree.norm(grad)) for grad in grads]
    clipped = [
        jax.tree.map(lambda g, s=scale: s * np.asarray(g), grad)
        for scale, grad in zip(scales, grads, strict=True)
    ]
    expected, expected_state = run(tx, params, clipped)
    chained = optax.chain(optax.clip_by_global_norm(norm), tx)
    found, state = run(chained, params, grads)
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)
    assert_same_extras(state, found, expected_state, expected)


@pytest.mark.parametrize(
    ("method", "rule"),
    [(method, "kernels") for method in METHODS]
    + [(method, rule) for method in EITHER_METRIC for rule in ("by_path", "tree")],
    ids=lambda v: method_id(v) if isinstance(v, Method) else v,
)
def test_masked_steps_only_where_the_mask_says(method: Method, rule: str) -> None:
    tx, params, grads, bare_params, bare_state = bare(method)
    group = rj.GroupLasso(LAYER_STRENGTH)
    if rule == "by_path":
        regularizer = rj.by_path([("kernel", group), ("", None)])
        tx = method(regularizer, learning_rate=LAYER_RATE)
    elif rule == "tree":  # of all parameters: the mask hides some from the transformation only
        regularizer = {"body": {"kernel": group, "bias": None}, "head": {"scale": None}}
        tx = method(regularizer, learning_rate=LAYER_RATE)
    mask = {"body": True, "head": False}
    masked = optax.masked(tx, mask)
    found, state = run(masked, params, grads)
    chex.assert_trees_all_close(found["body"], bare_params["body"], rtol=1e-5, atol=1e-7)
    # optax.masked hands masked-out gradients on unchanged: apply_updates adds them.
    head = params["head"]
    for grad in grads:
        head = optax.apply_updates(head, grad["head"])
    chex.assert_trees_all_close(found["head"], head, rtol=1e-6)

    structured = minimizer(state, found)
    chex.assert_trees_all_equal_structs(structured, found)
    expected = minimizer(bare_state, bare_params)
    chex.assert_trees_all_close(structured["body"], expected["body"], rtol=1e-4, atol=1e-6)
    assert bool(jnp.all(structured["body"]["kernel"][:DEAD] == 0.0))
    chex.assert_trees_all_equal(structured["head"], found["head"])
    assert rj.solver_stats(state).keys() == rj.solver_stats(bare_state).keys()


@every_method
def test_partition_gives_each_label_its_own_transformation(method: Method) -> None:
    tx, params, grads, bare_params, bare_state = bare(method)
    labels = {"body": {"kernel": "structured", "bias": "adam"}, "head": {"scale": "adam"}}
    parts = optax.partition({"structured": tx, "adam": optax.adam(1e-2)}, labels)
    found, state = run(parts, params, grads)
    adam, _ = run(adam_oracle, params, grads)
    structured = minimizer(state, found)
    expected = minimizer(bare_state, bare_params)
    close = functools.partial(chex.assert_trees_all_close, rtol=1e-4, atol=1e-6)
    close(found["body"]["kernel"], bare_params["body"]["kernel"])
    close(found["body"]["bias"], adam["body"]["bias"])
    close(found["head"], adam["head"])
    close(structured["body"]["kernel"], expected["body"]["kernel"])
    chex.assert_trees_all_equal(structured["body"]["bias"], found["body"]["bias"])
    chex.assert_trees_all_equal(structured["head"], found["head"])
    assert_dead_rows_are_exactly_zero(structured)
    assert rj.solver_stats(state).keys() == rj.solver_stats(bare_state).keys()


def test_partition_with_two_structured_transformations_joins_their_structured_iterates() -> None:
    params = two_layer_params()
    grads = layer_grads(params, STEPS)
    group = rj.GroupLasso(LAYER_STRENGTH)
    parts = optax.partition(
        {"a": rj.ramda(LAYER_RATE, group), "b": rj.rmda(LAYER_RATE, group)},
        {"body": "a", "head": "b"},
    )
    found, state = run(parts, params, grads)
    structured = minimizer(state, found)
    assert_dead_rows_are_exactly_zero(structured)
    assert_dead_rows_are_exactly_zero({"body": structured["head"]})
    paths = {name.split("/", 1)[1] for name in rj.solver_stats(state) if "/" in name}
    assert paths == {"body/kernel", "head/kernel"}


@every_method
def test_multi_steps_equals_steps_with_the_mean_gradient(method: Method) -> None:
    tx, params, grads, bare_params, bare_state = bare(method)
    rng = np.random.default_rng(2)
    micro = []
    for grad in grads:
        noise = jax.tree.map(lambda g: jnp.asarray(rng.standard_normal(g.shape), g.dtype), grad)
        micro += [
            jax.tree.map(jnp.add, grad, noise),
            jax.tree.map(jnp.subtract, grad, noise),
        ]
    found, state = run(optax.MultiSteps(tx, every_k_schedule=2), params, micro)
    chex.assert_trees_all_close(found, bare_params, rtol=1e-3, atol=1e-4)
    assert_same_extras_loosely(state, found, bare_state, bare_params)


def assert_same_extras_loosely(
    state: Tree, params: Tree, bare_state: Tree, bare_params: Tree
) -> None:
    """As `assert_same_extras`, for gradients that agree only up to the rounding of their mean."""
    structured = minimizer(state, params)
    expected = minimizer(bare_state, bare_params)
    chex.assert_trees_all_close(structured, expected, rtol=1e-3, atol=1e-4)
    assert_dead_rows_are_exactly_zero(structured)
    assert rj.solver_stats(state).keys() == rj.solver_stats(bare_state).keys()


@every_method
def test_apply_if_finite_changes_nothing_while_all_is_finite(method: Method) -> None:
    tx, params, grads, bare_params, bare_state = bare(method)
    found, state = run(optax.apply_if_finite(tx, max_consecutive_errors=3), params, grads)
    chex.assert_trees_all_close(found, bare_params, rtol=1e-5, atol=1e-7)
    assert_same_extras(state, found, bare_state, bare_params)


@every_method
def test_an_injected_strength_can_be_changed_between_steps(method: Method) -> None:
    _, params, grads, bare_params, bare_state = bare(method)

    def factory(learning_rate: Any, strength: Any) -> optax.GradientTransformation:
        return method(rj.GroupLasso(strength), learning_rate=learning_rate)

    injected = optax.inject_hyperparams(factory)(learning_rate=LAYER_RATE, strength=LAYER_STRENGTH)
    found, state = run(injected, params, grads)
    chex.assert_trees_all_close(found, bare_params, rtol=1e-5, atol=1e-7)
    assert_same_extras(state, found, bare_state, bare_params)

    state.hyperparams["strength"] = jnp.float32(1e6)
    found, state = run(injected, found, grads[:1], state)
    structured = minimizer(state, found)
    assert not bool(jnp.any(structured["body"]["kernel"]))
    assert bool(jnp.all(structured["body"]["bias"]))


@every_method
def test_in_a_flax_nnx_optimizer(method: Method) -> None:
    tx, params, grads, bare_params, bare_state = bare(method)

    class Model(nnx.Module):
        def __init__(self) -> None:
            inputs, outputs = params["body"]["kernel"].shape
            self.body = nnx.Linear(inputs, outputs, rngs=nnx.Rngs(0))
            self.head = nnx.RMSNorm(params["head"]["scale"].size, rngs=nnx.Rngs(0))

    def as_state(tree: Tree) -> nnx.State:
        state = nnx.state(Model(), nnx.Param)
        nnx.replace_by_pure_dict(state, tree)
        return state

    model = Model()
    nnx.update(model, as_state(params))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model: Model, optimizer: nnx.Optimizer, grad: Tree) -> None:
        optimizer.update(model, grad)

    for grad in grads:
        step(model, optimizer, as_state(grad))
    found = nnx.state(model, nnx.Param)
    close = functools.partial(chex.assert_trees_all_close, rtol=1e-4, atol=1e-6)
    close(nnx.to_pure_dict(found), bare_params)
    structured = rj.structured_params(optimizer.opt_state, found, values="minimizer")
    assert isinstance(structured, nnx.State)
    close(nnx.to_pure_dict(structured), minimizer(bare_state, bare_params))
    assert_dead_rows_are_exactly_zero(nnx.to_pure_dict(structured))
    close(rj.solver_stats(optimizer.opt_state), rj.solver_stats(bare_state))
    nnx.update(model, structured)  # the way to deploy it


@every_method
def test_in_a_flax_linen_train_state(method: Method) -> None:
    tx, params, grads, bare_params, bare_state = bare(method)

    inputs, outputs = params["body"]["kernel"].shape

    class Model(flax.linen.Module):
        @flax.linen.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            hidden = flax.linen.Dense(outputs, name="body")(x)
            return flax.linen.RMSNorm(name="head")(jnp.pad(hidden, (0, 2)))

    model = Model()
    fresh = model.init(jax.random.key(0), jnp.zeros(inputs))["params"]
    chex.assert_trees_all_equal_shapes_and_dtypes(fresh, params)
    train_state = flax.training.train_state.TrainState.create(
        apply_fn=model.apply, params=params, tx=tx
    )
    apply = jax.jit(lambda train_state, grad: train_state.apply_gradients(grads=grad))
    for grad in grads:
        train_state = apply(train_state, grad)
    chex.assert_trees_all_close(train_state.params, bare_params, rtol=1e-5, atol=1e-7)
    assert_same_extras(train_state.opt_state, train_state.params, bare_state, bare_params)


@every_method
def test_the_state_survives_flax_serialization_and_copies(method: Method) -> None:
    tx, params, _, _, state = bare(method)
    fresh = tx.init(params)
    restored = flax.serialization.from_bytes(fresh, flax.serialization.to_bytes(state))
    for copied in (restored, copy.deepcopy(state), pickle.loads(pickle.dumps(state))):
        assert jax.tree.structure(copied) == jax.tree.structure(state)
        chex.assert_trees_all_equal_shapes_and_dtypes(copied, state)
        chex.assert_trees_all_equal(copied, state)


@every_method
def test_structured_params_and_solver_stats_can_be_jitted(method: Method) -> None:
    _, _, _, params, state = bare(method)
    chex.assert_trees_all_close(
        minimizer(state, params),
        rj.structured_params(state, params, values="minimizer"),
        rtol=1e-5,
        atol=1e-7,
    )
    chex.assert_trees_all_close(jax.jit(rj.solver_stats)(state), rj.solver_stats(state))


def test_structured_params_of_a_foreign_state_say_so() -> None:
    params = layer_params()
    with pytest.raises(ValueError, match="no state of ramda"):
        rj.structured_params(optax.adam(1e-3).init(params), params, values="minimizer")
