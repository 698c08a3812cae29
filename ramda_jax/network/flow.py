"""How axes flow through a computation: one walk over a jaxpr that says what every product does with every parameter.

Of every value is known: its axes (`axes.Axis`), whether it depends on the inputs (*live*), and of which parameters it is a
rearrangement. An equation joins axes whose indices mean the same, and leaves events: the role of a parameter's axis in a
product, and what else reads an axis. What they amount to is worked out afterwards (`roles`), when all that is ever said of
an axis is known.

A reduction over an axis is a *statistic* as long as it only meets values that have that axis (mean and variance of a
normalization, the sum of a softmax); if it goes anywhere else, it reads the axis.

Nothing is guessed: a primitive without a rule ends what is known of its operands, and says so.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core

from ramda_jax.network import axes as ax
from ramda_jax.network.axes import Axis
from ramda_jax.network.flat import (
    CALLS,
    CUMULATIVE,
    REDUCTIONS,
    WINDOWS,
    body,
    carry_bounds,
    names,
    operations,
    while_bounds,
)
from ramda_jax.network.trace import Program

# Roles of an axis of a parameter in a product. BATCH: it is an index of both operands; GROUP: of a convolution in groups;
# SCAN: a step of a loop takes one slice.
IN, OUT, WINDOW, BATCH, GROUP, SCAN = "in", "out", "window", "batch", "group", "scan"

# What is said of a parameter that is added to something, or scales it.
ELEMENTWISE = "meets the inputs elementwise"

# Constants up to this size are computed, so that indices can be told.
_SMALL = 64


class Weight(NamedTuple):
    """A parameter of which a value is a rearrangement.

    Attributes:
      leaf: which one.
      axes: those of the value, as axes of this parameter; shorter along one where it is concatenated with others.
      scans: (number of the loop, axis) of every loop that takes slices of it.
    """

    leaf: int
    axes: tuple[Axis, ...]
    scans: tuple[tuple[int, Axis], ...] = ()


@dataclasses.dataclass(frozen=True)
class Value:
    """What is known of a value.

    Attributes:
      axes: its axes.
      live: whether it depends on the inputs.
      weights: of which parameters it is a rearrangement, if it is one (and not live).
      statistics: axes over which it was reduced and which it has not met again.
      paired: whether it comes, elementwise, from a product of two live values (attention's logits).
      known: its entries, if it is a small constant.
      parametric: whether it depends on parameters.
    """

    axes: tuple[Axis, ...]
    live: bool = False
    weights: tuple[Weight, ...] = ()
    statistics: frozenset[Axis] = frozenset()
    paired: bool = False
    known: Any = None
    parametric: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(a.size for a in self.axes)


@dataclasses.dataclass(frozen=True)
class Use:
    """A product in which a parameter meets a live value, or an indexing of it by live indices.

    Attributes:
      leaf: which parameter.
      kind: "dot", "conv" or "gather".
      met: the axes of the other operand.
      operations: floating-point operations of the product, all its repetitions counted (2 per multiplication and addition).
      scans: see `Weight`.
    """

    leaf: int
    kind: str
    met: tuple[Axis, ...]
    operations: int
    scans: tuple[tuple[int, Axis], ...]


class Event(NamedTuple):
    """An axis and what is said of it: a role in a use, or what reads it."""

    axis: Axis
    what: str
    use: int = -1


class Touch(NamedTuple):
    """A live value in a loop has this axis; `scope`: the numbers of the loops around it."""

    axis: Axis
    scope: tuple[int, ...]


@dataclasses.dataclass
class Flow:
    """All that one walk finds; see the module.

    Attributes:
      uses: in order.
      roles: events of axes of parameters: `IN`, ...
      reads: events of axes that something else than a parameter reads; the text says what.
      heads: axes that attention keeps apart: indices of both operands of a product of live values, or of its logits.
      groups: of every convolution in groups, (a factor of the kernel's output axis, the factor of the image's channels):
        which group makes what, and which reads what; the same numbers, but channels of two images.
      inputs, outputs: axes of these.
      touches: see `Touch`.
      notes: of a parameter, what happened to it besides products.
      unknown: how often what flows through a primitive was not followed, by its name.
      other: operations of products in which no parameter takes part.
    """

    uses: list[Use] = dataclasses.field(default_factory=list)
    roles: list[Event] = dataclasses.field(default_factory=list)
    reads: list[Event] = dataclasses.field(default_factory=list)
    heads: list[Axis] = dataclasses.field(default_factory=list)
    groups: list[tuple[Axis, Axis]] = dataclasses.field(default_factory=list)
    inputs: list[Axis] = dataclasses.field(default_factory=list)
    outputs: list[Axis] = dataclasses.field(default_factory=list)
    touches: list[Touch] = dataclasses.field(default_factory=list)
    notes: dict[int, list[str]] = dataclasses.field(default_factory=dict)
    parameters: list[tuple[Axis, ...]] = dataclasses.field(default_factory=list)
    unknown: dict[str, int] = dataclasses.field(default_factory=dict)
    other: int = 0

    def note(self, weights: Sequence[Weight], text: str) -> None:
        """Of parameters."""
        for weight in weights:
            texts = self.notes.setdefault(weight.leaf, [])
            if text not in texts:
                texts.append(text)


def flow(program: Program) -> Flow:
    """Walk the program."""
    found = Flow()
    jaxpr = program.closed.jaxpr
    values = []
    for k, var in enumerate(jaxpr.invars):
        axes = _axes(var.aval)
        if k < len(program.leaves):
            found.parameters.append(axes)
            values.append(Value(axes, weights=(Weight(k, axes),), parametric=True))
        elif k >= len(jaxpr.invars) - program.inputs:
            found.inputs.extend(axes)
            values.append(Value(axes, live=True))
        else:
            values.append(Value(axes))
    walker = _Walker(found)
    constants = [_constant(x) for x in program.closed.consts]
    for value in walker.run(jaxpr, constants, values):
        walker.flush(value, "a reduction over it is returned")
        found.outputs.extend(value.axes)
        found.note(value.weights, "returned as it is")
    pending = True
    while pending:
        pending = any(list(itertools.starmap(ax.copy_parts, found.groups)))
    return found


def _axes(aval: Any) -> tuple[Axis, ...]:
    return tuple(Axis(int(n)) for n in getattr(aval, "shape", ()))


def _constant(x: Any) -> Value:
    small = np.size(x) <= _SMALL and not jax.dtypes.issubdtype(
        getattr(x, "dtype", np.result_type(type(x))), jax.dtypes.prng_key
    )
    return Value(tuple(Axis(n) for n in np.shape(x)), known=np.asarray(x) if small else None)


ELEMENTWISE_NAMES = names(
    """abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e bitcast_convert_type cbrt
    ceil clamp clz complex conj convert_element_type copy copy_p cos cosh device_put digamma div eq eq_to erf
    erf_inv erfc exp exp2 expm1 floor ge gt igamma igamma_grad_a igammac imag integer_pow is_finite le le_to
    lgamma log log1p log2 logistic lt lt_to max mesh_cast min mul mulhi name ne neg nextafter not
    one_minus_square optimization_barrier or pcast polygamma polynomial population_count pow pvary real
    reduce_precision regularized_incomplete_beta rem round rsqrt select_n sharding_constraint shift_left
    shift_right_arithmetic shift_right_logical sign sin sinh sqrt square stop_gradient sub tan tanh xor zeta"""
)
_FRESH = names(
    """iota random_bits random_seed random_wrap random_unwrap random_fold_in random_split rng_bit_generator rng_uniform
    threefry2x32 random_gamma create_token axis_index"""
)


class _Walker:
    """Runs a jaxpr on abstract values."""

    def __init__(self, found: Flow) -> None:
        self.found = found
        self.scope: tuple[int, ...] = ()
        self.repeats = 1
        self.loops = 0

    def run(self, jaxpr: Any, constants: Sequence[Value], values: Sequence[Value]) -> list[Value]:
        known: dict[Any, Value] = {}

        def read(atom: Any) -> Value:
            return _constant(atom.val) if isinstance(atom, core.Literal) else known[atom]

        known.update(zip(jaxpr.constvars, constants, strict=True))
        known.update(zip(jaxpr.invars, values, strict=True))
        for equation in jaxpr.eqns:
            operands = [read(atom) for atom in equation.invars]
            results = self.step(equation, operands)
            for var, value in zip(equation.outvars, results, strict=True):
                if not isinstance(var, core.DropVar):
                    known[var] = value
        return [read(atom) for atom in jaxpr.outvars]

    def step(self, equation: Any, operands: list[Value]) -> list[Value]:
        computed = _computed(equation, operands)
        if computed is not None:
            return computed
        name = equation.primitive.name
        for value in operands:
            if value.live:
                self.touch(value.axes)
        results = (self.rule(name) or self.unknown)(equation, operands)
        if not any(v.parametric for v in operands):
            return results
        return [dataclasses.replace(v, parametric=True) for v in results]

    def rule(self, name: str) -> Callable[[Any, list[Value]], list[Value]] | None:
        if name in ELEMENTWISE_NAMES:
            return self.elementwise
        if name in REDUCTIONS or name in ("reduce", "argmax", "argmin"):
            return self.reduction
        if name in CUMULATIVE or name == "sort":
            return self.cumulative
        if name in WINDOWS:
            return self.windows
        if name in CALLS:
            return self.inlined
        if name in _FRESH:
            return self.results
        if name.startswith("scatter"):
            return self.scatter
        return getattr(self, f"do_{name}", None)

    # What is noted.

    def touch(self, axes: Sequence[Axis]) -> None:
        self.found.touches.extend(Touch(a, self.scope) for a in axes if a.size > 1)

    def read(self, axes: Sequence[Axis], text: str) -> None:
        self.found.reads.extend(Event(a, text) for a in axes)

    def flush(self, value: Value, text: str) -> None:
        """Its statistics go where their axes are not."""
        self.read(list(value.statistics), text)

    def results(self, equation: Any, operands: Sequence[Value]) -> list[Value]:
        """Values of new axes."""
        live = any(v.live for v in operands)
        return [Value(_axes(var.aval), live=live) for var in equation.outvars]

    # Elementwise.

    def elementwise(self, equation: Any, operands: list[Value]) -> list[Value]:
        if equation.primitive.name == "optimization_barrier":
            return operands
        if any(v.axes and len(v.axes) != len(equation.outvars[0].aval.shape) for v in operands):
            return self.unknown(equation, operands)  # a conversion to narrower numbers adds an axis
        shape = equation.outvars[0].aval.shape
        full = [_expanded(v, shape) for v in operands if len(v.axes) == len(shape)]
        live = any(v.live for v in operands)
        if not full:  # of scalars only
            return self.results(equation, operands)
        present = {leaf.root for v in full for a in v.axes for leaf in a.leaves()}
        pending = frozenset().union(*(v.statistics for v in operands))
        for column in zip(*(v.axes for v in full), strict=True):
            for other in column[1:]:
                ax.join(column[0], other)
        present |= {leaf.root for v in full for a in v.axes for leaf in a.leaves()}
        left = frozenset(a for a in pending if not any(leaf.root in present for leaf in a.leaves()))
        weights = self.together(equation, full, live)
        first = next((v for v in full if v.live == live and (live or v.weights)), full[0])
        value = Value(first.axes, live, weights, left, any(v.paired for v in operands))
        return [value for _ in equation.outvars]

    def together(self, equation: Any, values: Sequence[Value], live: bool) -> tuple[Weight, ...]:
        """The parameters of which an elementwise function of these is a rearrangement: the largest among them."""
        weights = [w for v in values for w in v.weights]
        if live:
            self.found.note(weights, ELEMENTWISE)
            return ()
        sizes = [math.prod(a.size for a in self.found.parameters[w.leaf]) for w in weights]
        largest = max(sizes, default=0)
        small = [w for w, n in zip(weights, sizes, strict=True) if n < largest]
        self.found.note(small, f"meets a larger parameter elementwise ({equation.primitive.name})")
        return tuple(w for w, n in zip(weights, sizes, strict=True) if n == largest)

    def reduction(self, equation: Any, operands: list[Value]) -> list[Value]:
        away = equation.params.get("axes", equation.params.get("dimensions"))
        results = []
        inputs = operands[: len(equation.outvars)]
        for value in inputs:
            kept = tuple(a for d, a in enumerate(value.axes) if d not in away)
            gone = [value.axes[d] for d in away if value.axes[d].size > 1]
            statistics = value.statistics | (frozenset(gone) if value.live else frozenset())
            self.found.note(value.weights, f"reduced ({equation.primitive.name})")
            results.append(Value(kept, value.live, (), statistics))
        return results if len(results) == len(equation.outvars) else results * len(equation.outvars)

    def cumulative(self, equation: Any, operands: list[Value]) -> list[Value]:
        params = equation.params
        along = params["axis"] if "axis" in params else params["dimension"]
        live = any(v.live for v in operands)
        for value in operands:
            value.axes[along].spoil(f"{equation.primitive.name} runs along it")
            for one, other in zip(operands[0].axes, value.axes, strict=True):
                ax.join(one, other)
            self.found.note(value.weights, f"goes through {equation.primitive.name}")
        return [Value(v.axes, live, (), v.statistics) for v in operands]

    def windows(self, equation: Any, operands: list[Value]) -> list[Value]:
        sizes, strides = equation.params["window_dimensions"], equation.params["window_strides"]
        value = operands[0]
        self.found.note(value.weights, f"goes through {equation.primitive.name}")
        results = []
        for var in equation.outvars:
            new = []
            for d, (axis, n) in enumerate(zip(value.axes, var.aval.shape, strict=True)):
                if sizes[d] == 1 and strides[d] == 1 and axis.size == n:
                    new.append(axis)
                else:
                    axis.spoil("pooled")
                    new.append(Axis(n))
            results.append(Value(tuple(new), value.live, (), value.statistics))
        return results

    def unknown(self, equation: Any, operands: list[Value]) -> list[Value]:
        name = equation.primitive.name
        self.found.unknown[name] = self.found.unknown.get(name, 0) + 1
        for value in operands:
            self.flush(value, f"a reduction over it enters {name}")
            if value.live:
                self.read(value.axes, f"{name}, of which nothing is known, reads it")
            self.found.note(value.weights, f"enters {name}, of which nothing is known")
        results = self.results(equation, operands)
        for value in results:
            for axis in value.axes:
                axis.spoil(f"{name}, of which nothing is known, makes it")
        return results

    # Rearrangements: what happens to the axes of a value happens to those of its parameters.

    def rearranged(
        self, equation: Any, value: Value, change: Callable[[Sequence[Axis]], tuple[Axis, ...]]
    ) -> list[Value]:
        axes, name = change(value.axes), equation.primitive.name
        weights = []
        for w in value.weights:
            if w.axes == value.axes:
                weights.append(w._replace(axes=axes))
            elif tuple(a.size for a in w.axes) == value.shape or name == "transpose":
                weights.append(w._replace(axes=change(w.axes)))
            else:
                self.found.note([w], "rearranged after it was concatenated with others")
        changed = dataclasses.replace(value, axes=axes, weights=tuple(weights), known=None)
        return [changed]

    def do_transpose(self, equation: Any, operands: list[Value]) -> list[Value]:
        order = equation.params["permutation"]
        return self.rearranged(equation, operands[0], lambda axes: tuple(axes[d] for d in order))

    def do_squeeze(self, equation: Any, operands: list[Value]) -> list[Value]:
        gone = equation.params["dimensions"]
        keep = lambda axes: tuple(a for d, a in enumerate(axes) if d not in gone)
        return self.rearranged(equation, operands[0], keep)

    def do_broadcast_in_dim(self, equation: Any, operands: list[Value]) -> list[Value]:
        shape = equation.outvars[0].aval.shape
        places = equation.params["broadcast_dimensions"]

        def change(axes: Sequence[Axis]) -> tuple[Axis, ...]:
            new = [Axis(int(n)) for n in shape]
            for axis, d in zip(axes, places, strict=True):
                if axis.size == shape[d]:
                    new[d] = axis
            return tuple(new)

        return self.rearranged(equation, operands[0], change)

    def do_reshape(self, equation: Any, operands: list[Value]) -> list[Value]:
        shape = equation.outvars[0].aval.shape
        return self.rearranged(equation, operands[0], lambda axes: _reshaped(axes, shape))

    def do_rev(self, equation: Any, operands: list[Value]) -> list[Value]:
        for d in equation.params["dimensions"]:
            operands[0].axes[d].spoil("reversed")
        return self.rearranged(equation, operands[0], tuple)

    def do_slice(self, equation: Any, operands: list[Value]) -> list[Value]:
        p = equation.params
        strides = p["strides"] or (1,) * len(p["start_indices"])
        return self.sliced(equation, operands[0], p["start_indices"], p["limit_indices"], strides)

    def sliced(
        self, equation: Any, value: Value, starts: Any, stops: Any, strides: Any
    ) -> list[Value]:
        def change(axes: Sequence[Axis]) -> tuple[Axis, ...]:
            new = []
            for axis, start, stop, stride in zip(axes, starts, stops, strides, strict=True):
                part = axis if (start, stop) == (0, axis.size) else ax.window(axis, start, stop)
                if part is None or stride != 1:
                    axis.spoil("a part of it is taken that is none of its parts")
                    part = Axis(len(range(start, stop, stride)))
                new.append(part)
            return tuple(new)

        return self.rearranged(equation, value, change)

    def split(self, equation: Any, value: Value, sizes: Sequence[int]) -> list[Value]:
        """Parts of these sizes along the equation's axis."""
        along = equation.params["axis"]
        results, start = [], 0
        for n in sizes:
            starts, stops = [0] * len(value.axes), list(value.shape)
            starts[along], stops[along] = start, start + n
            results += self.sliced(equation, value, starts, stops, [1] * len(starts))
            start += n
        return results

    def do_split(self, equation: Any, operands: list[Value]) -> list[Value]:
        return self.split(equation, operands[0], equation.params["sizes"])

    def do_dynamic_slice(self, equation: Any, operands: list[Value]) -> list[Value]:
        value, *starts = operands
        sizes = equation.params["slice_sizes"]
        if all(s.known is not None for s in starts):
            limits = [n - k for n, k in zip(value.shape, sizes, strict=True)]
            at = [min(max(int(s.known), 0), limit) for s, limit in zip(starts, limits, strict=True)]
            stops = [s + n for s, n in zip(at, sizes, strict=True)]
            return self.sliced(equation, value, at, stops, [1] * len(at))
        live = value.live or any(s.live for s in starts)

        def change(axes: Sequence[Axis]) -> tuple[Axis, ...]:
            new = []
            for axis, n in zip(axes, sizes, strict=True):
                if axis.size != n:
                    axis.spoil("a part of it is taken that only the computation knows")
                new.append(axis if axis.size == n else Axis(n))
            return tuple(new)

        (result,) = self.rearranged(equation, value, change)
        if live and value.weights:
            self.found.note(value.weights, "a part of it is taken that only the inputs say")
        weights = () if live else result.weights
        return [dataclasses.replace(result, live=live, weights=weights)]

    def do_dynamic_update_slice(self, equation: Any, operands: list[Value]) -> list[Value]:
        value, part, *_ = operands
        for axis, other in zip(value.axes, part.axes, strict=True):
            if axis.size == other.size:
                ax.join(axis, other)
            else:
                axis.spoil("a part of it is replaced")
                other.spoil("it replaces a part of another")
        self.found.note([*value.weights, *part.weights], "written into another array")
        statistics = value.statistics | part.statistics
        return [Value(value.axes, any(v.live for v in operands), (), statistics)]

    def do_concatenate(self, equation: Any, operands: list[Value]) -> list[Value]:
        return self.concatenated(operands, equation.params["dimension"])

    def concatenated(self, operands: Sequence[Value], along: int) -> list[Value]:
        full = [v for v in operands if v.axes[along].size]
        for d in range(len(operands[0].axes)):
            for other in full[1:]:
                if d != along:
                    ax.join(full[0].axes[d], other.axes[d])
        axes = list((full or operands)[0].axes)
        axes[along] = ax.concatenation([v.axes[along] for v in operands]) if full else Axis(0)
        live = any(v.live for v in operands)
        statistics = frozenset().union(*(v.statistics for v in operands))
        weights = [w for v in operands for w in v.weights]
        if live:
            self.found.note(weights, "concatenated with what the inputs make")
        own = () if live else tuple(weights)
        return [Value(tuple(axes), live, own, statistics, any(v.paired for v in operands))]

    def do_stack(self, equation: Any, operands: list[Value]) -> list[Value]:
        along = equation.params["axis"]
        wider = [
            self.rearranged(equation, v, lambda axes: (*axes[:along], Axis(1), *axes[along:]))[0]
            for v in operands
        ]
        return self.concatenated(wider, along)

    def do_unstack(self, equation: Any, operands: list[Value]) -> list[Value]:
        (value,), along = operands, equation.params["axis"]
        drop = lambda axes: (*axes[:along], *axes[along + 1 :])
        parts = self.split(equation, value, [1] * value.shape[along])
        return [made for part in parts for made in self.rearranged(equation, part, drop)]

    def do_tile(self, equation: Any, operands: list[Value]) -> list[Value]:
        reps = equation.params["reps"]
        change = lambda axes: tuple(
            ax.product([Axis(n), a]) for a, n in zip(axes, reps, strict=True)
        )
        return self.rearranged(equation, operands[0], change)

    def do_pad(self, equation: Any, operands: list[Value]) -> list[Value]:
        config = equation.params["padding_config"]

        def change(axes: Sequence[Axis]) -> tuple[Axis, ...]:
            new = []
            for axis, (low, high, inside) in zip(axes, config, strict=True):
                size = axis.size + max(axis.size - 1, 0) * inside + low + high
                start, stop = max(-low, 0), axis.size - max(-high, 0)
                part = None if inside else ax.window(axis, start, stop)
                if low or high or inside:
                    if part is None:
                        axis.spoil("padded between its entries")
                        new.append(Axis(size))
                        continue
                    axis = ax.concatenation([Axis(max(low, 0)), part, Axis(max(high, 0))])
                new.append(axis)
            return tuple(new)

        return self.rearranged(equation, operands[0], change)

    # Products.

    def do_dot_general(self, equation: Any, operands: list[Value]) -> list[Value]:
        (contracted, batch) = equation.params["dimension_numbers"]
        sides = [_Side(v, c, b) for v, c, b in zip(operands[:2], contracted, batch, strict=True)]
        for value in operands:
            self.flush(value, "a reduction over it enters a product")
        self.unite(sides[0].contracted, sides[1].contracted)
        self.unite(sides[0].batch, sides[1].batch)
        axes = (*sides[0].batch, *sides[0].free, *sides[1].free)
        live = [v.live for v in operands[:2]]
        total = operations(equation) * self.repeats
        if all(live):
            return [self.pair(sides, axes, total)]
        for k in (0, 1):
            own, other = sides[k].value, sides[1 - k].value
            if own.weights and (other.live or not other.parametric):
                for weight in own.weights:
                    share = total // len(own.weights)
                    self.use("dot", weight, sides[k].roles(weight.axes), other.axes, share)
            elif other.live:
                self.found.other += total
                self.read(sides[1 - k].contracted, "a product with a constant reads it")
            elif not any(live):
                self.found.note(own.weights, "multiplied with a constant or another parameter")
        return [Value(axes, any(live))]

    def do_ragged_dot_general(self, equation: Any, operands: list[Value]) -> list[Value]:
        """Rows of x in groups, each multiplied with its own matrix: experts."""
        x, w, _ = operands
        numbers = equation.params["ragged_dot_dimension_numbers"]
        (contracted, batch) = numbers.dot_dimension_numbers
        groups = tuple(numbers.rhs_group_dimensions)
        if x.weights or not groups or batch[0]:
            return self.unknown(equation, operands)
        for value in operands:
            self.flush(value, "a reduction over it enters a product")
        one, two = _Side(x, contracted[0], ()), _Side(w, contracted[1], groups)
        self.unite(one.contracted, two.contracted)
        made = (*one.free, *two.free)
        total = 2 * math.prod(a.size for a in (*made, *one.contracted)) * self.repeats
        for weight in w.weights:
            share = total // len(w.weights)
            self.use("dot", weight, two.roles(weight.axes), x.axes, share)
        if not w.weights:
            self.found.other += total
            self.read(one.contracted, "a product with what the inputs make reads it")
        return [Value(made, live=True)]

    def unite(self, one: Sequence[Axis], other: Sequence[Axis]) -> None:
        for a, b in zip(one, other, strict=True):
            ax.join(a, b)

    def pair(self, sides: Sequence[_Side], axes: tuple[Axis, ...], total: int) -> Value:
        """Of two live values: no parameter reads what is contracted, and heads are kept apart."""
        self.found.other += total
        for side in sides:
            self.read(side.contracted, "a product with what the inputs make reads it")
            self.found.heads.extend(side.batch)
            if side.value.paired:
                self.found.heads.extend(side.free)
        return Value(axes, live=True, paired=True)

    def use(
        self,
        kind: str,
        weight: Weight,
        roles: Iterable[tuple[Axis, str]],
        met: tuple[Axis, ...],
        operations: int = 0,
    ) -> None:
        """A parameter meets a live value, in which its axes have these roles."""
        number = len(self.found.uses)
        self.found.uses.append(Use(weight.leaf, kind, met, operations, weight.scans))
        for axis, role in (*roles, *((axis, SCAN) for _, axis in weight.scans)):
            self.found.roles.append(Event(axis, role, number))
        self.touch(weight.axes)

    def do_conv_general_dilated(self, equation: Any, operands: list[Value]) -> list[Value]:
        image, kernel = operands
        p = equation.params
        numbers = p["dimension_numbers"]
        groups = p["feature_group_count"]
        for value in operands:
            self.flush(value, "a reduction over it enters a convolution")
        out_shape = equation.outvars[0].aval.shape
        if p["batch_group_count"] != 1 or image.weights or (kernel.live and image.live):
            return self.unknown(equation, operands)
        in_image = image.axes[numbers.lhs_spec[1]]
        out_kernel, _, *windows = (kernel.axes[d] for d in numbers.rhs_spec)
        batch, *places = (image.axes[d] for d in numbers.lhs_spec if d != numbers.lhs_spec[1])
        total = operations(equation) * self.repeats
        made = [Axis(n) for n in out_shape]
        plain = lambda k: (
            windows[k].size == 1
            and p["window_strides"][k] == 1
            and p["lhs_dilation"][k] == 1
            and places[k].size == out_shape[numbers.out_spec[2 + k]]
        )
        for k, axis in enumerate(places):
            if plain(k):
                made[numbers.out_spec[2 + k]] = axis
        made[numbers.out_spec[0]], made[numbers.out_spec[1]] = batch, out_kernel
        result = [Value(tuple(made), image.live)]
        if not image.live:
            self.found.note(kernel.weights, "applied to a constant")
            return result
        if not kernel.weights:
            self.found.other += total
            self.read([in_image], "a convolution with a constant reads it")
        for weight in kernel.weights:
            out, inner, *window = (weight.axes[d] for d in numbers.rhs_spec)
            parts = self.grouped(in_image, out, inner, groups)
            if parts is None:
                return self.unknown(equation, operands)
            roles = (*parts, (inner, IN), *((w, WINDOW) for w in window))
            self.use("conv", weight, roles, image.axes, total // len(kernel.weights))
        return result

    def grouped(
        self, image: Axis, out: Axis, inner: Axis, groups: int
    ) -> list[tuple[Axis, str]] | None:
        """Roles of the output axis of a kernel; its input axis is joined to the image's channels."""
        if groups == 1:
            ax.join(image, inner)
            return [(out, OUT)]
        read, made = ax.factored(image, groups), ax.factored(out, groups)
        if made is None:
            return None
        if read is None:
            for axis in (image, out, inner):
                axis.spoil("the groups of a convolution are no factors of its channels")
        else:
            self.found.groups.append((made[0], read[0]))
            ax.join(read[1], inner)
        return [(made[0], GROUP), (made[1], OUT)]

    # Indices.

    def do_gather(self, equation: Any, operands: list[Value]) -> list[Value]:
        value, indices = operands
        d = equation.params["dimension_numbers"]
        sizes = equation.params["slice_sizes"]
        for v in operands:
            self.flush(v, "a reduction over it enters a gather")
        out_shape = equation.outvars[0].aval.shape
        new: list[Axis] = [Axis(int(n)) for n in out_shape]
        gone = (*d.collapsed_slice_dims, *d.operand_batching_dims)
        kept = [k for k in range(len(value.axes)) if k not in gone]
        whole = [k for k in kept if sizes[k] == value.axes[k].size]
        for k, place in zip(kept, d.offset_dims, strict=True):
            if k in whole:
                new[place] = value.axes[k]
        places = [k for k in range(len(out_shape)) if k not in d.offset_dims]
        for k, place in enumerate(places):
            new[place] = indices.axes[k]
        for k, other in zip(d.operand_batching_dims, d.start_indices_batching_dims, strict=True):
            ax.join(value.axes[k], indices.axes[other])
        picked = [
            k for k in range(len(value.axes)) if k not in whole and k not in d.operand_batching_dims
        ]
        live = value.live or indices.live
        if value.live:
            for k in picked:
                value.axes[k].spoil("entries of it are picked by index")
        elif indices.live and value.weights:
            roles = dict.fromkeys(picked, IN) | dict.fromkeys(whole, OUT)
            roles |= dict.fromkeys(d.operand_batching_dims, BATCH)
            for weight in value.weights:
                pairs = [(weight.axes[k], role) for k, role in roles.items()]
                self.use("gather", weight, pairs, indices.axes)
        elif value.weights:
            self.found.note(value.weights, "entries of it are picked by index")
        return [Value(tuple(new), live)]

    def scatter(self, equation: Any, operands: list[Value]) -> list[Value]:
        value, _, part = operands
        d = equation.params["dimension_numbers"]
        gone = (*d.inserted_window_dims, *d.operand_batching_dims)
        kept = [k for k in range(len(value.axes)) if k not in gone]
        why = "entries of it are written by index"
        pairs = dict(zip(d.update_window_dims, kept, strict=True))
        for k, axis in enumerate(part.axes):
            mine = value.axes[pairs[k]] if k in pairs else None
            if mine is not None and mine.size == axis.size:
                ax.join(mine, axis)
            else:
                axis.spoil(why)
                if mine is not None:
                    mine.spoil(why)
        for k in gone:
            value.axes[k].spoil(why)
        self.found.note([*value.weights, *part.weights], why)
        statistics = value.statistics | part.statistics
        return [Value(value.axes, any(v.live for v in operands), (), statistics)]

    def do_top_k(self, equation: Any, operands: list[Value]) -> list[Value]:
        value = operands[0]
        along = equation.params.get("axis", equation.params.get("dimension", -1)) % len(value.axes)
        value.axes[along].spoil("sorted")
        self.found.note(value.weights, "goes through top_k")
        results = []
        for var in equation.outvars:
            new = list(value.axes)
            new[along] = Axis(var.aval.shape[along])
            results.append(Value(tuple(new), value.live, (), value.statistics))
        return results

    # Control flow.

    def inlined(self, equation: Any, operands: list[Value]) -> list[Value]:
        return self.call(*body(equation), operands)

    def call(self, jaxpr: Any, constants: Sequence[Any], operands: Sequence[Value]) -> list[Value]:
        return self.run(jaxpr, [_constant(x) for x in constants], operands)

    def closed(self, inner: core.ClosedJaxpr, operands: Sequence[Value]) -> list[Value]:
        return self.call(inner.jaxpr, inner.consts, operands)

    def do_scan(self, equation: Any, operands: list[Value]) -> list[Value]:
        p = equation.params
        n, m = carry_bounds(equation)
        constants, carried, stacked = operands[:n], operands[n:m], operands[m:]
        number = self.loops = self.loops + 1
        steps = Axis(p["length"])
        for value in stacked:
            ax.join(steps, value.axes[0])
            if value.live:
                self.touch(value.axes[1:])
        inner = [self.slice_of(value, number) for value in stacked]
        begin = self.enter(carried)
        outer, repeats = self.scope, self.repeats
        self.scope, self.repeats = (*outer, number), repeats * p["length"]
        results = self.closed(p["jaxpr"], [*constants, *begin, *inner])
        self.scope, self.repeats = outer, repeats
        ends = self.leave(begin, results[: len(begin)])
        made = []
        for value in results[len(begin) :]:
            self.touch(value.axes)
            self.found.note(value.weights, "stacked by a loop")
            axes = (steps, *value.axes)
            made.append(Value(axes, value.live, (), value.statistics, value.paired))
        return [*ends, *made]

    def slice_of(self, value: Value, number: int) -> Value:
        """What one step of a loop sees of a stacked value."""
        weights = tuple(
            w._replace(axes=w.axes[1:], scans=(*w.scans, (number, w.axes[0])))
            for w in value.weights
        )
        return dataclasses.replace(value, axes=value.axes[1:], weights=weights, known=None)

    def enter(self, carried: Sequence[Value]) -> list[Value]:
        """What the body of a loop may know of what is carried through it."""
        for value in carried:
            self.touch(value.axes)
            self.flush(value, "a reduction over it is carried through a loop")
            self.found.note(value.weights, "carried through a loop")
        return [Value(value.axes, live=True) for value in carried]

    def leave(self, begin: Sequence[Value], end: Sequence[Value]) -> list[Value]:
        for old, new in zip(begin, end, strict=True):
            self.unite(old.axes, new.axes)
            self.touch(new.axes)
            self.flush(new, "a reduction over it is carried through a loop")
            self.found.note(new.weights, "carried through a loop")
        return [Value(value.axes, live=True) for value in begin]

    def do_while(self, equation: Any, operands: list[Value]) -> list[Value]:
        p = equation.params
        n, m = while_bounds(equation)
        begin = self.enter(operands[m:])
        for value in self.closed(p["cond_jaxpr"], [*operands[:n], *begin]):
            self.flush(value, "a reduction over it ends a loop")
        return self.leave(begin, self.closed(p["body_jaxpr"], [*operands[n:m], *begin]))

    def do_cond(self, equation: Any, operands: list[Value]) -> list[Value]:
        which, *rest = operands
        self.flush(which, "a reduction over it chooses a branch")
        every = [self.closed(branch, rest) for branch in equation.params["branches"]]
        results = []
        for values in zip(*every, strict=True):
            for other in values[1:]:
                self.unite(values[0].axes, other.axes)
            live = which.live or any(v.live for v in values)
            for value in values:
                self.found.note(value.weights, "chosen by a branch")
            statistics = frozenset().union(*(v.statistics for v in values))
            results.append(Value(values[0].axes, live, (), statistics))
        return results


class _Side(NamedTuple):
    """An operand of a product: its value and which of its axes are contracted and common."""

    value: Value
    contracting: tuple[int, ...]
    common: tuple[int, ...]

    def pick(self, places: Sequence[int]) -> list[Axis]:
        return [self.value.axes[d] for d in places]

    @property
    def contracted(self) -> list[Axis]:
        return self.pick(self.contracting)

    @property
    def batch(self) -> list[Axis]:
        return self.pick(self.common)

    @property
    def free(self) -> list[Axis]:
        return [a for d, a in enumerate(self.value.axes) if self.role(d) == OUT]

    def role(self, d: int) -> str:
        return IN if d in self.contracting else BATCH if d in self.common else OUT

    def roles(self, axes: Sequence[Axis]) -> list[tuple[Axis, str]]:
        """Of the axes of a parameter that the value is a rearrangement of."""
        return [(axis, self.role(d)) for d, axis in enumerate(axes)]


def _computed(equation: Any, operands: Sequence[Value]) -> list[Value] | None:
    """The results, if they are small and follow from known constants."""
    sizes = [math.prod(getattr(v.aval, "shape", (_SMALL + 1,))) for v in equation.outvars]
    known = [v.known for v in operands]
    small = all(n <= _SMALL for n in sizes) and all(k is not None for k in known)
    name = equation.primitive.name
    plain = name in ELEMENTWISE_NAMES or name in _REARRANGEMENTS
    if not (small and plain) or name in ("sharding_constraint", "optimization_barrier"):
        return None
    with jax.ensure_compile_time_eval():
        results = equation.primitive.bind(*known, **equation.params)
    results = results if equation.primitive.multiple_results else [results]
    return [Value(tuple(Axis(n) for n in np.shape(x)), known=np.asarray(x)) for x in results]


_REARRANGEMENTS = names("transpose squeeze broadcast_in_dim reshape slice concatenate")


def _expanded(value: Value, shape: Sequence[int]) -> Value:
    """A value with new axes where its own of length 1 are repeated."""
    if value.shape == tuple(shape):
        return value
    new = tuple(a if a.size == n else Axis(int(n)) for a, n in zip(value.axes, shape, strict=True))
    swap = dict(zip(value.axes, new, strict=True))
    weights = tuple(w._replace(axes=tuple(swap.get(a, a) for a in w.axes)) for w in value.weights)
    return dataclasses.replace(value, axes=new, weights=weights)


def _reshaped(axes: Sequence[Axis], shape: Sequence[int]) -> tuple[Axis, ...]:
    """The axes of a reshape: factors are split off or merged, in order; where sizes do not fit, spoiled."""
    if 0 in shape:
        return tuple(Axis(n) for n in shape)
    rest = [a for a in axes if a.size != 1]
    wanted: Iterator[int] = iter(shape)
    new: list[Axis] = []
    for n in wanted:
        if n == 1:
            new.append(Axis(1))
            continue
        factors = ax.taken(rest, n)
        if factors is not None:
            new.append(ax.product(factors))
            continue
        # Until both sides have as many entries again.
        sizes: list[int] = [n]
        gone: list[Axis] = []
        while not gone or math.prod(sizes) != math.prod(a.size for a in gone):
            if gone and math.prod(sizes) < math.prod(a.size for a in gone):
                sizes.append(next(wanted))
            else:
                gone.append(rest.pop(0))
        for axis in gone:
            axis.spoil("a reshape mixes it with others")
        new += [Axis(m) for m in sizes]
    return tuple(new)
