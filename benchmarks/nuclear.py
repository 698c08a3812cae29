"""What the nuclear norm costs, and what its tolerance costs the network: the paper's MLP on Fashion-MNIST.

    python -m benchmarks.nuclear [--settings default 1e-2 1e-3] [--steps 936] [--restart 702] [--seeds 0 1 2]
    python -m benchmarks.nuclear --alike 30     # seconds to compile a step of 30 matrices of one shape

Whole training steps (forward, backward, update; batches of 128). RAMDA with several tolerances of its solver, and dense
optax.adamw, take turns in one process, each on its own parameters and all on the same batches; a ratio is that of one
round. Where a second stage starts (`--restart`), the rate falls to a tenth, and averaging grows less until W = What.
"""

import argparse
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import ramda_jax as rj
from benchmarks import measure, shapes
from benchmarks.train import classify
from examples.data.idx import FashionMnist
from examples.models.mlp import MLP

BATCH, STRENGTH, RATE, MOMENTUM = 128, 1e-3, 1e-2, 0.1
METHODS = ("ramda", "prox_adamw")
DENSE = "optax.adamw"


class Training:
    """A network in training: donated steps, and what the solver said of each."""

    def __init__(
        self, tx: optax.GradientTransformation, regularized: bool, seed: int, data: Any
    ) -> None:
        self.graph, self.params = nnx.split(MLP(shapes.FASHION_MLP, rngs=nnx.Rngs(seed)))
        self.state, self.data, self.seed = tx.init(self.params), data, seed
        self.decompositions: list[float] = []
        self.regularized, self.done = regularized, 0

        def step(params: Any, state: Any, inputs: Any, targets: Any) -> Any:
            grads = jax.grad(self.loss)(params, inputs, targets)
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        batch = self.batch()
        self.function, self.facts = measure.compiled(step, (0, 1), self.params, self.state, *batch)
        self.next = batch

    def loss(self, params: Any, inputs: jax.Array, targets: jax.Array) -> jax.Array:
        return classify(nnx.merge(self.graph, params), inputs, targets)

    def batch(self) -> tuple[jax.Array, jax.Array]:
        rows = np.random.default_rng((self.seed, self.done)).integers(
            len(self.data.train_targets), size=BATCH
        )
        return jnp.asarray(self.data.train_inputs[rows]), jnp.asarray(self.data.train_targets[rows])

    def __call__(self) -> None:
        self.params, self.state = self.function(self.params, self.state, *self.next)
        jax.block_until_ready(self.params)

    def prepare(self) -> None:
        """Outside of what is measured: the next batch, and what the last step's solves took."""
        self.done += 1
        self.next = self.batch()
        if self.regularized:
            stats = rj.solver_stats(self.state)
            counts = [float(n) for name, n in stats.items() if name.startswith("iterations/")]
            self.decompositions.append(float(np.mean(counts)))


def transformation(method: str, setting: str, restart: int) -> optax.GradientTransformation:
    psi = rj.kernels(rj.NuclearNorm(STRENGTH if method == "ramda" else 3.5 * STRENGTH))
    solver = None if setting == "default" else rj.DouglasRachford(tolerance=float(setting))
    if method == "prox_adamw":
        return rj.prox_adamw(1e-3, psi, solver=solver)
    if not restart:
        return rj.ramda(RATE, psi, momentum=MOMENTUM, solver=solver)
    return rj.ramda(
        rj.multistep(RATE, (restart,), 0.1),
        psi,
        momentum=rj.final_momentum_schedule(MOMENTUM, restart),
        solver=solver,
        restart_steps=(restart,),
    )


def outcome(training: Training) -> str:
    """Objective on the training images, accuracy on the test images, rank of all matrices."""
    data, params = training.data, training.params
    objective = training.loss(params, *map(jnp.asarray, (data.train_inputs, data.train_targets)))
    logits = nnx.merge(training.graph, params)(jnp.asarray(data.test_inputs))
    accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == jnp.asarray(data.test_targets))
    psi, rank = rj.NuclearNorm(STRENGTH), 0
    for x in jax.tree.leaves(params):
        if x.ndim == 2:
            objective, rank = objective + psi.value(x), rank + int(psi.rank(x))
    return f"{float(objective):.4f} | {float(accuracy):.4f} | {rank}"


def train(arguments: argparse.Namespace) -> None:
    """One table per seed."""
    data = FashionMnist()(None)
    for seed in arguments.seeds:
        make = functools.partial(Training, seed=seed, data=data)
        runs = {DENSE: make(optax.adamw(1e-3), False)}
        for setting in arguments.settings:
            runs[setting] = make(transformation(arguments.method, setting, arguments.restart), True)
        contenders = [measure.Contender(name, run, run.facts) for name, run in runs.items()]
        for _ in range(arguments.steps):
            measure.take_turns(contenders, 1, warmup=0)
            for run in runs.values():
                run.prepare()
        print(f"\n{arguments.method}, seed {seed}, {arguments.steps} steps\n")
        print(
            "| tolerance | ms per training step [quartiles] | times optax.adamw | "
            "decompositions per matrix, by fifths of the run | objective | accuracy | rank | compilation s |"
        )
        print("| --- | --- | --- | --- | --- | --- | --- | --- |")
        for contender in contenders:
            row, run = measure.compare(contender, contenders[0]), runs[contender.name]
            parts = np.array_split(np.array(run.decompositions or [np.nan]), 5)
            counts = " ".join(f"{part.mean():.2f}" for part in parts if part.size)
            print(
                f"| {row['name']} | {measure.milliseconds(row['seconds'])} | {measure.times(row['ratio'])} "
                f"| {np.mean(run.decompositions or [np.nan]):.2f}: {counts} | {outcome(run)} "
                f"| {row['compile_seconds']:.1f} |",
                flush=True,
            )


def compile_alike(number: int) -> None:
    """Seconds to compile a step of so many matrices of one shape."""
    params = {f"layer{i}": {"kernel": jnp.ones((192, 192))} for i in range(number)}
    tx = rj.ramda(RATE, rj.NuclearNorm(STRENGTH))
    state = tx.init(params)
    begin = time.perf_counter()
    lowered = jax.jit(tx.update).lower(params, state, params)
    traced = time.perf_counter() - begin
    lowered.compile()
    total = time.perf_counter() - begin
    print(f"{number} matrices of 192 x 192: {total:.1f} s, of which {traced:.1f} tracing")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--settings", nargs="+", default=["default", "1e-2", "1e-3"])
    parser.add_argument("--method", choices=METHODS, default="ramda")
    parser.add_argument("--steps", type=int, default=936)
    parser.add_argument("--restart", type=int, default=0, help="where a second stage starts")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--alike", type=int, help="compile so many matrices, and nothing else")
    arguments = parser.parse_args()
    print(", ".join(f"{k} {v}" for k, v in measure.environment().items()), flush=True)
    if arguments.alike:
        compile_alike(arguments.alike)
    else:
        train(arguments)


if __name__ == "__main__":
    main()
