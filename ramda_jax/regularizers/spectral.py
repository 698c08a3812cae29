"""Regularizers of the spectrum: low rank."""

from typing import Any, ClassVar

import chex
import jax
import jax.numpy as jnp

from ramda_jax import _validation, first_order
from ramda_jax.regularizers import base

# `weighted_prox` has no closed form: accelerated proximal gradient to (nearly) working precision.
_PROX_ITERATIONS = 5000


def _on_explicit_mesh(x: chex.Array) -> bool:
    mesh = jax.typeof(x).sharding.mesh
    return any(kind == jax.sharding.AxisType.Explicit for kind in mesh.axis_types)


def _whole(x: chex.Array) -> chex.Array:
    """x, whole on every device: no decomposition takes a matrix that an explicit mesh has cut."""
    spec = jax.sharding.PartitionSpec()
    return jax.sharding.reshard(x, spec) if _on_explicit_mesh(x) else x


def _cut_like(x: chex.Array, model: chex.Array) -> chex.Array:
    """x, cut as `model` is on an explicit mesh."""
    spec = jax.typeof(model).sharding.spec
    return jax.sharding.reshard(x, spec) if _on_explicit_mesh(model) else x


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
    strength: Any

    def __post_init__(self) -> None:
        _validation.check_nonnegative("NuclearNorm.strength", self.strength)

    def check(self, path: str, shape: tuple[int, ...]) -> None:
        if len(shape) < 2:
            raise ValueError(
                f"NuclearNorm cannot apply to {path!r} of shape {tuple(shape)}: a matrix (two axes or more) is needed."
            )

    @staticmethod
    def matrix(x: chex.Array) -> chex.Array:
        """x as a matrix, leading axes flattened, in at least float32 (no decomposition exists below)."""
        x = _whole(x)
        return x.reshape(-1, x.shape[-1]).astype(jnp.promote_types(x.dtype, jnp.float32))

    def num_groups(self, shape: tuple[int, ...]) -> int:
        return min(base.size(shape[:-1]), shape[-1])

    def value(self, x: chex.Array) -> chex.Array:
        return self.strength * jnp.sum(self.group_norms(x))

    def prox(self, x: chex.Array, step: chex.Numeric) -> chex.Array:
        u, s, vt = jnp.linalg.svd(self.matrix(x), full_matrices=False)
        kept = jnp.maximum(s - step * self.strength, 0.0).astype(s.dtype)
        return _cut_like(((u * kept) @ vt).reshape(x.shape).astype(x.dtype), x)

    def weighted_prox(self, x: chex.Array, metric: chex.Array, step: chex.Numeric) -> chex.Array:
        metric = jnp.asarray(metric, x.dtype) * jnp.ones_like(x)
        tolerance = 1e-13 if x.dtype == jnp.float64 else 1e-6
        settings = first_order.Settings(_PROX_ITERATIONS, 1, None, tolerance, accelerated=True)
        smooth = first_order.Quadratic(jnp.zeros_like(x), x, metric)
        active = ~self.screen(metric * x, metric, step) & jnp.ones_like(x, bool)
        return first_order.minimise(smooth, self, step, x, active, settings).x

    def group_norms(self, x: chex.Array) -> chex.Array:
        return jnp.linalg.svd(self.matrix(x), compute_uv=False)

    def screen(self, b: chex.Array, metric: chex.Array, step: chex.Numeric) -> chex.Array:
        """Whether the whole matrix is zero; 0-d."""
        return jnp.max(self.group_norms(b), initial=0.0) <= step * self.strength

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
