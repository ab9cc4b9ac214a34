"""Small pieces of HTML that a notebook shows: what `_repr_html_` is made of.

Every text is escaped. There is no script, no style sheet and nothing that is loaded; colours are
those of the page, light or dark.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

#: Characters of a table, after which it is cut.
ROOM = 3500
#: Rows that are not folded away.
MOST_ROWS = 12
#: Characters of a cell, or of a line.
CELL, LINE = 48, 300

_TABLE = (
    "border-collapse:separate;border-spacing:.8em .1em;color:inherit;background:transparent;"
    "text-align:right"
)


def text(value: object, length: int = CELL) -> str:
    """A value as escaped text of so many characters at most; fewer where many are escaped."""
    shown = str(value)
    kept = escape(shown[:length])
    if len(shown) <= length and len(kept) <= 2 * length:
        return kept
    cut = length - 1
    while len(kept := escape(shown[:cut])) > 2 * length:
        cut -= max(1, cut // 8)
    return f"{kept}…"


def line(value: object) -> str:
    """A line of text of its own."""
    return f"<div>{text(value, LINE)}</div>"


def pre(value: object, length: int = 1500) -> str:
    """Lines of text as they are."""
    return (
        '<pre style="color:inherit;background:transparent;white-space:pre-wrap;margin:.3em 0">'
        f"{text(value, length)}</pre>"
    )


def table(
    headings: Sequence[object],
    rows: Sequence[Sequence[object]],
    count: int | None = None,
    room: int = ROOM,
) -> str:
    """A table with as many of its rows as there is room for, and how many there are besides.

    Parameters
    ----------
    headings : sequence
        Of the columns; where there are too many the last are left out, which is said too.
    rows : sequence of sequences
    count : int, optional
        How many rows there are, if those given are some of them.
    """
    count = len(rows) if count is None else count
    columns, used = 0, 0
    for heading in headings:
        used += len(text(heading)) + 60
        if columns and used > room / 3:
            break
        columns += 1
    lines: list[str] = []
    used = 0
    for row in rows:
        cells = "".join(f"<td>{text(cell)}</td>" for cell in row[:columns])
        used += len(cells)
        if lines and used > room:
            break
        lines.append(f"<tr>{cells}</tr>")
    head = "".join(
        f'<th style="text-align:right">{text(heading)}</th>' for heading in headings[:columns]
    )
    left = [(count - len(lines), "row"), (len(headings) - columns, "column")]
    said = " and ".join(f"{n} {name}{'s' * (n > 1)}" for n, name in left if n > 0)
    more = f"<div>… {said} more</div>" if said else ""
    return f'<table style="{_TABLE}"><tr>{head}</tr>{"".join(lines)}</table>{more}'


def long_table(headings: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """A table, of which all but the first rows are folded away where there are many."""
    if len(rows) <= MOST_ROWS:
        return table(headings, rows)
    first, others = rows[:MOST_ROWS], rows[MOST_ROWS:]
    return table(headings, first, room=ROOM // 2) + details(
        f"{len(others)} rows more", table(headings, others, room=ROOM // 2)
    )


def details(summary: object, body: str) -> str:
    """HTML that is folded away under a line of text."""
    return f"<details><summary>{text(summary, LINE)}</summary>{body}</details>"


def block(title: object, *parts: str) -> str:
    """A title, and below it HTML."""
    return (
        f'<div style="color:inherit;background:transparent"><div><b>{text(title, LINE)}</b></div>'
        f"{''.join(parts)}</div>"
    )
