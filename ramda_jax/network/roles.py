"""What every axis of every parameter is for: events of a `flow` put together.

A parameter is cut into *cells*: parts (a window along each axis) in whose view every axis has one role. Mostly there is one
cell, the parameter as it is; a grouped convolution's has its output axis as groups by outputs of each; a parameter of which
one product reads a part and another the rest has two cells.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Container, Iterator, Sequence
from typing import NamedTuple

from ramda_jax.network import axes as ax
from ramda_jax.network.axes import Axis
from ramda_jax.network.flow import BATCH, GROUP, IN, OUT, SCAN, WINDOW, Flow

# An input of a product is told by these (and by the step of a loop).
INPUT = (IN, BATCH, GROUP)
STACK = (BATCH, GROUP, SCAN)


class Factor(NamedTuple):
    """A factor of an axis of a parameter (all of it, mostly).

    Attributes:
      size: its length.
      role: what it is in every product; None: no product reads it.
      leaves: the axes of which it is made; one, where it is not composed.
    """

    size: int
    role: str | None
    leaves: tuple[Axis, ...]

    @property
    def classes(self) -> tuple[Axis, ...]:
        """What stands for the classes of its leaves."""
        return tuple(leaf.root for leaf in self.leaves)


class Segment(NamedTuple):
    """A part [start, stop) of an axis of a parameter, as factors."""

    start: int
    stop: int
    factors: tuple[Factor, ...]


class Cell(NamedTuple):
    """A part of a parameter in whose view every axis has one role.

    Attributes:
      window: (start, stop) along each axis of the parameter; None: all of it.
      shape: of the view; None: the parameter's own, whose axes are the `factors` then.
      factors: the axes of the view.
    """

    window: tuple[tuple[int, int], ...] | None
    shape: tuple[int, ...] | None
    factors: tuple[Factor, ...]

    def places(self, roles: Sequence[str]) -> tuple[int, ...]:
        """The axes of the view that have one of these roles."""
        return tuple(d for d, f in enumerate(self.factors) if f.role in roles)


class Roles(NamedTuple):
    """Of one parameter.

    Attributes:
      leaf: which.
      products: the numbers of the uses in products.
      gathers: of those in which it is indexed (an embedding).
      axes: its axes.
      factor: of an axis, with its role in products, or in gathers where there is no product.
      trouble: why its groups cannot be told, if they cannot.
    """

    leaf: int
    products: tuple[int, ...]
    gathers: tuple[int, ...]
    axes: tuple[Axis, ...]
    factor: Callable[[Axis], Factor]
    trouble: str | None

    @property
    def tied(self) -> bool:
        """Whether it is an embedding and multiplied as well."""
        return bool(self.products and self.gathers)

    def cells(self) -> list[Cell]:
        """The parts with one role per axis of their views; what has one role is one axis of a view."""
        return _cells([self._whole(axis) for axis in self.axes])

    def cells_apart(
        self, wanted: Sequence[str], kept: Container[tuple[Axis, ...]] = ()
    ) -> list[Cell]:
        """The same with what has one of these roles apart, so that every such axis of a view is one `Axis`.

        But for sums that are no major factor: they are no windows. `kept`: classes of the leaves of other sums that stay
        whole.
        """
        return _cells([self._apart(axis, wanted, kept) for axis in self.axes])

    def _apart(
        self, axis: Axis, wanted: Sequence[str], kept: Container[tuple[Axis, ...]]
    ) -> list[Segment]:
        if not any(self.factor(leaf).role in wanted for leaf in axis.leaves()):
            return self._whole(axis)
        stays = lambda a: a.kind == ax.SUM and self.factor(a).classes in kept
        return self._segments(axis, stays)

    def _whole(self, axis: Axis) -> list[Segment]:
        return _merged(self._segments(axis, lambda a: self.factor(a).role is not None))

    def _segments(self, axis: Axis, whole: Callable[[Axis], bool]) -> list[Segment]:
        return list(_segments([[self.factor(f) for f in run] for run in _runs(axis, whole)]))

    def texts(self) -> list[str]:
        """What each axis is, for a table."""
        return [_text(self._whole(axis)) for axis in self.axes]


def _text(segments: Sequence[Segment]) -> str:
    words = [_words(segment.factors) for segment in segments]
    if len(set(words)) == 1:
        return words[0]
    pairs = zip(words, segments, strict=True)
    return ", ".join(f"{word} [{run.start}:{run.stop}]" for word, run in pairs)


def _words(factors: Sequence[Factor]) -> str:
    names: dict[str | None, str] = {None: "none", **dict.fromkeys(STACK, "stack")}
    words = [names.get(f.role, str(f.role)) for f in factors]
    if len(words) == 1:
        return words[0]
    return " x ".join(f"{word} {f.size}" for word, f in zip(words, factors, strict=True))


Given = dict[Axis, dict[int, str]]


def roles(found: Flow) -> list[Roles]:
    """Of every parameter."""
    given: Given = {}
    for event in found.roles:
        for leaf in event.axis.leaves():
            given.setdefault(leaf, {})[event.use] = event.what
    _vmapped(found, given)
    uses: dict[int, list[int]] = {}
    for number, use in enumerate(found.uses):
        uses.setdefault(use.leaf, []).append(number)
    result = []
    for k, axes in enumerate(found.parameters):
        mine = uses.get(k, [])
        gathers = tuple(u for u in mine if found.uses[u].kind == "gather")
        products = tuple(u for u in mine if u not in gathers)
        counted = products or gathers
        factor = functools.partial(_factor, given=given, mine=counted)
        trouble = _trouble(axes, given, counted)
        result.append(Roles(k, products, gathers, axes, factor, trouble))
    return result


def _vmapped(found: Flow, given: Given) -> None:
    """An output that is nothing but the index of other products is a stack: `vmap` over parameters, of a shared input.

    Attention's heads are such an index of products of live values: they stay outputs.
    """
    heads = {leaf.root for axis in found.heads for leaf in axis.leaves()}
    common = {axis.root for axis, told in given.items() if BATCH in told.values()} - heads
    for axis, told in given.items():
        if axis.root in common:
            told.update({use: BATCH for use, role in told.items() if role == OUT})


def _trouble(axes: Sequence[Axis], given: Given, mine: Sequence[int]) -> str | None:
    """Why its groups cannot be told."""
    for axis in axes:
        for leaf in axis.leaves():
            told = given.get(leaf, {})
            several = sorted({told[u] for u in mine if u in told})
            if len(several) > 1:
                return f"an axis is {' and '.join(several)} in different products"
    # In every use, either all factors of a cell have a role, or none of them has.
    for axis in axes:
        for run in _runs(axis):
            for number in mine:
                told_ = [number in given.get(leaf, {}) for f in run for leaf in f.leaves()]
                if any(told_) and not all(told_):
                    return "a product reads a part of it that is no window"
    return None


def _runs(axis: Axis, whole: Callable[[Axis], bool] = lambda axis: False) -> list[list[Axis]]:
    """Its segments, as factors; `whole`: of an axis that is composed, whether it stays whole."""
    parts = axis.own()
    if parts is None or whole(axis):
        return [[axis]]
    if axis.kind == ax.SUM:
        return [run for part in parts for run in _runs(part, whole)]
    head, *rest = [p for p in parts if p.size != 1] or parts[:1]
    others = [f for part in rest for f in _factors(part)]
    return [[*run, *others] for run in _runs(head, whole)]


def _factors(axis: Axis) -> list[Axis]:
    """Its factors; one that is a sum stays whole."""
    parts = axis.own()
    if parts is None or axis.kind == ax.SUM:
        return [axis]
    return [f for part in parts if part.size != 1 for f in _factors(part)]


def _segments(runs: Sequence[Sequence[Factor]]) -> Iterator[Segment]:
    start = 0
    for run in runs:
        stop = start + math.prod(f.size for f in run)
        yield Segment(start, stop, tuple(run))
        start = stop


def _factor(axis: Axis, given: Given, mine: Sequence[int]) -> Factor:
    leaves = axis.leaves()
    every = [{given.get(leaf, {}).get(u) for u in mine} - {None} for leaf in leaves]
    found = set().union(*every)
    role = found.pop() if len(found) == 1 and all(every) else None
    return Factor(axis.size, role, tuple(leaves))


def _merged(segments: Sequence[Segment]) -> list[Segment]:
    """Neighbouring factors of one role merged, and all segments if they are alike."""
    merged = []
    for segment in segments:
        factors = []
        for role, some in itertools.groupby(segment.factors, key=lambda f: f.role):
            group = list(some)
            leaves = tuple(leaf for f in group for leaf in f.leaves)
            factors.append(Factor(math.prod(f.size for f in group), role, leaves))
        merged.append(Segment(segment.start, segment.stop, tuple(factors)))
    alike = {tuple(f.role for f in segment.factors) for segment in merged}
    if len(merged) > 1 and len(alike) == 1 and len(merged[0].factors) == 1:
        stop = merged[-1].stop
        leaves = tuple(leaf for segment in merged for leaf in segment.factors[0].leaves)
        return [Segment(0, stop, (Factor(stop, merged[0].factors[0].role, leaves),))]
    return merged


def _cells(axes: Sequence[Sequence[Segment]]) -> list[Cell]:
    sizes = [segments[-1].stop for segments in axes]
    return [_cell(sizes, runs) for runs in itertools.product(*axes)]


def _cell(sizes: Sequence[int], runs: Sequence[Segment]) -> Cell:
    part = any((r.start, r.stop) != (0, n) for r, n in zip(runs, sizes, strict=True))
    window = tuple((r.start, r.stop) for r in runs) if part else None
    factors = tuple(f for r in runs for f in r.factors)
    shape = tuple(f.size for f in factors) if any(len(r.factors) != 1 for r in runs) else None
    return Cell(window, shape, factors)


__all__ = ["INPUT", "OUT", "SCAN", "STACK", "WINDOW", "Cell", "Factor", "Roles", "roles"]
