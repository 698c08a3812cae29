"""What a network costs, and what it costs with the zeros that its parameters have."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ramda_jax._text import table
from ramda_jax.network.flow import IN, Use
from ramda_jax.network.roles import INPUT, OUT, STACK, Cell, Roles
from ramda_jax.network.spaces import Slices, Space
from ramda_jax.network.trace import Leaf
from ramda_jax.subproblem import View


@dataclasses.dataclass(frozen=True)
class ArrayCost:
    """Of one parameter, or of a whole network; now: without what is zero, or read by nobody.

    Attributes:
      parameters, parameters_now: entries.
      bytes, bytes_now: of them.
      flops, flops_now: of the products they take part in, per call of the traced function; two for a multiplication and an
        addition.
    """

    parameters: int
    parameters_now: int
    bytes: int
    bytes_now: int
    flops: int
    flops_now: int


@dataclasses.dataclass(frozen=True)
class Cost(ArrayCost):
    """The sums over a network; `str` makes a table of it.

    Attributes:
      arrays: the cost of each parameter, by path.
      other_flops: of products in which no parameter takes part (attention's logits); counted in `flops` and `flops_now`.
    """

    arrays: Mapping[str, ArrayCost]
    other_flops: int

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("path", "parameters", "now", "FLOPs", "now")]
        cells = lambda c: (c.parameters, c.parameters_now, c.flops, c.flops_now)
        for path, cost in self.arrays.items():
            rows.append((path, *map("{:,}".format, cells(cost))))
        if self.other_flops:
            rows.append(("(products without parameters)", "", "", *(f"{self.other_flops:,}",) * 2))
        rows.append(("total", *map("{:,}".format, cells(self))))
        return table(rows, left=1)


def cost(
    leaves: Sequence[Leaf],
    every: Sequence[Roles],
    uses: Sequence[Use],
    found: Sequence[Space],
    other: int,
    values: Sequence[Any] | None,
) -> Cost:
    """See `Network.cost`; `values`: the parameters, or None."""
    wanted = None if values is None else needed(leaves, found, values)
    arrays = {}
    for k, (leaf, role) in enumerate(zip(leaves, every, strict=True)):
        size = int(np.prod(leaf.shape))
        flops = sum(uses[u].operations for u in role.products)
        left = 1.0
        if values is not None and wanted is not None:
            left = share(np.asarray(values[k]) != 0, role, wanted[k])
        now = round(size * left)
        width = np.dtype(leaf.dtype).itemsize
        arrays[leaf.path] = ArrayCost(
            size, now, size * width, now * width, flops, round(flops * left)
        )
    names = [f.name for f in dataclasses.fields(ArrayCost)]
    sums = {name: sum(getattr(c, name) for c in arrays.values()) for name in names}
    sums["flops"] += other
    sums["flops_now"] += other
    return Cost(**sums, arrays=arrays, other_flops=other)


def needed(
    leaves: Sequence[Leaf], found: Sequence[Space], values: Sequence[Any]
) -> list[np.ndarray]:
    """Of every parameter, which entries make a channel that somebody reads; bool."""
    number = {leaf.path: k for k, leaf in enumerate(leaves)}
    needed = [np.ones(leaf.shape, bool) for leaf in leaves]
    for space in found:
        if space.others:
            continue
        alive = np.zeros(space.number, bool)
        for slices in space.readers:
            alive |= _rows(slices, np.asarray(values[number[slices.path]]) != 0).any(axis=1)
        for slices in space.writers:
            leave_only(slices, needed[number[slices.path]], alive)
    return needed


def leave_only(slices: Slices, mask: np.ndarray, alive: np.ndarray) -> None:
    """Make a parameter's mask false, in place, at the slices of channels that are not alive."""
    window, axes = _index(slices.view.window), slices.view.axes
    shape = slices.view.viewed(slices.path, slices.shape)
    order = [axes.index(a) for a in sorted(axes)]
    full = np.transpose(alive.reshape([shape[a] for a in axes]), order)
    full = np.expand_dims(full, tuple(d for d in range(len(shape)) if d not in axes))
    mask[window] &= np.broadcast_to(full, shape).reshape(mask[window].shape)


def _rows(slices: Slices, mask: np.ndarray) -> np.ndarray:
    """(channels, entries) of a mask of the parameter."""
    part, axes = _seen(slices.view, mask), slices.view.axes
    others = [d for d in range(part.ndim) if d not in axes]
    return np.transpose(part, (*axes, *others)).reshape(slices.number, -1)


def share(nonzero: np.ndarray, role: Roles, needed: np.ndarray) -> float:
    """Which share of a parameter is left: of every matrix of its cells, living rows by living columns."""
    if not role.products or role.trouble:
        return 1.0
    total, left = 0, 0.0
    for cell in role.cells():
        part, wanted = _seen(cell, nonzero), _seen(cell, needed)
        total += part.size
        if not cell.places((*INPUT, OUT)):
            left += part.size
            continue
        alive = part & wanted
        axes = range(part.ndim)
        besides_rows = tuple(d for d in axes if d not in cell.places((IN, *STACK)))
        besides_columns = tuple(d for d in axes if d not in cell.places((OUT, *STACK)))
        by_row = alive.any(axis=besides_rows, keepdims=True)
        by_column = alive.any(axis=besides_columns, keepdims=True)
        left += float((np.broadcast_to(by_row, part.shape) & by_column).sum())
    return left / total if total else 1.0


def _index(window: Any) -> tuple[slice, ...]:
    return tuple(slice(a, b) for a, b in window or ())


def _seen(view: View | Cell, mask: np.ndarray) -> np.ndarray:
    """A mask of a parameter as a view, or a cell, has it."""
    part = mask[_index(view.window)]
    return part if view.shape is None else part.reshape(view.shape)
