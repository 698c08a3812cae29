"""What a target costs: a step of RAMDA that sets its strength, over one with a constant strength.

    python -m benchmarks.targets [--model vgg19] [--rounds 15]

As `benchmarks.step`: no model is trained, parameters and gradients have the shapes of a model and random values, all
contenders take turns in one process, and a ratio is that of one round. The constant strength is one that a target sets
after a few steps, so that both solve for about as many groups.
"""

import argparse
import functools

import jax

import ramda_jax as rj
from benchmarks import measure, shapes
from benchmarks.step import GRADIENTS, JaxStep

TARGETS = {
    "0.8 of each layer": functools.partial(rj.TargetSparsity, 0.8, mode="exact"),
    "0.8 of all parameters": functools.partial(
        rj.TargetSparsity, 0.8, mode="exact", scope="tree", of="params"
    ),
    "0.8 of each layer, settling": functools.partial(rj.TargetSparsity, 0.8, settle_step=1_000_000),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="vgg19")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    abstract = shapes.abstract_params(arguments.model)
    params = shapes.random_like(abstract, 0, 0.05)
    grads = shapes.gradients(abstract, GRADIENTS)
    psi = functools.partial(shapes.regularizer, arguments.model)
    first = JaxStep(rj.ramda(1e-2, psi(TARGETS["0.8 of all parameters"]())), params, grads)
    for _ in range(GRADIENTS):
        first()
    strengths = [v for k, v in rj.solver_stats(first.state).items() if k.startswith("strength/")]
    chosen = {f"constant {strengths[0]:.3g}": psi(strengths[0])}
    chosen |= {name: psi(target()) for name, target in TARGETS.items()}
    contenders = []
    for name, regularizer in chosen.items():
        step = JaxStep(rj.ramda(1e-2, regularizer), params, grads)
        contenders.append(measure.Contender(name, step, step.facts, None))
    measure.take_turns(contenders, arguments.rounds, warmup=3)
    size = sum(x.size for x in jax.tree.leaves(abstract))
    print(f"{arguments.model}: {size:,} parameters on {jax.devices()[0].device_kind}")
    for contender in contenders:
        row = measure.compare(contender, contenders[0])
        print(contender.name, row)


if __name__ == "__main__":
    main()
