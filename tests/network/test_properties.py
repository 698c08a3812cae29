"""Roles and channels proven by derivatives and perturbations, on random networks."""

import functools
import itertools
import math
from typing import Any, NamedTuple

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np

import ramda_jax as rj
from ramda_jax.assignment import resolve
from ramda_jax.network.roles import OUT, STACK
from ramda_jax.subproblem import View
from tests.network import masks

IMAGE = (1, 5, 5)  # examples, height, width
_NUMBERS = ("NHWC", "HWIO", "NHWC")


class Layer(NamedTuple):
    """A linear layer of images (n, height, width, channels).

    Attributes:
      kind: a key of `_SHAPES`.
      inputs, outputs: channels.
    """

    kind: str
    inputs: int
    outputs: int

    def init(self, rng: np.random.Generator) -> jax.Array:
        return jnp.asarray(rng.standard_normal(_SHAPES[self.kind](self.inputs, self.outputs)))

    def __call__(self, w: jax.Array, x: jax.Array) -> jax.Array:
        return _APPLY[self.kind](w, x)


def _conv(w: jax.Array, x: jax.Array, **kwargs: Any) -> jax.Array:
    return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=_NUMBERS, **kwargs)


def _heads(w: jax.Array, x: jax.Array) -> jax.Array:
    """Like the output of attention: (heads, width, outputs)."""
    y = x.reshape(*x.shape[:-1], 2, -1)
    return jnp.einsum("nyxhw,hwo->nyxo", y, w)


def _stacked(w: jax.Array, x: jax.Array) -> jax.Array:
    """Two layers of one shape by a scan."""
    return jax.lax.scan(lambda h, v: (h @ v, None), x, w)[0]


_SHAPES = {
    "dense": lambda i, o: (i, o),
    "transposed": lambda i, o: (o, i),
    "heads": lambda i, o: (2, i // 2, o),
    "to heads": lambda i, o: (i, 2, o // 2),
    "conv": lambda i, o: (3, 3, i, o),
    "dilated": lambda i, o: (3, 3, i, o),
    "groups": lambda i, o: (3, 3, i // 2, o),
    "depthwise": lambda i, o: (3, 3, 1, i * (o // i)),
    "transposed conv": lambda i, o: (3, 3, o, i),
    "halves": lambda i, o: (i, o),
    "stride": lambda i, o: (1, 1, i, o),
}
_APPLY = {
    "dense": lambda w, x: x @ w,
    "transposed": lambda w, x: x @ w.T,
    "heads": _heads,
    "to heads": lambda w, x: jnp.einsum("nyxi,ihw->nyxhw", x, w).reshape(*x.shape[:-1], -1),
    "conv": _conv,
    "dilated": functools.partial(_conv, rhs_dilation=(2, 2)),
    "groups": functools.partial(_conv, feature_group_count=2),
    "depthwise": lambda w, x: _conv(w, x, feature_group_count=x.shape[-1]),
    "transposed conv": lambda w, x: jax.lax.conv_transpose(
        x, w, (1, 1), "SAME", dimension_numbers=_NUMBERS, transpose_kernel=True
    ),
    "halves": lambda w, x: jnp.concatenate([x @ w[:, :2], x @ w[:, 2:]], axis=-1),
    "stride": lambda w, x: jax.lax.conv_general_dilated(
        x, w, (1, 1), "VALID", dimension_numbers=_NUMBERS
    ),
}
# Of every layer of a network so many channels, so that every kind fits after every other.
_CHANNELS = (4, 8)


@st.composite
def networks(draw: Any, most: int = 4) -> tuple[Layer, ...]:
    sizes = [4, *(draw(st.sampled_from(_CHANNELS)) for _ in range(draw(st.integers(2, most))))]
    layers = []
    for inputs, outputs in itertools.pairwise(sizes):
        kinds = sorted(_SHAPES) if outputs % inputs == 0 else sorted(set(_SHAPES) - {"depthwise"})
        layers.append(Layer(draw(st.sampled_from(kinds)), inputs, outputs))
    return tuple(layers)


def _init(layers: tuple[Layer, ...], seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    params = {f"layer{k}": layer.init(rng) for k, layer in enumerate(layers)}
    last = layers[-1].outputs
    vectors = {f"bias{k}": rng.standard_normal(layer.outputs) for k, layer in enumerate(layers)}
    return {**params, **vectors, "head": jnp.asarray(rng.standard_normal((25 * last, 3)))}


def _apply(layers: tuple[Layer, ...], params: dict[str, Any], x: jax.Array) -> jax.Array:
    """Layers with a bias and tanh each, residual where shapes allow; flattened, and a dense head."""
    for k, layer in enumerate(layers):
        y = jnp.tanh(layer(params[f"layer{k}"], x) + params[f"bias{k}"])
        x = x + y if y.shape == x.shape and k else y
    return x.reshape(len(x), -1) @ params["head"]


@functools.cache
def _mixed(layer: Layer) -> tuple[np.ndarray, np.ndarray]:
    """(whether d^2 y / dw dx_e is anything, of entries w by e; whether dy / dw is, of w by y)."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        w = layer.init(rng)
        x = jnp.asarray(rng.standard_normal((*IMAGE, layer.inputs)))

        @jax.jit
        def both(w: jax.Array, x: jax.Array, c: jax.Array) -> Any:
            of_w = lambda x: jax.grad(lambda w: jnp.sum(c * layer(w, x)))(w)
            return jax.jacfwd(of_w)(x), jax.jacfwd(lambda w: layer(w, x))(w)

        c = jnp.asarray(rng.standard_normal(layer(w, x).shape))
        mixed, by_w = both(w, x, c)
    mixed = np.asarray(mixed).reshape(w.size, x.size)
    by_w = np.asarray(by_w).reshape(-1, w.size).T
    return np.abs(mixed) > 1e-10, np.abs(by_w) > 1e-10


@hypothesis.settings(max_examples=25)
@hypothesis.given(networks())
def test_an_input_acts_through_its_group_and_through_all_of_it_and_nothing_else(layers):
    params = _init(layers, 0)
    x = jnp.ones((*IMAGE, 4))
    net = rj.network(functools.partial(_apply, layers), params, x)
    found = masks.groups(resolve(net.inputs(rj.GroupLasso(0.1)), params).blocks)
    assert "head" in found
    for k, layer in enumerate(layers):
        path = f"layer{k}"
        group = found[path].reshape(-1)
        assert (group >= 0).all()
        touched, made = _mixed(layer)
        assert touched.any(axis=1).all()
        through: dict[int, np.ndarray] = {}
        for column in touched.T:
            (g,) = np.unique(group[column])  # an input acts through one group
            through[g] = through.get(g, False) | column
        for g, entries in through.items():
            np.testing.assert_array_equal(entries, group == g)  # and through all of it
        # An entry changes the outputs of its output index, and no others.
        role = net._roles[net.paths.index(path)]
        (cell,) = role.cells()
        shape = np.shape(params[path])
        out = masks.ids(shape, View(cell.places((OUT, *STACK)), cell.shape)).reshape(-1)
        owner = np.full(made.shape[1], -1)
        for o in np.unique(out):
            changed = made[out == o].any(axis=0)
            assert (owner[changed] < 0).all()
            owner[changed] = o
        assert (owner >= 0).all()


@hypothesis.settings(max_examples=25)
@hypothesis.given(networks(), st.integers(0, 2**30), st.booleans())
def test_a_channel_whose_readers_are_zero_changes_nothing(layers, seed, writers):
    """Whatever its writers make of it; and it does change the outputs as long as its readers are not zero."""
    params = _init(layers, seed)
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.standard_normal((*IMAGE, 4)), jnp.float32)
    apply = jax.jit(functools.partial(_apply, layers))
    net = rj.network(functools.partial(_apply, layers), params, x)
    usable = [space for space in net.spaces() if not space.others]
    kinds = {layer.kind for layer in layers}
    if (
        not usable
    ):  # a concatenation that a convolution in groups takes apart elsewhere than at its seams
        assert "halves" in kinds
        assert kinds & {"groups", "depthwise", "heads", "to heads"}
        hypothesis.reject()
    blocks = resolve(net.channels(rj.GroupLasso(0.1), writers=writers), params).blocks
    masks.groups(blocks)  # disjoint
    assert len(blocks) == len(usable)
    space = usable[rng.integers(len(usable))]
    c = rng.integers(space.number)
    where = {}
    for slices in (*space.readers, *space.writers):
        own = masks.ids(slices.shape, slices.view)
        where.setdefault(slices.path, []).append((slices in space.readers, own == c))
    dead, moved = dict(params), dict(params)
    for path, parts in where.items():
        for reads, mask in parts:
            noise = rng.standard_normal(mask.shape)
            if reads:
                dead[path] = np.where(mask, 0.0, dead[path])
            else:
                moved[path] = moved[path] + mask * noise
    both = {**moved, **{p: dead[p] for p in dead if p not in moved}}
    for path in where:
        reads = np.logical_or.reduce(
            [m for r, m in where[path] if r] or [np.zeros(np.shape(params[path]), bool)]
        )
        both[path] = np.where(reads, 0.0, moved[path])
    expected = apply(dead, x)
    np.testing.assert_allclose(apply(both, x), expected, rtol=1e-5, atol=1e-5)
    assert float(jnp.max(jnp.abs(apply(moved, x) - apply(params, x)))) > 1e-4


def test_every_kind_of_layer_is_drawn():
    """So that the two tests above are about all of them."""
    assert set(_SHAPES) == set(_APPLY)
    assert all(math.prod(shape(4, 8)) for shape in _SHAPES.values())
