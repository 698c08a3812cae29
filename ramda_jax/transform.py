"""The optax transformation that every method is: accumulate, state the subproblem, solve it, step to its solution."""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from ramda_jax import _numerics, assignment, execution, solvers
from ramda_jax.layout import Layout, layout_of
from ramda_jax.model import Accumulate, Model
from ramda_jax.placement import Placement
from ramda_jax.regularizers import Regularizer
from ramda_jax.solvers.base import Pieces

# Optax's own sentence, which it does not export.
_NO_PARAMS = (
    "You are using a transformation that requires the current value of parameters, but you are not passing "
    "`params` when calling `update`."
)


class Entry(NamedTuple):
    """One regularized array: its place among the leaves of params, its path, how it is regularized and solved.

    `psi` has every strength replaced by 1: the values are in the state.
    """

    leaf: int
    path: str
    psi: Regularizer
    solver: solvers.Solver


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Plan:
    """What is regularized and how: the static part of the state, a node without leaves."""

    entries: tuple[Entry, ...]
    placement: Placement | None = None

    def with_strengths(self, strengths: chex.Array) -> list[Regularizer]:
        """The regularizers of the entries with these strengths."""
        templates = [entry.psi for entry in self.entries]
        leaves, treedef = jax.tree.flatten(templates)
        return jax.tree.unflatten(treedef, [strengths[i] for i in range(len(leaves))])

    def regularizers(self, number: int) -> list[Regularizer | None]:
        """Of each of this number of parameters, the strengths replaced by 1."""
        chosen: list[Regularizer | None] = [None] * number
        for entry in self.entries:
            chosen[entry.leaf] = entry.psi
        return chosen


class SolverState(NamedTuple):
    """What the solvers keep between steps, and what they say of the last one.

    Attributes:
      plan: static.
      strengths: every strength in force at the last step, in the order of the plan; 1-d.
      warm: the warm start of each regularized leaf.
      iterations: of each regularized leaf, int32, 1-d.
      residual: certified ||s|| of condition (7) of each regularized leaf, 1-d.
    """

    plan: Plan
    strengths: chex.Array
    warm: tuple[chex.Array, ...]
    iterations: chex.Array
    residual: chex.Array


class ProximalState(NamedTuple):
    """The state of every method.

    Attributes:
      count: updates done, int32.
      model: the method's accumulators.
      solver: `SolverState`; a placeholder array where params have no leaves.
    """

    count: chex.Array
    model: Any
    solver: SolverState | chex.Array


def proximal_transformation(
    model: Model,
    regularizer: Any,
    solver: solvers.Solver | None,
    accumulator_dtype: Any,
    placement: Placement | None,
) -> optax.GradientTransformationExtraArgs:
    """The transformation of one method.

    Args:
      model: how gradients become the subproblem.
      regularizer, solver, accumulator_dtype, placement: as the user gave them; see `ramda`.

    Returns:
      An `optax.GradientTransformationExtraArgs`.

    Raises:
      ValueError: if `solver`, `regularizer` or `placement` is of a wrong kind; more when it meets the parameters.
    """
    _check_kinds(regularizer, solver, placement)

    def widen(tree: chex.ArrayTree) -> chex.ArrayTree:
        return jax.tree.map(lambda x: _copy(x, accumulator_dtype), tree)

    def plan_of(params: chex.ArrayTree) -> tuple[Plan, list[Any]]:
        return _plan(params, regularizer, solver, model.scalar_metric, placement)

    def init(params: chex.ArrayTree) -> ProximalState:
        _register_with_flax()
        plan, strengths = plan_of(params)
        layout = _layout(plan, params)
        model_state = model.init(widen(params))
        cut = {name: _cut(layout, getattr(model_state, name)) for name in model_state.accumulators}
        state: Any = jnp.zeros(
            (0,)
        )  # a leaf, so that `optax.tree.map_params` finds no parameters in it
        if leaves := jax.tree.leaves(params):
            state = _init_solver(plan, layout, strengths, leaves, accumulator_dtype)
        return ProximalState(jnp.zeros([], jnp.int32), model_state._replace(**cut), state)

    def update(
        updates: optax.Updates, state: ProximalState, params: Any = None, **extra_args: Any
    ) -> tuple[optax.Updates, ProximalState]:
        del extra_args
        if params is None:
            raise ValueError(_NO_PARAMS)
        plan, strengths = plan_of(params)
        layout = _layout(plan, params)
        params, grads = _cut(layout, params), _cut(layout, updates)
        model_state, accumulate = model.begin(state.model, params, state.count)
        new_state = state._replace(count=optax.safe_increment(state.count), model=model_state)
        if not jax.tree.leaves(params):
            return updates, new_state
        subproblem = model.subproblem(model_state, state.count)
        scalars = execution.Scalars(
            accumulate, subproblem.scalars, subproblem.weight, model.averaging(state.count)
        )
        names = model_state.accumulators
        accumulators = [getattr(model_state, name) for name in names]
        _check_parts(plan, accumulators[0], params)
        method = (model.accumulate, subproblem.pieces)
        solver_state = state.solver._replace(plan=plan, strengths=_evaluate(strengths, state.count))
        moves, accumulators, solver_state = _run(
            layout, method, accumulators, grads, params, scalars, solver_state
        )
        model_state = model_state._replace(**dict(zip(names, accumulators, strict=True)))
        return moves, new_state._replace(model=model_state, solver=solver_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _check_kinds(regularizer: Any, solver: Any, placement: Any) -> None:
    if not (placement is None or isinstance(placement, Placement)):
        raise ValueError(f"placement must be None or a Placement, got {placement!r}.")
    if not (solver is None or isinstance(solver, solvers.Solver)):
        raise ValueError(f"solver must be None or a solver such as Newton(), got {solver!r}.")
    if callable(regularizer) or isinstance(regularizer, (int, float, str, type)):
        raise ValueError(
            "regularizer must be None, a regularizer, a tree of regularizers and Nones, or an assignment "
            f"(by_path, kernels), got {regularizer!r}."
        )


def _accumulator(x: Any, dtype: Any) -> Any:
    return jnp.promote_types(x.dtype, jnp.float32) if dtype is None else jnp.dtype(dtype)


def _copy(x: Any, dtype: Any) -> Any:
    """x in the accumulators' dtype, never aliasing x (both may be donated); abstract leaves stay abstract."""
    dtype = _accumulator(x, dtype)
    if isinstance(x, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(x.shape, dtype, sharding=x.sharding)
    return jnp.array(x, dtype=dtype, copy=True)


def _plan(
    params: chex.ArrayTree,
    regularizer: Any,
    solver: solvers.Solver | None,
    scalar_metric: bool,
    placement: Placement | None,
) -> tuple[Plan, list[Any]]:
    """(the plan, the strengths as the user gave them: numbers, arrays, tracers or schedules)."""
    paths, resolved = assignment.resolve(regularizer, params)
    entries, strengths = [], []
    for i, (path, psi) in enumerate(zip(paths, resolved, strict=True)):
        if psi is None:
            continue
        chosen = solvers.choose(solver, psi, path, scalar_metric=scalar_metric)
        entries.append(Entry(i, path, jax.tree.map(lambda _: 1.0, psi), chosen))
        strengths.extend(jax.tree.leaves(psi))
    return Plan(tuple(entries), placement), strengths


def _layout(plan: Plan, params: chex.ArrayTree) -> Layout:
    """How these parameters, and the state that belongs to them, are spread over devices."""
    return layout_of(plan.placement, params, plan.regularizers(len(jax.tree.leaves(params))))


def _check_parts(plan: Plan, accumulator: chex.ArrayTree, params: chex.ArrayTree) -> None:
    """Raise ValueError if the state was made where it was not in parts, or in others than here."""
    if plan.placement is None:
        return
    paths, arrays, _ = assignment.flatten_with_paths(accumulator)
    for path, x, p in zip(paths, arrays, jax.tree.leaves(params), strict=True):
        if x.shape != p.shape:
            raise ValueError(
                f"the state of {path!r} has shape {x.shape} where {p.shape} was expected: with a Placement "
                "without a mesh the state is in parts inside shard_map and pmap, and whole outside. Call init where "
                "update is called, or hand the state over by the specs of state_sharding."
            )


def _cut(layout: Layout, tree: chex.ArrayTree) -> chex.ArrayTree:
    leaves, treedef = jax.tree.flatten(tree)
    return jax.tree.unflatten(treedef, layout.cut(leaves))


def _evaluate(strengths: list[Any], count: chex.Array) -> chex.Array:
    return _stack([_numerics.evaluate(s, count) for s in strengths], _numerics.scalar_dtype())


def _init_solver(
    plan: Plan, layout: Layout, strengths: list[Any], leaves: list[Any], dtype: Any
) -> SolverState:
    starts: list[Any] = [jnp.zeros((0,))] * len(leaves)
    for e in plan.entries:
        x = leaves[e.leaf]
        starts[e.leaf] = e.solver.init(e.psi, x, _accumulator(x, dtype))
    starts = layout.cut(starts)
    warm = tuple(starts[e.leaf] for e in plan.entries)
    return SolverState(
        plan,
        _evaluate(strengths, jnp.zeros([], jnp.int32)),
        warm,
        jnp.zeros((len(warm),), jnp.int32),
        jnp.zeros((len(warm),), _numerics.scalar_dtype()),
    )


def _run(
    layout: Layout,
    functions: tuple[Accumulate | None, Pieces],
    accumulators: Sequence[chex.ArrayTree],
    grads: chex.ArrayTree | None,
    params: chex.ArrayTree,
    scalars: execution.Scalars,
    state: SolverState,
) -> tuple[chex.ArrayTree, list[chex.ArrayTree], SolverState]:
    """One step, or with grads=None the solution of the step before: (updates or solution, accumulators, state).

    Gradients and parameters are cut already; updates or solution are joined.
    """
    leaves, treedef = jax.tree.flatten(params)
    arrays = list(zip(*map(jax.tree.leaves, accumulators), strict=True))
    slopes = [None] * len(leaves) if grads is None else jax.tree.leaves(grads)
    empty = jnp.zeros((0,))
    inputs = [
        execution.Leaf(*four, empty, None) for four in zip(arrays, slopes, leaves, strict=True)
    ]
    solver_of: list[solvers.Solver | None] = [None] * len(leaves)
    regularizers = state.plan.with_strengths(state.strengths)
    for entry, psi, warm in zip(state.plan.entries, regularizers, state.warm, strict=True):
        inputs[entry.leaf] = inputs[entry.leaf]._replace(psi=psi, warm=warm)
        solver_of[entry.leaf] = entry.solver
    method = execution.Method(*functions)
    results = layout.run(method, tuple(solver_of), inputs, scalars)

    mine = [results[entry.leaf] for entry in state.plan.entries]
    state = state._replace(
        warm=tuple(r.warm for r in mine),
        iterations=_stack([r.iterations for r in mine], jnp.int32),
        residual=_stack([r.residual for r in mine], _numerics.scalar_dtype()),
    )
    tree = lambda items: jax.tree.unflatten(treedef, items)
    new = [tree([r.arrays[k] for r in results]) for k in range(len(accumulators))]
    return tree(layout.join([r.out for r in results])), new, state


def _stack(scalars: list[chex.Array], dtype: Any) -> chex.Array:
    return jnp.stack([s.astype(dtype) for s in scalars]) if scalars else jnp.zeros((0,), dtype)


def _register_with_flax() -> None:
    """Let `flax.serialization` pass over `Plan`, if the user has Flax: it is not a dependency of the library."""
    serialization = sys.modules.get("flax.serialization")
    if serialization is not None and not getattr(Plan, "_known_to_flax", False):
        serialization.register_serialization_state(Plan, lambda plan: {}, lambda plan, state: plan)
        Plan._known_to_flax = True  # type: ignore[attr-defined]


# What users read from a state.


def is_state(x: Any) -> bool:
    """Whether x is the state of one of this library's methods."""
    return isinstance(x, ProximalState)


def _is_variable(x: Any) -> bool:
    """A variable of Flax NNX, in which `nnx.Optimizer` wraps every leaf of the state."""
    return hasattr(x, "get_value") and hasattr(x, "get_metadata")


def _unwrap(tree: Any) -> Any:
    return jax.tree.map(
        lambda x: x.get_value() if _is_variable(x) else x, tree, is_leaf=_is_variable
    )


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
    return [_unwrap(s) for s in found]


def structured_params(opt_state: Any, params: chex.ArrayTree) -> chex.ArrayTree:
    """What_t: the point whose structure (zero groups, rank) the theory guarantees.

    It is the solution of the last step's subproblem, recomputed from the state. For `ramda` and `rmda` with momentum
    below 1 the parameters W_t are an average and dense, while What_t is structured from the first steps on; after
    some finite step it has exactly the structure of the limit. For the other methods it is W_t itself.
    Pure; may be jitted.

    Args:
      opt_state: any optax state that holds the state of one of this library's methods (or several, in a partition).
      params: the parameters after the last update.

    Returns:
      A pytree like params. Parameters that other transformations own are returned as they are, and so is everything
      before the first step.

    Raises:
      ValueError: if `opt_state` holds no such state.

    Example:
      >>> import jax.numpy as jnp, ramda_jax as rj
      >>> params = {"kernel": jnp.ones((3, 2))}
      >>> tx = rj.ramda(0.1, rj.GroupLasso(100.0))
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> print(rj.structured_params(state, params)["kernel"].sum())
      0.0

    Source: Huang & Lee, NeurIPS 2024, Theorem 3.
    """
    for state in find_states(opt_state):
        if hasattr(state.model, "subproblem") and isinstance(state.solver, SolverState):
            params = _structured(state, params)
    return params


def _structured(state: ProximalState, params: chex.ArrayTree) -> chex.ArrayTree:
    """What_t of the leaves which this state owns, params elsewhere."""
    subproblem, names = state.model.subproblem(), state.model.accumulators
    accumulators = [getattr(state.model, name) for name in names]
    owned = accumulators[0]
    is_hidden = lambda x: isinstance(x, optax.MaskedNode)
    slots = jax.tree.leaves(owned, is_leaf=is_hidden)
    slot_tree: Any = jax.tree.structure(owned, is_leaf=is_hidden)
    parts = slot_tree.flatten_up_to(_unwrap(params))  # a hidden slot may stand for a whole subtree
    current = jax.tree.unflatten(
        jax.tree.structure(owned),
        [p for p, slot in zip(parts, slots, strict=True) if not is_hidden(slot)],
    )
    scalars = execution.Scalars((), subproblem.scalars, subproblem.weight, None)
    functions = (None, subproblem.pieces)
    layout = _layout(state.solver.plan, current)
    current = _cut(layout, current)
    _check_parts(state.solver.plan, owned, current)
    solution, _, _ = _run(layout, functions, accumulators, None, current, scalars, state.solver)
    remaining = iter(jax.tree.leaves(solution))
    leaves: list[Any] = []
    for part, slot in zip(parts, slots, strict=True):
        if is_hidden(slot):
            leaves.extend(jax.tree.leaves(part))
        else:
            leaves.append(jnp.where(state.count > 0, next(remaining).astype(part.dtype), part))
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def solver_stats(opt_state: Any) -> dict[str, Any]:
    """How hard the last step's subproblems were, and how exactly they were solved.

    Args:
      opt_state: as in `structured_params`.

    Returns:
      A flat dict: `iterations` and `residual` (maximum over arrays), and `iterations/PATH`, `residual/PATH` of each
      regularized array. The residual is a certified bound on the least ||s||, s in dQ(What_t) (condition (7) of the
      paper), in the units of the gradient times s_t (ramda, rmda) or the learning rate (the others). Python numbers,
      or tracers under jit, or arrays where
      the state is replicated.

    Raises:
      ValueError: if `opt_state` holds no state of this library.

    Example:
      >>> import jax.numpy as jnp, ramda_jax as rj
      >>> params = {"kernel": jnp.arange(6.0).reshape(3, 2)}
      >>> tx = rj.ramda(0.1, rj.GroupLasso(0.1))
      >>> _, state = tx.update(params, tx.init(params), params)
      >>> sorted(rj.solver_stats(state))
      ['iterations', 'iterations/kernel', 'residual', 'residual/kernel']
    """
    stats: dict[str, Any] = {}
    iterations, residuals = [], []
    for state in find_states(opt_state):
        if not isinstance(state.solver, SolverState):
            continue
        for k, entry in enumerate(state.solver.plan.entries):
            iterations.append(state.solver.iterations[..., k])
            residuals.append(state.solver.residual[..., k])
            stats[f"iterations/{entry.path}"] = iterations[-1]
            stats[f"residual/{entry.path}"] = residuals[-1]
    zero = jnp.zeros([], jnp.int32)
    stats["iterations"] = jnp.max(jnp.stack(iterations), axis=0) if iterations else zero
    stats["residual"] = jnp.max(jnp.stack(residuals), axis=0) if residuals else 0.0 * zero
    return {name: _numerics.as_number(value) for name, value in sorted(stats.items())}
