"""Whether a target finds the right inputs: MNIST logistic regression against its optimum.

The target asks for the number of zero inputs that the optimum at lambda 1e-3 has, 514 of 784. It settles at a lambda
of its own; the optimum there is computed in float64 to a subgradient of norm 1e-8, and the inputs are counted whose zero
status is another one than there. Settings are those of `benchmarks.mnist_optimum` that end nearest to the optimum.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ramda_jax as rj
from benchmarks import mnist_optimum
from benchmarks.pruning.train import on_device, steps_of, train
from examples import data

STRENGTH, ZEROS, INPUTS = 1e-3, 514, 784
EPOCHS, STAGES, BATCH = 500, (100, 200, 300, 400), 125
RATE, MOMENTUM = 3e-2, 0.03


def apply(params: Any, inputs: jax.Array) -> jax.Array:
    return inputs @ params["kernel"] + params["bias"]


def run(target: bool, seed: int, epochs: int = EPOCHS) -> dict[str, Any]:
    """One run: at which lambda it ended, how many inputs are wrong there, and how often inputs changed sides."""
    dataset = data.mnist(None)
    arrays = on_device(dataset)
    steps = steps_of(arrays, BATCH)
    stages = tuple(stage * epochs // EPOCHS * steps for stage in STAGES)
    strength = rj.TargetSparsity(ZEROS / INPUTS, relax=1.0) if target else STRENGTH
    tx = rj.ramda(
        rj.multistep(RATE, stages),
        rj.kernels(rj.GroupLasso(strength)),
        momentum=MOMENTUM,
        restart_steps=stages,
    )
    params = {"kernel": jnp.zeros((INPUTS, 10)), "bias": jnp.zeros(10)}
    # The warm start of a group is its norm, and 0 where it is zero.
    alive = lambda state: (state.solver.warm[0] > 0).reshape(-1)
    params, state, seen = train(apply, tx, params, arrays, BATCH, seed, range(epochs), alive)
    what = rj.structured_params(state, params, "minimizer")
    stats = rj.solver_stats(state)
    settled = float(stats["strength/kernel"]) if target else STRENGTH
    # What is certified against what has settled at, not at a rounding beside it.
    referee = mnist_optimum.Referee(dataset, settled)
    optimal = referee.kernel.any(axis=1)
    wrong = lambda point: int(np.sum(np.asarray(point["kernel"]).any(axis=1) != optimal))
    late = np.concatenate(seen[-len(seen) // 10 :])
    return {
        "lambda": settled,
        "zeros": int(np.sum(~np.asarray(what["kernel"]).any(axis=1))),
        "zeros of the optimum": int(np.sum(~optimal)),
        "wrong in W": wrong(params),
        "wrong in What": wrong(what),
        "changes of side in the last tenth": int(np.sum(late[1:] != late[:-1])),
        "certificate": float(referee.problem.violation(referee.kernel, referee.bias)),
    }
