"""Flax Linen: few inputs of every layer are kept; a point with zeros to deploy in the midst of training.

python -m examples.scripts.with_linen
"""

import jax
import numpy as np
import optax
from flax import linen
from flax.training.train_state import TrainState
from sklearn.datasets import load_digits

import ramda_jax as rj

STEPS = 300


class Network(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.relu(linen.Dense(128)(x))
        return linen.Dense(10)(x)


@jax.jit
def step(state, x, y):
    def loss(params):
        outputs = state.apply_fn({"params": params}, x)
        return optax.softmax_cross_entropy_with_integer_labels(outputs, y).mean()

    return state.apply_gradients(grads=jax.grad(loss)(state.params))


def main():
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype("float32")
    x, y, x_test, y_test = images[:1200], labels[:1200], images[1200:], labels[1200:]

    model = Network()
    variables = model.init(jax.random.key(0), x[:1])
    # A group is an input of a layer: a pixel, or a neuron of the layer before.
    inputs = rj.network(model.apply, variables, x[:1]).inputs(rj.GroupLasso(1e-3))
    print(rj.describe(variables["params"], inputs))

    method = rj.ramda(regularizer=inputs, **rj.stages(1e-2, total_steps=STEPS))
    state = TrainState.create(apply_fn=model.apply, params=variables["params"], tx=method)

    def report(name, params):
        outputs = np.asarray(model.apply({"params": params}, x_test))
        correct = outputs.argmax(-1) == y_test
        sparsity = rj.summary(params, inputs)["group_sparsity"]
        print(f"{name}: test accuracy {correct.mean():.3f}, {sparsity:.0%} of the inputs zero")
        return float(correct.mean()), sparsity

    rng, points = np.random.default_rng(0), []
    for number in range(1, STEPS + 1):
        rows = rng.integers(len(x), size=64)
        state = step(state, x[rows], y[rows])
        if number % 150 == 0:
            # In mid-run the parameters W are dense; the point to deploy is not. At the end they are one.
            point = rj.structured_params(state.opt_state, state.params)
            points.append((report(f"step {number}, W", state.params), report("to deploy", point)))

    small = rj.compact(model.apply, {"params": point}, x[:1])
    print(small.report())
    return points, small.report()


if __name__ == "__main__":
    main()
