"""Regularizers of the spectrum: low rank."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ramda_jax import _numerics
from ramda_jax.regularizers import base

MatrixAxes = int | tuple[int, ...] | None


def _tuple(axes: MatrixAxes) -> tuple[int, ...]:
    """As `__post_init__` stores them; nothing for None."""
    return axes if isinstance(axes, tuple) else ()


# Singular values down to this fraction of the largest are thresholded through the Gram matrix.
_RESOLVED = 1e-3
# Where at most this fraction of the singular values is above the level, the others cost no products.
_FEW = 0.25


def _shrink(a: jax.Array, level: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(U max(S - level, 0) V^T, the sum of max(S - level, 0)) of matrices that are not wide, stacked over leading axes.

    From the eigenvectors of the Gram matrix: half the work of an SVD, or less. Squaring costs the singular values below
    sqrt(eps) times the largest; those near the level are accurate to eps largest^2 / level, so the SVD takes over where
    the level is below a thousandth of the largest. One decomposition for all matrices: the most careful that any needs.
    """
    if a.size == 0:
        return a, jnp.zeros([], a.dtype)
    size = jnp.max(jnp.abs(a), axis=(-2, -1), keepdims=True)
    size = jnp.where(size > 0, size, 1.0)  # neither overflow nor underflow in the squares
    scaled = a / size
    size = size[..., 0]
    level = level / size
    squares, v = jnp.linalg.eigh(scaled.mT @ scaled, symmetrize_input=False)

    def from_gram(w: jax.Array) -> tuple[jax.Array, jax.Array]:
        u = scaled @ w
        s = jnp.sqrt(jnp.sum(u * u, axis=-2))  # more accurate than the roots of the eigenvalues
        kept = jnp.maximum(s - level, 0.0)
        return (u * jnp.where(kept > 0, kept / s, 0.0 * s)[..., None, :]) @ w.mT, kept

    def from_svd() -> tuple[jax.Array, jax.Array]:
        u, s, vt = jnp.linalg.svd(scaled, full_matrices=False)
        kept = jnp.maximum(s - level, 0.0)
        return (u * kept[..., None, :]) @ vt, kept

    few = int(_FEW * squares.shape[-1])
    rest = squares.shape[-1] - few  # of the eigenvalues, which ascend

    def summed(way: Callable[[], tuple[jax.Array, jax.Array]]) -> Callable[[], Any]:
        def run() -> tuple[jax.Array, jax.Array]:
            shrunk, kept = way()
            return shrunk, jnp.sum(size * kept)

        return run

    square = level[..., 0] ** 2
    resolved = jnp.all(square >= _RESOLVED * _RESOLVED * squares[..., -1])
    ways = [from_svd, lambda: from_gram(v), lambda: from_gram(v[..., rest:])]
    low = jnp.all(squares[..., rest - 1] < square).astype(jnp.int32)
    shrunk, total = jax.lax.switch(jnp.where(resolved, 1 + low, 0), [summed(w) for w in ways])
    return size[..., None] * shrunk, total


@base.regularizer
class NuclearNorm(base.Regularizer):
    """psi(x) = strength * (sum of the singular values of x).

    x is a matrix of its row axes, flattened, by all others; with stack axes there is one such matrix per index along them,
    and psi is the sum over them. By default all axes but the last are rows: a Conv kernel (height, width, in, out) is the
    (height width in) x out matrix of the convolution. That is a guess where there are three axes or more: attention's query
    kernel (in, heads, width) wants `row_axes=0`, layers stacked by a scan `stack_axes=0`; `rj.network(...).matrices` knows.

    prox(x, step) = U max(S - step strength, 0) V^T. In a diagonal metric there is no closed form; the subproblem is zero
    iff the largest singular value of b is at most step strength.

    Args:
      strength: lambda >= 0; a number, a 0-d array or an optax schedule.
      row_axes: int or tuple; None: all but the last that are no stack axes.
      stack_axes: int or tuple.

    Raises:
      ValueError: for axes that are no integers; from `check`, naming path and shape, for arrays that are no matrix.

    Example:
      >>> import jax.numpy as jnp, ramda_jax as rj
      >>> layers = jnp.stack([jnp.diag(jnp.array([3.0, 1.0])), jnp.diag(jnp.array([0.5, 0.2]))])
      >>> rank = rj.NuclearNorm(1.0, stack_axes=0)
      >>> print(rank.zero_groups(rank.prox(layers, 1.0)))  # of each, the larger singular value first
      [[False  True]
       [ True  True]]

    Source: Cai, Candes & Shen, A singular value thresholding algorithm for matrix completion, SIAM J. Optim. 2010.
    """

    structure: ClassVar[str] = "rank"
    scored: ClassVar[str | None] = "strength"
    is_norm: ClassVar[bool] = True
    strength: base.StrengthField
    row_axes: MatrixAxes = base.static_field(default=None)
    stack_axes: MatrixAxes = base.static_field(default=())

    def __post_init__(self) -> None:
        base.check_strength("NuclearNorm.strength", self.strength)
        for name in ("row_axes", "stack_axes"):
            axes = getattr(self, name)
            if axes is None and name == "row_axes":
                continue
            object.__setattr__(self, name, base.axes_of(f"NuclearNorm.{name}", axes))

    def _axes(self, ndim: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """(stack, rows, columns), all axes of an array."""
        stack = tuple(a % ndim for a in _tuple(self.stack_axes))
        rest = tuple(a for a in range(ndim) if a not in stack)
        rows = (
            rest[:-1] if self.row_axes is None else tuple(a % ndim for a in _tuple(self.row_axes))
        )
        return stack, rows, tuple(a for a in rest if a not in rows)

    def check(self, path: str, shape: tuple[int, ...]) -> None:
        ndim = len(shape)
        given = (*_tuple(self.row_axes), *_tuple(self.stack_axes))
        valid = all(-ndim <= a < ndim for a in given) and len({a % ndim for a in given}) == len(
            given
        )
        if not (ndim >= 2 and valid and all(self._axes(ndim)[1:])):
            raise ValueError(
                f"NuclearNorm cannot apply to {path!r} of shape {tuple(shape)} with row_axes={self.row_axes} and "
                f"stack_axes={self.stack_axes}: a matrix (rows and columns, all different axes) is needed."
            )

    def settle(self, shape: tuple[int, ...]) -> "NuclearNorm":
        if self.row_axes is not None or len(shape) < 2:
            return self
        return dataclasses.replace(self, row_axes=self._axes(len(shape))[1])

    def reading(self, shape: tuple[int, ...]) -> str:
        size = lambda axes: " ".join(str(shape[a]) for a in axes)
        stack, rows, columns = self._axes(len(shape))
        text = f"a matrix of ({size(rows)}) x ({size(columns)})"
        return f"{text} per index of ({size(stack)})" if stack else text

    def matrix(self, x: jax.Array) -> jax.Array:
        """x as a matrix, or as (stack, rows, columns), in at least float32 (no decomposition exists below)."""
        x = _numerics.whole(x)
        dtype = _numerics.at_least_float32(x.dtype)
        stack, rows, columns = self._axes(x.ndim)
        number, m, n = (
            base.size(tuple(x.shape[a] for a in axes)) for axes in (stack, rows, columns)
        )
        x = jnp.transpose(x, (*stack, *rows, *columns))
        return x.reshape((number, m, n) if stack else (m, n)).astype(dtype)

    def _like(self, matrix: jax.Array, x: jax.Array) -> jax.Array:
        """The inverse of `matrix`."""
        order = [a for axes in self._axes(x.ndim) for a in axes]
        back = matrix.reshape([x.shape[a] for a in order]).astype(x.dtype)
        return jnp.transpose(back, [order.index(a) for a in range(x.ndim)])

    def num_groups(self, shape: tuple[int, ...]) -> int:
        number, m, n = (base.size(tuple(shape[a] for a in axes)) for axes in self._axes(len(shape)))
        return number * min(m, n)

    def value(self, x: jax.Array) -> jax.Array:
        return self.strength * jnp.sum(self.group_norms(x))

    def prox(self, x: jax.Array, step: ArrayLike) -> jax.Array:
        return self.prox_and_value(x, step)[0]

    def prox_and_value(self, x: jax.Array, step: ArrayLike) -> tuple[jax.Array, jax.Array]:
        matrix = self.matrix(x)
        wide = matrix.shape[-2] < matrix.shape[-1]
        level = jnp.asarray(step * self.strength, matrix.dtype)
        shrunk, total = _shrink(matrix.mT if wide else matrix, level)
        shrunk = self._like(shrunk.mT if wide else shrunk, x)
        return _numerics.cut_like(shrunk, x), (self.strength * total).astype(x.dtype)

    def group_norms(self, x: jax.Array) -> jax.Array:
        """The singular values, (k,) or (stack, k), descending."""
        return jnp.linalg.svd(self.matrix(x), compute_uv=False)

    def scores(self, b: jax.Array, metric: jax.Array, step: ArrayLike) -> jax.Array:
        """Of every whole matrix, 0-d or (stack,): zero iff the largest singular value of b is at most step strength."""
        return base.over_step(jnp.max(self.group_norms(b), axis=-1, initial=0.0), step)

    def zero_groups(self, x: jax.Array) -> jax.Array:
        """Singular values that are zero to rounding: at most max(m, n) eps times the largest (4 eps below float32).

        A stored matrix of low rank is of low rank only up to rounding of its entries.
        """
        s = self.group_norms(x)
        relative = max(self.matrix(x).shape[-2:]) * float(jnp.finfo(s.dtype).eps)
        relative = max(relative, 4 * float(jnp.finfo(x.dtype).eps))
        return s <= relative * jnp.max(s, axis=-1, initial=0.0, keepdims=True)

    def rank(self, x: jax.Array) -> jax.Array:
        """Number of singular values that are not zero to rounding, of all matrices; 0-d int."""
        return jnp.sum(~self.zero_groups(x))

    def project(self, x: jax.Array, model: jax.Array) -> jax.Array:
        """The truncated singular value decomposition of each matrix, at the rank of `model`'s."""
        matrix = self.matrix(x)
        rank = jnp.sum(~self.zero_groups(model), axis=-1, keepdims=True)
        u, s, vt = jnp.linalg.svd(matrix, full_matrices=False)
        kept = jnp.where(jnp.arange(s.shape[-1]) < rank, s, jnp.zeros_like(s))
        cut = jnp.where(rank[..., None] < s.shape[-1], (u * kept[..., None, :]) @ vt, matrix)
        return _numerics.cut_like(self._like(cut, x), x)
