"""Channels of whole models: the paper's, and a transformer with gated units and grouped queries."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ramda_jax as rj
from examples.models.gated_transformer import GatedTransformer
from examples.models.resnet import ResNet
from examples.models.transformer_xl import TransformerXL
from examples.models.vgg import VGG
from examples.models.vit import MaskedImageModel
from ramda_jax import trees
from ramda_jax.assignment import resolve
from tests.network import masks

S = jax.ShapeDtypeStruct


def _probabilities(model: TransformerXL, tokens: jax.Array) -> jax.Array:
    hidden, _ = model(tokens, model.initial_memory(len(tokens)))
    return model.vocabulary.log_probs(hidden.reshape(-1, hidden.shape[-1]))


class Model(NamedTuple):
    """A model.

    Attributes:
      make: at its full size; only its shapes are looked at.
      small: one of the same kind, that is run.
      inputs: of both.
      statistics: over how many entries the normalizations of the small one run; 0: there are none.
      call: of a model and inputs.
    """

    make: Callable[[nnx.Rngs], nnx.Module]
    small: Callable[[nnx.Rngs], nnx.Module]
    inputs: tuple[Any, ...]
    statistics: int = 0
    call: Callable[..., Any] = lambda model, *inputs: model(*inputs)


IMAGE = (S((1, 32, 32, 3), jnp.float32),)
TOKENS = (S((2, 6), jnp.int32),)
VIT = (*IMAGE, S((1, 64), jnp.bool_))
_XL = {"heads": 2, "head_size": 4, "features": 16, "hidden": 24, "layers": 2, "memory_length": 8}

MODELS = {
    "vgg19": Model(
        lambda r: VGG(10, rngs=r), lambda r: VGG(10, widths=((8, 8), (12,)), rngs=r), IMAGE
    ),
    "resnet50": Model(
        lambda r: ResNet(10, rngs=r), lambda r: ResNet(10, blocks=(1, 2), rngs=r), IMAGE
    ),
    "vit": Model(
        lambda r: MaskedImageModel(rngs=r),
        lambda r: MaskedImageModel(features=16, layers=2, heads=2, hidden=24, rngs=r),
        VIT,
        16,
    ),
    "transformer_xl": Model(
        lambda r: TransformerXL(rngs=r),
        lambda r: TransformerXL(60, (20, 40), **_XL, rngs=r),
        TOKENS,
        16,
        _probabilities,
    ),
    "gated": Model(
        lambda r: GatedTransformer(50, 64, 12, rngs=r),
        lambda r: GatedTransformer(50, 16, 2, rngs=r),
        TOKENS,
        16,
    ),
}

# Spaces that parameters alone read, their channels, the arrays that read them, and how many parameters these are of all.
FIGURES = {
    "vgg19": (16, 5504, 16, 20_022_272, 20_035_018),
    "resnet50": (37, 11_456, 53, 23_465_984, 23_520_842),
    "vit": (9, 3280, 25, 1_778_688, 1_811_376),
    # Without what is read by the tied embedding.
    "transformer_xl": (17, 32_776, 32, 20_971_520, 191_950_298),
    "gated": (25, 2416, 85, 593_024, 597_824),
}


def _see(name: str, make: Callable[[nnx.Rngs], nnx.Module]) -> rj.Network:
    model = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    model.eval()
    return rj.network(MODELS[name].call, model, *MODELS[name].inputs)


@pytest.mark.parametrize("name", MODELS)
def test_spaces_of_the_full_models(name):
    net = _see(name, MODELS[name].make)
    usable = [space for space in net.spaces() if not space.others]
    readers = [slices for space in usable for slices in space.readers]
    figures = (
        len(usable),
        sum(space.number for space in usable),
        len(readers),
        sum(slices.size for slices in readers),
        sum(int(np.prod(shape)) for shape in net.shapes),
    )
    assert figures == FIGURES[name]


def _draw(rng: np.random.Generator, like: Any) -> jax.Array:
    if like.dtype == jnp.float32:
        return jnp.asarray(rng.standard_normal(like.shape), jnp.float32)
    return jnp.asarray(
        rng.integers(0, 2 if like.dtype == jnp.bool_ else 20, like.shape), like.dtype
    )


@pytest.mark.parametrize("name", MODELS)
def test_what_nobody_reads_changes_nothing(name):
    """Of every space a channel whose readers are zero: what its writers do is not seen, but by statistics."""
    model = MODELS[name]
    module = model.small(nnx.Rngs(0))
    module.eval()
    graph, state, rest = nnx.split(module, nnx.Param, ...)
    params: dict[str, Any] = dict(zip(*_named(state), strict=True))
    tree = jax.tree.structure(state)
    rng = np.random.default_rng(0)
    inputs = [_draw(rng, like) for like in model.inputs]

    def apply(params: dict[str, Any], *inputs: Any) -> Any:
        whole = jax.tree.unflatten(tree, [params[path] for path in params])
        return model.call(nnx.merge(graph, whole, rest), *inputs)

    both = jax.jit(masks.frozen_statistics(apply, model.statistics))
    net = _see(name, model.small)
    resolve(net.channels(rj.GroupLasso(0.1), writers=True, tied=True), state)  # disjoint
    usable = [space for space in net.spaces(tied=True) if not space.others]
    assert usable
    for space in usable:
        c = rng.integers(space.number)
        dead, moved = dict(params), {}
        for slices in space.readers:
            mask = masks.ids(slices.shape, slices.view) == c
            dead[slices.path] = jnp.where(mask, 0.0, dead[slices.path])
        for slices in space.writers:
            mask = masks.ids(slices.shape, slices.view) == c
            before = moved.get(slices.path, dead[slices.path])
            moved[slices.path] = before + mask * rng.standard_normal(mask.shape)
        # A parameter that reads and writes the space keeps its zeros.
        for slices in space.readers:
            if slices.path in moved:
                mask = masks.ids(slices.shape, slices.view) == c
                moved[slices.path] = jnp.where(mask, 0.0, moved[slices.path])
        first, second = both(dead, {**dead, **moved}, *inputs)
        np.testing.assert_allclose(second[0], first[0], rtol=1e-4, atol=1e-4, err_msg=space.name)
        _, alive = both(
            params, {**params, **{p: params[p] + (moved[p] - dead[p]) for p in moved}}, *inputs
        )
        assert float(jnp.max(jnp.abs(alive[0] - both(params, params, *inputs)[0][0]))) > 1e-5, (
            space.name
        )


def _named(state: Any) -> tuple[list[str], list[Any]]:
    paths, leaves, _ = trees.flatten(state)
    return paths, leaves


def test_a_scan_over_layers_is_seen_as_the_layers_are():
    """Stacked layers have the channels that layers one by one have: those of a layer are of this layer only."""
    figures = []
    for scanned in (True, False):
        model = nnx.eval_shape(
            lambda s=scanned: GatedTransformer(50, 64, 12, scanned=s, rngs=nnx.Rngs(0))
        )
        net = rj.network(model, *TOKENS)
        usable = [space for space in net.spaces() if not space.others]
        sizes = [slices.size for space in usable for slices in space.readers]
        blocks = resolve(net.channels(rj.GroupLasso(0.1)), nnx.state(model)).blocks
        figures.append((sum(s.number for s in usable), sum(sizes), sum(b.number for b in blocks)))
        assert net.cost().flops > 0
    assert figures[0] == figures[1]
    assert figures[0][0] == 64 + 12 * (192 + 4)
