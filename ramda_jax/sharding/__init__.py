"""Several devices: where the arrays of a step lie, and how its parts are run."""

from ramda_jax.sharding.placement import Placement

__all__ = ["Placement"]
