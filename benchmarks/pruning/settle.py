"""How well a target that settles is kept, and what it costs in accuracy: an MLP on Fashion-MNIST."""

from typing import Any

import numpy as np
from flax import nnx

import ramda_jax as rj
from benchmarks.pruning.train import accuracy, on_device, steps_of, train
from examples.data.idx import FashionMnist
from examples.models.mlp import MLP

WIDTHS, BATCH, EPOCHS = (784, 256, 128, 64, 10), 128, 6
# Two stages, so that more of the run is left after the target has settled; see RESULTS.md for others.
RATE, STAGES = 2e-2, 2

# Name -> (fraction, scope, whether it grows).
CASES = {
    "80 %, per layer": (0.8, "layer", False),
    "80 %, whole tree": (0.8, "tree", False),
    "95 %, per layer, ramp": (0.95, "layer", True),
}


def run(case: str, seed: int, epochs: int = EPOCHS, limit: int = 0) -> dict[str, Any]:
    """One run; `limit`: train on fewer examples."""
    fraction, scope, grows = CASES[case]
    data = on_device(FashionMnist(train_limit=limit)(None))
    graph, params = nnx.split(MLP(WIDTHS, rngs=nnx.Rngs(seed)))
    apply = lambda params, inputs: nnx.merge(graph, params)(inputs)
    total = epochs * steps_of(data, BATCH)
    schedule = rj.stages(RATE, total, STAGES)
    first, settle = schedule["restart_steps"][0], schedule["restart_steps"][-1]
    ramp = 8 * first // 10 if grows else None
    target = rj.TargetSparsity(fraction, scope=scope, relax=0.1, ramp=ramp)
    tx = rj.ramda(regularizer=rj.kernels(rj.GroupLasso(target)), **schedule)
    look = lambda state: (state.solver.targets.dead, state.solver.targets.died)
    params, state, seen = train(apply, tx, params, data, BATCH, seed, range(epochs), look)
    groups = np.array(WIDTHS[:-1])
    dead = np.concatenate([dead for dead, _ in seen])[settle:]
    wanted = np.round(fraction * groups)
    point = rj.structured_params(state, params)
    return {
        "accuracy": accuracy(apply, params, data),
        "accuracy of the point to deploy": accuracy(apply, point, data),
        "points off after settling": _most(100 * (dead.sum(axis=1) / groups.sum() - fraction)),
        "groups off in a layer": _most(dead - wanted) if scope == "layer" else None,
        "died after settling": int(np.sum(seen[-1][1][-1])),
        "dead of each layer": dead[-1].tolist(),
    }


def _most(x: np.ndarray) -> float:
    return float(np.max(np.abs(x)))
