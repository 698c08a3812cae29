"""What users call: `network`, and what they then ask of it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

from ramda_jax import trees
from ramda_jax._text import table
from ramda_jax.network import assignments, cost
from ramda_jax.network import flow as flows
from ramda_jax.network import roles as parts
from ramda_jax.network import spaces as channel_spaces
from ramda_jax.network.assignments import FromNetwork
from ramda_jax.network.compaction import Compact, compact
from ramda_jax.network.cost import Cost
from ramda_jax.network.price import price
from ramda_jax.network.spaces import Space
from ramda_jax.network.trace import Program, bare, called, is_array, nnx_module, nnx_with, trace
from ramda_jax.regularizers import GroupNorm, Regularizer
from ramda_jax.targets import wants_price
from ramda_jax.trees import ArrayTree


class Network:
    """A network as its computation shows it; made by `network`.

    Attributes:
      paths, shapes: of its parameters.

    Example:
      >>> import jax.numpy as jnp, ramda_jax as rj
      >>> apply = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"]
      >>> net = rj.network(apply, {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}, jnp.ones((1, 3)))
      >>> net.roles("b"), [space.number for space in net.spaces()]
      (('in', 'out'), [4])
    """

    def __init__(self, program: Program, call: tuple[Any, tuple[Any, ...], dict[str, Any]]) -> None:
        self._program = program
        self._call = call
        self._flow = flows.flow(program)
        self._roles = parts.roles(self._flow)
        self._spaces = functools.cache(self._find_spaces)
        self.paths = tuple(leaf.path for leaf in program.leaves)
        self.shapes = tuple(leaf.shape for leaf in program.leaves)

    def _find_spaces(self, heads: str, tied: bool) -> tuple[Space, ...]:
        found = channel_spaces.spaces(
            self._flow, self._roles, self._program.leaves, heads=heads, tied=tied
        )
        return tuple(found)

    def roles(self, path: str) -> tuple[str, ...]:
        """What each axis of a parameter is: "in", "out", "window", "stack", "none", or several with their sizes.

        Raises:
          ValueError: for a path that it does not have.
        """
        if path not in self.paths:
            raise ValueError(f"the network has no parameter {path!r}; it has {list(self.paths)}.")
        return tuple(self._roles[self.paths.index(path)].texts())

    def spaces(self, *, heads: str = "whole", tied: bool = False) -> tuple[Space, ...]:
        """The channel spaces, those that something else reads too; arguments as in `channels`."""
        _check_heads(heads)
        return self._spaces(heads, tied)

    def inputs(self, regularizer: Regularizer, *, embeddings: bool = False) -> FromNetwork:
        """One group per input of every weight, whatever its axes are; in a stack, per input of every layer.

        psi(W) = sum over the weights and their inputs i of phi(||W[i]||), W[i] all entries that multiply input i.
        Regularizers without groups apply to every weight as it is. Biases, scales of normalizations and embeddings are left
        alone.

        Args:
          regularizer: any but `NuclearNorm`; its own `group_axis` is not used.
          embeddings: whether embeddings too have a group per entry of their vocabulary (a tied one: per input of the head).

        Returns:
          An assignment, for any method; it may stand in a rule of `by_path`.

        Raises:
          ValueError: for another regularizer, and if nothing is multiplied.

        Example:
          >>> import jax.numpy as jnp, ramda_jax as rj
          >>> heads = lambda p, x: jnp.einsum("btd,dhw->bthw", x, p["query"])
          >>> params = {"query": jnp.ones((8, 2, 4))}
          >>> net = rj.network(heads, params, jnp.ones((1, 5, 8)))
          >>> print(rj.describe(params, net.inputs(rj.GroupLasso(0.1))))
          path   shape      regularizer                                                 groups  parameters
          query  (8, 2, 4)  GroupLasso(strength=0.1, group_axis=0, size_weighted=True)       8          64
          total  1                                                                           8          64
        """
        return assignments.inputs(
            self._roles, self._program.leaves, regularizer, embeddings=embeddings
        )

    def matrices(self, regularizer: Regularizer, *, embeddings: bool = False) -> FromNetwork:
        """Every weight as a matrix of what it contracts by what it produces; one matrix per layer of a stack.

        Args:
          regularizer: `NuclearNorm`, whose `row_axes` and `stack_axes` are not used, or one without groups.
          embeddings: whether embeddings too.

        Returns:
          An assignment, as `inputs` does.

        Raises:
          ValueError: for a regularizer of group norms, and if nothing is multiplied.
        """
        return assignments.matrices(
            self._roles, self._program.leaves, regularizer, embeddings=embeddings
        )

    def channels(
        self,
        regularizer: GroupNorm,
        *,
        writers: bool = False,
        heads: str = "whole",
        tied: bool = False,
    ) -> FromNetwork:
        """One group per hidden channel: the slices of all weights that read it.

        psi(W) = sum over the channel spaces and their channels c of phi(||(W_1[c], ..., W_m[c])||), W_k the readers.
        When a group is zero nobody reads the channel, and all that makes it can go. Channels that anything else reads (the
        result, a reduction, an unknown operation) are left alone; `describe` says which and why.

        Args:
          regularizer: of group norms; its own `group_axis` is not used.
          writers: whether a group has the slices that make the channel as well, where these are in no other group.
          heads: "whole": a head of attention is one channel; "within": every width of every head.
          tied: whether the head that is the transposed embedding counts as a reader; otherwise what it reads is left alone.

        Returns:
          An assignment, as `inputs` does.

        Raises:
          ValueError: for another regularizer, and if there is no channel, with the reasons.
        """
        _check_heads(heads)
        found = self._spaces(heads, tied)
        made = assignments.channels(found, regularizer, writers=writers)
        if not any(map(wants_price, jax.tree.leaves(regularizer))):
            return made
        usable = [space for space in found if not space.others]
        known = (self._program.leaves, self._roles, self._flow.uses, self._flow.other)
        return dataclasses.replace(made, price=price(*known, usable))

    def cost(self, params: ArrayTree | None = None) -> Cost:
        """FLOPs, parameters and bytes, with the zeros that params have now; per array and in all.

        A slice of a weight counts unless all of it is zero or no weight reads the channel it makes. This looks at every
        array by itself: a compacted network can be smaller yet.

        Args:
          params: a tree like that the network was seen with; None: nothing is zero.

        Raises:
          ValueError: for a tree with other parameters.
        """
        values = None if params is None else self._values(params)
        return cost.cost(
            self._program.leaves,
            self._roles,
            self._flow.uses,
            self._spaces("whole", False),
            self._flow.other,
            values,
        )

    def _values(self, params: ArrayTree) -> list[Any]:
        paths, leaves, _ = trees.flatten(params)
        given = {bare(p): x for p, x in zip(paths, leaves, strict=True) if is_array(x)}
        values = []
        for leaf in self._program.leaves:
            x = given.get(bare(leaf.path))
            if x is None or tuple(x.shape) != leaf.shape:
                found = "nothing" if x is None else f"shape {tuple(x.shape)}"
                raise ValueError(
                    f"the network has {leaf.path!r} of shape {leaf.shape}; params have {found}."
                )
            values.append(jax.device_get(x))
        return values

    def compact(self, params: ArrayTree, *, multiple_of: int = 1, low_rank: bool = True) -> Compact:
        """`compact` of the function that the network was seen with, on these parameters.

        Args:
          params: with values, a tree like that the network was seen with.
          multiple_of, low_rank: as in `compact`.
        """
        function, model, inputs = called("network", *self._call)
        whole = nnx_with(model, params) if nnx_module(model) else params
        kwargs = {**self._call[2], "multiple_of": multiple_of, "low_rank": low_rank}
        return compact(function, whole, *inputs, **kwargs)

    def describe(self) -> str:
        """A table of the parameters and of the channel spaces, and what was not understood and why."""
        found = self._spaces("whole", False)
        reads: dict[str, list[str]] = {}
        writes: dict[str, list[str]] = {}
        for number, space in enumerate(found, 1):
            for side, slices in ((reads, space.readers), (writes, space.writers)):
                for s in slices:
                    side.setdefault(s.path, []).append(str(number))
        rows: list[tuple[str, ...]] = [("path", "shape", "axes", "reads", "writes", "FLOPs")]
        costs = self.cost().arrays
        for leaf, role in zip(self._program.leaves, self._roles, strict=True):
            texts = ", ".join(role.texts()) if role.products or role.gathers else "none"
            cells = [", ".join(dict.fromkeys(s.get(leaf.path, ()))) for s in (reads, writes)]
            flops = costs[leaf.path].flops
            row = (leaf.path, str(leaf.shape), texts, *cells, f"{flops:,}" if flops else "-")
            rows.append(tuple(cell or "-" for cell in row))
        lines = [table(rows, left=5)]
        if found:
            rows_: list[tuple[str, ...]] = [
                ("space", "made by", "channels", "readers", "parameters", "also")
            ]
            for number, space in enumerate(found, 1):
                size = sum(s.size for s in space.readers)
                also = space.others[0] if space.others else "-"
                paths = len({s.path for s in space.readers})
                rows_.append(
                    (str(number), space.name, f"{space.number:,}", str(paths), f"{size:,}", also)
                )
            lines += ["", table(rows_, left=2)]
        notes = self._notes()
        if notes:
            lines += ["", *notes]
        return "\n".join(lines)

    def _notes(self) -> list[str]:
        """What was not understood, or is left alone for a reason that the roles do not show."""
        notes = []
        for leaf, role in zip(self._program.leaves, self._roles, strict=True):
            if role.trouble:
                notes.append(f"{leaf.path}: left alone, {role.trouble}.")
            elif role.tied:
                notes.append(
                    f"{leaf.path}: an embedding that is multiplied as well; left alone unless asked for."
                )
            elif not role.products and not role.gathers:
                texts = self._flow.notes.get(role.leaf, ["not used"])
                odd = [t for t in texts if t != flows.ELEMENTWISE]
                if odd:
                    notes.append(f"{leaf.path}: left alone, {'; '.join(odd)}.")
        for name, times in self._flow.unknown.items():
            often = f" ({times} times)" if times > 1 else ""
            notes.append(
                f"{name}{often}: nothing is known of it, and what flows through it is not followed."
            )
        return notes


def _check_heads(heads: str) -> None:
    if heads not in ("whole", "within"):
        raise ValueError(f'heads must be "whole" or "within", got {heads!r}.')


def network(apply_fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Network:
    """See a network: the role of every axis of every parameter, its channels, what it costs.

    The function is traced on shapes only; nothing is computed, and no parameter needs a value.

    Args:
      apply_fn: a function of (params, *args, **kwargs), such as a Linen module's `apply`; or an `nnx.Module`, which is
        called with all other arguments.
      *args: params, unless `apply_fn` is a module, and the inputs. Params are a pytree, for Linen the variables, or an
        `nnx.Module`, whose parameters are those of `nnx.state(module, nnx.Param)`. Arrays and ShapeDtypeStructs are inputs;
        whatever else there is (flags, numbers, functions) is constant.
      **kwargs: as `apply_fn` takes them; arrays are inputs.

    Returns:
      A `Network`. Paths are those that the methods of this library use.

    Raises:
      TypeError: if `apply_fn` is neither a function nor a module, or parameters are missing.
      ValueError: if there is no floating-point parameter.

    Example:
      >>> import jax, jax.numpy as jnp, ramda_jax as rj
      >>> apply = lambda p, x: jax.nn.relu(x @ p["up"]) @ p["down"]
      >>> params = {"up": jnp.ones((4, 6)), "down": jnp.ones((6, 3))}
      >>> net = rj.network(apply, params, jnp.ones((1, 4)))
      >>> print(net.describe())
      path  shape   axes     reads  writes  FLOPs
      down  (6, 3)  in, out  1      -          36
      up    (4, 6)  in, out  -      1          48
      <BLANKLINE>
      space  made by  channels  readers  parameters  also
      1      up              6        1          18     -
    """
    return Network(trace(apply_fn, args, kwargs), (apply_fn, args, kwargs))
