"""RAMDA and its baselines as optax transformations; group norms are solved exactly.

Every method minimises, per parameter, <v, X> + 1/2 <X - x0, D (X - x0)> + w psi(X) and differs in how v, x0, D, w come from
the gradients (`models`). What psi is (`regularizers`) and how the minimiser is found (`solvers`) are independent choices.
"""

from ramda_jax.assignment import Assignment, by_path, describe, kernels
from ramda_jax.metrics import (
    group_sparsity,
    low_rank_level,
    objective,
    summary,
    weighted_group_sparsity,
)
from ramda_jax.models import prox_adamw, prox_sgd, prox_ssi, ramda, rmda
from ramda_jax.placement import Placement
from ramda_jax.regularizers import (
    L0,
    L1,
    Binarize,
    ElasticNet,
    GroupLasso,
    GroupMCP,
    LHalf,
    LTwoThirds,
    NuclearNorm,
    Regularizer,
    SparseGroupLasso,
)
from ramda_jax.schedules import final_momentum_schedule, multistep
from ramda_jax.sharding import state_sharding
from ramda_jax.solvers import (
    AcceleratedProximalGradient,
    DouglasRachford,
    Newton,
    ProximalGradient,
    Solver,
)
from ramda_jax.transform import ProximalState, solver_stats, structured_params

__version__ = "0.1.0"

__all__ = [
    "L0",
    "L1",
    "AcceleratedProximalGradient",
    "Assignment",
    "Binarize",
    "DouglasRachford",
    "ElasticNet",
    "GroupLasso",
    "GroupMCP",
    "LHalf",
    "LTwoThirds",
    "Newton",
    "NuclearNorm",
    "Placement",
    "ProximalGradient",
    "ProximalState",
    "Regularizer",
    "Solver",
    "SparseGroupLasso",
    "by_path",
    "describe",
    "final_momentum_schedule",
    "group_sparsity",
    "kernels",
    "low_rank_level",
    "multistep",
    "objective",
    "prox_adamw",
    "prox_sgd",
    "prox_ssi",
    "ramda",
    "rmda",
    "solver_stats",
    "state_sharding",
    "structured_params",
    "summary",
    "weighted_group_sparsity",
]
