"""Which entries of a parameter belong to which group or channel, in NumPy; and a jaxpr run by hand."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ramda_jax.network.flat import UNITS, Constant, flatten
from ramda_jax.subproblem import Block, View


def ids(shape: tuple[int, ...], view: View) -> np.ndarray:
    """Of every entry of a parameter the index of its group, -1 outside the view."""
    whole = np.full(shape, -1)
    window = tuple(slice(a, b) for a, b in view.window or [(0, n) for n in shape])
    part = view.shape or whole[window].shape
    axes = tuple(a % len(part) for a in view.axes)
    sizes = [part[a] for a in axes]
    numbers = np.arange(math.prod(sizes)).reshape(sizes)
    order = sorted(range(len(axes)), key=axes.__getitem__)
    numbers = np.transpose(numbers, order).reshape(
        [n if a in axes else 1 for a, n in enumerate(part)]
    )
    whole[window] = np.broadcast_to(numbers, part).reshape(whole[window].shape)
    return whole


def groups(blocks: list[Block]) -> dict[str, np.ndarray]:
    """By path, of every entry the index of its group among all groups of all blocks; -1: in none."""
    found: dict[str, np.ndarray] = {}
    total = 0
    for block in blocks:
        for k, member in enumerate(block.members):
            view = View(block.axes(k)) if member.view is None else member.view
            own = ids(member.shape, view)
            mine = found.setdefault(member.path, np.full(member.shape, -1))
            assert np.all((own < 0) | (mine < 0)), f"{member.path}: an entry is in two groups"
            mine[own >= 0] = own[own >= 0] + total
        total += block.number
    return found


def evaluate(
    closed: Any, args: list[Any], hook: Callable[[Any, list[Any]], list[Any]]
) -> list[Any]:
    """Run a jaxpr, calls inlined; `hook`: (equation, its results) -> what they are taken for."""
    flat = flatten(closed)
    known: dict[int, Any] = dict(zip(flat.inputs, args, strict=True))
    read = lambda atom: atom.value if isinstance(atom, Constant) else known[atom]
    for name, equation, operands, results in flat.equations:
        given = map(read, operands)
        unit = UNITS.get(name.removeprefix("unit "))
        made = unit(*given) if unit else equation.primitive.bind(*given, **equation.params)
        several = not unit and equation.primitive.multiple_results
        known.update(zip(results, hook(equation, list(made) if several else [made]), strict=True))
    return [read(atom) for atom in flat.outputs]


def frozen_statistics(apply: Callable[..., Any], size: int) -> Callable[..., Any]:
    """(params, other params, *args) -> (apply(params), apply(other params) with the statistics of the first).

    Statistics: sums over the last axis, where that has `size` entries.
    """

    def both(params: Any, other: Any, *args: Any) -> Any:
        closed = jax.make_jaxpr(apply)(params, *args)
        recorded: list[Any] = []

        def is_statistic(equation: Any) -> bool:
            if not equation.primitive.name.startswith("reduce_"):
                return False
            shape = equation.invars[0].aval.shape
            return tuple(equation.params["axes"]) == (len(shape) - 1,) and shape[-1] == size

        def record(equation: Any, results: list[Any]) -> list[Any]:
            if is_statistic(equation):
                recorded.append(results)
            return results

        def replay(equation: Any, results: list[Any]) -> list[Any]:
            return replayed.pop(0) if is_statistic(equation) else results

        first = evaluate(closed, jax.tree.leaves((params, *args)), record)
        replayed = list(recorded)
        second = evaluate(closed, jax.tree.leaves((other, *args)), replay)
        assert not replayed
        return first, second

    return both
