"""Why something stays: who reads what a parameter makes. For the report of a compaction, back over its plan."""

from __future__ import annotations

from collections.abc import Sequence

from ramda_jax.network.flat import (
    REDUCTIONS,
    Constant,
    Equation,
    Flat,
    carry_bounds,
    programs,
    while_bounds,
)
from ramda_jax.network.masks import has_rule
from ramda_jax.network.multiplied import PRODUCTS, Origin, beginning, origins
from ramda_jax.network.needs import InnerPlan, Plan
from ramda_jax.network.pieces import is_empty

Names = frozenset[str]
_NONE: Names = frozenset()


def readers(flat: Flat, plan: Plan, paths: Sequence[str]) -> list[Names]:
    """Of every parameter, what needs what it makes: paths of weights that read it, `the result`, or an operation.

    Args:
      flat: a program; `plan`: what is made of it.
      paths: of its first inputs, the parameters.
    """
    walk = _Walk(paths)
    wanted = [frozenset(["the result"])] * len(flat.outputs)
    return walk.run(flat, plan, beginning(flat, len(paths)), wanted)[: len(paths)]


class _Walk:
    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = paths

    def run(
        self, flat: Flat, plan: Plan, given: Sequence[Origin], wanted: Sequence[Names]
    ) -> list[Names]:
        """Of every input, who needs it; `given`: where the inputs come from, `wanted`: who needs the results."""
        known = origins(flat, given, set())
        why = dict.fromkeys(range(len(flat.shapes)), _NONE)
        for atom, names in zip(flat.outputs, wanted, strict=True):
            if not isinstance(atom, Constant):
                why[atom] |= names
        for place in reversed(range(len(flat.equations))):
            equation = flat.equations[place]
            needed = [_NONE if is_empty(plan.keeps[n]) else why[n] for n in equation.results]
            if not any(needed):
                continue
            operands = [
                Origin() if isinstance(a, Constant) else known[a] for a in equation.operands
            ]
            inner = plan.inner.get(place)
            if inner is None:
                asked = self.asked(flat, plan, equation, operands, frozenset().union(*needed))
            else:
                asked = self.loop(equation, inner, operands, needed)
            for atom, names in zip(equation.operands, asked, strict=True):
                if not isinstance(atom, Constant):
                    why[atom] |= names
        return [why[n] for n in flat.inputs]

    def asked(
        self, flat: Flat, plan: Plan, equation: Equation, operands: list[Origin], needed: Names
    ) -> list[Names]:
        name, atoms = equation.name, equation.operands
        if name in PRODUCTS:
            return [
                needed if not own.live else self.partner(operands[1 - k]) if k < 2 else needed
                for k, own in enumerate(operands)
            ]
        shapes = [() if isinstance(a, Constant) else flat.shapes[a] for a in atoms]
        if not has_rule(equation, shapes):
            return [frozenset([f"{name}, for which there is no rule"])] * len(atoms)
        over = equation.equation.params["axes"] if name in REDUCTIONS else ()
        if any(isinstance(atoms[0], int) and plan.cuts[atoms[0]][d] for d in over):
            return [frozenset([f"{name} over it"])]
        return [needed] * len(atoms)

    def partner(self, other: Origin) -> Names:
        """Who reads a value in a product with this."""
        if other.live or not other.inputs:
            return frozenset(["a product with no parameter"])
        return frozenset(self.paths[k] for k in other.inputs)

    def loop(
        self, equation: Equation, inner: InnerPlan, operands: list[Origin], needed: list[Names]
    ) -> list[Names]:
        flats = programs(equation.equation)
        if equation.name == "cond":
            each = [
                self.run(flat, plan, operands[1:], needed)
                for flat, plan in zip(flats, inner.programs, strict=True)
            ]
            both = [frozenset().union(*column) for column in zip(*each, strict=True)]
            return [frozenset(["a choice between branches"]), *both]
        if equation.name == "scan":
            first, last = carry_bounds(equation.equation)
            check = 0
        else:
            check, end = while_bounds(equation.equation)
            first, last = end - check, len(operands) - check
        own, carried = operands[check:], slice(first, last)
        carry = needed[: last - first]
        asked: list[Names] = []
        if equation.name == "while":
            ends = ["the condition of a loop"]
            given = [*operands[:check], *own[carried]]
            asked = self.run(flats[0], inner.programs[0], given, [frozenset(ends)])
            carry = [a | b for a, b in zip(carry, asked[check:], strict=True)]
        while True:
            found = self.run(flats[-1], inner.programs[-1], own, [*carry, *needed[last - first :]])
            after = [a | b for a, b in zip(carry, found[carried], strict=True)]
            if after == carry:
                return [*asked[:check], *found[:first], *carry, *found[last:]]
            carry = after
