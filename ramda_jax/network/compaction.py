"""From zeros to a smaller model: `compact`."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from ramda_jax import _validation, trees
from ramda_jax._text import table
from ramda_jax.network import emit, flow, roles
from ramda_jax.network.flat import Flat, flatten, operations
from ramda_jax.network.needs import Keep, Needs
from ramda_jax.network.trace import (
    Leaf,
    Program,
    Rebuild,
    apart,
    arrays_apart,
    called,
    is_array,
    nnx_module,
    of_module,
)


class _Model(NamedTuple):
    """What is compacted.

    Attributes:
      call: of parameters and inputs.
      leaves: the floating-point arrays of the parameters; `values`: theirs.
      rebuild: from such values to the parameters as the user has them.
    """

    call: Callable[..., Any]
    leaves: list[Leaf]
    values: list[Any]
    rebuild: Rebuild

    def like(self, shapes: Iterable[tuple[int, ...]]) -> list[jax.ShapeDtypeStruct]:
        """What stands for parameters of these shapes."""
        pairs = zip(shapes, self.leaves, strict=True)
        return [jax.ShapeDtypeStruct(shape, leaf.dtype) for shape, leaf in pairs]


class _Traced(NamedTuple):
    """A model's program for some inputs.

    Attributes:
      closed: of (values of the parameters, arrays among the inputs); `flat`: without its calls.
      tree: of the results.
      inputs: the arrays among the inputs.
    """

    closed: Any
    flat: Flat
    tree: Any
    inputs: list[Any]


def _traced(model: _Model, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Traced:
    inputs, with_inputs = arrays_apart((args, kwargs))

    def function(values: Sequence[Any], inputs: Sequence[Any]) -> Any:
        args, kwargs = with_inputs(inputs)
        return model.call(model.rebuild(values), *args, **kwargs)

    like = model.like(leaf.shape for leaf in model.leaves)
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(like, inputs)
    return _Traced(closed, flatten(closed), jax.tree.structure(shapes), inputs)


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

    def __init__(
        self, model: _Model, args: tuple[Any, ...], kwargs: dict[str, Any], multiple_of: int
    ) -> None:
        self._model = model
        self._example = _traced(model, args, kwargs)
        flat, inputs = self._example.flat, self._example.inputs
        masks = [
            np.asarray(value) != 0 if weight else np.ones(np.shape(value), bool)
            for value, weight in zip(model.values, _weights(model, self._example), strict=True)
        ]
        masks += [np.ones(np.shape(x), bool) for x in inputs]
        cuttable = [tuple(n > 1 for n in leaf.shape) for leaf in model.leaves]
        cuttable += [(False,) * np.ndim(x) for x in inputs]
        needs = Needs(flat, masks, cuttable, multiple_of)
        self._kept = {n: needs.keep(n) for n in range(len(flat.shapes))}
        self._keeps = [self._kept[n] for n in flat.inputs[: len(model.leaves)]]
        small = [_cut(x, keep) for x, keep in zip(model.values, self._keeps, strict=True)]
        self._shapes = [tuple(np.shape(x)) for x in small]
        self.params = model.rebuild(small)

    def apply(self, params: chex.ArrayTree, *args: Any, **kwargs: Any) -> Any:
        """The function with the small parameters: as it was called to be compacted, with any number of examples.

        Pure: jit, grad and vmap it.

        Raises:
          ValueError: for parameters of another tree or other shapes, and for inputs with which the function is another one.
        """
        values = self._checked(params)
        traced = _traced(self._model, args, kwargs)
        self._check_same(traced.flat)
        return self._run(traced, values, traced.inputs)

    def _run(self, traced: _Traced, values: Sequence[Any], inputs: Sequence[Any]) -> Any:
        """A program on small parameters and arrays for its inputs."""
        pairs = zip(values, self._keeps, self._model.leaves, strict=True)
        pieces = [emit.given(x, keep, leaf.shape) for x, keep, leaf in pairs]
        found = emit.run(traced.flat, self._kept, [*pieces, *map(emit.whole, inputs)])
        return jax.tree.unflatten(traced.tree, found)

    def _run_example(self, values: Sequence[Any], inputs: Sequence[Any]) -> Any:
        """With the arguments of the example, but other arrays in them."""
        return self._run(self._example, values, inputs)

    def report(self) -> Report:
        """Parameters, bytes and FLOPs before and after, per array; and why what could not go stayed."""
        leaves = self._model.leaves
        before, after = (
            [math.prod(leaf.shape) for leaf in leaves],
            list(map(math.prod, self._shapes)),
        )
        width = [np.dtype(leaf.dtype).itemsize for leaf in leaves]
        total = lambda sizes: sum(n * w for n, w in zip(sizes, width, strict=True))
        pairs = zip(leaves, self._shapes, strict=True)
        example = (self._model.like(self._shapes), self._example.inputs)
        small = jax.make_jaxpr(self._run_example)(*example)
        return Report(
            sum(after),
            sum(before),
            total(after),
            total(before),
            _operations(flatten(small)),
            _operations(self._example.flat),
            {leaf.path: ArrayReport(leaf.shape, shape) for leaf, shape in pairs},
            tuple(self._reasons()),
        )

    def _reasons(self) -> list[str]:
        """What was kept whole for want of a rule, or why nothing was cut."""
        loops = sorted({e.name for e in self._example.flat.equations} & {"scan", "while", "cond"})
        reasons = [
            f"What {name} reads is filled up with zeros again: loops are not cut yet."
            for name in loops
        ]
        if all(k is None for keep in self._keeps for k in keep):
            reasons.append(
                "Nothing could be cut: every slice of every parameter is read by something that is not zero."
            )
        return reasons

    def widths(self) -> dict[str, tuple[int, ...]]:
        """The new shape of every parameter, by path: to build a model of one's own class."""
        paths = [leaf.path for leaf in self._model.leaves]
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
        inputs = [jax.ShapeDtypeStruct(np.shape(x), x.dtype) for x in self._example.inputs]
        exported = jax_export.export(jax.jit(self._run_example), platforms=platforms)
        program = exported(self._model.like(self._shapes), inputs)
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("program", program.serialize())
            file.writestr("paths", json.dumps(list(self.widths())))
            for k, x in enumerate(self._checked(self.params)):
                buffer = io.BytesIO()
                np.save(buffer, np.asarray(x), allow_pickle=False)
                file.writestr(f"{k}.npy", buffer.getvalue())

    def _checked(self, params: chex.ArrayTree) -> list[Any]:
        trees.check_same(params, "params", self.params, "the compact parameters")
        return _floating(params)[0]

    def _check_same(self, flat: Flat) -> None:
        expected = self._example.flat
        same = [e.name for e in flat.equations] == [e.name for e in expected.equations]
        same = same and all(
            len(a) == len(b) and all(k is None or a[d] == b[d] for d, k in enumerate(self._kept[n]))
            for n, (a, b) in enumerate(zip(flat.shapes, expected.shapes, strict=True))
        )
        if not same:
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
    call, model, inputs = called("compact", apply_fn, args, kwargs)
    if nnx_module(model):
        merged, model, rest = of_module(call, model)
        call = lambda params, *a, **k: merged(params, rest, *a, **k)
    values, rebuild, leaves = _floating(model)
    if not leaves:
        raise ValueError("compact: the parameters hold no floating-point array.")
    for leaf, value in zip(leaves, values, strict=True):
        if not np.isfinite(np.asarray(value, np.float64)).all():
            raise ValueError(
                f"the parameter {leaf.path!r} is not finite: zero times infinity is not zero, so nothing can be cut."
            )
    _validation.check_integer("multiple_of", multiple_of, 1)
    return Compact(_Model(call, leaves, values, rebuild), inputs, kwargs, multiple_of)


def _floating(params: chex.ArrayTree) -> tuple[list[Any], Rebuild, list[Leaf]]:
    """(the floating-point arrays of a tree, from such arrays to the tree, what they are)."""
    paths, leaves, _ = trees.flatten(params)
    mine = [is_array(x) and jax.dtypes.issubdtype(x.dtype, np.floating) for x in leaves]
    pairs = zip(paths, leaves, mine, strict=True)
    named = [Leaf(path, tuple(x.shape), x.dtype) for path, x, ok in pairs if ok]
    return *apart(params, mine), named


def _weights(model: _Model, traced: _Traced) -> list[bool]:
    """Which parameters are multiplied: zeros of others (biases that nothing has moved yet) mean nothing."""
    program = Program(traced.closed, tuple(model.leaves), len(traced.inputs))
    return [bool(role.products) for role in roles.roles(flow.flow(program))]


def _cut(x: Any, keep: Keep) -> chex.Array:
    """What is kept; one entry of what nobody needs, since many tools do not take empty arrays."""
    array = jnp.asarray(x)
    if emit.is_empty(keep):
        keep = tuple(None if k is None else np.zeros(1, int) for k in keep)
    for axis, k in enumerate(keep):
        if k is not None:
            array = jnp.take(array, k, axis=axis)
    return array


def _operations(program: Flat) -> int:
    """Floating-point operations of all products; those of a scan as often as it runs."""
    total = 0
    for _, equation, *_ in program.equations:
        p = equation.params
        inside = equation.primitive.name == "scan"
        total += p["length"] * _operations(flatten(p["jaxpr"])) if inside else operations(equation)
    return total


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
