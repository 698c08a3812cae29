"""Models: one file per method, from gradients to the common subproblem."""

from ramda_jax.models.prox_adamw import prox_adamw
from ramda_jax.models.prox_sgd import prox_sgd
from ramda_jax.models.prox_ssi import prox_ssi
from ramda_jax.models.ramda import ramda
from ramda_jax.models.rmda import rmda

__all__ = ["prox_adamw", "prox_sgd", "prox_ssi", "ramda", "rmda"]
