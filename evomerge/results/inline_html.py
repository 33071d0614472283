"""Pieces of HTML that need nothing beside them, for notebooks; all text is escaped."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from html import escape

TABLE = (
    '<table style="border-collapse:collapse;font-variant-numeric:tabular-nums">'
    "<thead>{head}</thead><tbody>{rows}</tbody></table>"
)
CELL = '<{tag} style="text-align:{align};padding:2px 10px">{text}</{tag}>'


def table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], *, last_is_bold: bool = False
) -> str:
    """A table; the first column is text, the others are numbers."""
    lines = [
        _row(cells, "th" if last_is_bold and number == len(rows) - 1 else "td")
        for number, cells in enumerate(rows)
    ]
    return TABLE.format(head=_row(heads, "th"), rows="".join(lines))


def image(png: bytes, about: str) -> str:
    """A picture with its text for those who cannot see it; on white in dark notebooks too."""
    data = b64encode(png).decode()
    style = "max-width:100%;height:auto;background:#fff"
    return f'<img alt="{escape(about)}" style="{style}" src="data:image/png;base64,{data}">'


def _row(cells: Sequence[str], tag: str) -> str:
    parts = [
        CELL.format(tag=tag, align="right" if place else "left", text=escape(text))
        for place, text in enumerate(cells)
    ]
    return f"<tr>{''.join(parts)}</tr>"
