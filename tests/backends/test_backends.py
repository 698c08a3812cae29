"""The table of backends: which one runs a step, and that another table is another program."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import ramda_jax as rj
from ramda_jax import backends
from ramda_jax.backends import cpu
from tests.backends.steps import normal, step_of
from tests.methods import needs_eight

SHAPES = {"dense": {"kernel": (101, 60), "bias": (60,)}, "conv": {"kernel": (3, 3, 24, 16)}}
TILES = {"cpu": cpu.tiled((2000, 500))}
TX = rj.ramda(0.1, rj.GroupLasso(0.05))


def lowered(params, state):
    """Of a function of its own: JAX traces one function once, whatever the table is by then."""
    return jax.jit(step_of(TX)).lower(params, state, params).as_text()


@needs_eight
def test_one_device_works_in_tiles_and_several_on_whole_arrays():
    params = normal(0, SHAPES)
    state = TX.init(params)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    put = lambda tree: jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))
    with backends.injected(TILES):
        assert "dynamic_update_slice" in lowered(params, state)
        assert "dynamic_update_slice" not in lowered(put(params), put(state))


def test_without_a_table_nothing_is_cut_and_afterwards_everything_is_as_before():
    params = {"kernel": jnp.ones((512, 512))}
    state = TX.init(params)
    before = lowered(params, state)
    assert "dynamic_update_slice" in before
    with backends.injected({}):
        assert "dynamic_update_slice" not in lowered(params, state)
        with backends.injected(backends.TABLE):
            assert lowered(params, state) == before
        assert "dynamic_update_slice" not in lowered(params, state)
    assert lowered(params, state) == before
