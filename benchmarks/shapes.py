"""The parameters of the paper's models, and gradients for them; nothing is trained here."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import ramda_jax as rj
from examples.models.mlp import MLP
from examples.models.resnet import ResNet
from examples.models.transformer_xl import TransformerXL
from examples.models.vgg import VGG
from examples.models.vit import MaskedImageModel

FASHION_MLP = (784, 512, 256, 128, 64, 32, 16, 10)

MODELS: dict[str, Callable[[nnx.Rngs], nnx.Module]] = {
    "vgg19": lambda rngs: VGG(10, rngs=rngs),
    "resnet50": lambda rngs: ResNet(1000, stem="imagenet", rngs=rngs),
    "transformer_xl": lambda rngs: TransformerXL(rngs=rngs),
    "vit": lambda rngs: MaskedImageModel(rngs=rngs),
    "fashion_mlp": lambda rngs: MLP(FASHION_MLP, rngs=rngs),
}

# The structure of each model in the paper.
REGULARIZERS: dict[str, Callable[[float], Any]] = {
    name: rj.NuclearNorm if name in ("vit", "fashion_mlp") else rj.GroupLasso for name in MODELS
}


def abstract_params(name: str) -> Any:
    """The parameters as shapes and dtypes: nothing is allocated."""
    model = nnx.eval_shape(lambda: MODELS[name](nnx.Rngs(0)))
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def random_like(tree: Any, seed: int, scale: float) -> Any:
    """Normal numbers of standard deviation `scale`."""
    rng = np.random.default_rng(seed)

    def draw(leaf: Any) -> jax.Array:
        return jnp.asarray(scale * rng.standard_normal(leaf.shape, np.float32), leaf.dtype)

    return jax.tree.map(draw, tree)


def gradients(tree: Any, count: int, seed: int = 1) -> list[Any]:
    """A mean plus noise twice as large, which differs from entry to entry over two orders of magnitude.

    So the metric is ill-conditioned, and groups differ in how long they resist the regularizer.
    """
    rng = np.random.default_rng(seed)

    def draw(leaf: Any) -> list[jax.Array]:
        scale = 10.0 ** rng.uniform(-4, -2, leaf.shape).astype(np.float32)
        mean = rng.standard_normal(leaf.shape, np.float32)
        noise = [rng.standard_normal(leaf.shape, np.float32) for _ in range(count)]
        return [jnp.asarray(scale * (mean + 2 * n), leaf.dtype) for n in noise]

    leaves, treedef = jax.tree.flatten(tree)
    drawn = [draw(leaf) for leaf in leaves]
    return [jax.tree.unflatten(treedef, [d[k] for d in drawn]) for k in range(count)]
