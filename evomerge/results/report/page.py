"""The page: sections as HTML that escapes all texts, with everything that it needs inside.

A content security policy forbids the browser to load anything, and to run any script but the three
that are in the page, which it names by their sha256.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from evomerge.results.report.parts import Section

FOLDER = Path(__file__).parent
# What a browser draws for plotly's symbols in a legend: paths in a box of 16 x 16.
SHAPES = {
    "circle": "M8 3a5 5 0 1 0 .01 0z",
    "circle-small": "M8 5.5a2.5 2.5 0 1 0 .01 0z",
    "square": "M3.5 3.5h9v9h-9z",
    "diamond": "M8 2l6 6-6 6-6-6z",
    "star": "M8 1l2 5h5.2l-4.2 3.2 1.6 5.3L8 11.300l-4.600 3.200 1.600-5.300L.8 6H6z",
    "triangle-up": "M8 2.500l6 10.500H2z",
    "triangle-down": "M8 13.500l6-10.500H2z",
    "cross": "M6 2h4v4h4v4h-4v4H6v-4H2V6h4z",
    "x": "M4.500 2L8 5.500 11.500 2 14 4.500 10.500 8 14 11.500 11.500 14 8 10.500 4.500 14 2"
    " 11.500 5.500 8 2 4.500z",
    "x-thin": "M3 3l10 10M13 3L3 13",
    "pentagon": "M8 2l6 4.400-2.300 7.100H4.300L2 6.400z",
    "hexagon": "M8 1.500l5.600 3.250v6.500L8 14.500l-5.600-3.250v-6.500z",
    "hourglass": "M3 2.500h10L3 13.500h10z",
}
DASHES = {"solid": "", "dash": "6 3", "dot": "1.500 3", "dashdot": "6 3 1.500 3"}
DASHES |= {
    "longdash": "10 3",
    "longdashdot": "10 3 1.500 3",
    "5px,2px,1px,2px,1px,2px": "5 2 1 2 1 2",
}


def page(title: str, sections: Sequence[Section]) -> str:
    """The whole page."""
    charts = [chart.drawn() for section in sections for chart in section.charts]
    scripts = [plotly(), _file("charts.js")] if charts else []
    return str(
        _template().render(
            title=title,
            sections=sections,
            policy=policy(scripts),
            style=_file("style.css"),
            plotly=plotly() if charts else "",
            script=_file("charts.js"),
            data=as_json(charts),
            has_charts=bool(charts),
            shapes=SHAPES,
            dashes=DASHES,
        )
    )


def policy(scripts: Sequence[str]) -> str:
    """What the browser may do: nothing but run these scripts, and show pictures that they make."""
    hashes = " ".join(f"'sha256-{_hash(text)}'" for text in scripts) or "'none'"
    rules = {
        "default-src": "'none'",
        "script-src": hashes,
        "style-src": "'unsafe-inline'",  # plotly sets sizes and colours of what it draws
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def as_json(value: Any) -> str:
    """JSON that may stand in a script element: nothing in it ends the element or begins another."""
    text = json.dumps(_rounded(value), separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _rounded(value: Any) -> Any:
    """Numbers with seven digits: more are not seen, and the last ones depend on the processor."""
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, Mapping):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(part) for part in value]
    return value


@cache
def plotly() -> str:
    """plotly.js as its Python package ships it."""
    from plotly.offline import get_plotlyjs  # type: ignore[import-untyped]

    text = str(get_plotlyjs())
    if "</script" in text.lower():
        text = text.replace("</script", "<\\/script")
    return text


@cache
def _file(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


@cache
def _hash(text: str) -> str:
    return b64encode(sha256(text.encode()).digest()).decode()


@cache
def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    surroundings = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return surroundings.get_template("page.html")
