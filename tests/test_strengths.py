"""Strengths are resolved once per step: numbers, schedules, and those that are chosen from scores."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ramda_jax as rj
from ramda_jax.regularizers import ScoredStrength
from tests.methods import EITHER_METRIC, METHODS, method_id

SHAPES = {"mlp": {"up": {"kernel": (5, 12)}, "down": {"kernel": (12, 7), "bias": (7,)}}}
NEURON = {"neuron": [("{m}/up/kernel", -1), ("{m}/down/kernel", -2)]}


@dataclasses.dataclass(frozen=True)
class Fraction(ScoredStrength):
    """The strength at which exactly this many groups die: midway between two scores."""

    dead: int

    def choose(self, scores, count, previous):
        scores = jnp.sort(scores.ravel())
        return 0.5 * (scores[self.dead - 1] + scores[self.dead])


@dataclasses.dataclass(frozen=True)
class Remembers(ScoredStrength):
    """One more than at the step before, and the number of the step."""

    def choose(self, scores, count, previous):
        return previous + 1.0


def normal(seed):
    rng = np.random.default_rng(seed)
    draw = lambda shape: jnp.asarray(0.3 * rng.standard_normal(shape), jnp.float32)
    return jax.tree.map(draw, SHAPES, is_leaf=lambda s: isinstance(s, tuple))


CASES = {
    "group lasso": (rj.GroupLasso, 3),
    "sparse group lasso": (lambda s: rj.SparseGroupLasso(1e-3, s), 3),
    "coupled": (lambda s: rj.coupled(NEURON, rj.GroupLasso(s)), 4),
    "L1": (rj.L1, 20),
    "L0": (rj.L0, 20),
}


# Group lasso with all methods; the others with one of each kind of metric.
PAIRS = [
    (case, method)
    for case in CASES
    for method in (METHODS if case == "group lasso" else EITHER_METRIC)
]


@pytest.mark.parametrize(
    ("case", "method"), PAIRS, ids=lambda v: v if isinstance(v, str) else method_id(v)
)
def test_a_strength_from_scores_kills_exactly_the_groups_it_means_to(case, method):
    make, dead = CASES[case]
    tx = method(make(Fraction(dead)), learning_rate=0.1)
    params = normal(0)
    state = tx.init(params)
    update = jax.jit(tx.update)
    for seed in range(3):
        updates, state = update(normal(1 + seed), state, params)
        params = optax.apply_updates(params, updates)
        structured = rj.structured_params(state, params)
        found = rj.summary(structured, make(1.0))
        zeros = [value for name, value in found.items() if name.endswith("/zero_groups")]
        assert zeros == [dead] * len(zeros)
    assert np.all(np.asarray(state.solver.strengths)[-1] > 0)


def test_a_strength_from_scores_is_told_the_one_of_the_step_before():
    tx = rj.ramda(0.1, rj.GroupLasso(Remembers()))
    params = normal(0)
    state = tx.init(params)
    update = jax.jit(tx.update)
    for step in range(3):
        _, state = update(normal(1), state, params)
        np.testing.assert_allclose(state.solver.strengths, step + 1.0)


@pytest.mark.parametrize("psi", [rj.GroupMCP(Fraction(3), 3.0), rj.Binarize(Fraction(3))], ids=repr)
def test_a_regularizer_without_scores_refuses_such_a_strength(psi):
    params = normal(0)
    tx = rj.ramda(0.1, psi)
    with pytest.raises(ValueError, match="has no scores"):
        tx.update(params, tx.init(params), params)


def test_a_strength_that_is_neither_is_still_refused():
    with pytest.raises(ValueError, match=r"GroupLasso\.strength must be a number"):
        rj.GroupLasso("strong")
