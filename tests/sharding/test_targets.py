"""Eight devices meet the targets that one meets, and tell each other nothing but counts."""

import functools

import jax
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import ramda_jax as rj
from benchmarks import hlo
from tests.methods import needs_eight
from tests.sharding.meshes import auto_mesh
from tests.test_targets import METHODS, NEURON, dead_groups, draw, mixed

pytestmark = needs_eight

# What divides by eight along its groups, what does not, entries, and neurons over two arrays.
SHAPES = {
    "conv": {"kernel": (3, 3, 16, 4)},
    "dense": {"kernel": (30, 5), "bias": (5,)},
    "entries": {"kernel": (16, 8)},
    "mlp": {"up": {"kernel": (5, 24)}, "down": {"kernel": (24, 7), "bias": (7,)}},
}
TENSOR = {
    "conv": {"kernel": P(None, None, None, "model")},  # across groups
    "dense": {"kernel": P(), "bias": P()},
    "entries": {"kernel": P("model")},
    "mlp": {"up": {"kernel": P(None, "model")}, "down": {"kernel": P("model"), "bias": P()}},
}
FRACTION, STEPS = 0.6, 5
EXACT = functools.partial(rj.TargetSparsity, FRACTION, mode="exact")
SETTLES = functools.partial(rj.TargetSparsity, FRACTION, settle_step=3, relax=0.5)


def step_of(tx):
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return params, state, rj.structured_params(state, params, values="minimizer")

    return step


def train(step, params, state):
    rows = []
    for seed in range(STEPS):
        params, state, structured = step(params, state, draw(1 + seed, SHAPES))
        rows.append((dead_groups(structured), rj.solver_stats(state)))
    return rows


@functools.cache
def alone(make, kind):
    tx = make(mixed(kind))
    params = draw(0, SHAPES)
    return train(jax.jit(step_of(tx)), params, tx.init(params))


def by_jit(make, kind, specs=None, shape=(8,), names=("data",)):
    mesh = auto_mesh(shape, names)
    tx = make(mixed(kind), placement=rj.Placement("data", mesh, specs))
    params = draw(0, SHAPES)
    where = jax.tree.map(lambda x: P(), params) if specs is None else specs
    laid = jax.tree.map(lambda x, s: jax.device_put(x, NamedSharding(mesh, s)), params, where)
    state = jax.jit(tx.init, out_shardings=rj.state_sharding(tx, laid))(laid)
    return train(jax.jit(step_of(tx)), laid, state)


def tensor_parallel(make, kind):
    return by_jit(make, kind, TENSOR, (4, 2), ("data", "model"))


def replicated(make, kind):
    """Without a placement: parameters cut by themselves, and whatever the partitioner does."""
    mesh = auto_mesh((4, 2), ("data", "model"))
    tx = make(mixed(kind))
    lay = lambda x, s: jax.device_put(x, NamedSharding(mesh, s))
    params = jax.tree.map(lay, draw(0, SHAPES), TENSOR)
    return train(jax.jit(step_of(tx)), params, jax.jit(tx.init)(params))


def by_shard_map(make, kind):
    mesh = auto_mesh()
    tx = make(mixed(kind), placement=rj.Placement("data"))
    params = draw(0, SHAPES)
    shardings = rj.state_sharding(tx, params, mesh)
    specs = jax.tree.map(lambda s: s.spec, shardings)
    state = jax.jit(tx.init, out_shardings=shardings)(params)
    step = jax.shard_map(
        step_of(tx), mesh=mesh, in_specs=(P(), specs, P()), out_specs=(P(), specs, P())
    )
    return train(jax.jit(step), params, state)


TRIALS = [
    ("ramda", SETTLES, by_jit),
    ("ramda", SETTLES, tensor_parallel),
    ("prox_sgd", EXACT, by_shard_map),
    ("prox_sgd", EXACT, replicated),
]


@pytest.mark.parametrize(
    ("method", "kind", "way"),
    TRIALS,
    ids=[f"{m}-{'exact' if k is EXACT else 'settles'}-{w.__name__}" for m, k, w in TRIALS],
)
def test_eight_devices_kill_the_groups_that_one_kills(method, kind, way):
    make = METHODS[method]
    for (dead, stats), (there, stats_there) in zip(alone(make, kind), way(make, kind), strict=True):
        for name, zero in dead.items():
            np.testing.assert_array_equal(there[name], zero)
        for name, value in stats.items():
            if not name.startswith(("residual", "iterations")):
                assert stats_there[name] == pytest.approx(value, rel=1e-5), name


def test_devices_tell_each_other_counts_and_nothing_else():
    mesh = auto_mesh()

    def collectives(strength):
        # All of it cut along its groups: without a target there is nothing to say but the residuals.
        rules = rj.by_path(
            [
                ("^(conv|entries)/", rj.GroupLasso(strength)),
                ("^mlp/.*kernel", rj.coupled(NEURON, rj.GroupLasso(strength))),
                (".*", None),
            ]
        )
        tx = rj.ramda(0.1, rules, placement=rj.Placement("data", mesh), restart_steps=(50,))
        params = jax.eval_shape(lambda: draw(0, SHAPES))
        shardings = rj.state_sharding(tx, params, mesh)
        state = jax.eval_shape(tx.init, params)
        whole = jax.tree.map(lambda x: NamedSharding(mesh, P()), params)
        step = jax.jit(
            lambda g, s, p: tx.update(g, s, p)[1],
            in_shardings=(whole, shardings, whole),
            out_shardings=shardings,
        )
        return hlo.collectives(step.lower(params, state, params).compile().as_text())

    found = collectives(rj.TargetSparsity(0.5))
    blocks = 3
    assert {one.kind for one in found} == {"all-reduce"}
    assert any(one.in_loop for one in found)
    # A count of 4 bytes per block; at the end, residuals and iterations.
    assert all(one.bytes <= 4 * blocks for one in found if one.in_loop)
    assert all(one.bytes <= 8 * blocks for one in found)
