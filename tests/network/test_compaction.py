"""The compact model is the model: results and gradients, for any number of examples; and it is as small as it can be."""

import functools
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import ramda_jax as rj
from benchmarks.compaction import with_zeros
from examples.models.convnet import ConvNet
from examples.models.gated_transformer import GatedTransformer
from examples.models.resnet import ResNet
from ramda_jax.network import emit
from tests.network import zoo
from tests.network.test_properties import IMAGE, Layer, _apply, _init, networks


def check(
    apply: Any, params: Any, *inputs: Any, tolerance: float = 1e-5, multiple_of: int = 1
) -> Any:
    """Compact, and compare results and the gradients of what is left with those of the whole model."""
    small = rj.compact(apply, params, *inputs, multiple_of=multiple_of)
    paths, apply = small.widths(), jax.jit(apply)
    for batch in (1, 3):
        more = [
            jnp.concatenate([x[:1]] * batch)
            + jnp.arange(batch).reshape(-1, *[1] * (x.ndim - 1)).astype(x.dtype)
            for x in inputs
        ]
        whole = apply(params, *more)
        scale = max(float(jnp.max(jnp.abs(whole))), 1e-3)
        found = jax.jit(small.apply)(small.params, *more)
        np.testing.assert_allclose(found, whole, atol=tolerance * scale)
    loss = lambda f: lambda p: jnp.sum(jnp.sin(f(p, *more) / scale))
    dense = jax.jit(jax.grad(loss(apply)))(params)
    cut = jax.jit(jax.grad(loss(small.apply)))(small.params)
    leaves = map(jax.tree.leaves, (dense, cut, small.params))
    for path, keep, whole, part, value in zip(paths, small._keeps, *leaves, strict=True):
        if emit.is_empty(keep):  # nobody needs it
            np.testing.assert_array_equal(part, 0)
            continue
        for axis, k in enumerate(keep):
            whole = whole if k is None else jnp.take(whole, k, axis=axis)
        # Of zero groups within an array that stays (of one group of a convolution, say) nothing is asked.
        left = (value != 0) | (value.ndim < 2)
        whole, part = jnp.where(left, whole, 0.0), jnp.where(left, part, 0.0)
        size = max(float(jnp.max(jnp.abs(whole), initial=0.0)), 1e-3)
        np.testing.assert_allclose(part, whole, atol=20 * tolerance * size, err_msg=path)
    return small


@hypothesis.settings(max_examples=8)
@hypothesis.given(networks(), st.sampled_from([0.3, 0.7, 1.0]), st.integers(0, 2**30))
@hypothesis.example((Layer("conv", 4, 4), Layer("groups", 4, 8)), 0.3, 0)
def test_random_networks_with_random_zero_groups(layers, share, seed):
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), _init(layers, seed))
    x = jnp.asarray(np.random.default_rng(seed).standard_normal((*IMAGE, 4)), jnp.float32)
    apply = functools.partial(_apply, layers)
    net = rj.network(apply, params, x)
    sparse = with_zeros(net.inputs(rj.GroupLasso(0.1)), params, share, seed)
    small = check(apply, sparse, x)
    assert small.report().parameters <= small.report().parameters_before


def parts(module: nnx.Module) -> tuple[Any, Any]:
    """(a function of parameters and inputs, the parameters) of a module in evaluation."""
    module.eval()
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    return (lambda p, *inputs: nnx.merge(graph, p, rest)(*inputs)), params


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


def sparse_rows(w: jax.Array, dead: Any, axis: int = 0) -> jax.Array:
    index = [slice(None)] * w.ndim
    index[axis] = jnp.asarray(dead)
    return w.at[tuple(index)].set(0.0)


def random(*shape: int, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


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


def test_what_cannot_be_followed_stays_whole_and_says_so():
    layers = {"up": random(3, 4, 6), "down": sparse_rows(random(3, 6, 4, seed=1), [0, 1], 1)}
    small = check(zoo.scanned, layers, random(1, 4))
    assert small.widths() == {"up": (3, 4, 6), "down": (3, 4, 4)}  # filled up again
    assert any("scan" in reason for reason in small.report().reasons)
    params = {"a": random(4, 8), "b": sparse_rows(random(8, 3, seed=1), [0])}
    fourier = lambda p, x: jnp.fft.fft(x @ p["a"]).real @ p["b"]
    assert check(fourier, params, random(1, 4)).widths() == {"a": (4, 8), "b": (7, 3)}
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


def test_an_exported_model_runs_elsewhere(tmp_path):
    apply = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"]
    params = {"a": random(4, 8), "b": sparse_rows(random(8, 3, seed=1), [0, 1])}
    small = rj.compact(apply, params, random(2, 4))
    small.export(tmp_path / "model")
    loaded = rj.load_compact(tmp_path / "model")
    np.testing.assert_allclose(loaded(random(2, 4)), apply(params, random(2, 4)), atol=1e-5)
    assert {path: x.shape for path, x in loaded.params.items()} == small.widths()
    (tmp_path / "other").write_bytes(b"no model")
    with pytest.raises(ValueError, match="is no exported compact model"):
        rj.load_compact(tmp_path / "other")


def test_double_precision_agrees_to_its_rounding():
    with jax.enable_x64(True):
        params = {
            "a": np.random.default_rng(0).standard_normal((4, 8)),
            "b": np.random.default_rng(1).standard_normal((8, 3)),
        }
        params = {"a": jnp.asarray(params["a"]), "b": jnp.asarray(params["b"]).at[2:5].set(0.0)}
        x = jnp.asarray(np.random.default_rng(2).standard_normal((1, 4)))
        check(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], params, x, tolerance=1e-12)
