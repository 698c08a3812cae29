"""Training as benchmarks need it: an epoch is one compiled loop over arrays that lie on the device."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from examples.data import Dataset

Apply = Callable[[Any, jax.Array], jax.Array]
Look = Callable[[Any], Any]


class Data(NamedTuple):
    """Inputs and labels, to train on and to evaluate on."""

    inputs: jax.Array
    targets: jax.Array
    test_inputs: jax.Array
    test_targets: jax.Array


def on_device(dataset: Dataset) -> Data:
    return Data(
        jnp.asarray(dataset.train_inputs),
        jnp.asarray(dataset.train_targets),
        jnp.asarray(dataset.test_inputs),
        jnp.asarray(dataset.test_targets),
    )


def steps_of(data: Data, batch: int) -> int:
    """Steps of an epoch; what is left over of the examples is left out."""
    return len(data.inputs) // batch


def make_epoch(
    apply: Apply, tx: optax.GradientTransformation, batch: int, look: Look | None = None
) -> Callable[[tuple[Any, Any], Data, jax.Array], tuple[tuple[Any, Any], Any]]:
    """((params, state), data, key) -> ((params, state), what `look(state)` is after every step)."""

    def loss(params: Any, inputs: jax.Array, targets: jax.Array) -> jax.Array:
        losses = optax.softmax_cross_entropy_with_integer_labels(apply(params, inputs), targets)
        return jnp.mean(losses)

    def epoch(carry: tuple[Any, Any], data: Data, key: jax.Array) -> tuple[tuple[Any, Any], Any]:
        order = jax.random.permutation(key, len(data.inputs))
        rows = order[: steps_of(data, batch) * batch].reshape(-1, batch)

        def step(carry: tuple[Any, Any], rows: jax.Array) -> tuple[tuple[Any, Any], Any]:
            params, state = carry
            grads = jax.grad(loss)(params, data.inputs[rows], data.targets[rows])
            updates, state = tx.update(grads, state, params)
            seen = None if look is None else look(state)
            return (optax.apply_updates(params, updates), state), seen

        return jax.lax.scan(step, carry, rows)

    return jax.jit(epoch, donate_argnums=0)


def train(
    apply: Apply,
    tx: optax.GradientTransformation,
    params: Any,
    data: Data,
    batch: int,
    seed: int,
    epochs: range,
    look: Look | None = None,
) -> tuple[Any, Any, list[Any]]:
    """(params, the optimizer's state, what `look` saw, an array per epoch) after these epochs.

    The order of the examples is that of the seed and the epoch, whoever trains.
    """
    run = make_epoch(apply, tx, batch, look)
    # Copied: an epoch takes what it is given, and others start from the same parameters.
    carry, seen = (jax.tree.map(jnp.copy, params), tx.init(params)), []
    for k in epochs:
        carry, own = run(carry, data, jax.random.fold_in(jax.random.key(seed), k))
        seen.append(jax.device_get(own))
    return *carry, seen


def accuracy(apply: Apply, params: Any, data: Data, batch: int = 1000) -> float:
    """The share of the examples to evaluate on that are classified right."""

    @jax.jit
    def right(params: Any, inputs: jax.Array, targets: jax.Array) -> jax.Array:
        return jnp.sum(jnp.argmax(apply(params, inputs), axis=-1) == targets)

    total = sum(
        int(right(params, data.test_inputs[k : k + batch], data.test_targets[k : k + batch]))
        for k in range(0, len(data.test_inputs), batch)
    )
    return total / len(data.test_inputs)
