"""Small numerical helpers that methods, regularizers and solvers share."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

# What users type for a hyperparameter: a number, a 0-d array, or an optax schedule of the 0-based step count.
Schedulable: TypeAlias = ArrayLike | Callable[[Any], ArrayLike]


def scalar_dtype() -> jnp.dtype:
    """The dtype of scalars of the state: float32, or float64 where x64 is enabled."""
    return jax.dtypes.canonicalize_dtype(jnp.float64)


def at_least_float32(dtype: Any) -> Any:
    """`dtype`, or float32 where it is narrower: sums stall and no decomposition exists below."""
    return jnp.dtype(jnp.float32) if jnp.dtype(dtype).itemsize < 4 else jnp.dtype(dtype)


def widened(x: jax.Array) -> jax.Array:
    """x in at least float32."""
    return x.astype(at_least_float32(x.dtype))


def as_scalar(value: Any) -> jax.Array:
    """`value` as a 0-d float array of `scalar_dtype`."""
    return jnp.asarray(value, dtype=scalar_dtype())


def evaluate(value: Schedulable, count: jax.Array) -> jax.Array:
    """The value of a constant or of an optax schedule at step `count` (0-based)."""
    return as_scalar(value(count) if callable(value) else value)


def saturated(x: jax.Array, grad: jax.Array) -> jax.Array:
    """x, an accumulator that has taken `grad`, no larger than the largest float; elementwise.

    So a finite gradient never makes a state infinite, and NaN at the next step (0 times infinity). What gradients that are
    not finite leave in it is NaN: that must be seen.
    """
    largest = float(jnp.finfo(x.dtype).max)
    return jnp.clip(x, -largest, largest) + 0 * grad


def norm(x: jax.Array) -> jax.Array:
    """||x|| over all entries. Not `jnp.linalg.norm`: it reshapes, which an explicit mesh refuses for cut arrays."""
    return jnp.sqrt(jnp.sum(jnp.square(x)))


def norms(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """||x_g|| in the keepdims layout; scaled by the largest entry, so that no square leaves the float range."""
    largest = jnp.max(jnp.abs(x), axis=axes, keepdims=True, initial=0.0)
    # Whatever the unit, the norm is the same: no derivative goes through it.
    unit = jax.lax.stop_gradient(jnp.where((largest > 0) & (largest < jnp.inf), largest, 1.0))
    y = x / unit
    square = jnp.sum(y * y, axis=axes, keepdims=True)
    # The inner `where` keeps the gradient of a zero group at 0 instead of NaN.
    positive = square != 0
    return unit * jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)


def as_bits(x: jax.Array) -> jax.Array:
    """The bits of floats >= 0, in their order; those of a NaN without its sign."""
    x = widened(x)
    kind = jnp.int64 if x.dtype == jnp.float64 else jnp.int32
    bits = jax.lax.bitcast_convert_type(x, kind)
    return bits & jnp.iinfo(kind).max


def as_floats(bits: jax.Array) -> jax.Array:
    """The inverse of `as_bits`."""
    kind = jnp.float64 if bits.dtype == jnp.int64 else jnp.float32
    return jax.lax.bitcast_convert_type(bits, kind)


def bitwise(
    width: int,
    zeros: Sequence[jax.Array],
    holds: Callable[[list[jax.Array]], Sequence[jax.Array]],
) -> list[jax.Array]:
    """Of several conditions the largest integers of so many bits that meet them: found bit by bit, from the highest.

    Args:
      width: in bits.
      zeros: a 0 for each, of its type.
      holds: numbers -> of each whether its condition holds; true of 0, and it changes once.
    """

    def try_bit(k: jax.Array, found: list[jax.Array]) -> list[jax.Array]:
        bits = [
            jnp.left_shift(jnp.ones_like(p), jnp.asarray(width - 1 - k, p.dtype)) for p in found
        ]
        tried = [p | bit for p, bit in zip(found, bits, strict=True)]
        rows = zip(holds(tried), tried, found, strict=True)
        return [jnp.where(ok, t, p) for ok, t, p in rows]

    return jax.lax.fori_loop(0, width, try_bit, list(zeros))


@jax.jit
def largest(sizes: jax.Array, count: jax.Array) -> jax.Array:
    """Which `count` entries of `sizes` >= 0 are the largest; of equals the first. A NaN is larger than any number.

    Floats >= 0 are ordered as their bits are as integers. So the count-th largest is found bit by bit, from the highest:
    the largest t that `count` entries at least reach. Then the place up to which entries equal to t are taken, likewise.
    Each bit takes one sum over the array: no sort, and no gather where the array is cut over devices.

    Args:
      sizes: of any shape.
      count: 0-d int; up to 0: none, from the size: all.
    """
    bits = as_bits(sizes)
    integer = bits.dtype
    count = jnp.asarray(count, integer)
    zero = 0 * (count + jnp.max(bits, initial=0))  # of a type that varies over devices as they do
    number = lambda mask: jnp.sum(mask, dtype=integer)

    width = jnp.iinfo(integer).bits - 1
    (least,) = bitwise(width, [zero], lambda tried: [number(bits >= tried[0]) >= count])
    above, equal = bits > least, bits == least
    place = jnp.zeros(sizes.shape, integer)
    for axis, length in enumerate(sizes.shape):
        place = place * length + jax.lax.broadcasted_iota(integer, sizes.shape, axis)
    place, missing = cut_like(place, sizes), count - number(above)
    fits = lambda tried: [number(equal & (place < tried[0])) <= missing]
    (end,) = bitwise(sizes.size.bit_length(), [zero], fits)
    return above | (equal & (place < end))


def soft_threshold(x: jax.Array, level: jax.Array | float) -> jax.Array:
    """sign(x) max(|x| - level, 0), elementwise. A NaN stays a NaN."""
    return x - jnp.clip(x, -level, level)  # +0, never -0, inside


@jax.custom_jvp
def cbrt(x: jax.Array) -> jax.Array:
    """Cube root of x >= 0, elementwise; its derivative at 0 is defined as 0.

    float32 by a bit-level first guess at z = x^(-1/3) (the exponent divided by -3; 4 % off), a step of fourth order,
    and a correction of y = x z^2 which takes most of its rounding away, too:

      t = 1 - x z^3,   z <- z (1 + t/3 + 2 t^2 / 9 + 14 t^3 / 81),   y = x z^2,   y <- y + 2/3 y (1 - y z),

    within 2e-7 of the exact root. No division and no branch, so that XLA fuses it with what is around it: ten times
    faster than its own on a CPU. Other dtypes use `jnp.cbrt`.
    """
    if x.dtype != jnp.float32:
        return jnp.cbrt(x)
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)
    # An integer division by 3 does not vectorise; the float product is off by a few thousand units
    # in the last place of the guess, which the steps remove.
    third = (bits.astype(jnp.float32) * (1.0 / 3.0)).astype(jnp.int32)
    z = jax.lax.bitcast_convert_type(0x54A21D2A - third, jnp.float32)
    t = 1 - (x * z) * (z * z)  # in this order nothing leaves the range, for any normal x
    z = z * (1 + t * (1 / 3 + t * (2 / 9 + t * (14 / 81))))
    y = (x * z) * z
    y = y + y * ((2 / 3) * (1 - y * z))
    return jnp.where(x < jnp.inf, y, x)  # infinity is its own root, a NaN stays one


@cbrt.defjvp
def _cbrt_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    """dx / (3 cbrt(x)^2)."""
    root = cbrt(*primals)
    slope = jnp.where(
        root > 0, 1 / (3 * jnp.where(root > 0, root * root, 1.0)), jnp.zeros_like(root)
    )
    return root, slope * tangents[0]


@jax.custom_jvp
def sqrt(x: jax.Array) -> jax.Array:
    """Square root of x >= 0, elementwise; its derivative at 0 is defined as 0."""
    return jnp.sqrt(x)


@sqrt.defjvp
def _sqrt_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    """dx / (2 sqrt(x))."""
    root = sqrt(*primals)
    slope = jnp.where(root > 0, 0.5 / jnp.where(root > 0, root, 1.0), jnp.zeros_like(root))
    return root, slope * tangents[0]


def compensated_add(
    total: jax.Array, error: jax.Array, increment: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Kahan's sum: (total, error) after adding `increment`; `error` is what rounding has left out."""
    corrected = increment + error
    new_total = total + corrected
    return new_total, corrected - (new_total - total)


def never(tree: Any) -> jax.Array:
    """False, but inside `shard_map` of a type that varies over the devices over which any of these arrays does.

    What a loop carries must be of such a type from the start.
    """
    firsts = [jnp.max(jnp.ravel(x)[:1], initial=-jnp.inf) for x in jax.tree.leaves(tree)]
    return functools.reduce(jnp.logical_or, [x > jnp.inf for x in firsts])


def as_number(x: Any) -> Any:
    """A Python number where x is a concrete 0-d array, else x (a tracer, or one value per replica)."""
    if isinstance(x, jax.core.Tracer) or jnp.ndim(x) > 0 or not hasattr(x, "item"):
        return x
    return x.item()


def is_explicit(mesh: Any) -> bool:
    """Whether the mesh has axes over which arrays say in their types how they are cut."""
    return any(kind == jax.sharding.AxisType.Explicit for kind in mesh.axis_types)


def on_explicit_mesh(x: jax.Array) -> bool:
    """Whether x is of such a type."""
    return is_explicit(jax.typeof(x).sharding.mesh)


def whole(x: jax.Array) -> jax.Array:
    """x, whole on every device: an explicit mesh decomposes and reshapes no array that it has cut."""
    spec = jax.sharding.PartitionSpec()
    return jax.sharding.reshard(x, spec) if on_explicit_mesh(x) else x


def cut_like(x: jax.Array, model: jax.Array) -> jax.Array:
    """x, cut as `model` is on an explicit mesh; where their lengths differ, not at all."""
    if not on_explicit_mesh(model):
        return x
    own = jax.typeof(model).sharding.spec
    pairs = zip(own, x.shape, model.shape, strict=True)
    return jax.sharding.reshard(
        x, jax.sharding.PartitionSpec(*(e if n == m else None for e, n, m in pairs))
    )
