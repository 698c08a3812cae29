"""What cutting zeros out is worth: parameters, products, and time per call before and after.

    python -m benchmarks.compaction [--models resnet50 ...] [--share 0.6] [--batches 1 128] [--multiple-of 8]

A share of the groups of every weight is set to zero at random: of its inputs (each weight its own, as training with
`net.inputs` leaves them), or whole channels (`net.channels`). The whole and the compact model take turns; a ratio is that
of one turn, shown as median [quartiles]. Results are compared as well.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import ramda_jax as rj
from examples.models.convnet import ConvNet
from examples.models.gated_transformer import GatedTransformer
from examples.models.resnet import ResNet
from examples.models.vgg import VGG
from examples.timing import seconds_per_call
from ramda_jax.assignment import resolve
from ramda_jax.subproblem import Along

MODELS: dict[str, tuple[Callable[[nnx.Rngs], nnx.Module], Callable[[int], jax.Array]]] = {
    "convnet": (
        lambda r: ConvNet(10, widths=(20, 50), hidden=500, rngs=r),
        lambda n: jax.random.normal(jax.random.key(0), (n, 28, 28, 1)),
    ),
    "vgg19": (
        lambda r: VGG(10, rngs=r),
        lambda n: jax.random.normal(jax.random.key(0), (n, 32, 32, 3)),
    ),
    "resnet50": (
        lambda r: ResNet(10, rngs=r),
        lambda n: jax.random.normal(jax.random.key(0), (n, 32, 32, 3)),
    ),
    "transformer": (
        lambda r: GatedTransformer(1000, 512, 4, rngs=r),
        lambda n: jax.random.randint(jax.random.key(0), (n, 128), 0, 1000),
    ),
}


def with_zeros(assignment: Any, params: Any, share: float, seed: int = 0) -> Any:
    """A share of the groups of every block set to zero."""
    flatten: Any = jax.tree.flatten
    leaves, treedef = flatten(params)
    rng = np.random.default_rng(seed)
    for block in resolve(assignment, params).blocks:
        dead = jnp.asarray(rng.random(block.number) < share)
        for k, member in enumerate(block.members):
            part = member.take(leaves[member.leaf])
            mask = Along(block.axes(k), block.number).spread(dead, part)
            leaves[member.leaf] = member.put(leaves[member.leaf], jnp.where(mask, 0.0, part))
    return treedef.unflatten(leaves)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--share", type=float, default=0.6)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 128])
    parser.add_argument("--multiple-of", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=10)
    args = parser.parse_args()
    print(f"{jax.devices()[0].device_kind}, {args.share:.0%} of the groups zero")
    print(
        "| model | groups | batch | parameters | products, before / after | time, before / after | error | ms |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in args.models:
        make, example = MODELS[name]
        model = make(nnx.Rngs(0))
        model.eval()
        graph, *states = nnx.split(model, nnx.Param, ...)
        params, rest = states
        apply = lambda p, x, graph=graph, rest=rest: nnx.merge(graph, p, rest)(x)
        net = rj.network(apply, params, example(1))
        for kind in ("inputs", "channels"):
            sparse = with_zeros(getattr(net, kind)(rj.GroupLasso(1.0)), params, args.share)
            start = time.perf_counter()
            small = rj.compact(apply, sparse, example(1), multiple_of=args.multiple_of)
            took = time.perf_counter() - start
            report = small.report()
            for batch in args.batches:
                x = example(batch)
                dense, cut = jax.jit(apply), jax.jit(small.apply)
                whole, part = dense(sparse, x), cut(small.params, x)
                error = float(jnp.max(jnp.abs(whole - part)) / jnp.max(jnp.abs(whole)))
                turns = [
                    (seconds_per_call(dense, sparse, x), seconds_per_call(cut, small.params, x))
                    for _ in range(args.repeats)
                ]
                low, middle, high = np.quantile([a / b for a, b in turns], [0.25, 0.5, 0.75])
                both = [1e3 * float(np.median(t)) for t in zip(*turns, strict=True)]
                print(
                    f"| {name} | {kind} | {batch} | {report.parameters_before:,} -> {report.parameters:,} | "
                    f"{report.flops_before / report.flops:.2f} | {middle:.2f} [{low:.2f}, {high:.2f}] | {error:.0e} | "
                    f"{both[0]:.2f} -> {both[1]:.2f} (cut in {took:.1f} s) |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
