"""Douglas-Rachford splitting for   Q(x) = <v, x> + 1/2 <x - x0, D (x - x0)> + weight psi(x),   D diagonal, psi convex.

One prox per iteration, in a scalar metric sigma of our choice; D is inverted exactly, entry by entry, so its condition
number does not limit the step as it limits proximal gradient's. With b = D x0 - v the iteration is

    z = prox_{weight psi / sigma}(m),   y = sigma (m - z) in weight dpsi(z),   s = D z - b + y in dQ(z),
    m <- m - s / (D + sigma).

Fixed points are those with s = 0: z is the minimiser and y its dual. s certifies condition (7) at every iterate for
nothing. The map is firmly nonexpansive, hence ||s / (D + sigma)|| never increases. Anderson's
extrapolation over the last few iterates is kept where it lowers this norm and undone where it does not.
A pair (z, y) of an earlier problem is such an iterate too, before any prox is computed: the iteration starts from it, and
ends with it where it is good enough. Derivation, choice of sigma and certificates: docs/mathematics.md.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ramda_jax import _numerics
from ramda_jax.regularizers import Regularizer
from ramda_jax.solvers import first_order
from ramda_jax.subproblem import Quadratic, Whole

# Differences of iterates that the extrapolation combines; more gained nothing down to residuals of 1e-4.
_MEMORY = 3
# sigma = 2 weight psi(x) / ||x||^2: for the nuclear norm, thresholds of half a typical singular value.
_THRESHOLD = 2.0
# What decides where the certificate cannot: the paper's solver, with as many iterations as its authors give it.
_FALLBACK = first_order.Settings(5, 5, None, None, accelerated=False)


class Settings(NamedTuple):
    """Stopping rule: a residual is small if it is at most tolerance ||b|| and at most share ||D (z - x0)||."""

    max_iterations: int
    tolerance: float
    share: float | None = None  # None: no such bound


class Result(NamedTuple):
    x: jax.Array
    dual: jax.Array  # y in weight dpsi(x); zero where none is known
    residual: jax.Array  # ||s||, s in dQ(x)
    iterations: jax.Array


class _Point(NamedTuple):
    """A pair (z, y), as one prox gives it."""

    z: jax.Array
    penalty: jax.Array  # weight psi(z)
    change: jax.Array  # -s / (D + sigma)
    target: jax.Array  # m + change
    merit: jax.Array  # ||change||
    residual: jax.Array  # ||s||
    enough: jax.Array  # whether condition (7) is certified


class _History(NamedTuple):
    """Differences of successive accepted points, the newest over the oldest; rows with no norm are empty."""

    changes: jax.Array
    targets: jax.Array
    gram: jax.Array  # <change_i, change_j>
    slot: jax.Array


class _Carry(NamedTuple):
    iterations: jax.Array
    m: jax.Array
    point: _Point
    history: _History
    done: jax.Array


def minimise(
    problem: Whole, start: jax.Array, dual: jax.Array, known: jax.Array, settings: Settings
) -> Result:
    """Run the iteration from (start, dual); at the end Q is not above that of `problem.start`.

    Args:
      problem: D positive, of the shape of `start`.
      start, dual: z and y to start from.
      known: 0-d bool: y is in weight dpsi(z). Then the pair itself may be the result, after no iteration.
      settings: when to stop.
    """
    smooth, weight, psi, previous = problem
    b = smooth.at_zero()
    scale = _numerics.norm(b)
    sigma = _metric(smooth, psi, weight, start, dual)
    inverse = 1.0 / (smooth.d + sigma)
    rounding = 8 * float(jnp.finfo(start.dtype).eps)

    def judge(m: jax.Array, z: jax.Array, y: jax.Array, penalty: jax.Array) -> _Point:
        s = smooth.d * z - b + y
        change = -inverse * s
        # Both halves of condition (7): Q(w) >= Q(z) + <s, w - z> + 1/2 <w - z, D (w - z)> for every w.
        residual, step = _numerics.norm(s), previous - z
        lower = jnp.sum((s + 0.5 * smooth.d * step) * step) >= 0
        small = residual <= settings.tolerance * scale
        if settings.share is not None:
            small &= residual <= settings.share * _numerics.norm(smooth.d * (z - smooth.x0))
        enough = (lower & small) | (residual <= rounding * scale)
        merit = _numerics.norm(change)
        return _Point(z, penalty, change, m + change, merit, residual, enough)

    def evaluate(m: jax.Array) -> _Point:
        z, value = psi.prox_and_value(m, weight / sigma)
        return judge(m, z, sigma * (m - z), weight * value)

    def unfinished(c: _Carry) -> jax.Array:
        return (c.iterations < settings.max_iterations) & ~c.done

    def iterate(c: _Carry) -> _Carry:
        new = evaluate(c.m)
        rejected = (new.merit > c.point.merit) & ~new.enough
        history = _remember(c.history, c.point, new, rejected)
        point = jax.tree.map(lambda old, x: jnp.where(rejected, old, x), c.point, new)
        m = jnp.where(rejected, point.target, point.target - _extrapolate(history, point))
        return _Carry(c.iterations + 1, m, point, history, new.enough | jnp.isnan(new.residual))

    # Its target is the minimiser in x, which costs no prox.
    first = _known_only(judge(start + dual / sigma, start, dual, jnp.sum(dual * start)), known)
    empty = _empty(start, _numerics.never(scale))
    carry = _Carry(jnp.zeros([], jnp.int32), first.target, first, empty, first.enough)
    last = jax.lax.while_loop(unfinished, iterate, carry)
    z, s = last.point.z, -(smooth.d + sigma) * last.point.change
    y = jnp.where(last.iterations > 0, s - (smooth.d * z - b), dual)
    found = Result(z, y, last.point.residual, last.iterations)
    return jax.lax.cond(
        last.done,
        lambda: found,
        lambda: _decide(problem, found, last.point.penalty),
    )


def _known_only(point: _Point, known: jax.Array) -> _Point:
    """The point, or what anything is better than, of which only the target counts."""
    infinite = lambda x: jnp.where(known, x, jnp.inf)
    return point._replace(
        penalty=infinite(point.penalty),
        merit=infinite(point.merit),
        residual=infinite(point.residual),
        enough=point.enough & known,
    )


def _metric(
    smooth: Quadratic,
    psi: Regularizer,
    weight: ArrayLike,
    start: jax.Array,
    dual: jax.Array,
) -> jax.Array:
    """sigma: the curvature at which penalty and quadratic of the start balance, between min D and max D."""
    # psi is positively homogeneous or nearly so: then <y, z> = weight psi(z), which saves computing it.
    estimate = jnp.sum(dual * start)
    penalty = jax.lax.cond(
        estimate > 0, lambda: estimate, lambda: jnp.asarray(weight * psi.value(start), start.dtype)
    )
    square = jnp.sum(start * start)
    largest = jnp.max(smooth.d, initial=jnp.finfo(start.dtype).tiny)
    smallest = jnp.min(smooth.d, initial=jnp.inf)
    sigma = jnp.where(
        square > 0, _THRESHOLD * penalty / jnp.where(square > 0, square, 1.0), largest
    )
    # Without a penalty, the smaller sigma the sooner; with one, it never pays to go below D.
    least = jnp.where(penalty > 0, smallest, jnp.finfo(start.dtype).eps * largest)
    return jnp.clip(sigma, jnp.minimum(least, largest), largest)


def _empty(like: jax.Array, no: jax.Array) -> _History:
    """`no`: False, of the type of what the loop carries (it may vary over devices)."""
    rows = jnp.stack([jnp.where(no, like, 0.0)] * _MEMORY)
    gram = jnp.where(no, jnp.ones((_MEMORY, _MEMORY), like.dtype), 0.0)
    return _History(rows, rows, gram, jnp.zeros([], jnp.int32))


def _dots(rows: jax.Array, x: jax.Array) -> jax.Array:
    """<row, x> of every row; no reshape, which an explicit mesh refuses for cut arrays."""
    return jnp.sum(rows * x, axis=tuple(range(1, rows.ndim)))


def _remember(history: _History, old: _Point, new: _Point, rejected: jax.Array) -> _History:
    """The history with one more difference, or empty if `new` was rejected or is the first."""
    forget = rejected | jnp.isinf(old.merit)
    change = jnp.where(forget, 0.0, new.change - old.change)
    target = jnp.where(forget, 0.0, new.target - old.target)
    changes = history.changes.at[history.slot].set(change)
    targets = history.targets.at[history.slot].set(target)
    # Where forgotten, only the Gram matrix is cleared: rows without a norm have no weight.
    known = jnp.where(forget, 0.0, history.gram)
    dots = jnp.where(jnp.diagonal(known) > 0, _dots(changes, change), 0.0)
    dots = dots.at[history.slot].set(jnp.sum(change * change))
    gram = known.at[history.slot].set(dots).at[:, history.slot].set(dots)
    return _History(changes, targets, gram, (history.slot + 1) % _MEMORY)


def _extrapolate(history: _History, point: _Point) -> jax.Array:
    """Anderson: the combination of past differences that cancels most of the change, applied to the targets."""
    norms = jnp.sqrt(jnp.diagonal(history.gram))
    unit = jnp.where(norms > 0, 1.0 / jnp.where(norms > 0, norms, 1.0), 0.0)
    empty = jnp.where(norms > 0, 0.0, 1.0)
    # Differences become parallel near the solution; what rounding cannot tell apart shares its weight.
    regular = 100 * jnp.finfo(norms.dtype).eps
    matrix = unit[:, None] * history.gram * unit + jnp.diag(empty + regular)
    right = unit * _dots(history.changes, point.change)
    weights = unit * jnp.linalg.solve(matrix, right)
    # Not one reduction over the leading axis, which XLA makes a hundred times slower on a CPU.
    terms = [weights[k] * history.targets[k] for k in range(_MEMORY)]
    return jax.tree.reduce(jnp.add, terms)


def _decide(problem: Whole, found: Result, penalty: jax.Array) -> Result:
    """The better of `found` and what the paper's solver makes of W^{t-1}."""
    smooth, weight, psi, previous = problem
    everywhere = jnp.ones_like(previous, bool)
    other = first_order.minimise(problem, previous, everywhere, _FALLBACK)
    gain = smooth.decrease(found.x, other.x) + (penalty - weight * psi.value(other.x))
    better = gain > 0
    return Result(
        jnp.where(better, other.x, found.x),
        jnp.where(better, jnp.zeros_like(found.dual), found.dual),
        jnp.where(better, other.residual, found.residual),
        found.iterations + other.iterations,
    )
