"""From zeros to a smaller model: `compact`."""

from __future__ import annotations

import dataclasses
import json
import math
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from ramda_jax import _validation, trees
from ramda_jax._text import table
from ramda_jax.network import emit, pieces
from ramda_jax.network.factors import Factors, factored, matrix
from ramda_jax.network.flat import Flat, flatten, operations, programs
from ramda_jax.network.multiplied import multiplied
from ramda_jax.network.needs import Keep, Plan, plan
from ramda_jax.network.readers import readers
from ramda_jax.network.trace import (
    Leaf,
    Rebuild,
    apart,
    arrays_apart,
    bare,
    called,
    is_array,
    nnx_module,
    of_module,
)
from ramda_jax.trees import ArrayTree


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


# Of an array's readers, how many a table names.
_SHOWN = 3


@dataclasses.dataclass(frozen=True)
class ArrayReport:
    """Of one parameter.

    Attributes:
      before, after: its shape; of one that nobody needs, a single entry is left, which is not looked at.
      readers: what needs what it makes, and keeps it where it is not zero itself: paths of other parameters, `the result`,
        or an operation.
      rank: of its factors, if it has been replaced by two.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    readers: tuple[str, ...]
    rank: int | None = None

    def __str__(self) -> str:
        return f"{self.after}" if self.rank is None else f"{self.after} of rank {self.rank}"


@dataclasses.dataclass(frozen=True)
class Report:
    """What compaction has done; `str` makes a table of it.

    Attributes:
      parameters, parameters_before: entries.
      bytes, bytes_before: of them.
      flops, flops_before: of all products of one call with the example's inputs; two for a multiplication and an addition.
        Of branches the costliest counts, of a while one turn.
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
        rows: list[tuple[str, ...]] = [("path", "before", "after", "needed by")]
        for path, a in self.arrays.items():
            more = len(a.readers) - _SHOWN
            names = [*a.readers[:_SHOWN], *([f"{more} more"] if more > 0 else [])]
            rows.append((path, str(a.before), str(a), ", ".join(names) or "nobody"))
        rows.append(("parameters", f"{self.parameters_before:,}", f"{self.parameters:,}", ""))
        rows.append(("FLOPs", f"{self.flops_before:,}", f"{self.flops:,}", ""))
        return "\n".join([table(rows, left=1), *self.reasons])


class Compact:
    """A smaller model with the same results; made by `compact`.

    Attributes:
      params: a tree like the one that was given, of smaller arrays.

    Example:
      >>> import jax, jax.numpy as jnp, ramda_jax as rj
      >>> apply = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"]
      >>> params = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2)).at[1].set(0.0)}  # nobody reads the second of four
      >>> small = rj.compact(apply, params, jnp.ones((1, 3)), low_rank=False)
      >>> jax.tree.map(jnp.shape, small.params)
      {'a': (3, 3), 'b': (3, 2)}
      >>> small.apply(small.params, jnp.ones((5, 3))).shape
      (5, 2)
    """

    def __init__(
        self,
        model: _Model,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        multiple_of: int,
        low_rank: bool,
    ) -> None:
        self._model = model
        self._example = _traced(model, args, kwargs)
        flat, inputs = self._example.flat, self._example.inputs
        weights = multiplied(flat, len(model.values))
        masks = [
            np.asarray(value) != 0 if k in weights else np.ones(np.shape(value), bool)
            for k, value in enumerate(model.values)
        ]
        masks += [np.ones(np.shape(x), bool) for x in inputs]
        cuttable = [tuple(n > 1 for n in leaf.shape) for leaf in model.leaves]
        cuttable += [(False,) * np.ndim(x) for x in inputs]
        self._plan = plan(flat, masks, cuttable, multiple_of)
        own_numbers = flat.inputs[: len(model.leaves)]
        self._keeps = [self._plan.keeps[n] for n in own_numbers]
        cut = list(map(pieces.cut, model.values, self._keeps))
        self._shapes = [tuple(np.shape(x)) for x in cut]
        hows = [matrix(flat, n) if k in weights else None for k, n in enumerate(own_numbers)]
        small: Sequence[jax.Array | Factors] = cut
        if low_rank:
            small = [factored(x, how, multiple_of) for x, how in zip(cut, hows, strict=True)]
        self._matrices = [
            how if isinstance(x, Factors) else None for x, how in zip(small, hows, strict=True)
        ]
        self.params = model.rebuild(small)

    def apply(self, params: ArrayTree, *args: Any, **kwargs: Any) -> Any:
        """The function with the small parameters: as it was called to be compacted, with any number of examples.

        Pure: jit, grad and vmap it.

        Raises:
          ValueError: for parameters of another tree or other shapes, and for inputs with which the function is another one.
        """
        values = self._checked(params)
        traced = self._traced(args, kwargs)
        return self._run(traced, values, traced.inputs)

    def _traced(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Traced:
        """The program for other inputs, which has to be the same."""
        traced = _traced(self._model, args, kwargs)
        if not _same_program(traced.flat, self._example.flat, self._plan):
            symbols = any(not isinstance(n, int) for x in traced.inputs for n in np.shape(x))
            raise ValueError(_ANOTHER + (_SYMBOLS if symbols else ""))
        return traced

    def _run(self, traced: _Traced, values: Sequence[Any], inputs: Sequence[Any]) -> Any:
        """A program on small parameters and arrays for its inputs."""
        pairs = zip(values, self._keeps, self._model.leaves, strict=True)
        own = [pieces.given(x, keep, leaf.shape) for x, keep, leaf in pairs]
        found = emit.run(traced.flat, self._plan, [*own, *map(pieces.whole, inputs)])
        return jax.tree.unflatten(traced.tree, found)

    def _run_example(self, values: Sequence[Any], inputs: Sequence[Any]) -> Any:
        """With the arguments of the example, but other arrays in them."""
        return self._run(self._example, values, inputs)

    def cut_state(self, opt_state: ArrayTree, fresh: ArrayTree) -> ArrayTree:
        """The state of an optimizer for the small parameters, to go on where training of the whole ones was.

        Moments, dual averages and starting points are cut as the parameters were; counters and other numbers are taken
        over; the rest (warm starts of solvers, what only one of the two has) is as in `fresh`. A restart needs none of
        this: there dual averaging begins anew from the parameters, and so does `transformation.init(small.params)`.

        Args:
          opt_state: of any optax transformation, for the whole parameters.
          fresh: of the same transformation, for the small ones: `transformation.init(small.params)`.

        Returns:
          A tree like `fresh`.

        Raises:
          ValueError: if parameters have become factors, of which there is no such state (`low_rank=False`); if an array of
            a state has not its parameter's shape.

        Example:
          >>> import jax.numpy as jnp, optax, ramda_jax as rj
          >>> apply = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"]
          >>> params = {"a": jnp.arange(12.0).reshape(3, 4), "b": jnp.eye(4)[:, :2]}
          >>> adam = optax.adam(1e-3)
          >>> small = rj.compact(apply, params, jnp.ones((1, 3)), low_rank=False)
          >>> state = small.cut_state(adam.init(params), adam.init(small.params))
          >>> print(state[0].mu["a"].shape)
          (3, 2)
        """
        rows = list(zip(self._model.leaves, self._keeps, self._matrices, strict=True))
        for leaf, _, how in rows:
            if how is not None:
                raise ValueError(
                    f"cut_state: {leaf.path!r} has become two factors, of which opt_state knows nothing; compact with "
                    "low_rank=False, or begin with the fresh state."
                )
        known = sorted(((bare(leaf.path), leaf, keep) for leaf, keep, _ in rows), key=_longest)
        old_paths, old_leaves, _ = trees.flatten(opt_state)
        old = dict(zip(old_paths, old_leaves, strict=True))
        paths, new, treedef = trees.flatten(fresh)
        made = []
        for path, now in zip(paths, new, strict=True):
            before = old.get(path, now)
            row = next((row for row in known if f"/{path}".endswith(f"/{row[0]}")), None)
            if row is not None and path in old:
                made.append(_cut_one(path, before, now, *row[1:]))
            else:
                made.append(before if np.ndim(before) == np.ndim(now) == 0 else now)
        return treedef.unflatten(made)

    def report(self) -> Report:
        """Parameters, bytes and FLOPs before and after, per array; and why what could not go stayed."""
        leaves = self._model.leaves
        now = self._like()
        before = [math.prod(leaf.shape) for leaf in leaves]
        after = [sum(x.size for x in jax.tree.leaves(value)) for value in now]
        width = [np.dtype(leaf.dtype).itemsize for leaf in leaves]
        total = lambda sizes: sum(n * w for n, w in zip(sizes, width, strict=True))
        ranks = [
            how and x.left.shape[how.place] for x, how in zip(now, self._matrices, strict=True)
        ]
        paths = [leaf.path for leaf in leaves]
        names = readers(self._example.flat, self._plan, paths)
        rows = zip(leaves, self._shapes, names, ranks, strict=True)
        small = jax.make_jaxpr(self._run_example)(now, self._example.inputs)
        return Report(
            sum(after),
            sum(before),
            total(after),
            total(before),
            _operations(flatten(small)),
            _operations(self._example.flat),
            {
                leaf.path: ArrayReport(leaf.shape, shape, tuple(sorted(by)), rank)
                for leaf, shape, by, rank in rows
            },
            tuple(self._reasons()),
        )

    def _reasons(self) -> list[str]:
        """What was kept whole for want of a rule, or why nothing was cut."""
        reasons = []
        cut = any(k is not None for keep in self._keeps for k in keep)
        if not cut and not any(self._matrices):
            reasons.append(
                "Nothing could be cut: every slice of every parameter is read by something that is not zero."
            )
        return reasons

    def widths(self) -> dict[str, tuple[int, ...]]:
        """The new shape of every parameter, by path: to build a model of one's own class.

        Where there are factors, it is that of the array which they stand for.
        """
        paths = [leaf.path for leaf in self._model.leaves]
        return dict(zip(paths, self._shapes, strict=True))

    def _like(self) -> list[Any]:
        """What stands for the values of the small parameters: an array, or factors, for each."""
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), self._checked(self.params)
        )

    def export(
        self,
        path: str | Path,
        *args: Any,
        platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
        **kwargs: Any,
    ) -> None:
        """Write the compact model, program and parameters, as one file; `load_compact` reads it.

        The program is StableHLO; results come in dicts, lists and tuples, whatever classes of the model's code they had.
        Needs the package flatbuffers.

        Args:
          path: of the file.
          *args, **kwargs: inputs, or ShapeDtypeStructs, of the shapes that it is for; none: those of the example. A
            dimension may be a symbol (`jax.export.symbolic_shape`): then it is for any number of examples.
          platforms: that it is to run on.

        Raises:
          ImportError: without flatbuffers.
          ValueError: for inputs with which the function is another one.

        Example:
          >>> import jax, jax.numpy as jnp, ramda_jax as rj, tempfile
          >>> apply = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"]
          >>> params = {"a": jnp.arange(12.0).reshape(3, 4), "b": jnp.eye(4)[:, :2]}
          >>> small = rj.compact(apply, params, jnp.ones((1, 3)))
          >>> batch = jax.ShapeDtypeStruct(jax.export.symbolic_shape("batch, 3"), jnp.float32)
          >>> with tempfile.TemporaryDirectory() as folder:
          ...     small.export(f"{folder}/model", batch)
          ...     print(rj.load_compact(f"{folder}/model")(jnp.ones((7, 3))).shape)
          (7, 2)
        """
        traced = self._traced(args, kwargs) if args or kwargs else self._example
        inputs = [jax.ShapeDtypeStruct(np.shape(x), x.dtype) for x in traced.inputs]
        run = lambda values, inputs: _plain(self._run(traced, self._grouped(values), inputs))
        exported = jax_export.export(jax.jit(run), platforms=platforms)
        values, _, leaves = _floating(self.params)
        program = exported([jax.ShapeDtypeStruct(x.shape, x.dtype) for x in values], inputs)
        serialized = program.serialize()  # or fails, before a file that may be there is touched
        notes = [(leaf.path, leaf.shape, np.dtype(leaf.dtype).name) for leaf in leaves]
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("program", serialized)
            file.writestr("arrays", json.dumps(notes))
            for k, x in enumerate(values):
                file.writestr(f"{k}", np.asarray(x).tobytes())

    def _checked(self, params: ArrayTree) -> list[Any]:
        """The values of small parameters: an array, or factors, for each of the whole ones."""
        trees.check_same(params, "params", self.params, "the compact parameters")
        return self._grouped(_floating(params)[0])

    def _grouped(self, values: Iterable[Any]) -> list[Any]:
        """Arrays, in order, as arrays and factors."""
        rest = iter(values)
        return [Factors(next(rest), next(rest)) if how else next(rest) for how in self._matrices]


def compact(
    apply_fn: Callable[..., Any],
    *args: Any,
    multiple_of: int = 1,
    low_rank: bool = True,
    **kwargs: Any,
) -> Compact:
    """The same function with less: what is zero, and what is only read by zeros, is cut out of all arrays.

    Exact: results are those of the whole model up to rounding, for any inputs of the example's kind and any number of
    examples, and so are gradients of what is left (zero groups within an array that stays may have none). Every zero slice
    of a weight goes, wherever it is: the weight gathers what it reads. Loops, too: the layers of a scan keep indices of
    their own, as many as the layer that needs most. What cannot be followed (an unknown operation) stays whole.

    A matrix of low rank (as the nuclear norm makes) becomes two factors where they are smaller: in place of the array,
    `params` has a pair `(left, right)`.

    Args:
      apply_fn, *args, **kwargs: as in `network`, with the values of the parameters; inputs may be ShapeDtypeStructs. All
        floating-point arrays that params hold (Linen's batch statistics, too) are cut. Of an `nnx.Module` the `nnx.Param`s
        are; its other variables become constants of `apply`.
      multiple_of: keep as many more channels as make their number a multiple of this (8, 128), where hardware computes in
        tiles and odd sizes cost more than they save; so are ranks.
      low_rank: whether matrices of low rank become factors.

    Returns:
      A `Compact`.

    Raises:
      ValueError: for parameters that are not finite (naming the path).
      TypeError: as `network`.

    Example:
      >>> import jax, jax.numpy as jnp, ramda_jax as rj
      >>> apply = lambda p, x: jax.nn.relu(x @ p["up"]) @ p["down"]
      >>> params = {"up": jnp.arange(24.0).reshape(4, 6), "down": jnp.arange(18.0).reshape(6, 3).at[2:].set(0.0)}
      >>> small = rj.compact(apply, params, jnp.ones((1, 4)))
      >>> print(small.report())
      path        before   after   needed by
      down        (6, 3)  (2, 3)  the result
      up          (4, 6)  (4, 2)        down
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
    return Compact(_Model(call, leaves, values, rebuild), inputs, kwargs, multiple_of, low_rank)


def _floating(params: ArrayTree) -> tuple[list[Any], Rebuild, list[Leaf]]:
    """(the floating-point arrays of a tree, from such arrays to the tree, what they are)."""
    paths, leaves, _ = trees.flatten(params)
    mine = [is_array(x) and jax.dtypes.issubdtype(x.dtype, np.floating) for x in leaves]
    pairs = zip(paths, leaves, mine, strict=True)
    named = [Leaf(path, tuple(x.shape), x.dtype) for path, x, ok in pairs if ok]
    return *apart(params, mine), named


def _plain(tree: Any) -> Any:
    """The same tree in containers that a reader without the model's code has: other nodes become tuples."""
    if tree is None:
        return None
    if isinstance(tree, dict):
        return {name: _plain(x) for name, x in tree.items()}
    children = jax.tree.leaves(tree, is_leaf=lambda x: x is not tree)
    if len(children) == 1 and children[0] is tree:
        return tree
    made = map(_plain, children)
    return list(made) if isinstance(tree, list) else tuple(made)


def _longest(row: tuple[str, Leaf, Keep]) -> int:
    return -len(row[0])


def _cut_one(path: str, before: Any, now: Any, leaf: Leaf, keep: Keep) -> jax.Array:
    """One array of an optimizer's state, cut as its parameter."""
    if np.shape(before) != leaf.shape:
        raise ValueError(
            f"cut_state: {path!r} of opt_state has shape {np.shape(before)}, but {leaf.path!r} had {leaf.shape}."
        )
    made = pieces.cut(before, keep)
    if made.shape != np.shape(now):
        raise ValueError(
            f"cut_state: {path!r} of the fresh state has shape {np.shape(now)}, but {leaf.path!r} now has {made.shape}."
        )
    return made


_ANOTHER = (
    "with these inputs the function is another one than that which was compacted: they may differ only in the number of "
    "examples; compact it with such inputs (flags, other arguments and sizes must be the same)."
)
_SYMBOLS = (
    " Where a size is a symbol, JAX makes a gather of an index like x[:, 0]: use jax.lax.index_in_dim or slice_in_dim in "
    "the model, or export a file for each number of examples."
)


def _same_program(flat: Flat, expected: Flat, plan: Plan) -> bool:
    """Whether it is the same program for what is kept of the expected one."""
    pairs = list(zip(flat.equations, expected.equations, strict=False))
    if len(flat.equations) != len(expected.equations) or any(a.name != b.name for a, b in pairs):
        return False
    shapes = zip(flat.shapes, expected.shapes, plan.keeps, strict=True)
    if any(
        len(a) != len(b) or any(k is not None and a[d] != b[d] for d, k in enumerate(keep))
        for a, b, keep in shapes
    ):
        return False
    return all(
        _same_program(*each)
        for place, inner in plan.inner.items()
        for each in zip(
            programs(pairs[place][0].equation),
            programs(pairs[place][1].equation),
            inner.programs,
            strict=True,
        )
    )


def _operations(program: Flat) -> int:
    """Floating-point operations of all products: of a scan as often as it runs, of branches those of the costliest, of a
    while those of one turn; of what depends on the platform, as it was written.
    """
    total, platforms = 0, set[Any]()
    for _, equation, operands, results in program.equations:
        name, inside = equation.primitive.name, list(map(_operations, programs(equation)))
        if name == "platform_index":
            platforms.update(results)
        elif name == "cond" and operands[0] in platforms:
            total += inside[-1]
        elif name == "cond":
            total += max(inside)
        else:
            times = equation.params["length"] if name == "scan" else 1
            total += operations(equation) + times * sum(inside)
    return total


class Loaded(NamedTuple):
    """A compact model from a file: `model(*inputs)`.

    Attributes:
      params: by path.
      call: of the arrays among the inputs, in order.
    """

    params: dict[str, jax.Array]
    call: Callable[..., Any]

    def __call__(self, *inputs: Any) -> Any:
        return self.call(*inputs)


def load_compact(path: str | Path) -> Loaded:
    """Read what `Compact.export` has written; nothing of the model's code is needed.

    Raises:
      ValueError: if the file is none of these; from the model, for arrays of other shapes than it was exported for.

    Example:
      >>> import jax.numpy as jnp, ramda_jax as rj, tempfile
      >>> small = rj.compact(lambda p, x: x @ p["a"], {"a": jnp.eye(3)[:, :2]}, jnp.ones((1, 3)))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     small.export(f"{folder}/model", platforms=("cpu",))
      ...     model = rj.load_compact(f"{folder}/model")
      >>> print(model(jnp.array([[1.0, 2.0, 3.0]])))
      [[1. 2.]]
    """
    try:
        with zipfile.ZipFile(path) as file:
            program = jax_export.deserialize(bytearray(file.read("program")))
            notes = json.loads(file.read("arrays"))
            arrays = [
                np.frombuffer(file.read(f"{k}"), jnp.dtype(dtype)).reshape(shape)
                for k, (_, shape, dtype) in enumerate(notes)
            ]
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f"{path} is no exported compact model: {error}.") from None
    leaves = [jnp.asarray(x) for x in arrays]
    shapes = [aval.shape for aval in program.in_avals[len(leaves) :]]

    def call(*inputs: Any) -> Any:
        _check_shapes(inputs, shapes)
        return program.call(leaves, list(inputs))

    paths = [path for path, *_ in notes]
    return Loaded(dict(zip(paths, leaves, strict=True)), call)


def _check_shapes(inputs: Sequence[Any], expected: Sequence[tuple[Any, ...]]) -> None:
    """Raise ValueError where these are not what the program is for; its symbols stand for any number."""
    if len(inputs) != len(expected):
        raise ValueError(f"the exported model takes {len(expected)} arrays, got {len(inputs)}.")
    for k, (x, wanted) in enumerate(zip(inputs, expected, strict=True)):
        shape = np.shape(x)
        fits = len(shape) == len(wanted) and all(
            n == m for n, m in zip(shape, wanted, strict=True) if isinstance(m, int)
        )
        if not fits:
            symbols = ", ".join(["batch", *map(str, wanted[1:])])
            raise ValueError(
                f"array {k} has shape {shape}, the exported model is for {tuple(wanted)}. For any number of examples "
                f"export it with jax.ShapeDtypeStruct(jax.export.symbolic_shape({symbols!r}), dtype)."
            )
