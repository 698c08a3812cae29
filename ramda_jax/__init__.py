"""RAMDA and its baselines as optax transformations; group norms are solved exactly.

Every method minimises, per parameter, <v, X> + 1/2 <X - x0, D (X - x0)> + w psi(X) and differs in how v, x0, D, w come from
the gradients (`methods`). What psi is (`regularizers`) and how the minimiser is found (`solvers`) are independent choices.
"""

from importlib import metadata as _metadata

from ramda_jax import interop as interop  # tells other libraries
from ramda_jax.assignment import Assignment, by_path, coupled, kernels
from ramda_jax.inspect import describe, solver_stats, structured_params
from ramda_jax.methods.prox_adamw import prox_adamw
from ramda_jax.methods.prox_sgd import prox_sgd
from ramda_jax.methods.prox_ssi import prox_ssi
from ramda_jax.methods.ramda import ramda
from ramda_jax.methods.rmda import rmda
from ramda_jax.network import Compact, Network, compact, load_compact, network
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
from ramda_jax.schedules import final_momentum_schedule, multistep, stages
from ramda_jax.sharding import Placement
from ramda_jax.sharding.shardings import state_sharding
from ramda_jax.solvers import (
    AcceleratedProximalGradient,
    DouglasRachford,
    Newton,
    ProximalGradient,
    Solver,
)
from ramda_jax.state import ProximalState
from ramda_jax.strengths import lambda_max
from ramda_jax.structure import (
    group_sparsity,
    low_rank_level,
    objective,
    summary,
    weighted_group_sparsity,
)
from ramda_jax.subproblem import View
from ramda_jax.targets import TargetSparsity

try:
    __version__ = _metadata.version("ramda-jax")
except _metadata.PackageNotFoundError:  # sources on the path, never installed
    __version__ = "unknown"

__all__ = [
    "L0",
    "L1",
    "AcceleratedProximalGradient",
    "Assignment",
    "Binarize",
    "Compact",
    "DouglasRachford",
    "ElasticNet",
    "GroupLasso",
    "GroupMCP",
    "LHalf",
    "LTwoThirds",
    "Network",
    "Newton",
    "NuclearNorm",
    "Placement",
    "ProximalGradient",
    "ProximalState",
    "Regularizer",
    "Solver",
    "SparseGroupLasso",
    "TargetSparsity",
    "View",
    "by_path",
    "compact",
    "coupled",
    "describe",
    "final_momentum_schedule",
    "group_sparsity",
    "kernels",
    "lambda_max",
    "load_compact",
    "low_rank_level",
    "multistep",
    "network",
    "objective",
    "prox_adamw",
    "prox_sgd",
    "prox_ssi",
    "ramda",
    "rmda",
    "solver_stats",
    "stages",
    "state_sharding",
    "structured_params",
    "summary",
    "weighted_group_sparsity",
]
