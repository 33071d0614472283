"""YAML files that people write: read safely, with every key's line."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from evomerge.errors import ConfigurationError, Problem, nearest

Location = tuple[str | int, ...]

NAMES = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")  # what keys may be


@dataclass(frozen=True)
class Document:
    """A parsed file, or a part of it, and where each of its values stands."""

    data: Any
    path: Path | None = None
    lines: dict[Location, int] = field(default_factory=dict)
    at: Location = ()  # where in the file the part stands

    def where(self, location: Location) -> str:
        """`file.yaml:12 searcher.kind`, as exactly as it is known."""
        location = (*self.at, *location)
        line = None
        for length in range(len(location), -1, -1):
            if (line := self.lines.get(location[:length])) is not None:
                break
        dotted = ".".join(str(part) for part in location)
        place = f"{self.path}:{line}" if self.path and line else str(self.path or "")
        return f"{place} {dotted}".strip()

    def part(self, *keys: str | int) -> Document:
        """What stands under the keys, which must be there."""
        data = self.data
        for key in keys:
            data = data[key]
        return Document(data, self.path, self.lines, (*self.at, *keys))

    def without(self, *keys: str) -> Document:
        """The same mapping without some keys."""
        return replace(self, data={k: v for k, v in self.data.items() if k not in keys})


def read_yaml(path: Path) -> Document:
    """Parse a YAML file; tags that make objects, duplicate keys and circles are refused.

    Raises:
        ConfigurationError: the file is missing, not YAML, repeats a key, or holds itself.
    """
    text = _text(path)
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        survey = _Lines(path)
        if node is not None:
            survey.visit(node, (), ())
        if survey.problems:
            raise ConfigurationError(survey.problems)
        return Document(yaml.safe_load(text), path, survey.lines)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        what, hint = str(error.problem), ""
        if mark is not None and (mark.buffer or "")[mark.pointer : mark.pointer + 1] == "\t":
            what, hint = "a tab stands where YAML takes spaces alone", "indent with spaces"
        raise ConfigurationError(Problem(place, f"not valid YAML: {what}", hint)) from None
    except (yaml.YAMLError, ValueError) as error:  # control characters; dates such as 2024-13-45
        what = str(error).splitlines()[0]
        raise ConfigurationError(Problem(str(path), f"not valid YAML: {what}")) from None
    except RecursionError:
        raise ConfigurationError(Problem(str(path), "nested too deeply")) from None


def _text(path: Path) -> str:
    """What stands in a file."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        siblings = (p.name for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else ()
        raise ConfigurationError(
            Problem(str(path), "no such file", nearest(path.name, siblings))
        ) from None
    except OSError as error:
        raise ConfigurationError(Problem(str(path), f"cannot be read: {error.strerror}")) from None
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        what = f"is no text in UTF-8: {error.reason} {content[error.start]:#04x}"
        raise ConfigurationError(Problem(f"{path}:{line}", what)) from None


class _Lines:
    """Notes the line of every value, and every key that stands twice.

    What an alias repeats is surveyed once: aliases may refer to each other, but not to what they
    stand in, which no reader of the data would come to the end of.
    """

    def __init__(self, path: Path) -> None:
        self.lines: dict[Location, int] = {}
        self.problems: list[Problem] = []
        self._path = path
        self._seen: set[int] = set()

    def visit(self, node: yaml.Node, location: Location, around: tuple[int, ...]) -> None:
        """around: the nodes that this one stands in."""
        self.lines.setdefault(location, node.start_mark.line + 1)
        if id(node) in around:
            where = Document(None, self._path, self.lines).where(location)
            self.problems.append(Problem(where, "refers to itself: it would never end"))
            return
        if id(node) in self._seen:
            return
        self._seen.add(id(node))
        around = (*around, id(node))
        if isinstance(node, yaml.MappingNode):
            self._mapping(node, location, around)
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                self.visit(value, (*location, index), around)

    def _mapping(self, node: yaml.MappingNode, location: Location, around: tuple[int, ...]) -> None:
        names: dict[str, int] = {}
        for key, value in node.value:
            line, name = key.start_mark.line + 1, key.value
            if key.tag not in NAMES:  # `no`, `on` and `1` among them
                what = "YAML does not read this key as a name: put it in quotes"
                said = name if isinstance(name, str) else ""
                self.problems.append(Problem(f"{self._path}:{line} {said}".strip(), what))
                continue
            if name in names:
                where = f"{self._path}:{line} {'.'.join(map(str, (*location, name)))}"
                hint = f"first in line {names[name]}"
                self.problems.append(Problem(where, "the key stands twice", hint))
            names.setdefault(name, line)
            self.lines[(*location, name)] = line
            self.visit(value, (*location, name), around)
