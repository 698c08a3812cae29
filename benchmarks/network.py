"""How long it takes to see a network, and what is seen.

    python -m benchmarks.network [--repeats N]

Shapes only: nothing is computed. Seconds are medians over the repeats, tracing by JAX among them.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import ramda_jax as rj
from benchmarks import shapes
from examples.models.gated_transformer import GatedTransformer

_TOKENS = (jax.ShapeDtypeStruct((1, 128), jnp.int32),)


def _transformer(rngs: nnx.Rngs, *, scanned: bool) -> nnx.Module:
    return GatedTransformer(32_000, 2048, 48, key_heads=8, scanned=scanned, rngs=rngs)


CASES: dict[str, tuple[Callable[[nnx.Rngs], nnx.Module], tuple[Any, ...]]] = {
    **{name: (shapes.MODELS[name], shapes.INPUTS[name]) for name in shapes.INPUTS},
    "transformer, 48 layers, scanned": (lambda r: _transformer(r, scanned=True), _TOKENS),
    "transformer, 48 layers": (lambda r: _transformer(r, scanned=False), _TOKENS),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    print(
        "| network | parameters | seconds | of these tracing | spaces | channels | readers | read by them |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, (make, inputs) in CASES.items():
        model = nnx.eval_shape(lambda make=make: make(nnx.Rngs(0)))
        model.eval()
        seconds, tracing = [], []
        for _ in range(repeats):
            jax.clear_caches()
            start = time.perf_counter()
            net = rj.network(model, *inputs)
            spaces = net.spaces()
            seconds.append(time.perf_counter() - start)
            jax.clear_caches()
            graph, *states = nnx.split(model, nnx.Param, ...)
            call = lambda p, r, *x, graph=graph: nnx.merge(graph, p, r)(*x)
            start = time.perf_counter()
            jax.make_jaxpr(call)(*states, *inputs)
            tracing.append(time.perf_counter() - start)
        usable = [space for space in spaces if not space.others]
        readers = [slices for space in usable for slices in space.readers]
        total = sum(math.prod(shape) for shape in net.shapes)
        share = sum(slices.size for slices in readers) / total
        print(
            f"| {name} | {total:,} | {statistics.median(seconds):.2f} | {statistics.median(tracing):.2f} | {len(usable)} | "
            f"{sum(space.number for space in usable):,} | {len(readers)} | {share:.1%} |"
        )


if __name__ == "__main__":
    main()
