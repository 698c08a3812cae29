"""ResNet50 on CIFAR-10, on CIFAR-100 and on the stand-in, with one group per input channel."""

from dataclasses import dataclass
from typing import Any

from flax import nnx

from examples.models.resnet import RESNET50_BLOCKS, ResNet
from examples.recipes import cifar


@dataclass(frozen=True)
class Model:
    """Builds the network with the stem for small images.

    Attributes:
        classes: as many as the data has.
        width: channels of the stem and of the first stage's bottlenecks; doubled at each stage.
        blocks: how many each stage has.
    """

    classes: int
    width: int = 64
    blocks: tuple[int, ...] = RESNET50_BLOCKS

    def __call__(self, rngs: nnx.Rngs, dtype: Any) -> ResNet:
        return ResNet(self.classes, blocks=self.blocks, width=self.width, dtype=dtype, rngs=rngs)


_SCALES = {
    "small": {**cifar.SMALL, "model.width": 16, "model.blocks": (1, 1, 1, 1)},
    "smoke": {**cifar.SMOKE, "model.width": 4, "model.blocks": (1, 1)},
}
_CIFAR10 = {"ramda": 1e-6, "rmda": 5e-5, "prox_sgd": 5e-5, "prox_adamw": 5e-7}
_CIFAR100 = {"ramda": 5e-7, "rmda": 2e-4, "prox_sgd": 4e-5, "prox_adamw": 1e-6}

RECIPES = tuple(
    cifar.classifier(images, "ResNet50", Model(images.classes), strengths, _SCALES)
    for images, strengths in (
        (cifar.CIFAR10, _CIFAR10),
        (cifar.CIFAR100, _CIFAR100),
        (cifar.STAND_IN, _CIFAR10),
    )
)
