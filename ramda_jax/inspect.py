"""What users read from a state, and from an assignment before there is one."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import optax

from ramda_jax import _numerics, assignment, trees
from ramda_jax._text import table
from ramda_jax.assignment import Regularization
from ramda_jax.methods.base import accumulators_of
from ramda_jax.regularizers.base import size
from ramda_jax.sharding.layout import Layout, layout_of
from ramda_jax.state import ProximalState, SolverState, find_states
from ramda_jax.step import Inputs, Job, Leaf, Scalars
from ramda_jax.subproblem import Block
from ramda_jax.trees import ArrayTree

Params = TypeVar("Params")
"""A tree of parameters: of whatever kind it is, the result is."""


def structured_params(
    opt_state: optax.OptState, params: Params, values: Literal["average", "minimizer"] = "average"
) -> Params:
    """The point to deploy: W_t with the amount of structure of What_t.

    What_t, the solution of the last step's subproblem, has after some finite step exactly the structure of the limit, but
    as an extrapolation poor values until late; the average W_t (momentum below 1) has the values and is dense. So What_t
    says how much: how many groups of each block are kept (how many entries, how large a rank of each matrix), and W_t
    which: its largest groups (entries, singular values), with its values. It is the nearest point of W_t with that count;
    from some step on it has the limit's structure, and it tends to the limit as W_t does (docs/mathematics.md). For
    `SparseGroupLasso` groups are counted first, then the entries in those that are kept; for `Binarize` as many entries
    are at -1 or 1 as in What_t, those that are nearest.

    Early in a run, and after each restart, What_t has few zeros yet, so that this point is W_t or little less. Late in a
    long stage with a small momentum it may have more than W_t can lose: measure before you deploy, or train with
    `stages`, at whose end all three points have the same structure.

    For methods that do not average (`prox_sgd`, `prox_adamw`, `prox_ssi`, and at momentum 1) all three points are one.
    Nothing is solved again; but a matrix under the nuclear norm takes two singular value decompositions.
    Pure; may be jitted. Training goes on from `params`, not from this point.

    Args:
      opt_state: any optax state that holds the state of one of this library's methods (or several, in a partition).
      params: the parameters after the last update.
      values: "average", or "minimizer": What_t itself.

    Returns:
      A pytree like params, its zeros exact. Parameters that other transformations own, or that are not regularized, are
      returned as they are (unless values is "minimizer"), and so is everything before the first step.

    Raises:
      ValueError: if `opt_state` holds no such state, or for other `values`.

    Example:
      >>> import jax.numpy as jnp, ramda_jax as rj
      >>> params = {"kernel": jnp.array([[3.0], [0.1]])}
      >>> tx = rj.ramda(0.1, rj.GroupLasso(0.6))
      >>> updates, state = tx.update({"kernel": jnp.ones((2, 1))}, tx.init(params), params)
      >>> params = {"kernel": params["kernel"] + updates["kernel"]}
      >>> points = params, rj.structured_params(state, params), rj.structured_params(state, params, "minimizer")
      >>> [[round(float(x), 2) for x in point["kernel"][:, 0]] for point in points]
      [[3.0, 0.1], [3.0, 0.0], [2.66, 0.0]]

    Source: Huang & Lee, NeurIPS 2024, Theorem 3.
    """
    if values not in ("average", "minimizer"):
        raise ValueError(f'values must be "average" or "minimizer", got {values!r}.')
    for state in find_states(opt_state):
        if hasattr(state.method, "terms") and isinstance(state.solver, SolverState):
            params = _structured(state, params, values == "average")
    return params


def _structured(state: ProximalState, params: Params, average: bool) -> Params:
    """What_t, or W_t with its amount of structure, of the leaves which this state owns; params elsewhere."""
    accumulators = accumulators_of(state.method)
    owned = accumulators[0]
    slots = jax.tree.leaves(owned, is_leaf=trees.is_hidden)
    slot_tree: Any = jax.tree.structure(owned, is_leaf=trees.is_hidden)
    # A hidden slot may stand for a whole subtree.
    parts = slot_tree.flatten_up_to(trees.unwrap(params))
    pairs = list(zip(parts, slots, strict=True))
    current = [jnp.asarray(p) for p, slot in pairs if not trees.is_hidden(slot)]
    plan = state.solver.plan
    layout = layout_of(plan.placement, trees.flatten(owned)[0], current, plan.blocks)
    points = layout.join(_minimisers(state, layout, layout.cut(current)))
    if average:
        points = _with_structure(plan.blocks, current, points)
    found = iter(points)
    new: list[Any] = []
    for part, slot in pairs:
        if trees.is_hidden(slot):
            new.extend(jax.tree.leaves(part))
        else:
            part = jnp.asarray(part)
            new.append(jnp.where(state.count > 0, next(found).astype(part.dtype), part))
    return jax.tree.unflatten(jax.tree.structure(params), new)


def _minimisers(
    state: ProximalState, layout: Layout, params: Sequence[jax.Array]
) -> list[jax.Array]:
    """What_t of every parameter, in the layout and the dtype of the state; `params` in that layout, too."""
    plan, terms, accumulators = (
        state.solver.plan,
        state.method.terms(),
        accumulators_of(state.method),
    )
    trees.check_same(jax.tree.leaves(accumulators[0]), "the state", params, "params")
    arrays = zip(*map(jax.tree.leaves, accumulators), strict=True)
    leaves = tuple(Leaf(a, p, p) for a, p in zip(arrays, params, strict=True))
    scalars = Scalars((), terms.scalars, terms.weight, None)
    inputs = Inputs(leaves, state.solver.psis(), state.solver.warm, scalars)
    return layout.recall(Job(_keep, terms.pieces, plan.blocks, plan.solvers), inputs)


def _with_structure(
    blocks: Sequence[Block], params: Sequence[jax.Array], models: Sequence[jax.Array]
) -> list[jax.Array]:
    """The parameters, those of each block with as much structure as the models of that block.

    The models keep their own dtype: rounded to that of narrow parameters, a matrix has no rank any more.
    """
    points = list(params)
    for block in blocks:
        views = [member.take(points[member.leaf]) for member in block.members]
        model = block.join([member.take(models[member.leaf]) for member in block.members])
        found = block.split(block.psi.project(block.join(views), model), views)
        for member, x in zip(block.members, found, strict=True):
            points[member.leaf] = member.put(points[member.leaf], x)
    return points


def _keep(
    arrays: tuple[jax.Array, ...], grad: jax.Array, scalars: tuple[jax.Array, ...]
) -> tuple[jax.Array, ...]:
    """The `accumulate` of a step that is over."""
    return arrays


def solver_stats(opt_state: optax.OptState) -> dict[str, float | jax.Array]:
    """How hard the last step's subproblems were, and how exactly they were solved.

    Args:
      opt_state: as in `structured_params`.

    Of a strength that is a `TargetSparsity` also, of each block: `strength/NAME` in force, the interval
    [`strength_low/NAME`, `strength_high/NAME`) it was chosen from, `dead/NAME` zero groups, `died/NAME` of these since it
    settled, and `fraction/NAME`, what is zero of what the target counts, in its scope.

    Returns:
      A flat dict: `iterations` and `residual` (maximum over blocks), and `iterations/NAME`, `residual/NAME` of each
      block (its path, where it is one array). The residual is a certified bound on the least ||s||, s in dQ(What_t)
      (condition (7) of the paper), in the units of the gradient times s_t (ramda, rmda) or the learning rate (the
      others); the largest float where nothing is certified, NaN where something was not finite. Python numbers, or tracers
      under jit, or arrays where the state is replicated.

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
        own: Any = state.solver
        for k, block in enumerate(own.plan.blocks):
            iterations.append(own.iterations[..., k])
            residuals.append(own.residual[..., k])
            stats[f"iterations/{block.name}"] = iterations[-1]
            stats[f"residual/{block.name}"] = residuals[-1]
        stats |= _target_stats(own)
    zero = jnp.zeros([], jnp.int32)
    stats["iterations"] = jnp.max(jnp.stack(iterations), axis=0) if iterations else zero
    stats["residual"] = jnp.max(jnp.stack(residuals), axis=0) if residuals else jnp.zeros([])
    return {name: _numerics.as_number(value) for name, value in sorted(stats.items())}


def _target_stats(solver: SolverState) -> dict[str, Any]:
    """What the targets of one state say."""
    stats: dict[str, Any] = {}
    if solver.targets is None:
        return stats
    force = solver.psis()
    for k, i in enumerate(solver.plan.aimed):
        psi: Any = force[i]
        said = {
            "strength": getattr(psi, psi.scored),
            "strength_low": solver.targets.low[..., k],
            "strength_high": solver.targets.high[..., k],
            "fraction": solver.targets.fraction[..., k],
            "dead": solver.targets.dead[..., k],
            "died": solver.targets.died[..., k],
        }
        stats |= {f"{key}/{solver.plan.blocks[i].name}": value for key, value in said.items()}
    return stats


def describe(params: ArrayTree, regularizer: Regularization) -> str:
    """A printable table of what is regularized and how.

    Args:
      params: arrays or ShapeDtypeStructs.
      regularizer: as in `ramda`.

    Returns:
      Text: path, shape, regularizer, groups, parameters of every array, and totals.

    Raises:
      ValueError: as `ramda` would.

    Example:
      >>> import jax.numpy as jnp, ramda_jax as rj
      >>> print(rj.describe({"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}, rj.L1(0.1)))
      path    shape   regularizer       groups  parameters
      bias    (2,)    -                      -           2
      kernel  (3, 2)  L1(strength=0.1)       6           6
      total   2                              6           8
    """
    paths, shapes, blocks = assignment.resolve(regularizer, params)
    texts, groups = ["-"] * len(paths), ["-"] * len(paths)
    total = 0
    for block in blocks:
        number = block.psi.num_groups(block.shape)
        total += number
        for k, member in enumerate(block.members):
            texts[member.leaf] = _text(block) if texts[member.leaf] == "-" else "several views"
            groups[member.leaf] = "-" if k else str(number)
    rows: list[tuple[str, ...]] = [("path", "shape", "regularizer", "groups", "parameters")]
    for path, shape, text, count in zip(paths, shapes, texts, groups, strict=True):
        rows.append((path, str(shape), text, count, str(size(shape))))
    rows.append(("total", str(len(paths)), "", str(total), str(sum(map(size, shapes)))))
    guesses = [f"guessed: {guess}." for guess in assignment.guesses(blocks)]
    return "\n".join([table(rows, left=3), *guesses])


def _text(block: Block) -> str:
    if block.is_single:
        return block.psi.settle(block.shape).describe()
    fields = [f.name for f in dataclasses.fields(block.psi) if f.name != "group_axis"]  # type: ignore[arg-type]  # a dataclass
    values = ", ".join(f"{name}={getattr(block.psi, name)!r}" for name in fields)
    return f"{block.name}: {type(block.psi).__name__}({values})"
