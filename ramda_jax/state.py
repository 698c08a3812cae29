"""The state of every method: arrays, and one node without leaves that says what they belong to."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from ramda_jax import strengths, trees
from ramda_jax.regularizers import Regularizer
from ramda_jax.sharding import Placement
from ramda_jax.solvers import Solver
from ramda_jax.subproblem import Block


class Entry(NamedTuple):
    """One block and how it is solved. Its regularizer has every strength replaced by 1: the values are in the state."""

    block: Block
    solver: Solver


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
    def solvers(self) -> tuple[Solver, ...]:
        return tuple(entry.solver for entry in self.entries)

    def compared(self) -> tuple[Any, ...]:
        """What two plans that are the same have in common."""
        kinds = tuple((entry.block, type(entry.solver)) for entry in self.entries)
        return kinds, self.placement

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
      residual: certified ||s|| of condition (7) of each block, 1-d; None: there are none.
    """

    plan: Plan
    strengths: chex.Array | None
    warm: tuple[Any, ...]
    iterations: chex.Array | None
    residual: chex.Array | None

    def psis(self) -> tuple[Regularizer, ...]:
        """The regularizers with the strengths of the last step."""
        templates = [block.psi for block in self.plan.blocks]
        number = len(jax.tree.leaves(templates))
        return strengths.put(templates, [self.strengths[i] for i in range(number)])  # type: ignore[index]


class ProximalState(NamedTuple):
    """The state of every method.

    Attributes:
      count: updates done, int32.
      method: the method's accumulators.
      solver: `SolverState`; one number where params have no leaves: a leaf, so that `optax.tree.map_params`, which makes
        a state of such params, finds no parameters in it.
    """

    count: chex.Array
    method: Any
    solver: Any

    @property
    def model(self) -> Any:
        """The name of `method` in version 0.1."""
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


def check_fits(state: Any, plan: Plan, arrays: Sequence[chex.ArrayTree], params: Any) -> None:
    """Raise ValueError naming path, what was found and what was expected unless a state is one of this transformation's.

    Args:
      state: whatever the user handed over.
      plan: of the transformation and `params`.
      arrays: the accumulators of the state.
      params: the parameters as the state's arrays are laid out.
    """
    for tree in arrays:
        trees.check_same(tree, "the state", params, "params")
    found = state.solver.plan
    if found == plan:
        return
    for mine, its in zip(plan.entries, found.entries, strict=False):
        if (mine.block, type(mine.solver)) != (its.block, type(its.solver)):
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
    block = entry.block
    shapes = [block.member_shape(k) for k in range(len(block.members))]
    axis = getattr(block.psi, "group_axis", None)
    text = type(block.psi).__name__ + ("" if axis is None else f" along axis {axis}")
    shape = shapes[0] if len(shapes) == 1 else shapes
    return f"{block.name!r} of shape {shape} with {text} by {type(entry.solver).__name__}"


def first_stats(number: int, dtype: Any) -> tuple[chex.Array | None, chex.Array | None]:
    """Iterations and residuals before the first step."""
    if not number:
        return None, None
    return jnp.zeros((number,), jnp.int32), jnp.zeros((number,), dtype)
