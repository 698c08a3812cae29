"""Flax NNX: a small convolutional network loses half of what a call costs while it is trained, and is cut.

python -m examples.scripts.with_nnx
"""

import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import ramda_jax as rj

STEPS = 200


class Network(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Conv(1, 8, (3, 3), rngs=rngs)
        self.second = nnx.Conv(8, 16, (3, 3), strides=2, rngs=rngs)
        self.head = nnx.Linear(4 * 4 * 16, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.second(nnx.relu(self.first(x))))
        return self.head(x.reshape(len(x), -1))


def accuracy(outputs, y):
    return float((outputs.argmax(-1) == y).mean())


@nnx.jit
def step(model, optimizer, x, y):
    def loss(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

    optimizer.update(model, nnx.grad(loss)(model))


def main():
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype("float32").reshape(-1, 8, 8, 1)
    x, y, x_test, y_test = images[:1200], labels[:1200], images[1200:], labels[1200:]

    model = Network(nnx.Rngs(0))
    net = rj.network(model, x[:1])
    print(net.describe())

    # A group is a channel: all that reads it, here 16 entries of the head for each channel of the second convolution.
    half_the_cost = rj.TargetSparsity(0.5, of="flops", scope="tree")
    channels = net.channels(rj.GroupLasso(half_the_cost))
    method = rj.ramda(regularizer=channels, **rj.stages(1e-2, total_steps=STEPS))
    # Whatever changes gradients comes before the method: it has the last word, or zeros would not stay zero.
    chain = optax.chain(optax.clip_by_global_norm(1.0), method)
    optimizer = nnx.Optimizer(model, chain, wrt=nnx.Param)

    rng = np.random.default_rng(0)
    for number in range(1, STEPS + 1):
        rows = rng.integers(len(x), size=64)
        step(model, optimizer, x[rows], y[rows])
        if number % 100 == 0:
            zeros = rj.summary(nnx.state(model, nnx.Param), channels)["group_sparsity"]
            print(
                f"step {number}: test accuracy {accuracy(model(x_test), y_test):.3f}, {zeros:.0%} zero"
            )

    small = rj.compact(model, x[:1])
    print(small.report())
    outputs = small.apply(
        small.params, x_test
    )  # the parameters are arrays by path; nothing else is needed
    print(f"compact: test accuracy {accuracy(outputs, y_test):.3f}")
    return accuracy(model(x_test), y_test), accuracy(outputs, y_test), small.report()


if __name__ == "__main__":
    main()
