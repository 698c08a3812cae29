"""Which inputs of a program are multiplied with something: the weights. Others are added, or scale.

Zeros of a weight mean that something is not read; zeros of a bias may only mean that nothing has moved it yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ramda_jax.network.flat import Atom, Constant, Equation, Flat, carry_bounds, programs
from ramda_jax.network.masks import MOVES, is_elementwise

_PRODUCTS = ("dot_general", "conv_general_dilated", "ragged_dot", "ragged_dot_general")
# What is taken of an array does not depend on where it is taken.
_INDEXED = ("gather", "dynamic_slice")


class _Origin(NamedTuple):
    """Where a value comes from.

    Attributes:
      inputs: which inputs it is made of, by rearrangements and elementwise functions.
      live: whether something else is in it.
    """

    inputs: frozenset[int] = frozenset()
    live: bool = False

    def __or__(self, other: Any) -> _Origin:
        return _Origin(self.inputs | other.inputs, self.live or other.live)


def multiplied(flat: Flat, parameters: int) -> frozenset[int]:
    """The places of those of the first inputs, the parameters, which a product reads."""
    found: set[int] = set()
    given = [_Origin(frozenset([k])) for k in range(parameters)]
    rest = [_Origin(live=True)] * (len(flat.inputs) - parameters)
    _run(flat, [*given, *rest], found)
    return frozenset(found)


def _run(flat: Flat, given: Sequence[_Origin], found: set[int]) -> list[_Origin]:
    known = dict(zip(flat.inputs, given, strict=True))
    read = lambda atom: _Origin() if isinstance(atom, Constant) else known[atom]
    for equation in flat.equations:
        made = _made(equation, list(map(read, equation.operands)), found)
        known.update(zip(equation.results, made, strict=True))
    outputs: Sequence[Atom] = flat.outputs
    return list(map(read, outputs))


def _made(equation: Equation, operands: list[_Origin], found: set[int]) -> list[_Origin]:
    name, count = equation.name, len(equation.results)
    if name == "cond":
        results = [_run(flat, operands[1:], found) for flat in programs(equation.equation)]
        return [_union(column) for column in zip(*results, strict=True)]
    if name == "scan":
        (body,) = programs(equation.equation)
        first, last = carry_bounds(equation.equation)
        return _loop(body, operands[:first], operands[first:last], operands[last:], found)
    if name == "while":
        p, (condition, body) = equation.equation.params, programs(equation.equation)
        first, last = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]
        made = _loop(body, operands[first:last], operands[last:], [], found)
        _run(condition, [*operands[:first], *made], found)
        return made
    if name in _INDEXED:
        return [operands[0]] * count
    both = _union(operands)
    if name in _PRODUCTS:
        found.update(*(o.inputs for o in operands if not o.live))
    elif (name in MOVES or is_elementwise(name)) and not both.live:
        return [both] * count
    return [_Origin(live=both.live)] * count


def _loop(
    body: Flat,
    constants: list[_Origin],
    carry: list[_Origin],
    slices: list[_Origin],
    found: set[int],
) -> list[_Origin]:
    while True:
        made = _run(body, [*constants, *carry, *slices], found)
        after = [a | b for a, b in zip(carry, made, strict=False)]
        if after == carry:
            return [*carry, *made[len(carry) :]]
        carry = after


def _union(origins: Sequence[_Origin]) -> _Origin:
    both = _Origin()
    for origin in origins:
        both = both | origin
    return both
