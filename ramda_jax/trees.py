"""Trees of arrays: the path of a leaf, whether two trees fit together, which leaves can be trained at all."""

import numbers
import sys
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

# Arrays in a dict, in a tuple, or in any class that JAX has been told of: no narrower type admits them all.
ArrayTree: TypeAlias = Any

# Classes that hold one array each, by the module that defines them. Nobody has an instance of a class whose module is not
# loaded, so none of them is imported here: Flax is no dependency.
_WRAPPERS = (
    ("flax.nnx", "Variable"),
    ("flax.core.meta", "AxisMetadata"),
)


def _wrappers() -> tuple[type, ...]:
    found = [getattr(sys.modules.get(module), name, None) for module, name in _WRAPPERS]
    return tuple(cls for cls in found if isinstance(cls, type))


def is_wrapper(x: Any) -> bool:
    """Whether x is a wrapper of Flax around one array: a variable of NNX, a boxed parameter of Linen."""
    return isinstance(x, _wrappers())


def unwrap(tree: Any) -> Any:
    """The tree with its wrappers replaced by what they hold (`nnx.Optimizer` wraps every leaf of a state)."""

    def bare(x: Any) -> Any:
        while is_wrapper(x):
            x = x.get_value() if hasattr(x, "get_value") else x.unbox()
        return x

    return jax.tree.map(bare, tree, is_leaf=is_wrapper)


def is_hidden(x: Any) -> bool:
    """Whether x stands for parameters that `optax.masked` or `optax.partition` hides."""
    return isinstance(x, optax.MaskedNode)


def path_string(key_path: Sequence[Any]) -> str:
    """A key path as 'encoder/0/kernel'."""
    names = []
    for key in key_path:
        if isinstance(key, jax.tree_util.GetAttrKey):
            names.append(key.name)
        else:
            names.append(str(getattr(key, "key", getattr(key, "idx", key))))
    return "/".join(names)


def flatten(tree: ArrayTree, **kwargs: Any) -> tuple[list[str], list[Any], Any]:
    """(paths, leaves, treedef); wrappers leave no trace in the paths."""
    leaves, treedef = jax.tree.flatten(tree, **kwargs)
    is_leaf = kwargs.get("is_leaf", lambda x: False)
    outer = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: is_wrapper(x) or is_leaf(x))
    paths: list[str] = []
    for key_path, x in outer:
        # A wrapper holds one array, or none.
        held = len(jax.tree.leaves(x)) if is_wrapper(x) else 1
        paths.extend([path_string(key_path)] * held)
    return paths, leaves, treedef


def arrays(tree: ArrayTree, what: str) -> ArrayTree:
    """The tree with Python's numbers made arrays.

    Raises:
      ValueError: naming the path of a leaf that is no real floating-point array. `what`: the tree's name in the message.
    """
    if all(map(_is_trained, jax.tree.leaves(tree))):
        return tree
    paths, leaves, treedef = flatten(tree)
    return treedef.unflatten([_array(p, x, what) for p, x in zip(paths, leaves, strict=True)])


def _is_trained(x: Any) -> bool:
    return hasattr(x, "shape") and hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)


def _array(path: str, x: Any, what: str) -> Any:
    if isinstance(x, numbers.Real) and not isinstance(x, (bool, np.generic)):
        x = jnp.asarray(float(x))
    here = f"{what} at {path!r}" if path else what
    if _is_trained(x):
        return x
    if not (hasattr(x, "shape") and hasattr(x, "dtype")):
        raise ValueError(
            f"{here} must be a floating-point array, got {type(x).__name__}. Keep only the arrays of a model, "
            "as equinox.filter(model, equinox.is_inexact_array) and nnx.state(model, nnx.Param) do."
        )
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise ValueError(
            f"{here} is complex ({x.dtype}): regularizers are norms of real arrays. Train its real and imaginary parts, "
            "as optax.contrib.split_real_and_imaginary does."
        )
    raise ValueError(
        f"{here} must be a floating-point array, got dtype {x.dtype}. Leave it out of what is trained "
        "(optax.masked, optax.partition)."
    )


def check_same(tree: Any, name: str, expected: Any, expected_name: str) -> None:
    """Raise ValueError naming the first difference unless both trees have the same nodes and leaves of the same shapes."""
    wanted: list[Any] = list(jax.tree.flatten(expected))
    given: list[Any] = list(jax.tree.flatten(tree))
    if given[1] == wanted[1] and list(map(jnp.shape, given[0])) == list(map(jnp.shape, wanted[0])):
        return  # at every step: paths are looked for where there is something to say
    paths, leaves, treedef = flatten(expected)
    found_paths, found, found_treedef = flatten(tree)
    if found_treedef != treedef and not _alike(tree, expected):
        raise ValueError(
            f"{name} and {expected_name} have different trees: {_first_difference(found_paths, paths)}."
        )
    for path, x, y in zip(paths, found, leaves, strict=True):
        if jnp.shape(x) != jnp.shape(y):
            raise ValueError(
                f"{name} at {path!r} has shape {jnp.shape(x)} where {jnp.shape(y)} was expected, as in {expected_name}."
            )


def _alike(tree: Any, expected: Any) -> bool:
    """Whether they differ in nothing but the wrappers of their leaves."""
    bare = lambda x: jax.tree.map(lambda _: 0, x, is_leaf=is_wrapper)
    structures: list[Any] = [jax.tree.structure(bare(x)) for x in (tree, expected)]
    return structures[0] == structures[1]


def _first_difference(found: list[str], expected: list[str]) -> str:
    missing = [p for p in expected if p not in found]
    extra = [p for p in found if p not in expected]
    if missing:
        return f"there is nothing for {missing[0]!r} ({len(missing)} missing)"
    if extra:
        return f"{extra[0]!r} is not expected ({len(extra)} of these)"
    for k, (one, other) in enumerate(zip(found, expected, strict=True)):
        if one != other:
            return f"leaf {k} is {one!r} where {other!r} was expected (another order)"
    return "the same paths, but other containers (a dict is not an OrderedDict, a list not a tuple)"
