"""A vision transformer that fills in hidden patches, trained to low rank by a nuclear norm.

On CIFAR-10, and on the stand-in. Labels are not used.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

import ramda_jax as rj
from examples import methods
from examples.data import augment
from examples.models.vit import MaskedImageModel, MaskedPixels, masked_l1, random_mask
from examples.recipe import Recipe, Settings
from examples.recipes import cifar
from examples.recipes.fashion_mnist_mlp import PAPER_SOLVER

_SIDE, _PATCH = 32, 4
_MASKED = 0.6

# Pixels in [-1, 1], as is usual for such models; paper.md names no scale, on which the loss depends.
_scale = augment.standardize((0.5,) * 3, (0.5,) * 3)


@dataclass(frozen=True)
class Model:
    """Builds the network for patches of 4 x 4 pixels.

    Attributes:
        features: size of the token vectors.
        layers: number of blocks.
        heads: number of attention heads; divides `features`.
        hidden: units between the two dense layers of a block.
    """

    features: int = 192
    layers: int = 4
    heads: int = 4
    hidden: int = 768

    def __call__(self, rngs: nnx.Rngs, dtype: Any) -> MaskedImageModel:
        return MaskedImageModel(
            image_size=_SIDE,
            patch_size=_PATCH,
            features=self.features,
            layers=self.layers,
            heads=self.heads,
            hidden=self.hidden,
            dtype=dtype,
            rngs=rngs,
        )


class Filled(NamedTuple):
    """What the network makes of images with hidden patches, and these.

    Attributes:
        pixels: (n, size, size, channels) that it gives for all patches.
        wanted: the images, and where they were hidden.
    """

    pixels: jax.Array
    wanted: MaskedPixels


def hide(key: jax.Array, images: jax.Array) -> MaskedPixels:
    """Images shifted and mirrored at random, with the patches to hide."""
    image_key, mask_key = jax.random.split(key)
    return MaskedPixels(augment.crop_and_flip(image_key, images), _masks(mask_key, images))


def prepare(inputs: jax.Array | MaskedPixels) -> MaskedPixels:
    """Scaled images, with the patches to hide: in evaluation the same in every epoch."""
    if not isinstance(inputs, MaskedPixels):
        inputs = MaskedPixels(inputs, _masks(jax.random.key(0), inputs))
    return MaskedPixels(_scale(inputs.images), inputs.mask)


def _masks(key: jax.Array, images: jax.Array) -> jax.Array:
    return random_mask(key, len(images), (_SIDE // _PATCH) ** 2, _MASKED)


def fill(model: MaskedImageModel, inputs: MaskedPixels, memory: Any) -> tuple[Filled, Any]:
    """The network sees what is not hidden."""
    return Filled(model(inputs.images, inputs.mask), inputs), memory


def recipe(images: cifar.Images) -> Recipe:
    """The task on a set of images."""
    return Recipe(
        name=f"{images.name}_vit_mim",
        title=f"masked image modelling on {images.title}, nuclear norm of every matrix",
        load=images.load,
        model=Model(),
        loss=lambda filled, labels: masked_l1(filled.pixels, filled.wanted),
        metrics={},
        regularizer=rj.NuclearNorm,
        grouping="matrices",
        example=jax.eval_shape(lambda: prepare(jnp.zeros((1, _SIDE, _SIDE, 3), jnp.uint8))),
        sparsity=("low_rank_level", rj.low_rank_level),
        # There is no ProxSSI: it is a method for group norms.
        methods={
            "ramda": methods.Ramda(learning_rate=1e-2, strength=1e-5, momentum=0.1, **PAPER_SOLVER),
            "rmda": methods.Rmda(learning_rate=10.0, strength=1e-5, momentum=0.1),
            "prox_sgd": methods.ProxSGD(
                learning_rate=10.0, strength=2.5e-5, schedule="linear", momentum=0.1
            ),
            "prox_adamw": methods.ProxAdamW(
                learning_rate=1e-3, strength=1e-4, schedule="linear", **PAPER_SOLVER
            ),
            # paper.md gives no rate for the dense run; this one and its fall are ProxAdamW's.
            "adamw": methods.AdamW(learning_rate=1e-3, schedule="linear"),
        },
        settings=Settings(
            epochs=300,
            batch_size=128,
            stages=(100, 200),
            eval_train_examples=10_000,
            checkpoint_every=10,
        ),
        scales={
            "small": {
                **cifar.SMALL,
                "model.features": 48,
                "model.layers": 2,
                "model.hidden": 192,
            },
            "smoke": {
                **cifar.SMOKE,
                "model.features": 16,
                "model.layers": 1,
                "model.heads": 2,
                "model.hidden": 32,
            },
        },
        forward=fill,
        prepare=prepare,
        augment=hide,
    )


RECIPES = (recipe(cifar.CIFAR10), recipe(cifar.STAND_IN))
