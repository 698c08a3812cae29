"""Strengths: how strong every regularizer is at a step. Resolved once per step, before the solves."""

import dataclasses
from collections.abc import Callable, Sequence

import chex
import jax
import jax.numpy as jnp

from ramda_jax import _numerics
from ramda_jax.regularizers import Regularizer, ScoredStrength
from ramda_jax.regularizers.base import Strength
from ramda_jax.step import Inputs, Job, accumulate, subproblems
from ramda_jax.subproblem import Block


def is_scored(strength: Strength) -> bool:
    """Whether a strength asks for scores."""
    return isinstance(strength, ScoredStrength)


def of(psi: Regularizer) -> list[Strength]:
    """The strengths of a regularizer as the user gave them: numbers, 0-d arrays, schedules, or what asks for scores."""
    return jax.tree.leaves(psi)


def template(psi: Regularizer) -> Regularizer:
    """The regularizer with every strength replaced by 1: what does not change from step to step."""
    return jax.tree.map(lambda _: 1.0, psi)


def template_of(block: Block) -> Block:
    """The block with the `template` of its regularizer."""
    return dataclasses.replace(block, psi=template(block.psi))


def at_step(strengths: Sequence[Strength], count: chex.Array) -> list[chex.Array]:
    """Every strength at the 0-based step `count`, 0-d; 0 for those that wait for scores."""
    none = _numerics.as_scalar(0.0)
    return [none if is_scored(s) else _numerics.evaluate(s, count) for s in strengths]


def put(templates: Sequence[Regularizer], values: Sequence[chex.Array]) -> tuple[Regularizer, ...]:
    """The regularizers with these strengths, in the order of `of`."""
    treedef = jax.tree.structure(tuple(templates))
    return jax.tree.unflatten(treedef, list(values))


def resolve(
    strengths: Sequence[Sequence[Strength]],
    job: Job,
    inputs: Inputs,
    count: chex.Array,
    previous: Callable[[], Sequence[Regularizer]],
) -> Inputs:
    """The inputs of a step with the strengths that ask for scores, chosen.

    Args:
      strengths: of every block, as the user gave them.
      job, inputs: of the step; the other strengths are in `inputs.psis` already.
      count: the 0-based step.
      previous: gives the regularizers with the strengths of the step before; called if a strength asks.
    """
    asking = [i for i, own in enumerate(strengths) if any(map(is_scored, own))]
    if not asking:
        return inputs
    problems = subproblems(job, inputs, accumulate(job, inputs))
    psis, old = list(inputs.psis), previous()
    for i in asking:
        whole = problems[i].whole()
        scores = whole.psi.scores(whole.smooth.at_zero(), whole.smooth.d, whole.weight)
        values = [
            s.choose(scores, count, before).astype(now.dtype) if is_scored(s) else now
            for s, now, before in zip(
                strengths[i], *map(jax.tree.leaves, (psis[i], old[i])), strict=True
            )
        ]
        psis[i] = jax.tree.unflatten(jax.tree.structure(psis[i]), values)
    return inputs._replace(psis=tuple(psis))


def stacked(values: Sequence[chex.Array]) -> chex.Array | None:
    """0-d arrays in one, as a state keeps them; None if there are none."""
    return jnp.stack(list(values)) if values else None
