"""YAML files that people write: read safely, with every key's line, and all problems at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from evomerge.errors import ConfigurationError, Problem, nearest

Model = TypeVar("Model", bound=BaseModel)
Location = tuple[str | int, ...]


@dataclass(frozen=True)
class Document:
    """A parsed file and where each of its values stands."""

    data: Any
    path: Path | None = None
    lines: dict[Location, int] = field(default_factory=dict)

    def where(self, location: Location) -> str:
        """`file.yaml:12 searcher.kind`, as exactly as it is known."""
        line = None
        for length in range(len(location), -1, -1):
            if (line := self.lines.get(location[:length])) is not None:
                break
        dotted = ".".join(str(part) for part in location)
        place = f"{self.path}:{line}" if self.path and line else str(self.path or "")
        return f"{place} {dotted}".strip()


def read_yaml(path: Path) -> Document:
    """Parse a YAML file; tags that make objects and duplicate keys are refused.

    Raises:
        ConfigurationError: the file is missing, not YAML, or repeats a key.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        siblings = (p.name for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else ()
        raise ConfigurationError(
            Problem(str(path), "no such file", nearest(path.name, siblings))
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(Problem(str(path), f"cannot be read: {error}")) from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        lines: dict[Location, int] = {}
        problems: list[Problem] = []
        if node is not None:
            _survey(node, (), path, lines, problems)
        if problems:
            raise ConfigurationError(problems)
        return Document(yaml.safe_load(text), path, lines)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigurationError(Problem(place, f"not valid YAML: {error.problem}")) from None


def _survey(
    node: yaml.Node,
    location: Location,
    path: Path,
    lines: dict[Location, int],
    problems: list[Problem],
) -> None:
    """Note the line of every value, and every key that stands twice."""
    lines.setdefault(location, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in seen:
                problems.append(Problem(f"{path}:{line} {key.value}", "the key stands twice"))
            seen.add(key.value)
            lines[(*location, key.value)] = line
            _survey(value, (*location, key.value), path, lines, problems)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _survey(value, (*location, index), path, lines, problems)


def parse(model: type[Model], document: Document) -> Model:
    """Validate a document against a pydantic model.

    Raises:
        ConfigurationError: with every problem, its line, and the nearest valid key.
    """
    if not isinstance(document.data, dict):
        raise ConfigurationError(
            Problem(document.where(()), f"expected a mapping, got {document.data!r}")
        )
    try:
        return model.model_validate(document.data)
    except ValidationError as error:
        raise ConfigurationError(problems_of(error, model, document)) from None


def problems_of(
    error: ValidationError, model: type[BaseModel], document: Document
) -> list[Problem]:
    """The problems of a pydantic error, in the words of this project."""
    problems = []
    for detail in error.errors(include_url=False):
        location: Location = detail["loc"]
        hint = ""
        if detail["type"] == "extra_forbidden":
            what = "unknown key"
            hint = nearest(str(location[-1]), _keys_at(model, location[:-1]))
        elif detail["type"] == "missing":
            what = "this key is missing"
        else:
            what = detail["msg"].removeprefix("Value error, ")
            if not isinstance(detail["input"], dict | list):
                what += f", got {detail['input']!r}"
        problems.append(Problem(document.where(location), what, hint))
    return problems


def _keys_at(model: type[BaseModel], location: Location) -> list[str]:
    """The valid keys of the nested model at a location, as far as they can be told."""
    current: type[BaseModel] = model
    for part in location:
        info = current.model_fields.get(str(part))
        inner = _model_in(info.annotation) if info is not None else None
        if inner is None:
            continue  # an index or a free key: the model of the values stays
        current = inner
    return [info.alias or name for name, info in current.model_fields.items()]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The first pydantic model inside a type such as `dict[str, Slot] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        if (found := _model_in(inner)) is not None:
            return found
    return None
