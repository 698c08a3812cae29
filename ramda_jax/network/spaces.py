"""Channel spaces: axes that products write and products read, and which slices of which parameters do.

A channel is an index along an axis (or along several, of a convolution in groups or of attention's heads and widths) that
some parameter's output axis makes, and that parameters' input axes contract. If all slices that read it are zero, and
nothing else reads it, the channel can go.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence

from ramda_jax.network import axes as ax
from ramda_jax.network.axes import Axis
from ramda_jax.network.flow import GROUP, IN, Flow, Use
from ramda_jax.network.roles import INPUT, OUT, SCAN, STACK, Cell, Factor, Roles
from ramda_jax.network.trace import Leaf
from ramda_jax.subproblem import View, Window, meet

# The roles of axes that tell which channel is read, or made, and by which layer of a stack.
_READ, _MADE = (*INPUT, SCAN), (OUT, *STACK)

# The classes of an axis of a view: one, or those of the segments of a sum.
Axes = tuple[Axis, ...]


@dataclasses.dataclass(frozen=True)
class Slices:
    """A parameter's part in a space: slice i of its view belongs to channel i."""

    path: str
    shape: tuple[int, ...]
    view: View

    @property
    def number(self) -> int:
        """Of channels."""
        shape = self.view.viewed(self.path, self.shape)
        return math.prod(shape[a] for a in self.view.axes)

    @property
    def window(self) -> Window:
        """What of the parameter."""
        return self.view.window or tuple((0, n) for n in self.shape)

    @property
    def size(self) -> int:
        """Entries."""
        return math.prod(stop - start for start, stop in self.window)

    def overlaps(self, other: Slices) -> bool:
        """Whether both have entries in common."""
        return self.path == other.path and meet(self.window, other.window)


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
        self.images: dict[Axis, Axis] = {}
        for made, read in found.groups:
            if not ax.same_parts(made, read):
                self.say([made, read], "the groups of a convolution are taken apart in unlike ways")
            self.images.update(zip(made.leaves(), read.leaves(), strict=False))
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

    def read_by(self, factor: Factor) -> Axes:
        """The classes of what a factor of a parameter reads."""
        if factor.role != GROUP:
            return factor.classes
        return tuple(self.images.get(leaf, leaf).root for leaf in factor.leaves)

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
    """All spaces, in the order in which their first readers are among the parameters.

    Args:
      found: the flow.
      every: its roles.
      leaves: the parameters.
      heads: "whole": a head of attention is one channel; "within": every width of every head.
      tied: whether an embedding that is multiplied as well counts among the readers.
    """
    classes = _Classes(found, every, leaves)
    understood = [r for r in every if (r.products or r.gathers) and not r.trouble]
    reading = [r for r in understood if r.products]
    # A sum that somebody reads as a minor factor (flattened) is no window: nobody is asked for its parts then.
    first = [f for r in reading for c in r.cells_apart(_READ) for f in c.factors if f.role in INPUT]
    kept = {f.classes for f in first if len(f.leaves) > 1}
    cells = {r.leaf: r.cells_apart(_READ, kept) for r in reading}
    made = {r.leaf: r.cells_apart(_MADE, kept) for r in understood}
    readers: dict[frozenset[Axes], list[tuple[tuple[Axes, ...], Roles, Cell]]] = {}
    for role in reading:
        for cell in cells[role.leaf]:
            key = _read(cell, classes, heads)
            if not key:
                continue
            if role.tied and not tied:
                axes = [leaf for f in cell.factors if f.role == IN for leaf in f.leaves]
                path = leaves[role.leaf].path
                classes.say(axes, f"{path} reads it, which is an embedding as well")
            readers.setdefault(frozenset(key), []).append((key, role, cell))
    keys: dict[int, set[frozenset[Axes]]] = {}
    for key_, some in readers.items():
        for _, role, _ in some:
            keys.setdefault(role.leaf, set()).add(key_)
    reads = [(keys.get(r.leaf, set()), *_met(r, found, cells[r.leaf], classes)) for r in reading]
    result = []
    for key_, some in readers.items():
        order = some[0][0]
        roots = [root for part in order for root in part]
        texts = [text for root in roots for text in classes.why(root)]
        for own_keys, met, contracted in reads:
            if met.issuperset(roots) and contracted.intersection(roots) and key_ not in own_keys:
                texts.append("some read it along with other axes, some without")
        if len(set(roots)) < len(roots):
            texts.append("a product reads it twice")
        scope = _scope(roots, classes)
        view = functools.partial(_view, leaves, found.uses, order=order, scope=scope)
        views = [view(r, cell, wanted=INPUT, classes=classes.read_by) for _, r, cell in some]
        if any(v is None for v in views):
            texts.append("not every reader has it as axes of its own")
        pairs = [
            (min(r.products or r.gathers), view(r, cell, wanted=_MADE, classes=_made_by))
            for r in understood
            for cell in made[r.leaf]
        ]
        writers = [slices for _, slices in sorted(pairs, key=lambda pair: pair[0]) if slices]
        own = tuple(v for v in views if v is not None)
        name = next((slices.path for slices in (*writers, *own)), "?")
        number = own[0].number if own else 0
        result.append(Space(name, number, own, tuple(writers), tuple(dict.fromkeys(texts))))
    return _named(result)


def _made_by(factor: Factor) -> Axes:
    return factor.classes


def _met(
    role: Roles, found: Flow, cells: Sequence[Cell], classes: _Classes
) -> tuple[set[Axis], set[Axis]]:
    """(the classes of what a parameter meets in products, those of them that it contracts)."""
    met = {leaf.root for u in role.products for a in found.uses[u].met for leaf in a.leaves()}
    inputs = [f for cell in cells for f in cell.factors if f.role in INPUT]
    return met, {root for f in inputs for root in classes.read_by(f)}


def _named(found: list[Space]) -> list[Space]:
    """Each with a name of its own."""
    seen: dict[str, int] = {}
    result = []
    for space in found:
        n = seen[space.name] = seen.get(space.name, 0) + 1
        result.append(space if n == 1 else dataclasses.replace(space, name=f"{space.name} ({n})"))
    return result


def _read(cell: Cell, classes: _Classes, heads: str) -> tuple[Axes, ...]:
    """The classes that tell which channel a slice of a cell reads; none, if it reads none."""
    inputs = [classes.read_by(f) for f in cell.factors if f.role in INPUT and f.size > 1]
    written = [part for part in inputs if any(root in classes.written for root in part)]
    whole = [part for part in written if all(root in classes.heads for root in part)]
    return tuple(whole if whole and heads == "whole" else written)


def _scope(roots: Sequence[Axis], classes: _Classes) -> tuple[int, ...]:
    """The loops in every step of which the channels are others."""
    return functools.reduce(_common, [classes.scopes.get(root, ()) for root in roots])


def _view(
    leaves: Sequence[Leaf],
    uses: Sequence[Use],
    role: Roles,
    cell: Cell,
    *,
    order: Sequence[Axes],
    scope: Sequence[int],
    wanted: Sequence[str],
    classes: Callable[[Factor], Axes],
) -> Slices | None:
    """The view of a cell with the channels along its axes; None: it does not have them."""
    scans = {n: axis for u in (role.products or role.gathers) for n, axis in uses[u].scans}
    places = []
    for number in scope:
        leaf = scans[number].leaves()[0] if number in scans else None
        at = [d for d, f in enumerate(cell.factors) if f.role == SCAN and f.leaves == (leaf,)]
        if len(at) != 1:
            return None
        places += at
    for part in order:
        at = [d for d, f in enumerate(cell.factors) if f.role in wanted and classes(f) == part]
        if len(at) != 1:
            return None
        places += at
    own = leaves[role.leaf]
    axis = places[0] if len(places) == 1 else tuple(places)
    return Slices(own.path, own.shape, View(axis, cell.shape, cell.window))
