"""Text for people."""

from collections.abc import Sequence


def table(rows: Sequence[Sequence[str]], *, left: int) -> str:
    """Rows as lines, `left` columns of them flush left, the others flush right."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(w) if k < left else cell.rjust(w)
            for k, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
