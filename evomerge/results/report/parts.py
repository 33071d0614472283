"""What a report is made of: sections of paragraphs, charts, tables and texts.

All texts are as they came: the page escapes them. What goes into a chart's `data` and `layout` has
gone through `marks.plain`, for plotly reads tags there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

Json = dict[str, Any]


@dataclass(frozen=True)
class Text:
    """A paragraph; one with `strong` says what matters most, first."""

    text: str
    strong: str = ""
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Table:
    """Rows of cells; the first of a row is its head."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Figures:
    """The numbers that are looked at first: (what, the number, more of it)."""

    figures: Sequence[tuple[str, str, str]]
    kind: ClassVar[str] = "figures"


@dataclass(frozen=True)
class Code:
    """A text that is shown as it is."""

    title: str
    text: str
    kind: ClassVar[str] = "code"


@dataclass(frozen=True)
class Key:
    """An entry of a legend: a mark, a line, or both, and what they stand for."""

    text: str
    color: str
    symbol: str = ""
    dash: str = ""
    band: bool = False


@dataclass(frozen=True)
class Scale:
    """The legend of colours that stand for numbers: the colours, and what ends and middle are."""

    colors: Sequence[str]
    texts: Sequence[str]


@dataclass(frozen=True)
class Chart:
    """A chart with its legend, and everything that it shows as a table.

    id: in the page. about: what it shows, for those who do not see it. narrow: what of the layout
    is otherwise on a narrow screen. labels: points that are named where there is room for it.
    small: it may stand beside others.
    """

    id: str
    title: str
    about: str
    data: Sequence[Json]
    layout: Json
    table: Table
    keys: Sequence[Key] = ()
    scale: Scale | None = None
    narrow: Mapping[str, Any] | None = None
    labels: Sequence[Json] = ()
    note: str = ""
    small: bool = False
    kind: ClassVar[str] = "chart"

    def drawn(self) -> Json:
        """What the browser needs to draw it."""
        return {
            "id": self.id,
            "data": list(self.data),
            "layout": self.layout,
            "narrow": dict(self.narrow or {}),
            "labels": list(self.labels),
        }


Part = Text | Table | Figures | Code | Chart


@dataclass(frozen=True)
class Section:
    """A part of the report with a heading."""

    id: str
    title: str
    parts: Sequence[Part]

    @property
    def charts(self) -> list[Chart]:
        """Its charts."""
        return [part for part in self.parts if isinstance(part, Chart)]
