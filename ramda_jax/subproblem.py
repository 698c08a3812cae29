"""The one problem that every method solves, block by block.

    minimise over X   <v, X> + 1/2 <X - x0, D (X - x0)> + w psi(X),      D diagonal and positive

A block is one or more arrays whose groups are solved together. Each of its members is a view of a parameter: nearly always
the whole array as it is.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ramda_jax import _numerics
from ramda_jax.regularizers import GroupNorm, Regularizer

# (accumulators of a leaf, its parameter, the step's scalars) -> (v, x0, D). Elementwise; D may be 0-d.
Pieces = Callable[[tuple[jax.Array, ...], jax.Array, tuple[jax.Array, ...]], tuple[jax.Array, ...]]
# (start, stop) along each axis of a parameter.
Window = tuple[tuple[int, int], ...]
# Of mesh axes.
Names = tuple[str, ...]
# Makes what is computed from its result wait for something; see `solvers.secular`.
Tie = Callable[[Any], Any]


class Quadratic(NamedTuple):
    """The smooth part: <v, x> + 1/2 <x - x0, d (x - x0)>; `d` may be 0-d."""

    v: jax.Array
    x0: jax.Array
    d: jax.Array

    def gradient(self, x: jax.Array) -> jax.Array:
        """v + D (x - x0)."""
        return self.v + self.d * (x - self.x0)

    def at_zero(self) -> jax.Array:
        """b = D x0 - v, minus the gradient at zero."""
        return self.d * self.x0 - self.v

    def value(self, x: jax.Array) -> jax.Array:
        """<v, x> + 1/2 <x - x0, D (x - x0)>."""
        y = x - self.x0
        return jnp.sum(self.v * x + 0.5 * self.d * y * y)

    def decrease(self, old: jax.Array, new: jax.Array) -> jax.Array:
        """value(old) - value(new), without subtracting two large sums."""
        return jnp.sum(self.gradient(0.5 * (old + new)) * (old - new))


@dataclasses.dataclass(frozen=True)
class View:
    """A part of a parameter, in the shape in which its groups lie along axes.

    Args:
      axis: int or tuple; one group per index along it, in this order, of the array after window and reshape.
      shape: reshape to it after the window; None: as it is.
      window: (start, stop) along each axis of the parameter; None: all of it.

    Raises:
      ValueError: from `viewed`, naming path and shape, where it does not fit a parameter.

    Example:
      >>> import jax.numpy as jnp, ramda_jax as rj
      >>> flat = jnp.arange(12.0).reshape(6, 2)  # flattened from 3 positions of 2 channels, channels last
      >>> rj.View(axis=1, shape=(3, 2, 2)).take(flat)[:, 0].shape  # what reads the first channel
      (3, 2)
    """

    axis: int | tuple[int, ...]
    shape: tuple[int, ...] | None = None
    window: Window | None = None

    @property
    def axes(self) -> tuple[int, ...]:
        """`axis` as a tuple."""
        return (self.axis,) if isinstance(self.axis, int) else self.axis

    def viewed(self, path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the view of a parameter of this shape."""
        if self.window is not None:
            fits = len(self.window) == len(shape) and all(
                0 <= start < stop <= n for (start, stop), n in zip(self.window, shape, strict=False)
            )
            if not fits:
                raise ValueError(
                    f"the window {self.window} does not fit {path!r} of shape {shape}."
                )
            shape = tuple(stop - start for start, stop in self.window)
        if self.shape is not None:
            if math.prod(self.shape) != math.prod(shape):
                raise ValueError(f"{path!r}: {shape} entries cannot be viewed as {self.shape}.")
            shape = self.shape
        ndim = len(shape)
        in_range = all(-ndim <= a < ndim for a in self.axes)
        if not in_range or len({a % ndim for a in self.axes}) < len(self.axes):
            raise ValueError(
                f"axis {self.axis} cannot hold the groups of {path!r} viewed as {shape}: each must be one of its "
                f"{ndim} axes, and different."
            )
        return tuple(shape)

    @property
    def is_plain(self) -> bool:
        """Whether it is the whole parameter as it is."""
        return self.shape is None and self.window is None

    def take(self, x: jax.Array) -> jax.Array:
        """The view of x."""
        if self.window is not None:
            starts, stops = zip(*self.window, strict=True)
            x = jax.lax.slice(x, starts, stops)
        return x if self.shape is None else x.reshape(self.shape)

    def put(self, whole: jax.Array, part: jax.Array) -> jax.Array:
        """`whole` with the part that is viewed replaced."""
        if self.window is None:
            return part.reshape(whole.shape)
        sizes = tuple(stop - start for start, stop in self.window)
        starts = tuple(start for start, _ in self.window)
        return jax.lax.dynamic_update_slice(whole, part.reshape(sizes), starts)


@dataclasses.dataclass(frozen=True)
class Member:
    """One array of a block.

    Attributes:
      leaf: its place among the leaves of the parameters.
      path: its path.
      shape: of the whole parameter, wherever parts of it lie.
      view: what of it belongs to the block, and where its groups lie; None: all, as the regularizer has it.
    """

    leaf: int
    path: str
    shape: tuple[int, ...]
    view: View | None = None

    @property
    def is_plain(self) -> bool:
        """Whether the member is the whole parameter as it is."""
        return self.view is None or self.view.is_plain

    @property
    def window(self) -> Window:
        """What of the parameter belongs to the block."""
        window = None if self.view is None else self.view.window
        return tuple((0, n) for n in self.shape) if window is None else window

    def take(self, x: jax.Array) -> jax.Array:
        """The member's view of an array like the parameter."""
        return x if self.view is None else self.view.take(x)

    def put(self, whole: jax.Array, part: jax.Array) -> jax.Array:
        """An array like the parameter with the member's view of it replaced."""
        if self.view is None or self.view.is_plain:
            return part
        return self.view.put(whole, part)


def meet(one: Window, other: Window) -> bool:
    """Whether two windows of a parameter have entries in common."""
    return all(a < d and c < b for (a, b), (c, d) in zip(one, other, strict=True))


@dataclasses.dataclass(frozen=True)
class Block:
    """The unit of the step: arrays whose groups are solved together.

    Attributes:
      name: the path of the single member, or a name that says which of its kind the block is.
      psi: the regularizer of the block seen as one array (`join`).
      members: at least one.
    """

    name: str
    psi: Regularizer
    members: tuple[Member, ...]

    @property
    def is_single(self) -> bool:
        """Whether it is one whole parameter as it is."""
        return len(self.members) == 1 and self.members[0].is_plain

    @property
    def leaves(self) -> tuple[int, ...]:
        """The places of its members, each once."""
        return tuple(dict.fromkeys(m.leaf for m in self.members))

    def member_shape(self, k: int) -> tuple[int, ...]:
        """The shape of the view of a member."""
        member = self.members[k]
        return (
            member.shape if member.view is None else member.view.viewed(member.path, member.shape)
        )

    def axes(self, k: int) -> tuple[int, ...]:
        """Along which axes of the view of a member groups lie, in their order."""
        ndim = len(self.member_shape(k))
        psi: Any = self.psi  # without views, of group norms only: those have axes
        view = self.members[k].view
        axes = psi.given_axes if view is None else view.axes
        return tuple(a % ndim for a in axes) if ndim else ()

    @property
    def number(self) -> int:
        """How many groups there are, for group norms."""
        shape = self.member_shape(0)
        return math.prod(shape[a] for a in self.axes(0))

    @property
    def group_size(self) -> int:
        """Entries per group, in all members, for group norms."""
        sizes = [math.prod(self.member_shape(k)) for k in range(len(self.members))]
        return sum(sizes) // max(self.number, 1)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the block as one array."""
        if len(self.members) == 1:
            return self.member_shape(0)
        return (self.number, self.group_size)

    def join(self, arrays: Sequence[jax.Array]) -> jax.Array:
        """The block as one array, from one view per member (or parts of the groups of each): groups over entries where
        there are several."""
        if len(arrays) == 1:
            return arrays[0]
        rows = []
        for k, x in enumerate(arrays):
            order = self._order(k)
            number = math.prod(x.shape[a] for a in self.axes(k))
            rows.append(jnp.transpose(_numerics.whole(x), order).reshape(number, -1))
        return jnp.concatenate(rows, axis=1)

    def split(self, x: jax.Array, like: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        """The inverse of `join`; `like`: arrays of the shapes wanted."""
        if len(like) == 1:
            return (x,)
        parts, start = [], 0
        for k, model in enumerate(like):
            order = self._order(k)
            width = model.size // max(x.shape[0], 1)
            rows = jax.lax.slice_in_dim(x, start, start + width, axis=1)
            rows = rows.reshape(tuple(model.shape[a] for a in order))
            part = jnp.transpose(rows, tuple(order.index(a) for a in range(len(order))))
            parts.append(_numerics.cut_like(part, model))
            start += width
        return tuple(parts)

    def _order(self, k: int) -> tuple[int, ...]:
        """The axes of a member, those of the groups first."""
        axes = self.axes(k)
        return (*axes, *(a for a in range(len(self.member_shape(k))) if a not in axes))


@dataclasses.dataclass(frozen=True)
class Along:
    """How the groups of a problem lie in one of its arrays.

    Attributes:
      axes: along which groups lie, in their order.
      number: of all groups, where several arrays share them: their sums are vectors of this length. None: there is one
        array, and its sums keep its axes (the reduced ones with length 1), and its sharding.
      cut: the mesh axes over which this array is cut along its groups while the vector is whole; inside `shard_map`.
      copies: the mesh axes over which sums run though this array is the same along them.
    """

    axes: tuple[int, ...]
    number: int | None = None
    cut: Names = ()
    copies: Names = ()

    def sum(self, x: jax.Array) -> jax.Array:
        """The sum over each group."""
        others = tuple(a for a in range(x.ndim) if a not in self.axes)
        if self.number is None:
            return jnp.sum(x, axis=others, keepdims=True)
        y = _numerics.whole(jnp.sum(x, axis=others))
        y = jnp.transpose(y, [sorted(self.axes).index(a) for a in self.axes]).reshape(-1)
        if self.cut:
            start = jax.lax.axis_index(self.cut) * y.size
            y = jax.lax.dynamic_update_slice_in_dim(_zeros(self.number, y), y, start, 0)
        if self.copies:
            y = jnp.where(jax.lax.axis_index(self.copies) == 0, y, jnp.zeros_like(y))
        return y

    def spread(self, r: jax.Array, like: jax.Array) -> jax.Array:
        """A number per group, so that it broadcasts against an array like this one."""
        if self.number is None:
            return r
        sizes = [like.shape[a] for a in self.axes]
        if self.cut:
            length = math.prod(sizes)
            start = jax.lax.axis_index(self.cut) * length
            r = jax.lax.dynamic_slice_in_dim(r, start, length)
        r = jnp.transpose(r.reshape(sizes), [self.axes.index(a) for a in sorted(self.axes)])
        r = jnp.expand_dims(r, [a for a in range(like.ndim) if a not in self.axes])
        return _numerics.cut_like(r, like)


def _zeros(number: int, like: jax.Array) -> jax.Array:
    """A vector of zeros, of a type that varies over the devices over which `like` does."""
    return jnp.zeros((number,), like.dtype) + 0 * jnp.sum(like[:1])


class Part(NamedTuple):
    """What a subproblem reads of one member, as the member views it: the accumulators, and W^{t-1}."""

    arrays: tuple[jax.Array, ...]
    start: jax.Array


class Subproblem(NamedTuple):
    """The problem of one block, or of some of its groups.

    Attributes:
      block: what it is a problem of; its shapes are those of whole arrays.
      parts: one per member.
      scalars: 0-d arrays that go with them, in their dtype.
      pieces: see `Pieces`.
      weight: w, 0-d.
      psi: the block's regularizer, its strengths 0-d arrays of the same dtype.
      resident: whether the arrays are few enough to stay in a cache: then v, x0 and D are made once and kept; otherwise
        recomputed wherever they are needed, because keeping them would cost parameter-sized temporaries.
      along, names: where the groups lie across devices: how they lie in each part, and the mesh axes over which sums run.
    """

    block: Block
    parts: tuple[Part, ...]
    scalars: tuple[jax.Array, ...]
    pieces: Pieces
    weight: jax.Array
    psi: Regularizer
    resident: bool = False
    along: tuple[Along, ...] = ()
    names: Names = ()

    def smooth(self, k: int, tie: Tie = lambda x: x) -> Quadratic:
        """The smooth part of a member; `tie` is applied to every array before use."""
        part = tie(self.parts[k])
        return Quadratic(*self.pieces(part.arrays, part.start, self.scalars))

    @property
    def starts(self) -> list[jax.Array]:
        """W^{t-1} of every member."""
        return [part.start for part in self.parts]

    def split(self, x: jax.Array) -> tuple[jax.Array, ...]:
        """One array per member from the block as one array."""
        return self.block.split(x, self.starts)

    def whole(self) -> Whole:
        """The problem of the block as one array."""
        smooths = [self.smooth(k) for k in range(len(self.parts))]
        v, x0, d = zip(*smooths, strict=True)
        join = lambda xs: xs[0] if xs[0].ndim == 0 else self.block.join(xs)
        start = self.block.join(self.starts)
        return Whole(Quadratic(join(v), join(x0), join(d)), self.weight, self.psi, start)


class Whole(NamedTuple):
    """The problem of a block as one array: `smooth` + `weight` psi; `start` is W^{t-1}."""

    smooth: Quadratic
    weight: jax.Array
    psi: Regularizer
    start: jax.Array

    def in_units(self) -> tuple[Whole, jax.Array]:
        """(The same with v, D and the weight in units of about max D, this unit).

        Then Q is of the size of ||x||^2, and leaves the float range only where that does. A power of two: nothing is
        rounded.
        """
        v, _, d = self.smooth
        exponent = jnp.frexp(jnp.max(d, initial=jnp.finfo(d.dtype).tiny))[1] - 1
        unit, inverse = (jnp.ldexp(jnp.ones([], d.dtype), sign * exponent) for sign in (1, -1))
        # Not quotients: XLA makes (v / unit) / (d / unit) one of two products, which overflow.
        smooth = self.smooth._replace(v=inverse * v, d=inverse * d)
        return self._replace(smooth=smooth, weight=inverse * self.weight), unit


class Solution(NamedTuple):
    """The minimiser of one block and its certificate.

    Attributes:
      x: the minimiser; one array per member, as it views its parameter.
      warm: what the next solve may start from, and from which `Solver.recall` finds x again; as `Solver.init` made it.
      iterations: int32, 0-d.
      residual: a bound on the least ||s||, s in dQ(x): condition (7) of the paper; 0-d.
    """

    x: tuple[jax.Array, ...]
    warm: Any
    iterations: jax.Array
    residual: jax.Array


def single(leaf: int, path: str, shape: tuple[int, ...], psi: Regularizer) -> Block:
    """The block of one parameter as it is."""
    return Block(path, psi, (Member(leaf, path, shape),))


def several(name: str, members: Sequence[Member], psi: GroupNorm) -> Block:
    """The block of members that are views; `psi` as the user gave it, its axes replaced by the members'."""
    axis = members[0].view.axis if len(members) == 1 and members[0].view is not None else 0
    return Block(name, psi.along(axis), tuple(members))
