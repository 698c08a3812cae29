"""ResNet50 on ImageNet with one group per input channel."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import ramda_jax as rj
from examples import classification, methods
from examples.data import augment, imagenet
from examples.models.resnet import RESNET50_BLOCKS, ResNet
from examples.recipe import Recipe, Settings


@dataclass(frozen=True)
class Model:
    """Builds the network with the stem for large images.

    Attributes:
        classes: at least as many as the data has.
        width: channels of the stem and of the first stage's bottlenecks; doubled at each stage.
        blocks: how many each stage has.
    """

    classes: int = 1000
    width: int = 64
    blocks: tuple[int, ...] = RESNET50_BLOCKS

    def __call__(self, rngs: nnx.Rngs, dtype: Any) -> ResNet:
        return ResNet(
            self.classes,
            stem="imagenet",
            blocks=self.blocks,
            width=self.width,
            dtype=dtype,
            rngs=rngs,
        )


RECIPE = Recipe(
    name="imagenet_resnet50",
    title="ResNet50 on ImageNet, group lasso over inputs",
    load=imagenet.ImageNet(),
    model=Model(),
    loss=classification.smoothed_cross_entropy(0.1),
    metrics={"accuracy": classification.correct},
    regularizer=rj.GroupLasso,
    grouping="inputs",
    example=jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32),
    sparsity=("weighted_group_sparsity", rj.weighted_group_sparsity),
    methods={
        "ramda": methods.Ramda(learning_rate=1e-2, strength=4e-7, momentum=0.01),
        "rmda": methods.Rmda(learning_rate=1.0, strength=1.35e-5, momentum=0.1),
        "prox_sgd": methods.ProxSGD(learning_rate=1e-1, strength=1.25e-5, momentum=0.1),
        "prox_adamw": methods.ProxAdamW(learning_rate=1e-3, strength=1.3e-7),
        "prox_ssi": methods.ProxSSI(learning_rate=1e-3, strength=1.3e-7),
        # paper.md gives the dense run's decay; its rate is the one for CIFAR.
        "sgd": methods.Sgd(learning_rate=1e-1, momentum=0.9, weight_decay=1e-4),
    },
    settings=Settings(
        epochs=160,
        batch_size=256,
        stages=(40, 80, 120),
        eval_batch_size=250,
        eval_train_examples=50_000,
        checkpoint_every=1,
    ),
    # Fewer classes in smaller images.
    scales={
        "small": {
            "epochs": 6,
            "stages": (2, 4),
            "batch_size": 64,
            "checkpoint_every": 0,
            "eval_train_examples": 500,
            "data.classes": 10,
            "data.size": 64,
            "data.resize": 72,
            "data.threads": 2,
            "model.classes": 10,
            "model.width": 16,
            "model.blocks": (1, 1, 1, 1),
        },
        "smoke": {
            "epochs": 2,
            "stages": (1,),
            "batch_size": 16,
            "steps_per_epoch": 10,
            "checkpoint_every": 0,
            "eval_batch_size": 50,
            "eval_train_examples": 50,
            "data.classes": 2,
            "data.size": 32,
            "data.resize": 36,
            "data.threads": 2,
            "model.classes": 2,
            "model.width": 4,
            "model.blocks": (1, 1),
        },
    },
    prepare=augment.standardize(imagenet.MEAN, imagenet.STD),
)
