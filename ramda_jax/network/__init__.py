"""Networks, seen from their computation: roles of axes, channels, costs. Knows nothing of methods and solvers.

    trace -> flow (over `axes`) -> roles -> spaces -> assignments, cost

`network` is what users call.
"""

from ramda_jax.network.cost import ArrayCost, Cost
from ramda_jax.network.network import Network, network
from ramda_jax.network.spaces import Slices, Space

__all__ = ["ArrayCost", "Cost", "Network", "Slices", "Space", "network"]
