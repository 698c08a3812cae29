"""A task of milliseconds with everything the loop has slots for: batch statistics and dropout."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import ramda_jax as rj
from examples import classification, methods
from examples.data import Dataset, Stream
from examples.data.pipeline import batches_in_order
from examples.recipe import Recipe, Settings, make_run


class Net(nnx.Module):
    def __init__(self, hidden, dtype, rngs):
        self.inner = nnx.Linear(6, hidden, dtype=dtype, rngs=rngs)
        self.norm = nnx.BatchNorm(hidden, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.outer = nnx.Linear(hidden, 3, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.outer(self.dropout(nnx.relu(self.norm(self.inner(x)))))


@dataclass(frozen=True)
class Model:
    hidden: int = 8

    def __call__(self, rngs: nnx.Rngs, dtype: Any) -> Net:
        return Net(self.hidden, dtype, rngs)


class PlainNet(nnx.Module):
    """Without dropout, and without a bias before the norm: its gradient is rounding errors only."""

    def __init__(self, hidden, dtype, rngs):
        self.inner = nnx.Linear(6, hidden, use_bias=False, dtype=dtype, rngs=rngs)
        self.norm = nnx.BatchNorm(hidden, dtype=dtype, rngs=rngs)
        self.outer = nnx.Linear(hidden, 3, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.outer(nnx.relu(self.norm(self.inner(x))))


@dataclass(frozen=True)
class PlainModel(Model):
    def __call__(self, rngs: nnx.Rngs, dtype: Any) -> PlainNet:
        return PlainNet(self.hidden, dtype, rngs)


@dataclass(frozen=True)
class Load:
    train: int = 70

    def __call__(self, data_dir: Any) -> Dataset:
        rng = np.random.default_rng(0)
        centers = rng.normal(size=(3, 6))
        targets = rng.integers(0, 3, self.train + 25).astype(np.int32)
        inputs = (centers[targets] + 0.3 * rng.normal(size=(len(targets), 6))).astype(np.float32)
        n = self.train
        return Dataset(inputs[:n], targets[:n], inputs[n:], targets[n:], "made up")


RECIPE = Recipe(
    name="tiny",
    title="a tiny task",
    load=Load(),
    model=Model(),
    loss=classification.cross_entropy,
    metrics={"accuracy": classification.correct},
    regularizer=rj.GroupLasso,
    sparsity=("weighted_group_sparsity", rj.weighted_group_sparsity),
    methods={
        "ramda": methods.Ramda(learning_rate=1e-1, strength=1e-3, momentum=0.5),
        "sgd": methods.Sgd(learning_rate=1e-1, weight_decay=1e-4),
        "adamw": methods.AdamW(learning_rate=1e-2),
    },
    settings=Settings(epochs=4, batch_size=16, stages=(2,), eval_batch_size=16),
    scales={"smoke": {"epochs": 1, "model.hidden": 4}},
)


def tiny_run(optimizer="ramda", recipe=RECIPE, **overrides):
    """A run with some fields given as on a command line."""
    return make_run(recipe, optimizer, "paper", {k: str(v) for k, v in overrides.items()})


def changed(**fields):
    """The recipe with some of its fields changed."""
    return replace(RECIPE, **fields)


# What does not depend on how many devices draw random numbers; axes that eight devices can share.
PLAIN = changed(name="plain", model=PlainModel(hidden=8))


class Counter(nnx.Module):
    """Remembers the sum of all inputs so far; its output is that sum times a weight."""

    def __init__(self, dtype, rngs):
        self.kernel = nnx.Param(jnp.ones((1, 1)))

    def __call__(self, inputs, memory):
        memory = memory + jnp.sum(inputs, axis=1, keepdims=True)
        return memory @ self.kernel[...], memory


def counting_stream():
    """Three batches of ones a pass, in order."""

    def batches(size):
        ones = np.ones((3 * size, 2), np.float32)
        return batches_in_order(list(ones), size, lambda row: (row, np.float32(0)))

    return Stream(lambda size, seed: batches(size), batches, batches, 12, 12, "ones", threads=0)


def counting_run():
    """Sums ones: a model with a memory whose parameters all but stay."""
    recipe = changed(
        model=lambda rngs, dtype: Counter(dtype, rngs),
        forward=lambda model, inputs, memory: model(inputs, memory),
        memory=lambda model, size: jnp.zeros((size, 1)),
        loss=lambda outputs, targets: outputs[:, 0],
        metrics={"last": lambda outputs, targets: outputs[:, 0]},
        derived={"double": lambda loss: 2 * loss},
    )
    return tiny_run(
        "sgd", recipe, batch_size=4, eval_batch_size=4, learning_rate=1e-30, epochs=3,
        steps_per_epoch=2, stages="",
    )  # fmt: skip
