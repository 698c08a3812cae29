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

# Those whose structure in the paper is low rank; that of the others is groups.
LOW_RANK = ("vit", "fashion_mlp")

# Inputs of one example each. A transformer's kernels are matrices, (in, out): they need no network.
_FLOAT = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
INPUTS: dict[str, tuple[Any, ...]] = {
    "vgg19": (_FLOAT(1, 32, 32, 3),),
    "resnet50": (_FLOAT(1, 224, 224, 3),),
    "vit": (_FLOAT(1, 32, 32, 3), jax.ShapeDtypeStruct((1, 64), jnp.bool_)),
    "fashion_mlp": (_FLOAT(1, 784),),
}


def assignment(psi: Any, model: nnx.Module, *inputs: Any) -> Any:
    """A regularizer of the model's matrices, or of groups per input."""
    model.eval()
    net = rj.network(model, *inputs)
    return net.matrices(psi) if isinstance(psi, rj.NuclearNorm) else net.inputs(psi)


def regularizer(name: str, strength: Any) -> Any:
    """The structure of a model in the paper."""
    psi = rj.NuclearNorm(strength) if name in LOW_RANK else rj.GroupLasso(strength)
    if name not in INPUTS:
        return psi
    model = nnx.eval_shape(lambda: MODELS[name](nnx.Rngs(0)))
    return assignment(psi, model, *INPUTS[name])


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
