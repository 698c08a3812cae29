"""Meshes of eight (fake) devices, and how arrays lie on them."""

import jax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

DEVICES = 8


def auto_mesh(shape=(DEVICES,), names=("data",), kind=AxisType.Auto):
    return jax.make_mesh(shape, names, axis_types=(kind,) * len(shape))


def cut_as(x):
    """The spec of an array, without the Nones at its end, which mean nothing."""
    entries = list(x.sharding.spec if hasattr(x, "sharding") else x.spec)
    while entries and entries[-1] is None:
        entries.pop()
    return P(*entries)


def is_laid(tree, shardings):
    same = jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), tree, shardings)
    return all(jax.tree.leaves(same))
