"""What one optimizer step costs, against optax.adamw on the same gradients.

    python -m benchmarks.step [--models vgg19 resnet50] [--strengths 1e-4 1e-3 3e-3] [--json FILE]

No model is trained: parameters and gradients have the shapes of the paper's models and random
values (`benchmarks/shapes.py`). All contenders take turns in one process; a ratio is that of one
round. `over the floor` is the time of a step over the time which the least number of
parameter-sized arrays that the method must read and write would take at the bandwidth of
x <- 0.5 x, measured in the same run. `temporaries` is XLA's own figure for the donated update, in
units of the parameters. `residual` bounds ||s||, s in dQ(What), relative to ||D x0 - v|| per array.
"""

import argparse
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

import ramda_jax as rj
from benchmarks import measure, shapes
from ramda_jax.methods.base import accumulators_of
from ramda_jax.state import find_states

GRADIENTS = 4
LARGE = 50_000_000
BASELINE = "optax.adamw"
PAPER_PG = rj.ProximalGradient()  # 100 iterations, relative decrease 1e-8
PAPER_PG_NUCLEAR = rj.ProximalGradient(max_iterations=5, rtol=1e-3)
PG_ROUNDS = 3

# Parameter-sized arrays read and written at the least, parameters and gradients included.
FLOORS = {
    "optax.adamw": 7,
    "torch.optim.AdamW": 7,
    "optax.contrib.madgrad": 8,
    "rmda": 6,
    "prox_sgd": 5,
    "prox_adamw": 7,
    "ramda": 8,
}


def methods(model: str, strengths: list[float]) -> dict[str, optax.GradientTransformation]:
    """Name -> transformation; a name begins with the key of its floor."""
    psi = functools.partial(shapes.regularizer, model)
    pg = PAPER_PG_NUCLEAR if model in shapes.LOW_RANK else PAPER_PG
    middle = strengths[len(strengths) // 2]
    chosen: dict[str, optax.GradientTransformation] = {
        BASELINE: optax.adamw(1e-3),
        "optax.contrib.madgrad": optax.contrib.madgrad(1e-2),
        f"rmda {middle:g}": rj.rmda(1e-1, psi(middle)),
        f"prox_sgd {middle:g}": rj.prox_sgd(1e-1, psi(middle)),
        f"prox_adamw {middle:g}": rj.prox_adamw(1e-3, psi(middle)),
        f"prox_adamw {middle:g} paper's PG": rj.prox_adamw(1e-3, psi(middle), solver=pg),
    }
    for strength in strengths:
        chosen[f"ramda {strength:g}"] = rj.ramda(1e-2, psi(strength))
    for strength in strengths:
        chosen[f"ramda {strength:g} paper's PG"] = rj.ramda(1e-2, psi(strength), solver=pg)
    return chosen


class JaxStep:
    """Training steps without the model: the update and its application, donated.

    Args:
        tx: the method.
        params: the initial point; not changed.
        grads: used one after the other, again and again.
    """

    def __init__(self, tx: optax.GradientTransformation, params: Any, grads: list[Any]) -> None:
        self.params = jax.tree.map(jnp.array, params)
        self.state = jax.jit(tx.init)(self.params)
        self.grads, self.count = grads, 0

        def step(params: Any, state: Any, grads: Any) -> Any:
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        self.function, self.facts = measure.compiled(
            step, (0, 1), self.params, self.state, grads[0]
        )

    def __call__(self) -> None:
        grads = self.grads[self.count % len(self.grads)]
        self.params, self.state = self.function(self.params, self.state, grads)
        jax.block_until_ready(self.params)
        self.count += 1


class TorchStep:
    """The same for torch.optim.AdamW, fused where torch can."""

    def __init__(self, torch: Any, params: Any, grads: list[Any]) -> None:
        def tensor(x: jax.Array) -> Any:
            return torch.from_numpy(np.array(x))

        self.params = [torch.nn.Parameter(tensor(x)) for x in jax.tree.leaves(params)]
        self.grads = [[tensor(g) for g in jax.tree.leaves(tree)] for tree in grads]
        self.optimizer = torch.optim.AdamW(self.params, lr=1e-3, fused=True)
        self.count = 0
        self.facts: dict[str, Any] = {}

    def __call__(self) -> None:
        for p, g in zip(self.params, self.grads[self.count % len(self.grads)], strict=True):
            p.grad = g
        self.optimizer.step()
        self.count += 1


def relative_residual(opt_state: Any) -> float | None:
    """Largest certified residual relative to ||D x0 - v||, over arrays; None for other methods than dual averaging."""
    (state,) = find_states(opt_state)
    if not hasattr(state.method, "terms"):
        return None
    terms = state.method.terms()
    trees = [jax.tree.leaves(tree) for tree in accumulators_of(state.method)]
    worst = 0.0
    for k, block in enumerate(state.solver.plan.blocks):
        arrays = tuple(
            leaves[block.members[0].leaf] for leaves in trees
        )  # all blocks are single arrays here
        v, x0, d = terms.pieces(arrays, arrays[0], terms.scalars)
        worst = max(worst, float(state.solver.residual[k] / jnp.linalg.norm(d * x0 - v)))
    return worst


def solver_facts(step: JaxStep) -> dict[str, Any]:
    try:
        stats = rj.solver_stats(step.state)
    except ValueError:
        return {}
    return {
        "iterations": stats["iterations"],
        "residual": stats["residual"],
        "relative_residual": relative_residual(step.state),
    }


def benchmark(model: str, strengths: list[float], rounds: int, with_pg: bool) -> dict[str, Any]:
    """All methods on one model: a report."""
    abstract = shapes.abstract_params(model)
    leaves = jax.tree.leaves(abstract)
    size = sum(leaf.size for leaf in leaves)
    params = shapes.random_like(abstract, 0, 0.05)
    grads = shapes.gradients(abstract, GRADIENTS if size < LARGE else 2)
    chosen = methods(model, strengths)
    names = [name for name in chosen if with_pg or "PG" not in name]
    if _torch():
        names.append("torch.optim.AdamW")
    # The states of all methods at once would not fit for a large model: pairs with the baseline.
    others = [name for name in names if name != BASELINE]
    batches = [others] if size < LARGE else [[name] for name in others]
    floor_rate = measure.bandwidth()
    rows: list[dict[str, Any]] = []
    for batch in batches:
        steps = {
            name: make_step(name, chosen.get(name), params, grads) for name in [BASELINE, *batch]
        }
        contenders = [
            measure.Contender(name, step, step.facts, PG_ROUNDS if "PG" in name else None)
            for name, step in steps.items()
        ]
        measure.take_turns(contenders, rounds, warmup=3)
        for contender in contenders[1 if rows else 0 :]:
            row = measure.compare(contender, contenders[0])
            rows.append(row | facts(steps[contender.name], row, size, floor_rate))
    return {
        "model": model,
        "parameters": size,
        "arrays": len(leaves),
        "bandwidth": floor_rate,
        "rows": rows,
    }


def make_step(name: str, tx: Any, params: Any, grads: list[Any]) -> Any:
    return TorchStep(_torch(), params, grads) if tx is None else JaxStep(tx, params, grads)


def facts(step: Any, row: dict[str, Any], size: int, floor_rate: float) -> dict[str, Any]:
    """What is known only after the run."""
    arrays = next(n for key, n in FLOORS.items() if row["name"].startswith(key))
    known = {"over_the_floor": row["seconds"]["median"] * floor_rate / (4 * size * arrays)}
    if not isinstance(step, JaxStep):
        return known
    return known | {"temporary_arrays": row["temporary_bytes"] / (4 * size)} | solver_facts(step)


def _torch() -> Any:
    try:
        import torch  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        return None
    return torch


def table(report: dict[str, Any]) -> str:
    """A Markdown table of one model."""
    lines = [
        f"{report['model']}: {report['parameters'] / 1e6:.2f} M parameters in {report['arrays']} arrays; "
        f"{report['bandwidth'] / 1e9:.1f} GB/s",
        "",
        "| method | ms per step [quartiles] | times optax.adamw | over the floor | iterations | residual "
        "| first step s | temporaries |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in report["rows"]:
        compile_seconds, residual = row.get("compile_seconds"), row.get("relative_residual")
        lines.append(
            f"| {row['name']} | {measure.milliseconds(row['seconds'])} | {measure.times(row['ratio'])} "
            f"| {row['over_the_floor']:.2f} | {row.get('iterations', '-')} "
            f"| {'-' if residual is None else f'{residual:.1e}'} "
            f"| {'-' if compile_seconds is None else f'{compile_seconds:.1f}'} "
            f"| {row.get('temporary_arrays', 0):.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=shapes.MODELS, default=["vgg19"])
    parser.add_argument("--strengths", nargs="+", type=float, default=[1e-4, 1e-3, 3e-3])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--without-pg", action="store_true", help="leave the slow baselines out")
    measure.add_output_argument(parser)
    args = parser.parse_args()
    environment = measure.environment()
    print(", ".join(f"{k} {v}" for k, v in environment.items()), flush=True)
    reports = []
    for model in args.models:
        reports.append(benchmark(model, args.strengths, args.rounds, not args.without_pg))
        print(f"\n{table(reports[-1])}", flush=True)
    measure.write(args.json, {"environment": environment, "reports": reports})


if __name__ == "__main__":
    main()
