"""What a network says is regularized, with every method; and what it says where it cannot."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import ramda_jax as rj
from ramda_jax.assignment import resolve
from tests.network import masks, zoo

TOKENS = jnp.ones((2, 5, 8))
METHODS = {
    "ramda": lambda reg, **kw: rj.ramda(0.1, reg, **kw),
    "rmda": lambda reg, **kw: rj.rmda(0.1, reg, **kw),
    "prox_sgd": lambda reg, **kw: rj.prox_sgd(0.1, reg, **kw),
    "prox_adamw": lambda reg, **kw: rj.prox_adamw(0.1, reg, **kw),
    "prox_ssi": lambda reg, **kw: rj.prox_ssi(0.1, reg, **kw),
}


def attention():
    model = nnx.MultiHeadAttention(2, 8, rngs=nnx.Rngs(0), decode=False)
    return model, nnx.to_pure_dict(nnx.state(model, nnx.Param))


def layers():
    """Three layers of two kernels, scanned."""
    params = {"up": jnp.ones((3, 4, 6)), "down": jnp.ones((3, 6, 4))}
    return rj.network(zoo.scanned, params, jnp.ones((2, 4))), zoo.random_like(params, 0)


def gradients_like(params, seed=1):
    return zoo.random_like(params, seed)


def test_attention_has_a_group_per_input_whatever_its_axes_are():
    model, params = attention()
    net = rj.network(model, TOKENS)
    blocks = {b.name: b for b in resolve(net.inputs(rj.GroupLasso(0.1)), params).blocks}
    assert {name: b.number for name, b in blocks.items()} == dict.fromkeys(blocks, 8)
    assert set(blocks) == {f"{n}/kernel" for n in ("query", "key", "value", "out")}
    # sqrt|g| counts the group that is meant.
    assert {b.group_size for b in blocks.values()} == {8}
    groups = masks.groups(list(blocks.values()))
    assert all(len(np.unique(groups["query/kernel"][i])) == 1 for i in range(8))
    assert len(np.unique(groups["out/kernel"])) == 8
    heads = resolve(net.channels(rj.GroupLasso(0.1)), params).blocks
    assert [(b.number, b.group_size) for b in heads] == [(2, 32)]
    widths = resolve(net.channels(rj.GroupLasso(0.1), heads="within"), params).blocks
    assert [(b.number, b.group_size) for b in widths] == [(8, 8)]


def test_layers_of_a_scan_live_and_die_apart():
    net, params = layers()
    blocks = resolve(net.inputs(rj.GroupLasso(0.1)), params).blocks
    assert {b.name: (b.number, b.group_size) for b in blocks} == {"up": (12, 6), "down": (18, 4)}
    (hidden,) = resolve(net.channels(rj.GroupLasso(0.1)), params).blocks
    assert (hidden.number, hidden.group_size) == (18, 4)
    both = resolve(net.channels(rj.GroupLasso(0.1), writers=True), params).blocks
    assert [(b.number, b.group_size, len(b.members)) for b in both] == [(18, 8, 2)]


@pytest.mark.parametrize("method", METHODS)
def test_a_step_is_that_of_the_layers_one_by_one(method):
    """Stacked or not: inputs and channels; matrices too, in one decomposition."""
    net, params = layers()
    grads = gradients_like(params)
    each = lambda tree: {f"{n}{k}": tree[n][k] for n in tree for k in range(3)}

    def step(reg, params, grads, **kwargs):
        tx = METHODS[method](reg, **kwargs)
        updates, _ = jax.jit(tx.update)(grads, jax.jit(tx.init)(params), params)
        return optax.apply_updates(params, updates)

    rows = rj.GroupLasso(0.05, group_axis=0)
    found = step(net.inputs(rj.GroupLasso(0.05)), params, grads)
    expected = step(jax.tree.map(lambda _: rows, each(params)), each(params), each(grads))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), each(found), expected)
    if method != "ramda":
        return
    exact = rj.DouglasRachford(tolerance=1e-6)
    step = functools.partial(step, solver=exact)
    low = step(net.matrices(rj.NuclearNorm(0.5)), params, grads)
    expected = step(
        jax.tree.map(lambda _: rj.NuclearNorm(0.5), each(params)), each(params), each(grads)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), each(low), expected)


def test_a_stack_of_matrices_is_decomposed_at_once():
    net, params = layers()
    tx = rj.ramda(0.1, net.matrices(rj.NuclearNorm(0.5)))
    text = str(jax.make_jaxpr(tx.update)(params, tx.init(params), params))
    assert text.count(" eigh[") == 2 * str(
        jax.make_jaxpr(lambda p, s: rj.ramda(0.1, rj.NuclearNorm(0.5)).update(p, s, p))(
            {"kernel": params["up"][0]},
            rj.ramda(0.1, rj.NuclearNorm(0.5)).init({"kernel": params["up"][0]}),
        )
    ).count(" eigh[")


def test_convolutions_in_groups_are_matrices_per_group():
    model = nnx.Conv(6, 4, (3, 3), feature_group_count=2, use_bias=False, rngs=nnx.Rngs(0))
    params = nnx.state(model, nnx.Param)
    net = rj.network(model, jnp.ones((1, 8, 8, 6)))
    (block,) = resolve(net.matrices(rj.NuclearNorm(0.1)), params).blocks
    assert block.shape == (3, 3, 3, 2, 2)
    assert block.psi.num_groups(block.shape) == 2 * 2
    (block,) = resolve(net.inputs(rj.GroupLasso(0.1)), params).blocks
    assert (block.number, block.group_size) == (6, 18)
    tx = rj.rmda(0.1, net.matrices(rj.NuclearNorm(0.1)))
    tx.update(params, tx.init(params), params)


@pytest.mark.parametrize("wrapped", [True, False])
def test_linen_parameters_with_or_without_the_name_of_their_collection(wrapped):
    model = nn.Sequential([nn.Dense(6), nn.relu, nn.Dense(3)])
    variables = model.init(jax.random.key(0), jnp.ones((2, 4)))
    net = rj.network(model.apply, variables, jnp.ones((2, 4)))
    params = variables if wrapped else variables["params"]
    for assignment in (net.inputs(rj.GroupLasso(0.1)), net.channels(rj.GroupLasso(0.1))):
        tx = rj.ramda(0.1, assignment)
        tx.update(params, tx.init(params), params)
    assert net.cost(params).parameters == net.cost().parameters == 4 * 6 + 6 + 6 * 3 + 3


def test_linen_with_statistics_mutable_collections_and_keys():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = nn.BatchNorm(use_running_average=not train)(nn.Dense(6)(x))
            return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(nn.relu(x)))

    x = jnp.ones((2, 4))
    variables = Model().init(jax.random.key(0), x, train=False)
    nets = [
        rj.network(Model().apply, variables, x, train=False),
        rj.network(
            Model().apply,
            variables,
            x,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(1)},
        ),
    ]
    for net in nets:
        assert "params/BatchNorm_0/scale" in net.paths
        assert not any("batch_stats" in path for path in net.paths)
        (space,) = [s for s in net.spaces() if not s.others]
        assert (space.number, space.readers[0].path) == (6, "params/Dense_1/kernel")


def test_an_assignment_of_a_network_is_a_rule_of_by_path_and_a_tree_of_strengths():
    model, params = attention()
    net = rj.network(model, TOKENS)
    rules = rj.by_path([("^out", None), (".*", net.inputs(rj.GroupLasso(0.1)))])
    assert len(resolve(rules, params).blocks) == 3
    assignment = net.inputs(rj.GroupLasso(0.1))
    assert jax.tree.leaves(assignment) == [0.1]
    assert not callable(assignment)
    make = optax.inject_hyperparams(lambda reg: rj.rmda(0.1, reg))
    tx = make(reg=assignment)
    tx.update(params, tx.init(params), params)


def test_elementwise_regularizers_take_the_weights_as_they_are():
    model, params = attention()
    net = rj.network(model, TOKENS)
    for assignment in (net.inputs(rj.L1(0.1)), net.matrices(rj.L1(0.1))):
        chosen = assignment.assign(params)
        assert chosen["query"]["kernel"] == rj.L1(0.1)
        assert chosen["query"]["bias"] is None


def test_embeddings_and_tied_heads_are_left_alone_unless_asked_for():
    params = {"embedding": jnp.ones((10, 4)), "w": jnp.ones((4, 4))}
    net = rj.network(zoo.tied, params, jnp.ones((2, 3), int))
    names = lambda assignment: [b.name for b in resolve(assignment, params).blocks]
    assert names(net.inputs(rj.GroupLasso(0.1))) == ["w"]
    assert names(net.inputs(rj.GroupLasso(0.1), embeddings=True)) == ["embedding", "w"]
    assert "embedding that is multiplied as well" in net.describe()
    with pytest.raises(ValueError, match="embedding as well"):
        net.channels(rj.GroupLasso(0.1))
    blocks = resolve(net.channels(rj.GroupLasso(0.1), tied=True), params).blocks
    assert {m.path for b in blocks for m in b.members} == {"embedding", "w"}


def test_what_is_not_understood_is_left_alone_and_said():
    params = {"w": jnp.ones((4, 4)), "a": jnp.ones((4, 4)), "b": jnp.ones((4, 3))}

    def apply(p, x):
        x = jnp.fft.fft(x @ p["a"]).real @ p["b"]
        return x + jnp.sum(jnp.linalg.inv(p["w"]))

    net = rj.network(apply, params, jnp.ones((2, 4)))
    text = net.describe()
    assert "fft: nothing is known of it, and what flows through it is not followed" in text
    assert "w: left alone, enters" in text
    assert all(space.others for space in net.spaces())
    with pytest.raises(ValueError, match="no channel of this network is read by parameters only"):
        net.channels(rj.GroupLasso(0.1))
    autoencoder = rj.network(zoo.autoencoder, {"w": jnp.ones((6, 3))}, jnp.ones((2, 6)))
    assert "in and out in different products" in autoencoder.describe()
    with pytest.raises(ValueError, match="no parameter of this network"):
        autoencoder.inputs(rj.GroupLasso(0.1))


def test_channels_that_something_else_reads_are_not_taken():
    params = {"up": jnp.ones((4, 6)), "down": jnp.ones((6, 3))}
    inputs = jnp.ones((2, 4))
    cases = {
        "returned by the network": lambda p, x: (x @ p["up"], x @ p["up"] @ p["down"]),
        "a reduction over it is returned": lambda p, x: (h := x @ p["up"]) @ p["down"] + h.sum(),
        "a product with what the inputs make": lambda p, x: (
            (h := x @ p["up"]) @ p["down"] * (h @ h.T).sum()
        ),
        "a product with a constant": lambda p, x: (
            (h := x @ p["up"]) @ p["down"] + h @ jnp.ones((6, 3))
        ),
    }
    for text, apply in cases.items():
        net = rj.network(apply, params, inputs)
        (space,) = [s for s in net.spaces() if s.name == "up"]
        assert any(text in other for other in space.others), (text, space.others)
    # Statistics of a normalization are no readers.
    norm = lambda h: (h - h.mean(-1, keepdims=True)) / jnp.sqrt(h.var(-1, keepdims=True) + 1e-5)
    net = rj.network(lambda p, x: norm(x @ p["up"]) @ p["down"], params, inputs)
    assert [s.others for s in net.spaces() if s.name == "up"] == [()]


def test_costs_count_what_is_zero_and_what_nobody_reads():
    params = {"up": jnp.ones((4, 6)), "bias": jnp.ones(6), "down": jnp.ones((6, 3))}
    apply = lambda p, x: jax.nn.relu(x @ p["up"] + p["bias"]) @ p["down"]
    net = rj.network(apply, params, jnp.ones((5, 4)))
    dense = net.cost()
    assert (dense.parameters, dense.flops) == (24 + 6 + 18, 2 * 5 * (24 + 18))
    assert dense.bytes == 4 * dense.parameters
    dead = {**params, "down": params["down"].at[:4].set(0.0), "up": params["up"].at[0].set(0.0)}
    now = net.cost(dead)
    assert (now.arrays["down"].parameters_now, now.arrays["up"].parameters_now) == (6, 6)
    assert now.flops_now == 2 * 5 * (6 + 6)
    assert "total" in str(now)
    stack, params = layers()
    assert stack.cost().flops == 2 * 2 * 3 * (24 + 24)
    half = {**params, "down": params["down"].at[0, :3].set(0.0)}
    assert stack.cost(half).arrays["up"].parameters_now == 72 - 12
    attention = rj.network(zoo.fused, {"qkv": jnp.ones((8, 24)), "out": jnp.ones((8, 8))}, TOKENS)
    assert attention.cost().other_flops == 2 * 2 * (2 * 5 * 5 * 8)


def test_clear_errors():
    model, params = attention()
    net = rj.network(model, TOKENS)
    with pytest.raises(ValueError, match=r"use matrices"):
        net.inputs(rj.NuclearNorm(0.1))
    with pytest.raises(ValueError, match="use inputs"):
        net.matrices(rj.GroupLasso(0.1))
    with pytest.raises(ValueError, match="group norms"):
        net.channels(rj.L1(0.1))
    with pytest.raises(ValueError, match="heads must be"):
        net.channels(rj.GroupLasso(0.1), heads="all")
    with pytest.raises(ValueError, match="needs a regularizer"):
        net.inputs(0.1)
    with pytest.raises(ValueError, match="no parameter 'x'"):
        net.roles("x")
    with pytest.raises(TypeError, match="needs a function"):
        rj.network(3, params)
    with pytest.raises(TypeError, match="needs parameters"):
        rj.network(lambda p: p)
    with pytest.raises(ValueError, match="no floating-point array"):
        rj.network(lambda p, x: x, {"n": jnp.ones(3, int)}, TOKENS)
    assignment = net.inputs(rj.GroupLasso(0.1))
    wrong = {**params, "out": {**params["out"], "kernel": jnp.ones((2, 4, 9))}}
    with pytest.raises(
        ValueError, match=r"'out/kernel' has shape \(2, 4, 9\), but the network was seen"
    ):
        rj.ramda(0.1, assignment).init(wrong)
    with pytest.raises(ValueError, match="the network has a parameter 'out/kernel'"):
        rj.ramda(0.1, assignment).init({k: v for k, v in params.items() if k != "out"})
    with pytest.raises(ValueError, match="the network has 'out/bias' of shape"):
        net.cost({k: v for k, v in params.items() if k != "out"})
    split = rj.network(
        zoo.scanned, {"up": jnp.ones((3, 4, 6)), "down": jnp.ones((3, 6, 4))}, jnp.ones((2, 4))
    )
    both = rj.by_path([("up", None), (".*", split.channels(rj.GroupLasso(0.1), writers=True))])
    with pytest.raises(ValueError, match="lacks"):
        resolve(both, {"up": jnp.ones((3, 4, 6)), "down": jnp.ones((3, 6, 4))})


def test_nothing_is_computed_and_shapes_are_enough():
    def apply(p, x, flag, scale):
        assert flag is True
        return scale * (x @ p["w"])

    big = {"w": jax.ShapeDtypeStruct((10**6, 10**6), jnp.float32)}
    net = rj.network(apply, big, jax.ShapeDtypeStruct((1, 10**6), jnp.float32), True, scale=2)
    assert net.roles("w") == ("in", "out")
    assert net.cost().flops == 2 * 10**12
