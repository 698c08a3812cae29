"""A state is arrays, and what everything that handles pytrees takes: maps, pickle, checkpoints, serialization, export."""

import copy
import dataclasses
import functools
import importlib.util
import os
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax import export
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import ramda_jax as rj
from ramda_jax import interop
from ramda_jax.state import Entry, Plan
from ramda_jax.subproblem import Block, Member

pytestmark = pytest.mark.unoptimized

METHODS = {
    "ramda": functools.partial(rj.ramda, 0.1),
    "rmda": functools.partial(rj.rmda, 0.1),
    "prox_sgd": functools.partial(rj.prox_sgd, 0.1),
    "prox_adamw": functools.partial(rj.prox_adamw, 0.1, amsgrad=True),
    "prox_ssi": functools.partial(rj.prox_ssi, 0.1),
}
MLP = {"neuron": [("{m}/up/kernel", -1), ("{m}/down/kernel", -2)]}
REGULARIZERS = {
    "None": None,
    "L1": rj.L1(0.1),
    "group lasso": rj.GroupLasso(0.1),
    "group MCP": rj.GroupMCP(0.1, 3.0),
    "nuclear norm": rj.NuclearNorm(0.1),
    "coupled": rj.coupled(MLP, rj.GroupLasso(0.1)),
}
SOLVERS = (
    rj.Newton(),
    rj.DouglasRachford(),
    rj.ProximalGradient(),
    rj.AcceleratedProximalGradient(),
)


def draw(seed=0):
    rng = np.random.default_rng(seed)
    array = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    return {
        "mlp": {"up": {"kernel": array(3, 8), "bias": array(8)}, "down": {"kernel": array(8, 5)}}
    }


def step_of(tx):
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


@functools.cache
def trained(method="ramda", regularizer="coupled"):
    """(transformation, compiled step, parameters, state) after two steps."""
    tx = METHODS[method](REGULARIZERS[regularizer])
    step, params = jax.jit(step_of(tx)), draw()
    state = tx.init(params)
    for seed in (1, 2):
        params, state = step(params, state, draw(seed))
    return tx, step, params, state


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def assert_goes_on(state):
    """A state that came back from somewhere does what the one of `trained` does."""
    _, step, params, original = trained()
    assert_same(
        rj.structured_params(state, params, values="minimizer"),
        rj.structured_params(original, params, values="minimizer"),
    )
    assert_same(step(params, state, draw(3)), step(params, original, draw(3)))


def in_a_process(program, *arguments, devices=1):
    """Run a program by itself, on so many devices; its output."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


# What is in it.


@pytest.mark.parametrize("name", REGULARIZERS)
@pytest.mark.parametrize("method", METHODS)
def test_no_array_of_a_state_is_empty(method, name):
    params = draw()
    solvers = [None]
    # What a solver keeps is the same for all methods.
    if method == "ramda" and name != "None":
        blocks = rj.kernels(rj.GroupLasso(0.1)) if name == "coupled" else REGULARIZERS[name]
        psi = blocks.regularizer if name == "coupled" else blocks
        solvers += [s for s in SOLVERS if s.supports(psi)]
    for solver in solvers:
        options = {} if solver is None else {"solver": solver}
        tx = METHODS[method](REGULARIZERS[name], **options)
        state = jax.eval_shape(tx.init, params)
        _, after = jax.eval_shape(tx.update, params, state, params)
        for found in (state, after):
            assert all(x.size > 0 for x in jax.tree.leaves(found)), solver
        assert jax.tree.structure(after) == jax.tree.structure(state)


# Maps over two states.


def init(tx):
    return jax.eval_shape(tx.init, draw())


LASSO = rj.ramda(0.1, rj.GroupLasso(0.1))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (LASSO, rj.ramda(0.3, rj.GroupLasso(0.2), momentum=0.5, restart_steps=(4,))),
        (LASSO, rj.ramda(0.1, rj.GroupLasso(lambda count: 0.1 / (1 + count)))),
        (LASSO, rj.ramda(0.1, rj.GroupLasso(jnp.float32(0.1)))),
        (LASSO, rj.ramda(0.1, rj.GroupLasso(0.1), solver=rj.Newton(1e-3, 10))),
        (
            rj.prox_ssi(0.1, rj.GroupMCP(0.1, 3.0), solver=rj.ProximalGradient()),
            rj.prox_ssi(0.1, rj.GroupMCP(0.2, 4.0), solver=rj.ProximalGradient(7, rtol=None)),
        ),
        (
            rj.prox_adamw(0.1, rj.NuclearNorm(0.1)),
            rj.prox_adamw(0.2, rj.NuclearNorm(0.3), solver=rj.DouglasRachford(1e-2)),
        ),
        (
            rj.rmda(0.1, rj.coupled(MLP, rj.SparseGroupLasso(0.1, 0.2))),
            rj.rmda(0.1, rj.coupled(MLP, rj.SparseGroupLasso(0.3, 0.4))),
        ),
    ],
)
def test_a_map_goes_over_states_of_other_strengths_and_tolerances(one, other):
    shapes = jax.tree.map(lambda x, y: x.shape == y.shape, init(one), init(other))
    assert all(jax.tree.leaves(shapes))
    assert hash(jax.tree.structure(init(one))) == hash(jax.tree.structure(init(other)))


@pytest.mark.parametrize(
    "other",
    [
        rj.ramda(0.1, rj.GroupLasso(0.1, group_axis=-1)),
        rj.ramda(0.1, rj.GroupLasso(0.1, size_weighted=False)),
        rj.ramda(0.1, rj.SparseGroupLasso(0.1, 0.1)),
        rj.ramda(0.1, rj.by_path([("up/kernel", rj.GroupLasso(0.1)), (".*", None)])),
        rj.ramda(0.1, rj.coupled(MLP, rj.GroupLasso(0.1))),
        rj.ramda(0.1, rj.GroupLasso(0.1), solver=rj.ProximalGradient()),
        rj.ramda(0.1, rj.GroupLasso(0.1), placement=rj.Placement("data")),
        rj.ramda(0.1, None),
    ],
)
def test_a_map_refuses_states_that_hold_other_things(other):
    with pytest.raises(ValueError, match=r"[Mm]ismatch|prefix|arity|different"):
        jax.tree.map(lambda x, y: x, init(LASSO), init(other))


def test_an_average_of_two_states_is_a_state():
    _, step, params, state = trained()
    other = METHODS["ramda"](rj.coupled(MLP, rj.GroupLasso(0.3))).init(params)
    mean = jax.tree.map(lambda x, y: (x + y) / 2, state, other)
    np.testing.assert_allclose(mean.solver.strengths, [0.2], rtol=1e-6)
    mean = jax.tree.map(lambda x, y: x.astype(y.dtype), mean, state)
    found, _ = step(params, mean, draw(3))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))


# Copies and files.


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_state_can_be_pickled(protocol):
    assert_goes_on(pickle.loads(pickle.dumps(trained()[3], protocol)))


def test_a_state_can_be_copied():
    assert_goes_on(copy.copy(trained()[3]))
    assert_goes_on(copy.deepcopy(trained()[3]))


def test_a_state_and_its_transformation_can_be_pickled_by_cloudpickle():
    cloudpickle = pytest.importorskip("cloudpickle")
    tx, _, params, state = trained()
    state, update = pickle.loads(cloudpickle.dumps((state, tx.update)))
    assert_goes_on(state)
    expected = jax.jit(tx.update)(draw(3), state, params)
    assert_same(jax.jit(update)(draw(3), state, params), expected)


def on_a_mesh():
    """(transformation, parameters, state) on eight devices, parameters cut over two of the mesh's."""
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    specs = jax.tree.map(lambda x: P(None, "model") if x.shape == (3, 8) else P(), draw())
    tx = METHODS["ramda"](REGULARIZERS["coupled"], placement=rj.Placement("data", mesh, specs))
    put = lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))
    params, grads = jax.tree.map(put, draw(), specs), jax.tree.map(put, draw(1), specs)
    updates, state = jax.jit(tx.update)(grads, jax.jit(tx.init)(params), params)
    return tx, optax.apply_updates(params, updates), state


READ_WITH_ONE_DEVICE = """
import pickle, sys
import jax, numpy as np
import ramda_jax as rj
assert jax.device_count() == 1
with open(sys.argv[1], "rb") as file:
    state, params, expected = pickle.load(file)
placement = state.solver.plan.placement
assert (placement.axis, placement.mesh, placement.params) == ("data", None, None), placement
found = rj.structured_params(state, params, values="minimizer")
for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7)
print(rj.solver_stats(state)["iterations"])
"""


def test_a_state_on_a_mesh_can_be_pickled_and_read_where_there_is_one_device(tmp_path):
    tx, params, state = on_a_mesh()
    found = pickle.loads(pickle.dumps(state))
    assert_same(found, state)
    assert found.solver.plan.placement == rj.Placement(
        "data", state.solver.plan.placement.mesh, state.solver.plan.placement.params
    )
    assert isinstance(found.solver.plan.placement.mesh, Mesh)
    update = jax.jit(tx.update)
    assert_same(update(params, found, params)[0], update(params, state, params)[0])
    structured = jax.tree.map(np.asarray, rj.structured_params(state, params, values="minimizer"))
    file = tmp_path / "state.pickle"
    file.write_bytes(pickle.dumps((state, jax.tree.map(np.asarray, params), structured)))
    said = in_a_process(READ_WITH_ONE_DEVICE, file)
    assert int(said) == rj.solver_stats(state)["iterations"]


@pytest.mark.parametrize("name", ["None", "L1", "nuclear norm", "coupled"])
def test_orbax_saves_and_restores_a_state_as_it_is(tmp_path, name):
    _, step, params, state = trained("rmda" if name == "L1" else "ramda", name)
    checkpointer = ocp.PyTreeCheckpointer()
    checkpointer.save(tmp_path / "state", state)
    arguments = ocp.checkpoint_utils.construct_restore_args(state)
    found = checkpointer.restore(tmp_path / "state", item=state, restore_args=arguments)
    assert_same(found, state)
    assert_same(step(params, found, draw(3)), step(params, state, draw(3)))


SERIALIZE = {
    "flax first": "from flax import serialization\nimport ramda_jax as rj",
    "flax second": "import ramda_jax as rj\nfrom flax import serialization",
    "flax after init": "import ramda_jax as rj",
}
SERIALIZED = """
import sys
import jax, jax.numpy as jnp, numpy as np
IMPORTS
assert ("flax.serialization" in sys.modules) != ORDER.endswith("init")
params = {"kernel": jnp.arange(6.0).reshape(3, 2)}
tx = rj.ramda(0.1, rj.GroupLasso(0.1))
fresh = tx.init(params)
_, state = tx.update(params, fresh, params)
from flax import serialization
found = serialization.from_bytes(fresh, serialization.to_bytes(state))
assert jax.tree.structure(found) == jax.tree.structure(state)
for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(state), strict=True):
    np.testing.assert_array_equal(x, y)
assert found.count == 1
assert sum(type(f).__module__ == "ramda_jax.interop" for f in sys.meta_path) == 0
print("the same")
"""


@pytest.mark.parametrize("order", SERIALIZE)
def test_flax_serializes_a_state_whatever_was_imported_first(order):
    program = SERIALIZED.replace("IMPORTS", SERIALIZE[order]).replace("ORDER", repr(order))
    assert in_a_process(program) == "the same\n"


# Export.

CALL_EXPORTED = """
import pickle, sys
import jax, numpy as np, optax
import ramda_jax as rj
from jax import export
for cls in (optax.EmptyState,):
    export.register_namedtuple_serialization(cls, serialized_name=f"optax.{cls.__name__}")
with open(sys.argv[1], "rb") as file:
    program, inputs, expected = pickle.load(file)
exported = export.deserialize(bytearray(program))
found = exported.call(*inputs)
assert jax.tree.structure(found) == jax.tree.structure(expected)
for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7)
# Called again on what it returned, and by a transformation that is made here.
params, state = exported.call(*found, inputs[2])
tx = optax.chain(optax.clip_by_global_norm(1.0), rj.ramda(0.1, rj.coupled(*RULES)))
updates, again = jax.jit(tx.update)(inputs[2], found[1], found[0])
assert jax.tree.structure(again) == jax.tree.structure(state)
for x, y in zip(jax.tree.leaves(again), jax.tree.leaves(state), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
print("the same")
"""


def test_a_whole_training_step_is_exported_and_called_in_another_process(tmp_path):
    pytest.importorskip("flatbuffers", reason="JAX serializes with it")
    export.register_namedtuple_serialization(optax.EmptyState, serialized_name="optax.EmptyState")
    psi = rj.GroupLasso(0.1)
    tx = optax.chain(optax.clip_by_global_norm(1.0), rj.ramda(0.1, rj.coupled(MLP, psi)))
    step, params = jax.jit(step_of(tx)), draw()
    inputs = (params, tx.init(params), draw(1))
    program = export.export(step)(*inputs).serialize()
    file = tmp_path / "step"
    trees = jax.tree.map(np.asarray, (inputs, step(*inputs)))
    file.write_bytes(pickle.dumps((bytes(program), *trees)))
    rules = f"({MLP!r}, rj.{psi!r})"
    assert in_a_process(CALL_EXPORTED.replace("RULES", rules), file) == "the same\n"


# Plans as text.


def plan_of(psi, solver, placement=None, **member):
    block = Block("a/kernel", psi, (Member(0, "a/kernel", (4, 6), **member),))
    return Plan((Entry(block, solver),), placement)


@pytest.mark.parametrize(
    "plan",
    [
        *(
            plan_of(psi, rj.Newton(1e-3))
            for psi in (
                rj.L0(1.0), rj.L1(1.0), rj.LHalf(1.0), rj.LTwoThirds(1.0), rj.ElasticNet(1.0, 1.0), rj.Binarize(1.0),
                rj.GroupLasso(1.0, (0, -1), size_weighted=False), rj.SparseGroupLasso(1.0, 1.0, -1),
                rj.GroupMCP(1.0, 1.0), rj.NuclearNorm(1.0),
            )
        ),
        *(plan_of(rj.L1(1.0), solver) for solver in SOLVERS),
        plan_of(rj.L1(1.0), rj.ProximalGradient(7, None, 1e-3, 2)),
        plan_of(rj.GroupLasso(1.0), rj.Newton(), view=rj.View((0, 1), (2, 2, 6), ((0, 4), (0, 6)))),
        plan_of(rj.L1(1.0), rj.Newton(), rj.Placement(("data", "model"))),
        Plan((), None),
    ],
    ids=str,
)  # fmt: skip
def test_a_plan_comes_back_from_its_text_with_all_that_is_in_it(plan):
    found = interop.plan_from_bytes(interop.plan_to_bytes(plan))
    assert found == plan
    assert found.entries == plan.entries  # settings that plans do not compare, too
    assert repr(found) == repr(plan)


def test_the_text_of_a_placement_holds_its_mesh_where_the_devices_are():
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind,) * 2)
        specs = {"a": P("model", None), "b": P(("data", "model"))}
        plan = plan_of(rj.L1(1.0), rj.Newton(), rj.Placement("data", mesh, specs))
        found = interop.plan_from_bytes(interop.plan_to_bytes(plan))
        assert found == plan
        assert found.placement.mesh == mesh
        assert dict(found.placement.params) == specs
    text = interop.plan_to_bytes(plan).replace(b"[0, 1, 2,", b"[99, 1, 2,")
    assert interop.plan_from_bytes(text).placement == rj.Placement("data")


@pytest.mark.parametrize(
    "name", ["os.system", "builtins.eval", "pathlib.Path", "numpy.ndarray", "ramda_jax.Newton"]
)
def test_the_text_of_a_plan_makes_nothing_but_regularizers_and_solvers(name):
    text = interop.plan_to_bytes(plan_of(rj.L1(1.0), rj.Newton()))
    known = b"ramda_jax.solvers.newton.Newton"
    assert known in text
    with pytest.raises(ValueError, match=f"{name}.*not defined here"):
        interop.plan_from_bytes(text.replace(known, name.encode()))


def test_a_regularizer_of_the_user_comes_back_and_one_that_is_no_text_is_refused():
    @dataclasses.dataclass(frozen=True)
    class Mine(rj.Newton):
        note: object = None

    found = interop.plan_from_bytes(interop.plan_to_bytes(plan_of(rj.L1(1.0), Mine(note="x"))))
    assert found.solvers == (Mine(note="x"),)
    with pytest.raises(TypeError, match="cannot be serialized"):
        interop.plan_to_bytes(plan_of(rj.L1(1.0), Mine(note=np.ones(2))))


# A state and a transformation that it does not fit.

KERNELS = rj.GroupLasso(0.1)


@pytest.mark.parametrize(
    ("regularizer", "options", "words"),
    [
        (
            rj.SparseGroupLasso(0.1, 0.1),
            {},
            ["'mlp/down/kernel'", "(8, 5)", "with GroupLasso(", "with SparseGroupLasso("],
        ),
        (
            rj.GroupLasso(0.1, group_axis=-1),
            {},
            ["'mlp/down/kernel'", "(8, 5)", "group_axis=-2", "group_axis=-1"],
        ),
        (KERNELS, {"solver": rj.ProximalGradient()}, ["'mlp/down/kernel'", "Newton", "ProximalGradient"]),
        (
            rj.by_path([("down/kernel", KERNELS), (".*", None)]),
            {},
            ["2 regularized blocks", "1 were expected", "'mlp/up/kernel'"],
        ),
        (
            rj.by_path([("bias", rj.L1(0.1)), (".*", KERNELS)]),
            {},
            ["'mlp/up/kernel'", "'mlp/up/bias'", "(8,)", "L1"],
        ),
        (REGULARIZERS["coupled"], {}, ["'neuron/mlp'", "'mlp/up/kernel'", "(3, 8)", "'mlp/down/kernel'", "(8, 5)"]),
        (rj.GroupLasso(0.1, size_weighted=False), {}, ["'mlp/down/kernel'", "size_weighted=True", "size_weighted=False"]),
        (None, {}, ["2 regularized blocks", "0 were expected"]),
    ],
)  # fmt: skip
def test_a_state_that_does_not_fit_says_where_what_was_found_and_expected(
    regularizer, options, words
):
    params = draw()
    state = LASSO.init(params)
    tx = rj.ramda(0.1, regularizer, **options)
    with pytest.raises(ValueError, match="state does not fit") as caught:
        tx.update(params, state, params)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_a_state_of_other_parameters_names_the_first_that_differs():
    params = draw()
    state = LASSO.init(params)
    more = {**params, "new": {"kernel": jnp.ones((2, 2))}}
    with pytest.raises(ValueError, match=r"the state and params.*'new/kernel'"):
        LASSO.update(more, state, more)
    wider = {"mlp": {**params["mlp"], "down": {"kernel": jnp.ones((8, 6))}}}
    with pytest.raises(ValueError, match=r"'mlp/down/kernel'.*\(8, 5\).*\(8, 6\)"):
        LASSO.update(wider, state, wider)


@pytest.mark.parametrize("other", ["rmda", "prox_adamw"])
def test_a_state_of_another_method_is_refused(other):
    params = draw()
    state = METHODS[other](rj.GroupLasso(0.1)).init(params)
    with pytest.raises(ValueError, match="state does not fit"):
        LASSO.update(params, state, params)


def test_views_that_differ_are_told_apart():
    window = lambda a, b: rj.coupled(
        {"a": [("kernel", rj.View(0, window=((a, b), (0, 3))))]}, KERNELS
    )
    params = {"kernel": jnp.ones((4, 3))}
    state = rj.ramda(0.1, window(0, 2)).init(params)
    with pytest.raises(ValueError, match="state does not fit") as caught:
        rj.ramda(0.1, window(2, 4)).update(params, state, params)
    for word in ("'a'", "'kernel'", "((0, 2), (0, 3))", "((2, 4), (0, 3))"):
        assert word in str(caught.value), str(caught.value)


def test_a_state_goes_on_where_its_devices_are_others():
    _, step, params, state = trained()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    placed = METHODS["ramda"](REGULARIZERS["coupled"], placement=rj.Placement("data", mesh))
    found = jax.jit(step_of(placed))(params, state, draw(3))
    expected = step(params, state, draw(3))
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
    assert found[1].method.anchor["mlp"]["up"]["kernel"].sharding.spec == P(None, "data")
    params, back = jax.tree.map(np.asarray, found)
    again, _ = step(params, back, draw(4))
    for x, y in zip(
        jax.tree.leaves(again), jax.tree.leaves(step(*expected, draw(4))[0]), strict=True
    ):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


def test_strengths_rates_and_tolerances_may_change_under_a_state():
    params = draw()
    state = LASSO.init(params)
    tx = rj.ramda(0.3, rj.GroupLasso(1e9), momentum=1.0, solver=rj.Newton(1e-2))
    updates, state = tx.update(params, state, params)
    moved = optax.apply_updates(params, updates)["mlp"]
    assert not np.any(moved["down"]["kernel"])  # the strength is the new one
    np.testing.assert_allclose(state.solver.strengths, 1e9)


@pytest.mark.parametrize("name", REGULARIZERS)
def test_a_state_can_be_donated(name):
    tx, _, params, state = trained("ramda", name)
    copied = lambda tree: jax.tree.map(jnp.array, tree)
    step = jax.jit(step_of(tx), donate_argnums=(0, 1))
    expected = step(copied(params), copied(state), draw(3))
    given, donated = copied(params), copied(state)
    assert_same(step(given, donated, draw(3)), expected)
    assert all(x.is_deleted() for x in jax.tree.leaves((given, donated.method.anchor)))


def test_flax_is_no_dependency():
    assert importlib.util.find_spec("flax") is not None  # or there is nothing to see
    program = "import sys, ramda_jax; print('flax' in sys.modules, 'orbax' in sys.modules)"
    assert in_a_process(program) == "False False\n"
