"""How the parts of a step are run: who solves what, and what devices tell each other."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

import ramda_jax as rj
from benchmarks import hlo
from ramda_jax.sharding import parts
from tests.sharding.meshes import auto_mesh


def test_groups_that_lie_across_devices_take_one_sum_per_iteration_for_all_arrays():
    cut = {"a": {"kernel": P(None, "data")}, "b": {"kernel": P(None, None, None, "data")}}
    placement = rj.Placement("data", auto_mesh(), cut)
    tx = rj.ramda(1e-2, rj.GroupLasso(1e-3), placement=placement)
    shapes = {"a": {"kernel": (16, 64)}, "b": {"kernel": (3, 3, 8, 16)}}
    params = {
        k: {"kernel": jax.ShapeDtypeStruct(v["kernel"], jnp.float32)} for k, v in shapes.items()
    }
    state = jax.eval_shape(tx.init, params)
    text = jax.jit(tx.update).lower(params, state, params).compile().as_text()
    assert sum(one.in_loop for one in hlo.collectives(text)) == 1


def test_large_matrices_are_given_to_different_devices():
    owners = parts._owners([(8, 8), (512, 512), (512, 500), (16, 16)], 2)
    assert owners[1] != owners[2]
    assert set(owners) == {0, 1}
