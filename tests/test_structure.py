"""Measures of structure against counting by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ramda_jax as rj


def params():
    conv = np.ones((3, 3, 4, 5), np.float32)
    conv[:, :, 1] = 0
    conv[:, :, 2, :3] = 0  # not all of the group
    dense = np.ones((10, 2), np.float32)
    dense[:7] = 0
    return {
        "conv": {"kernel": jnp.asarray(conv), "bias": jnp.zeros(5)},
        "dense": {"kernel": jnp.asarray(dense), "bias": jnp.zeros(2)},
    }


def test_group_sparsity_counts_groups_and_the_weighted_one_their_parameters():
    psi = rj.GroupLasso(0.1)
    np.testing.assert_allclose(rj.group_sparsity(params(), psi), (1 + 7) / (4 + 10))
    expected = (45 + 14) / (180 + 20)  # biases are not grouped, so they do not count
    np.testing.assert_allclose(rj.weighted_group_sparsity(params(), psi), expected)
    np.testing.assert_allclose(
        rj.weighted_group_sparsity(params(), rj.L1(0.1)), (45 + 27 + 14) / 200
    )


def test_low_rank_level_counts_singular_values():
    rng = np.random.default_rng(0)
    low = jnp.asarray(rng.standard_normal((20, 3)) @ rng.standard_normal((3, 12)), jnp.float32)
    tree = {"a": {"kernel": low}, "b": {"kernel": jnp.eye(8)}, "c": {"kernel": jnp.zeros((4, 4))}}
    np.testing.assert_allclose(
        rj.low_rank_level(tree, rj.NuclearNorm(0.1)), 1 - (3 + 8 + 0) / (12 + 8 + 4)
    )


def test_objective_is_loss_plus_regularization_and_differentiable():
    psi = rj.GroupLasso(0.1)
    tree = params()
    by_hand = 0.1 * sum(
        np.sqrt(x[..., 0, :].size) * np.sum(np.sqrt(np.sum(np.square(x), axis=axes)))
        for x, axes in ((tree["conv"]["kernel"], (0, 1, 3)), (tree["dense"]["kernel"], 1))
    )
    np.testing.assert_allclose(rj.objective(2.0, tree, psi), 2.0 + by_hand, rtol=1e-6)
    np.testing.assert_allclose(rj.objective(2.0, tree, None), 2.0)
    grads = jax.grad(lambda p: rj.objective(0.0, p, psi))(tree)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_a_scheduled_strength_is_evaluated_at_the_given_step():
    psi = rj.L1(lambda step: 0.1 * (step + 1))
    tree = {"kernel": jnp.ones((2, 2))}
    np.testing.assert_allclose(rj.objective(0.0, tree, psi), 0.4, rtol=1e-6)
    np.testing.assert_allclose(rj.objective(0.0, tree, psi, count=4), 2.0, rtol=1e-6)


def test_summary_is_a_flat_dict_of_numbers():
    tree = params()
    rules = rj.by_path(
        [("conv/kernel", rj.GroupLasso(0.1)), ("dense/kernel", rj.NuclearNorm(0.1)), (".*", None)]
    )
    found = rj.summary(tree, rules)
    assert all(isinstance(v, int | float) for v in found.values())
    assert found["conv/kernel/groups"] == 4
    assert found["conv/kernel/zero_groups"] == 1
    assert found["dense/kernel/rank"] == 1
    assert found["dense/kernel/full_rank"] == 2
    np.testing.assert_allclose(found["weighted_group_sparsity"], 45 / 180)
    np.testing.assert_allclose(found["low_rank_level"], 0.5)
    assert found["parameters"] == 207
    traced = jax.jit(lambda p: rj.summary(p, rules))(tree)
    assert {k: float(v) for k, v in traced.items()} == pytest.approx(found)


def test_binarized_share():
    tree = {"kernel": jnp.asarray([[1.0, -1.0, 2.0], [0.5, 1.0, -1.5]])}
    assert rj.summary(tree, rj.Binarize(0.1))["kernel/binarized"] == 0.5
    assert rj.group_sparsity(tree, rj.Binarize(0.1)) == 0
