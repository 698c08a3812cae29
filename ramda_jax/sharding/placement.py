"""Where the arrays of a step lie on several devices: which axis of each array is cut, over which devices.

Data-parallel devices hold the same parameters. Nothing forces them to hold the same state, or to solve the same
subproblems: cut along an axis that separates groups, every device owns a part of V, U and W^0 and solves the groups in
it, without a word to the others (ZeRO stage 1). What is cut where follows from shapes and regularizers alone, so it is
never stored.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ramda_jax import _numerics, trees
from ramda_jax.subproblem import Block

# An array without an axis that separates groups and divides by the devices is cut across groups if it has at least so many
# entries: below, keeping it whole costs less than talking in every iteration.
LARGE = 1 << 20

Names = tuple[str, ...]


class ParamSpecs(tuple[tuple[str, PartitionSpec], ...]):
    """Pairs (path of a parameter, how it is cut)."""

    __slots__ = ()


@dataclasses.dataclass(frozen=True)
class Placement:
    """Spreads the state of a method, and the work of its step, over devices.

    Give it to a method (`ramda(..., placement=...)`). With a mesh, `init` and `update` are called on global arrays, under
    `jax.jit`; without one, inside `jax.shard_map` or `jax.pmap` which bind `axis`: there parameters and gradients (already
    averaged) are whole on every device, the state is the device's part, and the updates come back whole.
    Where `axis` is not bound, a placement without a mesh changes nothing.

    Each array of the state is cut over `axis` along the longest of its axes that separate groups and divide by the
    number of devices. Where there is none, it stays whole on each device, or, from a million entries on, is cut across
    its groups, which costs one sum over devices per iteration. A matrix under the nuclear norm is cut anyhow, and brought
    together once per step on the one device that decomposes it.

    Args:
      axis: the mesh axis (or axes) over which parameters are replicated: that of the data.
      mesh: of `jax.sharding`, or None.
      params: how the parameters are cut by themselves (fully sharded, tensor-parallel): a pytree of `PartitionSpec`s,
        `NamedSharding`s or arrays like the parameters; None: they are not. Needs a mesh. The state is then cut as they
        are, and over `axis` besides where they are not cut over it. Explicit meshes know it without being told.

    Raises:
      ValueError: if the mesh has no such axis, or `params` holds anything else.

    Example:
      >>> import jax, jax.numpy as jnp, ramda_jax as rj
      >>> mesh = jax.make_mesh((1,), ("data",))
      >>> tx = rj.ramda(1e-2, rj.GroupLasso(1e-3), placement=rj.Placement("data", mesh))
      >>> params = {"kernel": jnp.ones((8, 4))}
      >>> state = jax.jit(tx.init, out_shardings=rj.state_sharding(tx, params))(params)

    Source: Rajbhandari et al., ZeRO: memory optimizations toward training trillion parameter models, SC 2020.
    """

    axis: str | Names = "data"
    mesh: Mesh | None = None
    params: Any = None

    def __post_init__(self) -> None:
        names = (self.axis,) if isinstance(self.axis, str) else self.axis
        if not isinstance(names, tuple) or not names or not all(isinstance(n, str) for n in names):
            raise ValueError(
                f"Placement.axis must be a name or a tuple of names, got {self.axis!r}."
            )
        if self.mesh is not None:
            if not isinstance(self.mesh, Mesh):
                raise ValueError(f"Placement.mesh must be a jax.sharding.Mesh, got {self.mesh!r}.")
            missing = [n for n in names if n not in self.mesh.shape]
            if missing:
                raise ValueError(
                    f"Placement.axis: the mesh has no axis {missing[0]!r}, only {self.mesh.axis_names}."
                )
        if self.params is not None:
            if self.mesh is None:
                raise ValueError("Placement.params needs a mesh.")
            object.__setattr__(self, "params", _param_specs(self.params))

    @property
    def names(self) -> Names:
        return (self.axis,) if isinstance(self.axis, str) else self.axis

    def __reduce__(self) -> Any:
        """To pickle: devices cannot be, so a mesh goes by their numbers, and is left out where they are not."""
        mesh = None if self.mesh is None else mesh_to_parts(self.mesh)
        return _unpickled, (self.axis, mesh, self.params)


def _unpickled(axis: str | Names, mesh: tuple | None, params: Any) -> Placement:
    found = None if mesh is None else mesh_from_parts(*mesh)
    return Placement(axis, found, None if found is None else params)


def mesh_to_parts(mesh: Mesh) -> tuple[Any, ...]:
    """(names of the axes, their lengths, their kinds, the numbers of the devices)."""
    kinds = tuple(kind.name for kind in mesh.axis_types)
    ids = tuple(int(d.id) for d in mesh.devices.flat)
    return tuple(mesh.axis_names), tuple(int(n) for n in mesh.devices.shape), kinds, ids


def mesh_from_parts(
    names: Names, shape: tuple[int, ...], kinds: tuple[str, ...], ids: tuple[int, ...]
) -> Mesh | None:
    """The inverse of `mesh_to_parts`; None where there are no such devices."""
    here = {d.id: d for d in jax.devices()}
    if not set(ids) <= set(here):
        return None
    devices = np.array([here[i] for i in ids]).reshape(shape)
    return Mesh(devices, names, axis_types=tuple(jax.sharding.AxisType[kind] for kind in kinds))


def _param_specs(tree: Any) -> ParamSpecs:
    if isinstance(tree, ParamSpecs):
        return tree
    is_spec = lambda x: x is None or isinstance(x, (PartitionSpec, jax.sharding.Sharding))
    paths, leaves, _ = trees.flatten(tree, is_leaf=is_spec)
    specs = []
    for path, leaf in zip(paths, leaves, strict=True):
        spec = PartitionSpec() if leaf is None else spec_of(leaf)
        if spec is None:
            raise ValueError(
                f"Placement.params at {path!r} must be a PartitionSpec or a NamedSharding, got {leaf!r}."
            )
        specs.append((path, spec))
    return ParamSpecs(specs)


def spec_of(x: Any) -> PartitionSpec | None:
    """How x says that it is cut, if it says so: a `PartitionSpec`, a `NamedSharding`, or an array that has one."""
    if isinstance(x, PartitionSpec):
        return x
    sharding = x if isinstance(x, jax.sharding.Sharding) else getattr(x, "sharding", None)
    return sharding.spec if isinstance(sharding, NamedSharding) else None


def _spec_of_type(x: Any) -> PartitionSpec | None:
    return spec_of(x if isinstance(x, jax.ShapeDtypeStruct) else jax.typeof(x))


class Cut(NamedTuple):
    """How one array of parameters, and the arrays of the state that belong to it, are cut.

    Attributes:
      shape: of the whole array.
      params: for each axis the mesh axes over which the parameter is cut.
      state: the same for the state; contains `params`.
    """

    shape: tuple[int, ...]
    params: tuple[Names, ...]
    state: tuple[Names, ...]

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes that are cut in the state."""
        return tuple(k for k, names in enumerate(self.state) if names)

    @property
    def names(self) -> Names:
        """The mesh axes over which the state is cut."""
        return tuple(name for names in self.state for name in names)

    def layout(self, shape: tuple[int, ...]) -> tuple[Names, ...]:
        """How an array of the state that belongs to this one is cut: one of the same axes, of which some may be 1 (a
        number per group), or one of several such arrays, stacked; anything else is not cut."""
        if len(shape) == len(self.shape):
            same = zip(self.state, shape, self.shape, strict=True)
            return tuple(names if n == whole else () for names, n, whole in same)
        if shape[1:] == self.shape:
            return ((), *self.state)
        return ((),) * len(shape)


def spec(layout: Sequence[Names]) -> PartitionSpec:
    """As JAX writes it."""
    return PartitionSpec(*(names if len(names) > 1 else (*names, None)[0] for names in layout))


def cuts(
    placement: Placement,
    sizes: Mapping[str, int],
    paths: Sequence[str],
    leaves: Sequence[Any],
    blocks: Sequence[Block],
) -> tuple[Cut, ...]:
    """How every array is cut.

    Args:
      placement: what the user wants.
      sizes: devices along each mesh axis.
      paths, leaves: of the parameters, whole.
      blocks: what is regularized.

    Raises:
      ValueError: for a parameter of which `Placement.params` says nothing.
    """
    separating = separating_axes(blocks)
    own = params_layouts(placement, paths, leaves)
    return tuple(
        Cut(
            tuple(x.shape),
            layout,
            _state_layout(placement, sizes, tuple(x.shape), layout, separating.get(i, _ALL)),
        )
        for i, (x, layout) in enumerate(zip(leaves, own, strict=True))
    )


# Of an array that is in no block.
_ALL = None
# Of an array that is seen through windows or reshapes: it is not cut, because its parts could not be seen so.
_VIEWED = "viewed"


def separating_axes(blocks: Sequence[Block]) -> dict[int, Any]:
    """By the place of a parameter: along which of its axes groups are separated, or `_VIEWED`."""
    found: dict[int, Any] = {}
    for block in blocks:
        for k, member in enumerate(block.members):
            if not member.is_plain:
                found[member.leaf] = _VIEWED
            elif len(block.members) == 1:
                found[member.leaf] = block.psi.separable_axes(member.shape)
            else:  # cut alike in all members, or not at all
                axes = block.axes(k)
                found[member.leaf] = axes if len(axes) == 1 else ()
    return found


def map_warm(
    function: Callable[[Any, tuple[Names, ...]], Any],
    blocks: Sequence[Block],
    cuts: Sequence[Cut],
    warm: Sequence[Any],
) -> tuple[Any, ...]:
    """A function of the warm start of every block, or of what is laid out like it, and of how it is cut; None of None."""
    pairs = zip(blocks, warm, strict=True)
    return tuple(None if x is None else function(x, _warm_layout(b, cuts, x)) for b, x in pairs)


def _warm_layout(block: Block, cuts: Sequence[Cut], warm: Any) -> tuple[Names, ...]:
    if block.is_single:
        return cuts[block.members[0].leaf].layout(warm.shape)
    if len(warm.shape) == 1 and len(block.members) > 1:
        return (common_names(block, cuts),)
    return ((),) * len(warm.shape)


def common_names(block: Block, cuts: Sequence[Cut]) -> Names:
    """The mesh axes over which all members of a block are cut along their groups; none unless it is the same for all."""
    along = {group_names(block, k, cuts) for k in range(len(block.members))}
    return along.pop() if len(along) == 1 else ()


def group_names(block: Block, k: int, cuts: Sequence[Cut]) -> Names:
    """The mesh axes over which one plain member is cut along its groups."""
    member = block.members[k]
    if not member.is_plain:
        return ()
    return tuple(name for a in block.axes(k) for name in cuts[member.leaf].state[a])


def params_layouts(
    placement: Placement, paths: Sequence[str], leaves: Sequence[Any]
) -> list[tuple[Names, ...]]:
    """How the parameters are cut by themselves."""
    given = None if placement.params is None else dict(placement.params)
    typed = placement.mesh is not None and _numerics.is_explicit(placement.mesh)
    layouts = []
    for path, leaf in zip(paths, leaves, strict=True):
        if given is None:
            chosen = _spec_of_type(leaf) if typed else None
        elif path in given:
            chosen = given[path]
        else:
            raise ValueError(f"Placement.params says nothing of {path!r}; it has {sorted(given)}.")
        layouts.append(as_layout(chosen, len(leaf.shape)))
    return layouts


def as_layout(chosen: PartitionSpec | None, ndim: int) -> tuple[Names, ...]:
    """The mesh axes of each axis of an array that is cut so; None: not at all."""
    entries = [*(chosen or ()), *[None] * ndim][:ndim]
    return tuple((e,) if isinstance(e, str) else tuple(e or ()) for e in entries)


def _state_layout(
    placement: Placement,
    sizes: Mapping[str, int],
    shape: tuple[int, ...],
    layout: tuple[Names, ...],
    separating: Any,
) -> tuple[Names, ...]:
    if separating == _VIEWED or set(placement.names) & {name for names in layout for name in names}:
        return layout
    devices = math.prod(sizes[name] for name in placement.names)
    free = [
        k
        for k, n in enumerate(shape)
        if not layout[k] and n > 0 and devices > 1 and n % devices == 0
    ]
    best = free if separating is _ALL else [k for k in free if k in separating]
    if not best and (not separating or math.prod(shape) >= LARGE):
        best = free
    if not best:
        return layout
    chosen = max(best, key=shape.__getitem__)
    return tuple(placement.names if k == chosen else names for k, names in enumerate(layout))


def lay(x: Any, mesh: Mesh, layout: Sequence[Names]) -> Any:
    """x, cut so; abstract arrays only say so."""
    sharding = NamedSharding(mesh, spec(layout))
    if isinstance(x, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    if _numerics.is_explicit(mesh):
        return jax.sharding.reshard(x, sharding)
    return jax.lax.with_sharding_constraint(x, sharding)


def part(x: Any, layout: Sequence[Names]) -> Any:
    """This device's part of x, which is whole; inside `shard_map` or `pmap`."""
    for axis, names in enumerate(layout):
        if names:
            length = x.shape[axis] // jax.lax.axis_size(names)
            if isinstance(x, jax.ShapeDtypeStruct):
                shape = tuple(length if k == axis else n for k, n in enumerate(x.shape))
                x = jax.ShapeDtypeStruct(shape, x.dtype)
            else:
                start = jax.lax.axis_index(names) * length
                x = jax.lax.dynamic_slice_in_dim(x, start, length, axis)
    return x


def gather(x: jax.Array, layout: Sequence[Names], to: str = "varying") -> jax.Array:
    """The whole of which x is this device's part; inside `shard_map` or `pmap`.

    Args:
      x: the part.
      layout: how it is cut.
      to: "invarying" where the result is to count as the same on all devices.
    """
    for axis, names in enumerate(layout):
        if names:
            x = jax.lax.all_gather(x, names, axis=axis, tiled=True, to=to)
    return x
