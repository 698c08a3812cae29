"""Which regularizer each parameter gets, and which parameters are regularized together."""

import abc
import dataclasses
import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax

from ramda_jax import trees
from ramda_jax.regularizers import GroupNorm, Regularizer
from ramda_jax.regularizers.base import is_regularizer_or_none
from ramda_jax.subproblem import Block, Member, View, Window, meet, several, single
from ramda_jax.trees import ArrayTree


class Parameter(NamedTuple):
    """What an assignment sees of a parameter: its place among the leaves, its path and its shape."""

    leaf: int
    path: str
    shape: tuple[int, ...]


class Assignment(abc.ABC):
    """A rule that says which parameters are regularized, and how. Not callable: it is not a schedule.

    Example:
      >>> import jax.numpy as jnp, ramda_jax as rj
      >>> isinstance(rj.kernels(rj.L1(0.1)), rj.Assignment)
      True
      >>> rj.kernels(rj.L1(0.1)).assign({"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)})
      {'bias': None, 'kernel': L1(strength=0.1)}
    """

    @abc.abstractmethod
    def blocks(self, params: Sequence[Parameter]) -> list[Block]:
        """The blocks that these parameters make; what is in none of them is left alone."""

    def check_used(self, blocks: Sequence[Block]) -> None:  # noqa: B027 (most have nothing to say)
        """Raise ValueError naming a part of the rule that applies to nothing, given the blocks of all parameters."""

    def assign(self, params: ArrayTree) -> Any:
        """The pytree of regularizers and Nones with the structure of params: of every array the one of its block."""
        paths, leaves, treedef = trees.flatten(params)
        chosen: list[Regularizer | None] = [None] * len(paths)
        for block in self.blocks(_parameters(paths, leaves)):
            for member in block.members:
                chosen[member.leaf] = block.psi
        return treedef.unflatten(chosen)


Regularization: TypeAlias = (
    Regularizer
    | Assignment
    | Mapping[Any, "Regularization"]
    | list["Regularization"]
    | tuple["Regularization", ...]
    | None
)
"""What may be given for a regularizer: one, which is for all kernels; an assignment; a tree of regularizers and Nones
like the parameters; None.
"""


def _parameters(paths: Sequence[str], leaves: Sequence[Any]) -> list[Parameter]:
    pairs = zip(paths, leaves, strict=True)
    return [Parameter(i, path, tuple(x.shape)) for i, (path, x) in enumerate(pairs)]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Kernels(Assignment):
    """See `kernels`."""

    regularizer: Regularizer

    def blocks(self, params: Sequence[Parameter]) -> list[Block]:
        is_kernel = lambda p: p.path.rsplit("/", 1)[-1] == "kernel" and len(p.shape) >= 2
        return [single(*p, self.regularizer) for p in params if is_kernel(p)]


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True)
class ByPath(Assignment):
    """See `by_path`."""

    patterns: tuple[str, ...]
    chosen: tuple[Regularizer | Assignment | None, ...]

    def blocks(self, params: Sequence[Parameter]) -> list[Block]:
        mine: list[list[Parameter]] = [[] for _ in self.patterns]
        for param in params:
            mine[self._rule(param)].append(param)
        blocks: list[Block] = []
        for chosen, some in zip(self.chosen, mine, strict=True):
            if isinstance(chosen, Assignment):
                blocks.extend(chosen.blocks(some))
            elif chosen is not None:
                blocks.extend(single(*p, chosen) for p in some)
        return blocks

    def _rule(self, param: Parameter) -> int:
        for k, pattern in enumerate(self.patterns):
            if re.search(pattern, param.path):
                return k
        raise ValueError(
            f"no rule of by_path matches {param.path!r} of shape {param.shape}; rules: {list(self.patterns)}. "
            'End with (".*", None) to leave the rest unregularized.'
        )

    def tree_flatten(self) -> tuple[Any, Any]:
        return (self.chosen,), self.patterns

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


def by_path(rules: Iterable[tuple[str, Regularizer | Assignment | None]]) -> ByPath:
    """Regularizers by rules over the '/'-joined path of a parameter; the first match wins.

    Args:
      rules: pairs of a regular expression (searched anywhere in the path, `re.search`; anchor with ^ and $) and a
        regularizer, None to leave the parameters alone, or an assignment (`coupled`) for those that fall to this rule.

    Raises:
      ValueError: for rules that are not such pairs, or expressions that do not compile; when it is applied, for a
        parameter that no rule matches (naming it).

    Example:
      >>> import jax.numpy as jnp, ramda_jax as rj
      >>> params = {"head": {"kernel": jnp.ones((3, 2))}, "body": {"kernel": jnp.ones((3, 3))}}
      >>> rj.by_path([("^head/", None), ("kernel$", rj.L1(0.1))]).assign(params)
      {'body': {'kernel': L1(strength=0.1)}, 'head': {'kernel': None}}
    """
    patterns, choices = [], []
    for rule in rules:
        if not (isinstance(rule, (tuple, list)) and len(rule) == 2 and isinstance(rule[0], str)):
            raise ValueError(f"by_path needs pairs (pattern, regularizer or None), got {rule!r}.")
        pattern, chosen = rule
        if not (is_regularizer_or_none(chosen) or isinstance(chosen, Assignment)):
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
        choices.append(chosen)
    return ByPath(tuple(patterns), tuple(choices))


# Coupled blocks.

Place = int | tuple[int, ...] | View


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True)
class Coupled(Assignment):
    """See `coupled`."""

    kinds: tuple[tuple[str, tuple[tuple[str, View], ...]], ...]
    regularizer: GroupNorm

    def blocks(self, params: Sequence[Parameter]) -> list[Block]:
        blocks = []
        for kind, patterns in self.kinds:
            for binding, found in _bindings(patterns, params).items():
                name = "/".join((kind, *binding))
                missing = [p for (p, _), mine in zip(patterns, found, strict=True) if mine is None]
                if missing:
                    present = [mine.path for mine in found if mine is not None]
                    text = [_bound(p, patterns[0][0], binding) for p in missing]
                    raise ValueError(
                        f"the block {name!r} of coupled lacks {text}: it has {present}. optax.masked and optax.partition "
                        "must not split a block."
                    )
                blocks.append(self._block(name, patterns, found))
        return blocks

    def check_used(self, blocks: Sequence[Block]) -> None:
        """Raise ValueError naming a kind of which there is no block: mistyped, most likely."""
        for kind, patterns in self.kinds:
            if not any(b.name == kind or b.name.startswith(f"{kind}/") for b in blocks):
                raise ValueError(
                    f"coupled[{kind!r}] matches no parameter: {[pattern for pattern, _ in patterns]}."
                )

    def _block(
        self, name: str, patterns: Sequence[tuple[str, View]], found: Sequence[Any]
    ) -> Block:
        members = []
        numbers = []
        for (_, view), param in zip(patterns, found, strict=True):
            shape = view.viewed(param.path, param.shape)
            numbers.append(math.prod(shape[a] for a in view.axes))
            members.append(Member(param.leaf, param.path, param.shape, view))
        if len(set(numbers)) > 1:
            rows = [
                f"{m.path!r} of shape {m.shape} has {n}"
                for m, n in zip(members, numbers, strict=True)
            ]
            raise ValueError(
                f"the members of the block {name!r} of coupled have different numbers of groups: {', '.join(rows)}."
            )
        return several(name, members, self.regularizer)

    def tree_flatten(self) -> tuple[Any, Any]:
        return (self.regularizer,), self.kinds

    @classmethod
    def tree_unflatten(cls, kinds: Any, children: Any) -> "Coupled":
        return cls(kinds, *children)


_PLACEHOLDER = re.compile(r"\{(\w+)\}")


def _placeholders(pattern: str) -> list[str]:
    return list(dict.fromkeys(_PLACEHOLDER.findall(pattern)))


def _expression(pattern: str) -> re.Pattern[str]:
    """The regular expression of a path pattern; a placeholder that comes again must match the same text."""
    text, known = "", set()
    for k, piece in enumerate(_PLACEHOLDER.split(pattern)):
        if k % 2 == 0:
            text += re.escape(piece)
        else:
            text += f"(?P={piece})" if piece in known else f"(?P<{piece}>.+)"
            known.add(piece)
    return re.compile(text)


def _bindings(
    patterns: Sequence[tuple[str, View]], params: Sequence[Parameter]
) -> dict[tuple[str, ...], list[Parameter | None]]:
    """By the texts of the placeholders: the parameter that each pattern matches with them, None where there is none."""
    names = _placeholders(patterns[0][0])
    found: dict[tuple[str, ...], list[Parameter | None]] = {}
    for k, (pattern, _) in enumerate(patterns):
        expression = _expression(pattern)
        for param in params:
            match = expression.fullmatch(param.path)
            if match:
                binding = tuple(match[name] for name in names)
                found.setdefault(binding, [None] * len(patterns))[k] = param
    return found


def _bound(pattern: str, first: str, binding: Sequence[str]) -> str:
    """The pattern with the texts of its placeholders."""
    texts = dict(zip(_placeholders(first), binding, strict=True))
    return _PLACEHOLDER.sub(lambda match: texts[match[1]], pattern)


def coupled(kinds: Mapping[str, Iterable[tuple[str, Place]]], regularizer: GroupNorm) -> Coupled:
    """Groups that span arrays: group i of a block is slice i of each of its members.

    psi(X) = sum over blocks and i of phi(||(X_1[i], ..., X_m[i])||), phi as the regularizer has it for single arrays; the
    size |g| of a group counts all members.

    Args:
      kinds: by a name for a kind of block, its members: pairs of a path pattern and the axis along which groups lie
        (an int, or a tuple of ints: one group per index along all of them), or a `View`. A pattern is a path in which
        placeholders
        such as `{block}` match any text; all patterns of a kind have the same placeholders, and the parameters that
        match with the same texts make one block.
      regularizer: of group norms; its own `group_axis` is not used.

    Returns:
      An assignment; parameters in no block are left alone. It may stand in a rule of `by_path`.

    Raises:
      ValueError: for anything else; when it is applied, for a block that lacks a member (naming it), members with different
        numbers of groups (naming paths and shapes), entries that are in two blocks (naming both).

    Example:
      >>> import jax.numpy as jnp, ramda_jax as rj
      >>> params = {"mlp": {"up": {"kernel": jnp.ones((4, 6))}, "down": {"kernel": jnp.ones((6, 4))}}}
      >>> neurons = rj.coupled({"neuron": [("{mlp}/up/kernel", -1), ("{mlp}/down/kernel", -2)]}, rj.GroupLasso(0.1))
      >>> print(rj.describe(params, neurons))
      path             shape   regularizer                                               groups  parameters
      mlp/down/kernel  (6, 4)  neuron/mlp: GroupLasso(strength=0.1, size_weighted=True)       -          24
      mlp/up/kernel    (4, 6)  neuron/mlp: GroupLasso(strength=0.1, size_weighted=True)       6          24
      total            2                                                                      6          48
    """
    if not isinstance(regularizer, GroupNorm):
        raise ValueError(f"coupled needs a regularizer of group norms, got {regularizer!r}.")
    if not isinstance(kinds, Mapping) or not kinds:
        raise ValueError(f"coupled needs a dict from names to members, got {kinds!r}.")
    return Coupled(tuple((name, _members(name, m)) for name, m in kinds.items()), regularizer)


def _members(kind: str, members: Any) -> tuple[tuple[str, View], ...]:
    wanted = f"coupled[{kind!r}] needs pairs (path pattern, axis, tuple of axes or View)"
    pairs = []
    for pair in members:
        if not (isinstance(pair, (tuple, list)) and len(pair) == 2 and isinstance(pair[0], str)):
            raise ValueError(f"{wanted}, got {pair!r}.")
        pattern, place = pair
        axes = place if isinstance(place, tuple) else (place,)
        if not isinstance(place, View):
            if not axes or any(isinstance(a, bool) or not isinstance(a, int) for a in axes):
                raise ValueError(f"{wanted}, got {pair!r}.")
            place = View(place)
        pairs.append((pattern, place))
    if not pairs:
        raise ValueError(f"{wanted}, got none.")
    names = {frozenset(_placeholders(pattern)) for pattern, _ in pairs}
    if len(names) > 1:
        raise ValueError(
            f"coupled[{kind!r}]: all patterns must have the same placeholders, got {[p for p, _ in pairs]}."
        )
    return tuple(pairs)


# From what the user gave to blocks.


def _hides(params: ArrayTree) -> bool:
    """Whether `optax.masked` or `optax.partition` hides some of the parameters."""
    return any(map(trees.is_hidden, jax.tree.leaves(params, is_leaf=trees.is_hidden)))


def _from_tree(tree: Any, paths: list[str], params: ArrayTree) -> list[Regularizer | None]:
    """Match an explicit tree of regularizers to the parameters, path by path."""
    tree_paths, chosen, _ = trees.flatten(tree, is_leaf=is_regularizer_or_none)
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
    hidden = _hides(params)
    extra = sorted(set(given) - set(paths))
    if extra and not hidden:
        raise ValueError(
            f"the tree of regularizers does not have the structure of params: there is no parameter {extra[0]!r}. "
            f"Parameters: {paths}."
        )
    return [given[p] for p in paths]


class Resolved(NamedTuple):
    """What is regularized, and how.

    Attributes:
      paths, shapes: of the parameters.
      blocks: their regularizers have the strengths as the user gave them.
    """

    paths: list[str]
    shapes: list[tuple[int, ...]]
    blocks: list[Block]


def resolve(regularizer: Regularization, params: ArrayTree) -> Resolved:
    """The blocks of params, checked.

    Args:
      regularizer: None, a regularizer, an assignment, or a tree of regularizers and Nones like params.
      params: arrays or ShapeDtypeStructs.

    Raises:
      ValueError: for anything else, for trees of another structure, for regularizers that cannot apply to their array
        (naming path and shape), for entries in two blocks, and if nothing at all is regularized though something should be.
    """
    paths, leaves, _ = trees.flatten(params)
    parameters = _parameters(paths, leaves)
    shapes = [p.shape for p in parameters]
    if regularizer is None:
        return Resolved(paths, shapes, [])
    if isinstance(regularizer, Regularizer):
        regularizer = kernels(regularizer)
    if isinstance(regularizer, Assignment):
        blocks = regularizer.blocks(parameters)
        if leaves and not _hides(params):
            regularizer.check_used(blocks)
    else:
        chosen = _from_tree(regularizer, paths, params) if leaves else []
        pairs = zip(parameters, chosen, strict=True)
        blocks = [single(*p, psi) for p, psi in pairs if psi is not None]
    for block in blocks:
        if block.is_single:
            block.psi.check(block.name, block.shape)
    _check_disjoint(blocks)
    if leaves and not blocks:
        raise ValueError(
            f"the assignment {_short(regularizer)} regularizes none of the parameters {paths}; pass "
            "regularizer=None to leave all unregularized."
        )
    order = lambda block: min(m.leaf for m in block.members)
    return Resolved(paths, shapes, sorted(blocks, key=order))


def guesses(blocks: Sequence[Block]) -> tuple[str, ...]:
    """Of every array whose axes were guessed and may be others a sentence: what it was taken for, and the doubt."""
    found = []
    for block in blocks:
        if block.members[0].view is None:
            psi = block.psi.settle(block.shape)
            doubt = None if psi is block.psi else _doubt(psi, block.shape)
            if doubt:
                where = f"{block.name!r} of shape {block.shape}"
                found.append(f"{where} is taken for {psi.reading(block.shape)}; {doubt}")
    return tuple(found)


def warn_of_guesses(blocks: Sequence[Block]) -> None:
    """Say which axes were guessed that may be others, and how to say them."""
    found = guesses(blocks)
    if found:
        shown = ". ".join(found[:_SHOWN])
        more = f". And {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        warnings.warn(
            f"axes were guessed: {shown}{more}. rj.network(apply_fn, params, *inputs).inputs(regularizer) (or .matrices) "
            "reads them off the computation; group_axis=-2 (or row_axes) says that the guess is right, and by_path gives "
            "each parameter its own.",
            stacklevel=4,
        )


# Guesses that a warning names.
_SHOWN = 3
# Along the window of a convolution, at most.
_WINDOW = 11
# Fewer groups than this, of more entries than that each, are rather something else.
_FEW_GROUPS, _LARGE_GROUP = 5, 64


def _doubt(psi: Regularizer, shape: tuple[int, ...]) -> str | None:
    """Why axes that were guessed may be others; None: they are surely right."""
    if len(shape) >= 3 and not _is_convolution(shape):
        return "an array of these axes may be attention, stacked layers or experts"
    if isinstance(psi, GroupNorm):
        number = psi.num_groups(shape)
        if number == 1 and math.prod(shape) > 1:
            return "a group of everything is rarely meant: it may be a depthwise convolution"
        few = number < _FEW_GROUPS and psi.group_size(shape) >= _LARGE_GROUP
        if few and len(shape) < 3:  # a convolution of images has three inputs
            return "so few and large groups are rarely meant"
    return None


def _is_convolution(shape: tuple[int, ...]) -> bool:
    """Whether an array of three axes or more is a convolution's kernel (window, in, out), by its shape alone."""
    *window, _, _ = shape
    if any(n > _WINDOW for n in window):
        return len(window) == 2 and window[0] == window[1] <= 2 * _WINDOW
    return all(n % 2 for n in window) or (len(window) >= 2 and len(set(window)) == 1)


def _check_disjoint(blocks: Sequence[Block]) -> None:
    """Raise ValueError naming both unless no entry is in two blocks, or twice in one."""
    seen: dict[int, list[tuple[str, Window]]] = {}
    for block in blocks:
        for member in block.members:
            window = member.window
            for other, taken in seen.get(member.leaf, []):
                if meet(window, taken):
                    raise ValueError(
                        f"entries of {member.path!r} are in two groups: of {other!r} and of {block.name!r}. Groups must be "
                        "disjoint: couple the arrays that read a channel, or give each its own window."
                    )
            seen.setdefault(member.leaf, []).append((block.name, window))


def _short(x: Any) -> str:
    text = repr(x)
    return text if len(text) <= 200 else text[:197] + "..."
