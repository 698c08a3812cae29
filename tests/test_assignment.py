"""Which parameter gets which regularizer: Flax NNX, Flax Linen and plain pytrees."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen, nnx

import ramda_jax as rj
from ramda_jax import assignment


class NnxModel(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(8, 6, rngs=rngs), nnx.Linear(6, 2, rngs=rngs)])
        self.embed = nnx.Embed(10, 4, rngs=rngs)


class LinenModel(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.Conv(8, (3, 3))(x)
        x = linen.LayerNorm()(x)
        return linen.Dense(2)(x.mean((1, 2)))


def chosen(params, regularizer):
    """By path: the regularizer, or None."""
    resolved = assignment.resolve(regularizer, params)
    of_blocks = {member.path: block.psi for block in resolved.blocks for member in block.members}
    return dict.fromkeys(resolved.paths) | of_blocks


def test_kernels_of_flax_nnx():
    params = nnx.state(NnxModel(nnx.Rngs(0)), nnx.Param)
    found = chosen(params, rj.GroupLasso(0.1))
    kernels = {path for path, psi in found.items() if psi is not None}
    assert kernels == {"conv/kernel", "layers/0/kernel", "layers/1/kernel"}
    assert set(found) - kernels == {
        "conv/bias", "norm/bias", "norm/scale", "layers/0/bias", "layers/1/bias", "embed/embedding"
    }  # fmt: skip


def test_kernels_of_flax_linen_and_of_boxed_parameters():
    params = LinenModel().init(jax.random.key(0), jnp.ones((1, 8, 8, 3)))["params"]
    kernels = {path for path, psi in chosen(params, rj.L1(0.1)).items() if psi is not None}
    assert kernels == {"Conv_0/kernel", "Dense_0/kernel"}
    boxed = {"Dense_0": {"kernel": linen.Partitioned(jnp.ones((2, 3)), (None, None))}}
    assert list(chosen(boxed, rj.L1(0.1))) == ["Dense_0/kernel"]


def test_by_path_takes_the_first_match():
    params = {"head": {"kernel": jnp.ones((2, 2))}, "body": [{"w": jnp.ones((2, 2))}, jnp.ones(3)]}
    rules = [("^head", None), (r"body/\d+/w", rj.L1(0.1)), (".*", rj.L0(0.2))]
    assert chosen(params, rj.by_path(rules)) == {
        "body/0/w": rj.L1(0.1),
        "body/1": rj.L0(0.2),
        "head/kernel": None,
    }


def test_explicit_tree_may_use_another_kind_of_container():
    params = nnx.state(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.Param)
    tree = {"kernel": rj.GroupLasso(0.1), "bias": None}
    assert chosen(params, tree) == {"kernel": rj.GroupLasso(0.1), "bias": None}


def test_an_assignment_returns_a_tree_like_params():
    params = {"a": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
    assert rj.kernels(rj.L1(0.1)).assign(params) == {"a": {"kernel": rj.L1(0.1), "bias": None}}


def test_assignments_are_not_callable_and_their_strengths_are_leaves():
    for rule in (rj.kernels(rj.L1(0.1)), rj.by_path([("a", rj.L1(0.1)), ("b", None)])):
        assert not callable(rule)
        assert jax.tree.leaves(rule) == [0.1]
        doubled = jax.tree.map(lambda s: 2 * s, rule)
        assert jax.tree.leaves(doubled) == [0.2]


def test_describe_lists_every_array_and_totals():
    params = {"a": {"kernel": jnp.ones((3, 3, 4, 5)), "bias": jnp.ones(5)}}
    lines = rj.describe(params, rj.GroupLasso(0.1)).splitlines()
    assert [line.split()[0] for line in lines] == ["path", "a/bias", "a/kernel", "total"]
    assert lines[2].split()[-2:] == ["4", "180"]
    assert lines[3].split()[-2:] == ["4", "185"]
    abstract = jax.eval_shape(lambda: params)
    assert rj.describe(abstract, rj.GroupLasso(0.1)).splitlines() == lines


def test_a_leaf_that_no_rule_matches_is_named():
    with pytest.raises(ValueError, match="'b'"):
        chosen({"a": jnp.ones(2), "b": jnp.ones(2)}, rj.by_path([("a", rj.L1(0.1))]))


@pytest.mark.parametrize(
    ("shape", "reg", "reading"),
    [
        (
            (12, 64, 768),
            rj.GroupLasso(0.1),
            "64 groups, one per index along axis 1; an array of these axes",
        ),
        (
            (768, 12, 64),
            rj.NuclearNorm(0.1),
            r"a matrix of \(768 12\) x \(64\); an array of these axes may be attention",
        ),
        ((24, 512, 2048), rj.GroupMCP(0.1, 3.0), "512 groups, one per index along axis 1"),
        (
            (3, 3, 1, 32),
            rj.GroupLasso(0.1),
            "1 groups, one per index along axis 2; a group of everything",
        ),
        (
            (2, 512),
            rj.SparseGroupLasso(0.1, 0.1),
            "2 groups, one per index along axis 0; so few and large groups",
        ),
    ],
)
def test_axes_that_are_guessed_and_may_be_others_are_warned_of(shape, reg, reading):
    params = {"kernel": jnp.zeros(shape)}
    tx = rj.rmda(0.1, reg)
    with pytest.warns(UserWarning, match=rf"'kernel' of shape .* is taken for {reading}") as caught:
        state = tx.init(params)
    assert len(caught) == 1
    assert "rj.network" in str(caught[0].message)
    tx.update(params, state, params)  # said once
    assert "guessed: 'kernel'" in rj.describe(params, reg)


@pytest.mark.parametrize(
    ("shape", "reg"),
    [
        ((3, 3, 64, 128), rj.GroupLasso(0.1)),
        ((7, 7, 3, 64), rj.GroupLasso(0.1)),
        ((16, 16, 3, 768), rj.NuclearNorm(0.1)),
        ((5, 64, 128), rj.GroupLasso(0.1)),
        ((784, 10), rj.GroupLasso(0.1)),
        ((12, 64, 768), rj.GroupLasso(0.1, group_axis=(0, 1))),
        ((768, 12, 64), rj.NuclearNorm(0.1, row_axes=0)),
        ((12, 64, 768), rj.L1(0.1)),
    ],
)
def test_axes_that_are_named_or_surely_right_are_not(shape, reg):
    params = {"kernel": jnp.zeros(shape)}
    rj.rmda(0.1, reg).init(params)
    assert "guessed" not in rj.describe(params, reg)
