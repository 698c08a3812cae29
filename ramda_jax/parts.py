"""The step where this device has parts of the arrays; inside `jax.shard_map` or `jax.pmap`.

How a part is solved depends on what its array is cut along:

- along axes that separate groups: the part is an array like any other, and the device says nothing to the others;
- across groups, by a solver that can do it: all such arrays in one loop, one sum over devices per iteration;
- otherwise (a matrix under the nuclear norm, a solver that looks at whole arrays): b and D are gathered, one device
  solves, and the parts of the solution are scattered. Different devices solve different arrays.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from ramda_jax import execution
from ramda_jax.placement import Cut, Names, gather
from ramda_jax.solvers.base import LeafProblem, LeafSolution, Solver, Span


class _Way(NamedTuple):
    """How a part is solved, and over which devices its array is cut: what is alike in both is solved together."""

    alone: bool
    spread: Names  # the devices over which groups are spread
    names: Names


def run(
    method: execution.Method,
    solvers: Sequence[Solver | None],
    cuts: Sequence[Cut],
    axes: Names,
    leaves: Sequence[execution.Leaf],
    scalars: execution.Scalars,
) -> list[execution.Result]:
    """`execution.run` of this device's parts.

    Args:
      method, solvers, leaves, scalars: as there; the arrays of `leaves` are parts.
      cuts: how each array is cut.
      axes: all mesh axes there are: iterations and residuals are those of all devices.
    """
    ways = [_way(*three) for three in zip(solvers, cuts, leaves, strict=True)]
    results: dict[int, execution.Result] = {}
    for way in dict.fromkeys(ways):
        mine = [i for i, other in enumerate(ways) if other == way]
        some = tuple(solvers[i] for i in mine)
        parts, where = tuple(leaves[i] for i in mine), [cuts[i] for i in mine]
        if way.alone:
            done = execution.run(method, some, parts, scalars)
        elif way.spread:
            spans = [_span(way, cut, leaf) for cut, leaf in zip(where, parts, strict=True)]
            done = execution.step(method, some, parts, scalars, spans=spans)
        else:
            done = _by_owners(method, some, where, parts, scalars)
        results |= dict(zip(mine, done, strict=True))
    separated = [_separated(way) for way in ways]
    return _agree([results[i] for i in range(len(leaves))], separated, axes)


def _way(solver: Solver | None, cut: Cut, leaf: execution.Leaf) -> _Way:
    if solver is None or leaf.psi is None or not cut.axes:
        return _Way(True, (), cut.names)
    separable = leaf.psi.separable_axes(cut.shape)
    across = [k for k in cut.axes if k not in separable]
    if solver.separable and not across:
        return _Way(True, (), cut.names)
    spread = tuple(name for k in across for name in cut.state[k]) if solver.spans else ()
    return _Way(False, spread, cut.names)


def _separated(way: _Way) -> Names:
    """The mesh axes along which devices know of different residuals."""
    return tuple(name for name in way.names if name not in way.spread)


def _span(way: _Way, cut: Cut, leaf: execution.Leaf) -> Span:
    psi: Any = leaf.psi
    separable = psi.separable_axes(cut.shape)
    sizes = zip(leaf.param.shape, cut.shape, strict=True)
    shape = tuple(n if k in separable else whole for k, (n, whole) in enumerate(sizes))
    return Span(shape, way.spread)


def _agree(
    results: list[execution.Result], separated: Sequence[Names], axes: Names
) -> list[execution.Result]:
    """The results with the most iterations, and the residuals of the whole arrays, on all devices: two collectives."""
    number = len(results)
    dtype = jnp.result_type(*(r.residual for r in results))
    counts = [r.iterations.astype(dtype) for r in results]
    residuals = jnp.stack([r.residual.astype(dtype) for r in results])
    most = jax.lax.pmax(jnp.concatenate([residuals, jnp.stack(counts)]), axes)
    largest, iterations = most[:number], most[number:].astype(jnp.int32)
    # Devices that know the same residual share it. (A maximum over devices may pass over a NaN, a sum does not.)
    devices = jax.lax.axis_size(axes)
    copies = [devices // math.prod(jax.lax.axis_size(n) for n in names) for names in separated]
    unit = jnp.where((largest > 0) & (largest < jnp.inf), largest, 1.0)
    squares = jax.lax.psum(jnp.square(residuals / unit) / jnp.asarray(copies, dtype), axes)
    total = unit * jnp.sqrt(squares)
    return [
        r._replace(iterations=iterations[k], residual=total[k].astype(r.residual.dtype))
        for k, r in enumerate(results)
    ]


def _by_owners(
    method: execution.Method,
    solvers: Sequence[Any],
    cuts: Sequence[Cut],
    leaves: Sequence[execution.Leaf],
    scalars: execution.Scalars,
) -> list[execution.Result]:
    """Each array solved whole by one device of those over which it is cut."""
    devices = jax.lax.axis_size(cuts[0].names)
    owners = _owners([cut.shape for cut in cuts], devices)
    results = []
    for solver, cut, leaf, owner in zip(solvers, cuts, leaves, owners, strict=True):
        problem = execution.prepare(method, leaf, scalars)
        solution = _by_owner(solver, cut, owner, problem, leaf.warm)
        results.append(execution.finish(problem, solution, leaf, scalars))
    return results


def _owners(shapes: Sequence[tuple[int, ...]], devices: int) -> list[int]:
    """Which device solves each array: the largest first, each to who has the least to do."""
    work = [0.0] * devices
    owners = [0] * len(shapes)
    # Of a decomposition.
    cost = lambda shape: math.prod(shape) * min(math.prod(shape[:-1]), shape[-1])
    for i in sorted(range(len(shapes)), key=lambda i: -cost(shapes[i])):
        owners[i] = work.index(min(work))
        work[owners[i]] += cost(shapes[i])
    return owners


def _by_owner(
    solver: Solver, cut: Cut, owner: int, problem: LeafProblem, warm: chex.Array
) -> LeafSolution:
    smooth = problem.smooth()
    rows = _rows(warm, problem.start.shape)
    scalar = smooth.d.ndim == 0
    own = [smooth.at_zero(), problem.start, *([] if scalar else [smooth.d])]
    stacked = jnp.concatenate([jnp.stack(own), rows])
    stacked_layout = ((), *cut.state)
    mine = jax.lax.axis_index(cut.names) == owner

    def solve(stacked: chex.Array) -> tuple[chex.Array, ...]:
        b, start = stacked[0], stacked[1]
        d = smooth.d if scalar else stacked[2]
        old = _like(warm, stacked[len(own) :])
        whole = problem._replace(arrays=(b, d), scalars=(), pieces=_as_they_are, start=start)
        (solution,) = solver.solve([whole], [old])
        new = jnp.concatenate([solution.x[None], _rows(solution.warm, b.shape)])
        return vary((new, solution.iterations, solution.residual))

    def wait(stacked: chex.Array) -> tuple[chex.Array, ...]:
        return vary(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), abstract))

    # The two branches are of one type: both vary over the devices.
    vary = lambda tree: jax.tree.map(lambda x: jnp.where(mine, x, x), tree)
    # Known to be the same on all devices: JAX's SVD for TPUs takes no input of a type that varies over them.
    gathered = gather(stacked, stacked_layout, to="invarying")
    abstract = jax.eval_shape(solve, gathered)
    new, iterations, residual = jax.lax.cond(mine, solve, wait, gathered)
    for axis, names in enumerate(stacked_layout):
        if names:
            new = jax.lax.psum_scatter(new, names, scatter_dimension=axis, tiled=True)
    return LeafSolution(new[0], _like(warm, new[1:]), iterations, residual)


def _as_they_are(
    arrays: tuple[chex.Array, ...], start: chex.Array, scalars: tuple[chex.Array, ...]
) -> tuple[chex.Array, ...]:
    """The `pieces` of a problem whose arrays are b and D: it differs from the original by a constant."""
    b, d = arrays
    return -b, jnp.zeros_like(b), d


def _rows(warm: chex.Array, shape: tuple[int, ...]) -> chex.Array:
    """The arrays of this shape in a warm start, stacked; none where it is something else."""
    if warm.shape == shape:
        return warm[None]
    return warm if warm.shape[1:] == shape else jnp.zeros((0, *shape), warm.dtype)


def _like(warm: chex.Array, rows: chex.Array) -> chex.Array:
    """The inverse of `_rows`, for a warm start of this form."""
    if rows.shape[0] == 0:
        return warm
    return rows if warm.ndim == rows.ndim else rows[0]
