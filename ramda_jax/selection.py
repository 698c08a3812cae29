"""Which strength kills how many groups: exact selection among scores, by bisection on the bits of a float.

The bits of a float >= 0, read as an integer, are in the order of the floats. So the k-th smallest of any number of scores,
wherever they lie, is found bit by bit: 31 rounds (63 in float64), in each of which every device counts its own scores up to
a threshold, and the counts are added. Nothing is sorted, gathered or moved but counts.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ramda_jax._numerics import as_bits, as_floats, bitwise
from ramda_jax.subproblem import Names


class Scores(NamedTuple):
    """The scores of one block, as the bits of floats.

    Attributes:
      bits: int32 or int64, a NaN above infinity; this device's.
      names: the mesh axes over which they lie; inside `shard_map`.
    """

    bits: jax.Array
    names: Names = ()


class Question(NamedTuple):
    """How much is to die, of which blocks.

    Attributes:
      blocks: their places.
      amount: counts of dead groups, one per block -> the amount, 0-d; nondecreasing in each.
      target: the amount that is wanted, 0-d, of the same dtype.
      most: groups of each block that may die; None: it is up to `amount`.
    """

    blocks: tuple[int, ...]
    amount: Callable[[Sequence[jax.Array]], jax.Array]
    target: jax.Array
    most: tuple[int, ...] | None = None


class Answer(NamedTuple):
    """An interval of strengths [low, high), in bits: exactly those with scores <= low die within it. 0-d."""

    low: jax.Array
    high: jax.Array


def counted(scores: Sequence[Scores], masks: Sequence[jax.Array]) -> list[jax.Array]:
    """How many are true of each block, on all devices; int32, 0-d."""
    return _over_devices([jnp.sum(mask, dtype=jnp.int32) for mask in masks], scores, jax.lax.psum)


def _over_devices(
    numbers: Sequence[jax.Array], scores: Sequence[Scores], reduce: Callable[..., Any]
) -> list[jax.Array]:
    """Every device's number of each block, reduced over those that have a part of its groups: one collective per cut."""
    out = list(numbers)
    for names in dict.fromkeys(s.names for s in scores):
        if names:
            mine = [i for i, s in enumerate(scores) if s.names == names]
            total = reduce(jnp.stack([out[i] for i in mine]), names)
            for k, i in enumerate(mine):
                out[i] = total[k]
    return out


def select(scores: Sequence[Scores], questions: Sequence[Question]) -> list[Answer]:
    """Of every question the strengths at which the amount is nearest to what is wanted.

    Args:
      scores: of every block, their bits of one dtype.
      questions: no block is in two of them.
    """
    if not questions:
        return []
    kind = scores[0].bits.dtype
    infinity = as_bits(jnp.asarray(jnp.inf, as_floats(jnp.zeros([], kind)).dtype))
    of = {i: q for q, question in enumerate(questions) for i in question.blocks}
    mine = [scores[i] for i in of]

    def up_to(thresholds: Sequence[jax.Array]) -> list[list[jax.Array]]:
        """Of every question the counts of scores up to its threshold."""
        counts = counted(mine, [scores[i].bits <= thresholds[q] for i, q in of.items()])
        by_block = dict(zip(of, counts, strict=True))
        return [[by_block[i] for i in question.blocks] for question in questions]

    def amounts(counts: Sequence[Sequence[jax.Array]]) -> list[jax.Array]:
        return [q.amount(own) for q, own in zip(questions, counts, strict=True)]

    def too_few(tried: list[jax.Array]) -> list[jax.Array]:
        """Below which numbers too little dies: the largest is the score at which the amount is reached."""
        dead = amounts(up_to([p - 1 for p in tried]))
        return [~(a >= q.target) for q, a in zip(questions, dead, strict=True)]

    # A zero of the type that counts have, on however many devices.
    everything = up_to([infinity] * len(questions))
    start = [0 * sum(own[1:], own[0]).astype(kind) for own in everything]
    at = bitwise(jnp.iinfo(kind).bits - 1, start, too_few)

    with_it, without = up_to(at), up_to([p - 1 for p in at])
    below, above = _neighbours(mine, list(of.values()), at, infinity)
    answers = []
    for k, (question, p) in enumerate(zip(questions, at, strict=True)):
        more, less = amounts(with_it)[k], amounts(without)[k]
        taken = (p < infinity) & (abs(more - question.target) <= abs(question.target - less))
        if question.most is not None:
            for count, most in zip(with_it[k], question.most, strict=True):
                taken = taken & (count <= most)
        taken = taken | (p == 0)  # what is zero anyway
        answers.append(Answer(jnp.where(taken, p, below[k]), jnp.where(taken, above[k], p)))
    return [a._replace(high=jnp.minimum(a.high, infinity)) for a in answers]


def _neighbours(
    scores: Sequence[Scores], of: Sequence[int], at: Sequence[jax.Array], infinity: jax.Array
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Of every question the largest finite score below its number (0: none), and the least above it."""
    lows, highs = [], []
    for s, q in zip(scores, of, strict=True):
        low = jnp.where((s.bits < at[q]) & (s.bits < infinity), s.bits, 0)
        lows.append(jnp.max(low, initial=0))
        highs.append(
            jnp.min(
                jnp.where(s.bits > at[q], s.bits, infinity), initial=jnp.iinfo(s.bits.dtype).max
            )
        )
    lows = _over_devices(lows, scores, jax.lax.pmax)
    highs = _over_devices(highs, scores, jax.lax.pmin)
    pick = lambda values, q: [x for x, own in zip(values, of, strict=True) if own == q]
    largest = [jnp.max(jnp.stack(pick(lows, q))) for q in range(len(at))]
    least = [jnp.min(jnp.stack(pick(highs, q))) for q in range(len(at))]
    return largest, least
