"""The steps that every backend must take alike: methods, regularizers, and what runs them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ramda_jax as rj

REGULARIZERS = [
    rj.GroupLasso(0.02),
    rj.GroupLasso(0.02, group_axis=-1),
    rj.GroupLasso(0.02, group_axis=(-2, -1)),
    rj.SparseGroupLasso(0.02, 0.02),
    rj.GroupMCP(0.02, 3.0),
    rj.L1(0.05),
]
METHODS = {
    "ramda": lambda psi: rj.ramda(0.1, psi, restart_steps=(2,)),
    "rmda": lambda psi: rj.rmda(0.1, psi, restart_steps=(2,)),
    "prox_sgd": lambda psi: rj.prox_sgd(0.1, psi),
    "prox_adamw": lambda psi: rj.prox_adamw(0.1, psi, weight_decay=0.1),
    "prox_ssi": lambda psi: rj.prox_ssi(0.1, psi, weight_decay=0.1),
}
PAIRS = [("ramda", psi) for psi in REGULARIZERS] + [
    (name, REGULARIZERS[0]) for name in METHODS if name != "ramda"
]


def tree_of(make, shapes):
    """A tree of arrays from one of shapes."""
    return jax.tree.map(make, shapes, is_leaf=lambda s: isinstance(s, tuple))


def normal(seed, shapes, dtype=jnp.float32, scale=0.3):
    rng = np.random.default_rng(seed)
    return tree_of(lambda shape: jnp.asarray(rng.standard_normal(shape) * scale, dtype), shapes)


def step_of(tx):
    """(params, state, grads) -> (params, state)."""

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def train(tx, shapes, dtype=jnp.float32, count=4):
    """(parameters, state) after some steps; compiled anew, with the table of backends of the caller."""
    params, step = normal(0, shapes, dtype), jax.jit(step_of(tx))
    state = tx.init(params)
    for seed in range(count):
        params, state = step(params, state, normal(100 + seed, shapes, dtype))
    return params, state
