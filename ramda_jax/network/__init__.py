"""Networks, seen from their computation: roles of axes, channels, costs. Knows nothing of methods and solvers.

    trace -> flow (over `axes`) -> roles -> spaces -> assignments, cost
    flat -> multiplied -> needs (over `masks`) -> factors -> emit (over `pieces`): compaction

`flat` also knows what both walks over a jaxpr must: calls, kinds of primitives, operations of a product.
`network` and `compact` are what users call.
"""

from ramda_jax.network.compaction import Compact, Report, compact, load_compact
from ramda_jax.network.cost import ArrayCost, Cost
from ramda_jax.network.network import Network, network
from ramda_jax.network.spaces import Slices, Space

__all__ = [
    "ArrayCost",
    "Compact",
    "Cost",
    "Network",
    "Report",
    "Slices",
    "Space",
    "compact",
    "load_compact",
    "network",
]
