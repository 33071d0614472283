"""Text of models, tasks and files inside Markdown: it is shown as it is, and formats nothing."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

_FORMATS = re.compile(r"([\\`*_\[\]#~!${}])")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "://": "&#58;//"}


def one_line(text: object) -> str:
    """The text on one line, without characters that are not seen but do something."""
    kept = (" " if unicodedata.category(c)[0] in "CZ" else c for c in str(text))
    return " ".join("".join(kept).split())


def plain(text: object) -> str:
    """Text between other text."""
    shown = _FORMATS.sub(r"\\\1", one_line(text))
    for raw, entity in _ENTITIES.items():
        shown = shown.replace(raw, entity)
    return shown


def code(text: object) -> str:
    """Text in type of one width."""
    shown = one_line(text)
    marks = "`" * (1 + _longest_run(shown))
    space = " " if not shown or shown[0] == "`" or shown[-1] == "`" else ""
    return f"{marks}{space}{shown}{space}{marks}"


def block(text: str, language: str = "") -> str:
    """Lines as they are, behind a fence that none of them can end."""
    fence = "`" * max(3, 1 + _longest_run(text))
    return f"{fence}{language}\n{text.strip(chr(10))}\n{fence}"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = True) -> str:
    """A table of cells that are Markdown already.

    numbers: all columns but the first hold some, which stand on the right.
    """
    marks = ["---", *("---:" if numbers else "---" for _ in heads[1:])]
    lines = [heads, *rows]
    cells = [" | ".join(cell.replace("|", "\\|") for cell in line) for line in lines]
    return "\n".join(f"| {line} |" for line in (cells[0], " | ".join(marks), *cells[1:]))


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)
