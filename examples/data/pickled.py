"""Pickled dictionaries of strings, numbers, lists and NumPy arrays, read without running anything.

Python's unpickler calls what a file names, and NumPy's reconstructors trust what they are called
with: a few bytes can crash the interpreter or claim gigabytes. Here a file is a list of operations
on a stack of plain values and of the stand-ins below, and each takes no more memory than the bytes
that stand for it. Protocols 2 to 5 are read, as Python 2 and 3 write them.
"""

import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

_BYTES_AN_OPERATION = 48
"""A batch has 3,072 bytes an image, and its label and name take fewer than 64 operations."""

_SPARE_OPERATIONS = 4096
"""For everything in a batch that is not of one image; and for the tiny batches of tests."""


@dataclass
class DType:
    """Stands for a data type: its code, such as `u1`, and its order of bytes."""

    code: str
    order: str = "|"

    def to_numpy(self) -> np.dtype:
        """The type itself, which has to be one of integers."""
        if self.code not in _INTEGER_CODES or self.order not in ("|", "<", ">", "="):
            raise pickle.UnpicklingError("expected arrays of integers, found another type")
        return np.dtype(self.order.replace("|", "=") + self.code)


@dataclass
class Array:
    """Stands for an array: what the file tells of it, unchecked until `to_numpy`."""

    content: Any = None
    dtype: Any = None
    shape: Any = None
    fortran: bool = False

    def to_numpy(self) -> np.ndarray:
        """The array, which shares the memory of the content.

        Raises:
            pickle.UnpicklingError: type, shape and content do not match.
        """
        content, dtype, shape = self.content, self.dtype, self.shape
        if not isinstance(content, bytes | bytearray) or not isinstance(dtype, DType):
            raise pickle.UnpicklingError("expected an array of integers, found another one")
        numbers = dtype.to_numpy()
        if not isinstance(shape, tuple) or len(shape) > 2 or not all(map(_is_size, shape)):
            raise pickle.UnpicklingError("expected an array of one or two sizes above 0")
        if math.prod(shape) * numbers.itemsize != len(content):
            raise pickle.UnpicklingError(
                f"expected the {len(content)} bytes of an array to be those of its shape"
            )
        return np.frombuffer(content, numbers).reshape(shape, order="F" if self.fortran else "C")


def _is_size(number: Any) -> bool:
    return type(number) is int and 0 < number < 2**40


_INTEGER_CODES = ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8")


def load(content: bytes) -> Any:
    """What a pickle holds: plain values, and an `Array` for each array.

    Raises:
        Exception: the content is damaged, or more than such a pickle; of almost any class.
    """
    return _Machine(content).run()


class _Mark:
    """Where on the stack the items of a list, a tuple or a dictionary begin."""


@dataclass(frozen=True)
class _Name:
    """Stands for what a pickle names; `make` is called in its place, with the machine first."""

    make: Callable[..., Any] | None


class _Machine:
    """The operations of a pickle, on a stack."""

    def __init__(self, content: bytes) -> None:
        self.content, self.place = content, 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.encoded = 0

    def run(self) -> Any:
        if self.take(1) != pickle.PROTO or self.number(1) not in range(2, 6):
            raise pickle.UnpicklingError("expected a pickle of protocol 2 to 5")
        for _ in range(len(self.content) // _BYTES_AN_OPERATION + _SPARE_OPERATIONS):
            code = self.take(1)
            if code == pickle.STOP:
                return self.stack.pop()
            if code not in _OPERATIONS:
                raise pickle.UnpicklingError(f"operation {code!r} has no place in such a pickle")
            _OPERATIONS[code](self)
        raise pickle.UnpicklingError("expected fewer operations for so many bytes")

    def take(self, count: int) -> bytes:
        """The next bytes."""
        self.require(count)
        self.place += count
        return self.content[self.place - count : self.place]

    def require(self, count: int) -> None:
        """Refuses to go on where fewer bytes are left."""
        left = len(self.content) - self.place
        if count > left:
            raise pickle.UnpicklingError(f"expected {count} more bytes, found {left}")

    def number(self, size: int, signed: bool = False) -> int:
        return int.from_bytes(self.take(size), "little", signed=signed)

    def sized(self, size: int) -> bytes:
        """Bytes after their count, which is a number of that size."""
        return self.take(self.number(size))

    def line(self) -> str:
        end = self.content.index(b"\n", self.place)
        return self.take(end + 1 - self.place)[:-1].decode("ascii")

    def since_mark(self) -> list[Any]:
        """What is on the stack after the last mark; it and the mark are taken off."""
        for place in range(len(self.stack) - 1, -1, -1):
            if self.stack[place] is _Mark:
                items = self.stack[place + 1 :]
                del self.stack[place:]
                return items
        raise pickle.UnpicklingError("expected a mark")

    def last(self, count: int) -> list[Any]:
        """So many values from the top of the stack, which are taken off."""
        if count > len(self.stack):
            raise pickle.UnpicklingError("expected more values")
        items = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return items

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise pickle.UnpicklingError("expected a list")
        target.extend(items)

    def update(self, items: list[Any]) -> None:
        target = self.stack[-1]
        keys, values = items[::2], items[1::2]
        # Any other key could be nested so deep that its hash overflows the C stack.
        if not isinstance(target, dict) or not all(isinstance(key, str | bytes) for key in keys):
            raise pickle.UnpicklingError("expected a dictionary with strings as keys")
        target.update(zip(keys, values, strict=True))

    def name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise pickle.UnpicklingError("expected names to be strings")
        if (module, name) not in _NAMES:
            raise pickle.UnpicklingError(f"{module[:40]}.{name[:40]} has no place in a CIFAR batch")
        self.stack.append(_NAMES[module, name])

    def call(self) -> None:
        function, arguments = self.last(2)
        if not isinstance(function, _Name) or function.make is None or type(arguments) is not tuple:
            raise pickle.UnpicklingError("expected the parts of an array")
        self.stack.append(function.make(self, *arguments))

    def build(self) -> None:
        """Gives an array or a data type its state; NumPy's begin with a version."""
        state = self.last(1)[0]
        target = self.stack[-1]
        if isinstance(target, DType):
            target.order = _as_str(state[1])
        elif isinstance(target, Array):
            _, target.shape, target.dtype, target.fortran, target.content = state
        else:
            raise pickle.UnpicklingError("expected an array to have a state")


def _as_str(text: Any) -> str:
    """A short string, which Python 2 wrote as bytes."""
    text = text.decode("ascii") if isinstance(text, bytes) and len(text) < 3 else text
    if not isinstance(text, str):
        raise pickle.UnpicklingError("expected a string")
    return text


def _scalar(_: _Machine, dtype: Any, content: Any) -> int:
    return int(Array(content, dtype, ()).to_numpy())


def _from_buffer(_: _Machine, content: Any, dtype: Any, shape: Any, order: Any) -> Array:
    return Array(content, dtype, shape, order == "F")


def _encode(machine: _Machine, text: Any, encoding: Any) -> bytes:
    """How Python 3 writes bytes in protocol 2; each text once, or they could grow without bound."""
    machine.encoded += len(text)
    if encoding != "latin1" or machine.encoded > len(machine.content):
        raise pickle.UnpicklingError("expected bytes as a text of latin1, each written once")
    return text.encode("latin1")


_ARRAY = _Name(lambda _, *arguments: Array())
_EMPTY = _Name(lambda _: b"")
_NAMES: dict[tuple[str, str], _Name] = {
    ("numpy.core.multiarray", "_reconstruct"): _ARRAY,
    ("numpy._core.multiarray", "_reconstruct"): _ARRAY,
    ("numpy.core.multiarray", "scalar"): _Name(_scalar),
    ("numpy._core.multiarray", "scalar"): _Name(_scalar),
    ("numpy.core.numeric", "_frombuffer"): _Name(_from_buffer),
    ("numpy._core.numeric", "_frombuffer"): _Name(_from_buffer),
    ("numpy", "ndarray"): _Name(None),
    ("numpy", "dtype"): _Name(lambda _, code, *arguments: DType(_as_str(code))),
    ("_codecs", "encode"): _Name(_encode),
    ("__builtin__", "bytes"): _EMPTY,
    ("builtins", "bytes"): _EMPTY,
}
"""What a pickle may name, and what stands for it."""


def _push(make: Callable[[_Machine], Any]) -> Callable[[_Machine], None]:
    """An operation that puts a value on the stack."""
    return lambda m: m.stack.append(make(m))


def _remember(number: Callable[[_Machine], int]) -> Callable[[_Machine], None]:
    return lambda m: m.memo.__setitem__(number(m), m.stack[-1])


_DECODE = {
    "bytes": bytes,
    "text": lambda content: content.decode("utf-8", "surrogatepass"),
    "number": lambda content: int.from_bytes(content, "little", signed=True),
}


def _sized(size: int, kind: str) -> Callable[[_Machine], None]:
    """An operation that puts what stands after its count of bytes on the stack."""
    return _push(lambda m: _DECODE[kind](m.sized(size)))


_OPERATIONS: dict[bytes, Callable[[_Machine], Any]] = {
    # A frame is what to read at once; here all is read already.
    pickle.FRAME: lambda m: m.require(m.number(8)),
    pickle.MARK: _push(lambda _: _Mark),
    pickle.NONE: _push(lambda _: None),
    pickle.NEWTRUE: _push(lambda _: True),
    pickle.NEWFALSE: _push(lambda _: False),
    pickle.BININT: _push(lambda m: m.number(4, signed=True)),
    pickle.BININT1: _push(lambda m: m.number(1)),
    pickle.BININT2: _push(lambda m: m.number(2)),
    pickle.LONG1: _sized(1, "number"),
    pickle.LONG4: _sized(4, "number"),
    # Strings of Python 2 are bytes.
    pickle.SHORT_BINSTRING: _sized(1, "bytes"),
    pickle.BINSTRING: _sized(4, "bytes"),
    pickle.SHORT_BINBYTES: _sized(1, "bytes"),
    pickle.BINBYTES: _sized(4, "bytes"),
    pickle.BINBYTES8: _sized(8, "bytes"),
    pickle.BYTEARRAY8: _sized(8, "bytes"),
    pickle.SHORT_BINUNICODE: _sized(1, "text"),
    pickle.BINUNICODE: _sized(4, "text"),
    pickle.BINUNICODE8: _sized(8, "text"),
    pickle.EMPTY_LIST: _push(lambda _: []),
    pickle.EMPTY_DICT: _push(lambda _: {}),
    pickle.EMPTY_TUPLE: _push(lambda _: ()),
    pickle.TUPLE1: _push(lambda m: tuple(m.last(1))),
    pickle.TUPLE2: _push(lambda m: tuple(m.last(2))),
    pickle.TUPLE3: _push(lambda m: tuple(m.last(3))),
    pickle.TUPLE: _push(lambda m: tuple(m.since_mark())),
    pickle.APPEND: lambda m: m.extend(m.last(1)),
    pickle.APPENDS: lambda m: m.extend(m.since_mark()),
    pickle.SETITEM: lambda m: m.update(m.last(2)),
    pickle.SETITEMS: lambda m: m.update(m.since_mark()),
    pickle.BINPUT: _remember(lambda m: m.number(1)),
    pickle.LONG_BINPUT: _remember(lambda m: m.number(4)),
    pickle.MEMOIZE: _remember(lambda m: len(m.memo)),
    pickle.BINGET: _push(lambda m: m.memo[m.number(1)]),
    pickle.LONG_BINGET: _push(lambda m: m.memo[m.number(4)]),
    pickle.GLOBAL: lambda m: m.name(m.line(), m.line()),
    pickle.STACK_GLOBAL: lambda m: m.name(*m.last(2)),
    pickle.REDUCE: lambda m: m.call(),
    pickle.BUILD: lambda m: m.build(),
}
