"""The library's docstrings, which are plain text, as reStructuredText for Sphinx.

`Args:` and its like become lists of definitions, indented formulas and doctests are set as they are, `names` in
backticks as code. In all other text nothing has a special meaning.
"""

import re
import textwrap
from collections.abc import Iterator
from typing import Any

_SECTION = re.compile(r"(Args|Attributes|Returns|Raises|Example|Source|Yields)(:)(?:\s+(.*))?$")
_ENTRY = re.compile(r"(\*{0,2}\w+(?:, \*{0,2}\w+)*):\s+(.*)$")
_LISTS = ("Args", "Attributes", "Raises")


def converted(lines: list[str]) -> list[str]:
    """A docstring's lines as reStructuredText."""
    return list(_converted(lines))


def _converted(lines: list[str]) -> Iterator[str]:
    for head, body in _sections(lines):
        if not head:
            yield from _prose(body)
        elif head == "Example":
            yield from ("", "**Example**", "", *body, "")
        else:
            yield from ("", f"**{head}**", "")
            yield from _definitions(body) if head in _LISTS else _prose(body)


def _sections(lines: list[str]) -> Iterator[tuple[str, list[str]]]:
    """(name of a section, its lines without their indentation); the name of what comes before is empty."""
    head, body = "", list[str]()
    for line in lines:
        match = _SECTION.match(line)
        # A source's further lines are not indented.
        goes_on = head == "Source" and body[-1].strip()
        indented = line.startswith(" ") or not line.strip() or goes_on
        if match or (head and not indented):
            yield head, _outdented(body)
            head, body = (match[1], [match[3] or ""]) if match else ("", [line])
        else:
            body.append(line)
    yield head, _outdented(body)


def _outdented(lines: list[str]) -> list[str]:
    first = lines[0] if lines and not lines[0].startswith(" ") else None
    rest = textwrap.dedent("\n".join(lines[first is not None :])).split("\n")
    return [first, *rest] if first is not None else rest


def _prose(lines: list[str]) -> Iterator[str]:
    """Paragraphs, and indented blocks as they are."""
    literal = False
    for k, line in enumerate(lines):
        indented = line.startswith("  ")
        if indented and not literal and (k == 0 or not lines[k - 1].strip()):
            literal = True
            yield from ("::", "")
        elif line.strip() and not indented and literal:
            literal = False
            yield ""
        yield line if literal else _escaped(line.strip())
    yield ""


def _definitions(lines: list[str]) -> Iterator[str]:
    """`name: text` with its further lines, each as a definition; other lines as they are said."""
    for line in lines:
        match = _ENTRY.match(line)
        if match:
            yield from ("", f"``{match[1]}``", f"    {_escaped(match[2])}")
        elif line.startswith(" "):
            yield f"    {_escaped(line.strip())}"
        else:
            yield _escaped(line)
    yield ""


def _escaped(text: str) -> str:
    """Text in which only backticks mean something."""
    parts = re.split(r"``?([^`]+)``?", text)
    for k, part in enumerate(parts):
        parts[k] = re.sub(r"([\\*|_])", r"\\\1", part) if k % 2 == 0 else f"``{part}``"
    return "".join(parts)


def _process(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = converted(lines)


def setup(app: Any) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", _process)
    return {"parallel_read_safe": True}
