"""Which point of a run to deploy: test accuracy and structure of the training iterate W, of the
minimiser What, of W on What's own zeros (or spaces), and of W with What's count.

    python -m benchmarks.deploy               # one stage, at its end
    python -m benchmarks.deploy --restarts    # three stages, soon after each restart
    python -m benchmarks.deploy --short       # rj.stages in 300 and 1,000 steps

An MLP (784, 256, 128, 64, 10) on all of Fashion-MNIST, batches of 128, rates not tuned.
"""

import argparse
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import ramda_jax as rj
from examples.data.idx import FashionMnist
from examples.models.mlp import MLP
from ramda_jax.network import Network

WIDTHS, BATCH, STEPS = (784, 256, 128, 64, 10), 128, 1000
RESTARTS = (600, 800)
POINTS = ("W", "What", "W on What's zeros", "W with What's count")


@dataclass(frozen=True)
class Case:
    """One run.

    Attributes:
        regularizer: of every weight matrix.
        method: `rj.ramda` or `rj.rmda`.
        learning_rate: of the first stage.
        momentum: c, constant.
    """

    regularizer: rj.Regularizer
    method: Callable[..., optax.GradientTransformation] = rj.ramda
    learning_rate: float = 1e-2
    momentum: float = 0.1


CASES = {
    "group lasso, c = 0.01": Case(rj.GroupLasso(3e-4), momentum=0.01),
    "group lasso, c = 0.1": Case(rj.GroupLasso(3e-4)),
    "sparse group lasso, c = 0.1": Case(rj.SparseGroupLasso(2e-4, 2e-4)),
    "L1, c = 0.01": Case(rj.L1(3e-4), momentum=0.01),
    "L1, c = 0.1": Case(rj.L1(3e-4)),
    "nuclear norm, c = 0.1": Case(rj.NuclearNorm(2e-3)),
    "group MCP, c = 0.1": Case(rj.GroupMCP(3e-4, 100.0)),
    "neurons coupled, c = 0.1": Case(rj.GroupLasso(3e-4)),
    "RMDA, group lasso, c = 0.01": Case(rj.GroupLasso(3e-4), rj.rmda, 0.5, 0.01),
}


class Bench:
    """The network and the data, on the device."""

    def __init__(self) -> None:
        data = FashionMnist()(None)
        self.source = data.source
        self.train = jnp.asarray(data.train_inputs), jnp.asarray(data.train_targets)
        self.test = jnp.asarray(data.test_inputs), jnp.asarray(data.test_targets)
        self.graph, self.params = nnx.split(MLP(WIDTHS, rngs=nnx.Rngs(0)))

    def network(self) -> Network:
        return rj.network(nnx.merge(self.graph, self.params), jnp.ones((1, WIDTHS[0])))

    def assignment(self, name: str, psi: Any) -> Any:
        return self.network().channels(psi) if "coupled" in name else rj.kernels(psi)

    @functools.cached_property
    def accuracy(self) -> Callable[[Any], jax.Array]:
        def accuracy(params: Any) -> jax.Array:
            guesses = jnp.argmax(nnx.merge(self.graph, params)(self.test[0]), axis=-1)
            return jnp.mean(guesses == self.test[1])

        return jax.jit(accuracy)

    def run(
        self,
        tx: optax.GradientTransformation,
        looks: Sequence[int],
        look: Callable[[int, Any, Any], None],
    ) -> None:
        """Trains, and calls look(step, state, params) after each of these steps."""

        def loss(params: Any, inputs: jax.Array, targets: jax.Array) -> jax.Array:
            logits = nnx.merge(self.graph, params)(inputs)
            return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

        def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
            params, state = carry
            rows = jax.random.randint(key, (BATCH,), 0, len(self.train[0]))
            grads = jax.grad(loss)(params, self.train[0][rows], self.train[1][rows])
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        # The number of steps is a value: one program for all looks.
        @jax.jit
        def steps(carry: Any, first: jax.Array, last: jax.Array) -> Any:
            one = lambda k, carry: step(carry, jax.random.fold_in(jax.random.key(1), k))[0]
            return jax.lax.fori_loop(first, last, one, carry)

        carry, done = (self.params, tx.init(self.params)), 0
        for until in looks:
            carry, done = steps(carry, done, until), until
            look(until, carry[1], carry[0])


def on_own_zeros(params: Any, what: Any, psi: rj.Regularizer) -> Any:
    """W on the zeros of What, or projected on the rows and columns that What spans."""

    def one(x: jax.Array, model: jax.Array) -> jax.Array:
        if not isinstance(psi, rj.NuclearNorm) or x.ndim < 2:
            return jnp.where(model == 0, jnp.zeros_like(x), x)
        u, s, vt = jnp.linalg.svd(model, full_matrices=False)
        kept = s > 1e-5 * s[0]
        left, right = u * kept, vt * kept[:, None]
        return left @ (left.T @ x @ right.T) @ right

    return jax.tree.map(one, params, what)


def points(psi: rj.Regularizer) -> Callable[[Any, Any], dict[str, Any]]:
    """The four points of a state."""

    @jax.jit
    def points(state: Any, params: Any) -> dict[str, Any]:
        what = rj.structured_params(state, params, "minimizer")
        return {
            "W": params,
            "What": what,
            "W on What's zeros": on_own_zeros(params, what, psi),
            "W with What's count": rj.structured_params(state, params),
        }

    return points


def structure(params: Any, assignment: Any, psi: rj.Regularizer) -> float:
    """The share of groups that are zero, of entries for sparse groups, or of singular values."""
    if isinstance(psi, rj.NuclearNorm):
        return float(rj.low_rank_level(params, assignment))
    if isinstance(psi, rj.SparseGroupLasso):
        matrices = [x for x in jax.tree.leaves(params) if x.ndim == 2]
        return float(sum(jnp.sum(x == 0) for x in matrices) / sum(x.size for x in matrices))
    return float(rj.group_sparsity(params, assignment))


def table(bench: Bench, looks: Sequence[int], restarts: tuple[int, ...]) -> None:
    print(f"| run | step | {' | '.join(POINTS)} |")
    print("|" + " --- |" * 6)
    for name, case in CASES.items():
        assignment, of = bench.assignment(name, case.regularizer), points(case.regularizer)
        tx = case.method(
            rj.multistep(case.learning_rate, restarts),
            assignment,
            momentum=case.momentum,
            restart_steps=restarts,
        )

        def look(
            step: int, state: Any, params: Any, name=name, case=case, a=assignment, of=of
        ) -> None:
            found = of(state, params)
            cells = [
                f"{float(bench.accuracy(x)):.3f}, {structure(x, a, case.regularizer):.0%}"
                for x in map(found.get, POINTS)  # a compiled function sorts its dictionaries
            ]
            print(f"| {name} | {step} | {' | '.join(cells)} |", flush=True)

        bench.run(tx, looks, look)


SHORT = {
    "RAMDA, group lasso": Case(rj.GroupLasso(3e-4), learning_rate=2e-2),
    "RAMDA, nuclear norm": Case(rj.NuclearNorm(2e-3), learning_rate=2e-2),
    "RMDA, group lasso": Case(rj.GroupLasso(3e-4), rj.rmda, 1.0),
}


def short_runs(bench: Bench, lengths: Sequence[int]) -> None:
    """rj.stages at the end of short runs, beside one stage of momentum 0.1."""
    print(f"| run | steps | stages | {' | '.join(POINTS)} | same zeros or rank in W and What |")
    print("|" + " --- |" * 8)
    for name, case in SHORT.items():
        assignment, of = bench.assignment(name, case.regularizer), points(case.regularizer)
        for total in lengths:
            for stages in (1, 2, 3):
                schedule = (
                    {"learning_rate": case.learning_rate, "momentum": case.momentum}
                    if stages == 1
                    else rj.stages(case.learning_rate, total, stages)
                )
                ends: list[Any] = []

                def look(step: int, state: Any, params: Any, ends: list[Any] = ends) -> None:
                    ends.extend([state, params])

                bench.run(case.method(regularizer=assignment, **schedule), (total,), look)
                found = of(*ends)
                shares = [structure(found[n], assignment, case.regularizer) for n in POINTS]
                cells = [
                    f"{float(bench.accuracy(found[n])):.3f}, {share:.0%}"
                    for n, share in zip(POINTS, shares, strict=True)
                ]
                same = "yes" if shares[0] == shares[1] else "no"
                print(f"| {name} | {total} | {stages} | {' | '.join(cells)} | {same} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.deploy", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--restarts", action="store_true", help="look soon after each restart")
    parser.add_argument("--short", action="store_true", help="rj.stages in 300 and 1,000 steps")
    options = parser.parse_args()
    bench = Bench()
    print(bench.source)
    if options.short:
        short_runs(bench, (300, 1000))
    elif options.restarts:
        after = [s + k for s in (0, *RESTARTS) for k in (1, 3, 10, 30, 50, 100)]
        looks = sorted({*after, RESTARTS[0], RESTARTS[1], STEPS})
        table(bench, looks, RESTARTS)
    else:
        table(bench, (STEPS,), ())


if __name__ == "__main__":
    main()
