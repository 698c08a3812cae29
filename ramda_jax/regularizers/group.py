"""Regularizers of group norms: zero rows, channels or filters. What they are in a diagonal metric is four numbers."""

import abc
import dataclasses
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ramda_jax import _numerics, _validation
from ramda_jax.regularizers import base

GroupAxis = int | tuple[int, ...]


class Guess(int):
    """An axis that nobody has given: the number that it is, but `GroupNorm.settle` can tell."""

    __slots__ = ()


class Numbers(NamedTuple):
    """A group norm of weight `step` in numbers, 0-d: with them, step psi is on every group

      threshold ||x||_1 + level r - kappa r^2 / 2   up to   r = ||x|| = cap,   and constant in r beyond.

    Attributes:
      threshold: None: 0.
      level: of the norm.
      kappa, cap: None: 0 and infinity; psi is convex.
    """

    threshold: jax.Array | None
    level: jax.Array
    kappa: jax.Array | None = None
    cap: jax.Array | None = None


def _set_group_axis(self: Any) -> None:
    """Check `group_axis` and store it as an int or a tuple of ints."""
    axis = self.group_axis
    axes = base.axes_of("group_axis", axis)
    object.__setattr__(self, "group_axis", axis if isinstance(axis, int) else axes)


class GroupNorm(base.Regularizer):
    """psi(x) = sum_g phi_g(||x_g||) (+ entrywise terms): one group per index along `group_axis`.

    The norm runs over all other axes. In Flax both Dense (in, out) and Conv (..., in, out) kernels have their input
    on axis -2 and their output on axis -1; so -2 is the guess where no axis is given.
    """

    group_axis: GroupAxis
    size_weighted: bool

    # Geometry.

    def along(self, group_axis: GroupAxis) -> Self:
        """The same, of arrays whose groups lie along other axes."""
        return dataclasses.replace(self, group_axis=group_axis)  # type: ignore[type-var]  # every one is a dataclass

    @property
    def given_axes(self) -> tuple[int, ...]:
        """The group axes, as a tuple."""
        return (self.group_axis,) if isinstance(self.group_axis, int) else self.group_axis

    def settle(self, shape: tuple[int, ...]) -> Self:
        return self.along(int(self.group_axis)) if isinstance(self.group_axis, Guess) else self

    def reading(self, shape: tuple[int, ...]) -> str:
        kept = self._kept(len(shape))
        return (
            f"{self.num_groups(shape)} groups, one per index along axis {', '.join(map(str, kept))}"
        )

    def _kept(self, ndim: int) -> tuple[int, ...]:
        return tuple(sorted(a % ndim for a in self.given_axes))

    def axes(self, ndim: int) -> tuple[int, ...]:
        """The axes over which norms are taken."""
        kept = self._kept(ndim) if ndim else ()
        return tuple(a for a in range(ndim) if a not in kept)

    def separable_axes(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self._kept(len(shape)) if shape else ()

    def num_groups(self, shape: tuple[int, ...]) -> int:
        return base.size(tuple(shape[a] for a in self._kept(len(shape)))) if shape else 1

    def group_size(self, shape: tuple[int, ...]) -> int:
        """Entries per group."""
        return base.size(tuple(shape[a] for a in self.axes(len(shape))))

    def check(self, path: str, shape: tuple[int, ...]) -> None:
        ndim = len(shape)
        axes = self.given_axes
        in_range = all(-ndim <= a < ndim for a in axes)
        if not in_range or len({a % ndim for a in axes}) < len(axes):
            raise ValueError(
                f"{type(self).__name__} with group_axis={axes[0] if len(axes) == 1 else axes} cannot apply to {path!r} of "
                f"shape {tuple(shape)}: each group axis must be one of its {ndim} axes, and different."
            )

    def _weight(self, shape: tuple[int, ...]) -> float:
        return self.weight(self.group_size(shape))

    def weight(self, group_size: int) -> float:
        """By how much the norm of a group of this size counts."""
        return group_size**0.5 if self.size_weighted else 1.0

    # In a diagonal metric.

    @abc.abstractmethod
    def numbers(self, step: ArrayLike, group_size: int) -> Numbers:
        """step psi on a group of this size (entries in all arrays over which it may be spread)."""

    def scores(self, b: jax.Array, metric: jax.Array, step: ArrayLike) -> jax.Array:
        size = self.group_size(b.shape)
        threshold = self.numbers(step, size).threshold
        b = b if threshold is None else _numerics.soft_threshold(b, threshold)
        return base.over_step(self.group_norms(b), step * self.weight(size))

    # Structure.

    def _norms(self, x: jax.Array) -> jax.Array:
        """||x_g|| in the keepdims layout."""
        return _numerics.norms(x, self.axes(x.ndim))

    def group_norms(self, x: jax.Array) -> jax.Array:
        return jnp.squeeze(self._norms(x), self.axes(x.ndim))

    def zero_groups(self, x: jax.Array) -> jax.Array:
        return jnp.all(x == 0, axis=self.axes(x.ndim))

    def _kept_groups(self, x: jax.Array, model: jax.Array) -> jax.Array:
        """Which groups of x are its largest, as many as `model` has that are not zero; in the keepdims layout.

        All groups of an array are of one size, so norms are compared as they are.
        """
        return _numerics.largest(
            self._norms(_numerics.widened(x)), jnp.sum(~self.zero_groups(model))
        )

    def project(self, x: jax.Array, model: jax.Array) -> jax.Array:
        return jnp.where(self._kept_groups(x, model), x, jnp.zeros_like(x))


def _shrink_groups(x: jax.Array, norms: jax.Array, level: ArrayLike) -> jax.Array:
    """(1 - level / ||x_g||)_+ x_g, exactly 0 where ||x_g|| <= level."""
    zero = norms <= level
    factor = 1 - level / jnp.where(zero, 1.0, norms)
    return jnp.where(zero, jnp.zeros_like(x), factor * x)


@base.regularizer
class GroupLasso(GroupNorm):
    """psi(x) = strength sum_g sqrt(|g|) ||x_g||.

    prox(x, step): x_g (1 - l / ||x_g||)_+ with l = step strength sqrt(|g|); in a diagonal metric by the scalar
    equation (`ramda_jax.solvers.secular`), exactly. Group g of the subproblem is zero iff ||b||_g <= l.

    Args:
      strength: lambda >= 0; a number, a 0-d array or an optax schedule.
      group_axis: int or tuple; one group per index along it, norm over all other axes. -2 groups Dense and Conv
        kernels of Flax by input, as the RAMDA paper does; -1 by output. Where none is given, -2 is a guess, of which the
        method warns where an array may be something else (attention, stacked layers); `rj.network(...).inputs` needs none.
      size_weighted: whether to weigh a group by the square root of its size.

    Raises:
      ValueError: from `check`, naming path and shape, where an axis does not exist.

    Example:
      >>> import jax.numpy as jnp, ramda_jax as rj
      >>> print(rj.GroupLasso(1.0, size_weighted=False).prox(jnp.array([[3.0, 4.0], [0.3, 0.4]]), 1.0))
      [[2.4 3.2]
       [0.  0. ]]

    Source: Yuan & Lin, Model selection and estimation in regression with grouped variables, JRSS B 2006.
    """

    scored: ClassVar[str | None] = "strength"
    strength: base.StrengthField
    group_axis: GroupAxis = base.static_field(default=Guess(-2))
    size_weighted: bool = base.static_field(default=True)

    def __post_init__(self) -> None:
        base.check_strength("GroupLasso.strength", self.strength)
        _set_group_axis(self)

    def value(self, x: jax.Array) -> jax.Array:
        return self.strength * self._weight(x.shape) * jnp.sum(self._norms(x))

    def prox(self, x: jax.Array, step: ArrayLike) -> jax.Array:
        return _shrink_groups(x, self._norms(x), step * self.strength * self._weight(x.shape))

    def numbers(self, step: ArrayLike, group_size: int) -> Numbers:
        return Numbers(None, step * self.strength * self.weight(group_size))


@base.regularizer
class SparseGroupLasso(GroupNorm):
    """psi(x) = l1 ||x||_1 + group sum_g sqrt(|g|) ||x_g||: zero groups, and zeros within the others.

    prox: soft-threshold by step l1, then the group lasso's; in a diagonal metric soft-threshold b = D x, then the
    same scalar equation.

    Args:
      l1: >= 0, weight of the absolute values.
      group: >= 0, weight of the group norms.
      group_axis, size_weighted: as in `GroupLasso`.

    Example:
      >>> import jax.numpy as jnp, ramda_jax as rj
      >>> psi = rj.SparseGroupLasso(l1=1.0, group=0.5, size_weighted=False)
      >>> print(psi.prox(jnp.array([[4.0, 0.5], [1.25, 1.0]]), 1.0))  # entries shrink by 1, then rows by 0.5
      [[2.5 0. ]
       [0.  0. ]]

    Source: Simon, Friedman, Hastie & Tibshirani, A sparse-group lasso, JCGS 2013.
    """

    scored: ClassVar[str | None] = "group"
    l1: base.StrengthField
    group: base.StrengthField
    group_axis: GroupAxis = base.static_field(default=Guess(-2))
    size_weighted: bool = base.static_field(default=True)

    def __post_init__(self) -> None:
        base.check_strength("SparseGroupLasso.l1", self.l1)
        base.check_strength("SparseGroupLasso.group", self.group)
        _set_group_axis(self)

    def value(self, x: jax.Array) -> jax.Array:
        groups = self.group * self._weight(x.shape) * jnp.sum(self._norms(x))
        return self.l1 * jnp.sum(jnp.abs(x)) + groups

    def prox(self, x: jax.Array, step: ArrayLike) -> jax.Array:
        x = _numerics.soft_threshold(x, step * self.l1)
        return _shrink_groups(x, self._norms(x), step * self.group * self._weight(x.shape))

    def numbers(self, step: ArrayLike, group_size: int) -> Numbers:
        return Numbers(step * self.l1, step * self.group * self.weight(group_size))

    def project(self, x: jax.Array, model: jax.Array) -> jax.Array:
        """First as many groups as in `model`, then as many entries of these; the largest of each kept group is one."""
        kept = self._kept_groups(x, model)
        sizes = jnp.where(kept, jnp.abs(_numerics.widened(x)), 0.0)
        first = kept & (sizes == jnp.max(sizes, axis=self.axes(x.ndim), keepdims=True, initial=0.0))
        entries = _numerics.largest(jnp.where(first, jnp.inf, sizes), jnp.sum(model != 0))
        return jnp.where(kept & entries, x, jnp.zeros_like(x))


@base.regularizer
class GroupMCP(GroupNorm):
    """psi(x) = sum_g rho(||x_g||), rho(r) = l r - r^2 / (2 gamma) up to r = gamma l, then gamma l^2 / 2.

    l = strength sqrt(|g|). The minimax concave penalty: group lasso near zero, no shrinkage of large groups. Nonconvex.

    In a diagonal metric D, with weight w, the least objective over the sphere ||x_g|| = r has at most two local
    minima in r: the smallest root of ||b / (D - w / gamma + w l / r)|| = r below gamma l (or zero, if ||b|| <= w l),
    and the
    unshrunk point x = b / D if it is longer than gamma l. Both are computed and the better one is taken: a global
    minimiser, for any metric.

    Args:
      strength: lambda >= 0.
      gamma: > 0; infinity would be the group lasso.
      group_axis, size_weighted: as in `GroupLasso`.

    Example:
      >>> import jax.numpy as jnp, ramda_jax as rj
      >>> psi = rj.GroupMCP(1.0, gamma=2.0, size_weighted=False)
      >>> print(psi.prox(jnp.array([[0.6, 0.0], [1.5, 0.0], [3.0, 4.0]]), 1.0).round(2))  # zero, shrunk, as it was
      [[0. 0.]
       [1. 0.]
       [3. 4.]]

    Source: Zhang, Nearly unbiased variable selection under minimax concave penalty, Annals of Statistics 2010;
    Breheny & Huang, Group descent algorithms, Statistics and Computing 2015.
    """

    convex: ClassVar[bool] = False
    strength: base.StrengthField
    gamma: base.StrengthField
    group_axis: GroupAxis = base.static_field(default=Guess(-2))
    size_weighted: bool = base.static_field(default=True)

    def __post_init__(self) -> None:
        base.check_strength("GroupMCP.strength", self.strength)
        _validation.check_positive("GroupMCP.gamma", self.gamma)
        _set_group_axis(self)

    def _level(self, shape: tuple[int, ...]) -> ArrayLike:
        return self.strength * self._weight(shape)

    def _rho(self, r: jax.Array, level: ArrayLike) -> jax.Array:
        inside = jnp.minimum(r, self.gamma * level)
        return inside * (level - inside / (2 * self.gamma))

    def value(self, x: jax.Array) -> jax.Array:
        return jnp.sum(self._rho(self._norms(x), self._level(x.shape)))

    def prox(self, x: jax.Array, step: ArrayLike) -> jax.Array:
        level, norms = self._level(x.shape), self._norms(x)
        flat = norms > self.gamma * level
        # step < gamma: the firm threshold. Otherwise the middle part is concave, and zero or x is best.
        firm = _shrink_groups(x, norms, step * level) / jnp.maximum(1 - step / self.gamma, 1e-30)
        zero = norms <= level * jnp.sqrt(step * self.gamma)
        hard = jnp.where(zero, jnp.zeros_like(x), x)
        return jnp.where(step < self.gamma, jnp.where(flat, x, firm), hard)

    def numbers(self, step: ArrayLike, group_size: int) -> Numbers:
        level = self.strength * self.weight(group_size)
        return Numbers(None, step * level, kappa=step / self.gamma, cap=self.gamma * level)

    def scores(self, b: jax.Array, metric: jax.Array, step: ArrayLike) -> jax.Array:
        raise ValueError(
            "GroupMCP has no scores: a group that the threshold would leave at zero may still be best far from it."
        )
