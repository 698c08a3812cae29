"""Strengths: how strong every regularizer is at a step. Resolved once per step, before the solves.

What a target asks for, which depends on the step's subproblem, is in `targets`.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from ramda_jax import _numerics, assignment, trees
from ramda_jax.assignment import Regularization
from ramda_jax.regularizers import Regularizer, ScoredStrength
from ramda_jax.regularizers.base import Strength
from ramda_jax.subproblem import Block
from ramda_jax.trees import ArrayTree


def is_scored(strength: Strength) -> bool:
    """Whether a strength is chosen from scores."""
    return isinstance(strength, ScoredStrength)


def of(psi: Regularizer) -> list[Strength]:
    """The strengths of a regularizer as the user gave them: numbers, 0-d arrays, schedules, or targets."""
    return jax.tree.leaves(psi)


def template(psi: Regularizer) -> Regularizer:
    """The regularizer with every strength replaced by 1: what does not change from step to step."""
    return jax.tree.map(lambda _: 1.0, psi)


def template_of(block: Block) -> Block:
    """The block with the `template` of its regularizer."""
    return dataclasses.replace(block, psi=template(block.psi))


def at_step(strengths: Sequence[Strength], count: jax.Array) -> list[jax.Array]:
    """Every strength at the 0-based step `count`, 0-d; 0 for those that wait for scores."""
    none = _numerics.as_scalar(0.0)
    return [
        none if isinstance(s, ScoredStrength) else _numerics.evaluate(s, count) for s in strengths
    ]


def put(templates: Sequence[Regularizer], values: Sequence[jax.Array]) -> tuple[Regularizer, ...]:
    """The regularizers with these strengths, in the order of `of`."""
    treedef = jax.tree.structure(tuple(templates))
    return jax.tree.unflatten(treedef, list(values))


def stacked(values: Sequence[jax.Array]) -> jax.Array | None:
    """0-d arrays in one, as a state keeps them; None if there are none."""
    return jnp.stack(list(values)) if values else None


def lambda_max(grads: ArrayTree, regularizer: Regularization) -> dict[str, jax.Array]:
    """The least strength at which everything is zero, of each block: to scale a search by.

      lambda_max = max over the groups g of ||G_g|| / sqrt|g|,     of an entrywise norm max |G_i|

    At a gradient G of the loss at zero parameters, zero is stationary for loss + psi iff the strength is at least this
    (for a convex loss: it is the solution), and iff it is, the first step of `ramda`, `rmda` and `prox_sgd` from zero stays
    there. From other parameters, it is the scale on which strengths matter.

    Args:
      grads: a gradient, a tree like the parameters.
      regularizer: as in `ramda`. Its strength (the group strength of a sparse group lasso, the l1 of an elastic net) is not
        used and may be anything; all others are.

    Returns:
      A dict: by the name of a block (its path, where it is one array) a 0-d array. The largest of them makes all blocks
      zero.

    Raises:
      ValueError: as `ramda`, and for regularizers that no strength alone makes zero.

    Example:
      >>> import jax.numpy as jnp, ramda_jax as rj
      >>> grads = {"kernel": jnp.array([[3.0, 4.0], [0.0, 1.0]])}
      >>> print(round(float(rj.lambda_max(grads, rj.GroupLasso(1.0))["kernel"]), 4))  # 5 / sqrt(2)
      3.5355

    Source: Friedman, Hastie & Tibshirani, Regularization paths for generalized linear models via coordinate descent,
    Journal of Statistical Software 2010.
    """
    grads = trees.arrays(grads, "the gradient")
    leaves = jax.tree.leaves(grads)
    found = {}
    for block in assignment.resolve(regularizer, grads).blocks:
        if block.psi.scored is None:
            raise ValueError(
                f"{type(block.psi).__name__} ({block.name!r}) has no lambda_max: no single strength says when it makes "
                "everything zero."
            )
        b = block.join([member.take(leaves[member.leaf]) for member in block.members])
        b = b.astype(_numerics.at_least_float32(b.dtype))
        zero = jnp.zeros([], jnp.int32)
        psi = jax.tree.unflatten(jax.tree.structure(block.psi), at_step(of(block.psi), zero))
        psi = jax.tree.map(lambda s, b=b: s.astype(b.dtype), psi)
        one = jnp.ones([], b.dtype)
        found[block.name] = jnp.max(psi.scores(b, one, one), initial=0.0)
    return found
