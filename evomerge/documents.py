"""YAML files that people write: read safely, with every key's line, and all problems at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from evomerge.errors import ConfigurationError, EvomergeError, Problem, nearest

T = TypeVar("T")
Model = TypeVar("Model", bound=BaseModel)
Location = tuple[str | int, ...]

MISFIT = "evomerge_misfit"  # pydantic's name for what `refuse` raises
NAMES = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")  # what keys may be
SHOWN = 60  # characters of a wrong value that a message repeats


class Strict(BaseModel):
    """Frozen, and strict about keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


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
    except OSError as error:
        raise ConfigurationError(Problem(str(path), f"cannot be read: {error.strerror}")) from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(Problem(str(path), f"is no text in UTF-8: {error}")) from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        lines: dict[Location, int] = {}
        problems: list[Problem] = []
        if node is not None:
            _survey(node, (), path, lines, problems, set())
        if problems:
            raise ConfigurationError(problems)
        return Document(yaml.safe_load(text), path, lines)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigurationError(Problem(place, f"not valid YAML: {error.problem}")) from None
    except (yaml.YAMLError, ValueError) as error:  # control characters; dates such as 2024-13-45
        what = str(error).splitlines()[0]
        raise ConfigurationError(Problem(str(path), f"not valid YAML: {what}")) from None
    except RecursionError:
        raise ConfigurationError(Problem(str(path), "nested too deeply")) from None


def _survey(
    node: yaml.Node,
    location: Location,
    path: Path,
    lines: dict[Location, int],
    problems: list[Problem],
    seen: set[int],
) -> None:
    """Note the line of every value, and every key that stands twice.

    What an alias repeats is surveyed once: aliases may refer to each other, and to themselves.
    """
    lines.setdefault(location, node.start_mark.line + 1)
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        names: set[str] = set()
        for key, value in node.value:
            line, name = key.start_mark.line + 1, key.value
            if key.tag not in NAMES:  # `no`, `on` and `1` among them
                what = "YAML does not read this key as a name: put it in quotes"
                problems.append(
                    Problem(f"{path}:{line} {name if isinstance(name, str) else ''}".strip(), what)
                )
                continue
            if name in names:
                problems.append(Problem(f"{path}:{line} {name}", "the key stands twice"))
            names.add(name)
            lines[(*location, name)] = line
            _survey(value, (*location, name), path, lines, problems, seen)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _survey(value, (*location, index), path, lines, problems, seen)


def parse(model: type[Model], document: Document) -> Model:
    """Validate a document against a pydantic model.

    Raises:
        ConfigurationError: with every problem, its line, and the nearest valid key.
    """
    if not isinstance(document.data, dict):
        raise ConfigurationError(
            Problem(document.where(()), f"expected a mapping{_got(document.data)}")
        )
    try:
        return model.model_validate(document.data)
    except ValidationError as error:
        raise ConfigurationError(problems_of(error, model, document)) from None


def check_options(
    problems: list[Problem],
    document: Document,
    location: tuple[str, ...],
    models: Mapping[str, type[BaseModel]],
    default: str = "",
    noted: Iterable[str] = (),
) -> None:
    """Note what is wrong with the options beside a `kind`.

    An unknown kind is noted elsewhere, and so is what is wrong with the keys in `noted`.
    """
    data: Any = document.data
    for key in location:
        data = data.get(key) if isinstance(data, dict) else None
    kind = data.get("kind", default) if isinstance(data, dict) else None
    if isinstance(kind, str) and kind in models:
        options = document.part(*location).without("kind", *noted)
        collect(problems, partial(parse, models[kind], options))


def collect(problems: list[Problem], action: Callable[[], T]) -> T | None:
    """The action's result, or None with its problems noted."""
    try:
        return action()
    except EvomergeError as error:
        problems += error.problems
        return None


@dataclass(frozen=True)
class Misfit:
    """Something wrong inside a model, with its place below that model."""

    location: Location
    what: str
    hint: str = ""


def refuse(model: BaseModel | type[BaseModel], misfits: Iterable[Misfit]) -> None:
    """Raise all misfits at once; for validators that look at a model as a whole.

    Raises:
        ValidationError: there is one. pydantic joins it with what else it has found.
    """
    details = [
        InitErrorDetails(
            type=PydanticCustomError(MISFIT, "{what}", {"what": m.what, "hint": m.hint}),
            loc=m.location,
            input=None,
        )
        for m in misfits
    ]
    if details:
        kind = model if isinstance(model, type) else type(model)
        raise ValidationError.from_exception_data(kind.__name__, details)


def problems_of(
    error: ValidationError, model: type[BaseModel], document: Document
) -> list[Problem]:
    """The problems of a pydantic error, in the words of this project; one for each place.

    Where several types are allowed, pydantic reports each by itself and marks the place with the
    type's name; such reports are put together.
    """
    found: dict[Location, list[tuple[str, str]]] = {}
    of_types: set[Location] = set()
    for detail in error.errors(include_url=False):
        location, passes_type = _in_data(detail["loc"], detail["type"], document.data)
        what, hint = _in_words(detail, model, location)
        if (what, hint) not in found.setdefault(location, []):
            found[location].append((what, hint))
        if passes_type:
            of_types.add(location)
    problems = []
    for location, reports in found.items():
        if location in of_types and any(
            len(other) > len(location) and other[: len(location)] == location for other in found
        ):
            continue  # a type that was not meant; the one that was has its problem further down
        what, hint = reports[0]
        if len(reports) > 1:
            wanted = [text.partition(", got ")[0].removeprefix("should be ") for text, _ in reports]
            got = what.partition(", got ")[2]
            what = f"should be {' or '.join(wanted)}" + (f", got {got}" if got else "")
        problems.append(Problem(document.where(location), what, hint))
    return problems


def _in_data(location: Location, kind: str, data: Any) -> tuple[Location, bool]:
    """A location less what is not in the data (names of types), and whether there was such."""
    kept: list[str | int] = []
    passes_type = False
    for number, part in enumerate(location):
        is_key = isinstance(data, dict) and part in data
        is_index = isinstance(data, list | tuple) and isinstance(part, int) and part < len(data)
        if is_key or is_index:
            kept.append(part)
            data = data[part]
        elif kind in ("missing", MISFIT) and number == len(location) - 1:
            kept.append(part)
        else:
            passes_type = True
    return tuple(kept), passes_type


def _in_words(detail: Any, model: type[BaseModel], location: Location) -> tuple[str, str]:
    """What a detail says, and a hint."""
    kind = detail["type"]
    if kind == MISFIT:
        return detail["ctx"]["what"], detail["ctx"]["hint"]
    if kind == "extra_forbidden":
        return "unknown key", nearest(str(location[-1]), _keys_at(model, location[:-1]))
    if kind == "missing":
        return "this key is missing", ""
    if kind in ("model_type", "dict_type"):
        return f"should be a mapping{_got(detail['input'])}", ""
    what = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return what + _got(detail["input"]), ""


def _got(value: Any) -> str:
    """`, got 3`; nothing where it would fill the screen."""
    text = repr(value)
    return f", got {text}" if len(text) <= SHOWN else ""


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


def leaves(value: Any, place: str = "") -> dict[str, Any]:
    """Dotted key -> value, for everything in nested mappings."""
    if not isinstance(value, dict):
        return {place: value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= leaves(inner, f"{place}.{key}" if place else str(key))
    return found
