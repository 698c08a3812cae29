"""The step: accumulate, solve, move. One pure function of some blocks and of the parameters they lie in.

All but the solve is elementwise, and what the solve hands over is a few numbers per group, from which X is elementwise
again. So the step may run over whole arrays, over tiles of whole groups, or over the parts that one device has: `backends`
and `sharding` decide, and call what is here.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from ramda_jax import solvers
from ramda_jax.methods.base import Accumulate
from ramda_jax.regularizers import Regularizer
from ramda_jax.solvers import Arrangement, Solver
from ramda_jax.subproblem import Block, Part, Pieces, Quadratic, Solution, Subproblem


@dataclasses.dataclass(frozen=True)
class Job:
    """The static part of a step.

    Attributes:
      accumulate, pieces: the method's.
      blocks: what is regularized; their leaves are places in `Inputs.leaves`.
      solvers: one per block.
    """

    accumulate: Accumulate
    pieces: Pieces
    blocks: tuple[Block, ...]
    solvers: tuple[Solver, ...]


class Leaf(NamedTuple):
    """What a step reads of one parameter, or of a part of it.

    Attributes:
      arrays: the accumulators.
      grad: the gradient, in any dtype.
      param: W^{t-1}, in any dtype.
    """

    arrays: tuple[jax.Array, ...]
    grad: jax.Array
    param: jax.Array


class Scalars(NamedTuple):
    """The 0-d arrays of one step, in the dtype of scalars.

    Attributes:
      accumulate, pieces: those which the functions of these names take.
      weight: w.
      averaging: c_t, or None where W^t = What_t.
    """

    accumulate: tuple[jax.Array, ...]
    pieces: tuple[jax.Array, ...]
    weight: jax.Array
    averaging: jax.Array | None


class Inputs(NamedTuple):
    """What a step reads.

    Attributes:
      leaves: of every parameter.
      psis: of every block, the regularizer with its strengths as 0-d arrays.
      warm: of every block, the solver's warm start.
      scalars: those of the step.
    """

    leaves: tuple[Leaf, ...]
    psis: tuple[Regularizer, ...]
    warm: tuple[Any, ...]
    scalars: Scalars


class Outputs(NamedTuple):
    """What a step writes.

    Attributes:
      arrays: of every parameter, the accumulators.
      updates: of every parameter, W^t - W^{t-1} in its dtype.
      warm, iterations, residual: of every block, as in `subproblem.Solution`.
    """

    arrays: tuple[tuple[jax.Array, ...], ...]
    updates: tuple[jax.Array, ...]
    warm: tuple[Any, ...]
    iterations: tuple[jax.Array, ...]
    residual: tuple[jax.Array, ...]


class Accumulated(NamedTuple):
    """One parameter after its gradient, everything in the accumulators' dtype.

    Attributes:
      arrays: the accumulators.
      start: W^{t-1}.
      scalars: those of `pieces`.
    """

    arrays: tuple[jax.Array, ...]
    start: jax.Array
    scalars: tuple[jax.Array, ...]


def step(job: Job, inputs: Inputs, arrange: Arrangement, resident: bool = False) -> Outputs:
    """The step of all blocks together.

    Args:
      job, inputs: of the step.
      arrange: how the groups of several blocks are worked on.
      resident: whether the arrays are few enough to stay in a cache (`Subproblem.resident`).
    """
    leaves = accumulate(job, inputs)
    problems = subproblems(job, inputs, leaves, resident)
    return move(job, inputs, leaves, solve(job.solvers, problems, inputs.warm, arrange))


def accumulate(job: Job, inputs: Inputs) -> list[Accumulated]:
    """Every parameter after its gradient."""
    return [_accumulate(job, leaf, inputs.scalars) for leaf in inputs.leaves]


def _accumulate(job: Job, leaf: Leaf, scalars: Scalars) -> Accumulated:
    dtype = leaf.arrays[0].dtype
    arrays = job.accumulate(leaf.arrays, leaf.grad.astype(dtype), _cast(scalars.accumulate, dtype))
    return Accumulated(arrays, leaf.param.astype(dtype), _cast(scalars.pieces, dtype))


def _cast(tree: Any, dtype: Any) -> Any:
    return jax.tree.map(lambda s: s.astype(dtype), tree)


def subproblems(
    job: Job, inputs: Inputs, leaves: Sequence[Accumulated], resident: bool = False
) -> list[Subproblem]:
    """The problem of every block."""
    problems = []
    for block, psi in zip(job.blocks, inputs.psis, strict=True):
        parts = []
        for member in block.members:
            leaf = leaves[member.leaf]
            parts.append(Part(tuple(map(member.take, leaf.arrays)), member.take(leaf.start)))
        dtype, scalars = parts[0].start.dtype, leaves[block.members[0].leaf].scalars
        weight, psi = _cast((inputs.scalars.weight, psi), dtype)
        problems.append(Subproblem(block, tuple(parts), scalars, job.pieces, weight, psi, resident))
    return problems


def scores(job: Job, inputs: Inputs, arrange: Arrangement) -> list[jax.Array]:
    """Of every block the strength at which each of its groups would die in this step."""
    problems = subproblems(job, inputs, accumulate(job, inputs))
    return solvers.scores(problems, arrange)


def solve(
    chosen: Sequence[Solver],
    problems: Sequence[Subproblem],
    warm: Sequence[Any],
    arrange: Arrangement,
) -> list[Solution]:
    """The solution of every block; those with the same solver and dtype are solved together."""
    kinds = [(s, p.parts[0].start.dtype) for s, p in zip(chosen, problems, strict=True)]
    solved: dict[int, Solution] = {}
    for kind in dict.fromkeys(kinds):
        mine = [i for i, other in enumerate(kinds) if other == kind]
        found = kind[0].solve([problems[i] for i in mine], [warm[i] for i in mine], arrange)
        solved |= dict(zip(mine, found, strict=True))
    return [solved[i] for i in range(len(problems))]


def move(
    job: Job, inputs: Inputs, leaves: Sequence[Accumulated], solutions: Sequence[Solution]
) -> Outputs:
    """What the solutions do to the parameters."""
    points = minimisers(job, leaves, [solution.x for solution in solutions])
    updates = []
    for leaf, after, x in zip(inputs.leaves, leaves, points, strict=True):
        delta = x - after.start
        if inputs.scalars.averaging is not None:
            delta = inputs.scalars.averaging.astype(x.dtype) * delta
        updates.append(delta.astype(leaf.param.dtype))
    columns = zip(*(solution[1:] for solution in solutions), strict=True) if solutions else [()] * 3
    return Outputs(tuple(leaf.arrays for leaf in leaves), tuple(updates), *map(tuple, columns))


def minimisers(
    job: Job, leaves: Sequence[Accumulated], solutions: Sequence[tuple[jax.Array, ...]]
) -> list[jax.Array]:
    """What of every parameter, from the x of every block; where nothing is regularized, of the quadratic alone."""
    points: dict[int, jax.Array] = {}
    covered = {m.leaf for block in job.blocks for m in block.members if m.is_plain}
    for i, leaf in enumerate(leaves):
        if i not in covered:
            v, x0, d = Quadratic(*job.pieces(leaf.arrays, leaf.start, leaf.scalars))
            points[i] = x0 - v / d
    for block, xs in zip(job.blocks, solutions, strict=True):
        for member, x in zip(block.members, xs, strict=True):
            points[member.leaf] = member.put(points.get(member.leaf, x), x)
    return [points[i] for i in range(len(leaves))]


def recall(job: Job, inputs: Inputs) -> list[jax.Array]:
    """What of every parameter as the last step found it: from the warm starts it left behind, nothing is solved again."""
    leaves = accumulate(job, inputs)
    problems = subproblems(job, inputs, leaves)
    triples = zip(job.solvers, problems, inputs.warm, strict=True)
    return minimisers(job, leaves, [s.recall(problem, warm) for s, problem, warm in triples])


def check_derivative(job: Job) -> None:
    """Raise ValueError naming a block whose solver offers no derivative."""
    for solver, block in zip(job.solvers, job.blocks, strict=True):
        solver.check_derivative(block)


def derivative(job: Job, inputs: Inputs, outputs: Outputs) -> Outputs:
    """The step as a differentiable function of `inputs`, around the solution that is known already.

    Its value is `outputs` up to rounding, its derivative that of the minimisers: implicit, so no loop is differentiated.
    Warm starts, iterations and residuals do not move.

    Raises:
      ValueError: naming a block whose solver offers no derivative.
    """
    check_derivative(job)
    leaves = accumulate(job, inputs)
    problems = subproblems(job, inputs, leaves)
    fixed = jax.lax.stop_gradient(outputs)
    kept = (fixed.warm, fixed.iterations, fixed.residual)
    solutions = [
        Solution(solver.recall(problem, warm), warm, iterations, residual)
        for solver, problem, warm, iterations, residual in zip(
            job.solvers, problems, *kept, strict=True
        )
    ]
    return move(job, inputs, leaves, solutions)


# A step that is run in several ways is taken apart, and put together again.


class Some(NamedTuple):
    """A step of some of the blocks and parameters of a larger one.

    Attributes:
      job: its places are those among `leaves`.
      blocks, leaves: their places in the larger one.
    """

    job: Job
    blocks: tuple[int, ...]
    leaves: tuple[int, ...]

    def of(self, inputs: Inputs) -> Inputs:
        """Of the larger step's inputs those that belong to it."""
        return Inputs(
            tuple(inputs.leaves[i] for i in self.leaves),
            tuple(inputs.psis[i] for i in self.blocks),
            tuple(inputs.warm[i] for i in self.blocks),
            inputs.scalars,
        )


def units(blocks: Sequence[Block], number: int) -> list[tuple[list[int], list[int]]]:
    """(blocks, parameters) that cannot be taken apart: each parameter, with those that it shares a block with.

    Args:
      blocks: of a step.
      number: of its parameters.
    """
    found: list[tuple[list[int], list[int]]] = []
    for k in range(number):
        found.append(([], [k]))
    for i, block in enumerate(blocks):
        met = [unit for unit in found if set(unit[1]) & set(block.leaves)]
        mine = sorted([i, *(j for unit in met for j in unit[0])])
        leaves = sorted(k for unit in met for k in unit[1])
        found = [unit for unit in found if unit not in met] + [(mine, leaves)]
    return found


def divide(job: Job, number: int, kind: Callable[[list[int], list[int]], Any]) -> dict[Any, Some]:
    """One step per kind of unit.

    Args:
      job: of the whole.
      number: of its parameters.
      kind: (blocks, parameters) of a unit -> how it is run, hashable.
    """
    kinds: dict[Any, tuple[list[int], list[int]]] = {}
    for blocks, leaves in units(job.blocks, number):
        mine = kinds.setdefault(kind(blocks, leaves), ([], []))
        mine[0].extend(blocks)
        mine[1].extend(leaves)
    return {name: _some(job, sorted(b), sorted(k)) for name, (b, k) in kinds.items()}


def _some(job: Job, blocks: Sequence[int], leaves: Sequence[int]) -> Some:
    place = {k: i for i, k in enumerate(leaves)}
    own = []
    for i in blocks:
        block = job.blocks[i]
        members = [dataclasses.replace(m, leaf=place[m.leaf]) for m in block.members]
        own.append(dataclasses.replace(block, members=tuple(members)))
    kept = tuple(job.solvers[i] for i in blocks)
    return Some(
        dataclasses.replace(job, blocks=tuple(own), solvers=kept), tuple(blocks), tuple(leaves)
    )


def only(job: Job, blocks: Sequence[int]) -> Some:
    """The step of these blocks, in this order, and of the parameters they lie in."""
    return _some(job, blocks, sorted({k for i in blocks for k in job.blocks[i].leaves}))


def unite(results: Sequence[tuple[Some, Outputs]]) -> Outputs:
    """The outputs of the larger step, from those of all steps that it was divided into."""
    by_leaf: dict[int, tuple] = {}
    by_block: dict[int, tuple] = {}
    for some, out in results:
        by_leaf |= dict(zip(some.leaves, zip(*out[:2], strict=True), strict=True))
        by_block |= dict(zip(some.blocks, zip(*out[2:], strict=True), strict=True))
    leaves = zip(*(by_leaf[k] for k in sorted(by_leaf)), strict=True)
    blocks = zip(*(by_block[i] for i in sorted(by_block)), strict=True) if by_block else [()] * 3
    return Outputs(*leaves, *blocks)
