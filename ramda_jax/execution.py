"""How a step runs over the arrays: accumulate, solve, move; over all leaves at once, or block by block.

The step of one array, or of any part of it that is made of whole groups, is `_step`. It is run

- on all leaves together (`_step`): one loop for the groups of all of them, nothing but elementwise work and
  reductions, which the partitioner can cut as the arrays are cut. For several devices, and for accelerators;
- leaf by leaf, in blocks of whole groups that fit a CPU's cache (`_one_by_one`): every array is read once and written
  once, in place, and temporaries are of the size of a block. For a CPU that holds whole arrays.

Both compute the same numbers up to the order of the sums.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from ramda_jax import _target, kernel
from ramda_jax.model import Accumulate
from ramda_jax.regularizers import Regularizer
from ramda_jax.solvers.base import LeafProblem, LeafSolution, Pieces, Solver

# Entries of a block: some ten arrays of this size (v, x0, D, b, their updates, ...) fit a second-level cache.
BLOCK_SIZE = 16_384


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
      count: steps done, int32.
      accumulate, pieces: those which the functions of these names take.
      weight: w.
      averaging: c_t, or None where W^t = What_t.
    """

    count: chex.Array
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
            (results[i],) = _step(method, (solver,), (leaf,), scalars)
    chosen = [i for i, solver in enumerate(solvers) if solver is not None]
    if chosen:
        mine = tuple(solver for solver in solvers if solver is not None)
        done = _target.select(
            functools.partial(_step, method, mine),
            {
                "cpu": functools.partial(_one_by_one, method, mine),
                "tpu": functools.partial(_in_kernels, method, mine),
            },
            tuple(leaves[i] for i in chosen),
            scalars,
        )
        results |= dict(zip(chosen, done, strict=True))
    return tuple(results[i] for i in range(len(leaves)))


def _one_by_one(
    method: Method, solvers: tuple[Solver, ...], leaves: tuple[Leaf, ...], scalars: Scalars
) -> list[Result]:
    results: list[Result] = []
    before = jnp.zeros([], jnp.int32)
    for solver, leaf in zip(solvers, leaves, strict=True):
        results.append(_in_blocks(method, solver, leaf, scalars, before))
        before = results[-1].iterations
    return results


def _step(
    method: Method,
    solvers: tuple[Solver | None, ...],
    leaves: tuple[Leaf, ...],
    scalars: Scalars,
    resident: bool = False,
) -> list[Result]:
    """The step itself, of all leaves together."""
    arrays, problems = [], []
    for leaf in leaves:
        dtype = leaf.arrays[0].dtype
        cast = lambda tree, dtype=dtype: jax.tree.map(lambda s: s.astype(dtype), tree)
        new = leaf.arrays
        if leaf.grad is not None and method.accumulate is not None:
            new = method.accumulate(new, cast(leaf.grad), cast(scalars.accumulate))
        arrays.append(new)
        problems.append(
            LeafProblem(
                new,
                cast(scalars.pieces),
                method.pieces,
                cast(scalars.weight),
                cast(leaf.psi),
                cast(leaf.param),
                resident,
            )
        )
    solutions = _solve(solvers, problems, leaves)
    return [
        Result(new, _move(s.x, p.start, leaf, scalars), s.warm, s.iterations, s.residual)
        for new, s, p, leaf in zip(arrays, solutions, problems, leaves, strict=True)
    ]


def _solve(
    solvers: tuple[Solver | None, ...], problems: list[LeafProblem], leaves: tuple[Leaf, ...]
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


# Blocks.


class _Blocks(NamedTuple):
    """The cut of an array: `number` blocks of `length` along `axis`; the last one overlaps its neighbour if need be."""

    axis: int
    length: int
    number: int

    def start(self, k: chex.Array, shape: tuple[int, ...]) -> chex.Array:
        return jnp.minimum(k * self.length, shape[self.axis] - self.length)

    def take(self, x: chex.Array, start: chex.Array, shape: tuple[int, ...]) -> chex.Array:
        """The block of x; x itself if it is a scalar or an empty warm start."""
        if x.ndim != len(shape):
            return x
        return jax.lax.dynamic_slice_in_dim(x, start, self.length, self.axis)

    def put(
        self,
        x: chex.Array,
        new: chex.Array,
        k: chex.Array,
        start: chex.Array,
        shape: tuple[int, ...],
    ) -> chex.Array:
        """x with `new` as its block k."""
        if x.ndim != len(shape):
            return x
        if shape[self.axis] % self.length:  # the last block begins with entries that are done
            place = start + jax.lax.broadcasted_iota(jnp.int32, new.shape, self.axis)
            new = jnp.where(place < k * self.length, self.take(x, start, shape), new)
        return jax.lax.dynamic_update_slice_in_dim(x, new, start, self.axis)


def _cut(solver: Solver, leaf: Leaf) -> _Blocks | None:
    """How to cut a leaf into blocks that can be solved apart; None: not at all, or not worth it."""
    shape = leaf.param.shape
    axis = leaf.psi.separable_axis(shape) if leaf.psi is not None and solver.separable else None
    if axis is None or shape[axis] < 2:
        return None
    at_most = max(1, BLOCK_SIZE * shape[axis] // max(leaf.param.size, 1))
    count = -(-shape[axis] // at_most)
    return _Blocks(axis, -(-shape[axis] // count), count) if count > 1 else None


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
        done = _step(method, tuple(solvers[i] for i in rest), left, scalars)
        results |= dict(zip(rest, done, strict=True))
    return [results[i] for i in range(len(leaves))]


def _kernel_block(solver: Solver, leaf: Leaf) -> int | None:
    if leaf.grad is None or leaf.psi is None or not solver.separable:
        return None
    shape, dtype = leaf.param.shape, leaf.arrays[0].dtype
    return kernel.block_length(shape, leaf.psi.separable_axis(shape), dtype)


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
    axis = leaf.psi.separable_axis(shape)  # type: ignore[union-attr]
    has_warm = leaf.warm.ndim == len(shape)
    fixed = _unchanged(method, leaf, scalars)

    def step(updated: Any, read: Any, numbers: Any) -> tuple[Any, ...]:
        changed, warm = updated
        kept, grad, param = read
        psi, shared = numbers
        arrays = _with(changed, kept, fixed)
        part = Leaf(arrays, grad, param, warm if has_warm else leaf.warm, psi)
        (done,) = _step(method, (solver,), (part,), shared, resident=True)
        new = (_without(done.arrays, fixed), done.warm if has_warm else ())
        return new, done.out, done.iterations, done.residual

    out = jax.ShapeDtypeStruct(shape, leaf.param.dtype)
    kept = tuple(x if k in fixed else () for k, x in enumerate(leaf.arrays))
    updated = (_without(leaf.arrays, fixed), leaf.warm if has_warm else ())
    read = (kept, leaf.grad, leaf.param)
    (arrays, warm), moved, iterations, residual = kernel.call(
        step, updated, read, (leaf.psi, scalars), out, axis, length
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


@functools.partial(jax.jit, static_argnums=(0, 1))
def _in_blocks(
    method: Method, solver: Solver, leaf: Leaf, scalars: Scalars, before: chex.Array
) -> Result:
    """The step of one leaf, block by block; written over the leaf's own arrays where the caller has donated them.

    `before` is any number from the leaf that is to be done first. XLA schedules what does not depend on anything as
    early as it can, and the memory for the updates of all leaves would be taken at once. Jitted by itself, so that
    leaves of the same shape are traced once.
    """
    blocks = _cut(solver, leaf)
    if blocks is None:
        resident = leaf.param.size <= BLOCK_SIZE
        return _step(method, (solver,), (leaf,), scalars, resident)[0]
    shape = leaf.param.shape
    fixed: list[int] = []  # accumulators which the step does not change

    def solve(part: Leaf) -> Result:
        (done,) = _step(method, (solver,), (part,), scalars, resident=True)
        fixed[:] = [k for k, x in enumerate(done.arrays) if x is part.arrays[k]]
        return done._replace(arrays=_without(done.arrays, fixed))

    part = jax.tree.map(lambda x: blocks.take(x, jnp.zeros([], jnp.int32), shape), leaf)
    abstract = jax.eval_shape(solve, part)  # fills `fixed`

    def body(k: chex.Array, carry: Result) -> Result:
        start = blocks.start(k, shape)
        arrays = _with(carry.arrays, leaf.arrays, fixed)
        now = leaf._replace(arrays=arrays, warm=carry.warm)
        take = lambda leaf: jax.tree.map(lambda x: blocks.take(x, start, shape), leaf)
        done = _separately(lambda leaf: solve(take(leaf)), abstract, scalars.count, now)
        put = lambda whole, new: blocks.put(whole, new, k, start, shape)
        return Result(
            tuple(map(put, carry.arrays, done.arrays)),
            put(carry.out, done.out),
            put(carry.warm, done.warm),
            jnp.maximum(carry.iterations, done.iterations),
            carry.residual + jnp.square(done.residual),
        )

    first = Result(
        _without(leaf.arrays, fixed),
        jnp.full_like(leaf.param, before),
        leaf.warm,
        jnp.zeros([], abstract.iterations.dtype),
        jnp.zeros([], abstract.residual.dtype),
    )
    last = jax.lax.fori_loop(0, blocks.number, body, first)
    arrays = _with(last.arrays, leaf.arrays, fixed)
    return last._replace(arrays=arrays, residual=jnp.sqrt(last.residual))


def _without(items: tuple, left_out: list[int]) -> tuple:
    return tuple(x for k, x in enumerate(items) if k not in left_out)


def _with(items: tuple, all_items: tuple, kept: list[int]) -> tuple:
    """`items`, with those of `all_items` at the indices `kept` back in their places."""
    rest = iter(items)
    return tuple(x if k in kept else next(rest) for k, x in enumerate(all_items))


def _separately(function: Any, result: Result, count: chex.Array, part: Leaf) -> Result:
    """function(part), abstractly `result`, which XLA keeps apart from what is around it.

    Fused with the slices that make its arguments and with the updates that take its results it would read from arrays
    that are being overwritten, and XLA would copy them whole for every block. A conditional is a border that no
    fusion crosses; this one is always taken (counts are not negative), which XLA cannot know.
    """
    never = lambda _: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), result)
    return jax.lax.cond(count >= 0, function, never, part)
