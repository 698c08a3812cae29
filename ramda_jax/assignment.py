"""Which regularizer each parameter gets."""

import abc
import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Any

import chex
import jax

from ramda_jax.regularizers import Regularizer
from ramda_jax.regularizers.base import is_regularizer_or_none, size


def path_string(key_path: Sequence[Any]) -> str:
    """A key path as 'encoder/0/kernel'; the wrappers of NNX variables and boxed Linen parameters leave no trace."""
    names = []
    for key in key_path:
        if isinstance(key, jax.tree_util.GetAttrKey):
            names.append(key.name)
        else:
            names.append(str(getattr(key, "key", getattr(key, "idx", key))))
    last = key_path[-1] if key_path else None
    if isinstance(last, jax.tree_util.GetAttrKey) and last.name in ("value", "raw_value"):
        names.pop()
    return "/".join(names)


def flatten_with_paths(tree: chex.ArrayTree, **kwargs: Any) -> tuple[list[str], list[Any], Any]:
    """(paths, leaves, treedef)."""
    pairs, treedef = jax.tree_util.tree_flatten_with_path(tree, **kwargs)
    return [path_string(p) for p, _ in pairs], [x for _, x in pairs], treedef


class Assignment(abc.ABC):
    """A rule that gives every parameter a regularizer or None. Not callable: it is not a schedule."""

    @abc.abstractmethod
    def leaf(self, path: str, shape: tuple[int, ...]) -> Regularizer | None:
        """The regularizer of the parameter at this path, None to leave it alone."""

    def assign(self, params: chex.ArrayTree) -> Any:
        """The pytree of regularizers and Nones, with the structure of params."""
        paths, leaves, treedef = flatten_with_paths(params)
        return treedef.unflatten(
            [self.leaf(p, tuple(x.shape)) for p, x in zip(paths, leaves, strict=True)]
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Kernels(Assignment):
    """See `kernels`."""

    regularizer: Regularizer

    def leaf(self, path: str, shape: tuple[int, ...]) -> Regularizer | None:
        is_kernel = path.rsplit("/", 1)[-1] == "kernel" and len(shape) >= 2
        return self.regularizer if is_kernel else None


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True)
class ByPath(Assignment):
    """See `by_path`."""

    patterns: tuple[str, ...]
    regularizers: tuple[Regularizer | None, ...]

    def leaf(self, path: str, shape: tuple[int, ...]) -> Regularizer | None:
        for pattern, chosen in zip(self.patterns, self.regularizers, strict=True):
            if re.search(pattern, path):
                return chosen
        raise ValueError(
            f"no rule of by_path matches {path!r} of shape {shape}; rules: {list(self.patterns)}. "
            'End with (".*", None) to leave the rest unregularized.'
        )

    def tree_flatten(self) -> tuple[Any, Any]:
        return (self.regularizers,), self.patterns

    @classmethod
    def tree_unflatten(cls, patterns: Any, children: Any) -> "ByPath":
        return cls(patterns, *children)


def kernels(regularizer: Regularizer) -> Kernels:
    """The usual rule: regularize leaves called `kernel` with two or more axes.

    So no bias, no scale of a norm and no embedding. A bare regularizer means this.

    Args:
      regularizer: for all kernels.

    Raises:
      ValueError: if it is not a regularizer.

    Example:
      >>> import jax.numpy as jnp, ramda_jax as rj
      >>> params = {"dense": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}}
      >>> rj.kernels(rj.L1(0.1)).assign(params)
      {'dense': {'bias': None, 'kernel': L1(strength=0.1)}}
    """
    if not isinstance(regularizer, Regularizer):
        raise ValueError(f"kernels needs a regularizer, got {regularizer!r}.")
    return Kernels(regularizer)


def by_path(rules: Iterable[tuple[str, Regularizer | None]]) -> ByPath:
    """Regularizers by rules over the '/'-joined path of a parameter; the first match wins.

    Args:
      rules: pairs of a regular expression (searched anywhere in the path, `re.search`; anchor with ^ and $) and a
        regularizer, or None to leave the parameters alone.

    Raises:
      ValueError: for rules that are not such pairs, or expressions that do not compile; when it is applied, for a
        parameter that no rule matches (naming it).

    Example:
      >>> import jax.numpy as jnp, ramda_jax as rj
      >>> params = {"head": {"kernel": jnp.ones((3, 2))}, "body": {"kernel": jnp.ones((3, 3))}}
      >>> rj.by_path([("^head/", None), ("kernel$", rj.L1(0.1))]).assign(params)
      {'body': {'kernel': L1(strength=0.1)}, 'head': {'kernel': None}}
    """
    patterns, regularizers = [], []
    for rule in rules:
        if not (isinstance(rule, (tuple, list)) and len(rule) == 2 and isinstance(rule[0], str)):
            raise ValueError(f"by_path needs pairs (pattern, regularizer or None), got {rule!r}.")
        pattern, chosen = rule
        if not is_regularizer_or_none(chosen):
            raise ValueError(
                f"by_path rule {pattern!r}: {chosen!r} is neither a regularizer nor None."
            )
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"by_path pattern {pattern!r} is not a regular expression: {error}."
            ) from None
        patterns.append(pattern)
        regularizers.append(chosen)
    return ByPath(tuple(patterns), tuple(regularizers))


def _is_masked(x: Any) -> bool:
    """Whether x is the placeholder of a parameter that `optax.masked` hides (an empty node of the tree)."""
    return type(x).__name__ == "MaskedNode"


def _from_tree(tree: Any, paths: list[str], params: chex.ArrayTree) -> list[Regularizer | None]:
    """Match an explicit tree of regularizers to the parameters, path by path."""
    tree_paths, chosen, _ = flatten_with_paths(tree, is_leaf=is_regularizer_or_none)
    given = dict(zip(tree_paths, chosen, strict=True))
    for path, regularizer in given.items():
        if not is_regularizer_or_none(regularizer):
            raise ValueError(
                f"the regularizer of {path!r} must be a regularizer or None, got {regularizer!r}."
            )
    missing = [p for p in paths if p not in given]
    if missing:
        raise ValueError(
            f"the tree of regularizers does not have the structure of params: nothing for {missing[0]!r} "
            f"({len(missing)} missing). It has {sorted(given)}."
        )
    hidden = any(_is_masked(x) for x in jax.tree.leaves(params, is_leaf=_is_masked))
    extra = sorted(set(given) - set(paths))
    if extra and not hidden:
        raise ValueError(
            f"the tree of regularizers does not have the structure of params: there is no parameter {extra[0]!r}. "
            f"Parameters: {paths}."
        )
    return [given[p] for p in paths]


def resolve(regularizer: Any, params: chex.ArrayTree) -> tuple[list[str], list[Regularizer | None]]:
    """(paths, regularizers), one entry per leaf of params, checked.

    Args:
      regularizer: None, a regularizer, an assignment, or a tree of regularizers and Nones like params.
      params: arrays or ShapeDtypeStructs.

    Raises:
      ValueError: for anything else, for trees of another structure, for regularizers that cannot apply to their array
        (naming path and shape), and if nothing at all is regularized though something should be.
    """
    paths, leaves, _ = flatten_with_paths(params)
    if regularizer is None:
        return paths, [None] * len(paths)
    if isinstance(regularizer, Regularizer):
        regularizer = kernels(regularizer)
    if isinstance(regularizer, Assignment):
        chosen = [regularizer.leaf(p, tuple(x.shape)) for p, x in zip(paths, leaves, strict=True)]
    elif leaves:
        chosen = _from_tree(regularizer, paths, params)
    else:
        chosen = []
    for path, leaf, psi in zip(paths, leaves, chosen, strict=True):
        if psi is not None:
            psi.check(path, tuple(leaf.shape))
    if leaves and not any(psi is not None for psi in chosen):
        raise ValueError(
            f"the assignment {_short(regularizer)} regularizes none of the parameters {paths}; pass "
            "regularizer=None to leave all unregularized."
        )
    return paths, chosen


def _short(x: Any) -> str:
    text = repr(x)
    return text if len(text) <= 200 else text[:197] + "..."


def describe(params: chex.ArrayTree, regularizer: Any) -> str:
    """A printable table of what is regularized and how.

    Args:
      params: arrays or ShapeDtypeStructs.
      regularizer: as in `ramda`.

    Returns:
      Text: path, shape, regularizer, groups, parameters of every array, and totals.

    Raises:
      ValueError: as `ramda` would.

    Example:
      >>> import jax.numpy as jnp, ramda_jax as rj
      >>> print(rj.describe({"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}, rj.L1(0.1)))
      path    shape   regularizer       groups  parameters
      bias    (2,)    -                      -           2
      kernel  (3, 2)  L1(strength=0.1)       6           6
      total   2                              6           8
    """
    paths, chosen = resolve(regularizer, params)
    shapes = [tuple(x.shape) for x in jax.tree.leaves(params)]
    rows = [("path", "shape", "regularizer", "groups", "parameters")]
    groups = 0
    for path, shape, psi in zip(paths, shapes, chosen, strict=True):
        count = psi.num_groups(shape) if psi is not None else 0
        groups += count
        text = "-" if psi is None else psi.describe()
        rows.append((path, str(shape), text, str(count) if psi else "-", str(size(shape))))
    rows.append(("total", str(len(paths)), "", str(groups), str(sum(map(size, shapes)))))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = []
    for row in rows:
        left = [text.ljust(w) for text, w in zip(row[:3], widths[:3], strict=True)]
        right = [text.rjust(w) for text, w in zip(row[3:], widths[3:], strict=True)]
        lines.append("  ".join(left + right).rstrip())
    return "\n".join(lines)
