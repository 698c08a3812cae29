"""From zeros to a smaller model: `compact`."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import math
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from ramda_jax import trees
from ramda_jax.network import emit, flow, roles
from ramda_jax.network.cost import table
from ramda_jax.network.flat import Constant, Equation, Flat, flatten
from ramda_jax.network.needs import Keep, Needs
from ramda_jax.network.trace import Leaf, Program, is_array, nnx_module


class _Function(NamedTuple):
    """What is compacted, taken apart.

    Attributes:
      call: of (leaves of the parameters, arrays among the inputs) -> the result.
      leaves: of the parameters, floating-point arrays only.
      rebuild: such leaves -> the parameters as the user has them.
      inputs: the arrays among the inputs.
    """

    call: Callable[[Sequence[Any], Sequence[Any]], Any]
    leaves: list[Leaf]
    values: list[Any]
    rebuild: Callable[[Sequence[Any]], chex.ArrayTree]
    inputs: list[Any]


@dataclasses.dataclass(frozen=True)
class ArrayReport:
    """Of one parameter.

    Attributes:
      before, after: its shape; of one that nobody needs, a single entry is left, which is not looked at.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Report:
    """What compaction has done; `str` makes a table of it.

    Attributes:
      parameters, parameters_before: entries.
      bytes, bytes_before: of them.
      flops, flops_before: of all products of one call with the example's inputs; two for a multiplication and an addition.
      arrays: of each parameter, by path.
      reasons: why nothing could be cut, or what was kept whole for want of a rule; sentences.
    """

    parameters: int
    parameters_before: int
    bytes: int
    bytes_before: int
    flops: int
    flops_before: int
    arrays: Mapping[str, ArrayReport]
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("path", "before", "after")]
        rows += [(path, str(a.before), str(a.after)) for path, a in self.arrays.items()]
        rows.append(("parameters", f"{self.parameters_before:,}", f"{self.parameters:,}"))
        rows.append(("FLOPs", f"{self.flops_before:,}", f"{self.flops:,}"))
        return "\n".join([table(rows, left=1), *self.reasons])


class Compact:
    """A smaller model with the same results; made by `compact`.

    Attributes:
      params: a tree like the one that was given, of smaller arrays.
    """

    def __init__(self, function: _Function, multiple_of: int) -> None:
        self._function = function
        closed = _traced(function, function.values, function.inputs)
        self._flat = flatten(closed)
        weights = _weights(closed, function)
        masks = [
            np.asarray(value) != 0 if weight else np.ones(np.shape(value), bool)
            for value, weight in zip(function.values, weights, strict=True)
        ]
        masks += [np.ones(np.shape(x), bool) for x in function.inputs]
        cuttable = [tuple(n > 1 for n in leaf.shape) for leaf in function.leaves]
        cuttable += [(False,) * np.ndim(x) for x in function.inputs]
        needs = Needs(self._flat, masks, cuttable, multiple_of)
        self._kept = {n: needs.keep(n) for n in range(len(self._flat.shapes))}
        keeps = [self._kept[n] for n in self._flat.inputs[: len(function.leaves)]]
        small = [_cut(x, keep) for x, keep in zip(function.values, keeps, strict=True)]
        self._keeps = keeps
        self._shapes = [tuple(np.shape(x)) for x in small]
        self.params = function.rebuild(small)
        self._reasons = tuple(_reasons(self._flat, needs))

    def apply(self, params: chex.ArrayTree, *args: Any, **kwargs: Any) -> Any:
        """The function with the small parameters: as it was called to be compacted, with any number of examples.

        Pure: jit, grad and vmap it.

        Raises:
          ValueError: for parameters of another tree or other shapes, and for inputs with which the function is another one.
        """
        leaves = self._checked(params)
        own, inputs = _taken_apart(self._function, args, kwargs)
        like = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in self._function.leaves]
        closed, tree = _traced_with_tree(own, like, inputs)
        flat = flatten(closed)
        self._check_same(flat)
        pieces = [
            emit.given(x, keep, leaf.shape)
            for x, keep, leaf in zip(leaves, self._keeps, self._function.leaves, strict=True)
        ]
        pieces += [emit.whole(x) for x in inputs]
        return jax.tree.unflatten(tree, emit.run(flat, self._kept, pieces))

    def report(self) -> Report:
        """Parameters, bytes and FLOPs before and after, per array; and why what could not go stayed."""
        function = self._function
        before = [math.prod(leaf.shape) for leaf in function.leaves]
        after = [math.prod(shape) for shape in self._shapes]
        width = [np.dtype(leaf.dtype).itemsize for leaf in function.leaves]
        total = lambda sizes: sum(n * w for n, w in zip(sizes, width, strict=True))
        arrays = {
            leaf.path: ArrayReport(leaf.shape, shape)
            for leaf, shape in zip(function.leaves, self._shapes, strict=True)
        }
        like = lambda shapes: [
            jax.ShapeDtypeStruct(shape, leaf.dtype)
            for shape, leaf in zip(shapes, function.leaves, strict=True)
        ]
        whole = _traced(function, like([leaf.shape for leaf in function.leaves]), function.inputs)
        small = jax.make_jaxpr(lambda leaves, inputs: self._run(leaves, inputs))(
            like(self._shapes), function.inputs
        )
        return Report(
            sum(after),
            sum(before),
            total(after),
            total(before),
            operations(small),
            operations(whole),
            arrays,
            self._reasons,
        )

    def widths(self) -> dict[str, tuple[int, ...]]:
        """The new shape of every parameter, by path: to build a model of one's own class."""
        paths = [leaf.path for leaf in self._function.leaves]
        return dict(zip(paths, self._shapes, strict=True))

    def export(
        self, path: str | Path, *, platforms: Sequence[str] = ("cpu", "cuda", "tpu")
    ) -> None:
        """Write the compact model, program and parameters, as one file; `load_compact` reads it.

        The program is StableHLO, for inputs of the example's shapes. Needs the package flatbuffers.

        Args:
          path: of the file.
          platforms: that it is to run on.

        Raises:
          ImportError: without flatbuffers.
        """
        like = [
            jax.ShapeDtypeStruct(s, leaf.dtype)
            for s, leaf in zip(self._shapes, self._function.leaves, strict=True)
        ]
        inputs = [jax.ShapeDtypeStruct(np.shape(x), x.dtype) for x in self._function.inputs]
        program = jax_export.export(
            jax.jit(lambda leaves, inputs: self._run(leaves, inputs)), platforms=platforms
        )(like, inputs)
        leaves = self._checked(self.params)
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("program", program.serialize())
            file.writestr("paths", json.dumps([leaf.path for leaf in self._function.leaves]))
            for k, x in enumerate(leaves):
                buffer = io.BytesIO()
                np.save(buffer, np.asarray(x), allow_pickle=False)
                file.writestr(f"{k}.npy", buffer.getvalue())

    def _run(self, leaves: Sequence[Any], inputs: Sequence[Any]) -> Any:
        """With the arguments of the example, but other arrays in them."""
        flat, tree = self._example
        pieces = [
            emit.given(x, keep, leaf.shape)
            for x, keep, leaf in zip(leaves, self._keeps, self._function.leaves, strict=True)
        ]
        found = emit.run(flat, self._kept, [*pieces, *map(emit.whole, inputs)])
        return jax.tree.unflatten(tree, found)

    @functools.cached_property
    def _example(self) -> tuple[Flat, Any]:
        like = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in self._function.leaves]
        closed, tree = _traced_with_tree(self._function, like, self._function.inputs)
        return flatten(closed), tree

    def _checked(self, params: chex.ArrayTree) -> list[Any]:
        trees.check_same(params, "params", self.params, "the compact parameters")
        return _floating(params)[1]

    def _check_same(self, flat: Flat) -> None:
        names = [e.name for e in flat.equations]
        expected = [e.name for e in self._flat.equations]
        same = names == expected and all(
            len(a) == len(b) for a, b in zip(flat.shapes, self._flat.shapes, strict=True)
        )
        cut = same and all(
            k is None or a[d] == b[d]
            for n, (a, b) in enumerate(zip(flat.shapes, self._flat.shapes, strict=True))
            for d, k in enumerate(self._kept[n])
        )
        if not cut:
            raise ValueError(
                "with these inputs the function is another one than that which was compacted: they may differ only in the "
                "number of examples; compact it with such inputs (flags, other arguments and sizes must be the same)."
            )


def compact(apply_fn: Any, *args: Any, multiple_of: int = 1, **kwargs: Any) -> Compact:
    """The same function with less: what is zero, and what is only read by zeros, is cut out of all arrays.

    Exact: results are those of the whole model up to rounding, for any inputs of the example's kind and any number of
    examples, and so are gradients of what is left (zero groups within an array that stays may have none). Every zero slice
    of a weight goes, wherever it is: the weight gathers what it reads. What cannot be followed (an unknown operation, the
    body of a loop) stays whole.

    Args:
      apply_fn, *args, **kwargs: as in `network`, with the values of the parameters; inputs may be ShapeDtypeStructs. All
        floating-point arrays that params hold (Linen's batch statistics, too) are cut. Of an `nnx.Module` the `nnx.Param`s
        are; its other variables become constants of `apply`.
      multiple_of: keep as many more channels as make their number a multiple of this (8, 128), where hardware computes in
        tiles and odd sizes cost more than they save.

    Returns:
      A `Compact`.

    Raises:
      ValueError: for parameters that are not finite (naming the path).
      TypeError: as `network`.

    Example:
      >>> import jax, jax.numpy as jnp, ramda_jax as rj
      >>> apply = lambda p, x: jax.nn.relu(x @ p["up"]) @ p["down"]
      >>> params = {"up": jnp.ones((4, 6)), "down": jnp.ones((6, 3)).at[2:].set(0.0)}
      >>> small = rj.compact(apply, params, jnp.ones((1, 4)))
      >>> print(small.report())
      path        before   after
      down        (6, 3)  (2, 3)
      up          (4, 6)  (4, 2)
      parameters      42      14
      FLOPs           84      28
      >>> bool(jnp.allclose(small.apply(small.params, jnp.ones((5, 4))), apply(params, jnp.ones((5, 4)))))
      True
    """
    call, params, others = _as_function(apply_fn, args, kwargs)
    function = _taken_apart_with(call, params, others, kwargs)
    for leaf, value in zip(function.leaves, function.values, strict=True):
        if not np.isfinite(np.asarray(value, np.float64)).all():
            raise ValueError(
                f"the parameter {leaf.path!r} is not finite: zero times infinity is not zero, so nothing can be cut."
            )
    if isinstance(multiple_of, bool) or not isinstance(multiple_of, int) or multiple_of < 1:
        raise ValueError(f"multiple_of must be an integer in [1, inf), got {multiple_of!r}.")
    return Compact(function, multiple_of)


def _as_function(
    apply_fn: Any, args: tuple[Any, ...], kwargs: Any
) -> tuple[Any, Any, tuple[Any, ...]]:
    """(a function of parameters and inputs, the parameters, the inputs)."""
    if nnx_module(apply_fn):
        return _of_module(lambda module, *a, **k: module(*a, **k), apply_fn, args)
    if not callable(apply_fn) or not args:
        raise TypeError("compact needs a function and its parameters, or an nnx.Module.")
    if nnx_module(args[0]):
        return _of_module(apply_fn, args[0], args[1:])
    if kwargs.get("mutable", False):
        return (lambda *a, **k: apply_fn(*a, **k)[0]), args[0], args[1:]
    return apply_fn, args[0], args[1:]


def _of_module(
    apply_fn: Any, module: Any, others: tuple[Any, ...]
) -> tuple[Any, Any, tuple[Any, ...]]:
    nnx: Any = sys.modules["flax.nnx"]
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    return (
        lambda params, *a, **k: apply_fn(nnx.merge(graph, params, rest), *a, **k),
        params,
        others,
    )


def _floating(params: chex.ArrayTree) -> tuple[list[Leaf], list[Any], Callable[..., Any]]:
    """(the floating-point leaves, their values, from such values to the tree)."""
    paths, leaves, treedef = trees.flatten(params)
    mine = [is_array(x) and jax.dtypes.issubdtype(x.dtype, np.floating) for x in leaves]
    named = [
        Leaf(path, tuple(x.shape), x.dtype)
        for path, x, ok in zip(paths, leaves, mine, strict=True)
        if ok
    ]

    def rebuild(values: Sequence[Any]) -> Any:
        rest = iter(values)
        return treedef.unflatten(
            [next(rest) if ok else x for x, ok in zip(leaves, mine, strict=True)]
        )

    return named, [x for x, ok in zip(leaves, mine, strict=True) if ok], rebuild


def _taken_apart_with(call: Any, params: Any, args: tuple[Any, ...], kwargs: Any) -> _Function:
    leaves, values, rebuild = _floating(params)
    if not leaves:
        raise ValueError("compact: the parameters hold no floating-point array.")
    flat_inputs, tree = jax.tree.flatten((args, kwargs))
    arrays = [is_array(x) for x in flat_inputs]

    def function(own: Sequence[Any], inputs: Sequence[Any]) -> Any:
        rest = iter(inputs)
        filled = [next(rest) if ok else x for x, ok in zip(flat_inputs, arrays, strict=True)]
        a, k = jax.tree.unflatten(tree, filled)
        return call(rebuild(own), *a, **k)

    inputs = [x for x, ok in zip(flat_inputs, arrays, strict=True) if ok]
    made = _Function(function, leaves, values, rebuild, inputs)
    object.__setattr__(function, "call", call)
    return made


def _taken_apart(
    function: _Function, args: tuple[Any, ...], kwargs: Any
) -> tuple[_Function, list[Any]]:
    """The same function of other inputs."""
    call = function.call.call  # type: ignore[attr-defined]  # set by `_taken_apart_with`
    whole = function.rebuild(function.values)
    other = _taken_apart_with(call, whole, args, kwargs)
    return other, other.inputs


def _traced(function: _Function, leaves: Sequence[Any], inputs: Sequence[Any]) -> Any:
    return _traced_with_tree(function, leaves, inputs)[0]


def _traced_with_tree(
    function: _Function, leaves: Sequence[Any], inputs: Sequence[Any]
) -> tuple[Any, Any]:
    """(the jaxpr, the tree of its results)."""
    trees_: list[Any] = []

    def flat(own: Any, inputs: Any) -> Any:
        results, tree = jax.tree.flatten(function.call(own, inputs))
        trees_.append(tree)
        return results

    closed = jax.make_jaxpr(flat)(list(leaves), list(inputs))
    return closed, trees_[-1]


def _weights(closed: Any, function: _Function) -> list[bool]:
    """Which parameters are multiplied: zeros of others (biases that nothing has moved yet) mean nothing."""
    program = Program(closed, tuple(function.leaves), len(function.inputs), None)
    found = roles.roles(flow.flow(program))
    return [bool(role.products) for role in found]


def _cut(x: Any, keep: Keep) -> chex.Array:
    """What is kept; one entry of what nobody needs, since many tools do not take empty arrays."""
    array = jnp.asarray(x)
    if emit.is_empty(keep):
        keep = tuple(None if k is None else np.zeros(1, int) for k in keep)
    for axis, k in enumerate(keep):
        if k is not None:
            array = jnp.take(array, k, axis=axis)
    return array


def operations(closed: Any) -> int:
    """Floating-point operations of all products of a jaxpr; those of a loop as often as it runs, if that is known."""
    flat = flatten(closed)
    return sum(_operations(equation) for equation in flat.equations)


def _operations(equation: Equation) -> int:
    p, made = equation.equation.params, equation.equation.outvars
    if equation.name == "dot_general":
        ((contracted, _), _) = p["dimension_numbers"]
        shape = equation.equation.invars[0].aval.shape
        return 2 * math.prod(made[0].aval.shape) * math.prod(shape[d] for d in contracted)
    if equation.name == "conv_general_dilated":
        kernel = equation.equation.invars[1].aval.shape
        outputs = kernel[p["dimension_numbers"].rhs_spec[0]]
        return 2 * math.prod(made[0].aval.shape) * math.prod(kernel) // max(outputs, 1)
    if equation.name == "scan":
        return p["length"] * operations(p["jaxpr"])
    return 0


def _reasons(flat: Flat, needs: Needs) -> list[str]:
    """What was kept whole for want of a rule."""
    reasons = []
    loops = sorted({e.name for e in flat.equations if e.name in ("scan", "while", "cond")})
    for name in loops:
        reasons.append(f"What {name} reads is filled up with zeros again: loops are not cut yet.")
    numbers = flat.inputs
    if all(k is None for n in numbers for k in needs.keep(n)):
        reasons.append(
            "Nothing could be cut: every slice of every parameter is read by something that is not zero."
        )
    return reasons


class Loaded(NamedTuple):
    """A compact model from a file: `model(*inputs)`.

    Attributes:
      params: by path.
      call: of the arrays among the inputs, in order.
    """

    params: dict[str, chex.Array]
    call: Callable[..., Any]

    def __call__(self, *inputs: Any) -> Any:
        return self.call(*inputs)


def load_compact(path: str | Path) -> Loaded:
    """Read what `Compact.export` has written; nothing of the model's code is needed.

    Raises:
      ValueError: if the file is none of these.
    """
    try:
        with zipfile.ZipFile(path) as file:
            program = jax_export.deserialize(bytearray(file.read("program")))
            paths = json.loads(file.read("paths"))
            arrays = [
                np.load(io.BytesIO(file.read(f"{k}.npy")), allow_pickle=False)
                for k in range(len(paths))
            ]
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f"{path} is no exported compact model: {error}.") from None
    leaves = [jnp.asarray(x) for x in arrays]
    call = lambda *inputs: program.call(leaves, list(inputs))
    return Loaded(dict(zip(paths, leaves, strict=True)), call)


__all__ = ["Compact", "Constant", "Loaded", "Report", "compact", "load_compact"]
