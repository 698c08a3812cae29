"""The methods under JAX's own transformations, at the edges of their input, and over many steps."""

import functools
import warnings
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import parameterized
from jax.sharding import NamedSharding, PartitionSpec

import ramda_jax as rj
from tests.methods import (
    DEAD,
    EITHER_METRIC,
    LAYER_RATE,
    LAYER_STRENGTH,
    METHODS,
    REGULARIZERS,
    Method,
    jitted_step,
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
every_regularizer = pytest.mark.parametrize("regularizer", REGULARIZERS, ids=lambda r: r.__name__)
# Without a structure, a method of each kind of metric: what is compiled is little.
with_structure_or_without = pytest.mark.parametrize(
    ("method", "regularizer"),
    [(method, with_structure) for method in METHODS] + [(m, without) for m in EITHER_METRIC],
    ids=lambda v: method_id(v) if isinstance(v, Method) else v.__name__,
)
either_metric = pytest.mark.parametrize("method", EITHER_METRIC, ids=method_id)
averaging = pytest.mark.parametrize("method", [m for m in METHODS if m.averages], ids=method_id)

close = functools.partial(chex.assert_trees_all_close, rtol=1e-5, atol=1e-6)


def layer_method(method: Method, **overrides: Any) -> optax.GradientTransformation:
    """`layer_tx` with other options."""
    regularizer = with_structure(layer_params(), LAYER_STRENGTH)
    return method(regularizer, learning_rate=LAYER_RATE, **overrides)


# ------------------------------------------------------------------------------------ chex.variants


class Variants(chex.TestCase):
    """One step is the same function however it is compiled."""

    def check(self, method: Method) -> None:
        tx, params = layer_tx(method), layer_params()
        first, second = layer_grads(params, 2)
        _, state = run(tx, params, [first])
        expected = jitted_step(tx)(params, state, second)
        found = self.variant(make_step(tx))(params, state, second)
        close(found, expected)

    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.named_parameters(*((method.name, method) for method in METHODS))
    def test_a_step_does_not_depend_on_jit(self, method: Method) -> None:
        self.check(method)

    @chex.variants(with_pmap=True)
    @parameterized.named_parameters(*((method.name, method) for method in EITHER_METRIC))
    def test_a_step_does_not_depend_on_pmap(self, method: Method) -> None:
        self.check(method)


@every_method
def test_a_state_from_jitted_init_is_the_state_from_init(method: Method) -> None:
    tx, params = layer_tx(method), layer_params()
    eager, jitted = tx.init(params), jax.jit(tx.init)(params)
    chex.assert_trees_all_equal_shapes_and_dtypes(eager, jitted)
    chex.assert_trees_all_equal(eager, jitted)
    weak = [jax.typeof(leaf).weak_type for leaf in jax.tree.leaves(eager)]
    assert not any(weak), "a weakly typed leaf makes the second step compile again"


# ----------------------------------------------------------------------------------------- donation


@with_structure_or_without
def test_parameters_and_state_can_be_donated_and_no_step_after_the_first_is_traced_again(
    method: Method, regularizer: Any
) -> None:
    params = layer_params()
    tx = layer_tx(method, regularizer)
    shapes = {leaf.shape for leaf in jax.tree.leaves(params)}
    grads = layer_grads(params, 3)
    expected, _ = run(tx, params, grads)
    chex.clear_trace_counter()
    step = jax.jit(chex.assert_max_traces(make_step(tx), n=1), donate_argnums=(0, 1))
    state = tx.init(params)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "Some donated buffers were not usable" is a warning
        for grad in grads:
            given = jax.tree.leaves((params, state))
            params, state = step(params, state, grad)
            # What the step never reads (say, the last residual) is not passed to it, hence survives.
            assert all(leaf.is_deleted() for leaf in given if leaf.shape in shapes)
    close(params, expected)


@every_method
def test_init_copies_what_it_keeps_of_the_parameters(method: Method) -> None:
    tx, params = layer_tx(method), layer_params()
    state = tx.init(params)
    before = jax.device_get(tx.init(params))
    for leaf in jax.tree.leaves(params):
        leaf.delete()
    chex.assert_trees_all_equal(jax.device_get(state), before)


# ------------------------------------------------------------------------------------ abstract init


@every_method
@every_regularizer
def test_init_works_on_shapes_alone(method: Method, regularizer: Any) -> None:
    params = layer_params()
    tx = layer_tx(method, regularizer)
    state = tx.init(params)
    shapes = jax.eval_shape(lambda: params)
    chex.assert_trees_all_equal_shapes_and_dtypes(jax.eval_shape(tx.init, params), state)
    chex.assert_trees_all_equal_shapes_and_dtypes(jax.eval_shape(tx.init, shapes), state)
    abstract = tx.init(shapes)
    chex.assert_trees_all_equal_structs(abstract, state)
    for given, wanted in zip(jax.tree.leaves(abstract), jax.tree.leaves(state), strict=True):
        assert given.shape == wanted.shape
        assert given.dtype == wanted.dtype


@every_method
def test_a_step_can_be_compiled_from_shapes_alone(method: Method) -> None:
    tx = layer_tx(method)
    shapes = jax.eval_shape(layer_params)
    state = jax.eval_shape(tx.init, shapes)
    lowered = jax.jit(make_step(tx)).lower(shapes, state, shapes)
    if method not in EITHER_METRIC:
        return  # all lower; that what was lowered computes the step is shown for two
    compiled = lowered.compile()
    params = layer_params()
    (grad,) = layer_grads(params, 1)
    close(compiled(params, tx.init(params), grad)[0], run(tx, params, [grad])[0])


# ---------------------------------------------------------------------------- vmap, pmap, shard_map


def stack(trees: list[Tree]) -> Tree:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def take(tree: Tree, index: int) -> Tree:
    return jax.tree.map(lambda leaf: leaf[index], tree)


@every_method
def test_vmap_over_problems_equals_a_loop_over_them(method: Method) -> None:
    """Problems of different difficulty: their Newton loops end at different iterations."""
    tx, base = layer_tx(method), layer_params()
    scales = (1.0, 1e-3, 1e2)
    scaled = lambda tree, scale: jax.tree.map(lambda x: np.float32(scale) * np.asarray(x), tree)
    problems = [scaled(base, scale) for scale in scales]
    grads = [
        [scaled(grad, scale) for grad in layer_grads(base, 2, seed)]
        for seed, scale in enumerate(scales)
    ]
    params = stack(problems)
    state = jax.jit(jax.vmap(tx.init))(params)
    step = jax.jit(jax.vmap(make_step(tx)))
    for at in range(2):
        params, state = step(params, state, stack([steps[at] for steps in grads]))
    structured = jax.jit(jax.vmap(minimizer))(state, params)
    for index, problem in enumerate(problems):
        expected, expected_state = run(tx, problem, grads[index])
        close(take(params, index), expected)
        close(take(structured, index), minimizer(expected_state, expected))


@either_metric
def test_vmap_over_hyperparameters_equals_a_loop_over_them(method: Method) -> None:
    params = layer_params()
    grads = layer_grads(params, 2)

    def trajectory(learning_rate: Any, strength: Any) -> Tree:
        tx = method(rj.GroupLasso(strength), learning_rate=learning_rate)
        state, current = tx.init(params), params
        for grad in grads:
            current, state = make_step(tx)(current, state, grad)
        return current

    rates, strengths = jnp.array([0.1, 0.05, 0.2]), jnp.array([0.1, 0.0, 10.0])
    found = jax.jit(jax.vmap(trajectory))(rates, strengths)
    one = jax.jit(trajectory)
    for index in range(3):
        expected = one(rates[index], strengths[index])
        close(take(found, index), expected)


@needs_eight
@pytest.mark.parametrize(
    ("method", "parallel"),
    [(method, "shard_map") for method in METHODS]
    + list(zip(EITHER_METRIC, ("pmap", "jit"), strict=True)),
    ids=lambda value: getattr(value, "name", value),
)
def test_data_parallel_steps_equal_one_device_with_the_mean_gradient(
    method: Method, parallel: str
) -> None:
    devices = 8
    tx, params = layer_tx(method), layer_params()
    means = layer_grads(params, 2)
    rng = np.random.default_rng(3)

    def spread(grad: jax.Array) -> jax.Array:
        """Eight gradients, one per device, whose mean is `grad`."""
        half = rng.standard_normal((devices // 2, *grad.shape)).astype(np.float32)
        return jnp.asarray(np.concatenate([np.asarray(grad) + half, np.asarray(grad) - half]))

    grads = [jax.tree.map(spread, grad) for grad in means]
    exact = [jax.tree.map(lambda g: np.asarray(g).mean(0), grad) for grad in grads]
    expected, expected_state = run(tx, params, exact)
    step = make_step(tx)

    def mean_step(params: Tree, state: Tree, grad: Tree) -> tuple[Tree, Tree]:
        return step(params, state, jax.lax.pmean(grad, "data"))

    state = tx.init(params)
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    if parallel == "pmap":
        replicate = functools.partial(
            jax.tree.map, lambda leaf: jnp.broadcast_to(leaf, (devices, *leaf.shape))
        )
        params, state = replicate((params, state))
        parallel_step = jax.pmap(mean_step, axis_name="data")
    elif parallel == "shard_map":
        everywhere, split = PartitionSpec(), PartitionSpec("data")

        def on_shard(params: Tree, state: Tree, grad: Tree) -> tuple[Tree, Tree]:
            return mean_step(params, state, take(grad, 0))

        parallel_step = jax.jit(
            jax.shard_map(
                on_shard,
                mesh=mesh,
                in_specs=(everywhere, everywhere, split),
                out_specs=(everywhere, everywhere),
            )
        )
    else:
        grads = jax.device_put(grads, NamedSharding(mesh, PartitionSpec("data")))
        parallel_step = jax.jit(
            lambda params, state, grad: step(params, state, jax.tree.map(lambda g: g.mean(0), grad))
        )
    for grad in grads:
        params, state = parallel_step(params, state, grad)
    if parallel == "pmap":
        for index in range(1, devices):  # no device has drifted from the first
            chex.assert_trees_all_equal(take(params, index), take(params, 0))
        params, state = take((params, state), 0)
    loosely = functools.partial(chex.assert_trees_all_close, rtol=1e-4, atol=1e-5)
    loosely(jax.device_get(params), jax.device_get(expected))
    structured = minimizer(state, params)
    loosely(jax.device_get(structured), jax.device_get(minimizer(expected_state, expected)))
    assert not np.any(jax.device_get(structured)["body"]["kernel"][:DEAD])


# ---------------------------------------------------------------------------------------- precision


@every_method
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=lambda d: d.__name__)
def test_half_precision_parameters_keep_float32_accumulators(method: Method, dtype: Any) -> None:
    params = layer_params(dtype)
    tx = layer_tx(method)
    shapes = {leaf.shape for leaf in jax.tree.leaves(params)}
    state = tx.init(params)
    later = jax.eval_shape(make_step(tx), params, state, params)[1]
    for leaf in jax.tree.leaves((state, later)):
        if leaf.shape in shapes:
            assert leaf.dtype == jnp.float32


@every_method
def test_the_dtype_of_the_accumulators_can_be_chosen(method: Method) -> None:
    params = layer_params(jnp.float32)
    shapes = {leaf.shape for leaf in jax.tree.leaves(params)}
    tx = layer_method(method, accumulator_dtype=jnp.bfloat16)
    state = tx.init(params)
    after = jax.eval_shape(make_step(tx), params, state, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, (params, state))
    kept = {leaf.dtype for leaf in jax.tree.leaves(state) if leaf.shape in shapes}
    assert kept == {jnp.dtype(jnp.bfloat16)}


# ---------------------------------------------------------------------------------------- structure


@pytest.mark.parametrize(
    ("method", "dtype"),
    [(method, jnp.float32) for method in METHODS]
    + list(zip(METHODS, (jnp.bfloat16, jnp.float16) * 2 + (jnp.bfloat16,), strict=True)),
    ids=lambda v: method_id(v) if isinstance(v, Method) else v.__name__,
)
def test_exact_zeros_survive_apply_updates(method: Method, dtype: Any) -> None:
    params = layer_params(dtype)
    tx = layer_method(method, momentum=1.0) if method.averages else layer_tx(method)
    state = None
    for grad in layer_grads(params, 2):
        params, state = run(tx, params, [grad], state)
        zero = np.asarray(params["body"]["kernel"] == 0.0)
        assert zero[:DEAD].all()
        assert not zero[DEAD:].all(axis=1).any()


@averaging
def test_with_momentum_one_the_training_iterate_is_the_structured_one(method: Method) -> None:
    params = layer_params()
    tx = layer_method(method, momentum=1.0)
    params, state = run(tx, params, layer_grads(params, 3))
    structured = minimizer(state, params)
    close(params, structured)
    chex.assert_trees_all_equal(
        jax.tree.map(lambda x: x == 0.0, params), jax.tree.map(lambda x: x == 0.0, structured)
    )


@averaging
def test_the_training_iterate_averages_the_structured_ones(method: Method) -> None:
    """W^t = (1 - c) W^{t-1} + c What_t, with What_t recomputed from the state at every step."""
    params = layer_params()
    tx = layer_method(method, momentum=0.25)
    state = tx.init(params)
    for grad in layer_grads(params, 4):
        previous = params
        params, state = run(tx, params, [grad], state)
        structured = minimizer(state, params)
        expected = jax.tree.map(lambda w, h: 0.75 * w + 0.25 * h, previous, structured)
        close(params, expected)


@averaging
def test_structured_params_start_at_the_parameters(method: Method) -> None:
    params = layer_params()
    chex.assert_trees_all_equal(minimizer(layer_tx(method).init(params), params), params)


# --------------------------------------------------------------------------------------- edge cases


@every_method
@pytest.mark.parametrize("regularizer", ["none", "kernels", "by_path", "tree"])
def test_an_empty_tree_works(method: Method, regularizer: str) -> None:
    choices = {
        "none": None,
        "kernels": rj.GroupLasso(0.1),
        "by_path": rj.by_path([(".*", rj.L1(0.1))]),
        "tree": {},
    }
    tx = method(choices[regularizer])
    params, state = run(tx, {}, [{}, {}])
    assert params == {}
    assert minimizer(state, params) == {}
    chex.assert_tree_all_finite(jax.tree.leaves(rj.solver_stats(state)))


@every_method
def test_a_scalar_leaf_works(method: Method) -> None:
    options = {"momentum": 1.0} if method.averages else {}
    grads = [jnp.float32(1.0)] * 2

    def train(regularizer: Any) -> tuple[Tree, Tree]:
        tx = method(regularizer, learning_rate=LAYER_RATE, **options)
        params, state = jnp.float32(0.5), tx.init(jnp.float32(0.5))
        for grad in grads:
            params, state = make_step(tx)(params, state, grad)
        return params, rj.structured_params(state, params, values="minimizer")

    regularized = jax.jit(lambda strength: train(rj.by_path([(".*", rj.L1(strength))])))
    trained = {None: jax.jit(lambda: train(None))()}
    trained |= {strength: regularized(strength) for strength in (0.1, 100.0)}
    for strength, (params, structured) in trained.items():
        chex.assert_shape(params, ())
        assert params.dtype == jnp.float32
        if strength == 100.0:
            assert params == 0.0
        else:
            assert 0.0 < params < 0.5
        chex.assert_trees_all_close(structured, params, rtol=1e-5)


GROUPS = {
    "group": rj.GroupLasso(0.1),
    "sparse_group": rj.SparseGroupLasso(0.1, 0.1),
    "mcp": rj.GroupMCP(0.1, 3.0),
    "nuclear": rj.NuclearNorm(0.1),
    "zero_strength": rj.GroupLasso(0.0),
}


@either_metric
def test_a_fully_zero_layer_without_gradient_stays_zero(method: Method) -> None:
    """A dead layer for each regularizer, and a live one, in one tree."""
    layer = {"dead": {"kernel": jnp.zeros((4, 3))}, "live": {"kernel": jnp.ones((3, 2))}}
    params = dict.fromkeys(GROUPS, layer)
    rules = {
        name: {"dead": {"kernel": psi}, "live": {"kernel": psi}} for name, psi in GROUPS.items()
    }
    tx = method(rules, learning_rate=LAYER_RATE)
    params, state = run(tx, params, [params] * 2)
    structured = minimizer(state, params)
    chex.assert_tree_all_finite((params, structured, jax.tree.leaves(rj.solver_stats(state))))
    for name in GROUPS:
        assert not bool(jnp.any(params[name]["dead"]["kernel"])), name
        assert not bool(jnp.any(structured[name]["dead"]["kernel"])), name


@either_metric
def test_a_layer_whose_groups_all_vanish_beside_one_whose_groups_all_stay(method: Method) -> None:
    """The authors' code stops with an unbound variable here (pitfalls.md, 1)."""
    params = two_layer_params()
    regularizer = {
        "body": {"kernel": rj.GroupLasso(1e6), "bias": None},
        "head": {"kernel": rj.GroupLasso(1e-6), "bias": None},
    }
    tx = method(regularizer, learning_rate=LAYER_RATE)
    params, state = run(tx, params, layer_grads(params, 2))
    structured = minimizer(state, params)
    assert not bool(jnp.any(structured["body"]["kernel"]))
    assert bool(jnp.all(structured["head"]["kernel"]))


NOTHING = {
    type(psi).__name__: psi
    for psi in (
        rj.L1(0.0),
        rj.L0(0.0),
        rj.LHalf(0.0),
        rj.LTwoThirds(0.0),
        rj.ElasticNet(0.0, 0.0),
        rj.GroupLasso(0.0),
        rj.SparseGroupLasso(0.0, 0.0),
        rj.GroupMCP(0.0, 3.0),
        rj.Binarize(0.0),
    )
}


@either_metric
def test_a_regularizer_of_strength_zero_is_none(method: Method) -> None:
    """All in one tree: a body for each."""
    params = layer_params()
    grads = layer_grads(params, 3)
    expected, _ = run(layer_tx(method, without), params, grads)
    copies = lambda tree: dict.fromkeys(NOTHING, tree["body"])
    tree = {name: {"kernel": psi, "bias": None} for name, psi in NOTHING.items()}
    tx = method(tree, learning_rate=LAYER_RATE)
    found, state = run(tx, copies(params), [copies(grad) for grad in grads])
    structured = minimizer(state, found)
    for name in NOTHING:
        close(found[name], expected["body"])
        assert bool(jnp.all(structured[name]["kernel"] != 0.0)), name


@either_metric
def test_a_nuclear_norm_of_strength_zero_is_none(method: Method) -> None:
    """To the solver's tolerance; with even gradients, for it is the only one without an exact solver."""
    params = {"kernel": layer_params()["body"]["kernel"]}
    rng = np.random.default_rng(4)
    signs = [jnp.asarray(rng.choice([-1.0, 1.0], params["kernel"].shape)) for _ in range(3)]
    grads = [{"kernel": sign.astype(jnp.float32)} for sign in signs]
    expected, _ = run(method(None, learning_rate=LAYER_RATE), params, grads)
    found, state = run(method(rj.NuclearNorm(0.0), learning_rate=LAYER_RATE), params, grads)
    chex.assert_trees_all_close(found, expected, rtol=1e-2, atol=1e-5)
    rank = np.linalg.matrix_rank(np.asarray(minimizer(state, found)["kernel"]))
    assert rank == min(params["kernel"].shape)


@with_structure_or_without
def test_a_zero_learning_rate_from_a_schedule_leaves_the_parameters_where_they_are(
    method: Method, regularizer: Any
) -> None:
    """A warm-up from 0 is ordinary: its first step must not divide by the rate."""
    params = layer_params()
    schedule = optax.linear_schedule(0.0, LAYER_RATE, 4)
    tx = method(regularizer(params, LAYER_STRENGTH), learning_rate=schedule)
    grads = layer_grads(params, 3)
    first, state = run(tx, params, grads[:1])
    chex.assert_trees_all_close(first, params, rtol=1e-6)
    later, _ = run(tx, first, grads[1:], state)
    chex.assert_tree_all_finite(later)
    assert not bool(jnp.allclose(later["head"]["scale"], first["head"]["scale"]))


@every_method
def test_a_missing_params_argument_raises_the_sentence_of_optax(method: Method) -> None:
    tx, params = layer_tx(method), layer_params()
    (grad,) = layer_grads(params, 1)
    oracle = optax.contrib.madgrad(1e-2)
    with pytest.raises(ValueError, match="params") as expected:
        oracle.update(grad, oracle.init(params))
    for arguments in ((), (None,)):
        with pytest.raises(ValueError, match="params") as found:
            tx.update(grad, tx.init(params), *arguments)
        assert str(expected.value) in str(found.value)


# ----------------------------------------------------------------------------- stages and schedules


@averaging
def test_a_restart_is_a_fresh_optimizer_at_the_current_parameters(method: Method) -> None:
    """Three stages: rate and eps times 0.1 at each start, the momentum ramp in the last one."""
    eps, rate, momentum, stages = 1e-2, LAYER_RATE, 0.1, (3, 5)
    regularizer = rj.GroupLasso(LAYER_STRENGTH)
    params = layer_params()
    grads = layer_grads(params, 8)
    staged_options: dict[str, Any] = {"restart_steps": stages}
    if method.name == "ramda":
        staged_options["eps"] = eps
    staged = method(
        regularizer,
        learning_rate=rj.multistep(rate, stages),
        momentum=rj.final_momentum_schedule(momentum, stages[-1]),
        **staged_options,
    )
    found, state = params, staged.init(params)
    expected, stage_state = params, None
    for at, grad in enumerate(grads):
        stage = sum(at >= step for step in stages)
        if at in (0, *stages):
            options: dict[str, Any] = {}
            if method.name == "ramda":
                options["eps"] = eps * 0.1**stage
            if stage == len(stages):
                options["momentum"] = rj.final_momentum_schedule(momentum, 0)
            else:
                options["momentum"] = momentum
            fresh = method(regularizer, learning_rate=rate * 0.1**stage, **options)
            stage_state = fresh.init(expected)
        found, state = run(staged, found, [grad], state)
        expected, stage_state = run(fresh, expected, [grad], stage_state)
        close(found, expected)
        close(minimizer(state, found), minimizer(stage_state, expected))


def test_the_decay_of_eps_at_a_restart_can_be_chosen_and_matters() -> None:
    params = layer_params()
    grads = layer_grads(params, 4)

    def end(**options: Any) -> Tree:
        tx = rj.ramda(LAYER_RATE, None, momentum=1.0, eps=1.0, **options)
        return run(tx, params, grads)[0]

    middle, _ = run(rj.ramda(LAYER_RATE, None, momentum=1.0, eps=1.0), params, grads[:2])
    ends = {}
    for decay in (1.0, 0.1):
        fresh = rj.ramda(LAYER_RATE, None, momentum=1.0, eps=decay)
        expected, _ = run(fresh, middle, grads[2:])
        ends[decay] = end(restart_steps=(2,), restart_eps_decay=decay)
        close(ends[decay], expected)
    close(end(restart_steps=(2,)), ends[0.1])
    with pytest.raises(AssertionError):
        close(ends[0.1], ends[1.0])


@averaging
def test_a_restart_beyond_the_last_step_changes_nothing(method: Method) -> None:
    params = layer_params()
    grads = layer_grads(params, 3)
    close(
        run(layer_method(method, restart_steps=(3,)), params, grads)[0],
        run(layer_tx(method), params, grads)[0],
    )


def test_final_momentum_schedule_is_constant_and_then_grows_to_one_with_the_square_root() -> None:
    schedule = rj.final_momentum_schedule(0.1, 5)
    # Counts start at 0 as everywhere in optax: count 5 is the first step of the last stage, i = 1.
    wanted = {
        0: 0.1,
        4: 0.1,
        5: 0.1,
        6: 0.1 * 2**0.5,
        8: 0.2,
        29: 0.5,
        104: 1.0,
        105: 1.0,
        10**6: 1.0,
    }
    for count, value in wanted.items():
        np.testing.assert_allclose(schedule(count), value, rtol=1e-6, err_msg=str(count))
        np.testing.assert_allclose(jax.jit(schedule)(jnp.int32(count)), value, rtol=1e-6)


def test_multistep_multiplies_by_the_factor_at_each_milestone() -> None:
    schedule = rj.multistep(0.8, [3, 5])
    wanted = {0: 0.8, 2: 0.8, 3: 0.08, 4: 0.08, 5: 0.008, 1000: 0.008}
    for count, value in wanted.items():
        np.testing.assert_allclose(schedule(count), value, rtol=1e-6, err_msg=str(count))
        np.testing.assert_allclose(jax.jit(schedule)(jnp.int32(count)), value, rtol=1e-6)
    half = rj.multistep(1.0, (1, 2, 3), factor=0.5)
    np.testing.assert_allclose([half(count) for count in range(5)], [1, 0.5, 0.25, 0.125, 0.125])
    np.testing.assert_allclose(rj.multistep(0.3, ())(7), 0.3, rtol=1e-6)


@averaging
def test_the_final_momentum_makes_the_training_iterate_sparse(method: Method) -> None:
    """c = 0.5 sqrt(i) from count 2: at i = 4, count 5, it reaches 1 and W = What."""
    params = layer_params()
    tx = layer_method(method, momentum=rj.final_momentum_schedule(0.5, 2))
    state = tx.init(params)
    zeros = []
    for grad in layer_grads(params, 7):
        params, state = run(tx, params, [grad], state)
        zeros.append(bool(jnp.all(params["body"]["kernel"][:DEAD] == 0.0)))
    assert zeros == [False] * 5 + [True] * 2


def test_a_compiled_update_moves_nothing_between_host_and_device():
    params = {"kernel": jnp.ones((4, 3))}
    tx = rj.ramda(1e-2, rj.GroupLasso(0.1))
    state, step = tx.init(params), jax.jit(tx.update)
    step(params, state, params)
    with jax.transfer_guard("disallow"):
        updates, _ = step(params, state, params)
    assert jnp.all(jnp.isfinite(updates["kernel"]))


@every_method
def test_outside_jit_a_guard_lets_an_update_pass_and_a_gradient_on_the_host_not(
    method: Method,
) -> None:
    tx, params = layer_method(method), layer_params()
    (grad,), state = layer_grads(params, 1), tx.init(params)
    expected, _ = tx.update(grad, state, params)
    with jax.transfer_guard("disallow"):
        found, _ = tx.update(grad, state, params)
        with pytest.raises(Exception, match="Disallowed host-to-device"):
            tx.update(jax.device_get(grad), state, params)
    chex.assert_trees_all_equal(found, expected)
