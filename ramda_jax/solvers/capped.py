"""Group norms that are flat beyond a cap (group MCP): two candidates per group, and the better one is taken.

Per group:   minimise over x   1/2 <x, D x> - <b, x> + level r - kappa r^2 / 2   (r = ||x|| up to cap, constant beyond).

The least objective over the sphere ||x|| = r has at most two local minima in r: the smallest root below the cap of
||b / ((D - kappa) r + level)|| = 1 (or zero, if ||b|| <= level), and the unshrunk point x = b / D if it is longer
than the cap. Both are computed and compared: a global minimiser, for any D.

The root by Newton's method as in `secular`, with D - kappa in place of D, which may be indefinite: h stays concave but
need not increase, the a_i may be negative, and the bound on the last step does not hold; so the equation is evaluated once
more instead. Below the cap (D - kappa) r + level >= D r: no denominator vanishes.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ramda_jax.solvers import secular
from ramda_jax.solvers.secular import Apart, Arrays, GroupProblem, Roots, Start


def solve(
    problems: Sequence[GroupProblem],
    warm: Sequence[jax.Array | None],
    tolerance: float | None,
    max_iterations: int,
    pack: type[Apart] = Apart,
) -> list[Roots]:
    """`secular.solve` for problems with a cap. r of a group is at least the cap iff it takes b / D.

    It never starts from `warm`: the smallest root is wanted, and only from below is it found first.
    """
    del warm
    groups = pack(problems)
    free = groups.sums(secular.free_terms, [None] * len(problems))
    begins = [secular.start(p.level, *row) for p, *row in zip(problems, *free, strict=True)]
    limit = secular.limit_of(begins[0].r.dtype, tolerance)
    rs, errors = [], []
    for p, s in zip(problems, begins, strict=True):
        _, cap = _curve(p)
        # The free start is where a line above h reaches 1 (that of D, without kappa): no root below the cap.
        beyond = ~s.zero & (s.r >= cap)
        rs.append(jnp.where(beyond, cap, s.r))
        errors.append(jnp.where(s.done | beyond, jnp.zeros_like(s.r), jnp.full_like(s.r, jnp.inf)))

    def unfinished(carry: Any) -> jax.Array:
        count, _, errors = carry
        return (count < max_iterations) & secular.any_above(errors, limit)

    def update(carry: Any) -> Any:
        count, rs, errors = carry
        rows = zip(problems, begins, rs, errors, *groups.sums(secular.terms, rs), strict=True)
        new = [_newton(p, s, r, e, limit, *pair) for p, s, r, e, *pair in rows]
        return count + 1, [r for r, _ in new], [e for _, e in new]

    count, rs, errors = jax.lax.while_loop(
        unfinished, update, (jnp.zeros([], jnp.int32), rs, errors)
    )
    return [_finish(*four, count) for four in zip(problems, begins, rs, errors, strict=True)]


def _curve(problem: GroupProblem) -> tuple[jax.Array, jax.Array]:
    """(kappa, cap)."""
    if problem.kappa is None or problem.cap is None:
        raise TypeError("this problem has no cap: it is for `secular`")
    return problem.kappa, problem.cap


def _newton(
    problem: GroupProblem,
    begin: Start,
    r: jax.Array,
    error: jax.Array,
    tolerance: float,
    phi2: jax.Array,
    slope_sum: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """One update of every group: (new r, 0 where there is no root below the cap, |1 - phi| where that is small)."""
    _, cap = _curve(problem)
    phi = jnp.sqrt(phi2)
    slope = slope_sum / jnp.where(phi2 == 0, 1.0, phi2)
    here = jnp.abs(phi - 1)
    target = r + r * ((phi - 1) / jnp.where(slope == 0, 1.0, slope))
    no_root = (phi > 1) & ((slope <= 0) | (target >= cap) | (r >= cap))
    new = jnp.where(no_root, cap, jnp.clip(target, jnp.minimum(begin.r, cap), cap))
    bound = jnp.where(no_root, 0.0, jnp.where(jnp.isnan(here), jnp.nan, jnp.inf))
    reached = here <= tolerance
    done = error <= tolerance
    new_error = jnp.where(reached, here, bound)
    return jnp.where(done | reached, r, new), jnp.where(done, error, new_error)


def _finish(
    problem: GroupProblem, begin: Start, r: jax.Array, error: jax.Array, count: jax.Array
) -> Roots:
    _, cap = _curve(problem)
    eps, tiny = float(jnp.finfo(r.dtype).eps), secular.tiny_of(r.dtype)
    at_cap = ~begin.zero & (r >= cap)
    better = _flat_is_better(problem, begin.zero, at_cap, r)
    flat, zero = at_cap | better, begin.zero & ~better
    residual = jnp.where(zero, 0.0, problem.level * error + begin.rounding)
    below = jnp.minimum(r, cap * (1 - 4 * eps))
    r = jnp.where(zero, 0.0, jnp.where(flat, jnp.maximum(cap, tiny), below))
    return Roots(r, residual, count)


def _flat_is_better(
    problem: GroupProblem, zero: jax.Array, at_cap: jax.Array, r: jax.Array
) -> jax.Array:
    """Which groups have a lower objective at b / D than at their smallest root (or zero)."""
    level, (kappa, cap) = problem.level, _curve(problem)

    def compared(p: GroupProblem, b: jax.Array, d: jax.Array, r: jax.Array) -> Arrays:
        free = b / d
        mu = level / jnp.where(r > 0, r, 1.0) - kappa
        mu = jnp.where(r >= cap, 0.0, mu)
        shrunk = jnp.where(r > 0, b / (d + mu), jnp.zeros_like(b))
        return [
            d * jnp.square(shrunk - free),
            jnp.square(free / jnp.maximum(cap, secular.tiny_of(b.dtype))),
        ]

    at: Arrays = [jnp.where(zero, 0.0, jnp.where(at_cap, cap, r))]
    (gap,), (length2,) = Apart([problem]).sums(compared, at)
    # Q(x) - Q(free) = 1/2 sum D (x - free)^2 + w rho(||x||) - w rho(||free||), with w rho from level and kappa.
    length = jnp.where(zero, 0.0, jnp.minimum(r, cap))
    rho = length * (level - 0.5 * kappa * length)
    rho_flat = 0.5 * level * cap
    return (length2 >= 1) & (0.5 * gap + rho > rho_flat)
