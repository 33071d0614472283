"""A model of a file's part (pydantic) as a Markdown table: key, values, default, meaning."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel

BOUNDS = {
    "minimum": "from",
    "exclusiveMinimum": "above",
    "maximum": "to",
    "exclusiveMaximum": "below",
}
SIMPLE = {
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "string": "text",
    "null": "nothing",
}
Schema = Mapping[str, Any]


def table(names: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    lines = [list(names)]
    lines += [["---"] * len(lines[0]), *([cell.replace("|", "\\|") for cell in r] for r in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def keys_table(
    model: type[BaseModel],
    skip: Iterable[str] = ("kind",),
    known: Mapping[str, str] | None = None,
) -> str:
    """The keys of a part of a file.

    known: what keys mean that the model itself says nothing of.
    """
    schema = model.model_json_schema()
    meanings = {**(known or {}), **meanings_of(model)}
    rows = []
    for name, field in schema.get("properties", {}).items():
        if name not in skip:
            required = name in schema.get("required", ())
            values = values_of(field, schema.get("$defs", {}))
            default = "required" if required else default_of(field)
            text = " ".join(str(field.get("description") or meanings.get(name, "")).split())
            rows.append((f"`{name}`", values, default, text))
    return table(("key", "values", "default", "meaning"), rows) if rows else "No keys.\n"


def parts_of(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """The models that stand below its keys, each once."""
    seen: list[type[BaseModel]] = []
    todo: list[Any] = [field.annotation for field in model.model_fields.values()]
    while todo:
        one = todo.pop(0)
        if inspect.isclass(one) and issubclass(one, BaseModel):
            if one not in seen:
                seen.append(one)
                yield one
                todo += [field.annotation for field in one.model_fields.values()]
        else:
            todo += [inner for inner in getattr(one, "__args__", ()) if inner is not Ellipsis]


def title_of(name: str) -> str:
    """A part's title: `BudgetConfig` is called Budget."""
    return name.removesuffix("Config")


def summary_of(model: type[BaseModel]) -> str:
    """The first paragraph of its text."""
    return " ".join((inspect.getdoc(model) or "").split("\n\n", 1)[0].split())


def meanings_of(model: type[BaseModel]) -> dict[str, str]:
    """Key -> what the class's text says of it: `key: ...` or `key, other: ...`."""
    found: dict[str, str] = {}
    for owner in reversed(model.__mro__):
        if not issubclass(owner, BaseModel) or owner is BaseModel:
            continue
        text = inspect.cleandoc(owner.__doc__ or "")
        names = "|".join(map(re.escape, model.model_fields)) or "-"
        starts = list(re.finditer(rf"(?<![\w`])((?:{names})(?:, (?:{names}))*): ", text))
        ends = [*(start.start() for start in starts[1:]), len(text)]
        for start, end in zip(starts, ends, strict=False):  # none has one end
            said = text[start.end() : end].split("\n\n", 1)[0].strip().rstrip(".;")
            for name in start[1].split(", "):
                found[name] = said
    return found


def comments_of(text: str) -> dict[str, str]:
    """Key -> the comment behind it, in an annotated example."""
    found = re.findall(r"^([a-z_]+):.*? # (.+)$", text, re.MULTILINE)
    return {key: comment.strip() for key, comment in found}


def default_of(field: Schema) -> str:
    """The default, as it would stand in a file."""
    default = field.get("default")
    if default is None or default in ([], {}, ""):
        return "-"
    if isinstance(default, dict):
        return "see below"
    text = default if isinstance(default, str) else json.dumps(default, ensure_ascii=False)
    return f"`{text}`"


def values_of(field: Schema, definitions: Mapping[str, Schema]) -> str:
    """What may stand there, in words."""
    if "$ref" in field:
        name = field["$ref"].rsplit("/", 1)[-1]
        return _referred(name, definitions[name], definitions)
    if "anyOf" in field:
        told = [values_of(one, definitions) for one in field["anyOf"] if one.get("type") != "null"]
        return " or ".join(dict.fromkeys(told))
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return ", ".join(f"`{one}`" for one in field["enum"])
    kind = field.get("type")
    if kind == "array":
        items = field.get("prefixItems")
        if items:
            return f"list of {len(items)}"
        inner = values_of(field.get("items", {}), definitions)
        return f"list of {inner}"
    if kind == "object":
        inner = field.get("additionalProperties")
        return f"name -> {values_of(inner, definitions)}" if isinstance(inner, dict) else "mapping"
    if kind is None:
        return "anything"
    bounds = [f"{word} {_bound(field[key])}" for key, word in BOUNDS.items() if key in field]
    return " ".join([SIMPLE[kind], *bounds])


def _bound(value: float) -> str:
    """A power of two as such: 4294967296 tells nobody anything."""
    whole = int(value)
    if whole == value and whole > 10**6 and whole & (whole - 1) == 0:
        return f"2^{whole.bit_length() - 1}"
    return f"{value:g}"


def _referred(name: str, schema: Schema, definitions: Mapping[str, Schema]) -> str:
    if name == "SpaceConfig":
        return "[a space](spaces.md)"
    if schema.get("type") == "object":
        title = title_of(name)
        return f"[{title}](#{title.lower()})"
    return values_of(schema, definitions)
