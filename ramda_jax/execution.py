"""How a step runs over the arrays: accumulate, solve, move.

The step of one array, or of any part of it that is made of whole groups, is `step`. All but the solve is elementwise.
It is run on all leaves together, or, on a TPU that holds whole arrays, on blocks of each leaf in a kernel, which reads
every array once and writes it once. (On a CPU it is the solve that goes block by block: see `secular`.)
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from ramda_jax import _target, kernel
from ramda_jax.model import Accumulate
from ramda_jax.regularizers import Regularizer
from ramda_jax.solvers.base import LeafProblem, LeafSolution, Pieces, Solver, Span


class Leaf(NamedTuple):
    """What a step reads of one parameter array, or of a block of it.

    Attributes:
      arrays: the accumulators.
      grad: the gradient, in any dtype; None: the accumulators are final already.
      param: W^{t-1}, in any dtype.
      warm: the solver's warm start.
      psi: the regularizer, its strengths 0-d arrays; None: none.
    """

    arrays: tuple[chex.Array, ...]
    grad: chex.Array | None
    param: chex.Array
    warm: chex.Array
    psi: Regularizer | None


class Result(NamedTuple):
    """What a step writes of it.

    Attributes:
      arrays: the accumulators, updated.
      out: W^t - W^{t-1} in the parameter's dtype; or What_t where there was no gradient.
      warm, iterations, residual: as in `solvers.base.LeafSolution`.
    """

    arrays: tuple[chex.Array, ...]
    out: chex.Array
    warm: chex.Array
    iterations: chex.Array
    residual: chex.Array


class Scalars(NamedTuple):
    """The 0-d arrays of one step, in the dtype of scalars.

    Attributes:
      accumulate, pieces: those which the functions of these names take.
      weight: w.
      averaging: c_t, or None where W^t = What_t.
    """

    accumulate: tuple[chex.Array, ...]
    pieces: tuple[chex.Array, ...]
    weight: chex.Array
    averaging: chex.Array | None


@dataclasses.dataclass(frozen=True)
class Method:
    """The static part of a step: what `model.Model` and `model.Subproblem` call by these names."""

    accumulate: Accumulate | None
    pieces: Pieces


@functools.partial(jax.jit, static_argnums=(0, 1), inline=True)
def run(
    method: Method,
    solvers: tuple[Solver | None, ...],
    leaves: tuple[Leaf, ...],
    scalars: Scalars,
) -> tuple[Result, ...]:
    """The step of every leaf, each with its solver; None: unregularized.

    Compiled once per method and shapes, also where the caller does not jit.
    """
    results: dict[int, Result] = {}
    for i, (solver, leaf) in enumerate(zip(solvers, leaves, strict=True)):
        if solver is None:
            (results[i],) = step(method, (solver,), (leaf,), scalars)
    chosen = [i for i, solver in enumerate(solvers) if solver is not None]
    if chosen:
        mine = tuple(solver for solver in solvers if solver is not None)
        done = _target.select(
            functools.partial(step, method, mine),
            {"tpu": functools.partial(_in_kernels, method, mine)},
            tuple(leaves[i] for i in chosen),
            scalars,
        )
        results |= dict(zip(chosen, done, strict=True))
    return tuple(results[i] for i in range(len(leaves)))


def step(
    method: Method,
    solvers: Sequence[Solver | None],
    leaves: Sequence[Leaf],
    scalars: Scalars,
    resident: bool = False,
    spans: Sequence[Span | None] | None = None,
) -> list[Result]:
    """The step itself, of all leaves together; `resident` and `spans` as in `LeafProblem`."""
    problems = [
        prepare(method, leaf, scalars, resident, span)
        for leaf, span in zip(leaves, spans or [None] * len(leaves), strict=True)
    ]
    solutions = _solve(solvers, problems, leaves)
    triples = zip(problems, solutions, leaves, strict=True)
    return [finish(problem, solution, leaf, scalars) for problem, solution, leaf in triples]


def prepare(
    method: Method,
    leaf: Leaf,
    scalars: Scalars,
    resident: bool = False,
    span: Span | None = None,
) -> LeafProblem:
    """The subproblem of a leaf, whose arrays are the accumulators after its gradient."""
    dtype = leaf.arrays[0].dtype
    cast = lambda tree: jax.tree.map(lambda s: s.astype(dtype), tree)
    arrays = leaf.arrays
    if leaf.grad is not None and method.accumulate is not None:
        arrays = method.accumulate(arrays, cast(leaf.grad), cast(scalars.accumulate))
    start, weight, psi = cast(leaf.param), cast(scalars.weight), cast(leaf.psi)
    pieces = cast(scalars.pieces)
    return LeafProblem(arrays, pieces, method.pieces, weight, psi, start, resident, span)


def finish(problem: LeafProblem, solution: LeafSolution, leaf: Leaf, scalars: Scalars) -> Result:
    """What a leaf's solution does to it."""
    moved = _move(solution.x, problem.start, leaf, scalars)
    return Result(problem.arrays, moved, *solution[1:])


def _solve(
    solvers: Sequence[Solver | None], problems: Sequence[LeafProblem], leaves: Sequence[Leaf]
) -> list[LeafSolution]:
    """The solution of every leaf; those with the same solver are solved together."""
    solved: dict[int, LeafSolution] = {}
    for solver in dict.fromkeys(solvers):
        mine = [i for i, other in enumerate(solvers) if other == solver]
        if solver is None:
            for i in mine:  # the minimiser of the quadratic alone
                v, x0, d = problems[i].smooth()
                none = jnp.zeros([], jnp.int32), jnp.zeros([], v.dtype)
                solved[i] = LeafSolution(x0 - v / d, leaves[i].warm, *none)
            continue
        answers = solver.solve([problems[i] for i in mine], [leaves[i].warm for i in mine])
        solved |= dict(zip(mine, answers, strict=True))
    return [solved[i] for i in range(len(problems))]


def _move(x: chex.Array, start: chex.Array, leaf: Leaf, scalars: Scalars) -> chex.Array:
    if leaf.grad is None:
        return x.astype(leaf.param.dtype)
    delta = x - start
    if scalars.averaging is not None:
        delta = scalars.averaging.astype(x.dtype) * delta
    return delta.astype(leaf.param.dtype)


# On a TPU.


def _in_kernels(
    method: Method, solvers: tuple[Solver, ...], leaves: tuple[Leaf, ...], scalars: Scalars
) -> list[Result]:
    """The leaves that the kernel can take by the kernel, the others together."""
    results: dict[int, Result] = {}
    for i, (solver, leaf) in enumerate(zip(solvers, leaves, strict=True)):
        length = _kernel_block(solver, leaf)
        if length is not None:
            results[i] = _in_kernel(method, solver, length, leaf, scalars)
    rest = [i for i in range(len(leaves)) if i not in results]
    if rest:
        left = tuple(leaves[i] for i in rest)
        done = step(method, tuple(solvers[i] for i in rest), left, scalars)
        results |= dict(zip(rest, done, strict=True))
    return [results[i] for i in range(len(leaves))]


def _kernel_block(solver: Solver, leaf: Leaf) -> int | None:
    if leaf.grad is None or leaf.psi is None or not solver.separable:
        return None
    shape, dtype = leaf.param.shape, leaf.arrays[0].dtype
    narrowest = min(leaf.param.dtype.itemsize, leaf.grad.dtype.itemsize)
    return kernel.block_length(shape, _kernel_axis(leaf), dtype, narrowest)


def _kernel_axis(leaf: Leaf) -> int | None:
    """The longest axis that separates groups."""
    shape = leaf.param.shape
    axes = () if leaf.psi is None else leaf.psi.separable_axes(shape)
    return max(axes, key=shape.__getitem__, default=None)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _in_kernel(
    method: Method,
    solver: Solver,
    length: int,
    leaf: Leaf,
    scalars: Scalars,
) -> Result:
    """The step of one leaf in one kernel, blocks of `length` along the axis that separates its groups."""
    shape = leaf.param.shape
    axis: Any = _kernel_axis(leaf)
    has_warm = leaf.warm.ndim == len(shape)
    fixed = _unchanged(method, leaf, scalars)

    def of_block(updated: Any, read: Any, numbers: Any) -> tuple[Any, ...]:
        changed, warm = updated
        kept, grad, param = read
        psi, shared = numbers
        arrays = _with(changed, kept, fixed)
        part = Leaf(arrays, grad, param, warm if has_warm else leaf.warm, psi)
        (done,) = step(method, (solver,), (part,), shared, resident=True)
        new = (_without(done.arrays, fixed), done.warm if has_warm else ())
        return new, done.out, done.iterations, done.residual

    out = jax.ShapeDtypeStruct(shape, leaf.param.dtype)
    kept = tuple(x if k in fixed else () for k, x in enumerate(leaf.arrays))
    updated = (_without(leaf.arrays, fixed), leaf.warm if has_warm else ())
    read = (kept, leaf.grad, leaf.param)
    (arrays, warm), moved, iterations, residual = kernel.call(
        of_block, updated, read, (leaf.psi, scalars), out, axis, length
    )
    return Result(
        _with(arrays, leaf.arrays, fixed),
        moved,
        warm if has_warm else leaf.warm,
        iterations,
        residual,
    )


def _unchanged(method: Method, leaf: Leaf, scalars: Scalars) -> list[int]:
    """Which accumulators the method returns as they came."""
    same: list[int] = []

    def look(arrays: tuple, grad: chex.Array) -> tuple:
        new = arrays
        if method.accumulate is not None:
            new = method.accumulate(arrays, grad, scalars.accumulate)
        same.extend(k for k, x in enumerate(new) if x is arrays[k])
        return new

    jax.eval_shape(look, leaf.arrays, leaf.param if leaf.grad is None else leaf.grad)
    return same


def _without(items: tuple, left_out: list[int]) -> tuple:
    return tuple(x for k, x in enumerate(items) if k not in left_out)


def _with(items: tuple, all_items: tuple, kept: list[int]) -> tuple:
    """`items`, with those of `all_items` at the indices `kept` back in their places."""
    rest = iter(items)
    return tuple(x if k in kept else next(rest) for k, x in enumerate(all_items))
