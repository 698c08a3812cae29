"""From what a network is to what is regularized together: assignments for any method."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from ramda_jax.assignment import Assignment, Parameter
from ramda_jax.network.flow import IN
from ramda_jax.network.price import Price
from ramda_jax.network.roles import INPUT, OUT, SCAN, STACK, WINDOW, Cell, Roles
from ramda_jax.network.spaces import Space
from ramda_jax.network.trace import Leaf, bare
from ramda_jax.regularizers import GroupNorm, NuclearNorm, Regularizer
from ramda_jax.subproblem import Block, Member, View, several, single
from ramda_jax.targets import priced


class Entry(NamedTuple):
    """One block to be.

    Attributes:
      name: of the block.
      members: path, shape and view of each; no view: the array as it is.
      rows, stack: axes of the view that are rows of a matrix, or number matrices; for `NuclearNorm`.
    """

    name: str
    members: tuple[tuple[str, tuple[int, ...], View | None], ...]
    rows: tuple[int, ...] | None = None
    stack: tuple[int, ...] = ()


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True)
class FromNetwork(Assignment):
    """What `Network.inputs`, `.matrices` and `.channels` return."""

    entries: tuple[Entry, ...]
    regularizer: Regularizer
    price: Price | None = None

    def blocks(self, params: Sequence[Parameter]) -> list[Block]:
        by_path = {bare(p.path): p for p in params}
        blocks = []
        for entry in self.entries:
            found = [by_path.get(bare(path)) for path, _, _ in entry.members]
            missing = [m[0] for m, p in zip(entry.members, found, strict=True) if p is None]
            if len(missing) == len(found):
                continue
            if missing:
                present = [p.path for p in found if p is not None]
                raise ValueError(
                    f"the block {entry.name!r} lacks {missing}: it has {present}. optax.masked, optax.partition and rules "
                    "of by_path must not split a block."
                )
            blocks.append(self._block(entry, [p for p in found if p is not None]))
        return blocks

    def _block(self, entry: Entry, params: Sequence[Parameter]) -> Block:
        members = []
        for param, (_, shape, view) in zip(params, entry.members, strict=True):
            if param.shape != shape:
                raise ValueError(
                    f"{param.path!r} has shape {param.shape}, but the network was seen with {shape}."
                )
            members.append(Member(param.leaf, param.path, param.shape, view))
        psi = self.regularizer
        if self.price is not None:
            psi = jax.tree.map(functools.partial(priced, price=self.price), psi)
        if isinstance(psi, GroupNorm):
            return several(entry.name, members, psi)
        if isinstance(psi, NuclearNorm) and entry.rows is not None:
            psi = dataclasses.replace(psi, row_axes=entry.rows, stack_axes=entry.stack)
        if members[0].is_plain:
            return single(*params[0], psi)
        return Block(entry.name, psi, tuple(members))

    def check_used(self, blocks: Sequence[Block]) -> None:
        """Raise ValueError naming a parameter of the network that is not there."""
        present = {bare(m.path) for block in blocks for m in block.members}
        missing = [m[0] for e in self.entries for m in e.members if bare(m[0]) not in present]
        if missing:
            raise ValueError(
                f"the network has a parameter {missing[0]!r} that is not among those given ({len(missing)} missing): "
                f"{sorted(present)}."
            )

    def tree_flatten(self) -> tuple[Any, Any]:
        return (self.regularizer,), (self.entries, self.price)

    @classmethod
    def tree_unflatten(cls, static: Any, children: Any) -> "FromNetwork":
        entries, price = static
        (regularizer,) = children
        return cls(entries, regularizer, price)


def inputs(
    every: Sequence[Roles], leaves: Sequence[Leaf], regularizer: Regularizer, *, embeddings: bool
) -> FromNetwork:
    """See `Network.inputs`."""
    _check("inputs", regularizer)
    if isinstance(regularizer, NuclearNorm):
        raise ValueError("inputs: NuclearNorm has no groups per input; use matrices.")

    def entry(name: str, leaf: Leaf, cell: Cell) -> Entry | None:
        index = cell.places((*INPUT, SCAN))
        if not index:
            return None
        view = View(index if len(index) > 1 else index[0], cell.shape, cell.window)
        return Entry(name, ((leaf.path, leaf.shape, view),))

    weights = [(leaves[role.leaf], role) for role in _chosen(every, embeddings=embeddings)]
    entries = _entries(weights, entry if isinstance(regularizer, GroupNorm) else None)
    return _found("inputs", entries, regularizer)


def matrices(
    every: Sequence[Roles], leaves: Sequence[Leaf], regularizer: Regularizer, *, embeddings: bool
) -> FromNetwork:
    """See `Network.matrices`."""
    _check("matrices", regularizer)
    if isinstance(regularizer, GroupNorm):
        raise ValueError(
            "matrices: a regularizer of group norms has no rows and columns; use inputs."
        )

    def entry(name: str, leaf: Leaf, cell: Cell) -> Entry | None:
        rows, columns = cell.places((IN, WINDOW)), cell.places((OUT,))
        if not (rows and columns):
            return None
        plain = cell.window is None and cell.shape is None
        view = None if plain else View((), cell.shape, cell.window)
        return Entry(name, ((leaf.path, leaf.shape, view),), rows, cell.places(STACK))

    weights = [(leaves[role.leaf], role) for role in _chosen(every, embeddings=embeddings)]
    entries = _entries(weights, entry if isinstance(regularizer, NuclearNorm) else None)
    return _found("matrices", entries, regularizer)


def channels(found: Sequence[Space], regularizer: Regularizer, *, writers: bool) -> FromNetwork:
    """See `Network.channels`."""
    _check("channels", regularizer)
    if not isinstance(regularizer, GroupNorm):
        raise ValueError(f"channels needs a regularizer of group norms, got {regularizer!r}.")
    usable = [space for space in found if not space.others]
    taken = [s for space in usable for s in space.readers]
    entries = []
    for space in usable:
        members = list(space.readers)
        for slices in space.writers if writers else ():
            if not any(slices.overlaps(other) for other in taken):
                members.append(slices)
                taken.append(slices)
        triples = tuple((s.path, s.shape, s.view) for s in members)
        entries.append(Entry(f"channels of {space.name}", triples))
    if not entries:
        reasons = [f"{space.name}: {space.others[0]}" for space in found]
        raise ValueError(
            "channels: no channel of this network is read by parameters only. "
            + ("; ".join(reasons) if reasons else "No parameter reads what another makes.")
        )
    return _found("channels", entries, regularizer)


def _check(what: str, regularizer: Any) -> None:
    if not isinstance(regularizer, Regularizer):
        raise ValueError(f"{what} needs a regularizer, got {regularizer!r}.")


def _chosen(every: Sequence[Roles], *, embeddings: bool) -> list[Roles]:
    """The weights of products whose axes are understood; embeddings where asked for."""
    chosen = []
    for role in every:
        used = role.products or (embeddings and role.gathers)
        if used and not role.trouble and (embeddings or not role.tied):
            chosen.append(role)
    return chosen


def _entries(
    weights: Sequence[tuple[Leaf, Roles]], entry: Callable[[str, Leaf, Cell], Entry | None] | None
) -> list[Entry]:
    """Of every cell of every weight its entry; `entry` is None: the weights as they are."""
    if entry is None:
        return [Entry(leaf.path, ((leaf.path, leaf.shape, None),)) for leaf, _ in weights]
    made = [
        entry(name, leaf, cell)
        for leaf, role in weights
        for name, cell in _named(leaf.path, role.cells())
    ]
    return [e for e in made if e is not None]


def _named(path: str, cells: Sequence[Cell]) -> list[tuple[str, Cell]]:
    """Names of the blocks that the cells of a parameter are."""
    used = [c for c in cells if any(f.role is not None for f in c.factors)]
    if len(used) == 1 and used[0].window is None:
        return [(path, used[0])]
    text = lambda c: ",".join(f"{a}:{b}" for a, b in c.window or ())
    return [(f"{path}[{text(c)}]", c) for c in used]


def _found(what: str, entries: Sequence[Entry], regularizer: Regularizer) -> FromNetwork:
    if not entries:
        raise ValueError(f"{what}: no parameter of this network is multiplied with its inputs.")
    return FromNetwork(tuple(entries), regularizer)
