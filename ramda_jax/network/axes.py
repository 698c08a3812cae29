"""Axes of arrays and what they have in common: indices that mean the same, parts and factors of axes.

An `Axis` is one axis of one value of a computation. Axes whose indices mean the same (of both operands of a sum, say) are
joined into one class. An axis may turn out to be composed: a *product* of factors, major first (what a reshape splits or
merges), or a *sum* of segments (what is concatenated or sliced). What is learnt of one axis holds for its class, but every
axis keeps parts of its own: so parts of a parameter's axis can be told from parts of another's in the same class.

Axes of length 1 say nothing, and are never joined.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

PRODUCT = "product"
SUM = "sum"


class Axis:
    """One axis of one value; see above.

    Attributes:
      size: its length.
      kind: None, `PRODUCT` or `SUM`: how its own parts, if there are any, make it up.
      parts: its own parts.
    """

    __slots__ = ("_parent", "_trouble", "kind", "parts", "size")

    def __init__(
        self, size: int, kind: str | None = None, parts: Sequence[Axis] | None = None
    ) -> None:
        self.size = size
        self.kind = kind
        self.parts = None if parts is None else list(parts)
        self._parent: Axis | None = None
        self._trouble: str | None = None

    def __repr__(self) -> str:
        inside = "" if self.parts is None else f" = {self.kind}{self.parts}"
        return f"{self.size}{inside}"

    @property
    def root(self) -> Axis:
        """What stands for its class."""
        root = self
        while root._parent is not None:
            root = root._parent
        at = self
        while at._parent is not None:
            at._parent, at = root, at._parent
        return root

    @property
    def trouble(self) -> str | None:
        """Why the indices of its class cannot be followed everywhere, if they cannot."""
        return self.root._trouble

    def spoil(self, why: str) -> None:
        """Say that the indices of its class cannot be followed through something."""
        for leaf in self.leaves():
            if leaf.root._trouble is None:
                leaf.root._trouble = why

    def own(self) -> list[Axis] | None:
        """Its own parts, made like those of its class if it has none yet; None: it is not composed."""
        root = self.root
        if self.parts is None and root.parts is not None:
            self.kind = root.kind
            self.parts = [Axis(part.size) for part in root.parts]
            for mine, part in zip(self.parts, root.parts, strict=True):
                _join(mine, part)
        return self.parts

    def leaves(self) -> list[Axis]:
        """Its own parts that are not composed themselves, in order; no factors of length 1."""
        parts = self.own()
        if parts is None:
            return [self]
        if self.kind == PRODUCT:
            parts = [part for part in parts if part.size != 1] or parts[:1]
        return [leaf for part in parts for leaf in part.leaves()]

    def compose(self, kind: str, sizes: Sequence[int]) -> list[Axis]:
        """Make an axis that is not composed the product or sum of parts of these sizes."""
        root = self.root
        root.kind, root.parts = kind, [Axis(n) for n in sizes]
        if root._trouble is not None:
            for part in root.parts:
                part.spoil(root._trouble)
        parts = self.own()
        assert parts is not None
        return parts


def product(factors: Sequence[Axis]) -> Axis:
    """The axis that merging these makes, major first."""
    factors = [f for f in factors if f.size != 1]
    if len(factors) == 1:
        return factors[0]
    if not factors:
        return Axis(1)
    return Axis(math.prod(f.size for f in factors), PRODUCT, factors)


def concatenation(segments: Sequence[Axis]) -> Axis:
    """The axis that concatenating these makes."""
    segments = [s for s in segments if s.size]
    if len(segments) == 1:
        return segments[0]
    return Axis(sum(s.size for s in segments), SUM, segments)


def _flat(kind: str, axes: Sequence[Axis]) -> list[Axis]:
    """These axes, and in place of each that is such a composition its parts."""
    found: list[Axis] = []
    for axis in axes:
        parts = axis.own()
        if parts is not None and axis.kind == kind:
            found.extend(_flat(kind, parts))
        elif kind == SUM or axis.size != 1:
            found.append(axis)
    return found


def factored(axis: Axis, major: int) -> tuple[Axis, Axis] | None:
    """The axis as a product of an axis of length `major` and a minor one; None: it cannot be one."""
    if axis.size % major:
        return None
    minor = axis.size // major
    if major == 1:
        return Axis(1), axis
    if minor == 1:
        return axis, Axis(1)
    parts = axis.own()
    if parts is None:
        first, second = axis.compose(PRODUCT, (major, minor))
        return first, second
    if axis.kind == PRODUCT:
        rest = _flat(PRODUCT, parts)
        front = taken(rest, major)
        return None if front is None else (product(front), product(rest))
    pieces = []
    for segment in _flat(SUM, parts):
        piece = factored(segment, segment.size // minor) if segment.size % minor == 0 else None
        if piece is None:
            return None
        pieces.append(piece)
    for _, low in pieces[1:]:
        join(pieces[0][1], low)
    return concatenation([high for high, _ in pieces]), pieces[0][1]


def taken(rest: list[Axis], n: int) -> list[Axis] | None:
    """Axes from the front of `rest` (which they leave) whose product is n, the last one split; None: there are none."""
    found, left = [], list(rest)
    while n > 1:
        head = left.pop(0)
        if n % head.size == 0:
            found.append(head)
            n //= head.size
            continue
        split = factored(head, n) if head.size % n == 0 else None
        if split is None:
            return None
        found.append(split[0])
        left.insert(0, split[1])
        n = 1
    rest[:] = left
    return found


def segments(axis: Axis, sizes: Sequence[int]) -> list[Axis] | None:
    """The axis as a sum of axes of these sizes (none of them 0); None: it cannot be one."""
    if len(sizes) == 1:
        return [axis]
    parts = axis.own()
    if parts is None:
        return list(axis.compose(SUM, sizes))
    if axis.kind == PRODUCT:
        factors = _flat(PRODUCT, parts)
        minor = axis.size // factors[0].size
        if any(n % minor for n in sizes):
            return None
        heads = segments(factors[0], [n // minor for n in sizes])
        return None if heads is None else [product([head, *factors[1:]]) for head in heads]
    rest = _flat(SUM, parts)
    found = []
    for n in sizes:
        taken: list[Axis] = []
        while sum(t.size for t in taken) < n:
            wanted = n - sum(t.size for t in taken)
            head = rest.pop(0)
            if head.size > wanted:
                cut = segments(head, (wanted, head.size - wanted))
                if cut is None:
                    return None
                head = cut[0]
                rest.insert(0, cut[1])
            taken.append(head)
        found.append(concatenation(taken))
    return found


def window(axis: Axis, start: int, stop: int) -> Axis | None:
    """The part [start, stop) of an axis; None: it cannot be told."""
    sizes = [n for n in (start, stop - start, axis.size - stop) if n]
    found = segments(axis, sizes) if stop > start else None
    return None if found is None else found[1 if start else 0]


def join(one: Axis, other: Axis) -> None:
    """Say that the indices of both mean the same. Where their parts do not fit, the indices of both are spoiled."""
    if one.size != other.size:
        raise AssertionError(f"axes of lengths {one.size} and {other.size} cannot be joined")
    if one.size != 1:
        _join(one, other)


def _join(one: Axis, other: Axis) -> None:
    a, b = one.root, other.root
    if a is b:
        return
    if a.parts is None or b.parts is None:
        if b.parts is not None:
            a, b = b, a
        _link(b, a)
        return
    _link(b, a)
    left, right = list(a.parts), list(b.parts)
    if a.kind is not None and a.kind == b.kind:
        fits = _join_alike(a.kind, left, right)
    else:
        factors, whole = (left, b) if a.kind == PRODUCT else (right, a)
        fits = _join_mixed(factors, whole.parts or [])
    if not fits:
        why = "its parts are taken apart in ways that do not fit together"
        for part in (*left, *right):
            part.spoil(why)


def _link(child: Axis, root: Axis) -> None:
    child._parent = root
    if child._trouble is not None and root._trouble is None:
        root._trouble = child._trouble
        for leaf in root.leaves() if root.parts is not None else ():
            if leaf.root is not root:
                leaf.spoil(child._trouble)


def _join_alike(kind: str, left: Sequence[Axis], right: Sequence[Axis]) -> bool:
    """Two products, or two sums, of the same length; whether their parts fit together."""
    one, two = _flat(kind, left), _flat(kind, right)
    while one and two:
        a, b = one.pop(0), two.pop(0)
        small, large, rest = (b, a, one) if a.size > b.size else (a, b, two)
        if small.size < large.size:
            sizes = (small.size, large.size - small.size)
            parts = factored(large, small.size) if kind == PRODUCT else segments(large, sizes)
            if parts is None:
                return False
            large, left_over = parts
            rest.insert(0, left_over)
        _join(small, large)  # a segment of length 1 is one index, unlike an axis of length 1
    return True


def _join_mixed(factors: Sequence[Axis], parts: Sequence[Axis]) -> bool:
    """A product with a sum: the major factor is cut where the sum is, and every segment has the minor ones."""
    heads, *others = _flat(PRODUCT, factors)
    minor = math.prod(f.size for f in others)
    flat = _flat(SUM, parts)
    if any(p.size % minor for p in flat):
        return False
    cuts = segments(heads, [p.size // minor for p in flat])
    if cuts is None:
        return False
    return all(_join_alike(PRODUCT, [cut, *others], [p]) for cut, p in zip(cuts, flat, strict=True))


def same_parts(one: Axis, other: Axis) -> bool:
    """Whether both have parts of the same kinds and sizes."""
    left, right = one.own(), other.own()
    if left is None or right is None:
        return left is right
    if one.kind != other.kind or len(left) != len(right):
        return False
    return all(a.size == b.size and same_parts(a, b) for a, b in zip(left, right, strict=True))


def copy_parts(one: Axis, other: Axis) -> bool:
    """Give each the parts that the other has, as far as they go together; whether anything had to be done."""
    left, right = one.own(), other.own()
    if left is None and right is None:
        return False
    if left is None or right is None:
        composed, plain = (other, one) if left is None else (one, other)
        parts = composed.own() or []
        plain.compose(composed.kind or PRODUCT, [p.size for p in parts])
        copy_parts(composed, plain)
        return True
    if one.kind != other.kind or [p.size for p in left] != [p.size for p in right]:
        return False
    done = [copy_parts(a, b) for a, b in zip(left, right, strict=True)]
    return any(done)
