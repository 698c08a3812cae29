"""Fields of (nested) frozen dataclasses by dotted names: listing, parsing and replacing them."""

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass, replace
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")


class RecipeError(Exception):
    """What was asked for does not exist or makes no sense. The message names it, in one line."""


def likely(name: str, names: Iterable[str]) -> str:
    """What a mistyped name may have meant, to end a message with.

    >>> likely("epoch", ("epochs", "batch_size"))
    ' (did you mean epochs?)'
    >>> likely("nonsense", ("epochs", "batch_size"))
    ''
    """
    close = difflib.get_close_matches(name, list(names), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def split_overrides(arguments: Sequence[str]) -> dict[str, str]:
    """`["epochs=5", ...]` to `{"epochs": "5", ...}`."""
    overrides: dict[str, str] = {}
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if not name or not equals:
            raise RecipeError(f"{argument}: expected field=value")
        if name in overrides:
            raise RecipeError(f"{name}: given twice")
        overrides[name] = text
    return overrides


def field_types(instance: Any, prefix: str = "") -> dict[str, Any]:
    """Type of each field of a dataclass instance, by dotted name; empty for anything else."""
    if not is_dataclass(instance) or isinstance(instance, type):
        return {}
    hints = get_type_hints(type(instance))
    types: dict[str, Any] = {}
    for entry in fields(instance):
        nested = field_types(getattr(instance, entry.name), f"{prefix}{entry.name}.")
        types |= nested or {f"{prefix}{entry.name}": hints[entry.name]}
    return types


def replace_fields(instance: T, changes: Mapping[str, Any]) -> T:
    """A copy with fields, given by dotted names, changed."""
    direct = {name: value for name, value in changes.items() if "." not in name}
    inner: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        head, dot, rest = name.partition(".")
        if dot:
            inner.setdefault(head, {})[rest] = value
    for head, nested in inner.items():
        direct[head] = replace_fields(getattr(instance, head), nested)
    return replace(instance, **direct) if direct else instance  # type: ignore[type-var]


def plain_fields(part: Any) -> dict[str, Any]:
    """The fields of a dataclass instance; none of anything else."""
    return asdict(part) if is_dataclass(part) and not isinstance(part, type) else {}


def parse(name: str, kind: Any, text: str) -> Any:
    """A value of the field's type from the text of a command line."""
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        if text not in choices:
            raise RecipeError(f"{name}: expected one of {', '.join(choices)}, got {text!r}")
        return text
    if kind not in _PARSERS:
        raise RecipeError(f"{name}: cannot be given on the command line")
    words, convert = _PARSERS[kind]
    try:
        return convert(text)
    except ValueError:
        raise RecipeError(f"{name}: expected {words}, got {text!r}") from None


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError
    return value


def _boolean(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError
    return text == "true"


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",")) if text else ()


_PARSERS: dict[Any, tuple[str, Callable[[str], Any]]] = {
    int: ("an integer", int),
    float: ("a finite number", _finite),
    bool: ("true or false", _boolean),
    str: ("text", str),
    tuple[int, ...]: ("integers separated by commas", _integers),
}
