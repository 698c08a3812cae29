"""How a step meets its arrays: together on one device (or as the partitioner cuts them), on a mesh, or in parts.

Three classes with the same methods, in the order of a step: `cut` what comes in whole, `run`, `join` what goes out.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import chex
import jax
from jax.sharding import Mesh, PartitionSpec

from ramda_jax import assignment, execution, parts, placement
from ramda_jax.placement import Cut, Names, Placement
from ramda_jax.regularizers import Regularizer
from ramda_jax.solvers import Solver

Solvers = tuple[Solver | None, ...]


class Together:
    """No placement: arrays are as they are."""

    def cut(self, arrays: Sequence[Any]) -> list[Any]:
        """The arrays of the state's layout (one per parameter, or empty) from whole ones."""
        return list(arrays)

    def run(
        self,
        method: execution.Method,
        solvers: Solvers,
        leaves: Sequence[execution.Leaf],
        scalars: execution.Scalars,
    ) -> Sequence[execution.Result]:
        """The step of every leaf."""
        return execution.run(method, solvers, tuple(leaves), scalars)

    def join(self, arrays: Sequence[Any]) -> list[Any]:
        """Arrays of the parameters' layout from those of the state's."""
        return list(arrays)


@dataclasses.dataclass(frozen=True)
class OnMesh:
    """Global arrays, cut over a mesh: every device runs the step of its parts."""

    mesh: Mesh
    cuts: tuple[Cut, ...]

    def cut(self, arrays: Sequence[Any]) -> list[Any]:
        pairs = zip(arrays, self.cuts, strict=True)
        return [placement.lay(x, self.mesh, cut.layout(x.shape)) for x, cut in pairs]

    def run(
        self,
        method: execution.Method,
        solvers: Solvers,
        leaves: Sequence[execution.Leaf],
        scalars: execution.Scalars,
    ) -> Sequence[execution.Result]:
        return _run_on_mesh(method, solvers, self, tuple(leaves), scalars)

    def join(self, arrays: Sequence[Any]) -> list[Any]:
        pairs = zip(arrays, self.cuts, strict=True)
        return [placement.lay(x, self.mesh, cut.params) for x, cut in pairs]


@functools.partial(jax.jit, static_argnums=(0, 1, 2), inline=True)
def _run_on_mesh(
    method: execution.Method,
    solvers: Solvers,
    layout: OnMesh,
    leaves: tuple[execution.Leaf, ...],
    scalars: execution.Scalars,
) -> tuple[execution.Result, ...]:
    mesh, cuts = layout.mesh, layout.cuts
    everywhere = PartitionSpec()

    def body(leaves: Any, scalars: Any) -> tuple[execution.Result, ...]:
        return tuple(parts.run(method, solvers, cuts, mesh.axis_names, leaves, scalars))

    def specs(cut: Cut, leaf: execution.Leaf) -> tuple[execution.Leaf, execution.Result]:
        own = placement.spec(cut.state)
        warm = placement.spec(cut.layout(leaf.warm.shape))
        arrays = (own,) * len(leaf.arrays)
        grad, psi = None if leaf.grad is None else own, jax.tree.map(lambda _: everywhere, leaf.psi)
        return (
            execution.Leaf(arrays, grad, own, warm, psi),
            execution.Result(arrays, own, warm, everywhere, everywhere),
        )

    pairs = [specs(cut, leaf) for cut, leaf in zip(cuts, leaves, strict=True)]
    mapped = jax.shard_map(
        body,
        mesh=mesh,
        in_specs=(tuple(before for before, _ in pairs), everywhere),
        out_specs=tuple(after for _, after in pairs),
    )
    return mapped(leaves, scalars)


@dataclasses.dataclass(frozen=True)
class Inside:
    """Within `shard_map` or `pmap`: parameters and gradients whole, the state in parts."""

    names: Names
    cuts: tuple[Cut, ...]

    def cut(self, arrays: Sequence[Any]) -> list[Any]:
        pairs = zip(arrays, self.cuts, strict=True)
        return [placement.part(x, cut.layout(x.shape)) for x, cut in pairs]

    def run(
        self,
        method: execution.Method,
        solvers: Solvers,
        leaves: Sequence[execution.Leaf],
        scalars: execution.Scalars,
    ) -> Sequence[execution.Result]:
        return parts.run(method, solvers, self.cuts, self.names, leaves, scalars)

    def join(self, arrays: Sequence[Any]) -> list[Any]:
        pairs = zip(arrays, self.cuts, strict=True)
        return [placement.gather(x, cut.state, to="invarying") for x, cut in pairs]


Layout = Together | OnMesh | Inside


def layout_of(
    where: Placement | None, params: chex.ArrayTree, regularizers: Sequence[Regularizer | None]
) -> Layout:
    """The layout of a step over these parameters, which are whole."""
    if where is None or not regularizers:
        return Together()
    paths, leaves, _ = assignment.flatten_with_paths(params)
    sizes = _bound(where.names)
    if sizes is not None:
        if where.params is not None:
            raise ValueError(
                "Placement.params: inside shard_map or pmap parameters are whole on every device; "
                "call update under jit instead."
            )
        bare = Placement(where.axis)
        return Inside(where.names, placement.cuts(bare, sizes, paths, leaves, regularizers))
    if where.mesh is None:
        return Together()
    cuts = placement.cuts(where, where.mesh.shape, paths, leaves, regularizers)
    return OnMesh(where.mesh, cuts)


def _bound(names: Names) -> dict[str, int] | None:
    """The sizes of these axes where `shard_map` or `pmap` has bound them."""
    try:
        return {name: jax.lax.axis_size(name) for name in names}
    except NameError:
        return None
