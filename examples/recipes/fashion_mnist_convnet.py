"""The LeNet-style network on Fashion-MNIST with one group per input channel or neuron."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import ramda_jax as rj
from examples import classification, methods
from examples.data.idx import FashionMnist
from examples.models.convnet import ConvNet
from examples.recipe import Recipe, Settings


@dataclass(frozen=True)
class Model:
    """Builds the network.

    Attributes:
        channels: of the first convolution.
        more_channels: of the second.
        hidden: units of the first dense layer.
    """

    channels: int = 20
    more_channels: int = 50
    hidden: int = 500

    def __call__(self, rngs: nnx.Rngs, dtype: Any) -> ConvNet:
        widths = (self.channels, self.more_channels)
        return ConvNet(10, widths=widths, hidden=self.hidden, dtype=dtype, rngs=rngs)


# 1,900 steps instead of 140,000: what carries nothing has to reach zero faster, and W has to take on
# What's zeros in 1/c^2 of the last 470 steps. One strength for all methods, so that objectives
# compare; for a search of strengths by examples.search see examples/RESULTS.md.
SMALL: dict[str, Any] = {
    "ramda.momentum": 0.1,
    "rmda.learning_rate": 0.5,
    "prox_sgd.learning_rate": 0.5,
    **{
        f"{method}.strength": 2e-4
        for method in ("ramda", "rmda", "prox_sgd", "prox_adamw", "prox_ssi")
    },
    "epochs": 4,
    "stages": (2, 3),
    "eval_train_examples": 10_000,
    "checkpoint_every": 1,
}

# paper.md gives this network no strengths, lengths or stages; rates and momenta are those of the
# paper's other image tasks, the rest is ours.
RECIPE = Recipe(
    name="fashion_mnist_convnet",
    title="LeNet-style network on Fashion-MNIST, group lasso over inputs",
    load=FashionMnist(images=True),
    model=Model(),
    loss=classification.cross_entropy,
    metrics={"accuracy": classification.correct},
    regularizer=rj.GroupLasso,
    grouping="inputs",
    example=jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32),
    sparsity=("weighted_group_sparsity", rj.weighted_group_sparsity),
    methods={
        "ramda": methods.Ramda(learning_rate=1e-2, strength=1e-4, momentum=0.01),
        "rmda": methods.Rmda(learning_rate=1e-1, strength=1e-4, momentum=0.1),
        "prox_sgd": methods.ProxSGD(learning_rate=1e-1, strength=1e-4, momentum=0.1),
        "prox_adamw": methods.ProxAdamW(learning_rate=1e-3, strength=1e-4),
        "prox_ssi": methods.ProxSSI(learning_rate=1e-3, strength=1e-4),
        "sgd": methods.Sgd(learning_rate=1e-2),
        "adamw": methods.AdamW(learning_rate=1e-3),
    },
    settings=Settings(
        epochs=300, batch_size=128, stages=(100, 200), eval_batch_size=1000, checkpoint_every=10
    ),
    scales={
        "small": SMALL,
        "smoke": {
            "epochs": 2,
            "stages": (1,),
            "checkpoint_every": 0,
            "data.train_limit": 2560,
            "data.test_limit": 1000,
            "model.channels": 4,
            "model.more_channels": 8,
            "model.hidden": 32,
        },
    },
)
