"""The scalar equation behind every group norm in a diagonal metric, solved by Newton's method.

Per group:   minimise over x   1/2 <x, D x> - <b, x> + level ||x||,   D > 0 diagonal, level >= 0.

x = 0 iff ||b|| <= level. Otherwise x = b / (D + level / r) where r = ||x|| is the root of

    h(r) = 1,     1 / h(r) = phi(r) = ||b / (D + level / r)|| / r = ||b / (D r + level)||.

h is the power mean of order -2 of the functions (D_i r + level) / |b_i|, which are linear and positive: concave, and
increasing. So Newton's method on h(r) = 1 from any r below the root increases to it, quadratically, with no
safeguard. From above one step lands below the root, possibly below 0: then the free start is taken instead. With y =
b / (D r + level),

    r <- r + r (phi - 1) / a,        phi = ||y||,   a = sum(y^2 D r / (D r + level)) / phi^2,   in (0, 1].

The free start, never above the root, is one step from r = 0:  r0 = (||b|| - level) ||b||^2 / sum(D b^2).

One look at b and D gives both the free start and the first step from a warm start: the sums of both are taken together.

Range. y is cut off at +-`_largest(dtype)`, so that no square leaves the float range whatever the units of b. That is
Newton's method for a smaller |b|, whose root is smaller: a step that stays below the root, that multiplies r by at
least as much, and that is never the last, because phi is large where anything was cut off. So nothing needs to be known
of b before it is read. An r beyond the floats ends as the largest one: x is b / D there.

Certificate. At x(r) the least subgradient has norm level |1 - phi(r)|. A step from r to r' leaves
|1 - h(r')| <= 3/8 ((r' - r) / min(r, r'))^2 max(1, h(r)), because |h''| = 3 h Var(a_i) / r^2 and Var(a_i) <= 1/4 where
a_i = D_i r / (D_i r + level) lies in [0, 1]. It holds for the free start r0 in place of r', too, if r' < r0: there the
tangent at r is above 1, and h is at most 1. So the last step certifies the point it leads to: no extra evaluation.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ramda_jax import _numerics
from ramda_jax.subproblem import Along, Names

# Newton updates at most; over adversarial data 12 were never exceeded, so this only bounds a NaN or a bug.
MAX_ITERATIONS = 30

Arrays = list[jax.Array]


class Member(NamedTuple):
    """One array of a problem.

    Attributes:
      arrays: what b and D are computed from, each of the member's shape.
      pieces: arrays -> (b, D), elementwise, both of the member's shape (D may be 0-d). Called in every iteration, so that
        neither need be kept.
      along: how the groups lie in it.
    """

    arrays: Any
    pieces: Callable[[Any], tuple[jax.Array, jax.Array]]
    along: Along

    @property
    def shape(self) -> tuple[int, ...]:
        """Of b."""
        return max((x.shape for x in jax.tree.leaves(self.arrays)), key=len)


class GroupProblem(NamedTuple):
    """The groups of one block, or of a tile of it.

    Attributes:
      members: its arrays.
      level: 0-d.
      kappa, cap: None, or a nonconvex norm's curvature and the norm above which it is flat; 0-d (`capped`).
      resident: whether b and D are few enough to be kept.
      names: the mesh axes over which every group is spread, each device having a part of it; inside `shard_map`.
    """

    members: tuple[Member, ...]
    level: jax.Array
    kappa: jax.Array | None = None
    cap: jax.Array | None = None
    resident: bool = False
    names: Names = ()

    def tied(self, k: int, tie: Callable = lambda x: x) -> tuple[jax.Array, jax.Array]:
        """(b, D) of a member, `tie` applied to every array before use, unless they are resident."""
        member = self.members[k]
        return member.pieces(member.arrays if self.resident else jax.tree.map(tie, member.arrays))


def as_they_are(arrays: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """The `pieces` of a member whose arrays are b and D themselves."""
    return arrays


class Roots(NamedTuple):
    """The solution of one problem, a number per group.

    Attributes:
      r: ||x||; exactly 0 for the groups that the level makes zero, and only for these. Some positive number where
        the level is 0: x is b / D there, whatever r.
      residual: the certificate of each, or the norm of all.
      iterations: evaluations of phi after which it was found, 0-d.
    """

    r: jax.Array
    residual: jax.Array
    iterations: jax.Array


class Apart:
    """How the groups of several problems are worked on: each problem by itself, as it is cut.

    Nothing moves between devices but what `names` of the problems ask for. A backend may have another (`backends.gpu`).
    """

    def __init__(self, problems: Sequence[GroupProblem]) -> None:
        self.problems = problems

    def sums(self, terms: Callable, rs: Sequence[Any], *, tied: bool = True) -> list[Arrays]:
        """Of every term, its sums over each group, joined.

        Args:
          terms: (problem, b, D, r) -> a list of arrays of the shape of b.
          rs: of every problem, a number per group, or None.
          tied: whether what is read waits for `rs`, or else for itself, so that b and D are made anew (`after`).
        """
        pairs = zip(self.problems, rs, strict=True)
        own = [sums_of(p, terms, r, tied=tied, add_up=self.add_up) for p, r in pairs]
        flat = over_devices([x for part in own for x in part], self.problems[0].names)
        remaining = iter(flat)
        columns = zip(*([next(remaining) for _ in part] for part in own), strict=True)
        return [self.join(column) for column in columns]

    @staticmethod
    def add_up(along: Along, xs: Arrays) -> Arrays:
        """The sums over each group of several arrays whose groups lie alike, of this device."""
        return [along.sum(x) for x in xs]

    def join(self, xs: Sequence[jax.Array]) -> Arrays:
        """What is computed with, from an array per problem, in the shape of its groups."""
        return list(xs)

    def split(self, xs: Sequence[jax.Array]) -> Arrays:
        """The inverse of `join`."""
        return list(xs)

    def numbers(self, xs: Sequence[jax.Array]) -> Arrays:
        """From a 0-d array per problem what broadcasts against the joined ones."""
        return list(xs)

    def residuals(self, xs: Sequence[jax.Array]) -> Arrays:
        """`split` of certificates, or of every problem the norm of its groups'."""
        return self.split(xs)


def over_devices(sums: Arrays, names: Names) -> Arrays:
    """The sums over the devices that share groups: one collective for all of them."""
    if not names:
        return sums
    dtype = jnp.result_type(*sums)
    flat = jnp.concatenate([jnp.ravel(x).astype(dtype) for x in sums])
    pieces = jnp.split(jax.lax.psum(flat, names), np.cumsum([x.size for x in sums])[:-1])
    return [y.reshape(x.shape).astype(x.dtype) for y, x in zip(pieces, sums, strict=True)]


def sums_of(
    problem: GroupProblem,
    terms: Callable,
    r: Any,
    *,
    tied: bool,
    add_up: Callable[[Along, Arrays], Arrays] = Apart.add_up,
) -> Arrays:
    """The sums of a problem over its groups, of this device's arrays; see `Apart.sums`."""
    total: Arrays = []
    for k, member in enumerate(problem.members):
        own = add_up(member.along, terms_of(problem, k, terms, r, tied=tied))
        total = [x + y for x, y in zip(total, own, strict=True)] if total else own
    return total


def terms_of(problem: GroupProblem, k: int, terms: Callable, r: Any, *, tied: bool) -> Arrays:
    """What is summed of one member."""
    b, d = problem.tied(k, after(r) if tied else lambda x: x)
    at = None if r is None else problem.members[k].along.spread(r, b)
    return terms(problem, b, d, at)


def after(r: Any) -> Callable:
    """A `tie` for `GroupProblem.tied`: what is computed from its results cannot have been computed before r.

    So pieces are recomputed in the loop and after it, not hoisted out of it and kept. r is None: nor before the arrays
    themselves, with which they would be written out.
    """
    return lambda x: _behind(x, r)


@jax.custom_jvp
def _behind(x: Any, r: Any) -> Any:
    return jax.lax.optimization_barrier((x, r))[0]


@_behind.defjvp
def _behind_jvp(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Any, Any]:
    # The barrier itself has no transpose in JAX 0.12 where only some of its operands are linear.
    return _behind(*primals), tangents[0]


def _largest(dtype: Any) -> float:
    """Where y is cut off (2.6e15 in float32): the sum of 5e7 squares is still finite."""
    return float(jnp.finfo(dtype).max) ** 0.4


def tiny_of(dtype: Any) -> float:
    """The least normal number."""
    return float(jnp.finfo(dtype).tiny)


def _square(y: jax.Array) -> jax.Array:
    """y^2, y cut off."""
    return jnp.minimum(y * y, _largest(y.dtype) ** 2)


def free_terms(problem: GroupProblem, b: jax.Array, d: jax.Array, r: Any = None) -> Arrays:
    """[y^2, D y^2] with y = b / level, or b where the level is 0; NaN where b is infinite, however small the level.

    (With a third sum here, XLA for GPUs writes out what it sums.)
    """
    del r
    yy = jnp.where(jnp.abs(b) < jnp.inf, _square(b * (1 / _unit(problem.level))), jnp.nan)
    return [yy, d * yy]


def _unit(level: jax.Array) -> jax.Array:
    return jnp.where(level > 0, jnp.maximum(level, tiny_of(level.dtype)), 1.0)


def terms(problem: GroupProblem, b: jax.Array, d: jax.Array, r: jax.Array) -> Arrays:
    """[y^2, y^2 D r / (D r + level)] with y = b / (D r + level)."""
    tiny = tiny_of(b.dtype)
    level = jnp.maximum(problem.level, tiny)
    if problem.kappa is not None:
        d = d - problem.kappa
    dr = jnp.minimum(d * r, 0.25 * float(jnp.finfo(b.dtype).max))
    sum_ = dr + level
    if problem.kappa is not None:  # positive but for rounding
        sum_ = jnp.maximum(sum_, tiny)
    q = 1 / sum_
    yy = _square(b * q)
    return [yy, yy * (dr * q)]


def _look(problem: GroupProblem, b: jax.Array, d: jax.Array, r: Any) -> Arrays:
    """Both of the above."""
    return [*free_terms(problem, b, d), *([] if r is None else terms(problem, b, d, r))]


class Start(NamedTuple):
    """What the first look tells of every group.

    Attributes:
      zero: bool; never where the level is 0: b may be nonzero, however small, and its squares 0.
      r: the free start; 1 for zero groups, which take part in the arithmetic but never in the decisions, and where the
        level is 0, which makes x the same whatever r is.
      rounding: what rounding of x = b / (D + mu) alone can leave of a residual.
      done: bool; zero or free groups.
    """

    zero: jax.Array
    r: jax.Array
    rounding: jax.Array
    done: jax.Array


def start(
    level: jax.Array,
    yy: jax.Array,
    curvature: jax.Array,
) -> Start:
    """The start from the sums of `free_terms`. With one D for all it is the root."""
    norm = jnp.sqrt(yy)
    free = level <= 0
    # False for a NaN: it must not vanish into a zero group.
    zero = ~free & (norm <= 1)
    r = level * ((norm - 1) * (yy / jnp.where(zero, 1.0, curvature)))
    # The curvature may be infinite, or next to nothing; a NaN stays one.
    r = jnp.clip(r, tiny_of(yy.dtype), float(jnp.finfo(yy.dtype).max))
    done = zero | (free & (yy >= 0))
    # Where entries were cut off, the level is lost in the rounding of b, and nothing is certified.
    known = jnp.where(norm < _largest(yy.dtype), norm, jnp.where(jnp.isnan(norm), norm, jnp.inf))
    rounding = float(jnp.finfo(yy.dtype).eps) * _unit(level) * known
    return Start(zero, jnp.where(done, 1.0, r), rounding, done)


def solve(
    problems: Sequence[GroupProblem],
    warm: Sequence[jax.Array | None],
    tolerance: float | None,
    max_iterations: int,
    pack: type[Apart] = Apart,
) -> list[Roots]:
    """Solve every group of every problem in one `lax.while_loop`.

    Args:
      problems: convex ones; the groups of all are spread over the same devices, if over any.
      warm: norms of an earlier solution to start from (0: none), or None for all: start freely.
      tolerance: on |1 - phi|, the residual relative to `level`. None: 1e-6, or 1e-13 in float64.
      max_iterations: Newton updates at most.
      pack: how the groups are worked on.
    """
    groups = pack(problems)
    levels = groups.numbers([p.level for p in problems])
    if problems[0].tied(0)[1].ndim == 0:
        return _solve_scalar(groups, levels)
    warmed = all(guess is not None for guess in warm)
    looked = groups.sums(_look, warm if warmed else [None] * len(problems))
    begins = [start(level, *row) for level, *row in zip(levels, *looked[:2], strict=True)]
    rs = [s.r for s in begins]
    errors = [jnp.where(s.done, jnp.zeros_like(s.r), jnp.full_like(s.r, jnp.inf)) for s in begins]
    limit = limit_of(rs[0].dtype, tolerance)

    def moved(rs: Arrays, errors: Arrays, pairs: Sequence[Arrays]) -> tuple[Arrays, Arrays]:
        rows = zip(begins, rs, errors, *pairs, strict=True)
        both = [_newton(begin, r, error, limit, *pair) for begin, r, error, *pair in rows]
        return [r for r, _ in both], [error for _, error in both]

    if warmed:
        old = groups.join([g.astype(rs[0].dtype) for g in warm if g is not None])
        old = [_numerics.cut_like(r, s.r) for r, s in zip(old, begins, strict=True)]
        old = [jnp.where(s.done, s.r, r) for s, r in zip(begins, old, strict=True)]
        rs, errors = moved(old, errors, looked[2:])

    def unfinished(carry: Any) -> jax.Array:
        count, _, _, pending = carry
        return (count < max_iterations) & pending

    def update(carry: Any) -> Any:
        count, rs, errors, _ = carry
        rs, errors = moved(rs, errors, groups.sums(terms, groups.split(rs)))
        return count + 1, rs, errors, any_above(errors, limit)

    first = (_count(warmed), rs, errors, any_above(errors, limit))
    count, rs, errors, _ = jax.lax.while_loop(unfinished, update, first)
    return _finish(groups, begins, levels, rs, errors, count)


def _solve_scalar(groups: Apart, levels: Arrays) -> list[Roots]:
    """With one D for all entries the free start is the root: no loop."""
    free = groups.sums(free_terms, [None] * len(groups.problems))
    begins = [start(level, *row) for level, *row in zip(levels, *free, strict=True)]
    errors = [jnp.zeros_like(s.r) for s in begins]
    return _finish(groups, begins, levels, [s.r for s in begins], errors, _count(0))


def _count(n: int) -> jax.Array:
    return jnp.asarray(n, jnp.int32)


def limit_of(dtype: Any, tolerance: float | None) -> float:
    """On |1 - phi|: the user's, or what the dtype allows."""
    if tolerance is not None:
        return tolerance
    return 1e-13 if dtype == jnp.float64 else 1e-6


def any_above(errors: Arrays, limit: float) -> jax.Array:
    """Whether any group is not finished; 0-d. A NaN is."""
    return functools.reduce(jnp.logical_or, [jnp.any(e > limit) for e in errors])


def _newton(
    begin: Start,
    r: jax.Array,
    error: jax.Array,
    tolerance: float,
    phi2: jax.Array,
    slope_sum: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """One update of every group from the sums of `terms` at r: (new r, bound on |1 - phi| there).

    `error`: such a bound at r; infinity: not known yet.
    """
    tiny = tiny_of(r.dtype)
    phi = jnp.sqrt(phi2)
    slope = jnp.maximum(slope_sum / jnp.where(phi2 == 0, 1.0, phi2), tiny)
    here = jnp.abs(phi - 1)
    # r may be 0, or its root be beyond the floats: then x is b / D, and nothing is certified.
    new = jnp.clip(r + (r / slope) * (phi - 1), begin.r, float(jnp.finfo(r.dtype).max))
    relative = (new - r) / jnp.maximum(jnp.minimum(new, r), tiny)
    bound = 0.375 * relative * relative * jnp.maximum(1.0, 1 / jnp.maximum(phi, tiny))
    # From |1 - h| to |1 - phi|; a NaN stays one.
    bound = jnp.where(bound >= 0.5, jnp.inf, bound / (1 - bound))
    reached = (here <= tolerance) & (r > 0)
    done = error <= tolerance
    new_error = jnp.where(reached, here, bound)
    return jnp.where(done | reached, r, new), jnp.where(done, error, new_error)


def _finish(
    groups: Apart,
    begins: Sequence[Start],
    levels: Arrays,
    rs: Arrays,
    errors: Arrays,
    count: jax.Array,
) -> list[Roots]:
    residuals = [
        jnp.where(s.zero, 0.0, level * error + s.rounding)
        for s, level, error in zip(begins, levels, errors, strict=True)
    ]
    rs = [jnp.where(s.zero, 0.0, r) for s, r in zip(begins, rs, strict=True)]
    pairs = zip(groups.split(rs), groups.residuals(residuals), strict=True)
    return [Roots(r, residual, count) for r, residual in pairs]


def point(problem: GroupProblem, k: int, r: jax.Array) -> jax.Array:
    """x of a member: b / (D - kappa + level / r), exactly 0 where r is 0, and b / D where r is at least the cap.

    Differentiable, if r is (`implicit`).
    """
    b, d = problem.tied(k, after(r))
    r = problem.members[k].along.spread(r, b)
    empty = r == 0
    mu = problem.level / jnp.where(empty, 1.0, r)
    if problem.kappa is not None and problem.cap is not None:  # both or neither
        mu = jnp.where(r >= problem.cap, 0.0, mu - problem.kappa)
    # 1 for D + mu where it does not matter: nothing divides by zero, in the derivative neither.
    return jnp.where(empty, jnp.zeros_like(b), b / jnp.where(empty, 1.0, d + mu))


def implicit(problem: GroupProblem, r: jax.Array) -> jax.Array:
    """r as a function of b, D, level and kappa: the same value, with the derivative of the root of phi = 1.

    d phi + phi' dr = 0 with phi' = -a phi / r. Zero groups stay zero, flat ones have no root: neither moves.
    """
    stop = jax.lax.stop_gradient
    # With level 0, x is b / D and r only matters for what a level would do.
    lengths = lambda p, b, d, r: [jnp.square(b / d)]
    (square,) = sums_of(problem, lengths, None, tied=False)
    r = stop(_numerics.cut_like(r, square))
    fixed = r == 0
    if problem.cap is not None:
        fixed = fixed | (r >= stop(problem.cap))
    r = jnp.where((problem.level > 0) | fixed, r, jnp.sqrt(stop(square)))

    def living(p: GroupProblem, b: jax.Array, d: jax.Array, r: jax.Array) -> Arrays:
        """`terms`, and a harmless equation where r is 0: its derivative is not used, but must be finite."""
        alive = r > 0
        d = d if p.kappa is None else d - p.kappa
        d, r = jnp.where(alive, d, jnp.ones_like(d)), jnp.where(alive, r, jnp.ones_like(r))
        return terms(p._replace(kappa=None), b, d, r)

    at = jnp.where(fixed, 0.0, r)
    phi2, slope_sum = sums_of(problem, living, at, tied=False)
    gain = stop(jnp.where(fixed | (slope_sum == 0), 0.0, 0.5 * at / slope_sum))
    return r + gain * (phi2 - stop(phi2))
