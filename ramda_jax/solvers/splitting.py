"""Douglas-Rachford splitting for   Q(x) = <v, x> + 1/2 <x - x0, D (x - x0)> + weight psi(x),   D diagonal, psi convex.

One prox per iteration, in a scalar metric sigma of our choice; D is inverted exactly, entry by entry, so its condition
number does not limit the step as it limits proximal gradient's. With b = D x0 - v the iteration is

    z = prox_{weight psi / sigma}(m),   y = sigma (m - z) in weight dpsi(z),   s = D z - b + y in dQ(z),
    m <- m - s / (D + sigma).

Fixed points are those with s = 0: z is the minimiser and y its dual. s certifies condition (7) at every iterate for
nothing. The map is firmly nonexpansive, hence ||s / (D + sigma)|| never increases. Anderson's
extrapolation over the last few iterates is kept where it lowers this norm and undone where it does not.
Derivation, choice of sigma and certificates: docs/mathematics.md.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from ramda_jax import _numerics
from ramda_jax.regularizers import Regularizer
from ramda_jax.solvers import first_order
from ramda_jax.subproblem import Quadratic, Whole

# Differences of iterates that the extrapolation combines; more gained nothing down to residuals of 1e-4.
_MEMORY = 3
# sigma = 2 weight psi(x) / ||x||^2: for the nuclear norm, thresholds of half a typical singular value.
_THRESHOLD = 2.0
# What decides where the certificate cannot: the paper's solver, run as its authors run it.
_FALLBACK = first_order.Settings(5, 1, 1e-3, None, accelerated=False)


class Settings(NamedTuple):
    """Stopping rule; see the solver that uses it."""

    max_iterations: int
    tolerance: float


class Result(NamedTuple):
    x: chex.Array
    dual: chex.Array  # y in weight dpsi(x)
    residual: chex.Array  # ||s||, s in dQ(x)
    iterations: chex.Array


class _Point(NamedTuple):
    """What one prox gives."""

    z: chex.Array
    penalty: chex.Array  # weight psi(z)
    change: chex.Array  # -s / (D + sigma)
    target: chex.Array  # m + change
    merit: chex.Array  # ||change||
    residual: chex.Array  # ||s||
    enough: chex.Array  # whether condition (7) is certified


class _History(NamedTuple):
    """Differences of successive accepted points, the newest over the oldest; rows with no norm are empty."""

    changes: chex.Array
    targets: chex.Array
    gram: chex.Array  # <change_i, change_j>
    slot: chex.Array


class _Carry(NamedTuple):
    count: chex.Array
    m: chex.Array
    point: _Point
    history: _History
    done: chex.Array


def minimise(problem: Whole, start: chex.Array, dual: chex.Array, settings: Settings) -> Result:
    """Run the iteration from (start, dual); at the end Q is not above that of `problem.start`.

    Args:
      problem: D positive, of the shape of `start`.
      start, dual: z and y to start from.
      settings: when to stop.
    """
    smooth, weight, psi, previous = problem
    b = smooth.at_zero()
    scale = _numerics.norm(b)
    sigma = _metric(smooth, psi, weight, start, dual)
    inverse = 1.0 / (smooth.d + sigma)

    def evaluate(m: chex.Array) -> _Point:
        z, value = psi.prox_and_value(m, weight / sigma)
        s = smooth.d * z - b + sigma * (m - z)
        change = -inverse * s
        # Both halves of condition (7): Q(w) >= Q(z) + <s, w - z> + 1/2 <w - z, D (w - z)> for every w.
        residual, step = _numerics.norm(s), previous - z
        lower = jnp.sum((s + 0.5 * smooth.d * step) * step) >= 0
        enough = lower & (residual <= settings.tolerance * scale)
        enough |= residual <= 8 * jnp.finfo(start.dtype).eps * scale  # rounding
        merit = _numerics.norm(change)
        return _Point(z, weight * value, change, m + change, merit, residual, enough)

    def unfinished(c: _Carry) -> chex.Array:
        return (c.count < settings.max_iterations) & ~c.done

    def iterate(c: _Carry) -> _Carry:
        new = evaluate(c.m)
        rejected = (new.merit > c.point.merit) & ~new.enough
        history = _remember(c.history, c.point, new, rejected)
        point = jax.tree.map(lambda old, x: jnp.where(rejected, old, x), c.point, new)
        m = jnp.where(rejected, point.target, point.target - _extrapolate(history, point))
        return _Carry(c.count + 1, m, point, history, new.enough | jnp.isnan(new.residual))

    m = start + dual / sigma
    m = m - inverse * (smooth.d * start - b + dual)  # the minimiser in x, which costs no prox
    no = _numerics.never(scale)
    infinite = jnp.where(no, scale, jnp.inf)
    point = _Point(start, infinite, start, start, infinite, infinite, no)
    carry = _Carry(jnp.zeros([], jnp.int32), m, point, _empty(start, no), no)
    last = jax.lax.while_loop(unfinished, iterate, carry)
    z, s = last.point.z, -(smooth.d + sigma) * last.point.change
    found = Result(z, s - (smooth.d * z - b), last.point.residual, last.count)
    return jax.lax.cond(
        last.done,
        lambda: found,
        lambda: _decide(problem, found, last.point.penalty),
    )


def _metric(
    smooth: Quadratic,
    psi: Regularizer,
    weight: chex.Numeric,
    start: chex.Array,
    dual: chex.Array,
) -> chex.Array:
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


def _empty(like: chex.Array, no: chex.Array) -> _History:
    """`no`: False, of the type of what the loop carries (it may vary over devices)."""
    rows = jnp.stack([jnp.where(no, like, 0.0)] * _MEMORY)
    gram = jnp.where(no, jnp.ones((_MEMORY, _MEMORY), like.dtype), 0.0)
    return _History(rows, rows, gram, jnp.zeros([], jnp.int32))


def _dots(rows: chex.Array, x: chex.Array) -> chex.Array:
    """<row, x> of every row; no reshape, which an explicit mesh refuses for cut arrays."""
    return jnp.sum(rows * x, axis=tuple(range(1, rows.ndim)))


def _remember(history: _History, old: _Point, new: _Point, rejected: chex.Array) -> _History:
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


def _extrapolate(history: _History, point: _Point) -> chex.Array:
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


def _decide(problem: Whole, found: Result, penalty: chex.Array) -> Result:
    """The better of `found` and what the paper's solver makes of W^{t-1}."""
    smooth, weight, psi, previous = problem
    everywhere = jnp.ones_like(previous, bool)
    other = first_order.minimise(problem, previous, everywhere, _FALLBACK)
    gain = smooth.decrease(found.x, other.x) + (penalty - weight * psi.value(other.x))
    better = gain > 0
    return Result(
        jnp.where(better, other.x, found.x),
        found.dual,
        jnp.where(better, other.residual, found.residual),
        found.iterations + other.iterations,
    )
