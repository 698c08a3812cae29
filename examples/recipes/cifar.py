"""What the recipes on CIFAR-10 and CIFAR-100 have in common, and a stand-in for who has neither.

The stand-in is Fashion-MNIST in the format of CIFAR, under names of its own; it takes the
hyperparameters of CIFAR-10.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

import ramda_jax as rj
from examples import classification, methods
from examples.data import Dataset, augment, cifar, idx
from examples.recipe import Recipe, Settings


class Images(NamedTuple):
    """A set of 32 x 32 x 3 images in bytes.

    Attributes:
        name: what the names of its recipes begin with.
        title: the set in words.
        load: data folder or None -> the set.
        classes: how many.
        standardize: bytes -> float32 of zero mean and unit variance.
    """

    name: str
    title: str
    load: Callable[[Path | None], Dataset]
    classes: int
    standardize: Callable[[jax.Array], jax.Array]


CIFAR10 = Images(
    "cifar",
    "CIFAR-10",
    cifar.Cifar10(),
    10,
    augment.standardize(cifar.CIFAR10_MEAN, cifar.CIFAR10_STD),
)
CIFAR100 = Images(
    "cifar100",
    "CIFAR-100",
    cifar.Cifar100(),
    100,
    augment.standardize(cifar.CIFAR100_MEAN, cifar.CIFAR100_STD),
)
STAND_IN = Images(
    "fashion_mnist",
    "Fashion-MNIST (padded and tripled to 32 x 32 x 3)",
    idx.FashionMnistAsCifar(),
    10,
    augment.standardize((idx.FASHION_MEAN,) * 3, (idx.FASHION_STD,) * 3),
)

# Smaller shares of the set for the other scales.
SMALL = {
    "epochs": 6,
    "stages": (2, 4),
    "checkpoint_every": 0,
    "data.train_limit": 10_240,
    "data.test_limit": 2000,
    "eval_train_examples": 2000,
}
SMOKE = {
    "epochs": 2,
    "stages": (1,),
    "checkpoint_every": 0,
    "data.train_limit": 1280,
    "data.test_limit": 500,
    "eval_train_examples": 500,
}


def classifier(
    images: Images,
    network: str,
    model: Callable[[nnx.Rngs, Any], nnx.Module],
    strengths: Mapping[str, float],
    scales: Mapping[str, Mapping[str, Any]],
) -> Recipe:
    """A network on a set of images, with the paper's settings for CIFAR.

    Args:
        images: the set.
        network: its name.
        model: what builds it.
        strengths: of the regularizer, by method.
        scales: changes of the scales other than `paper`.
    """
    return Recipe(
        name=f"{images.name}_{network.lower()}",
        title=f"{network} on {images.title}, group lasso over inputs",
        load=images.load,
        model=model,
        loss=classification.cross_entropy,
        metrics={"accuracy": classification.correct},
        regularizer=rj.GroupLasso,
        grouping="inputs",
        example=jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32),
        sparsity=("weighted_group_sparsity", rj.weighted_group_sparsity),
        methods={
            "ramda": methods.Ramda(1e-2, strengths["ramda"], momentum=0.01),
            "rmda": methods.Rmda(1e-1, strengths["rmda"], momentum=0.1),
            "prox_sgd": methods.ProxSGD(1e-1, strengths["prox_sgd"], momentum=0.1),
            "prox_adamw": methods.ProxAdamW(1e-3, strengths["prox_adamw"]),
            "prox_ssi": methods.ProxSSI(1e-3, strengths["prox_adamw"]),
            "sgd": methods.Sgd(1e-1, momentum=0.9, weight_decay=5e-4),
        },
        settings=Settings(
            epochs=1000,
            batch_size=128,
            stages=(200, 400, 600, 800),
            eval_train_examples=10_000,
            checkpoint_every=10,
        ),
        scales=scales,
        prepare=images.standardize,
        augment=augment.crop_and_flip,
    )
