"""The Pallas kernel computes the same step as the other programs, and the TPU compiler takes it."""

import functools
import importlib.util
import json
import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ramda_jax as rj
from ramda_jax import backends
from ramda_jax.backends import kernel, tpu
from tests.backends.steps import METHODS, PAIRS, train

SHAPES = {"conv": {"kernel": (3, 3, 48, 16)}, "dense": {"kernel": (64, 128), "bias": (128,)}}
interpreted = tpu.with_kernel(16 * 1024, True)


@pytest.mark.parametrize(("name", "psi"), PAIRS, ids=str)
def test_kernel_takes_the_same_steps(name, psi):
    tx = METHODS[name](psi)
    with backends.injected({}):
        params, state = train(tx, SHAPES, count=3)
    programs = []

    def backend(job, inputs):
        programs.append(str(jax.make_jaxpr(functools.partial(interpreted, job))(inputs)))
        return interpreted(job, inputs)

    with backends.injected({"cpu": backend}):
        found, found_state = train(tx, SHAPES, count=3)
    # For one array at least: the other may have groups that are too large.
    assert "pallas_call" in programs[0]
    for one, other in zip(
        jax.tree.leaves((found, found_state.method)),
        jax.tree.leaves((params, state.method)),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-6)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(one == 0, other == 0)
    iterations = lambda state: rj.solver_stats(state)["iterations"]
    assert iterations(found_state) == iterations(state)


def test_tiles_divide_the_array_fit_the_memory_and_keep_to_those_of_the_hardware():
    assert kernel.tile_length((3, 3, 512, 512), 2, jnp.float32) == 16
    assert kernel.tile_length((512, 10), 0, jnp.float32) == 512
    assert kernel.tile_length((24, 2**13), 0, jnp.float32) == 8
    assert kernel.tile_length((24, 2**13), 0, jnp.float32, narrowest=2) is None
    assert kernel.tile_length((3, 3, 3, 64), 2, jnp.float32) == 3  # the whole axis needs no tile
    assert kernel.tile_length((64, 4096), 1, jnp.float32) == 2048
    assert kernel.tile_length((1009, 512), 0, jnp.float32) is None  # a prime number of groups
    assert kernel.tile_length((8, 10**6), 0, jnp.float32) is None  # groups beyond the memory
    assert kernel.tile_length((512,), 0, jnp.float32) is None
    assert kernel.tile_length((512, 512), 0, jnp.float64) is None
    assert kernel.tile_length((512, 512), None, jnp.float32) is None


TPU_PROGRAM = """
import json
import jax, numpy as np, optax, ramda_jax as rj
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4")
one = NamedSharding(Mesh(np.array(topology.devices[:1]), ("data",)), PartitionSpec())
shapes = {f"conv{i}": {"kernel": (3, 3, 64, 128 + 128 * i)} for i in range(2)}
shapes["dense"] = {"kernel": (1024, 256), "bias": (256,)}
as_input = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one)
params = jax.tree.map(
    lambda s: jax.ShapeDtypeStruct(s, np.float32), shapes, is_leaf=lambda s: isinstance(s, tuple)
)
size = sum(4 * x.size for x in jax.tree.leaves(params))
found = {}
for name, tx in {
    "ramda": rj.ramda(0.01, rj.GroupLasso(1e-3)),
    "columns": rj.ramda(0.01, rj.GroupLasso(1e-3, group_axis=-1)),
    "sparse": rj.ramda(0.01, rj.SparseGroupLasso(1e-3, 1e-3)),
    "mcp": rj.ramda(0.01, rj.GroupMCP(1e-3, 3.0)),
    "l1": rj.ramda(0.01, rj.L1(1e-3)),
    "rmda": rj.rmda(0.1, rj.GroupLasso(1e-3)),
    "prox_sgd": rj.prox_sgd(0.1, rj.GroupLasso(1e-3)),
    "prox_adamw": rj.prox_adamw(1e-3, rj.GroupLasso(1e-3)),
    "prox_ssi": rj.prox_ssi(1e-3, rj.GroupLasso(1e-3)),
    "bfloat16": rj.ramda(0.01, rj.GroupLasso(1e-3)),
}.items():
    dtype = jax.numpy.bfloat16 if name == "bfloat16" else np.float32
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), params)
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    inputs = jax.tree.map(as_input, (params, jax.eval_shape(tx.init, params), params))
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(*inputs).compile()
    memory = compiled.memory_analysis().temp_size_in_bytes / size
    found[name] = [compiled.as_text().count('"tpu_custom_call"'), memory]
print(json.dumps(found))
"""


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="the TPU compiler (extra `tpu`) is not installed",
)
def test_tpu_compiler_takes_the_kernel_for_every_method():
    without_hardware = {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(TPU_PROGRAM)],
        env=os.environ | without_hardware,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    for name, (kernels, memory) in json.loads(run.stdout.splitlines()[-1]).items():
        assert kernels == 3, name
        assert memory <= 1.0, name  # two thirds of these parameters are one array
