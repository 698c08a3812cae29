"""The strength at which every group dies in a step's subproblem, without solving it.

Group g is zero iff ||b||_g <= w lambda sqrt|g| with b = D x0 - v, so it dies at lambda = ||b||_g / (w sqrt|g|).
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ramda_jax.regularizers import GroupNorm
from ramda_jax.solvers import base, secular
from ramda_jax.solvers.newton import group_problem
from ramda_jax.solvers.secular import Apart, Arrays, GroupProblem, Roots
from ramda_jax.subproblem import Subproblem


def scores(problems: Sequence[Subproblem], arrange: base.Arrangement) -> list[jax.Array]:
    """Of every problem a number per group, in the layout of `Newton.init`; of entrywise regularizers one per entry.

    Exactly the groups whose score is at most the strength die (`Regularizer.scores`, for blocks however they lie).
    """
    found: dict[int, jax.Array] = {}
    grouped = []
    for i, problem in enumerate(problems):
        if isinstance(problem.psi, GroupNorm):
            grouped.append(i)
        else:
            whole = problem.whole()
            found[i] = whole.psi.scores(whole.smooth.at_zero(), whole.smooth.d, whole.weight)
    if grouped:
        stated = [_of_unit_strength(problems[i]) for i in grouped]
        lengths = arrange(_lengths, stated, [None] * len(grouped), None, 0)
        for i, roots in zip(grouped, lengths, strict=True):
            psi: Any = problems[i].psi
            found[i] = roots.r / psi.weight(problems[i].block.group_size)
    return [found[i] for i in range(len(problems))]


def _of_unit_strength(problem: Subproblem) -> GroupProblem:
    """The scalar equations with w for a level: b is thresholded where psi has entrywise terms."""
    return group_problem(problem)._replace(level=problem.weight, kappa=None, cap=None)


def _lengths(
    problems: Sequence[GroupProblem],
    warm: Sequence[Any],
    tolerance: float | None,
    max_iterations: int,
    pack: type[Apart] = Apart,
) -> list[Roots]:
    """||b / level|| of every group, by what looks like an algorithm of `secular` to whoever arranges groups.

    At level 0 no strength kills a group that is not zero anyway.
    """
    del tolerance, max_iterations
    groups = pack(problems)
    (squares,) = groups.sums(_squares, warm)
    levels = groups.numbers([p.level for p in problems])
    pairs = zip(squares, levels, strict=True)
    rs = [jnp.where((s > 0) & (level <= 0), jnp.inf, jnp.sqrt(s)) for s, level in pairs]
    none = jnp.zeros([], jnp.int32)
    return [Roots(r, jnp.zeros_like(r), none) for r in groups.split(rs)]


def _squares(problem: GroupProblem, b: jax.Array, d: jax.Array, r: Any) -> Arrays:
    return secular.free_terms(problem, b, d, r)[:1]
