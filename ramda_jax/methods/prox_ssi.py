"""ProxSSI: Adam's step followed by a weighted prox (structured sparsity inducing adaptive optimizers)."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from ramda_jax import _numerics
from ramda_jax._numerics import Schedulable
from ramda_jax.assignment import Regularization
from ramda_jax.methods import adam, base
from ramda_jax.sharding import Placement
from ramda_jax.solvers import Solver
from ramda_jax.transform import proximal_transformation


def _pieces(arrays, param, scalars):
    """The subproblem times eta: v = 0, x0 = Adam's point with weight decay, D = (sqrt(n_t) + eps) / correction."""
    grad_average, grad_sq_average = arrays
    step, shrink, correction, eps = scalars
    metric = _numerics.sqrt(grad_sq_average) + eps
    point = shrink * (param - step * grad_average / metric)
    return jnp.zeros_like(param), point, metric / correction


@dataclasses.dataclass(frozen=True)
class ProxSsi(adam.Adam):
    """Hyperparameters of ProxSSI; see `prox_ssi`."""

    bias_corrected_metric: bool

    def terms(self, state: adam.AdamState, count: jax.Array) -> base.Terms:
        eta, shrink, correction1, correction2, eps = self.constants(count)
        root = jnp.sqrt(correction2)
        correction = root if self.bias_corrected_metric else jnp.ones_like(root)
        return base.Terms(eta, (eta * root / correction1, shrink, correction, eps), _pieces)


def prox_ssi(
    learning_rate: Schedulable,
    regularizer: Regularization,
    *,
    b1: Schedulable = 0.9,
    b2: Schedulable = 0.999,
    eps: Schedulable = 1e-6,
    weight_decay: Schedulable = 0.0,
    bias_corrected_metric: bool = True,
    solver: Solver | None = None,
    accumulator_dtype: DTypeLike | None = None,
    placement: Placement | None = None,
) -> optax.GradientTransformationExtraArgs:
    """ProxSSI: Adam's step, then weight decay, then the prox in Adam's metric.

      u   = (1 - eta wd) (W^{t-1} - eta sqrt(1 - b2^t) / (1 - b1^t) m_t / (sqrt(n_t) + eps))
      W^t = argmin_X  1/2 <X - u, M (X - u)> + eta psi(X),     M = (sqrt(n_t) + eps) / sqrt(1 - b2^t)

    M is the metric in which Adam's step itself was taken. The published code leaves out the correction of M, which makes
    its effective strength 31.6 times too large at t = 1 and 10 times at t = 10 (b2 = 0.999): `bias_corrected_metric=False`
    reproduces it. The default is the corrected one, because then the strength means the same at every step and in every
    method. It must be the last transformation of a chain. The residual of `solver_stats` is that of the problem above.

    Args:
      learning_rate, regularizer, solver, accumulator_dtype, placement: as in `ramda`.
      b1, b2: decay rates of the moments, in [0, 1).
      eps: > 0, added to the root of the second moment.
      weight_decay: >= 0, after Adam's step and before the prox (times the learning rate).
      bias_corrected_metric: False for the published behaviour.

    Returns:
      An `optax.GradientTransformationExtraArgs`; `update` needs `params`.

    Raises:
      ValueError: as `ramda`.

    Example:
      >>> import jax.numpy as jnp, ramda_jax as rj
      >>> tx = rj.prox_ssi(1e-3, rj.GroupLasso(0.1))
      >>> state = tx.init({"kernel": jnp.ones((3, 2))})

    Source: Deleu & Bengio, Structured sparsity inducing adaptive optimizers for deep learning, arXiv 2102.03869.
    """
    method = ProxSsi(learning_rate, b1, b2, eps, weight_decay, bool(bias_corrected_metric))
    return proximal_transformation(method, regularizer, solver, accumulator_dtype, placement)
