"""Regularizers psi: one class each, no knowledge of methods or solvers."""

from ramda_jax.regularizers.base import Regularizer, ScoredStrength
from ramda_jax.regularizers.elementwise import (
    L0,
    L1,
    Binarize,
    ElasticNet,
    LHalf,
    LTwoThirds,
)
from ramda_jax.regularizers.group import (
    GroupLasso,
    GroupMCP,
    GroupNorm,
    SparseGroupLasso,
)
from ramda_jax.regularizers.spectral import NuclearNorm

__all__ = [
    "L0",
    "L1",
    "Binarize",
    "ElasticNet",
    "GroupLasso",
    "GroupMCP",
    "GroupNorm",
    "LHalf",
    "LTwoThirds",
    "NuclearNorm",
    "Regularizer",
    "ScoredStrength",
    "SparseGroupLasso",
]
