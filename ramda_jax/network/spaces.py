"""Channel spaces: axes that products write and products read, and which slices of which parameters do.

A channel is an index along an axis (or along several, of a convolution in groups or of attention's heads and widths) that
some parameter's output axis makes, and that parameters' input axes contract. If all slices that read it are zero, and
nothing else reads it, the channel can go.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

from ramda_jax.network.axes import Axis
from ramda_jax.network.flow import IN, Flow, Use
from ramda_jax.network.roles import INPUT, OUT, SCAN, STACK, Cell, Roles
from ramda_jax.network.trace import Leaf
from ramda_jax.subproblem import View


@dataclasses.dataclass(frozen=True)
class Slices:
    """A parameter's part in a space: slice i of its view belongs to channel i."""

    path: str
    shape: tuple[int, ...]
    view: View

    @property
    def size(self) -> int:
        """Entries."""
        whole = self.view.window
        return math.prod(b - a for a, b in whole) if whole else math.prod(self.shape)

    @property
    def window(self) -> tuple[tuple[int, int], ...]:
        """What of the parameter."""
        return self.view.window or tuple((0, n) for n in self.shape)

    def overlaps(self, other: Slices) -> bool:
        """Whether both have entries in common."""
        pairs = zip(self.window, other.window, strict=False)
        return self.path == other.path and all(a < d and c < b for (a, b), (c, d) in pairs)


@dataclasses.dataclass(frozen=True)
class Space:
    """One channel space.

    Attributes:
      name: the first parameter that writes it.
      number: of channels.
      readers: the slices that read them.
      writers: the slices that make them.
      others: what else reads them, or why that cannot be told; then no zeros in the readers make a channel superfluous.
    """

    name: str
    number: int
    readers: tuple[Slices, ...]
    writers: tuple[Slices, ...]
    others: tuple[str, ...]


class _Classes:
    """What is known of the classes of axes, by what stands for each."""

    def __init__(self, found: Flow, every: Sequence[Roles], leaves: Sequence[Leaf]) -> None:
        roots = lambda axes: {leaf.root for axis in axes for leaf in axis.leaves()}
        gone = {r.leaf for r in every if r.trouble}
        self.written = roots(e.axis for e in found.roles if e.what in (OUT, *STACK))
        self.heads = roots(found.heads)
        self.others: dict[Axis, list[str]] = {}
        self.say(found.inputs, "an input of the network")
        self.say(found.outputs, "returned by the network")
        for event in found.reads:
            self.say([event.axis], event.what)
        for event in found.roles:
            leaf = found.uses[event.use].leaf
            if event.what == IN and leaf in gone:
                self.say([event.axis], f"{leaves[leaf].path} reads it, whose groups cannot be told")
        self.scopes: dict[Axis, tuple[int, ...]] = {}
        for axis, scope in set(found.touches):
            for root in roots([axis]):
                self.scopes[root] = _common(self.scopes.get(root, scope), scope)

    def say(self, axes: Iterable[Axis], text: str) -> None:
        for axis in axes:
            for leaf in axis.leaves():
                texts = self.others.setdefault(leaf.root, [])
                if text not in texts:
                    texts.append(text)

    def why(self, root: Axis) -> list[str]:
        return [*self.others.get(root, []), *([root.trouble] if root.trouble else [])]


def _common(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    n = 0
    while n < min(len(one), len(other)) and one[n] == other[n]:
        n += 1
    return one[:n]


def spaces(
    found: Flow, every: Sequence[Roles], leaves: Sequence[Leaf], *, heads: str, tied: bool
) -> list[Space]:
    """All spaces, in the order in which they are first read.

    Args:
      found: the flow.
      every: its roles.
      leaves: the parameters.
      heads: "whole": a head of attention is one channel; "within": every width of every head.
      tied: whether an embedding that is multiplied as well counts among the readers.
    """
    classes = _Classes(found, every, leaves)
    readers: dict[frozenset[Axis], list[tuple[tuple[Axis, ...], Roles, Cell]]] = {}
    for role in every:
        if not role.products or role.trouble:
            continue
        for cell in role.cells(apart=True):
            key = _read(cell, classes, heads)
            if key is None:
                continue
            if role.tied and not tied:
                axes = [leaf for f in cell.factors if f.role == IN for leaf in f.leaves]
                classes.say(
                    axes, f"{leaves[role.leaf].path} reads it, which is an embedding as well"
                )
            readers.setdefault(frozenset(key), []).append((key, role, cell))
    several: dict[Axis, int] = {}
    for classes_ in readers:
        for root in classes_:
            several[root] = several.get(root, 0) + 1
    result = []
    for some in readers.values():
        order = some[0][0]
        texts = [text for root in order for text in classes.why(root)]
        if any(several[root] > 1 for root in order):
            texts.append("some read it along with other axes, some without")
        if len(set(order)) < len(order):
            texts.append("a product reads it twice")
        scope = _scope(order, classes)
        views = [_view(leaves, found.uses, r, c, order, scope, INPUT) for _, r, c in some]
        written = []
        for r in every:
            for c in r.cells(apart=True) if (r.products or r.gathers) and not r.trouble else ():
                slices = _view(leaves, found.uses, r, c, order, scope, (OUT, *STACK))
                if slices is not None:
                    written.append((min(r.products or r.gathers), slices))
        writers = tuple(w for _, w in sorted(written, key=lambda pair: pair[0]))
        if any(v is None for v in views):
            texts.append("not every reader has it as axes of its own")
        own = tuple(v for v in views if v is not None)
        number = _number(own[0]) if own else math.prod(root.size for root in order)
        name = writers[0].path if writers else own[0].path if own else "?"
        result.append(Space(name, number, own, writers, tuple(dict.fromkeys(texts))))
    return _named(result)


def _number(slices: Slices) -> int:
    shape = slices.view.viewed(slices.path, slices.shape)
    axes = slices.view.axis
    return math.prod(shape[a] for a in ((axes,) if isinstance(axes, int) else axes))


def _named(found: list[Space]) -> list[Space]:
    """Each with a name of its own."""
    seen: dict[str, int] = {}
    result = []
    for space in found:
        n = seen[space.name] = seen.get(space.name, 0) + 1
        result.append(space if n == 1 else dataclasses.replace(space, name=f"{space.name} ({n})"))
    return result


def _read(cell: Cell, classes: _Classes, heads: str) -> tuple[Axis, ...] | None:
    """The classes that tell which channel a slice of a cell reads; None: it reads none."""
    inputs = [f for f in cell.factors if f.role in INPUT and f.size > 1]
    for f in inputs:
        if f.axis is None:
            classes.say(f.leaves, "a product reads a part of it that is no window")
    roots = [f.axis.root for f in inputs if f.axis is not None]
    written = [r for r in roots if r in classes.written]
    whole = [r for r in written if r in classes.heads]
    chosen = whole if whole and heads == "whole" else written
    return tuple(chosen) or None


def _scope(order: Sequence[Axis], classes: _Classes) -> tuple[int, ...]:
    """The loops in every step of which the channels are others."""
    scopes = [classes.scopes.get(root, ()) for root in order]
    return _common(scopes[0], scopes[-1]) if scopes else ()


def _view(
    leaves: Sequence[Leaf],
    uses: Sequence[Use],
    role: Roles,
    cell: Cell,
    order: Sequence[Axis],
    scope: Sequence[int],
    wanted: Sequence[str],
) -> Slices | None:
    """The view of a cell with the channels along its axes; None: it does not have them."""
    scans = {n: axis for u in (role.products or role.gathers) for n, axis in uses[u].scans}
    places = []
    for number in scope:
        leaf = scans[number].leaves()[0] if number in scans else None
        at = [d for d, f in enumerate(cell.factors) if f.role == SCAN and f.axis is leaf]
        if len(at) != 1:
            return None
        places += at
    for root in order:
        at = [
            d
            for d, f in enumerate(cell.factors)
            if f.axis is not None and f.axis.root is root and f.role in wanted
        ]
        if len(at) != 1:
            return None
        places += at
    leaf_ = leaves[role.leaf]
    axis = places[0] if len(places) == 1 else tuple(places)
    return Slices(leaf_.path, leaf_.shape, View(axis, cell.shape, cell.window))
