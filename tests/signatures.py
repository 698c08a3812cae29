"""What a type checker makes of public signatures: read by mypy, never run.

A line that is to be refused says so; mypy refuses a comment that refuses nothing (`warn_unused_ignores`).
"""

from typing import assert_type

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import ramda_jax as rj


def never_called() -> None:
    """As it is no test, and imported where doctests are looked for."""
    # Strengths and rates: a number, a 0-d array, a schedule; a target where a strength stands.
    rj.GroupLasso(0.1)
    rj.GroupLasso(rj.TargetSparsity(0.5, ramp=100), group_axis=0)
    rj.SparseGroupLasso(jnp.ones(()), group=lambda count: 0.1)
    rj.GroupLasso("0.1")  # type: ignore[arg-type]
    rj.TargetSparsity("half")  # type: ignore[arg-type]
    rj.ramda("fast", rj.L1(0.1))  # type: ignore[arg-type]
    rj.rmda(optax.cosine_decay_schedule(0.1, 10), None, restart_steps=(1, 2))

    # Regularizers: one, an assignment, a tree, None.
    rj.prox_sgd(0.1, rj.by_path([("kernel$", rj.L1(0.1)), (".*", None)]))
    rj.prox_adamw(0.1, {"a": rj.L1(0.1), "b": {"c": None}})
    rj.ramda(0.1, 0.1)  # type: ignore[arg-type]
    rj.ramda(regularizer=rj.L1(0.1), **rj.stages(1e-2, total_steps=600))
    rj.multistep(0.1, 100)  # type: ignore[arg-type]

    # What goes in comes out.
    params = {"kernel": jnp.ones((2, 2))}
    method = rj.rmda(0.1, rj.L1(0.1))
    state = method.init(params)
    assert_type(rj.structured_params(state, params), dict[str, jax.Array])
    assert_type(rj.summary(params, rj.L1(0.1)), dict[str, float | jax.Array])
    assert_type(rj.lambda_max(params, rj.L1(0.1)), dict[str, jax.Array])
    assert_type(rj.group_sparsity(params, rj.L1(0.1)), jax.Array)
    assert_type(rj.GroupLasso(0.1).along(0), rj.GroupLasso)
    assert_type(rj.stages(0.1, 100)["restart_steps"], tuple[int, ...])
    rj.structured_params(state, params, "what")  # type: ignore[arg-type]

    # Networks.
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    weights = nnx.state(model, nnx.Param)
    assert_type(rj.structured_params(state, weights), nnx.State)
    net = rj.network(model, jnp.ones((1, 2)))
    rj.ramda(0.1, net.inputs(rj.GroupLasso(0.1)))
    net.inputs(0.1)  # type: ignore[arg-type]
    assert_type(rj.compact(model, jnp.ones((1, 2))), rj.Compact)
    rj.compact(model, jnp.ones((1, 2)), multiple_of="8")  # type: ignore[arg-type]
    rj.network(3)  # type: ignore[arg-type]
