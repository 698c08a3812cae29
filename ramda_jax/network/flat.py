"""A jaxpr without calls: one list of equations, the same for every batch size; and what primitives there are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.extend import core

# Elementwise functions whose derivative is not that of what they are made of (0 where max(x, 0) has 1/2).
UNITS = {"relu": jax.nn.relu, "relu6": jax.nn.relu6}


def names(text: str) -> frozenset[str]:
    """The words of a text: names of primitives."""
    return frozenset(text.split())


CALLS = names(
    """jit pjit closed_call core_call checkpoint remat remat2 custom_jvp_call custom_vjp_call custom_vjp_call_jaxpr
    custom_lin"""
)
REDUCTIONS = names("reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor")
WINDOWS = names("reduce_window reduce_window_sum reduce_window_max reduce_window_min")
CUMULATIVE = names("cumsum cumprod cummax cummin cumlogsumexp")


def body(equation: Any) -> tuple[Any, Sequence[Any]]:
    """(the jaxpr that a call runs, its constants)."""
    found = equation.params.values()
    inner = next(p for p in found if isinstance(p, (core.Jaxpr, core.ClosedJaxpr)))
    return getattr(inner, "jaxpr", inner), getattr(inner, "consts", ())


def operations(equation: Any) -> int:
    """Floating-point operations of a product, two for a multiplication and an addition; 0 of anything else."""
    p, made = equation.params, math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
    if equation.primitive.name == "dot_general":
        ((contracted, _), _) = p["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2 * made * math.prod(shape[d] for d in contracted)
    if equation.primitive.name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        return 2 * made * math.prod(kernel[d] for d in p["dimension_numbers"].rhs_spec[1:])
    return 0


def carry_bounds(equation: Any) -> tuple[int, int]:
    """Where the carried operands of a scan begin and end: its parameters say it otherwise in every JAX.

    What is carried has as many axes inside as outside, what is stacked one less.
    """
    body = equation.params["jaxpr"].jaxpr
    same = lambda pairs: [len(a.aval.shape) == len(b.aval.shape) for a, b in pairs]
    carried = sum(same(zip(equation.outvars, body.outvars, strict=True)))
    whole = sum(same(zip(equation.invars, body.invars, strict=True)))
    return whole - carried, whole


def while_bounds(equation: Any) -> tuple[int, int]:
    """Of the operands of a while: where the constants of its condition end, and those of its body."""
    p = equation.params
    return p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]


class Constant(NamedTuple):
    """An operand that is none of the values: a literal, or a constant of the jaxpr."""

    value: Any


Atom = int | Constant


class Equation(NamedTuple):
    """One equation.

    Attributes:
      name: of its primitive, or `unit` and a key of `UNITS`.
      equation: of the jaxpr.
      operands: the numbers of values, or constants.
      results: the numbers of values.
    """

    name: str
    equation: Any
    operands: tuple[Atom, ...]
    results: tuple[int, ...]


class Flat(NamedTuple):
    """A program.

    Attributes:
      equations: in order.
      inputs: the numbers of its inputs, which are the first.
      outputs: its results.
      shapes: of every value.
    """

    equations: list[Equation]
    inputs: tuple[int, ...]
    outputs: tuple[Atom, ...]
    shapes: list[tuple[int, ...]]


def _unit(equation: Any) -> str | None:
    """The name of a function that has a derivative of its own."""
    if equation.primitive.name != "custom_jvp_call":
        return None
    inner = equation.params["call_jaxpr"].jaxpr.eqns
    return inner[0].params.get("name") if len(inner) == 1 else None


def flatten(closed: core.ClosedJaxpr) -> Flat:
    """Inline all calls."""
    equations: list[Equation] = []
    shapes: list[tuple[int, ...]] = []

    def new(var: Any) -> int:
        shapes.append(tuple(getattr(var.aval, "shape", ())))
        return len(shapes) - 1

    def run(jaxpr: Any, constants: Sequence[Any], operands: Sequence[Atom]) -> list[Atom]:
        known: dict[Any, Atom] = dict(
            zip(jaxpr.constvars, [Constant(c) for c in constants], strict=True)
        )
        known.update(zip(jaxpr.invars, operands, strict=True))

        def read(atom: Any) -> Atom:
            return Constant(atom.val) if isinstance(atom, core.Literal) else known[atom]

        for equation in jaxpr.eqns:
            given = [read(atom) for atom in equation.invars]
            name = equation.primitive.name
            if name in CALLS:
                unit = _unit(equation)
                if unit not in UNITS:
                    results = run(*body(equation), given)
                    known.update(zip(equation.outvars, results, strict=True))
                    continue
                name = f"unit {unit}"
            numbers = tuple(new(var) for var in equation.outvars)
            known.update(zip(equation.outvars, numbers, strict=True))
            equations.append(Equation(name, equation, tuple(given), numbers))
        return [read(atom) for atom in jaxpr.outvars]

    jaxpr = closed.jaxpr
    inputs = tuple(new(var) for var in jaxpr.invars)
    outputs = run(jaxpr, closed.consts, inputs)
    return Flat(equations, inputs, tuple(outputs), shapes)


def programs(equation: Any) -> tuple[Flat, ...]:
    """The programs in a loop or in branches: a scan's body; a while's condition and body; the branches; else none."""
    p = equation.params
    inside = {"scan": ("jaxpr",), "while": ("cond_jaxpr", "body_jaxpr")}
    name = equation.primitive.name
    found = p["branches"] if name == "cond" else [p[key] for key in inside.get(name, ())]
    return tuple(map(flatten, found))
