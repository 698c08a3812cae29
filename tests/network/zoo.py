"""Layers of every kind, of Flax NNX, Linen, Equinox and plain JAX, with the roles that their axes have."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

import ramda_jax as rj


class Case(NamedTuple):
    """A layer.

    Attributes:
      name: of its kind.
      args: what `rj.network` takes.
      roles: of every parameter that has any, by path.
    """

    name: str
    args: tuple[Any, ...]
    roles: dict[str, tuple[str, ...]]


def ones(*shape: int, dtype: Any = jnp.float32) -> jax.Array:
    return jnp.ones(shape, dtype)


def _rngs() -> nnx.Rngs:
    return nnx.Rngs(0)


DENSE = ("in", "out")
CONV2 = ("window", "window", "in", "out")


class _Stack(nnx.Module):
    """Three layers of one shape, scanned."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def make(rngs: nnx.Rngs) -> nnx.Linear:
            return nnx.Linear(4, 4, rngs=rngs)

        self.layers = make(rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        def run(layer: nnx.Linear, x: jax.Array) -> jax.Array:
            return x + jnp.tanh(layer(x))

        return run(self.layers, x)


class _Experts(nnx.Module):
    """Two layers, three experts of each, of one input."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def make(rngs: nnx.Rngs) -> nnx.Sequential:
            return nnx.Sequential(
                nnx.Linear(4, 6, rngs=rngs), nnx.relu, nnx.Linear(6, 5, rngs=rngs)
            )

        self.experts = make(rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.vmap(lambda m, x: m(x), in_axes=(0, None))(self.experts, x).sum(0)


def nnx_cases() -> list[Case]:
    r = _rngs()
    vector, tokens = ones(2, 6), ones(2, 5, 8)
    image, line, volume = ones(2, 8, 8, 6), ones(2, 9, 6), ones(1, 4, 4, 4, 2)
    conv = lambda i, o, k, **kw: nnx.Conv(i, o, k, rngs=r, **kw)
    recurrent = lambda cell: nnx.RNN(cell)
    general = nnx.LinearGeneral((4, 3), (2, 5), axis=(-2, -1), rngs=r)
    attention = nnx.MultiHeadAttention(2, 8, rngs=r, decode=False)
    einsum = nnx.Einsum("bti,ijk->btjk", (8, 2, 3), (2, 3), rngs=r)
    qkv = {f"{name}/kernel": ("in", "out", "out") for name in ("query", "key", "value")}
    lstm = [f"cell/{a}{b}/kernel" for a in ("i", "h") for b in "igo"]
    depthwise = conv(6, 12, (3, 3), feature_group_count=6)
    return [
        Case("Linear", (nnx.Linear(6, 3, rngs=r), vector), {"kernel": DENSE}),
        Case("LinearGeneral", (general, ones(2, 4, 3)), {"kernel": ("in", "in", "out", "out")}),
        Case("Einsum", (einsum, tokens), {"kernel": ("in", "out", "out")}),
        Case("Conv, 1 dimension", (conv(6, 4, (3,)), line), {"kernel": ("window", "in", "out")}),
        Case("Conv, 2", (conv(6, 4, (3, 3)), image), {"kernel": CONV2}),
        Case("Conv, 3", (conv(2, 4, (3,) * 3), volume), {"kernel": ("window", *CONV2)}),
        Case("Conv, strided", (conv(6, 4, (3, 3), strides=2), image), {"kernel": CONV2}),
        Case("Conv, dilated", (conv(6, 4, (3, 3), kernel_dilation=2), image), {"kernel": CONV2}),
        Case("Conv, causal", (conv(6, 4, (3,), padding="CAUSAL"), line), {"kernel": CONV2[1:]}),
        Case(
            "Conv, in groups",
            (conv(6, 4, (3, 3), feature_group_count=2), image),
            {"kernel": ("window", "window", "in", "stack 2 x out 2")},
        ),
        Case(
            "Conv, depthwise",
            (depthwise, image),
            {"kernel": ("window", "window", "in", "stack 6 x out 2")},
        ),
        Case(
            "ConvTranspose",
            (nnx.ConvTranspose(6, 4, (3, 3), strides=2, rngs=r), image),
            {"kernel": CONV2},
        ),
        Case(
            "ConvTranspose, of a convolution's kernel",
            (nnx.ConvTranspose(6, 4, (3, 3), transpose_kernel=True, rngs=r), image),
            {"kernel": ("window", "window", "out", "in")},
        ),
        Case("Embed", (nnx.Embed(10, 4, rngs=r), ones(2, 3, dtype=int)), {"embedding": DENSE}),
        Case("MultiHeadAttention", (attention, tokens), {**qkv, "out/kernel": ("in", "in", "out")}),
        Case("LoRA", (nnx.LoRA(6, 2, 3, rngs=r), vector), {"lora_a": DENSE, "lora_b": DENSE}),
        Case(
            "LoRALinear",
            (nnx.LoRALinear(6, 3, lora_rank=2, rngs=r), vector),
            {"kernel": DENSE, "lora/lora_a": DENSE, "lora/lora_b": DENSE},
        ),
        Case(
            "LSTM",
            (recurrent(nnx.LSTMCell(8, 4, rngs=r)), tokens),
            dict.fromkeys([*lstm, "cell/if_/kernel", "cell/hf/kernel"], DENSE),
        ),
        Case(
            "LSTM, gates in one",
            (recurrent(nnx.OptimizedLSTMCell(8, 4, rngs=r)), tokens),
            {"cell/dense_i/kernel": DENSE, "cell/dense_h/kernel": DENSE},
        ),
        Case(
            "GRU",
            (recurrent(nnx.GRUCell(8, 4, rngs=r)), tokens),
            {"cell/dense_i/kernel": DENSE, "cell/dense_h/kernel": DENSE},
        ),
        Case("BatchNorm", (nnx.BatchNorm(6, use_running_average=True, rngs=r), vector), {}),
        Case("BatchNorm, training", (nnx.BatchNorm(6, rngs=r), vector), {}),
        Case("LayerNorm", (nnx.LayerNorm(6, rngs=r), vector), {}),
        Case("RMSNorm", (nnx.RMSNorm(6, rngs=r), vector), {}),
        Case("GroupNorm", (nnx.GroupNorm(6, num_groups=2, rngs=r), image), {}),
        Case("nnx.scan", (_Stack(r), ones(2, 4)), {"layers/kernel": ("stack", "in", "out")}),
        Case(
            "nnx.vmap",
            (_Experts(r), ones(2, 4)),
            {f"experts/layers/{k}/kernel": ("stack", "in", "out") for k in (0, 2)},
        ),
    ]


def _linen(module: nn.Module, *inputs: jax.Array) -> tuple[Any, ...]:
    return (module.apply, module.init(jax.random.key(0), *inputs), *inputs)


class _LinenStack(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        class Layer(nn.Module):
            @nn.compact
            def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
                return x + jnp.tanh(nn.Dense(4)(x)), None

        axes = {"params": 0}
        return nn.scan(Layer, variable_axes=axes, split_rngs={"params": True}, length=3)()(x, None)[
            0
        ]


def linen_cases() -> list[Case]:
    vector, tokens, image, line = ones(2, 6), ones(2, 5, 8), ones(2, 8, 8, 6), ones(2, 9, 6)
    conv = lambda **kw: _linen(nn.Conv(4, (3, 3), **kw), image)
    general = _linen(nn.DenseGeneral((2, 5), axis=(-2, -1)), ones(2, 4, 3))
    qkv = {f"params/{name}/kernel": ("in", "out", "out") for name in ("query", "key", "value")}
    attention = _linen(nn.MultiHeadDotProductAttention(2), tokens)
    # The kernels of the gates are concatenated first, then multiplied.
    lstm = [f"params/layers_0/cell/{a}{b}/kernel" for a in "ih" for b in "ifgo"]
    gru = [f"params/layers_0/cell/{a}{b}/kernel" for a in "ih" for b in "rzn"]
    inside = lambda cell: nn.Sequential([nn.RNN(cell)])
    kernel = lambda roles: {"params/kernel": roles}
    table = _linen(nn.Embed(10, 4), ones(2, 3, dtype=int))
    grouped = ("window", "window", "in", "stack 2 x out 2")
    transposed = nn.ConvTranspose(4, (3, 3), transpose_kernel=True)
    stack = {"params/ScanLayer_0/Dense_0/kernel": ("stack", "in", "out")}
    return [
        Case("nn.Dense", _linen(nn.Dense(3), vector), kernel(DENSE)),
        Case("nn.DenseGeneral", general, kernel(("in", "in", "out", "out"))),
        Case(
            "nn.Einsum",
            _linen(nn.Einsum((8, 2, 3), "bti,ijk->btjk", use_bias=False), tokens),
            kernel(("in", "out", "out")),
        ),
        Case("nn.Conv", conv(), kernel(CONV2)),
        Case("nn.Conv, 1 dimension", _linen(nn.Conv(4, (3,)), line), kernel(CONV2[1:])),
        Case("nn.Conv, in groups", conv(feature_group_count=2), kernel(grouped)),
        Case("nn.ConvTranspose", _linen(nn.ConvTranspose(4, (3, 3)), image), kernel(CONV2)),
        Case(
            "nn.ConvTranspose, of a kernel",
            _linen(transposed, image),
            kernel(("window", "window", "out", "in")),
        ),
        Case("nn.Embed", table, {"params/embedding": DENSE}),
        Case(
            "nn.MultiHeadDotProductAttention",
            attention,
            {**qkv, "params/out/kernel": ("in", "in", "out")},
        ),
        Case(
            "nn.LSTM", _linen(inside(nn.OptimizedLSTMCell(4)), tokens), dict.fromkeys(lstm, DENSE)
        ),
        Case("nn.GRU", _linen(inside(nn.GRUCell(4)), tokens), dict.fromkeys(gru, DENSE)),
        Case("nn.BatchNorm", _linen(nn.BatchNorm(use_running_average=True), vector), {}),
        Case("nn.LayerNorm", _linen(nn.LayerNorm(), vector), {}),
        Case("nn.RMSNorm", _linen(nn.RMSNorm(), vector), {}),
        Case("nn.GroupNorm", _linen(nn.GroupNorm(2), image), {}),
        Case("nn.scan", _linen(_LinenStack(), ones(2, 4)), stack),
    ]


def _attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    logits = jnp.einsum("bthw,bshw->bhts", q, k)
    return jnp.einsum("bhts,bshw->bthw", jax.nn.softmax(logits), v)


def fused(p: Any, x: jax.Array) -> jax.Array:
    """Attention with one kernel for query, key and value."""
    heads = lambda y: y.reshape(*y.shape[:-1], 2, 4)
    q, k, v = (heads(y) for y in jnp.split(x @ p["qkv"], 3, axis=-1))
    return _attention(q, k, v).reshape(x.shape) @ p["out"]


def interleaved(p: Any, x: jax.Array) -> jax.Array:
    """The same, query, key and value of a head beside each other."""
    y = (x @ p["qkv"]).reshape(*x.shape[:-1], 2, 3, 4)
    return _attention(*(y[..., k, :] for k in range(3))).reshape(x.shape) @ p["out"]


def grouped_queries(p: Any, x: jax.Array) -> jax.Array:
    """Two query heads to one key and value head."""
    q = (x @ p["q"]).reshape(*x.shape[:-1], 2, 2, 4)
    k, v = ((x @ p[n]).reshape(*x.shape[:-1], 2, 4) for n in "kv")
    logits = jnp.einsum("btkgw,bskw->bkgts", q, k)
    y = jnp.einsum("bkgts,bskw->btkgw", jax.nn.softmax(logits), v)
    return y.reshape(*x.shape[:-1], 16) @ p["out"]


def repeated_keys(p: Any, x: jax.Array) -> jax.Array:
    """The same, keys and values repeated."""
    q = (x @ p["q"]).reshape(*x.shape[:-1], 4, 4)
    k, v = (jnp.repeat((x @ p[n]).reshape(*x.shape[:-1], 2, 4), 2, axis=-2) for n in "kv")
    return _attention(q, k, v).reshape(*x.shape[:-1], 16) @ p["out"]


def scanned(p: Any, x: jax.Array) -> jax.Array:
    layer = lambda h, w: (h + jax.nn.relu(h @ w["up"]) @ w["down"], None)
    return jax.lax.scan(jax.checkpoint(layer), x, p)[0]


def experts(p: Any, x: jax.Array) -> jax.Array:
    one = lambda w: jax.nn.relu(x @ w["up"]) @ w["down"]
    return jnp.sum(jax.vmap(one)(p), axis=0)


def tied(p: Any, tokens: jax.Array) -> jax.Array:
    return jnp.tanh(p["embedding"][tokens] @ p["w"]) @ p["embedding"].T


def autoencoder(p: Any, x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ p["w"]) @ p["w"].T


def flattened(p: Any, x: jax.Array) -> jax.Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(x, p["conv"], (2, 2), "SAME", dimension_numbers=numbers)
    return jax.nn.relu(y).reshape(x.shape[0], -1) @ p["dense"]


def torch_conv(p: Any, x: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(x, p["w"], (1, 1), "SAME")  # NCHW, OIHW


def parted(p: Any, x: jax.Array) -> jax.Array:
    """Two products read a half each of one kernel, along its output."""
    return (x @ p["w"][:, :3]) * jax.nn.sigmoid(x @ p["w"][:, 3:])


def normalized(p: Any, x: jax.Array) -> jax.Array:
    """Weight normalization."""
    return x @ (p["v"] * (p["g"] / jnp.linalg.norm(p["v"], axis=0)))


def while_loop(p: Any, x: jax.Array) -> jax.Array:
    body = lambda carry: (carry[0] + 1, jnp.tanh(carry[1] @ p["w"]))
    return jax.lax.while_loop(lambda carry: carry[0] < 3, body, (0, x))[1]


def branches(p: Any, x: jax.Array) -> jax.Array:
    return jax.lax.cond(x[0, 0] > 0, lambda: x @ p["a"], lambda: x @ p["b"])


def positions(p: Any, x: jax.Array) -> jax.Array:
    """A kernel that is applied to what does not depend on the inputs."""
    return jax.nn.softmax(x @ (jnp.sin(jnp.arange(70.0)).reshape(10, 7) @ p["w"]).T)


def routed(p: Any, x: jax.Array) -> jax.Array:
    """Experts by a ragged product."""
    return jax.lax.ragged_dot(x, p["w"], jnp.array([2, 4]))


def stacked_kernels(p: Any, x: jax.Array) -> jax.Array:
    """Kernels stacked, then applied at once."""
    return jnp.einsum("bi,kio->bko", x, jnp.stack([p["a"], p["b"]]))


def mixer(p: Any, x: jax.Array) -> jax.Array:
    """Mixes tokens: a kernel that is applied to another axis."""
    return jnp.swapaxes(jnp.swapaxes(x, 1, 2) @ p["w"], 1, 2)


def plain_cases() -> list[Case]:
    tokens = ones(2, 5, 8)
    grouped_shapes = {"q": ones(8, 16), "k": ones(8, 8), "v": ones(8, 8), "out": ones(16, 8)}
    all_dense = lambda p: dict.fromkeys(p, DENSE)
    layers = {"up": ones(3, 4, 6), "down": ones(3, 6, 4)}
    stacked = dict.fromkeys(layers, ("stack", "in", "out"))
    qkv = {"qkv": ones(8, 24), "out": ones(8, 8)}
    square = {"w": ones(4, 4)}
    both = {"embedding": ones(10, 4), "w": ones(4, 4)}
    conv = {"conv": ones(3, 3, 6, 4), "dense": ones(64, 5)}
    return [
        Case("fused qkv", (fused, qkv, tokens), all_dense(qkv)),
        Case("interleaved qkv", (interleaved, qkv, tokens), all_dense(qkv)),
        Case(
            "grouped queries", (grouped_queries, grouped_shapes, tokens), all_dense(grouped_shapes)
        ),
        Case("repeated keys", (repeated_keys, grouped_shapes, tokens), all_dense(grouped_shapes)),
        Case("scanned and rematerialized", (scanned, layers, ones(2, 4)), stacked),
        Case("experts by vmap", (experts, layers, ones(2, 4)), stacked),
        Case(
            "tied embedding",
            (tied, both, ones(2, 3, dtype=int)),
            {"embedding": ("out", "in"), "w": DENSE},
        ),
        Case(
            "used transposed",
            (lambda p, x: x @ p["w"].T, {"w": ones(3, 6)}, ones(2, 6)),
            {"w": ("out", "in")},
        ),
        Case(
            "flatten and dense",
            (flattened, conv, ones(2, 8, 8, 6)),
            {"conv": CONV2, "dense": DENSE},
        ),
        Case(
            "OIHW",
            (torch_conv, {"w": ones(4, 6, 3, 3)}, ones(2, 6, 8, 8)),
            {"w": ("out", "in", "window", "window")},
        ),
        Case("halves", (parted, {"w": ones(6, 8)[:, :6]}, ones(2, 6)), {"w": DENSE}),
        Case(
            "weight normalization",
            (normalized, {"v": ones(6, 3), "g": ones(3)}, ones(2, 6)),
            {"v": DENSE},
        ),
        Case("while", (while_loop, square, ones(2, 4)), {"w": DENSE}),
        Case(
            "cond",
            (branches, {"a": ones(6, 3), "b": ones(6, 3)}, ones(2, 6)),
            {"a": DENSE, "b": DENSE},
        ),
        Case("of positions", (positions, {"w": ones(7, 8)}, tokens), {"w": DENSE}),
        Case(
            "experts by ragged_dot",
            (routed, {"w": ones(2, 8, 3)}, ones(6, 8)),
            {"w": ("stack", "in", "out")},
        ),
        Case(
            "kernels stacked",
            (stacked_kernels, {"a": ones(6, 3), "b": ones(6, 3)}, ones(2, 6)),
            {"a": DENSE, "b": DENSE},
        ),
        Case("token mixing", (mixer, {"w": ones(5, 5)}, tokens), {"w": DENSE}),
        Case("vector", (lambda p, x: x @ p["w"], {"w": ones(6)}, ones(2, 6)), {"w": ("in",)}),
    ]


def equinox_cases() -> list[Case]:
    key = jax.random.key(0)
    batched = lambda m, x: jax.vmap(m)(x)
    mlp = eqx.nn.MLP(6, 3, 5, 1, key=key)
    attention = eqx.nn.MultiheadAttention(2, 8, key=key)
    cell = eqx.nn.GRUCell(8, 4, key=key)
    attend = lambda m, x: jax.vmap(lambda y: m(y, y, y))(x)
    step = lambda m, x: jax.lax.scan(
        lambda h, y: (jax.vmap(m)(y, h), None), ones(2, 4), x.swapaxes(0, 1)
    )[0]
    projections = ("query_proj", "key_proj", "value_proj", "output_proj")
    return [
        Case(
            "eqx.nn.MLP",
            (batched, mlp, ones(2, 6)),
            {f"layers/{k}/weight": ("out", "in") for k in (0, 1)},
        ),
        Case(
            "eqx.nn.Conv2d",
            (batched, eqx.nn.Conv2d(6, 4, 3, key=key), ones(2, 6, 8, 8)),
            {"weight": ("out", "in", "window", "window")},
        ),
        Case(
            "eqx.nn.MultiheadAttention",
            (attend, attention, ones(2, 5, 8)),
            {f"{n}/weight": ("out", "in") for n in projections},
        ),
        Case(
            "eqx.nn.GRUCell",
            (step, cell, ones(2, 5, 8)),
            {"weight_ih": ("out", "in"), "weight_hh": ("out", "in")},
        ),
        Case("eqx.nn.LayerNorm", (batched, eqx.nn.LayerNorm(6), ones(2, 6)), {}),
        Case(
            "eqx.nn.Embedding",
            (
                lambda m, t: jax.vmap(jax.vmap(m))(t),
                eqx.nn.Embedding(10, 4, key=key),
                ones(2, 3, dtype=int),
            ),
            {"weight": DENSE},
        ),
    ]


def cases() -> list[Case]:
    return [*nnx_cases(), *linen_cases(), *plain_cases(), *equinox_cases()]


def seen(case: Case) -> rj.Network:
    return rj.network(*case.args)


def random_like(tree: Any, seed: int) -> Any:
    """A tree of the same arrays with random entries; integers as they are."""
    rng = np.random.default_rng(seed)
    draw = lambda x: (
        jnp.asarray(rng.standard_normal(x.shape), x.dtype)
        if jnp.issubdtype(x.dtype, jnp.floating)
        else x
    )
    return jax.tree.map(lambda x: draw(x) if hasattr(x, "dtype") else x, tree)
