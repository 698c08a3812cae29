"""What the optimizer adds to a whole training step: forward, backward, update.

    python -m benchmarks.train [--models vit resnet50] [--batch-size N] [--json FILE]

The same model, the same batch, float32; optax.adamw and the methods of this library take turns in
one process, and a ratio is that of one round. Inputs are random: what is measured does not depend
on them.
"""

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import ramda_jax as rj
from benchmarks import measure, shapes
from examples.models.mlp import MLP
from examples.models.resnet import ResNet
from examples.models.vgg import VGG
from examples.models.vit import MaskedImageModel, MaskedPixels, masked_l1, random_mask

BASELINE = "optax.adamw"


class Task(NamedTuple):
    """A model and what it is trained on.

    Attributes:
        make: random streams -> model.
        loss: (model, images, labels) -> scalar.
        image: shape of one input.
        batch_size: of the paper, or as much of it as a step of seconds allows.
        regularizer: strength -> regularizer.
        strength: of the paper.
    """

    make: Callable[[nnx.Rngs], nnx.Module]
    loss: Callable[[Any, jax.Array, jax.Array], jax.Array]
    image: tuple[int, ...]
    batch_size: int
    regularizer: Callable[[float], Any]
    strength: float


def classify(model: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()


def fill_in(model: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
    """Masked image modelling: 60 % of the patches are hidden; `labels` is not used."""
    patches = (images.shape[1] // 4) ** 2
    mask = random_mask(jax.random.key(0), len(images), patches, 0.6)
    return masked_l1(model(images, mask), MaskedPixels(images, mask)).mean()


TASKS = {
    "vit": Task(
        lambda rngs: MaskedImageModel(rngs=rngs), fill_in, (32, 32, 3), 128, rj.NuclearNorm, 1e-5
    ),
    "vit group lasso": Task(
        lambda rngs: MaskedImageModel(rngs=rngs), fill_in, (32, 32, 3), 128, rj.GroupLasso, 1e-5
    ),
    "resnet50": Task(
        lambda rngs: ResNet(10, rngs=rngs), classify, (32, 32, 3), 16, rj.GroupLasso, 1e-6
    ),
    "vgg19": Task(lambda rngs: VGG(10, rngs=rngs), classify, (32, 32, 3), 32, rj.GroupLasso, 8e-7),
    "fashion_mlp": Task(
        lambda rngs: MLP(shapes.FASHION_MLP, rngs=rngs), classify, (784,), 128, rj.NuclearNorm, 1e-3
    ),
}


def _inputs(task: Task) -> tuple[Any, ...]:
    images = jax.ShapeDtypeStruct((1, *task.image), jnp.float32)
    patches = jax.ShapeDtypeStruct((1, (task.image[0] // 4) ** 2), jnp.bool_)
    return (images, patches) if task.loss is fill_in else (images,)


def methods(task: Task) -> dict[str, optax.GradientTransformation]:
    model = nnx.eval_shape(lambda: task.make(nnx.Rngs(0)))
    psi = shapes.assignment(task.regularizer(task.strength), model, *_inputs(task))
    return {
        BASELINE: optax.adamw(1e-3),
        "rmda": rj.rmda(1e-1, psi),
        "prox_sgd": rj.prox_sgd(1e-1, psi),
        "prox_adamw": rj.prox_adamw(1e-3, psi),
        "ramda": rj.ramda(1e-2, psi),
    }


class TrainingStep:
    """Donated training steps of one model with one method, on one batch."""

    def __init__(self, task: Task, tx: optax.GradientTransformation, batch_size: int) -> None:
        model = task.make(nnx.Rngs(0))
        graph, *states = nnx.split(model, nnx.Param, ...)
        self.params: Any
        self.rest: Any
        self.params, self.rest = states
        self.state = tx.init(self.params)
        keys = jax.random.split(jax.random.key(1))
        self.images = jax.random.normal(keys[0], (batch_size, *task.image))
        self.labels = jax.random.randint(keys[1], (batch_size,), 0, 10)

        def step(params: Any, state: Any, rest: Any, images: Any, labels: Any) -> Any:
            def loss(params: Any) -> Any:
                model = nnx.merge(graph, params, rest, copy=True)
                value = task.loss(model, images, labels)
                return value, nnx.state(model, nnx.Not(nnx.Param))

            (_, new_rest), grads = jax.value_and_grad(loss, has_aux=True)(params)
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state, new_rest

        self.function, self.facts = measure.compiled(
            step, (0, 1, 2), self.params, self.state, self.rest, self.images, self.labels
        )

    def __call__(self) -> None:
        self.params, self.state, self.rest = self.function(
            self.params, self.state, self.rest, self.images, self.labels
        )
        jax.block_until_ready(self.params)


def benchmark(name: str, batch_size: int | None, rounds: int) -> dict[str, Any]:
    """All methods on one task: a report."""
    task = TASKS[name]
    batch_size = batch_size or task.batch_size
    contenders = []
    for method, tx in methods(task).items():
        step = TrainingStep(task, tx, batch_size)
        contenders.append(measure.Contender(method, step, step.facts))
    measure.take_turns(contenders, rounds, warmup=2)
    rows = [measure.compare(c, contenders[0]) for c in contenders]
    return {"task": name, "batch_size": batch_size, "strength": task.strength, "rows": rows}


def table(report: dict[str, Any]) -> str:
    """A Markdown table of one task."""
    lines = [
        f"{report['task']}, batch of {report['batch_size']}, strength {report['strength']:g}",
        "",
        "| method | ms per training step [quartiles] | times optax.adamw | first step s |",
        "| --- | --- | --- | --- |",
    ]
    for row in report["rows"]:
        ratio = row["ratio"]
        lines.append(
            f"| {row['name']} | {measure.milliseconds(row['seconds'])} "
            f"| {ratio['median']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}] "
            f"| {row['compile_seconds']:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=TASKS, default=["vit", "resnet50"])
    parser.add_argument("--batch-size", type=int, help="instead of the task's own")
    parser.add_argument("--rounds", type=int, default=10)
    measure.add_output_argument(parser)
    args = parser.parse_args()
    environment = measure.environment()
    print(", ".join(f"{k} {v}" for k, v in environment.items()), flush=True)
    reports = []
    for name in args.models:
        reports.append(benchmark(name, args.batch_size, args.rounds))
        print(f"\n{table(reports[-1])}", flush=True)
    measure.write(args.json, {"environment": environment, "reports": reports})


if __name__ == "__main__":
    main()
