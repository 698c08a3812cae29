"""Logistic regression on MNIST with one group per input pixel: the paper's convex problem.

Convex, so it has an optimum to compare with: which pixels a method keeps is right or wrong.
"""

from typing import Any

import numpy as np
from flax import nnx

import ramda_jax as rj
from examples import classification, data, methods
from examples.recipe import Recipe, Settings


def model(rngs: nnx.Rngs, dtype: Any) -> nnx.Linear:
    """One dense layer, started at the origin."""
    zeros = nnx.initializers.zeros
    return nnx.Linear(784, 10, kernel_init=zeros, bias_init=zeros, dtype=dtype, rngs=rngs)


def pixel_norms(params: nnx.State) -> np.ndarray:
    """Norm of each input pixel's weights, as the 28 x 28 image it is a pixel of."""
    return np.linalg.norm(np.asarray(params["kernel"][...]), axis=-1).reshape(28, 28)


RECIPE = Recipe(
    name="mnist_linear",
    title="logistic regression on MNIST, group lasso over input pixels",
    load=data.mnist,
    model=model,
    loss=classification.cross_entropy,
    metrics={"accuracy": classification.correct},
    regularizer=rj.GroupLasso,
    sparsity=("weighted_group_sparsity", rj.weighted_group_sparsity),
    methods={
        "ramda": methods.Ramda(learning_rate=1e-2, strength=1e-3, momentum=0.01),
        "rmda": methods.Rmda(learning_rate=1e-1, strength=1e-3, momentum=0.1),
        "prox_sgd": methods.ProxSGD(learning_rate=1e-1, strength=1e-3, momentum=0.1),
        "prox_adamw": methods.ProxAdamW(learning_rate=1e-3, strength=1e-3),
        "prox_ssi": methods.ProxSSI(learning_rate=1e-3, strength=1e-3),
        # The paper has no dense run of this task; these rates are ours.
        "sgd": methods.Sgd(learning_rate=1e-2),
        "adamw": methods.AdamW(learning_rate=1e-3),
    },
    settings=Settings(
        epochs=500, batch_size=128, stages=(100, 200, 300, 400), eval_batch_size=4000
    ),
    scales={
        "small": {"epochs": 50, "stages": (10, 20, 30, 40)},
        "smoke": {"epochs": 6, "stages": (4,)},
    },
    picture=pixel_norms,
)
