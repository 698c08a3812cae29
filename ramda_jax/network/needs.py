"""Which entries of every value are not zero, and which of them anybody needs: what compaction keeps.

Forward: an entry is *zero* if it is so for every input, because of entries of weights that are zero. Backward from the
results: an entry is *needed* if a result depends on it through factors that are not zero. Kept along an axis are the
indices at which anything is needed and not zero.

Only axes that come from parameters are ever cut: batches, words and pixels may be of another number in the next call.

What a loop carries from one turn to the next has one shape: an entry of it is zero if it is before the first turn and after
each (the least fixed point), and needed if it is in any turn. A loop over stacked parameters has every slice's own zeros:
each turn is looked at by itself, and may keep indices of its own; as many as the turn that needs most.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ramda_jax.network import masks as rules
from ramda_jax.network.flat import (
    Atom,
    Constant,
    Equation,
    Flat,
    carry_bounds,
    programs,
    while_bounds,
)
from ramda_jax.network.masks import Cut, Mask

# Indices that are kept along one axis: (number kept,), or (slices, number kept) where each slice of a stack has its own;
# None: all.
Indices = np.ndarray | None
Keep = tuple[Indices, ...]

# Along every axis at which indices something is needed, (size,) or (slices, size); None if the axis may not be cut.
Vectors = tuple[np.ndarray | None, ...]


class Found(NamedTuple):
    """What an analysis found of one program.

    Attributes:
      values: of every value.
      inner: of the loops, by the place of their equation.
    """

    values: list[Vectors]
    inner: dict[int, Inner]


class Inner(NamedTuple):
    """What was found of a loop, or of branches.

    Attributes:
      programs: of each program in it, turn by turn if each has its own zeros, else once.
      carry: of what is carried.
    """

    programs: tuple[list[Found], ...]
    carry: list[Vectors]


class Plan(NamedTuple):
    """What to make of one program.

    Attributes:
      keeps: of every value, by its number.
      cuts: which of its axes could be cut.
      inner: of the loops, by the place of their equation.
    """

    keeps: list[Keep]
    cuts: list[Cut]
    inner: dict[int, InnerPlan]


class InnerPlan(NamedTuple):
    """What to make of a loop, or of branches.

    Attributes:
      programs: of each program in it.
      carry: of what is carried.
      sliced: whether every turn keeps indices of its own.
    """

    programs: tuple[Plan, ...]
    carry: list[Keep]
    sliced: bool


def plan(flat: Flat, masks: Sequence[Mask], cuts: Sequence[Cut], multiple_of: int = 1) -> Plan:
    """What to keep of every value of a program all of whose results are needed.

    Args:
      flat: the program.
      masks: of each input, which entries are not zero.
      cuts: of each input, which axes may be cut.
      multiple_of: the number of indices kept is rounded up to a multiple of this, if there are as many.
    """
    stacked = _stacked(
        flat, [number for number, cut in zip(flat.inputs, cuts, strict=True) if any(cut)]
    )
    needs = Needs(flat, masks, cuts, stacked)
    needs.need([np.ones(mask.shape, bool) for mask, _ in needs.outputs()])
    return _planned([needs.found()], multiple_of)


def _planned(founds: Sequence[Found], multiple_of: int) -> Plan:
    """What to make of a program that runs as often as it was looked at."""
    together = lambda values: tuple(
        _indices(column, multiple_of) for column in zip(*values, strict=True)
    )
    keeps = [together(values) for values in zip(*(f.values for f in founds), strict=True)]
    inner = {}
    for place, first in founds[0].inner.items():
        each = [f.inner[place] for f in founds]
        # Turns that differ within turns that differ are not told apart: then there is one turn here.
        turns = [
            first.programs[k] if len(founds) == 1 else [i.programs[k][0] for i in each]
            for k in range(len(first.programs))
        ]
        inner[place] = InnerPlan(
            tuple(_planned(t, multiple_of) for t in turns),
            [together(values) for values in zip(*(i.carry for i in each), strict=True)],
            len(founds) == 1 and len(turns[0]) > 1,
        )
    cuts = [tuple(v is not None for v in values) for values in founds[0].values]
    return Plan(keeps, cuts, inner)


def _indices(vectors: Sequence[np.ndarray | None], multiple_of: int) -> Indices:
    """The indices to keep: as many in every slice, and no fewer than any needs.

    Those added are the first that would have gone. They do no harm: what is zero is computed to be zero, and what nobody
    needs is multiplied by zero.
    """
    given = [v for v in vectors if v is not None]
    if not given:
        return None
    rows = np.concatenate([np.atleast_2d(v) for v in given])
    size = rows.shape[1]
    longest = int(rows.sum(axis=1).max(initial=0))
    wanted = min(-(-longest // multiple_of) * multiple_of, size)
    if wanted == size:
        return None
    # Stable: what is needed first, in order, then the others, in order.
    chosen = np.sort(np.argsort(~rows, axis=1, kind="stable")[:, :wanted], axis=1)
    return chosen[0] if (chosen == chosen[:1]).all() else chosen


def _stacked(flat: Flat, parameters: Sequence[int]) -> frozenset[int]:
    """The parameters, or copies of them in another dtype, that only loops read, slice by slice."""
    copies = set(parameters)
    for e in flat.equations:
        if e.name in _COPIES and e.operands[0] in copies:
            copies.update(e.results)
    bad = {atom for atom in flat.outputs if not isinstance(atom, Constant)}
    for e in reversed(flat.equations):
        last = carry_bounds(e.equation)[1] if e.name == "scan" else len(e.operands)
        if e.name in _COPIES and not bad.intersection(e.results):
            last = 0
        bad.update(atom for atom in e.operands[:last] if not isinstance(atom, Constant))
    return frozenset(n for n in copies - bad if flat.shapes[n])


_COPIES = ("convert_element_type", "copy", "reduce_precision")


class Needs:
    """The analysis of one program: forward when it is made, then backward by `need`.

    Args:
      flat: the program.
      masks: of each input, which entries are not zero.
      cuts: of each input, which axes may be cut.
      stacked: values whose slices along the first axis are looked at one by one.
    """

    def __init__(
        self,
        flat: Flat,
        masks: Sequence[Mask],
        cuts: Sequence[Cut],
        stacked: frozenset[int] = frozenset(),
    ) -> None:
        self.flat = flat
        self.stacked = stacked
        self.nonzero: dict[int, Mask] = dict(zip(flat.inputs, masks, strict=True))
        self.cuts: dict[int, Cut] = dict(zip(flat.inputs, cuts, strict=True))
        self.loops: dict[int, _Scan | _While | _Branches] = {}
        for place, equation in enumerate(flat.equations):
            for number, (mask, cut) in zip(equation.results, self._made(place), strict=True):
                self.nonzero[number], self.cuts[number] = mask, cut
        self.needed = {n: np.zeros(mask.shape, bool) for n, mask in self.nonzero.items()}

    def outputs(self) -> list[tuple[Mask, Cut]]:
        """Of every result: which entries are not zero, and which axes may be cut."""
        return [(self._mask(atom), self._cut(atom)) for atom in self.flat.outputs]

    def need(self, wanted: Sequence[Mask]) -> None:
        """Go back from what is wanted of the results."""
        for atom, mask in zip(self.flat.outputs, wanted, strict=True):
            self._need(atom, mask)
        for place in reversed(range(len(self.flat.equations))):
            self._backward(place)

    def inputs(self) -> list[Mask]:
        """What is needed of every input."""
        return [self.needed[n] for n in self.flat.inputs]

    def found(self) -> Found:
        """Along every axis, at which indices anything is needed."""
        values = [self._vectors(n) for n in range(len(self.flat.shapes))]
        return Found(values, {place: loop.found for place, loop in self.loops.items()})

    def _vectors(self, number: int) -> Vectors:
        if number not in self.stacked:
            return _vectors(self.needed[number], self.cuts[number])
        mask, cut = self.needed[number], self.cuts[number]
        slices = [_vectors(mask[k], cut[1:]) for k in range(len(mask))]
        columns = zip(*slices, strict=True)
        return (None, *(None if c[0] is None else np.stack(c) for c in columns))

    # Reading.

    def _mask(self, atom: Atom) -> Mask:
        if isinstance(atom, Constant):
            if jax.dtypes.issubdtype(getattr(atom.value, "dtype", np.float32), jax.dtypes.prng_key):
                return np.ones(np.shape(atom.value), bool)
            return np.asarray(np.asarray(atom.value) != 0)
        return self.nonzero[atom]

    def _cut(self, atom: Atom) -> Cut:
        if isinstance(atom, Constant):
            return (False,) * len(np.shape(atom.value))
        return self.cuts[atom]

    def _need(self, atom: Atom, mask: Mask) -> None:
        if not isinstance(atom, Constant):
            self.needed[atom] = self.needed[atom] | (mask & self.nonzero[atom])

    # Forward and backward.

    def _made(self, place: int) -> list[tuple[Mask, Cut]]:
        equation = self.flat.equations[place]
        masks = [self._mask(a) for a in equation.operands]
        cuts = [self._cut(a) for a in equation.operands]
        if equation.name not in _LOOPS:
            return rules.made(
                equation, masks, cuts, [self.flat.shapes[n] for n in equation.results]
            )
        stacks = [isinstance(a, int) and a in self.stacked for a in equation.operands]
        self.loops[place] = _LOOPS[equation.name](equation, masks, cuts, stacks)
        return self.loops[place].results

    def _backward(self, place: int) -> None:
        equation = self.flat.equations[place]
        wanted = [self.needed[n] for n in equation.results]
        if not any(w.any() for w in wanted) and place not in self.loops:
            return
        if place in self.loops:
            asked = self.loops[place].asked(wanted)
        else:
            masks = [self._mask(a) for a in equation.operands]
            asked = rules.asked(equation, wanted, masks, [self._cut(a) for a in equation.operands])
        for atom, mask in zip(equation.operands, asked, strict=True):
            self._need(atom, mask)


def _vectors(mask: Mask, cut: Cut) -> Vectors:
    found: list[np.ndarray | None] = []
    for axis, yes in enumerate(cut):
        others = tuple(d for d in range(mask.ndim) if d != axis)
        found.append(mask.any(axis=others) if yes else None)
    return tuple(found)


def _either(left: Sequence[Any], right: Sequence[Any]) -> list[Any]:
    return [a | b for a, b in zip(left, right, strict=True)]


def _either_cut(left: Sequence[Cut], right: Sequence[Cut]) -> list[Cut]:
    pairs = zip(left, right, strict=True)
    return [tuple(x or y for x, y in zip(a, b, strict=True)) for a, b in pairs]


def _fixed(step: Callable[[Any], Any], start: Any) -> Any:
    """Where a growing sequence ends."""
    while True:
        after = step(start)
        pairs = zip(jax.tree.leaves(after), jax.tree.leaves(start), strict=True)
        if all(np.array_equal(a, b) for a, b in pairs):
            return after
        start = after


def _grown(body: Callable[[list[Mask], list[Cut]], Any], masks: Any, cuts: Any) -> Any:
    """What is carried, from what it is before the first turn; `body`: what it is after one."""

    def turn(state: Any) -> Any:
        made = body(*state)
        n = len(state[0])
        masks, cuts = [m for m, _ in made[:n]], [c for _, c in made[:n]]
        return _either(state[0], masks), _either_cut(state[1], cuts)

    return _fixed(turn, (list(masks), list(cuts)))


class _Scan:
    """A loop over slices: (constants, carried, slices) to (carried, slices)."""

    found: Inner

    def __init__(
        self, equation: Equation, masks: Sequence[Mask], cuts: Sequence[Cut], stacks: Sequence[bool]
    ) -> None:
        (self.flat,) = programs(equation.equation)
        self.first, self.last = carry_bounds(equation.equation)
        self.masks, self.cuts = list(masks), list(cuts)
        own = [m for m, stack in zip(masks, stacks, strict=True) if stack]
        each = any((m != m[:1]).any() for m in own[:]) and len(own[0]) > 1
        self.turns: tuple[int | None, ...] = tuple(range(len(own[0]))) if each else (None,)
        carry = slice(self.first, self.last)

        def made(masks: list[Mask], cuts: list[Cut]) -> list[tuple[Mask, Cut]]:
            self.masks[carry], self.cuts[carry] = masks, cuts
            outputs = [self._body(turn).outputs() for turn in self.turns]
            self.made = outputs
            results = outputs[0]
            for other in outputs[1:]:
                pairs = zip(results, other, strict=True)
                results = [(a | b, c) for (a, c), (b, _) in pairs]
            return results

        self.masks[carry], self.cuts[carry] = _grown(made, masks[carry], cuts[carry])
        n = self.last - self.first
        self.results = list(zip(self.masks[carry], self.cuts[carry], strict=True))
        length = equation.equation.params["length"]
        for k, (_, cut) in enumerate(self.made[0][n:], n):
            slices = [made[k][0] for made in self.made]
            whole = (
                np.stack(slices) if each else np.broadcast_to(slices[0], (length, *slices[0].shape))
            )
            self.results.append((whole, (False, *cut)))

    def _slice(self, mask: Mask, turn: int | None) -> Mask:
        return mask.any(axis=0) if turn is None else mask[turn]

    def _body(self, turn: int | None) -> Needs:
        slices = [self._slice(mask, turn) for mask in self.masks[self.last :]]
        cuts = [cut[1:] for cut in self.cuts[self.last :]]
        return Needs(
            self.flat, [*self.masks[: self.last], *slices], [*self.cuts[: self.last], *cuts]
        )

    def asked(self, wanted: Sequence[Mask]) -> list[Mask]:
        n = self.last - self.first
        founds: list[Found] = []
        inputs: list[list[Mask]] = []

        def turns(needed: list[Mask]) -> list[Mask]:
            founds.clear()
            inputs.clear()
            for turn in reversed(self.turns):
                body = self._body(turn)
                body.need([*needed, *(self._slice(mask, turn) for mask in wanted[n:])])
                founds.insert(0, body.found())
                inputs.insert(0, body.inputs())
                needed = _either(needed, inputs[0][self.first : self.last])
            return needed

        carry = _fixed(turns, list(wanted[:n]))
        cuts = self.cuts[self.first : self.last]
        self.found = Inner(
            (list(founds),), [_vectors(m, c) for m, c in zip(carry, cuts, strict=True)]
        )
        asked = [np.any([i[k] for i in inputs], axis=0) for k in range(self.first)]
        asked += carry
        for k in range(self.last, len(self.masks)):
            slices = np.stack([i[k] for i in inputs])
            asked.append(np.broadcast_to(slices, self.masks[k].shape))
        return asked


class _While:
    """A loop until a condition is met: (its constants, the body's, carried) to what is carried."""

    found: Inner

    def __init__(
        self, equation: Equation, masks: Sequence[Mask], cuts: Sequence[Cut], stacks: Sequence[bool]
    ) -> None:
        self.condition, self.body = programs(equation.equation)
        self.first, self.last = while_bounds(equation.equation)
        constants, own = masks[self.first : self.last], cuts[self.first : self.last]
        needs = lambda masks, cuts: Needs(self.body, [*constants, *masks], [*own, *cuts])
        made = lambda masks, cuts: needs(masks, cuts).outputs()
        carry, cut = _grown(made, masks[self.last :], cuts[self.last :])
        self.results = list(zip(carry, cut, strict=True))
        self.turn = lambda: needs(carry, cut)
        self.check = lambda: Needs(
            self.condition, [*masks[: self.first], *carry], [*cuts[: self.first], *cut]
        )

    def asked(self, wanted: Sequence[Mask]) -> list[Mask]:
        check, n = self.check(), self.last - self.first
        check.need([np.ones((), bool)])
        body = self.turn()

        def turn(needed: list[Mask]) -> list[Mask]:
            body.need(needed)
            return _either(needed, body.inputs()[n:])

        carry = _fixed(turn, _either(wanted, check.inputs()[self.first :]))
        vectors = [_vectors(m, c) for m, (_, c) in zip(carry, self.results, strict=True)]
        self.found = Inner(([check.found()], [body.found()]), vectors)
        return [*check.inputs()[: self.first], *body.inputs()[:n], *carry]


class _Branches:
    """One of several programs: (which, operands) to results."""

    found: Inner

    def __init__(
        self, equation: Equation, masks: Sequence[Mask], cuts: Sequence[Cut], stacks: Sequence[bool]
    ) -> None:
        self.branches = [Needs(flat, masks[1:], cuts[1:]) for flat in programs(equation.equation)]
        outputs = [branch.outputs() for branch in self.branches]
        self.results = outputs[0]
        for other in outputs[1:]:
            one, two = (
                [[r[k] for r in results] for k in (0, 1)] for results in (self.results, other)
            )
            both = (_either(one[0], two[0]), _either_cut(one[1], two[1]))
            self.results = list(zip(*both, strict=True))

    def asked(self, wanted: Sequence[Mask]) -> list[Mask]:
        for branch in self.branches:
            branch.need(wanted)
        self.found = Inner(tuple([branch.found()] for branch in self.branches), [])
        inputs = [branch.inputs() for branch in self.branches]
        return [np.ones((), bool), *(np.any(list(c), axis=0) for c in zip(*inputs, strict=True))]


_LOOPS: dict[str, Any] = {"scan": _Scan, "while": _While, "cond": _Branches}
