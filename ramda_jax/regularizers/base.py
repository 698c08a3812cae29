"""What a regularizer is: value, prox, scores, structure. No algorithm: those are `solvers`.

A regularizer is an immutable pytree. Its strengths are leaves (floats, 0-d arrays or optax schedules), so they
can be traced, scheduled and injected; everything else (axes, flags) is static. It is not callable:
`optax.inject_hyperparams` would take it for a schedule.
"""

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeAlias, dataclass_transform

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from ramda_jax import _numerics, _validation
from ramda_jax._numerics import Schedulable


def static_field(**kwargs: Any) -> Any:
    """A field that is part of the structure (compile-time constant), not a leaf."""
    return dataclasses.field(metadata={"static": True}, **kwargs)


@dataclass_transform(frozen_default=True, field_specifiers=(static_field, dataclasses.field))
def regularizer(cls: Any) -> Any:
    """Class decorator: a frozen dataclass that is a pytree whose leaves are its non-static fields."""
    cls = dataclasses.dataclass(frozen=True)(cls)
    fields = dataclasses.fields(cls)
    static = tuple(f.name for f in fields if f.metadata.get("static"))
    leaves = tuple(f.name for f in fields if f.name not in static)

    def flatten_with_keys(self: Any) -> tuple[Any, Any]:
        children = tuple((jax.tree_util.GetAttrKey(n), getattr(self, n)) for n in leaves)
        return children, tuple(getattr(self, n) for n in static)

    def unflatten(settings: Any, children: Any) -> Any:
        # Not through __init__, which checks values: JAX puts placeholders of any kind into pytrees.
        self = object.__new__(cls)
        for name, value in zip((*leaves, *static), (*children, *settings), strict=True):
            object.__setattr__(self, name, value)
        return self

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten)
    return cls


class ScoredStrength:
    """A strength that is chosen from the scores of the step's subproblem: the strengths at which each group would die.

    It stands where a strength is given, of a regularizer that has scores (`Regularizer.scored`). Not callable: it is no
    schedule. The one there is is `TargetSparsity`.
    """


Strength: TypeAlias = Schedulable | ScoredStrength
"""What users type for a strength: a number, a 0-d array, an optax schedule, or what chooses one from scores."""

if TYPE_CHECKING:

    class StrengthField:
        """A field that takes what users type, and from which formulas read a number or an array of their step."""

        def __get__(self, regularizer: object, owner: type) -> Any: ...

        def __set__(self, regularizer: object, value: Strength) -> None: ...

else:
    StrengthField = Any


def check_strength(name: str, value: Strength) -> None:
    """0 <= value < inf, a schedule, or a strength that is chosen from scores."""
    if not isinstance(value, ScoredStrength):
        _validation.check_nonnegative(name, value)


# (psi, x, metric, step) -> the prox in a metric of a psi without a closed form: an algorithm, and so given by `solvers`.
_exact_prox: list[Callable[..., jax.Array]] = []


def set_exact_prox(prox: Callable[..., jax.Array]) -> None:
    """Say how `Regularizer.weighted_prox` is computed where there is no closed form."""
    _exact_prox.append(prox)


class Regularizer(abc.ABC):
    """A nonsmooth function psi of one parameter array that favours a structure (zeros, low rank, ...).

    Attributes:
      closed_form: whether the prox in any diagonal metric needs no iteration.
      convex: whether psi is convex.
      structure: the name of what it creates: "groups" (zero groups), "rank" or "signs".
      scored: the field of the strength that `scores` are in the units of; None: there are no scores.
      is_norm: whether psi is that strength times a norm, which no strength enters: its subgradients are those of the norm
        times the strength.

    Example:
      >>> import jax.numpy as jnp, ramda_jax as rj
      >>> psi, x = rj.GroupLasso(0.5), jnp.array([[3.0, 4.0], [0.0, 0.0]])
      >>> float(psi.value(x)), psi.num_groups(x.shape), psi.zero_groups(x).tolist()
      (3.535533905029297, 2, [False, True])
    """

    closed_form: ClassVar[bool] = False
    convex: ClassVar[bool] = True
    structure: ClassVar[str] = "groups"
    scored: ClassVar[str | None] = None
    is_norm: ClassVar[bool] = False

    @abc.abstractmethod
    def value(self, x: jax.Array) -> jax.Array:
        """psi(x), a 0-d array."""

    @abc.abstractmethod
    def prox(self, x: jax.Array, step: ArrayLike) -> jax.Array:
        """argmin_z 1/2 ||z - x||^2 + step psi(z), the shape and dtype of x."""

    def prox_and_value(self, x: jax.Array, step: ArrayLike) -> tuple[jax.Array, jax.Array]:
        """(z, psi(z)) for z = prox(x, step), where the one comes with the other."""
        z = self.prox(x, step)
        return z, self.value(z)

    def weighted_prox(self, x: jax.Array, metric: jax.Array, step: ArrayLike) -> jax.Array:
        """argmin_z 1/2 <z - x, metric (z - x)> + step psi(z), for a positive elementwise metric.

        Where there is no closed form this is a subproblem like any other, and the solver that is exact for it is run.
        """
        return _exact_prox[-1](self, x, metric, step)

    @abc.abstractmethod
    def group_norms(self, x: jax.Array) -> jax.Array:
        """The norm of each group (of each entry, or each singular value, where these are the groups)."""

    def scores(self, b: jax.Array, metric: jax.Array, step: ArrayLike) -> jax.Array:
        """The strength at which each group dies, of the shape of the groups.

        Group g is zero in argmin_z 1/2 <z, metric z> - <b, z> + step psi(z) iff scores_g <= the strength that `scored`
        names, all other strengths being as they are. With b = D x0 - v this needs no solve.

        Raises:
          ValueError: if no strength alone says whether a group is zero.
        """
        raise ValueError(
            f"{type(self).__name__} has no scores: no single strength says whether a group is zero."
        )

    @abc.abstractmethod
    def num_groups(self, shape: tuple[int, ...]) -> int:
        """How many groups (or singular values) an array of this shape has."""

    def separable_axes(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The axes along each of which psi is a sum: psi(x) is the sum of its values at the slices of x.

        The value at a slice must not depend on how many there are.
        """
        return ()

    def zero_groups(self, x: jax.Array) -> jax.Array:
        """Which groups of x are exactly zero; bool, the shape of `group_norms(x)`."""
        return self.group_norms(x) == 0

    def project(self, x: jax.Array, model: jax.Array) -> jax.Array:
        """x moved to the nearest point that has as much structure as `model`: as many zero groups, as low a rank.

        How much is taken from `model`, which of it from x; no value of `model` is, and no strength. The shape and dtype
        of x, whatever those of `model`; exact in that dtype. A regularizer that does not say how returns `model`.
        """
        return model.astype(x.dtype)

    def check(self, path: str, shape: tuple[int, ...]) -> None:  # noqa: B027 (most apply to any shape)
        """Raise ValueError naming path and shape if psi cannot apply to an array of this shape."""

    def settle(self, shape: tuple[int, ...]) -> Self:
        """The same with all axes named, for an array of this shape, where the user has left them to be guessed."""
        return self

    def reading(self, shape: tuple[int, ...]) -> str:
        """What an array of this shape is taken for, in words: with axes that were guessed."""
        return "entries"

    def describe(self) -> str:
        """A short text for tables, as one would type it."""
        return repr(self)

    def resolve(self, count: ArrayLike, dtype: DTypeLike | None = None) -> Self:
        """The regularizer at step `count`: every strength (number, array, schedule) a 0-d array."""
        if any(isinstance(s, ScoredStrength) for s in jax.tree.leaves(self)):
            raise ValueError(
                f"{self.describe()} has no value by itself: the strength is set in training (`solver_stats` tells it). "
                "Give the regularizer with a number."
            )
        dtype = _numerics.scalar_dtype() if dtype is None else dtype
        return jax.tree.map(
            lambda s: jnp.asarray(s(count) if callable(s) else s, dtype=dtype), self
        )


def axes_of(name: str, axes: Any) -> tuple[int, ...]:
    """An int or a tuple of ints as a tuple.

    Raises:
      ValueError: naming the argument, for anything else.
    """
    given = tuple(axes) if hasattr(axes, "__iter__") else (axes,)
    if any(isinstance(a, bool) or not isinstance(a, int) for a in given):
        raise ValueError(f"{name} must be an int or a tuple of ints, got {axes!r}.")
    return given


def is_regularizer_or_none(x: Any) -> bool:
    """The `is_leaf` under which a tree of regularizers and Nones is flattened."""
    return x is None or isinstance(x, Regularizer)


def size(shape: tuple[int, ...]) -> int:
    """Number of entries of an array of this shape (1 for a scalar)."""
    return math.prod(shape)


def over_step(size: jax.Array, step: ArrayLike) -> jax.Array:
    """size / step as a strength: 0 where size is 0, whatever the step; as large as it gets where only the step is 0."""
    step = jnp.asarray(step, size.dtype)
    return jnp.where(size > 0, size / jnp.maximum(step, jnp.finfo(size.dtype).tiny), 0.0 * size)
