"""Regularizers that are sums over entries: psi(x) = sum_i phi(x_i). Closed form in any diagonal metric."""

import abc
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ramda_jax import _numerics
from ramda_jax.regularizers import base


class Elementwise(base.Regularizer):
    """psi(x) = sum_i phi(x_i): each entry is a group, and a diagonal metric only changes the step per entry."""

    closed_form: ClassVar[bool] = True

    @abc.abstractmethod
    def entries(self, x: jax.Array) -> jax.Array:
        """phi(x_i) of every entry."""

    def value(self, x: jax.Array) -> jax.Array:
        return jnp.sum(self.entries(x))

    def weighted_prox(self, x: jax.Array, metric: jax.Array, step: ArrayLike) -> jax.Array:
        return self.prox(x, step / metric)

    def group_norms(self, x: jax.Array) -> jax.Array:
        return jnp.abs(x)

    def project(self, x: jax.Array, model: jax.Array) -> jax.Array:
        kept = _numerics.largest(jnp.abs(x), jnp.sum(model != 0))
        return jnp.where(kept, x, jnp.zeros_like(x))

    def separable_axes(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(range(len(shape)))

    def num_groups(self, shape: tuple[int, ...]) -> int:
        return base.size(shape)


@base.regularizer
class L1(Elementwise):
    """psi(x) = strength sum_i |x_i|  (lasso).

    prox(x, step) = sign(x) max(|x| - step strength, 0); in a metric d the step is step / d, entry by entry.

    Args:
      strength: lambda >= 0; a number, a 0-d array or an optax schedule.

    Example:
      >>> import jax.numpy as jnp, ramda_jax as rj
      >>> print(rj.L1(1.0).prox(jnp.array([3.0, -0.5]), 1.0))
      [2. 0.]

    Source: Tibshirani, Regression shrinkage and selection via the lasso, JRSS B 1996.
    """

    scored: ClassVar[str | None] = "strength"
    strength: base.StrengthField

    def __post_init__(self) -> None:
        base.check_strength("L1.strength", self.strength)

    def entries(self, x: jax.Array) -> jax.Array:
        return self.strength * jnp.abs(x)

    def prox(self, x: jax.Array, step: ArrayLike) -> jax.Array:
        return _numerics.soft_threshold(x, step * self.strength)

    def scores(self, b: jax.Array, metric: jax.Array, step: ArrayLike) -> jax.Array:
        return base.over_step(jnp.abs(b), step)  # |b| <= step strength


@base.regularizer
class ElasticNet(Elementwise):
    """psi(x) = l1 sum_i |x_i| + l2 / 2 sum_i x_i^2.

    prox(x, step) = sign(x) max(|x| - step l1, 0) / (1 + step l2).

    Args:
      l1: >= 0, weight of the absolute values.
      l2: >= 0, weight of half the squares.

    Example:
      >>> import jax.numpy as jnp, ramda_jax as rj
      >>> print(rj.ElasticNet(l1=1.0, l2=1.0).prox(jnp.array([3.0, -0.5]), 1.0))
      [1. 0.]

    Source: Zou & Hastie, Regularization and variable selection via the elastic net, JRSS B 2005.
    """

    scored: ClassVar[str | None] = "l1"
    l1: base.StrengthField
    l2: base.StrengthField

    def __post_init__(self) -> None:
        base.check_strength("ElasticNet.l1", self.l1)
        base.check_strength("ElasticNet.l2", self.l2)

    def entries(self, x: jax.Array) -> jax.Array:
        return self.l1 * jnp.abs(x) + 0.5 * self.l2 * x * x

    def prox(self, x: jax.Array, step: ArrayLike) -> jax.Array:
        return _numerics.soft_threshold(x, step * self.l1) / (1 + step * self.l2)

    def scores(self, b: jax.Array, metric: jax.Array, step: ArrayLike) -> jax.Array:
        return base.over_step(jnp.abs(b), step)


@base.regularizer
class L0(Elementwise):
    """psi(x) = strength * (number of nonzero entries). Nonconvex.

    prox(x, step) = x where x^2 > 2 step strength, else 0 (the tie goes to zero); the global minimiser.

    Example:
      >>> import jax.numpy as jnp, ramda_jax as rj
      >>> print(rj.L0(0.5).prox(jnp.array([3.0, 0.5, 1.0]), 1.0))
      [3. 0. 0.]

    Source: Blumensath & Davies, Iterative thresholding for sparse approximations, JFAA 2008.
    """

    convex: ClassVar[bool] = False
    scored: ClassVar[str | None] = "strength"
    strength: base.StrengthField

    def __post_init__(self) -> None:
        base.check_strength("L0.strength", self.strength)

    def entries(self, x: jax.Array) -> jax.Array:
        return self.strength * (x != 0).astype(x.dtype)

    def prox(self, x: jax.Array, step: ArrayLike) -> jax.Array:
        # |x| against a square root, not x^2 against 2 step strength: x^2 would underflow or overflow.
        return jnp.where(jnp.abs(x) <= jnp.sqrt(2 * step * self.strength), 0.0 * x, x)

    def scores(self, b: jax.Array, metric: jax.Array, step: ArrayLike) -> jax.Array:
        return base.over_step(0.5 * b * (b / metric), step)  # (b / d)^2 <= 2 (step / d) strength


class _Power(Elementwise):
    """psi(x) = strength sum_i |x_i|^p with p = 1 - 1/k, k an integer. Nonconvex; the prox is a global minimiser.

    With t = step strength and x = t^(1/(2-p)) tau the nonzero stationary point is t^(1/(2-p)) s with
    s - tau + p s^(p-1) = 0. Zero is better unless tau > tau* = s* + p s*^(p-1), s* = (2(1-p))^(1/(2-p)).
    Put s = y^k: q(y) = y^k - tau + p / y = 0, convex in y > 0; Newton's method from y = tau^(1/k),
    which lies to the right of both roots (s < tau there), decreases to the larger one; five iterations reach float64
    precision for every tau >= tau*.
    """

    convex: ClassVar[bool] = False
    scored: ClassVar[str | None] = "strength"
    k: ClassVar[int]
    strength: base.StrengthField

    def scores(self, b: jax.Array, metric: jax.Array, step: ArrayLike) -> jax.Array:
        p, tau_star = 1 - 1 / self.k, self._tau_star
        # |b / d| <= tau* (step strength / d)^(1/(2-p))
        return base.over_step(metric * (jnp.abs(b / metric) / tau_star) ** (2 - p), step)

    @property
    def _tau_star(self) -> float:
        p = 1 - 1 / self.k
        s_star = (2 * (1 - p)) ** (1 / (2 - p))
        return s_star + p * s_star ** (p - 1)

    def entries(self, x: jax.Array) -> jax.Array:
        root = jnp.sqrt(jnp.abs(x)) if self.k == 2 else jnp.square(jnp.cbrt(jnp.abs(x)))
        return self.strength * root

    def prox(self, x: jax.Array, step: ArrayLike) -> jax.Array:
        k = self.k
        p = 1 - 1 / k
        tau_star = self._tau_star
        scale = jnp.asarray(step * self.strength, x.dtype) ** (1 / (2 - p))
        size = jnp.abs(x)
        keep = ~(size <= tau_star * scale)  # a NaN is kept, and stays one
        free = scale == 0
        tau = jnp.where(keep & ~free, size / jnp.where(free, 1.0, scale), tau_star)
        # From there on what is taken off is less than rounding; the quotient may be infinite.
        tau = jnp.minimum(tau, float(jnp.finfo(x.dtype).max) ** 0.5)
        y = tau ** (1 / k)
        for _ in range(5):
            y = y - (y**k - tau + p / y) / (k * y ** (k - 1) - p / (y * y))
        shrunk = size - scale * (p / y)  # stationarity: exact where tau is large
        return jnp.where(keep, jnp.sign(x) * jnp.where(free, size, shrunk), 0.0 * x)


@base.regularizer
class LHalf(_Power):
    """psi(x) = strength sum_i |x_i|^(1/2). Nonconvex; the prox is the global minimiser.

    prox(x, step) is zero up to |x| = 3/2 (step strength)^(2/3), and jumps there.

    Example:
      >>> import jax.numpy as jnp, ramda_jax as rj
      >>> [round(float(x), 2) for x in rj.LHalf(1.0).prox(jnp.array([1.5, 1.6]), 1.0)]
      [0.0, 1.13]

    Source: Xu, Chang, Xu & Zhang, L1/2 regularization: a thresholding representation theory, IEEE TNNLS 2012;
    in a diagonal metric: Yun, Lozano & Yang, NeurIPS 2021.
    """

    k: ClassVar[int] = 2
    strength: base.StrengthField

    def __post_init__(self) -> None:
        base.check_strength("LHalf.strength", self.strength)


@base.regularizer
class LTwoThirds(_Power):
    """psi(x) = strength sum_i |x_i|^(2/3). Nonconvex; the prox is the global minimiser.

    prox(x, step) is zero up to |x| = 2 (2/3 step strength)^(3/4), and jumps there.

    Example:
      >>> import jax.numpy as jnp, ramda_jax as rj
      >>> [round(float(x), 2) for x in rj.LTwoThirds(1.0).prox(jnp.array([1.4, 1.6]), 1.0)]
      [0.0, 0.91]

    Source: Cao, Sun & Xu, Fast image deconvolution using closed-form thresholding formulas of Lq (q = 1/2, 2/3)
    regularization, JVCIR 2013; in a diagonal metric: Yun, Lozano & Yang, NeurIPS 2021.
    """

    k: ClassVar[int] = 3
    strength: base.StrengthField

    def __post_init__(self) -> None:
        base.check_strength("LTwoThirds.strength", self.strength)


@base.regularizer
class Binarize(Elementwise):
    """psi(x) = strength sum_i |x_i - sign(x_i)|, with sign(0) = 1: a W shape with its minima at -1 and 1.

    prox(x, step) = sign(x) (1 + soft(|x| - 1, step strength)): weights move towards +-1 and stay there. Nonconvex;
    the global minimiser. It favours signs, not zeros.

    Example:
      >>> import jax.numpy as jnp, ramda_jax as rj
      >>> print(rj.Binarize(0.5).prox(jnp.array([0.2, 0.8, -1.7]), 1.0))
      [ 0.7  1.  -1.2]

    Source: Bai, Wang & Liberty, ProxQuant: quantized neural networks via proximal operators, ICLR 2019.
    """

    convex: ClassVar[bool] = False
    structure: ClassVar[str] = "signs"
    strength: base.StrengthField

    def __post_init__(self) -> None:
        base.check_strength("Binarize.strength", self.strength)

    def entries(self, x: jax.Array) -> jax.Array:
        return self.strength * jnp.abs(jnp.abs(x) - 1)

    def prox(self, x: jax.Array, step: ArrayLike) -> jax.Array:
        sign = jnp.where(x < 0, -1.0, 1.0).astype(x.dtype)
        # Where |x| < 1 the shrunk distance may not cross zero: |x| + step strength stops at 1 anyway.
        return sign * (1 + _numerics.soft_threshold(jnp.abs(x) - 1, step * self.strength))

    def project(self, x: jax.Array, model: jax.Array) -> jax.Array:
        # As many entries at -1 or 1 as in `model`: those that are nearest. The others stay.
        distance = jnp.abs(jnp.abs(_numerics.widened(x)) - 1)
        free = _numerics.largest(distance, jnp.sum(jnp.abs(model) != 1))
        sign = jnp.where(x < 0, -1.0, 1.0).astype(x.dtype)
        return jnp.where(free, x, sign)
