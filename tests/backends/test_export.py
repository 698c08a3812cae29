"""Steps are exported for TPUs and GPUs on a machine that has neither."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import NamedSharding, PartitionSpec

import ramda_jax as rj
from tests.backends.steps import METHODS, normal, step_of

SHAPES = {"dense": {"kernel": (32, 128), "bias": (128,)}, "conv": {"kernel": (3, 3, 16, 128)}}


def flat_step(tx, shapes):
    """(one step as a function of arrays alone, its arrays): exported programs know no custom trees."""
    params, grads = normal(0, shapes, scale=1), normal(1, shapes, scale=1)
    leaves, tree = jax.tree.flatten((params, jax.jit(tx.init)(params), grads))

    def step(*leaves):
        params, state, grads = jax.tree.unflatten(tree, leaves)
        return tuple(jax.tree.leaves(step_of(tx)(params, state, grads)))

    return jax.jit(step), leaves


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_exported_for_tpu_with_its_kernels_and_for_cuda_without(name):
    step, leaves = flat_step(METHODS[name](rj.GroupLasso(1e-3)), SHAPES)
    kernels = {
        platform: export.export(step, platforms=[platform])(*leaves).mlir_module()
        for platform in ("tpu", "cuda")
    }
    assert kernels["tpu"].count("@tpu_custom_call") == 2
    assert "@tpu_custom_call" not in kernels["cuda"]


PSIS = pytest.mark.parametrize(
    "psi", [rj.GroupLasso(0.05), rj.NuclearNorm(0.05)], ids=["group", "rank"]
)


@PSIS
def test_one_program_for_all_platforms_takes_the_same_step(psi):
    step, leaves = flat_step(rj.ramda(1e-2, psi), {"kernel": (16, 24), "bias": (24,)})
    exported = export.export(step, platforms=["cpu", "tpu", "cuda"])(*leaves)
    assert exported.platforms == ("cpu", "tpu", "cuda")
    for one, other in zip(exported.call(*leaves), step(*leaves), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@PSIS
def test_a_step_with_sharded_state_is_exported_for_eight_chips(psi):
    """Nothing but the export is to be seen: the programs of 8 TPUs or GPUs are lowered, SVDs and kernels within."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    tx = rj.ramda(1e-2, psi, placement=rj.Placement("data", mesh))
    whole = NamedSharding(mesh, PartitionSpec())
    params = {
        "kernel": jax.ShapeDtypeStruct((64, 128), jnp.float32, sharding=whole),
        "odd": {"kernel": jax.ShapeDtypeStruct((7, 5), jnp.float32, sharding=whole)},
    }
    state = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        jax.eval_shape(tx.init, params),
        rj.state_sharding(tx, params),
    )

    for platform in ("tpu", "cuda"):
        exported = export.export(jax.jit(step_of(tx)), platforms=[platform])(params, state, params)
        assert exported.nr_devices == 8
        assert "manual_computation" in exported.mlir_module()  # each device runs its own part
