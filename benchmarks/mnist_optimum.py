"""How close RAMDA comes to the optimum of MNIST logistic regression.

    python -m benchmarks.mnist_optimum

The problem of `examples/recipes/mnist_linear.py` is convex. This computes its optimum in float64,
trains by the paper's recipe and with settings tuned on this very problem, and counts the inputs
whose zero status is wrong. Every setting can be run by hand: the printed overrides are those of
`python -m examples.train mnist_linear`.
"""

import argparse
import os
import time
from dataclasses import dataclass

import jax
import numpy as np
from flax import nnx
from scipy.special import logsumexp, softmax

import ramda_jax as rj
from examples import loop
from examples.data import Dataset
from examples.recipe import make_run, split_overrides
from examples.recipes import find

EARLY = 50
"""The epoch at which structure is looked at for the first time."""

SETTINGS = {
    "paper": "",
    "higher rate": "learning_rate=3e-2",
    "one stage at 250": "stages=250",
    "tuned for W at the optimum": "learning_rate=3e-2 momentum=0.03 batch_size=125",
    "tuned for the zeros": "learning_rate=1e-1 momentum=0.3 stages=30,80,180,280 batch_size=125",
}
"""Name -> overrides of the recipe. A batch of 125 divides the training set: none is left out."""


@dataclass(frozen=True)
class Problem:
    """mean cross-entropy(x W + b, y) + strength sqrt(10) sum over rows of ||W_row||, in float64."""

    inputs: np.ndarray
    targets: np.ndarray
    strength: float

    @property
    def row_strength(self) -> float:
        """Weight of one row's norm: strength sqrt(group size)."""
        return self.strength * np.sqrt(10.0)

    def objective(self, kernel: np.ndarray, bias: np.ndarray) -> float:
        logits = self.inputs @ kernel + bias
        losses = logsumexp(logits, axis=1) - logits[np.arange(len(logits)), self.targets]
        return float(losses.mean() + self.row_strength * np.linalg.norm(kernel, axis=1).sum())

    def gradient(self, kernel: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of the cross-entropy, in the kernel and in the bias."""
        residual = softmax(self.inputs @ kernel + bias, axis=1)
        residual[np.arange(len(residual)), self.targets] -= 1.0
        residual /= len(residual)
        return self.inputs.T @ residual, residual.sum(axis=0)

    def violation(self, kernel: np.ndarray, bias: np.ndarray) -> float:
        """Norm of the smallest subgradient: 0 exactly at the optimum."""
        grad, grad_bias = self.gradient(kernel, bias)
        norms = np.linalg.norm(kernel, axis=1, keepdims=True)
        inside = np.maximum(np.linalg.norm(grad, axis=1) - self.row_strength, 0.0)
        direction = np.divide(kernel, norms, out=np.zeros_like(kernel), where=norms > 0)
        rows = np.where(
            norms[:, 0] > 0, np.linalg.norm(grad + self.row_strength * direction, axis=1), inside
        )
        return float(np.sqrt((rows**2).sum() + (grad_bias**2).sum()))


def solve(
    problem: Problem, tolerance: float = 1e-8, rounds: int = 50
) -> tuple[np.ndarray, np.ndarray]:
    """Kernel and bias of the optimum, to a subgradient of norm `tolerance`.

    FISTA with restarts, on the rows that are nonzero or near to it. The inputs are centred, which
    only moves the bias and makes kernel and bias orthogonal: with a Hessian of at most 1/2 diag(X^T
    X / n, 1) each has its own step size.
    """
    mean = problem.inputs.mean(axis=0)
    centred = Problem(problem.inputs - mean, problem.targets, problem.strength)
    kernel, bias = (
        np.zeros((len(mean), int(problem.targets.max()) + 1)),
        np.zeros(int(problem.targets.max()) + 1),
    )
    for _ in range(rounds):
        grad, _ = centred.gradient(kernel, bias)
        rows = (np.linalg.norm(grad, axis=1) > 0.9 * problem.row_strength) | kernel.any(axis=1)
        kernel[rows], bias = _fista(
            Problem(centred.inputs[:, rows], problem.targets, problem.strength), kernel[rows], bias
        )
        if centred.violation(kernel, bias) <= tolerance:
            return kernel, bias - mean @ kernel
    raise RuntimeError(f"no optimum to {tolerance} after {rounds} rounds")


def _fista(
    problem: Problem, kernel: np.ndarray, bias: np.ndarray, iterations: int = 250
) -> tuple[np.ndarray, np.ndarray]:
    # Ten times the step that is always safe: near the optimum the curvature is far below its bound
    # of 1/2. Were it too long, the certificate would never be reached.
    step_bias = 20.0
    step = step_bias * len(problem.inputs) / np.linalg.norm(problem.inputs, ord=2) ** 2
    ahead, ahead_bias, speed = kernel, bias, 1.0
    for _ in range(iterations):
        grad, grad_bias = problem.gradient(ahead, ahead_bias)
        moved = ahead - step * grad
        norms = np.linalg.norm(moved, axis=1, keepdims=True)
        new = moved * np.maximum(1 - step * problem.row_strength / np.maximum(norms, 1e-300), 0)
        new_bias = ahead_bias - step_bias * grad_bias
        if np.sum((ahead - new) * (new - kernel)) > 0:  # the momentum points uphill: restart it
            speed = 1.0
        faster = (1 + np.sqrt(1 + 4 * speed**2)) / 2
        ahead, ahead_bias = (
            x + (speed - 1) / faster * (x - last) for x, last in ((new, kernel), (new_bias, bias))
        )
        kernel, bias, speed = new, new_bias, faster
    return kernel, bias


@dataclass(frozen=True)
class Look:
    """How far a point is from the optimum: F - F*, and how many inputs have the wrong status."""

    gap: float
    wrong: int


@dataclass(frozen=True)
class Outcome:
    """One training run, seen early and at its end, as (W, What)."""

    early: tuple[Look, Look]
    end: tuple[Look, Look]
    seconds: float


class Referee:
    """Knows the optimum and judges points by it."""

    def __init__(self, dataset: Dataset, strength: float, tolerance: float = 1e-8) -> None:
        inputs = dataset.train_inputs.astype(np.float64)
        self.problem = Problem(inputs, dataset.train_targets, strength)
        self.kernel, self.bias = solve(self.problem, tolerance)
        self.objective = self.problem.objective(self.kernel, self.bias)

    def look(self, params: nnx.State) -> Look:
        kernel, bias = (np.asarray(params[name][...], np.float64) for name in ("kernel", "bias"))
        wrong = kernel.any(axis=1) != self.kernel.any(axis=1)
        return Look(self.problem.objective(kernel, bias) - self.objective, int(wrong.sum()))

    def margins(self) -> str:
        """How close the inputs nearest to changing their status are to it."""
        grad, _ = self.problem.gradient(self.kernel, self.bias)
        kept = np.asarray(self.kernel.any(axis=1))
        slack = np.sort(1 - np.linalg.norm(grad[~kept], axis=1) / self.problem.row_strength)
        norms = np.sort(np.linalg.norm(self.kernel[kept], axis=1))
        return (
            f"{kept.sum()} of {kept.size} inputs kept. Dual norms of the zero inputs nearest to "
            f"the threshold, below it by a share of {_list(slack[:4])}; smallest norms of kept "
            f"inputs {_list(norms[:4])}, median "
            f"{np.median(norms):.1e}"
        )


def train(dataset: Dataset, referee: Referee, overrides: str, seeds: int) -> list[Outcome]:
    """RAMDA from several seeds, judged early and at the end."""
    run = make_run(find("mnist_linear"), "ramda", "paper", split_overrides(overrides.split()))
    program = loop.prepare(run, dataset)
    outcomes = []
    for seed in range(seeds):
        state = program.start(seed)
        looks: dict[int, tuple[Look, Look]] = {}
        seconds = 0.0
        for until in (EARLY, run.settings.epochs):
            begun = time.perf_counter()
            for _ in range(until - max(looks, default=0)):
                state, _ = program.epoch(state, program.arrays)
            jax.block_until_ready(state.params)
            seconds += time.perf_counter() - begun
            structured = rj.structured_params(state.opt_state, state.params, values="minimizer")
            looks[until] = (referee.look(state.params), referee.look(structured))
        outcomes.append(Outcome(looks[EARLY], looks[run.settings.epochs], seconds))
    return outcomes


def main() -> None:
    """Prints what was measured: a Markdown table, a line per setting, a figure per seed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.mnist_optimum", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs per setting (default: 3)")
    options = parser.parse_args()
    recipe = find("mnist_linear")
    dataset = recipe.load(None)
    assert isinstance(dataset, Dataset)
    device = f"{os.cpu_count()} CPU cores, {jax.devices()[0].device_kind}, jax {jax.__version__}"
    print(f"RAMDA on {recipe.title} ({dataset.source}), {recipe.settings.epochs} epochs; {device}.")
    begun = time.perf_counter()
    referee = Referee(dataset, recipe.methods["ramda"].strength)
    seconds = time.perf_counter() - begun
    certificate = referee.problem.violation(referee.kernel, referee.bias)
    print(f"F* = {referee.objective:.9f}, subgradient {certificate:.0e}, in {seconds:.0f} s.")
    print(f"{referee.margins()}.\n")
    print(
        f"| settings | wrong inputs of W / What after {EARLY} epochs | at the end "
        "| F - F* of W | of What | seconds |\n| --- | --- | --- | --- | --- | --- |"
    )
    for name, overrides in SETTINGS.items():
        outcomes = train(dataset, referee, overrides, options.seeds)
        cells = (
            f"{name}: `{overrides}`" if overrides else name,
            ", ".join(f"{o.early[0].wrong} / {o.early[1].wrong}" for o in outcomes),
            ", ".join(f"{o.end[0].wrong} / {o.end[1].wrong}" for o in outcomes),
            _list([o.end[0].gap for o in outcomes]),
            _list([o.end[1].gap for o in outcomes]),
            ", ".join(f"{o.seconds:.1f}" for o in outcomes),
        )
        print(f"| {' | '.join(cells)} |", flush=True)


def _list(values: np.ndarray | list[float]) -> str:
    return ", ".join(f"{value:.1e}" for value in values)


if __name__ == "__main__":
    main()
