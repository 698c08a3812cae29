"""On a GPU one loop serves all arrays, and there is none where one prox is exact."""

import jax
import jax.numpy as jnp
import pytest

import ramda_jax as rj
from tests.backends.steps import METHODS


def loops(tx, platform):
    """How many while loops a step of twelve arrays has, each of another shape."""
    params = {f"layer{i}": {"kernel": jnp.ones((8 + i, 4))} for i in range(12)}
    state = tx.init(params)
    traced = jax.jit(tx.update).trace(params, state, params)
    return traced.lower(lowering_platforms=(platform,)).as_text().count("stablehlo.while")


@pytest.mark.parametrize("platform", ["cuda", "rocm"])
@pytest.mark.parametrize("name", ["ramda", "prox_adamw", "prox_ssi"])
def test_one_loop_serves_all_arrays_on_an_accelerator(name, platform):
    assert loops(METHODS[name](rj.GroupLasso(0.01)), platform) == 1


@pytest.mark.parametrize("name", ["rmda", "prox_sgd"])
def test_in_a_scalar_metric_there_is_no_loop(name):
    for platform in ("cuda", "tpu", "cpu"):
        assert loops(METHODS[name](rj.GroupLasso(0.01)), platform) == 0
