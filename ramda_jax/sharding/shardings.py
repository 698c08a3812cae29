"""The shardings of a whole optimizer state, for `jit`, `device_put` and checkpoints."""

from collections.abc import Sequence
from typing import Any

import jax
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ramda_jax import trees
from ramda_jax.methods.base import accumulators_of
from ramda_jax.sharding import placement
from ramda_jax.sharding.placement import Cut, Placement
from ramda_jax.state import ProximalState, SolverState, is_state
from ramda_jax.subproblem import Block
from ramda_jax.trees import ArrayTree


def state_sharding(
    tx: optax.GradientTransformation, params: ArrayTree, mesh: Mesh | None = None
) -> Any:
    """Where every array of the state of `tx` lies on a mesh.

    The accumulators and warm starts of this library's methods are cut as their `Placement` says: each device holds its
    share. Without a placement they lie as the parameters do. The parameter-sized arrays of other
    transformations in a chain lie as the parameters do; scalars, and what else there is, on every device.

    Args:
      tx: one of this library's methods, or a chain or partition with some in it.
      params: arrays or `jax.ShapeDtypeStruct`s; their `NamedSharding`s, if they have any, say how they lie, unless
        `Placement.params` does.
      mesh: None: that of the placement, or else that of the parameters.

    Returns:
      A pytree of `NamedSharding`s with the structure of `tx.init(params)`: for `jax.jit(tx.init, out_shardings=...)`, and
      for `jax.jit(update, in_shardings=..., out_shardings=...)`. Its `spec`s are the `in_specs` and `out_specs` of
      `jax.shard_map` for a placement without a mesh.

    Raises:
      ValueError: if there is no mesh anywhere, or it lacks an axis of the placement.

    Example:
      >>> import jax, jax.numpy as jnp, ramda_jax as rj
      >>> mesh = jax.make_mesh((1,), ("data",))
      >>> tx = rj.ramda(1e-2, rj.GroupLasso(1e-3), placement=rj.Placement("data", mesh))
      >>> params = {"kernel": jnp.ones((8, 4))}
      >>> state = jax.jit(tx.init, out_shardings=rj.state_sharding(tx, params))(params)
      >>> state.method.grad_sum["kernel"].sharding.mesh == mesh
      True
    """
    abstract = jax.eval_shape(tx.init, params)
    states = [s for s in jax.tree.leaves(abstract, is_leaf=is_state) if is_state(s)]
    mesh = mesh or _mesh_of(states, params)
    own = _own_layouts(states, params)

    def of(key_path: Any, node: Any) -> Any:
        if is_state(node):
            return _shardings(node, mesh, own)
        return NamedSharding(mesh, placement.spec(_as_a_parameter(key_path, node, own)))

    return jax.tree_util.tree_map_with_path(of, abstract, is_leaf=is_state)


def _own_layouts(
    states: list[ProximalState], params: ArrayTree
) -> dict[str, tuple[placement.Names, ...]]:
    """How the parameters lie by themselves, by path."""
    paths, leaves, _ = trees.flatten(params)
    told = [p.params for s in states if (p := _placement(s)) is not None and p.params is not None]
    specs = dict(told[0]) if told else {}
    chosen = [specs.get(path, placement.spec_of(x)) for path, x in zip(paths, leaves, strict=True)]
    layouts = [placement.as_layout(c, len(x.shape)) for c, x in zip(chosen, leaves, strict=True)]
    return dict(zip(paths, layouts, strict=True))


def _as_a_parameter(
    key_path: Any, x: Any, own: dict[str, tuple[placement.Names, ...]]
) -> tuple[placement.Names, ...]:
    """How the parameter lies at whose path, and in whose shape, an array of another transformation is."""
    names = trees.path_string(key_path).split("/")
    endings = ("/".join(names[k:]) for k in range(len(names)))
    found = next((own[ending] for ending in endings if ending in own), ())
    return found if len(found) == len(x.shape) else ()


def _mesh_of(states: list[ProximalState], params: ArrayTree) -> Mesh:
    meshes: list[Any] = [
        p.mesh for s in states if (p := _placement(s)) is not None and p.mesh is not None
    ]
    shardings = [getattr(x, "sharding", None) for x in jax.tree.leaves(params)]
    meshes += [s.mesh for s in shardings if isinstance(s, NamedSharding)]
    if not meshes:
        raise ValueError(
            "state_sharding needs a mesh: give one, or a Placement with one, or parameters that lie on one."
        )
    return meshes[0]


def _placement(state: ProximalState) -> Placement | None:
    return state.solver.plan.placement if isinstance(state.solver, SolverState) else None


def _shardings(
    state: ProximalState, mesh: Mesh, own: dict[str, tuple[placement.Names, ...]]
) -> ProximalState:
    """Those of one state; `own`: how each parameter lies."""
    whole: Any = NamedSharding(mesh, PartitionSpec())  # in the places of arrays
    if not isinstance(state.solver, SolverState):
        return jax.tree.map(lambda _: whole, state)
    cuts = _cuts(state, mesh, own)
    named = lambda cut, x: NamedSharding(mesh, placement.spec(cut.layout(x.shape)))

    def of_tree(tree: ArrayTree) -> Any:
        leaves, treedef = jax.tree.flatten(tree)
        return jax.tree.unflatten(treedef, [named(c, x) for c, x in zip(cuts, leaves, strict=True)])

    method = jax.tree.map(lambda _: whole, state.method)
    names = state.method.accumulators
    method = method._replace(**{name: of_tree(getattr(state.method, name)) for name in names})
    solver = jax.tree.map(lambda _: whole, state.solver)

    def of_blocks(blocks: Sequence[Block], arrays: Sequence[Any]) -> tuple[Any, ...]:
        sharding = lambda _, names: NamedSharding(mesh, placement.spec(names))
        return placement.map_warm(sharding, blocks, cuts, arrays)

    solver = solver._replace(warm=of_blocks(state.solver.plan.blocks, state.solver.warm))
    if state.solver.targets is not None:
        aimed = [state.solver.plan.blocks[i] for i in state.solver.plan.aimed]
        solver = solver._replace(
            targets=solver.targets._replace(masks=of_blocks(aimed, state.solver.targets.masks))
        )
    return ProximalState(whole, method, solver)


def _cuts(
    state: ProximalState, mesh: Mesh, own: dict[str, tuple[placement.Names, ...]]
) -> tuple[Cut, ...]:
    paths, leaves, _ = trees.flatten(accumulators_of(state.method)[0])
    where = _placement(state)
    if where is None:
        layouts = [own[path] for path in paths]
        return tuple(Cut(x.shape, lay, lay) for x, lay in zip(leaves, layouts, strict=True))
    missing = [name for name in where.names if name not in mesh.shape]
    if missing:
        raise ValueError(
            f"state_sharding: the mesh has no axis {missing[0]!r}, only {mesh.axis_names}."
        )
    return placement.cuts(where, mesh.shape, paths, leaves, state.solver.plan.blocks)
