"""Regularizers of the spectrum: low rank."""

from typing import ClassVar

import chex
import jax
import jax.numpy as jnp

from ramda_jax import _numerics
from ramda_jax.regularizers import base

# Singular values down to this fraction of the largest are thresholded through the Gram matrix.
_RESOLVED = 1e-3
# Where at most this fraction of the singular values is above the level, the others cost no products.
_FEW = 0.25


def _shrink(a: chex.Array, level: chex.Array) -> tuple[chex.Array, chex.Array]:
    """(U max(S - level, 0) V^T, the sum of max(S - level, 0)) of a matrix that is not wide.

    From the eigenvectors of the Gram matrix: half the work of an SVD, or less. Squaring costs the singular values below
    sqrt(eps) times the largest; those near the level are accurate to eps largest^2 / level, so the SVD takes over where
    the level is below a thousandth of the largest.
    """
    if a.size == 0:
        return a, jnp.zeros([], a.dtype)
    size = jnp.max(jnp.abs(a))
    size = jnp.where(size > 0, size, 1.0)  # neither overflow nor underflow in the squares
    scaled = a / size
    squares, v = jnp.linalg.eigh(scaled.T @ scaled, symmetrize_input=False)
    level = level / size

    def from_gram(w: chex.Array) -> tuple[chex.Array, chex.Array]:
        u = scaled @ w
        s = jnp.sqrt(jnp.sum(u * u, axis=0))  # more accurate than the roots of the eigenvalues
        kept = jnp.maximum(s - level, 0.0)
        return (u * jnp.where(kept > 0, kept / s, 0.0 * s)) @ w.T, jnp.sum(kept)

    def from_svd() -> tuple[chex.Array, chex.Array]:
        u, s, vt = jnp.linalg.svd(scaled, full_matrices=False)
        kept = jnp.maximum(s - level, 0.0)
        return (u * kept) @ vt, jnp.sum(kept)

    resolved = level * level >= _RESOLVED * _RESOLVED * squares[-1]
    rest = squares.size - int(_FEW * squares.size)  # of the eigenvalues, which ascend
    ways = [from_svd, lambda: from_gram(v), lambda: from_gram(v[:, rest:])]
    way = jnp.where(resolved, 1 + (squares[rest - 1] < level * level).astype(jnp.int32), 0)
    shrunk, total = jax.lax.switch(way, ways)
    return size * shrunk, size * total


@base.regularizer
class NuclearNorm(base.Regularizer):
    """psi(x) = strength * (sum of the singular values of x).

    Arrays with more than two axes are matrices of their flattened leading axes by the last one: a Conv kernel
    (height, width, in, out) is the (height width in) x out matrix of the convolution.

    prox(x, step) = U max(S - step strength, 0) V^T. In a diagonal metric there is no closed form; the subproblem is zero
    iff the largest singular value of b is at most step strength.

    Args:
      strength: lambda >= 0; a number, a 0-d array or an optax schedule.

    Raises:
      ValueError: from `check`, naming path and shape, for arrays with fewer than two axes.

    Source: Cai, Candes & Shen, A singular value thresholding algorithm for matrix completion, SIAM J. Optim. 2010.
    """

    structure: ClassVar[str] = "rank"
    scored: ClassVar[str | None] = "strength"
    strength: base.Strength

    def __post_init__(self) -> None:
        base.check_strength("NuclearNorm.strength", self.strength)

    def check(self, path: str, shape: tuple[int, ...]) -> None:
        if len(shape) < 2:
            raise ValueError(
                f"NuclearNorm cannot apply to {path!r} of shape {tuple(shape)}: a matrix (two axes or more) is needed."
            )

    @staticmethod
    def matrix(x: chex.Array) -> chex.Array:
        """x as a matrix, leading axes flattened, in at least float32 (no decomposition exists below)."""
        x = _numerics.whole(x)
        dtype = _numerics.at_least_float32(x.dtype)
        return x.reshape(base.size(x.shape[:-1]), x.shape[-1]).astype(dtype)

    def num_groups(self, shape: tuple[int, ...]) -> int:
        return min(base.size(shape[:-1]), shape[-1])

    def value(self, x: chex.Array) -> chex.Array:
        return self.strength * jnp.sum(self.group_norms(x))

    def prox(self, x: chex.Array, step: chex.Numeric) -> chex.Array:
        return self.prox_and_value(x, step)[0]

    def prox_and_value(self, x: chex.Array, step: chex.Numeric) -> tuple[chex.Array, chex.Array]:
        matrix = self.matrix(x)
        wide = matrix.shape[0] < matrix.shape[1]
        level = jnp.asarray(step * self.strength, matrix.dtype)
        shrunk, total = _shrink(matrix.T if wide else matrix, level)
        shrunk = (shrunk.T if wide else shrunk).reshape(x.shape).astype(x.dtype)
        return _numerics.cut_like(shrunk, x), (self.strength * total).astype(x.dtype)

    def group_norms(self, x: chex.Array) -> chex.Array:
        return jnp.linalg.svd(self.matrix(x), compute_uv=False)

    def scores(self, b: chex.Array, metric: chex.Array, step: chex.Numeric) -> chex.Array:
        """Of the whole matrix, 0-d: it is zero iff the largest singular value of b is at most step strength."""
        return base.over_step(jnp.max(self.group_norms(b), initial=0.0), step)

    def zero_groups(self, x: chex.Array) -> chex.Array:
        """Singular values that are zero to rounding: at most max(m, n) eps times the largest (4 eps below float32).

        A stored matrix of low rank is of low rank only up to rounding of its entries.
        """
        s = self.group_norms(x)
        relative = max(self.matrix(x).shape) * float(jnp.finfo(s.dtype).eps)
        relative = max(relative, 4 * float(jnp.finfo(x.dtype).eps))
        return s <= relative * jnp.max(s, initial=0.0)

    def rank(self, x: chex.Array) -> chex.Array:
        """Number of singular values that are not zero to rounding; 0-d int."""
        return jnp.sum(~self.zero_groups(x))
