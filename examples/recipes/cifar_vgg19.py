"""VGG19 on CIFAR-10, on CIFAR-100 and on the stand-in, with one group per input channel."""

from dataclasses import dataclass
from typing import Any

from flax import nnx

from examples.models.vgg import VGG
from examples.recipes import cifar


@dataclass(frozen=True)
class Model:
    """Builds the network; between its stages are poolings.

    Attributes:
        classes: as many as the data has.
        width: channels of the first stage; doubled at each stage up to eight times as many.
        convolutions: how many each stage has.
    """

    classes: int
    width: int = 64
    convolutions: tuple[int, ...] = (2, 2, 4, 4, 4)

    def __call__(self, rngs: nnx.Rngs, dtype: Any) -> VGG:
        widths = [
            (self.width * min(2**stage, 8),) * count
            for stage, count in enumerate(self.convolutions)
        ]
        return VGG(self.classes, widths=widths, dtype=dtype, rngs=rngs)


_SCALES = {
    "small": {**cifar.SMALL, "model.width": 16},
    "smoke": {**cifar.SMOKE, "model.width": 4, "model.convolutions": (1, 1)},
}
_CIFAR10 = {"ramda": 8e-7, "rmda": 1.5e-4, "prox_sgd": 3e-5, "prox_adamw": 1e-6}
_CIFAR100 = {"ramda": 2e-7, "rmda": 1e-4, "prox_sgd": 4e-5, "prox_adamw": 1e-6}

RECIPES = tuple(
    cifar.classifier(images, "VGG19", Model(images.classes), strengths, _SCALES)
    for images, strengths in (
        (cifar.CIFAR10, _CIFAR10),
        (cifar.CIFAR100, _CIFAR100),
        (cifar.STAND_IN, _CIFAR10),
    )
)
