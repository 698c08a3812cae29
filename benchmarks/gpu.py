"""Steps on a GPU as a training loop runs them: many in one compiled loop, so that dispatch is not what is measured.

    python -m benchmarks.gpu --models vgg19 resnet50

Contenders take turns; every figure is the median over rounds of the milliseconds of one step, with quartiles, and as a
ratio to optax.adamw in the same round.
"""

import argparse
import functools
from typing import Any

import jax
import optax

import ramda_jax as rj
from benchmarks import measure, shapes

BASELINE = "optax.adamw"


def methods(model: str, strength: float) -> dict[str, optax.GradientTransformation]:
    """All contenders, the baseline first."""
    psi = shapes.regularizer(model, strength)
    return {
        BASELINE: optax.adamw(1e-3),
        "ramda, no regularizer": rj.ramda(1e-2, None),
        "ramda": rj.ramda(1e-2, psi),
        "rmda": rj.rmda(1e-1, psi),
        "prox_sgd": rj.prox_sgd(1e-1, psi),
        "prox_adamw": rj.prox_adamw(1e-3, psi),
    }


class Loop:
    """Some steps of one method, each with the next of two gradients, in one compiled loop."""

    def __init__(
        self, tx: optax.GradientTransformation, params: Any, grads: Any, steps: int
    ) -> None:
        def step(carry: Any, slope: Any) -> tuple[Any, None]:
            params, state = carry
            updates, state = tx.update(slope, state, params)
            return (optax.apply_updates(params, updates), state), None

        def loop(params: Any, state: Any, grads: Any) -> Any:
            body = lambda _, carry: jax.lax.scan(step, carry, grads)[0]
            return jax.lax.fori_loop(0, steps // 2, body, (params, state))

        self.params = jax.tree.map(lambda x: x.copy(), params)
        self.state = jax.jit(tx.init)(self.params)
        self.grads = grads
        self.run, self.facts = measure.compiled(loop, (0, 1), self.params, self.state, grads)

    def __call__(self) -> None:
        self.params, self.state = self.run(self.params, self.state, self.grads)
        jax.block_until_ready(self.params)


def benchmark(model: str, strength: float, rounds: int, steps: int) -> list[dict[str, Any]]:
    """One row per method."""
    abstract = shapes.abstract_params(model)
    params = shapes.random_like(abstract, 0, 0.05)
    stack = lambda *xs: jax.numpy.stack(xs)
    grads = jax.tree.map(stack, *shapes.gradients(abstract, 2))
    contenders = []
    for name, tx in methods(model, strength).items():
        loop = Loop(tx, params, grads, steps)
        contenders.append(measure.Contender(name, loop, loop.facts))
    measure.take_turns(contenders, rounds, warmup=2)
    for contender in contenders:
        contender.seconds = [s / steps for s in contender.seconds]
    return [measure.compare(c, contenders[0]) for c in contenders]


def table(model: str, rows: list[dict[str, Any]]) -> str:
    """In Markdown."""
    lines = [
        f"| {model} | ms per step | times optax.adamw | compilation s |",
        "| --- | --- | --- | --- |",
    ]
    for row in rows:
        seconds = {k: v if k == "count" else 1e3 * v for k, v in row["seconds"].items()}
        lines.append(
            f"| {row['name']} | {seconds['median']:.3f} [{seconds['low']:.3f}, {seconds['high']:.3f}] "
            f"| {measure.times(row['ratio'])} | {row['compile_seconds']:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=shapes.MODELS, default=["vgg19"])
    parser.add_argument("--strength", type=float, default=1e-3)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=20, help="steps in one compiled loop; even")
    measure.add_output_argument(parser)
    args = parser.parse_args()
    environment = measure.environment()
    print(", ".join(f"{k} {v}" for k, v in environment.items()), flush=True)
    run = functools.partial(benchmark, strength=args.strength, rounds=args.rounds, steps=args.steps)
    reports = {}
    for model in args.models:
        reports[model] = run(model)
        print(f"\n{table(model, reports[model])}", flush=True)
    measure.write(args.json, {"environment": environment, "reports": reports})


if __name__ == "__main__":
    main()
