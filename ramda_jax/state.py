"""The state of every method: arrays, and one node without leaves that says what they belong to."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ramda_jax import _numerics, strengths, trees
from ramda_jax.methods.base import Method, accumulators_of
from ramda_jax.regularizers import GroupNorm, Regularizer
from ramda_jax.regularizers.base import Strength
from ramda_jax.sharding import Placement
from ramda_jax.sharding.layout import Layout
from ramda_jax.solvers import Newton, Solver
from ramda_jax.step import Inputs, Outputs
from ramda_jax.subproblem import Block
from ramda_jax.targets import TargetState


class Entry(NamedTuple):
    """One block and how it is solved. Its regularizer has every strength replaced by 1: the values are in the state.

    Attributes:
      target: the mode of its `TargetSparsity`; None: it has none.
    """

    block: Block
    solver: Solver
    target: str | None = None

    def compared(self) -> tuple[Any, ...]:
        """What two entries that are the same have in common."""
        return self.block, type(self.solver), self.target


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """What is regularized and how: the static part of the state, a node without leaves.

    Two plans are the same if their blocks, the kinds of regularizer and solver, and the placement are: so `jax.tree.map`
    goes over states of other strengths and tolerances, and not over states that hold other things. Nothing that is not
    compared is ever read from the plan of a state.
    """

    entries: tuple[Entry, ...]
    placement: Placement | None = None

    @property
    def blocks(self) -> tuple[Block, ...]:
        return tuple(entry.block for entry in self.entries)

    @property
    def aimed(self) -> tuple[int, ...]:
        """The places of the blocks with a target."""
        return tuple(i for i, entry in enumerate(self.entries) if entry.target is not None)

    @property
    def solvers(self) -> tuple[Solver, ...]:
        return tuple(entry.solver for entry in self.entries)

    def compared(self) -> tuple[Any, ...]:
        """What two plans that are the same have in common."""
        return tuple(entry.compared() for entry in self.entries), self.placement

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self.compared() == other.compared()

    def __hash__(self) -> int:
        return hash(self.compared())


class SolverState(NamedTuple):
    """What the solvers keep between steps, and what they say of the last one.

    Attributes:
      plan: static.
      strengths: every strength in force at the last step, in the order of the plan; 1-d. None: there are none.
      warm: the warm start of each block, or None where its solver keeps none.
      iterations: of each block, int32, 1-d; None: there are none.
      residual: certified ||s|| of condition (7) of each block, 1-d, the largest float where nothing is certified; None:
        there are none.
      targets: what the strengths with a target remember; None: there are none.
    """

    plan: Plan
    strengths: jax.Array | None
    warm: tuple[Any, ...]
    iterations: jax.Array | None
    residual: jax.Array | None
    targets: TargetState | None = None

    def psis(self) -> tuple[Regularizer, ...]:
        """The regularizers with the strengths of the last step."""
        templates = [block.psi for block in self.plan.blocks]
        number = len(jax.tree.leaves(templates))
        kept = [] if self.strengths is None else [self.strengths[i] for i in range(number)]
        return strengths.put(templates, kept)


class ProximalState(NamedTuple):
    """The state of every method.

    Attributes:
      count: updates done, int32.
      method: the method's accumulators.
      solver: `SolverState`; one number where params have no leaves: a leaf, so that `optax.tree.map_params`, which makes
        a state of such params, finds no parameters in it.

    Example:
      >>> import jax.numpy as jnp, ramda_jax as rj
      >>> state = rj.ramda(0.1, rj.GroupLasso(0.1)).init({"kernel": jnp.ones((3, 2))})
      >>> int(state.count), state.method.grad_sum["kernel"].shape
      (0, (3, 2))
    """

    count: jax.Array  # type: ignore[assignment]  # it hides tuple.count
    method: Any
    solver: Any

    @property
    def model(self) -> Any:
        """What `method` was called before."""
        return self.method


def is_state(x: Any) -> bool:
    """Whether x is the state of one of this library's methods."""
    return isinstance(x, ProximalState)


def find_states(opt_state: Any) -> list[ProximalState]:
    """All states of this library's methods inside `opt_state`, however deep (chained, masked, wrapped).

    Raises:
      ValueError: if there is none.
    """
    found = [s for s in jax.tree.leaves(opt_state, is_leaf=is_state) if is_state(s)]
    if not found:
        raise ValueError(
            "opt_state holds no state of ramda, rmda, prox_sgd, prox_adamw or prox_ssi."
        )
    return [trees.unwrap(s) for s in found]


def check_fits(state: Any, method: Method, plan: Plan, params: Any) -> None:
    """Raise ValueError naming path, what was found and what was expected unless a state is one of this transformation's.

    Args:
      state: whatever the user handed over.
      method, plan: of the transformation and `params`.
      params: the parameters as the state's arrays are laid out.
    """
    kind = type(getattr(state, "method", state))
    if kind is not method.state:
        raise ValueError(
            f"the state does not fit this transformation: it is {kind.__name__}, {method.state.__name__} was expected."
        )
    try:
        for tree in accumulators_of(state.method):
            trees.check_same(tree, "the state", params, "params")
    except ValueError as error:
        if plan.placement is None:
            raise
        raise ValueError(
            f"{error} With a Placement without a mesh the state is in parts inside shard_map and pmap, and whole outside: "
            "call init where update is called, or hand the state over by the specs of state_sharding."
        ) from None
    if not jax.tree.leaves(params):
        return
    found = state.solver.plan
    if found == plan:
        return
    for mine, its in zip(plan.entries, found.entries, strict=False):
        if mine.compared() != its.compared():
            raise ValueError(
                f"the state does not fit this transformation: it holds {_said(its)} where {_said(mine)} was expected. "
                "Make a new one with init."
            )
    if len(found.entries) != len(plan.entries):
        raise ValueError(
            f"the state does not fit this transformation: it has {len(found.entries)} regularized blocks, "
            f"{[e.block.name for e in found.entries]}, where {len(plan.entries)} were expected: "
            f"{[e.block.name for e in plan.entries]}. Make a new one with init."
        )


def _said(entry: Entry) -> str:
    """An entry with all that two of them must have in common."""
    block, psi = entry.block, entry.block.psi
    members = []
    for k, member in enumerate(block.members):
        seen = "" if member.view is None else f" seen as {member.view}"
        members.append(f"{member.path!r} of shape {block.member_shape(k)}{seen}")
    what = members[0] if block.is_single else f"{block.name!r} ({', '.join(members)})"
    fields = getattr(psi, "__dataclass_fields__", {}).values()
    static = [f"{f.name}={getattr(psi, f.name)!r}" for f in fields if f.metadata.get("static")]
    target = "" if entry.target is None else f", to a TargetSparsity(mode={entry.target!r})"
    return f"{what} with {type(psi).__name__}({', '.join(static)}) by {type(entry.solver).__name__}{target}"


# How a state begins, and how it goes on.


def accumulator(x: Any, dtype: Any) -> Any:
    """x in the accumulators' dtype, never aliasing x (both may be donated); abstract leaves stay abstract."""
    dtype = accumulator_dtype(x, dtype)
    if isinstance(x, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(x.shape, dtype, sharding=x.sharding)
    return jnp.array(x, dtype=dtype, copy=True)


def accumulator_dtype(x: Any, dtype: Any) -> Any:
    """The dtype of the accumulators of a parameter: at least float32, unless the user says otherwise."""
    return _numerics.at_least_float32(x.dtype) if dtype is None else jnp.dtype(dtype)


def first_solver_state(
    plan: Plan,
    layout: Layout,
    given: list[list[Strength]],
    leaves: list[Any],
    dtype: Any,
) -> SolverState:
    """Before the first step.

    Args:
      plan, layout: of the parameters.
      given: of every block, the strengths as the user gave them.
      leaves: the parameters.
      dtype: of the accumulators, as the user gave it.
    """
    warm, masks = [], []
    for block, solver, target in plan.entries:
        views = [_abstract_or(m.take, leaves[m.leaf]) for m in block.members]
        whole = _abstract_or(block.join, views)
        warm.append(
            solver.init(block, whole, accumulator_dtype(leaves[block.members[0].leaf], dtype))
        )
        if target is not None:
            masks.append(_first_mask(block, whole) if target == "settle" else None)
    start = jnp.zeros([], jnp.int32)
    values = strengths.at_step([s for own in given for s in own], start)
    return SolverState(
        plan,
        strengths.stacked(values),
        layout.cut_warm(plan.blocks, warm),
        jnp.zeros((len(warm),), jnp.int32) if warm else None,
        jnp.zeros((len(warm),), _numerics.scalar_dtype()) if warm else None,
        _first_targets(plan, layout, masks) if masks else None,
    )


def _first_targets(plan: Plan, layout: Layout, masks: list[Any]) -> TargetState:
    """What targets remember before the first step: nothing."""
    number = lambda: jnp.zeros((len(masks),), _numerics.scalar_dtype())
    count = lambda: jnp.zeros((len(masks),), jnp.int32)
    blocks = [plan.blocks[i] for i in plan.aimed]
    laid = layout.cut_warm(blocks, masks)
    return TargetState(number(), number(), number(), number(), count(), count(), laid)


def _first_mask(block: Block, whole: Any) -> Any:
    """Nothing is masked; `whole`: the block as one array."""
    if isinstance(block.psi, GroupNorm):
        return Newton().init(block, whole, jnp.dtype(bool))
    return _abstract_or(lambda x: jnp.zeros_like(x, dtype=bool), whole)


def _abstract_or(f: Any, x: Any) -> Any:
    """f(x), or its shape where x is abstract."""
    abstract = any(isinstance(y, jax.ShapeDtypeStruct) for y in jax.tree.leaves(x))
    return jax.eval_shape(f, x) if abstract else f(x)


def _finite(residual: jax.Array) -> jax.Array:
    """The largest float where nothing is certified; a NaN, as of gradients that are not finite, stays one."""
    return jnp.minimum(residual, float(jnp.finfo(residual.dtype).max))


def after_step(
    state: ProximalState,
    plan: Plan,
    inputs: Inputs,
    outputs: Outputs,
    remembered: TargetState | None,
) -> ProximalState:
    """The state with what a step has written."""
    names = state.method.accumulators
    treedef = jax.tree.structure(getattr(state.method, names[0]))
    columns = [jax.tree.unflatten(treedef, xs) for xs in zip(*outputs.arrays, strict=True)]
    scalar = _numerics.scalar_dtype()
    solver = SolverState(
        plan,
        strengths.stacked([s.astype(scalar) for s in jax.tree.leaves(inputs.psis)]),
        outputs.warm,
        strengths.stacked([n.astype(jnp.int32) for n in outputs.iterations]),
        strengths.stacked([_finite(r.astype(scalar)) for r in outputs.residual]),
        remembered,
    )
    method = state.method._replace(**dict(zip(names, columns, strict=True)))
    return state._replace(method=method, solver=solver)
