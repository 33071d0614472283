"""What the searchers declare of themselves, for the command line and the docs."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from evomerge.searchers import SEARCHERS

HEAD = """# Searchers and their options

Made by `evomerge searchers --markdown`; [searchers.md](searchers.md) says which to use when. An
experiment names one by its kind, its options beside it: `searcher: {kind: cma_es, sigma0: 0.2}`.
"""
SPACES = {  # what is said of a need
    "genes": "genes",
    "reals": "real genes without constraints",
    "lineages": "lineages",
}


def facts(kind: str) -> dict[str, Any]:
    """One searcher, as JSON."""
    searcher = SEARCHERS[kind]
    return {
        "kind": kind,
        "summary": searcher.summary,
        "searches": space_of(kind),
        "several_objectives": objectives_of(kind),
        "needs": sorted(searcher.needs),
        "options": [
            {"name": name, "values": values, "default": default, "meaning": meaning}
            for name, default, values, meaning in option_rows(kind)
        ],
        "about": about(kind),
    }


def space_of(kind: str) -> str:
    """Which spaces it can search, in words."""
    needs = SEARCHERS[kind].needs
    found = [text for name, text in SPACES.items() if name in needs]
    found = found[1:] if found[:2] == ["genes", SPACES["reals"]] else found
    found += ["that has each expert alone"] if "experts" in needs else []
    return ", ".join(found) or "any"


def objectives_of(kind: str) -> str:
    """How many objectives it searches, in words."""
    searcher = SEARCHERS[kind]
    if "several_objectives" in searcher.needs:
        return "two or more"
    return "any number" if searcher.multi_objective else "one"


def about(kind: str) -> str:
    """What its class says of it: the method, its source, what departs from it."""
    return inspect.getdoc(SEARCHERS[kind]) or ""


def option_rows(kind: str) -> Iterator[tuple[str, str, str, str]]:
    """Name, default, values and meaning of each option."""
    for name, field in SEARCHERS[kind].Options.model_fields.items():
        yield name, _default(field), _values(field), field.description or ""


def markdown() -> str:
    """All of it, as docs/searcher_options.md."""
    parts = [HEAD]
    for kind in SEARCHERS:
        parts.append(f"\n## {kind}\n\n{about(kind)}\n")
        parts.append(f"\nSpaces: {space_of(kind)}. Objectives: {objectives_of(kind)}.\n")
        rows = [
            f"| `{name}` | {default} | {values} | {meaning} |"
            for name, default, values, meaning in (
                tuple(text.replace("|", "\\|") for text in row) for row in option_rows(kind)
            )
        ]
        if rows:
            parts.append("\n| option | default | values | meaning |\n|---|---|---|---|\n")
            parts.append("\n".join(rows) + "\n")
    return "".join(parts)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _values(field: FieldInfo) -> str:
    """The type and the bounds."""
    bounds = []
    for constraint in field.metadata:
        for name, sign in (("ge", "from"), ("gt", "above"), ("le", "to"), ("lt", "below")):
            if (bound := getattr(constraint, name, None)) is not None:
                bounds.append(f"{sign} {bound:g}")
    return " ".join([_type(field.annotation), *bounds])


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return " or ".join(_type(one) for one in arguments if one is not type(None))
    names = {int: "whole number", float: "number", bool: "true or false", str: "name"}
    if annotation in names:
        return names[annotation]
    if origin in (list, tuple):
        return f"list of {_type(arguments[0])}s"
    return "mapping" if origin is dict else str(getattr(annotation, "__name__", annotation))
