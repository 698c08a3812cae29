"""The scalar equation behind every group norm in a diagonal metric, solved by Newton's method.

Per group:   minimise over x   1/2 <x, D x> - <b, x> + level ||x||,   D > 0 diagonal, level >= 0.

x = 0 iff ||b|| <= level. Otherwise x = b / (D + level / r) where r = ||x|| is the root of

    h(r) = 1,     1 / h(r) = phi(r) = ||b / (D + level / r)|| / r = ||b / (D r + level)||.

h is the power mean of order -2 of the functions (D_i r + level) / |b_i|, which are linear and positive: concave, and
increasing. So Newton's method on h(r) = 1 from any r below the root increases to it, quadratically, with no
safeguard. From above one step lands below the root, possibly below 0: then the free start is taken instead. With y =
b / (D r + level),

    r <- r + r (phi - 1) / a,        phi = ||y||,   a = sum(y^2 D r / (D r + level)) / phi^2,   in (0, 1].

A free start, never above the root, is one step from r = 0:  r0 = (||b|| - level) ||b||^2 / sum(D b^2).

Certificate. At x(r) the least subgradient has norm level |1 - phi(r)|. A step from r to r' leaves
|1 - h(r')| <= 3/8 ((r' - r) / min(r, r'))^2 max(1, h(r)), because |h''| = 3 h Var(a_i) / r^2 and Var(a_i) <= 1/4 where
a_i = D_i r / (D_i r + level) lies in [0, 1]. So the last step certifies the point it leads to: no extra evaluation.

Group MCP has D - kappa in place of D below r = cap (see `regularizers.group.GroupMCP`), which may be indefinite: h
stays
concave but need not increase, the a_i may be negative, and the bound above does not hold; there the equation is
evaluated once more instead.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from ramda_jax import _numerics, _target

# Entries of a block on a CPU. b and D are made in larger blocks, because XLA spreads such work over threads and this pays
# only for large pieces; they are solved in smaller ones, of which a few arrays fit a second-level cache.
BLOCK_SIZES = (131_072, 16_384)

# Newton updates at most; over adversarial data 12 were never exceeded, so this only bounds a NaN or a bug.
MAX_ITERATIONS = 30


class GroupProblem(NamedTuple):
    """One array's groups, or those of a block of it.

    Attributes:
      arrays: what b and D are computed from, each of the parameter's shape.
      scalars: 0-d arrays that go with them.
      pieces: (arrays, scalars) -> (b, D), elementwise, both of the parameter's shape (D may be 0-d). Called in every
        iteration, so that neither need be kept.
      axes: the axes over which norms are taken.
      level: level; 0-d, or per group in the keepdims layout.
      kappa, cap: None, or GroupMCP's curvature and the norm above which it is flat; 0-d.
      settle: None, or (problem, r, zero) -> (zero, flat), which has the last word: groups where `flat` take b / D.
      resident: whether b and D are few enough to be kept.
      names: the mesh axes over which every group is spread, each device having a part of it; inside `shard_map`.
    """

    arrays: tuple[chex.Array, ...]
    scalars: Any
    pieces: Callable[[tuple[chex.Array, ...], Any], tuple[chex.Array, chex.Array]]
    axes: tuple[int, ...]
    level: chex.Array
    kappa: chex.Array | None = None
    cap: chex.Array | None = None
    settle: Callable | None = None
    resident: bool = False
    names: tuple[str, ...] = ()

    def tied(self, tie: Callable = lambda x: x) -> tuple[chex.Array, chex.Array]:
        """(b, D), `tie` applied to every array before use, unless they are resident."""
        if self.resident:
            tie = lambda x: x
        return self.pieces(jax.tree.map(tie, self.arrays), self.scalars)


class Start(NamedTuple):
    """What the first look at b and D tells.

    b, level, norm and r are in units of the largest |b_i| of the group, so that no square leaves the float range;
    r in these units is r / unit, since x is in units of b / D.
    """

    zero: chex.Array  # bool
    norm: chex.Array  # ||b|| / unit
    r: chex.Array  # the free start / unit
    unit: chex.Array


class Solution(NamedTuple):
    """The groups of one array, in the keepdims layout.

    Attributes:
      r: ||x||; 0 for zero groups.
      zero: bool.
      flat: bool, groups that take b / D; None where psi has no flat part.
      residual: the certificate.
      iterations: Newton updates, 0-d.
    """

    r: chex.Array
    zero: chex.Array
    flat: chex.Array | None
    residual: chex.Array
    iterations: chex.Array


def _sum(x: chex.Array, axes: tuple[int, ...]) -> chex.Array:
    return jnp.sum(x, axis=axes, keepdims=True)


def _over_devices(sums: list[chex.Array], names: tuple[str, ...]) -> list[chex.Array]:
    """The sums of every array over the devices that share groups: one collective for all of them."""
    if not names:
        return sums
    dtype = jnp.result_type(*sums)
    flat = jnp.concatenate([jnp.ravel(x).astype(dtype) for x in sums])
    pieces = jnp.split(jax.lax.psum(flat, names), np.cumsum([x.size for x in sums])[:-1])
    return [y.reshape(x.shape).astype(x.dtype) for y, x in zip(pieces, sums, strict=True)]


def total(problem: GroupProblem, x: chex.Array) -> chex.Array:
    """The sum of x over each group, in the keepdims layout."""
    return _over_devices([_sum(x, problem.axes)], problem.names)[0]


def norms(x: chex.Array, axes: tuple[int, ...], names: tuple[str, ...] = ()) -> chex.Array:
    """||x_g|| in the keepdims layout; scaled by the largest entry, so that no square leaves the float range.

    Args:
      x: the array, or this device's part of it.
      axes: over which norms are taken.
      names: the mesh axes over which every group is spread, if over any.
    """
    largest = _largest(x, axes, names)
    unit = jnp.where((largest > 0) & (largest < jnp.inf), largest, 1.0)
    y = x / unit
    (square,) = _over_devices([_sum(y * y, axes)], names)
    # The inner `where` keeps the gradient of a zero group at 0 instead of NaN.
    positive = square != 0
    return unit * jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)


def _largest(x: chex.Array, axes: tuple[int, ...], names: tuple[str, ...]) -> chex.Array:
    largest = jnp.max(jnp.abs(x), axis=axes, keepdims=True, initial=0.0)
    return jax.lax.pmax(largest, names) if names else largest


def start(problem: GroupProblem) -> Start:
    """Screening and the free start."""
    b, d = problem.tied()
    axes = problem.axes
    largest = _largest(b, axes, problem.names)
    tiny = jnp.finfo(b.dtype).tiny
    unit = jnp.where(largest >= tiny, jnp.minimum(largest, 1 / tiny), 1.0)  # 1 / unit is normal
    scaled = b * (1 / unit)
    squares = scaled * scaled
    sums = [_sum(squares, axes), _sum(d * squares, axes)]
    norm2, curvature = _over_devices(sums, problem.names)
    level, norm = problem.level / unit, jnp.sqrt(norm2)
    zero = norm <= level  # False for a NaN: it must not vanish into a zero group
    curvature = jnp.where(zero, 1.0, curvature)
    return Start(zero, norm, (norm - level) * (norm2 / curvature), unit)


def _after(r: chex.Array) -> Callable:
    """A `tie` for `GroupProblem.tied`: what is computed from its results cannot have been computed before r.

    So pieces are recomputed in the loop and after it, not hoisted out of it and kept.
    """
    return lambda x: jax.lax.optimization_barrier((x, r))[0]


def _sums(problem: GroupProblem, begin: Start, r: chex.Array) -> list[chex.Array]:
    """[phi(r)^2, a phi(r)^2 / r]: in terms of x(r) / r, whose squares are near 1 whatever the units of r."""
    b, d, level = _scaled(problem, begin, _after(r))
    q = 1 / (d * r + level)
    y = b * q
    yy = y * y
    return [_sum(yy, problem.axes), _sum(yy * (d * q), problem.axes)]


def _scaled(problem: GroupProblem, begin: Start, tie: Callable) -> tuple[chex.Array, ...]:
    """(b, D - kappa, level), the first and the last in the units of `begin`."""
    b, d = problem.tied(tie)
    if problem.kappa is not None:
        d = d - problem.kappa
    return b * (1 / begin.unit), d, problem.level / begin.unit


def solve(
    problems: Sequence[GroupProblem],
    warm: Sequence[chex.Array | None],
    tolerance: float | None,
    max_iterations: int,
) -> list[Solution]:
    """Solve every group of every array: all arrays in one `lax.while_loop`, or, on a CPU, block by block.

    Args:
      problems: one per array.
      warm: norms of an earlier solution to start from (0: none), or None; keepdims layout.
      tolerance: on |1 - phi|, the residual relative to `level`. None: 1e-6, or 1e-13 in float64.
      max_iterations: Newton updates at most.
    """
    static = [(p.pieces, p.axes, p.settle) for p in problems]
    numbers = [(p.arrays, p.scalars, p.level, p.kappa, p.cap) for p in problems]

    def problems_of(numbers: Any) -> list[GroupProblem]:
        return [
            GroupProblem(arrays, scalars, pieces, axes, level, kappa, cap, settle)
            for (arrays, scalars, level, kappa, cap), (pieces, axes, settle) in zip(
                numbers, static, strict=True
            )
        ]

    def together(numbers: Any, warm: Any) -> list[Solution]:
        return solve_together(problems_of(numbers), warm, tolerance, max_iterations)

    def apart(numbers: Any, warm: Any) -> list[Solution]:
        pairs = zip(problems_of(numbers), warm, strict=True)
        return [_in_blocks(p, guess, tolerance, max_iterations, BLOCK_SIZES) for p, guess in pairs]

    return _target.select(together, {"cpu": apart}, numbers, list(warm))


def solve_together(
    problems: Sequence[GroupProblem],
    warm: Sequence[chex.Array | None],
    tolerance: float | None,
    max_iterations: int,
) -> list[Solution]:
    """`solve`, all arrays in one loop; the groups of all are spread over the same devices, if over any."""
    begins = [start(p) for p in problems]
    tolerances = [
        (1e-13 if s.r.dtype == jnp.float64 else 1e-6) if tolerance is None else tolerance
        for s in begins
    ]

    def first_r(begin: Start, guess: chex.Array | None) -> chex.Array:
        # Zero groups get r = 1: they take part in the arithmetic but never in the decisions.
        if guess is None:
            return jnp.where(begin.zero, 1.0, begin.r)
        guess = guess.astype(begin.r.dtype) / begin.unit
        return jnp.where(begin.zero, 1.0, jnp.maximum(guess, begin.r))

    # A bound on |1 - phi| at r; infinity: not known yet.
    carry = []
    for p, s, guess in zip(problems, begins, warm, strict=True):
        if p.tied()[1].ndim == 0 and p.kappa is None:  # one D for all: the free start is the root
            carry.append((jnp.where(s.zero, 1.0, s.r), 0.0 * s.norm))  # a NaN stays one
        else:
            error = jnp.where(s.zero, 0.0, jnp.full_like(s.r, jnp.inf))
            carry.append(_settle_beyond_cap(p, s, first_r(s, guess), error))

    def unfinished(carry) -> chex.Array:
        count, _, errors = carry
        pending = [jnp.any(e > tol) for e, tol in zip(errors, tolerances, strict=True)]
        return (count < max_iterations) & functools.reduce(jnp.logical_or, pending)

    def update(carry):
        count, rs, errors = carry
        parts = [x for three in zip(problems, begins, rs, strict=True) for x in _sums(*three)]
        sums = _over_devices(parts, problems[0].names)
        new = [
            _newton_step(p, s, r, e, tol, sums[2 * k], sums[2 * k + 1])
            for k, (p, s, r, e, tol) in enumerate(
                zip(problems, begins, rs, errors, tolerances, strict=True)
            )
        ]
        return count + 1, tuple(r for r, _ in new), tuple(e for _, e in new)

    if not problems:
        return []
    count, rs, errors = jax.lax.while_loop(
        unfinished,
        update,
        (jnp.zeros([], jnp.int32), tuple(r for r, _ in carry), tuple(e for _, e in carry)),
    )
    return [_finish(*four, count) for four in zip(problems, begins, rs, errors, strict=True)]


def _finish(
    problem: GroupProblem, begin: Start, r: chex.Array, error: chex.Array, count: chex.Array
) -> Solution:
    eps = jnp.finfo(r.dtype).eps
    # The certificate in exact arithmetic, plus what rounding of x = b / (D + mu) alone can leave.
    residual = jnp.where(begin.zero, 0.0, problem.level * error + eps * begin.norm * begin.unit)
    r = jnp.where(begin.zero, 0.0, r * begin.unit)
    zero, flat = begin.zero, None
    if problem.settle is not None:
        zero, flat = problem.settle(problem, r, zero)
    return Solution(jnp.where(zero, 0.0, r), zero, flat, residual, count)


def _in_blocks(
    problem: GroupProblem,
    warm: chex.Array | None,
    tolerance: float | None,
    max_iterations: int,
    sizes: tuple[int, ...],
) -> Solution:
    """The solution of one array, in blocks of whole groups that stay in a cache: the arrays are read once.

    b and D of a block are kept while its groups are solved, and nothing is kept of it but the norms. `sizes`: of the
    blocks, of the blocks within a block, and so on.
    """
    if not sizes:
        return solve_together([problem], [warm], tolerance, max_iterations)[0]
    shape = problem.arrays[0].shape
    kept = [a for a in range(len(shape)) if a not in problem.axes]
    axis = max(kept, key=shape.__getitem__, default=0)
    number = shape[axis] if kept else 1
    length = _block_length(number, math.prod(shape) // max(number, 1), sizes[0])
    if length == number:
        return _in_blocks(problem, warm, tolerance, max_iterations, sizes[1:])

    def block(start: chex.Array) -> Solution:
        cut = lambda x: jax.lax.dynamic_slice_in_dim(x, start, length, axis) if x.ndim else x
        b, d = problem.pieces(tuple(map(cut, problem.arrays)), problem.scalars)
        level = cut(jnp.asarray(problem.level))
        part = problem._replace(arrays=(b, d), pieces=as_they_are, level=level, resident=True)
        guess = None if warm is None else cut(warm)
        return _in_blocks(part, guess, tolerance, max_iterations, sizes[1:])

    def body(k: chex.Array, whole: Solution) -> Solution:
        start = jnp.minimum(k * length, number - length)  # the last block may overlap its neighbour
        part = block(start)
        put = lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, start, axis) if y.ndim else y
        new = jax.tree.map(put, whole, part)
        return new._replace(iterations=jnp.maximum(whole.iterations, part.iterations))

    abstract = jax.eval_shape(block, jnp.zeros([], jnp.int32))
    full = lambda y: tuple(number if a == axis else n for a, n in enumerate(y.shape))
    never = _numerics.never((problem.arrays, problem.scalars, problem.level, warm))
    empty = jax.tree.map(lambda y: jnp.full(full(y), never.astype(y.dtype)), abstract)
    return jax.lax.fori_loop(0, -(-number // length), body, empty)


def as_they_are(arrays: tuple[chex.Array, ...], scalars: Any) -> tuple[chex.Array, ...]:
    """The `pieces` of a problem whose arrays are b and D themselves."""
    return arrays


def _block_length(number: int, size: int, block_size: int) -> int:
    """How many of `number` groups of this size a block has; a divisor where there is one in reach."""
    at_most = max(1, block_size // max(size, 1))
    if number <= at_most:
        return number
    divisors = [n for n in range(max(1, at_most // 2), at_most + 1) if number % n == 0]
    return max(divisors, default=-(-number // -(-number // at_most)))


def _settle_beyond_cap(
    problem: GroupProblem, begin: Start, r: chex.Array, error: chex.Array
) -> tuple[chex.Array, chex.Array]:
    """Groups that start at or beyond `cap` have no root below it: they are finished, with r = cap.

    The free start is where the tangent of h at 0 reaches 1, and h with D - kappa lies below h with D, which lies
    below that tangent.
    """
    if problem.cap is None:
        return r, error
    cap = problem.cap / begin.unit
    beyond = ~begin.zero & (r >= cap)
    return jnp.where(beyond, cap, r), jnp.where(beyond, 0.0, error)


def _newton_step(
    problem: GroupProblem,
    begin: Start,
    r: chex.Array,
    error: chex.Array,
    tolerance: float,
    phi2: chex.Array,
    slope_sum: chex.Array,
) -> tuple[chex.Array, chex.Array]:
    """One update of every group of one array, from `_sums` at r: (new r, bound on |1 - phi| there)."""
    phi, slope = jnp.sqrt(phi2), r * slope_sum / phi2
    here = jnp.abs(phi - 1)
    target = r + r * ((phi - 1) / slope)
    if problem.cap is None:
        new = jnp.maximum(target, begin.r)
        relative = (new - r) / jnp.minimum(new, r)
        bound = 0.375 * relative * relative * jnp.maximum(1.0, 1 / phi)
        # From |1 - h| to |1 - phi|; a NaN stays one.
        bound = jnp.where(bound >= 0.5, jnp.inf, bound / (1 - bound))
    else:
        cap = problem.cap / begin.unit
        no_root = (phi > 1) & ((slope <= 0) | (target >= cap) | (r >= cap))
        new = jnp.where(no_root, cap, jnp.clip(target, jnp.minimum(begin.r, cap), cap))
        bound = jnp.where(no_root, 0.0, jnp.where(jnp.isnan(here), jnp.nan, jnp.inf))
    reached = here <= tolerance
    done = error <= tolerance
    new_error = jnp.where(reached, here, bound)
    return jnp.where(done | reached, r, new), jnp.where(done, error, new_error)


def point(problem: GroupProblem, solution: Solution) -> chex.Array:
    """x = b / (D + level / r), exactly 0 in zero groups, and b / D in flat ones."""
    b, d = problem.tied(_after(solution.r))
    mu = problem.level / jnp.where(solution.zero, 1.0, solution.r)
    if problem.kappa is not None:
        mu = mu - problem.kappa
    if solution.flat is not None:
        mu = jnp.where(solution.flat, 0.0, mu)
    return jnp.where(solution.zero, jnp.zeros_like(b), b / (d + mu))
