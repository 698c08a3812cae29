"""Plain JAX: matrices of low rank by the nuclear norm, each cut into two factors; no framework, one compiled loop.

python -m examples.scripts.plain_jax
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import ramda_jax as rj

STEPS = 200


def apply(params, x):
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["weights"] + layer["bias"])
    return x @ params[-1]["weights"] + params[-1]["bias"]


def loss(params, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(apply(params, x), y).mean()


def initial(rng, widths):
    return [
        {
            "weights": jnp.asarray(rng.normal(size=(m, n)) * (2 / m) ** 0.5, "float32"),
            "bias": jnp.zeros(n),
        }
        for m, n in itertools.pairwise(widths)
    ]


def main():
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype("float32")
    x, y, x_test, y_test = images[:1200], labels[:1200], images[1200:], labels[1200:]
    rng = np.random.default_rng(0)
    params = initial(rng, (64, 96, 10))

    # Every weight as a matrix of inputs by outputs. By hand: rj.by_path([("weights$", rj.NuclearNorm(1e-2)), ("", None)])
    low_rank = rj.network(apply, params, x[:1]).matrices(rj.NuclearNorm(1e-2))
    method = rj.ramda(regularizer=low_rank, **rj.stages(1e-2, total_steps=STEPS))

    def step(carry, rows):
        params, state = carry
        gradients = jax.grad(loss)(params, x[rows], y[rows])
        updates, state = method.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), None

    x, y = jnp.asarray(x), jnp.asarray(y)
    rows = jnp.asarray(rng.integers(len(x), size=(STEPS, 64)))
    run = jax.jit(lambda carry: jax.lax.scan(step, carry, rows)[0])
    params, _state = run((params, method.init(params)))

    for name, value in rj.summary(params, low_rank).items():
        print(f"{name}: {value:.3g}")
    small = rj.compact(apply, params, x[:1])
    print(small.report())
    accuracies = []
    for outputs in (apply(params, x_test), small.apply(small.params, x_test)):
        accuracies.append(float((outputs.argmax(-1) == y_test).mean()))
        print(f"test accuracy {accuracies[-1]:.3f}")
    return accuracies, small.report()


if __name__ == "__main__":
    main()
