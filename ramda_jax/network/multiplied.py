"""Which inputs of a program are multiplied with something, or looked up: the weights. Others are added, or scale.

Zeros of a weight mean that something is not read; zeros of a bias may only mean that nothing has moved it yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ramda_jax.network.flat import (
    Atom,
    Constant,
    Equation,
    Flat,
    carry_bounds,
    programs,
    while_bounds,
)
from ramda_jax.network.masks import MOVES, is_elementwise

PRODUCTS = ("dot_general", "conv_general_dilated", "ragged_dot", "ragged_dot_general")


class Origin(NamedTuple):
    """Where a value comes from.

    Attributes:
      inputs: which inputs it is made of, by rearrangements and elementwise functions.
      live: whether something else is in it.
    """

    inputs: frozenset[int] = frozenset()
    live: bool = False

    def __or__(self, other: Any) -> Origin:
        return Origin(self.inputs | other.inputs, self.live or other.live)


def multiplied(flat: Flat, parameters: int) -> frozenset[int]:
    """The places of those of the first inputs, the parameters, which a product reads."""
    found: set[int] = set()
    origins(flat, beginning(flat, parameters), found)
    return frozenset(found)


def beginning(flat: Flat, parameters: int) -> list[Origin]:
    """Of every input of a program."""
    given = [Origin(frozenset([k])) for k in range(parameters)]
    return [*given, *[Origin(live=True)] * (len(flat.inputs) - parameters)]


def origins(flat: Flat, given: Sequence[Origin], found: set[int]) -> dict[int, Origin]:
    """Where every value comes from; `given`: the inputs; to `found` is added what a product reads."""
    known = dict(zip(flat.inputs, given, strict=True))
    for equation in flat.equations:
        operands = [_read(known, atom) for atom in equation.operands]
        known.update(zip(equation.results, _made(equation, operands, found), strict=True))
    return known


def _read(known: dict[int, Origin], atom: Atom) -> Origin:
    return Origin() if isinstance(atom, Constant) else known[atom]


def _run(flat: Flat, given: Sequence[Origin], found: set[int]) -> list[Origin]:
    known = origins(flat, given, found)
    return [_read(known, atom) for atom in flat.outputs]


def _made(equation: Equation, operands: list[Origin], found: set[int]) -> list[Origin]:
    name, count = equation.name, len(equation.results)
    if name == "cond":
        results = [_run(flat, operands[1:], found) for flat in programs(equation.equation)]
        return [_union(column) for column in zip(*results, strict=True)]
    if name == "scan":
        (body,) = programs(equation.equation)
        first, last = carry_bounds(equation.equation)
        return _loop(body, operands[:first], operands[first:last], operands[last:], found)
    if name == "while":
        condition, body = programs(equation.equation)
        first, last = while_bounds(equation.equation)
        made = _loop(body, operands[first:last], operands[last:], [], found)
        _run(condition, [*operands[:first], *made], found)
        return made
    if (
        name == "dynamic_slice"
    ):  # of a stack of weights; what it is made of does not depend on the place
        return [operands[0]]
    both = _union(operands)
    if (
        name == "gather" and both.live and not operands[0].live
    ):  # an embedding: a product with indicators
        found.update(operands[0].inputs)
    if name in PRODUCTS:
        found.update(*(o.inputs for o in operands if not o.live))
    elif (name in MOVES or is_elementwise(name)) and not both.live:
        return [both] * count
    return [Origin(live=both.live)] * count


def _loop(
    body: Flat,
    constants: list[Origin],
    carry: list[Origin],
    slices: list[Origin],
    found: set[int],
) -> list[Origin]:
    while True:
        made = _run(body, [*constants, *carry, *slices], found)
        after = [a | b for a, b in zip(carry, made, strict=False)]
        if after == carry:
            return [*carry, *made[len(carry) :]]
        carry = after


def _union(origins: Sequence[Origin]) -> Origin:
    both = Origin()
    for origin in origins:
        both = both | origin
    return both
