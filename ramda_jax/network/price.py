"""What a network costs as a function of how many of its channels are dead: for targets, and so for traced numbers."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ramda_jax import _numerics
from ramda_jax.network import cost
from ramda_jax.network.flow import Use
from ramda_jax.network.roles import Roles
from ramda_jax.network.spaces import Space
from ramda_jax.network.trace import Leaf


@dataclasses.dataclass(frozen=True)
class Price:
    """The FLOPs of a network, relative to all of them, as a polynomial in the living shares of channel spaces.

    A product takes (living inputs) times (living outputs) of what it took, so every term has at most two factors.

    Attributes:
      names, numbers: of the spaces, and of their channels.
      terms: (coefficient, places of the factors).
    """

    names: tuple[str, ...]
    numbers: tuple[int, ...]
    terms: tuple[tuple[float, tuple[int, ...]], ...]

    def removed(self, dead: Mapping[int, Any]) -> jax.Array:
        """The share of all FLOPs that goes with dead channels, by the place of their space; 0-d."""
        living = {i: 1 - _numerics.as_scalar(count) / self.numbers[i] for i, count in dead.items()}
        total = _numerics.as_scalar(0.0)
        for coefficient, factors in self.terms:
            product = _numerics.as_scalar(1.0)
            for i in factors:
                product = product * living.get(i, 1.0)
            # Not 1 - sum: what is not reached by any of these does not round.
            total = total + coefficient * (1 - product)
        return total


def price(
    leaves: Sequence[Leaf],
    every: Sequence[Roles],
    uses: Sequence[Use],
    other: int,
    found: Sequence[Space],
) -> Price:
    """The price of a network; arguments as those of `cost.cost`, `found`: the spaces whose channels may go.

    The polynomial of each parameter is read off `cost` itself, at as many random choices of dead channels as it takes.
    """
    rng = np.random.default_rng(0)
    path = {leaf.path: k for k, leaf in enumerate(leaves)}
    touched: list[list[int]] = [[] for _ in leaves]
    for i, space in enumerate(found):
        for k in {path[s.path] for s in (*space.readers, *space.writers)}:
            touched[k].append(i)
    monomials = [_monomials(own) for own in touched]
    trials = max((len(m) for m in monomials), default=1) + 2
    living = np.ones((trials, len(found)))
    shares = np.ones((trials, len(leaves)))
    for t in range(trials):
        values = [np.ones(leaf.shape, bool) for leaf in leaves]
        for i, space in enumerate(found):
            dead = int(rng.integers(0, max(space.number, 1)))
            living[t, i] = 1 - dead / space.number
            alive = np.arange(space.number) >= dead
            for slices in space.readers:
                cost.leave_only(slices, values[path[slices.path]], alive)
        needed = cost.needed(leaves, found, values)
        for k, role in enumerate(every):
            if touched[k]:
                shares[t, k] = cost.share(values[k], role, needed[k])
    flops = [sum(uses[u].operations for u in role.products) for role in every]
    total = max(sum(flops) + other, 1)
    terms: dict[tuple[int, ...], float] = {}
    for k, own in enumerate(monomials):
        columns = [np.prod(living[:, list(m)], axis=1) for m in own]
        solved, *_ = np.linalg.lstsq(np.stack(columns, 1), shares[:, k], rcond=1e-9)
        for factors, coefficient in zip(own, solved, strict=True):
            terms[factors] = terms.get(factors, 0.0) + float(coefficient) * flops[k] / total
    kept = tuple((c, m) for m, c in terms.items() if m and abs(c) > 1e-12)
    return Price(
        tuple(f"channels of {s.name}" for s in found), tuple(s.number for s in found), kept
    )


def _monomials(places: Sequence[int]) -> list[tuple[int, ...]]:
    """1, and the products of one or two of the shares."""
    pairs = itertools.combinations_with_replacement(places, 2)
    return [(), *((i,) for i in places), *pairs]
