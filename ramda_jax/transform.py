"""The optax transformation that every method is.

gradients -> accumulate -> strengths -> solve -> move -> updates
"""

from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from ramda_jax import assignment, solvers, strengths, trees
from ramda_jax.assignment import Regularization
from ramda_jax.methods.base import Method, accumulators_of
from ramda_jax.regularizers.base import Strength
from ramda_jax.sharding import Placement
from ramda_jax.sharding.layout import Layout, layout_of
from ramda_jax.state import (
    Entry,
    Plan,
    ProximalState,
    accumulator,
    after_step,
    check_fits,
    first_solver_state,
)
from ramda_jax.step import Inputs, Job, Leaf, Scalars
from ramda_jax.targets import Targets, targets_of
from ramda_jax.trees import ArrayTree

# Optax's own sentence, which it does not export.
_NO_PARAMS = (
    "You are using a transformation that requires the current value of parameters, but you are not passing "
    "`params` when calling `update`."
)


def proximal_transformation(
    method: Method,
    regularizer: Regularization,
    solver: solvers.Solver | None,
    accumulator_dtype: DTypeLike | None,
    placement: Placement | None,
) -> optax.GradientTransformationExtraArgs:
    """The transformation of one method.

    Args:
      method: how gradients become the subproblem.
      regularizer, solver, accumulator_dtype, placement: as the user gave them; see `ramda`.

    Returns:
      An `optax.GradientTransformationExtraArgs`.

    Raises:
      ValueError: if `solver`, `regularizer` or `placement` is of a wrong kind; more when it meets the parameters.
    """
    _check_kinds(regularizer, solver, placement)

    def plan_of(params: ArrayTree) -> tuple[Plan, list[list[Strength]], Targets, Layout]:
        return make_plan(params, regularizer, solver, method, placement)

    def init(params: ArrayTree) -> ProximalState:
        params = trees.arrays(params, "params")
        plan, given, _, layout = plan_of(params)
        assignment.warn_of_guesses(plan.blocks)
        state = method.init(jax.tree.map(lambda x: accumulator(x, accumulator_dtype), params))
        cut = {name: _cut(layout, getattr(state, name)) for name in state.accumulators}
        solver_state: Any = jnp.zeros([])
        if leaves := jax.tree.leaves(params):
            solver_state = first_solver_state(plan, layout, given, leaves, accumulator_dtype)
        return ProximalState(jnp.zeros([], jnp.int32), state._replace(**cut), solver_state)

    def update(
        updates: optax.Updates, state: ProximalState, params: Any = None, **extra_args: Any
    ) -> tuple[optax.Updates, ProximalState]:
        del extra_args
        if params is None:
            raise ValueError(_NO_PARAMS)
        params, grads = trees.arrays(params, "params"), trees.arrays(updates, "the gradient")
        trees.check_same(grads, "gradients", params, "params")
        plan, given, targets, layout = plan_of(params)
        params, grads = _cut(layout, params), _cut(layout, grads)
        check_fits(state, method, plan, params)
        with _constants_move():
            before, (state, scalars) = state, _begin(method, state, params)
            if not jax.tree.leaves(params):
                return updates, state
            job, inputs = _inputs(method, plan, state, grads, params, scalars, given, before.count)
            remembered = before.solver.targets
            if targets.rules:
                wanted = targets.at_step(before.count)
                inputs, remembered = layout.choose(job, targets.rules, inputs, wanted, remembered)
        outputs = layout.run(job, inputs)
        moves = jax.tree.unflatten(jax.tree.structure(updates), layout.join(outputs.updates))
        with _constants_move():
            return moves, after_step(state, plan, inputs, outputs, remembered)

    return optax.GradientTransformationExtraArgs(init, update)


def _constants_move() -> AbstractContextManager[None]:
    """Outside jit the constants of schedules and counts move to the device; no `jax.transfer_guard` is meant for these."""
    return jax.transfer_guard_host_to_device("allow")


def _check_kinds(regularizer: Any, solver: Any, placement: Any) -> None:
    if not (placement is None or isinstance(placement, Placement)):
        raise ValueError(f"placement must be None or a Placement, got {placement!r}.")
    if not (solver is None or isinstance(solver, solvers.Solver)):
        raise ValueError(f"solver must be None or a solver such as Newton(), got {solver!r}.")
    if callable(regularizer) or isinstance(regularizer, (int, float, str, type)):
        raise ValueError(
            "regularizer must be None, a regularizer, a tree of regularizers and Nones, or an assignment "
            f"(by_path, kernels, coupled), got {regularizer!r}."
        )


def make_plan(
    params: ArrayTree,
    regularizer: Regularization,
    solver: solvers.Solver | None,
    method: Method,
    placement: Placement | None,
) -> tuple[Plan, list[list[Strength]], Targets, Layout]:
    """(the plan, of every block the strengths as the user gave them, the targets among these, how the parameters are spread
    over devices)."""
    resolved = assignment.resolve(regularizer, params)
    given = [strengths.of(block.psi) for block in resolved.blocks]
    targets = targets_of(resolved.blocks, given, method.stages())
    modes = targets.modes()
    entries = []
    for i, block in enumerate(resolved.blocks):
        chosen = solvers.choose(solver, block.psi, block.name, scalar_metric=method.scalar_metric)
        entries.append(Entry(strengths.template_of(block), chosen, modes.get(i)))
    plan = Plan(tuple(entries), placement)
    layout = layout_of(placement, resolved.paths, jax.tree.leaves(params), plan.blocks)
    return plan, given, targets, layout


def _cut(layout: Layout, tree: ArrayTree) -> ArrayTree:
    leaves, treedef = jax.tree.flatten(tree)
    return jax.tree.unflatten(treedef, layout.cut(leaves))


def _begin(
    method: Method, state: ProximalState, params: ArrayTree
) -> tuple[ProximalState, tuple[jax.Array, ...]]:
    """(the state with its scalars advanced, the scalars of `accumulate`)."""
    advanced, scalars = method.begin(state.method, params, state.count)
    return state._replace(count=optax.safe_increment(state.count), method=advanced), scalars


def _inputs(
    method: Method,
    plan: Plan,
    state: ProximalState,
    grads: ArrayTree,
    params: ArrayTree,
    scalars: tuple[jax.Array, ...],
    given: list[list[Strength]],
    count: jax.Array,
) -> tuple[Job, Inputs]:
    """What the step at the 0-based `count` is, and what it reads."""
    terms = method.terms(state.method, count)
    arrays = zip(*map(jax.tree.leaves, accumulators_of(state.method)), strict=True)
    pairs = (jax.tree.leaves(grads), jax.tree.leaves(params))
    leaves = tuple(Leaf(*three) for three in zip(arrays, *pairs, strict=True))
    values = strengths.at_step([s for own in given for s in own], count)
    psis = strengths.put([block.psi for block in plan.blocks], values)
    shared = Scalars(scalars, terms.scalars, terms.weight, method.averaging(count))
    job = Job(method.accumulate, terms.pieces, plan.blocks, plan.solvers)
    return job, Inputs(leaves, psis, state.solver.warm, shared)
