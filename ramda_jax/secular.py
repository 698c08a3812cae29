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
from collections.abc import Callable, Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

# Newton updates at most; over adversarial data 12 were never exceeded, so this only bounds a NaN or a bug.
MAX_ITERATIONS = 30


class GroupProblem(NamedTuple):
    """One array's groups.

    Attributes:
      pieces: () -> (b, D), arrays of the parameter's shape (D may be 0-d). Called in every iteration, so that
        neither need be kept: `tie` must be applied by it to what it reads (see `solve`).
      axes: the axes over which norms are taken.
      level: level per group, broadcastable against the array (keepdims layout).
      kappa, cap: None, or GroupMCP's curvature and the norm above which it is flat (keepdims layout).
    """

    pieces: Callable[[Callable], tuple[chex.Array, chex.Array]]
    axes: tuple[int, ...]
    level: chex.Array
    kappa: chex.Array | None = None
    cap: chex.Array | None = None


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
    """Per array, in the keepdims layout: r = ||x||, the zero mask, and the certified residual per group."""

    r: tuple[chex.Array, ...]
    zero: tuple[chex.Array, ...]
    residual: tuple[chex.Array, ...]
    iterations: chex.Array


def _sum(x: chex.Array, axes: tuple[int, ...]) -> chex.Array:
    return jnp.sum(x, axis=axes, keepdims=True)


def start(problem: GroupProblem) -> Start:
    """Screening and the free start."""
    b, d = problem.pieces(lambda x: x)
    axes = problem.axes
    largest = jnp.max(jnp.abs(b), axis=axes, keepdims=True, initial=0.0)
    tiny = jnp.finfo(b.dtype).tiny
    unit = jnp.where(largest >= tiny, jnp.minimum(largest, 1 / tiny), 1.0)  # 1 / unit is normal
    scaled = b * (1 / unit)
    squares = scaled * scaled
    norm2 = _sum(squares, axes)
    level, norm = problem.level / unit, jnp.sqrt(norm2)
    zero = norm <= level  # False for a NaN: it must not vanish into a zero group
    curvature = jnp.where(zero, 1.0, _sum(d * squares, axes))
    return Start(zero, norm, (norm - level) * (norm2 / curvature), unit)


def _after(r: chex.Array) -> Callable:
    """A `tie` for `GroupProblem.pieces`: what is computed from its results cannot have been computed before r.

    So pieces are recomputed in the loop and after it, not hoisted out of it and kept.
    """
    return lambda x: jax.lax.optimization_barrier((x, r))[0]


def _evaluate(b, d, level, r, axes) -> tuple[chex.Array, chex.Array]:
    """(phi(r), a): in terms of x(r) / r, whose squares are near 1 whatever the units of r."""
    q = 1 / (d * r + level)
    y = b * q
    yy = y * y
    phi2 = _sum(yy, axes)
    return jnp.sqrt(phi2), r * _sum(yy * (d * q), axes) / phi2


def _scaled(problem: GroupProblem, begin: Start, tie: Callable) -> tuple[chex.Array, ...]:
    """(b, D - kappa, level), the first and the last in the units of `begin`."""
    b, d = problem.pieces(tie)
    if problem.kappa is not None:
        d = d - problem.kappa
    return b * (1 / begin.unit), d, problem.level / begin.unit


def solve(
    problems: Sequence[GroupProblem],
    warm: Sequence[chex.Array | None],
    tolerance: float | None,
    max_iterations: int,
) -> Solution:
    """Solve every group of every array in one `lax.while_loop`.

    Args:
      problems: one per array.
      warm: norms of an earlier solution to start from (0: none), or None; keepdims layout.
      tolerance: on |1 - phi|, the residual relative to `level`. None: 1e-6, or 1e-13 in float64.
      max_iterations: Newton updates at most.

    Returns:
      Solution; `iterations` counts Newton updates (the loop's trips).
    """
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

    r0 = tuple(first_r(s, g) for s, g in zip(begins, warm, strict=True))
    # A bound on |1 - phi| at r; infinity: not known yet.
    error0 = tuple(jnp.where(s.zero, 0.0, jnp.full_like(s.r, jnp.inf)) for s in begins)

    started = [_settle_beyond_cap(*four) for four in zip(problems, begins, r0, error0, strict=True)]
    r0, error0 = tuple(r for r, _ in started), tuple(e for _, e in started)

    def unfinished(carry) -> chex.Array:
        count, _, errors = carry
        pending = [jnp.any(e > tol) for e, tol in zip(errors, tolerances, strict=True)]
        return (count < max_iterations) & functools.reduce(jnp.logical_or, pending)

    def update(carry):
        count, rs, errors = carry
        new = [
            _newton_step(p, s, r, e, tol)
            for p, s, r, e, tol in zip(problems, begins, rs, errors, tolerances, strict=True)
        ]
        return count + 1, tuple(r for r, _ in new), tuple(e for _, e in new)

    count = jnp.zeros([], jnp.int32)
    if not problems:
        return Solution((), (), (), count)
    count, rs, errors = jax.lax.while_loop(unfinished, update, (count, r0, error0))
    residuals, norms = [], []
    for p, s, r, e in zip(problems, begins, rs, errors, strict=True):
        eps = jnp.finfo(r.dtype).eps
        # The certificate in exact arithmetic, plus what rounding of x = b / (D + mu) alone can leave.
        residuals.append(jnp.where(s.zero, 0.0, p.level * e + eps * s.norm * s.unit))
        norms.append(jnp.where(s.zero, 0.0, r * s.unit))
    return Solution(tuple(norms), tuple(s.zero for s in begins), tuple(residuals), count)


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
    problem: GroupProblem, begin: Start, r: chex.Array, error: chex.Array, tolerance: float
) -> tuple[chex.Array, chex.Array]:
    """One update of every group of one array: (new r, bound on |1 - phi| there)."""
    b, d, level = _scaled(problem, begin, _after(r))
    phi, slope = _evaluate(b, d, level, r, problem.axes)
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


def point(problem: GroupProblem, r: chex.Array, zero: chex.Array) -> chex.Array:
    """x = b / (D + level / r), and exactly 0 in zero groups."""
    b, d = problem.pieces(_after(r))
    if problem.kappa is not None:
        d = d - problem.kappa
    mu = problem.level / jnp.where(zero, 1.0, r)
    return jnp.where(zero, jnp.zeros_like(b), b / (d + mu))
