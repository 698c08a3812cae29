"""What a compiled program says between devices: the collectives in XLA's text of it.

`compiled.as_text()` is a list of computations, each a list of instructions
`%name = type opcode(operands), attributes`; loops, conditionals, calls and fusions name other
computations in their attributes. A collective belongs to a loop if a chain of such names leads to
it from the body or the condition of a `while`.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

KINDS = (
    "all-reduce",
    "reduce-scatter",
    "all-gather",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)

_CALLS = re.compile(
    r"\b(calls|to_apply|body|condition|true_computation|false_computation"
    r"|branch_computations|called_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,<=]*)\]")
_COUNTER = re.compile(r"\b[us]32\[\]")
_HEADER = re.compile(r"^(ENTRY\s+)?%?([\w.\-]+)\s+\(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT\s+)?%?([\w.\-]+)\s+=\s+(.*)$")


class Collective(NamedTuple):
    """One instruction that moves data between devices.

    Attributes:
        kind: one of `KINDS`; the half of an asynchronous pair that starts it counts as the whole.
        bytes: of the whole array on one device: operand or result, whichever is larger (they differ
            in all-gather and reduce-scatter). What passes a link of a ring of n devices is
            (n - 1) / n of it, twice that in an all-reduce.
        in_loop: whether a `while` runs it.
    """

    kind: str
    bytes: int
    in_loop: bool


class _Instruction(NamedTuple):
    name: str
    type: str
    opcode: str
    operands: list[str]
    attributes: str


def collectives(text: str) -> list[Collective]:
    """All collectives that the program reaches from its entry, in the order of the text of each computation.

    Args:
        text: `jax.jit(f).lower(...).compile().as_text()`.

    Raises:
        ValueError: if there is no entry, or if collectives stand in computations that are not reached:
            the text is then of a form that this reader does not know.
    """
    computations, entry = _parse(text)
    reached: set[str] = set()
    found = list(_visit(computations, entry, False, reached))
    for name in computations.keys() - reached:
        if any(_kind(i.opcode) for i in computations[name]):
            raise ValueError(f"computation {name!r} holds a collective, but nothing calls it.")
    return found


def summary(found: Iterable[Collective]) -> dict[str, dict[str, int]]:
    """kind -> {"count", "bytes", "in_loops"}: numbers of instructions, and bytes of those together."""
    table: dict[str, dict[str, int]] = defaultdict(lambda: {"count": 0, "bytes": 0, "in_loops": 0})
    for one in found:
        row = table[one.kind]
        row["count"] += 1
        row["bytes"] += one.bytes
        row["in_loops"] += one.in_loop
    return dict(table)


def _visit(
    computations: dict[str, list[_Instruction]], name: str, in_loop: bool, reached: set[str]
) -> Iterator[Collective]:
    """The collectives of a computation and of those which it calls, each once per call."""
    reached.add(name)
    instructions = computations[name]
    types = {i.name: i.type for i in instructions}
    scatters = _is_reduce_scatter(instructions)
    for one in instructions:
        if kind := _kind(one.opcode):
            before = sum(_bytes(types[operand]) for operand in one.operands)
            after = _bytes(one.type)
            if one.opcode.endswith("-start") and one.type.startswith("("):
                # The type of a start holds its operands and counters, too.
                after = _bytes(_COUNTER.sub("", one.type)) - before
            yield Collective(
                "reduce-scatter" if scatters and kind == "all-reduce" else kind,
                max(before, after),
                in_loop,
            )
        for attribute, names in _CALLS.findall(one.attributes):
            if one.opcode in ("async-update", "async-done"):
                continue  # they name the computation that their start runs
            if attribute == "to_apply" and one.opcode != "call":
                continue  # the addition of a reduction
            for called in _names(names):
                yield from _visit(computations, called, in_loop or one.opcode == "while", reached)


def _is_reduce_scatter(instructions: list[_Instruction]) -> bool:
    """Whether it is what the TPU compiler makes of a reduce-scatter: a fusion of an all-reduce and a slice of it."""
    root = instructions[-1]
    producers = {i.name: i.opcode for i in instructions}
    return root.opcode == "dynamic-slice" and producers[root.operands[0]] == "all-reduce"


def _kind(opcode: str) -> str | None:
    kind = opcode.removesuffix("-start")
    return kind if kind in KINDS else None


def _parse(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    """(the instructions of each computation, the name of the entry)."""
    computations: dict[str, list[_Instruction]] = {}
    entry = None
    current: list[_Instruction] = []
    for line in text.splitlines():
        if header := _HEADER.match(line):
            current = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif match := _INSTRUCTION.match(line):
            current.append(_instruction(match[1], match[2]))
    if entry is None:
        raise ValueError("the text has no ENTRY computation: it is not that of a compiled program.")
    return computations, entry


def _instruction(name: str, rest: str) -> _Instruction:
    """From `type opcode(operands), attributes`."""
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    kind, rest = rest[:end], rest[end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    operands = rest[opening + 1 : closing - 1]
    names = re.findall(r"%([\w.\-]+)", operands)
    return _Instruction(name, kind, rest[:opening], names, rest[closing:])


def _closing(text: str, start: int) -> int:
    """The index after the parenthesis that closes the one at `start`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.end()
    raise ValueError(f"unbalanced parentheses: {text[start : start + 80]!r}.")


def _names(value: str) -> list[str]:
    return re.findall(r"[\w.\-]+", value)


def _bytes(kind: str) -> int:
    """Bytes of an array type or of a tuple of them; counters and tokens that a start carries along are nothing."""
    total = 0
    for dtype, shape in _ARRAY.findall(kind):
        sizes = [int(n.removeprefix("<=")) for n in shape.split(",") if n]
        total += math.ceil(math.prod(sizes) * _bits(dtype) / 8)
    return total


def _bits(dtype: str) -> int:
    if dtype in ("pred", "token"):
        return {"pred": 8, "token": 0}[dtype]
    if dtype == "bf16":
        return 16
    match = re.match(r"[a-z]+(\d+)", dtype)  # f32, s8, u4, c64, f8e4m3fn
    if match is None:
        raise ValueError(f"unknown dtype {dtype!r} in the text of a compiled program.")
    return int(match[1])
