"""Proximal gradient iterations for   Q(x) = <v, x> + 1/2 <x - x0, D (x - x0)> + weight psi(x),   D diagonal.

    z+ = prox_{theta weight psi}(y - theta (v + D (y - x0))),      theta = 1 / max D  (halved if psi is nonconvex)

with y = z (Algorithm 2 of the RAMDA paper), or y extrapolated (Nesterov's momentum, with adaptive restart).
The optimality condition of z+ gives a subgradient of Q there for nothing,

    s = (D - 1/theta) (z+ - y)   in   dQ(z+),

whose norm certifies condition (7). An extrapolated step that increases
Q is rejected; a plain one can increase it by rounding only, and is the last.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ramda_jax import _numerics
from ramda_jax.subproblem import Whole


class Settings(NamedTuple):
    """Stopping rules and variant; see the solvers that use them."""

    max_iterations: int
    min_iterations: int
    rtol: float | None
    tolerance: float | None
    accelerated: bool


class Result(NamedTuple):
    x: jax.Array
    residual: jax.Array  # ||s||
    iterations: jax.Array


class _Carry(NamedTuple):
    iterations: jax.Array
    z: jax.Array
    y: jax.Array
    speed: jax.Array  # Nesterov's t_k
    penalty: jax.Array  # weight psi(z)
    objective: jax.Array
    residual: jax.Array
    done: jax.Array


def minimise(
    problem: Whole,
    start: jax.Array,
    active: jax.Array,
    settings: Settings,
    one: ArrayLike = 1.0,
) -> Result:
    """Run the iteration from `start`; entries where `active` is False are known to be 0 at the optimum.

    `one`: what the 1 in the rule of `rtol` is in the units of the problem.
    """
    smooth, weight, psi, _ = problem
    zeros = jnp.zeros_like(start)
    start = jnp.where(active, start, zeros)
    # Screened groups are not part of the problem any more: they do not limit the step either.
    largest = jnp.max(jnp.where(active, smooth.d, 0.0), initial=0.0)
    curvature = jnp.where(largest > 0, largest, 1.0) * (1.0 if psi.convex else 2.0)
    scale = _numerics.norm(smooth.at_zero())

    def unfinished(c: _Carry) -> jax.Array:
        return (c.iterations < settings.max_iterations) & ~c.done

    def iterate(c: _Carry) -> _Carry:
        forward = c.y - smooth.gradient(c.y) / curvature
        # Screened groups are zero in `forward` as they are in `new`, so that the value is that of `new`.
        new, value = psi.prox_and_value(jnp.where(active, forward, zeros), weight / curvature)
        new = jnp.where(active, new, zeros)
        s = jnp.where(active, (smooth.d - curvature) * (new - c.y), zeros)
        residual = _numerics.norm(s)
        penalty = weight * value
        decrease = smooth.decrease(c.z, new) + (c.penalty - penalty)
        count = c.iterations + 1
        # More than rounding of psi. A plain step cannot increase Q but by rounding: then it is the last.
        worse = decrease < -4 * jnp.finfo(start.dtype).eps * c.penalty
        rejected = worse & (c.speed > 1.0)
        done = jnp.isnan(decrease) | (worse & ~rejected)
        objective = jnp.where(rejected, c.objective, c.objective - decrease)
        if settings.tolerance is not None:
            done |= ~rejected & (residual <= settings.tolerance * scale)
        if settings.rtol is not None:
            small = decrease / (jnp.abs(objective) + one) < settings.rtol
            done |= ~rejected & small & (count >= settings.min_iterations)
        z = jnp.where(rejected, c.z, new)
        y, speed = z, jnp.ones_like(c.speed)
        if settings.accelerated:
            y, speed = _extrapolate(c, new, rejected)
        residual = jnp.where(rejected, c.residual, residual)
        penalty = jnp.where(rejected, c.penalty, penalty)
        return _Carry(count, z, y, speed, penalty, objective, residual, done)

    no = _numerics.never(scale)
    first_speed = jnp.where(no, scale, 1.0)
    penalty = weight * psi.value(start)
    objective = smooth.value(start) + penalty
    count = jnp.zeros([], jnp.int32)
    first = _Carry(count, start, start, first_speed, penalty, objective, jnp.inf * first_speed, no)
    last = jax.lax.while_loop(unfinished, iterate, first)
    return Result(last.z, last.residual, last.iterations)


def _extrapolate(c: _Carry, new: jax.Array, rejected: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Nesterov's momentum, restarted when it points uphill (O'Donoghue & Candes, 2015) or Q went up."""
    uphill = jnp.sum((c.y - new) * (new - c.z)) > 0
    next_speed = 0.5 * (1 + jnp.sqrt(1 + 4 * c.speed * c.speed))
    factor = jnp.where(uphill, 0.0, (c.speed - 1) / next_speed)
    y = jnp.where(rejected, c.z, new + factor * (new - c.z))
    return y, jnp.where(rejected | uphill, jnp.ones_like(c.speed), next_speed)
