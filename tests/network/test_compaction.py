"""The compact model is the model: results and gradients, for any number of examples; and it is as small as it can be."""

import functools
import subprocess
import sys
from typing import Any, NamedTuple

import chex
import equinox as eqx
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import ramda_jax as rj
from benchmarks.compaction import with_zeros
from examples.models.convnet import ConvNet
from examples.models.gated_transformer import GatedTransformer
from examples.models.resnet import ResNet
from ramda_jax.network import factors, pieces
from tests.network import zoo
from tests.network.test_properties import IMAGE, Layer, _apply, _init, networks


def multiplied_out(value: factors.Factors, how: factors.Matrix) -> jax.Array:
    """The array that two factors stand for."""
    left = jnp.moveaxis(value.left, how.place, -1)
    n, order = len(how.stack), (*how.stack, *how.rows, *how.columns)
    stack, rows, columns = left.shape[:n], left.shape[n:-1], value.right.shape[n + 1 :]
    count, rank = int(np.prod(stack)), left.shape[-1]
    matrices = left.reshape(count, -1, rank) @ value.right.reshape(count, rank, -1)
    return jnp.transpose(matrices.reshape(*stack, *rows, *columns), np.argsort(order))


def check(
    apply: Any, params: Any, *inputs: Any, tolerance: float = 1e-5, multiple_of: int = 1
) -> Any:
    """Compact, and compare results and the gradients of what is left with those of the whole model."""
    small = rj.compact(apply, params, *inputs, multiple_of=multiple_of)
    paths, apply = small.widths(), jax.jit(apply)
    for batch in (1, 3):
        # NumPy wherever nothing is asked of JAX: each of its functions is compiled for each shape.
        more = [
            np.concatenate([x[:1]] * batch)
            + np.arange(batch).reshape(-1, *[1] * (x.ndim - 1)).astype(x.dtype)
            for x in map(np.asarray, inputs)
        ]
        whole = np.asarray(apply(params, *more))
        scale = max(float(np.max(np.abs(whole))), 1e-3)
        found = jax.jit(small.apply)(small.params, *more)
        np.testing.assert_allclose(found, whole, atol=tolerance * scale)
    loss = lambda f: lambda p: jnp.sum(jnp.sin(f(p, *more) / scale))
    dense = jax.jit(jax.grad(loss(apply)))(params)
    cut = jax.jit(jax.grad(loss(small.apply)))(small.params)
    leaves = (jax.tree.leaves(dense), small._checked(cut), small._checked(small.params))
    rows = zip(paths, small._keeps, small._matrices, *leaves, strict=True)
    for path, keep, how, whole, part, value in rows:
        if pieces.is_empty(keep):  # nobody needs it
            np.testing.assert_array_equal(part, 0)
            continue
        whole = pieces.cut(whole, keep)
        if how:  # what the chain rule makes of it for W = L R
            (whole,) = jax.vjp(functools.partial(multiplied_out, how=how), value)[1](whole)
            for a, b in zip(part, whole, strict=True):
                size = max(float(jnp.max(jnp.abs(b))), 1e-3)
                np.testing.assert_allclose(a, b, atol=20 * tolerance * size, err_msg=path)
            continue
        # Of zero groups within an array that stays (of one group of a convolution, say) nothing is asked.
        left = (np.asarray(value) != 0) | (value.ndim < 2)
        whole, part = np.where(left, whole, 0.0), np.where(left, part, 0.0)
        size = max(float(np.max(np.abs(whole), initial=0.0)), 1e-3)
        np.testing.assert_allclose(part, whole, atol=20 * tolerance * size, err_msg=path)
    return small


@hypothesis.settings(max_examples=8)
@hypothesis.given(
    networks(),
    st.sampled_from([0.3, 0.7, 1.0]),
    st.sampled_from([None, 1, 2]),
    st.integers(0, 2**30),
)
@hypothesis.example((Layer("conv", 4, 4), Layer("groups", 4, 8)), 0.3, None, 0)
@hypothesis.example((Layer("conv", 4, 4), Layer("conv", 4, 8)), 0.3, 1, 0)
def test_random_networks_with_random_zero_groups_and_ranks(layers, share, rank, seed):
    params = jax.tree.map(lambda x: jnp.asarray(of_rank(x, rank), jnp.float32), _init(layers, seed))
    x = jnp.asarray(np.random.default_rng(seed).standard_normal((*IMAGE, 4)), jnp.float32)
    apply = functools.partial(_apply, layers)
    net = rj.network(apply, params, x)
    sparse = with_zeros(net.inputs(rj.GroupLasso(0.1)), params, share, seed)
    small = check(apply, sparse, x)
    assert small.report().parameters <= small.report().parameters_before


def of_rank(x: Any, rank: int | None) -> np.ndarray:
    """The nearest array whose matrix (all axes but the last, the last) has this rank."""
    x = np.asarray(x)
    if rank is None or x.ndim < 2:
        return x
    u, s, v = np.linalg.svd(x.reshape(-1, x.shape[-1]), full_matrices=False)
    return ((u[:, :rank] * s[:rank]) @ v[:rank]).reshape(x.shape)


def parts(module: nnx.Module) -> tuple[Any, Any]:
    """(a function of parameters and inputs, the parameters) of a module in evaluation."""
    module.eval()
    return taken_apart(module)


def taken_apart(module: nnx.Module) -> tuple[Any, Any]:
    """The same of a module as it is."""
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    # A copy: a call counts its random numbers.
    fresh = lambda: jax.tree.map(lambda x: x, rest)
    return (lambda p, *inputs: nnx.merge(graph, p, fresh())(*inputs)), params


def images(*shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(0), shape)


TOKENS = jnp.arange(6)[None] % 7
MODELS = {
    "lenet": (lambda r: ConvNet(10, widths=(6, 12), hidden=30, rngs=r), (images(1, 28, 28, 1),)),
    "resnet": (lambda r: ResNet(5, blocks=(1, 1), rngs=r), (images(1, 16, 16, 3),)),
    "gated transformer": (lambda r: GatedTransformer(20, 16, 2, rngs=r), (TOKENS,)),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["inputs", "channels"])
def test_models_with_zeros(name, kind):
    make, inputs = MODELS[name]
    apply, params = parts(make(nnx.Rngs(0)))
    net = rj.network(apply, params, *inputs)
    sparse = with_zeros(getattr(net, kind)(rj.GroupLasso(0.1)), params, 0.6, 1)
    small = check(apply, sparse, *inputs, tolerance=3e-5)
    report = small.report()
    assert report.parameters < 0.75 * report.parameters_before
    assert report.flops < 0.75 * report.flops_before


@pytest.mark.parametrize("name", ["lenet", "resnet"])
def test_an_exported_model_takes_any_number_of_examples(name, tmp_path):
    make, (x,) = MODELS[name]
    apply, params = parts(make(nnx.Rngs(0)))
    assignment = rj.network(apply, params, x).inputs(rj.GroupLasso(0.1))
    small = rj.compact(apply, with_zeros(assignment, params, 0.6, 1), x)
    shape = jax.export.symbolic_shape(", ".join(["batch", *map(str, x.shape[1:])]))
    small.export(tmp_path / "model", jax.ShapeDtypeStruct(shape, x.dtype), platforms=["cpu"])
    more = jnp.concatenate([x, 2 * x, -x])
    expected = small.apply(small.params, more)
    np.testing.assert_allclose(rj.load_compact(tmp_path / "model")(more), expected, atol=1e-5)


def test_symbols_with_which_jax_traces_another_program_are_refused_with_a_way_out(tmp_path):
    params = {"a": random(4, 8), "b": sparse_rows(random(8, 3), [0])}
    first = lambda p, x: (x @ p["a"] @ p["b"])[:, 0]
    shape = jax.ShapeDtypeStruct(jax.export.symbolic_shape("batch, 5, 4"), jnp.float32)
    with pytest.raises(ValueError, match=r"use jax\.lax\.index_in_dim"):
        rj.compact(first, params, random(1, 5, 4)).export(tmp_path / "model", shape)


@pytest.mark.nightly
@pytest.mark.parametrize("case", zoo.cases(), ids=lambda case: case.name)
def test_every_kind_of_network_with_random_zeros(case):
    """Results; also of those of which nothing can go, or which has no groups."""
    given, *inputs = case.args
    if isinstance(given, nnx.Module):
        function, params = taken_apart(given)
    else:
        params, static = eqx.partition(inputs.pop(0), eqx.is_inexact_array)
        function = lambda p, *xs: given(eqx.combine(p, static), *xs)
    flat = lambda *args: jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(function(*args))])
    params, inputs = zoo.random_like(params, 1), zoo.random_like(inputs, 2)
    if not jnp.isfinite(flat(params, *inputs)).all():  # roots of variances
        params = jax.tree.map(jnp.abs, params)
    net = rj.network(flat, params, *inputs)
    try:
        assignment = net.inputs(rj.GroupLasso(0.1))
    except ValueError:  # no parameter is multiplied with an input
        assignment = None
    for seed, share in enumerate((0.3, 0.6, 0.9)):
        sparse = with_zeros(assignment, params, share, seed) if assignment else params
        small, whole = rj.compact(flat, sparse, *inputs), flat(sparse, *inputs)
        found = small.apply(small.params, *inputs)
        finite = np.isfinite(whole)  # a norm of zeros that is divided by is not
        assert finite.all() or case.name == "weight normalization"
        scale = np.max(np.abs(whole[finite]), initial=1e-3)
        np.testing.assert_allclose(found[finite], whole[finite], atol=3e-5 * scale)
        assert small.report().parameters <= small.report().parameters_before


def sparse_rows(w: jax.Array, dead: Any, axis: int = 0) -> jax.Array:
    index: list[Any] = [slice(None)] * w.ndim
    index[axis] = np.asarray(dead)
    sparse = np.array(w)
    sparse[tuple(index)] = 0.0
    return jnp.asarray(sparse)


def random(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def test_a_plain_chain_is_as_small_as_it_can_be():
    params = {
        "a": random(4, 8),
        "b": sparse_rows(random(8, 6, seed=1), [0, 1, 5]),
        "c": sparse_rows(random(6, 3, seed=2), [2]),
        "bias": random(8, seed=3),
    }
    apply = lambda p, x: jnp.tanh(jax.nn.relu(x @ p["a"] + p["bias"]) @ p["b"]) @ p["c"]
    small = check(apply, params, random(1, 4))
    assert small.widths() == {"a": (4, 5), "b": (5, 5), "bias": (5,), "c": (5, 3)}
    report = small.report()
    assert report.flops == 2 * (4 * 5 + 5 * 5 + 5 * 3)
    assert "parameters" in str(report)


def test_products_in_branches_and_turns_are_counted():
    def apply(p, x):
        wide, narrow = (lambda x: x @ p["a"] @ p["b"]), (lambda x: x @ p["c"])
        chosen = lambda x, _: (jax.lax.cond(x[0, 0] > 0, wide, narrow, x), None)
        x, _ = jax.lax.scan(chosen, x, None, length=3)
        return jax.lax.while_loop(lambda x: jnp.sum(x) > 9, narrow, x)

    params = {"a": jnp.ones((4, 8)), "b": jnp.ones((8, 4)).at[5:].set(0), "c": jnp.ones((4, 4))}
    report = rj.compact(apply, params, jnp.ones((1, 4))).report()
    assert report.flops_before == 2 * (3 * (4 * 8 + 8 * 4) + 4 * 4)
    assert report.flops == 2 * (3 * (4 * 5 + 5 * 4) + 4 * 4)


def test_widths_can_be_rounded_up():
    params = {
        "a": random(4, 20),
        "b": sparse_rows(random(20, 18, seed=1), [0, 1, 5, 7, 11]),
        "c": sparse_rows(random(18, 3, seed=2), [2, 3]),
        "bias": random(20, seed=3),
    }
    apply = lambda p, x: jnp.tanh(jax.nn.relu(x @ p["a"] + p["bias"]) @ p["b"]) @ p["c"]
    small = check(apply, params, random(1, 4), multiple_of=8)
    assert small.widths() == {"a": (4, 16), "b": (16, 16), "bias": (16,), "c": (16, 3)}
    with pytest.raises(ValueError, match="multiple_of must be an integer"):
        rj.compact(apply, params, random(1, 4), multiple_of=0)


def test_a_dead_layer_leaves_what_is_constant():
    params = {"a": random(4, 8), "b": jnp.zeros((8, 3)), "bias": random(3)}
    small = check(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"] + p["bias"], params, random(1, 4))
    assert small.widths() == {"a": (1, 1), "b": (1, 1), "bias": (3,)}
    assert small.report().flops == 0


def test_residual_channels_that_others_need_are_gathered():
    """Of a stream that a normalization reads, readers take what they read; their dead slices go all the same."""
    d = 8
    params = {
        "embed": random(4, d),
        "up": sparse_rows(random(d, 12, seed=1), [1, 2]),
        "down": sparse_rows(random(12, d, seed=2), [0, 3, 4]),
        "head": sparse_rows(random(d, 3, seed=3), [1, 5]),
    }
    norm = lambda x: (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)

    def apply(p, x):
        h = x @ p["embed"]
        h = h + jax.nn.gelu(norm(h) @ p["up"]) @ p["down"]
        return norm(h) @ p["head"]

    small = check(apply, params, random(1, 4))
    assert small.widths() == {"embed": (4, d), "up": (6, 9), "down": (9, d), "head": (6, 3)}


@hypothesis.settings(max_examples=12)
@hypothesis.given(st.data(), st.integers(1, 3), st.integers(0, 2))
def test_what_is_gathered_is_linear_with_its_transpose(data, ndim, axis):
    """Forward and backward derivatives, batches of them, and places that are only known when it runs."""
    axis = min(axis, ndim - 1)
    size = data.draw(st.integers(2, 7))
    some = st.sets(st.integers(0, size - 1), min_size=1)
    have, want = (np.array(sorted(data.draw(some))) for _ in range(2))
    shape = [2] * ndim
    shape[axis] = len(have)
    x = random(*shape)
    matrix = np.equal.outer(want, have).astype(np.float32)  # of the map along the axis
    multiplied = lambda m, y: np.moveaxis(np.tensordot(m, np.asarray(y), (1, axis)), 0, axis)
    take = lambda y: pieces.taken(y, axis, have, want, size)
    found, pull = jax.vjp(take, x)
    np.testing.assert_array_equal(found, multiplied(matrix, x))
    np.testing.assert_array_equal(jax.jvp(take, (x,), (2 * x,))[1], multiplied(matrix, 2 * x))
    back = random(*found.shape, seed=1)
    np.testing.assert_array_equal(pull(back)[0], multiplied(matrix.T, back))
    np.testing.assert_array_equal(jax.vmap(take)(jnp.stack([x, -x]))[1], -found)
    order = data.draw(st.permutations(range(size)))
    table = np.stack([want, np.sort(order[: len(want)])])
    shape[axis] = size
    turned = jax.jit(lambda y, turn: pieces.taken(y, axis, None, table, size, turn))
    for turn, places in enumerate(table):
        all_there = random(*shape, seed=2)
        np.testing.assert_array_equal(turned(all_there, turn), jnp.take(all_there, places, axis))


def test_dead_dimensions_of_a_residual_stream_go():
    """What no embedding and no layer writes: the norms count it as the zero that it is."""
    make, inputs = MODELS["gated transformer"]
    apply, params = parts(make(nnx.Rngs(0)))
    writers = ("embedding", "output", "down")

    def dead(path: Any, x: jax.Array) -> jax.Array:
        mine = any(writer in jax.tree_util.keystr(path) for writer in writers)
        return x.at[..., jnp.asarray([1, 5, 6, 12])].set(0.0) if mine else x

    small = check(apply, jax.tree_util.tree_map_with_path(dead, params), *inputs)
    assert not any(16 in shape for shape in small.widths().values())


class Normalized(nnx.Module):
    """Channels that a norm looks at four at a time."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.a = nnx.Conv(3, 12, (3, 3), rngs=rngs)
        self.norm = nnx.GroupNorm(12, num_groups=3, rngs=rngs)
        self.b = nnx.Conv(12, 5, (1, 1), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.b(nnx.relu(self.norm(self.a(x)))).mean((1, 2))


def test_a_norm_over_groups_of_channels_needs_all_of_a_group():
    """Whole groups that nobody reads go; of others only what nobody reads of the result, and zeros that are written."""
    apply, _ = parts(Normalized(nnx.Rngs(0)))

    def widths(unread: list[int], unwritten: list[int]) -> tuple[int, int, int]:
        model = nnx.merge(*nnx.split(Normalized(nnx.Rngs(0))))
        model.a.bias[...] = jnp.ones(12)
        dead = jnp.zeros(12, bool)
        written = ~dead.at[jnp.asarray(unwritten, int)].set(True)
        read = ~dead.at[jnp.asarray(unread, int)].set(True)
        model.a.kernel[...] = model.a.kernel[...] * written
        model.b.kernel[...] = model.b.kernel[...] * read[:, None]
        small = check(apply, nnx.state(model, nnx.Param), images(1, 6, 6, 3))
        a, norm, b = (small.widths()[name] for name in ("a/kernel", "norm/scale", "b/kernel"))
        assert "reduce_sum over it" in small.report().arrays["a/kernel"].readers
        return a[3], norm[0], b[2]

    assert widths([0, 1, 2, 3], []) == (8, 8, 8)
    assert widths([0, 1, 5], []) == (12, 9, 9)
    assert widths([], [0, 4, 8]) == (9, 12, 12)
    assert widths([0, 4, 8], [0, 4, 8]) == (9, 9, 9)


def test_attention_loses_heads():
    params = {"qkv": random(8, 24), "out": sparse_rows(random(8, 8, seed=1), [0, 1, 2, 3])}
    small = check(zoo.fused, params, random(1, 5, 8))
    assert small.widths() == {"qkv": (8, 12), "out": (4, 8)}
    model = nnx.MultiHeadAttention(4, 16, rngs=nnx.Rngs(0), decode=False)
    apply, state = parts(model)
    net = rj.network(apply, state, random(1, 5, 16))
    sparse = with_zeros(net.channels(rj.GroupLasso(0.1)), state, 0.5, 0)
    small = check(apply, sparse, random(1, 5, 16))
    heads = small.widths()["out/kernel"][0]
    assert heads < 4
    assert small.widths()["query/kernel"] == (16, heads, 4)


def test_convolutions_in_groups_and_depthwise():
    params = {
        "a": random(1, 1, 3, 8),
        "depth": random(3, 3, 1, 8, seed=1),
        "b": sparse_rows(random(1, 1, 8, 4, seed=2), [0, 2, 7], 2),
    }
    conv = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )

    def apply(p, x):
        x = jax.nn.relu(conv(x, p["a"]))
        x = jax.nn.relu(conv(x, p["depth"], feature_group_count=8))
        return conv(x, p["b"]).mean((1, 2))

    small = check(apply, params, random(1, 6, 6, 3))
    assert small.widths() == {"a": (1, 1, 3, 5), "depth": (3, 3, 1, 5), "b": (1, 1, 5, 4)}


@pytest.mark.parametrize(
    ("dead", "taken"), [([7], False), ([0, 1, 2, 4, 6, 7, 8, 11, 12, 13], True)]
)
def test_channels_are_taken_out_where_zeros_in_the_weight_would_cost_more(dead, taken):
    """Of a stream that another reader needs whole."""
    params = {
        "make": random(8, 16),
        "a": sparse_rows(random(16, 4, seed=1), dead),
        "b": random(16, 4),
    }

    def apply(p: Any, x: jax.Array) -> jax.Array:
        h = jnp.sin(x @ p["make"])
        return h @ p["a"] + jnp.cos(h @ p["b"])

    x = random(1, 400, 8, seed=2)
    small = check(apply, params, x)
    assert small.widths() == {"make": (8, 16), "a": (16 - len(dead), 4), "b": (16, 4)}
    kept = f"f32[1,400,{16 - len(dead)}]"
    assert (kept in str(jax.make_jaxpr(small.apply)(small.params, x))) == taken
    rows = 16 - len(dead) if taken else 16
    assert small.report().flops == 2 * 400 * (8 * 16 + rows * 4 + 16 * 4)


@pytest.mark.parametrize(("stride", "taken"), [(1, True), (2, False)])
def test_channels_that_few_products_read_are_not_taken_out_everywhere(stride, taken):
    dead = [1, 4, 6, 8, 11, 13]
    params = {"make": random(3, 16), "a": sparse_rows(random(1, 1, 16, 4, seed=1), dead, 2)}

    def apply(p: Any, x: jax.Array) -> jax.Array:
        h, numbers = jnp.sin(x @ p["make"]), ("NHWC", "HWIO", "NHWC")
        small = jax.lax.conv_general_dilated(
            h, p["a"], (stride, stride), "VALID", dimension_numbers=numbers
        )
        return jnp.sum(small, axis=(1, 2)) + jnp.mean(jnp.cos(h))

    x = random(1, 20, 20, 3, seed=2)
    small = check(apply, params, x)
    assert small.widths() == {"make": (3, 16), "a": (1, 1, 10, 4)}
    assert ("f32[1,20,20,10]" in str(jax.make_jaxpr(small.apply)(small.params, x))) == taken


def test_a_convolution_that_a_cpu_takes_another_way():
    """As written for other platforms, in as many operations, with the same results and gradients."""
    params = {"first": random(3, 3, 1, 5), "then": sparse_rows(random(3, 3, 5, 2), [2], axis=2)}

    def apply(p: Any, x: jax.Array) -> jax.Array:
        numbers = ("NHWC", "HWIO", "NHWC")
        conv = functools.partial(jax.lax.conv_general_dilated, dimension_numbers=numbers)
        x = jnp.sin(conv(x, p["first"], (2, 1), "SAME"))
        return jnp.sum(conv(x, p["then"], (1, 1), "SAME"), axis=(1, 2))

    x = random(1, 10, 7, 1, seed=1)
    small = check(apply, params, x)
    assert small.report().flops == 2 * (5 * 7) * (9 * 4 + 9 * 4 * 2)
    trace = jax.jit(small.apply).trace(small.params, x)
    ways = {name: trace.lower(lowering_platforms=(name,)).as_text() for name in ("cpu", "cuda")}
    assert "tensor<3x3x1x17xf32>" in ways["cpu"]
    assert "tensor<3x3x1x17xf32>" not in ways["cuda"]


def test_linen_with_batch_statistics():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            for width in (6, 8):
                x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(width, (3, 3))(x)))
            x = nn.max_pool(x, (2, 2), (2, 2))
            return nn.Dense(3)(x.reshape(len(x), -1))

    x = random(1, 8, 8, 2)
    variables = Model().init(jax.random.key(0), x)
    kernel = variables["params"]["Conv_1"]["kernel"]
    variables["params"]["Conv_1"]["kernel"] = sparse_rows(kernel, [0, 4], 2)
    small = rj.compact(Model().apply, variables, x, train=False)
    found = small.apply(small.params, x, train=False)
    np.testing.assert_allclose(found, Model().apply(variables, x), atol=1e-5)
    assert small.params["batch_stats"]["BatchNorm_0"]["mean"].shape == (4,)


def test_modules_of_nnx_are_taken_as_they_are():
    model = nnx.Sequential(
        nnx.Linear(4, 8, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(8, 3, rngs=nnx.Rngs(1))
    )
    second = model.layers[2].kernel
    second[...] = sparse_rows(second[...], [0, 1, 2])
    small = rj.compact(model, random(1, 4))
    np.testing.assert_allclose(
        small.apply(small.params, random(5, 4)), model(random(5, 4)), atol=1e-5
    )
    assert small.widths()["layers/0/kernel"] == (4, 5)
    net = rj.network(model, random(1, 4))
    assert net.compact(nnx.state(model, nnx.Param)).widths() == small.widths()


def block(h: jax.Array, p: Any) -> tuple[jax.Array, jax.Array]:
    """One layer of a stack: a residual branch behind a normalization, and what it shows of itself."""
    norm = (h - h.mean(-1, keepdims=True)) / jnp.sqrt(h.var(-1, keepdims=True) + 1e-5)
    inner = jax.nn.gelu(norm @ p["up"] + p["bias"])
    return h + inner @ p["down"], inner.sum(-1)


def stack(dead_up: Any, dead_down: Any, width: int = 8) -> dict[str, jax.Array]:
    """Layers whose weights have zero rows of their own."""
    n = len(dead_up)
    up, down = random(n, 4, width), random(n, width, 4, seed=1)
    for k, (rows, others) in enumerate(zip(dead_up, dead_down, strict=True)):
        up = up.at[k, jnp.asarray(rows, int)].set(0.0)
        down = down.at[k, jnp.asarray(others, int)].set(0.0)
    return {"up": up, "down": down, "bias": random(n, width, seed=2)}


@pytest.mark.parametrize("reverse", [False, True])
def test_layers_in_a_scan_keep_what_each_needs(reverse):
    """As many in every layer as in the one that needs most, each its own: not the union."""
    layers = stack([[0, 1], [3], []], [[0, 1, 2, 3], [4, 5, 6, 7], [0, 2, 4, 6]])
    params = {"layers": layers, "head": sparse_rows(random(4, 3, seed=3), [2])}

    def apply(p, x):
        h, _ = jax.lax.scan(jax.checkpoint(block), x, p["layers"], reverse=reverse)
        return h @ p["head"]

    small = check(apply, params, random(1, 4))
    assert small.widths() == {
        "head": (3, 3),
        "layers/bias": (3, 4),
        "layers/down": (3, 4, 4),
        "layers/up": (3, 4, 4),
    }
    assert small.report().flops == 2 * (3 * (16 + 16) + 9)
    needed = {path: a.readers for path, a in small.report().arrays.items()}
    assert needed["layers/up"] == needed["layers/bias"] == ("layers/down",)
    assert needed["head"] == ("the result",)
    # The stream: the head, the next layer, and the statistics of its normalization.
    assert needed["layers/down"] == ("head", "layers/up", "reduce_sum over it")
    # What every layer shows counts each of its neurons.
    shown = check(lambda p, x: jax.lax.scan(block, x, p["layers"])[1], params, random(1, 4))
    assert shown.widths()["layers/up"] == (3, 4, 8)


@hypothesis.settings(max_examples=6)
@hypothesis.given(
    st.lists(st.tuples(*[st.sets(st.integers(0, 7))] * 2), min_size=1, max_size=3),
    st.booleans(),
    st.sampled_from([1, 4]),
)
def test_stacks_with_random_zeros(dead, half, multiple_of):
    layers = stack([[r for r in up if r < 4] for up, _ in dead], [list(down) for _, down in dead])

    def apply(p, x):
        p = jax.tree.map(lambda w: w.astype(jnp.bfloat16).astype(w.dtype) if half else w, p)
        h, shown = jax.lax.scan(block, x, p)
        return h * shown.sum(0)[:, None]

    check(apply, layers, random(1, 4), multiple_of=multiple_of, tolerance=3e-5)


def test_recurrent_cells_lose_hidden_units():
    """A unit that neither the cell nor the head reads takes its four gates with it."""
    width, dead = 6, [1, 4]
    params = {
        "in": random(3, 4 * width),
        "hidden": sparse_rows(random(width, 4 * width, seed=1), dead),
        "head": sparse_rows(random(width, 2, seed=2), dead),
        "bias": random(4 * width, seed=3),
    }

    def apply(p, x):
        def cell(state, x):
            h, c = state
            i, f, g, o = jnp.split(x @ p["in"] + h @ p["hidden"] + p["bias"], 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

        start = jnp.zeros((x.shape[0], width))
        (h, _), _ = jax.lax.scan(cell, (start, start), jnp.swapaxes(x, 0, 1))
        return h @ p["head"]

    small = check(apply, params, random(1, 5, 3))
    assert small.widths() == {"bias": (16,), "head": (4, 2), "hidden": (4, 16), "in": (3, 16)}
    longer = random(2, 9, 3)  # of another number of steps
    np.testing.assert_allclose(small.apply(small.params, longer), apply(params, longer), atol=1e-5)


@pytest.mark.parametrize("cell", [nnx.LSTMCell, nnx.GRUCell])
def test_recurrent_modules(cell):
    """Flax's own cells; a copy is run, so that their state is left alone."""

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.rnn = nnx.RNN(cell(3, 8, rngs=rngs))
            self.head = nnx.Linear(8, 2, rngs=rngs)

        def __call__(self, x):
            return self.head(self.rnn(x)[:, -1])

    model, x = Model(nnx.Rngs(0)), random(2, 5, 3)
    net = rj.network(model, x)
    sparse = with_zeros(net.channels(rj.GroupLasso(0.1)), nnx.state(model, nnx.Param), 0.5, 0)
    nnx.update(model, sparse)
    small = rj.compact(model, x)
    np.testing.assert_allclose(small.apply(small.params, x), model(x), atol=1e-5)
    left = small.widths()["head/kernel"][0]
    assert left < 8
    kernels = {shape[0] for path, shape in small.widths().items() if path.endswith("kernel")}
    assert kernels == {3, left}


def test_moved_padded_and_indexed_channels():
    def moved(p, x):
        h = jnp.tanh(x @ p["a"])
        h = jnp.flip(jnp.pad(h, ((0, 0), (2, 3))), -1)
        return jnp.concatenate([h, h[:, ::2]], -1) @ p["b"]

    dead = [0, 3, 4, 5, 6, 7, 13, 14, 15, 16, 17]
    params = {"a": random(4, 8), "b": sparse_rows(random(20, 3, seed=1), dead)}
    assert check(moved, params, random(1, 4)).widths() == {"a": (4, 3), "b": (9, 3)}

    def indexed(p, x):
        """Layers by their number, and a cache that is written into."""
        h = jax.lax.fori_loop(0, 3, lambda k, h: jnp.tanh(h @ p["w"][k]), x)
        cache = jnp.zeros((h.shape[0], 5, 6))
        return jax.lax.dynamic_update_slice(cache, h[:, None], (0, 2, 0)) @ p["b"]

    params = {
        "w": sparse_rows(random(3, 6, 6), [0, 1], 1),
        "b": sparse_rows(random(6, 3, seed=1), [0, 1, 2]),
    }
    assert check(indexed, params, random(1, 6)).widths() == {"b": (3, 3), "w": (3, 4, 4)}


def test_loops_branches_and_loops_in_loops():
    params = {
        "a": sparse_rows(random(6, 8) / 4, [0, 3]),
        "b": sparse_rows(random(8, 6, seed=1) / 4, [1, 2, 5]),
        "head": sparse_rows(random(6, 2, seed=2), [0, 3]),
        "other": sparse_rows(random(6, 2, seed=3), [0, 4]),
    }

    def repeated(p, x):
        """A while loop, whose condition reads what no one else does; then one of two heads."""

        def turn(state):
            k, h = state
            return k + 1, jnp.tanh(h @ p["a"]) @ p["b"]

        _, h = jax.lax.while_loop(lambda s: s[0] < 3, turn, (0, x))
        return jax.lax.cond(x.sum() > 0, lambda: h @ p["head"], lambda: h @ p["other"])

    def loss_free(p, x):  # while loops have no gradient: a loop of a known length has
        turn = lambda k, h: jnp.tanh(h @ p["a"]) @ p["b"]
        h = jax.lax.fori_loop(0, 3, turn, x)
        return jax.lax.cond(x.sum() > 0, lambda: h @ p["head"], lambda: h @ p["other"])

    small = check(loss_free, params, random(1, 6))
    assert small.widths() == {"a": (4, 5), "b": (5, 5), "head": (4, 2), "other": (4, 2)}
    small = rj.compact(repeated, params, random(1, 6))
    assert small.widths() == {"a": (4, 5), "b": (5, 5), "head": (4, 2), "other": (4, 2)}
    for x in (random(2, 6), -random(3, 6)):
        np.testing.assert_allclose(small.apply(small.params, x), repeated(params, x), atol=1e-5)

    layers = {"up": params["a"][None] + jnp.zeros((2, 1, 1)), "down": jnp.stack([params["b"]] * 2)}
    layers["down"] = layers["down"].at[1, 0].set(0.0)

    def deep(p, x):
        """Steps in time over a stack of layers."""
        layer = lambda h, w: (jnp.tanh(h @ w["up"]) @ w["down"], None)
        step = lambda h, x: (jax.lax.scan(layer, h + x, p)[0], None)
        return jax.lax.scan(step, x[:, 0], jnp.swapaxes(x, 0, 1))[0]

    small = check(deep, layers, random(1, 3, 6))
    assert small.widths() == {"up": (2, 4, 5), "down": (2, 5, 6)}


def low_rank(m: int, n: int, rank: int, seed: int = 0) -> jax.Array:
    return random(m, rank, seed=seed) @ random(rank, n, seed=seed + 50)


def nchw(x: jax.Array, w: jax.Array) -> jax.Array:
    numbers = ("NCHW", "OIHW", "NCHW")
    return jax.lax.conv_general_dilated(x, w, (2, 2), "SAME", dimension_numbers=numbers)


def heads(p: Any, x: jax.Array) -> jax.Array:
    return jnp.einsum("fhd,bhd->fbh", p["w"], x)


def branch(p: Any, x: jax.Array) -> jax.Array:
    layer = lambda h, w: (h + jax.nn.relu(h @ w["a"]) @ w["b"], None)
    return jax.lax.scan(layer, x, p)[0]


FACTORED = {
    "chain": (
        lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"],
        {"a": low_rank(12, 30, 3), "b": sparse_rows(random(30, 2, seed=1), [0, 1])},
        random(1, 12),
        {"a/left": (12, 3), "a/right": (3, 28), "b": (28, 2)},
    ),
    "convolution": (
        lambda p, x: nchw(x, p["a"]),
        {"a": low_rank(30, 27, 4).reshape(30, 3, 3, 3)},
        random(1, 3, 6, 6),
        {"a/left": (4, 3, 3, 3), "a/right": (4, 30)},
    ),
    "a matrix per head, on the left": (
        heads,
        {"w": jnp.stack([low_rank(12, 16, 2, k) for k in range(3)], 1)},
        random(1, 3, 16),
        {"w/left": (3, 16, 2), "w/right": (3, 2, 12)},
    ),
    "layers of a scan": (
        branch,
        {
            "a": jnp.stack([low_rank(12, 16, 2, k) for k in range(2)]),
            "b": sparse_rows(random(2, 16, 12), [0, 3], 1).at[1, 7:12].set(0.0),
        },
        random(1, 12),
        {"a/left": (2, 12, 2), "a/right": (2, 2, 14), "b": (2, 14, 12)},
    ),
}


@pytest.mark.parametrize("name", FACTORED)
def test_a_matrix_of_low_rank_becomes_two_factors(name):
    apply, params, x, expected = FACTORED[name]
    small = check(apply, params, x)
    flatten = lambda tree: jax.tree_util.tree_flatten_with_path(tree)[0]
    path = lambda keys: jax.tree_util.keystr(keys, simple=True, separator="/")
    assert {path(keys): leaf.shape for keys, leaf in flatten(small.params)} == expected
    report = small.report()
    assert report.parameters == sum(x.size for x in jax.tree.leaves(small.params))
    assert report.flops < report.flops_before
    assert "of rank" in str(report)
    assert not report.reasons


def test_ranks_can_be_rounded_up_and_full_ones_stay():
    params = {"a": low_rank(40, 40, 5), "b": low_rank(40, 40, 20, 1)}
    apply = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"]
    small = rj.compact(apply, params, random(1, 40), multiple_of=8)
    assert small.params["a"].left.shape == (40, 8)
    assert small.params["b"].shape == (40, 40)  # 24 (40 + 40) > 40 * 40
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)  # whose rounding has full rank
    assert rj.compact(apply, half, random(1, 40)).params["a"].shape == (40, 40)
    found = small.apply(small.params, random(3, 40))
    np.testing.assert_allclose(found, apply(params, random(3, 40)), atol=1e-3)


CONTINUED = {
    "adam": lambda: optax.adam(1e-2),
    "ramda": lambda: rj.ramda(1e-2, rj.by_path([("net", rj.L1(1e-4)), (".", None)]), momentum=0.1),
}


@pytest.mark.parametrize("name", CONTINUED)
def test_training_goes_on_with_the_state_cut(name):
    """For updates entry by entry, the kept entries move as in the whole model."""
    params = {
        "net": {"a": random(4, 8), "b": sparse_rows(random(8, 3, seed=1), [0, 1, 5])},
        "bias": random(8, seed=3),
    }
    apply = lambda p, x: jnp.tanh(x @ p["net"]["a"] + p["bias"]) @ p["net"]["b"]
    loss = lambda f: lambda p: jnp.mean(jnp.sin(f(p, random(8, 4, seed=4))))
    transformation = CONTINUED[name]()
    step = jax.jit(transformation.update)
    state = transformation.init(params)
    for _ in range(3):  # what the state has of the dead rows is to be left behind
        _, state = step(jax.grad(loss(apply))(params), state, params)
    small = rj.compact(apply, params, random(1, 4))
    cut = small.cut_state(state, transformation.init(small.params))
    whole, _ = step(jax.grad(loss(apply))(params), state, params)
    part, cut = step(jax.grad(loss(small.apply))(small.params), cut, small.params)
    expected = jax.tree.unflatten(
        jax.tree.structure(whole), list(map(pieces.cut, jax.tree.leaves(whole), small._keeps))
    )
    chex.assert_trees_all_close(part, expected, atol=1e-6)
    small_again = optax.apply_updates(small.params, part)
    step(jax.grad(loss(small.apply))(small_again), cut, small_again)
    other = transformation.init({**params, "bias": jnp.zeros(9)})
    with pytest.raises(ValueError, match=r"bias' of opt_state has shape \(9,\)"):
        small.cut_state(other, transformation.init(small.params))
    with pytest.raises(ValueError, match="bias' of the fresh state has shape"):
        small.cut_state(state, state)
    low = {**params, "net": {"a": low_rank(4, 8, 1), "b": params["net"]["b"]}}
    small = rj.compact(apply, low, random(1, 4))
    with pytest.raises(ValueError, match="'net/a' has become two factors"):
        small.cut_state(state, state)


def test_what_cannot_be_followed_stays_whole_and_says_so():
    params = {"a": random(4, 8), "b": sparse_rows(random(8, 3, seed=1), [0])}
    fourier = lambda p, x: jnp.fft.fft(x @ p["a"]).real @ p["b"]
    small = check(fourier, params, random(1, 4))
    assert small.widths() == {"a": (4, 8), "b": (7, 3)}
    assert small.report().arrays["a"].readers == ("fft, for which there is no rule",)
    dense = check(
        lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"],
        {"a": random(4, 8), "b": random(8, 3)},
        random(1, 4),
    )
    assert any("Nothing could be cut" in reason for reason in dense.report().reasons)


def test_clear_errors():
    apply = lambda p, x: x @ p["a"] @ p["b"]
    params = {"a": random(4, 8), "b": sparse_rows(random(8, 3), [0])}
    with pytest.raises(ValueError, match="the parameter 'a' is not finite"):
        rj.compact(apply, {**params, "a": params["a"].at[0, 0].set(jnp.nan)}, random(1, 4))
    with pytest.raises(TypeError, match="needs a function"):
        rj.compact(params, random(1, 4))
    with pytest.raises(ValueError, match="no floating-point array"):
        rj.compact(apply, {"a": jnp.ones(3, int)}, random(1, 4))
    small = rj.compact(apply, params, random(1, 4))
    with pytest.raises(ValueError, match="params at 'a' has shape"):
        small.apply(params, random(1, 4))
    flagged = lambda p, x, flag: jnp.tanh(apply(p, x)) if flag else apply(p, x)
    small = rj.compact(flagged, params, random(1, 4), False)
    small.apply(small.params, random(7, 4), False)
    with pytest.raises(ValueError, match="another one than that which was compacted"):
        small.apply(small.params, random(1, 4), True)
    with pytest.raises(ValueError, match="different trees"):
        small.apply({"a": small.params["a"]}, random(1, 4))


class Results(NamedTuple):
    outputs: jax.Array
    more: Any


def test_an_exported_model_runs_elsewhere(tmp_path, monkeypatch):
    def apply(p, x):
        h = x @ p["a"]  # of which both take something else
        return jnp.tanh(h) @ p["b"] + h @ p["c"]

    dead = lambda seed, rows: sparse_rows(random(8, 3, seed=seed), rows)
    params = {"a": random(4, 8), "b": dead(1, [0, 3]), "c": dead(2, [1, 5])}
    small = rj.compact(apply, params, random(2, 4))
    small.export(tmp_path / "model")
    loaded = rj.load_compact(tmp_path / "model")
    assert {path: x.shape for path, x in loaded.params.items()} == small.widths()
    with pytest.raises(
        ValueError, match=r"shape \(7, 4\), .* for \(2, 4\).*symbolic_shape\('batch, 4'\)"
    ):
        loaded(random(7, 4))
    with pytest.raises(ValueError, match="takes 1 arrays, got 2"):
        loaded(random(2, 4), random(2, 4))
    with monkeypatch.context() as without:  # flatbuffers
        without.setitem(sys.modules, "jax._src.export.serialization", None)
        with pytest.raises(ImportError):
            small.export(tmp_path / "model")
    rj.load_compact(tmp_path / "model")  # what was there is there still
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    rj.compact(apply, half, random(2, 4)).export(tmp_path / "half", platforms=["cpu"])
    assert {x.dtype for x in rj.load_compact(tmp_path / "half").params.values()} == {
        jnp.dtype("bfloat16")
    }
    code = (
        "import sys, numpy as np, ramda_jax as rj; model = rj.load_compact(sys.argv[1]); "
        "np.save(sys.argv[2], model(np.load(sys.argv[3])))"
    )
    files = [str(tmp_path / name) for name in ("model", "out.npy", "in.npy")]
    np.save(files[2], random(2, 4))
    subprocess.run([sys.executable, "-c", code, *files], check=True, cwd=tmp_path)
    np.testing.assert_allclose(np.load(files[1]), apply(params, random(2, 4)), atol=1e-5)
    several = lambda p, x: Results(
        apply(p, x), {"inputs": [x, None]}
    )  # of a class that readers lack
    rj.compact(several, params, random(2, 4)).export(tmp_path / "results", platforms=["cpu"])
    found = rj.load_compact(tmp_path / "results")(random(2, 4))
    assert type(found) is tuple
    chex.assert_trees_all_close(found, tuple(several(params, random(2, 4))), atol=1e-5)
    any_number = jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, 4"), jnp.float32)
    small.export(tmp_path / "any", any_number)
    loaded = rj.load_compact(tmp_path / "any")
    np.testing.assert_allclose(loaded(random(9, 4)), apply(params, random(9, 4)), atol=1e-5)
    with pytest.raises(ValueError, match="another one than that which was compacted"):
        small.export(tmp_path / "any", random(4))
    (tmp_path / "other").write_bytes(b"no model")
    with pytest.raises(ValueError, match="is no exported compact model"):
        rj.load_compact(tmp_path / "other")


def test_double_precision_agrees_to_its_rounding():
    """Zeros, a loop over layers with zeros of their own, and factors."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        draw = lambda *shape: jnp.asarray(rng.standard_normal(shape))
        params = {
            "in": draw(12, 2) @ draw(2, 10),
            "a": sparse_rows(draw(2, 10, 8), [3, 4], 1).at[1, 6].set(0.0),
            "b": sparse_rows(draw(2, 8, 10), [0], 1).at[0, 5].set(0.0),
            "out": sparse_rows(draw(10, 3), [2, 3]),
        }
        layer = lambda h, w: (h + jnp.tanh(h @ w[0]) @ w[1], None)
        apply = lambda p, x: jax.lax.scan(layer, x @ p["in"], (p["a"], p["b"]))[0] @ p["out"]
        small = check(apply, params, draw(1, 12), tolerance=1e-12)
        assert small.params["in"].left.dtype == jnp.float64
        assert small.widths()["a"] == (2, 8, 7)
