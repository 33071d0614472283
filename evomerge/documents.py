"""What people write in YAML files, checked against models: all problems at once."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from evomerge.errors import ConfigurationError, EvomergeError, Problem, nearest
from evomerge.yaml_files import Document, Location, read_yaml

__all__ = [
    "Document",
    "Location",
    "Misfit",
    "Strict",
    "check_options",
    "collect",
    "parse",
    "problems_of",
    "read_yaml",
    "refuse",
]

T = TypeVar("T")
Model = TypeVar("Model", bound=BaseModel)

MISFIT = "evomerge_misfit"  # pydantic's name for what `refuse` raises
SHOWN = 60  # characters of a wrong value that a message repeats


class Strict(BaseModel):
    """Frozen, and strict about keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def parse(
    model: type[Model], document: Document, stand_ins: Mapping[str, Any] | None = None
) -> Model:
    """Validate a document against a pydantic model.

    stand_ins: a valid value for each key without which the others could not be looked at together.

    Raises:
        ConfigurationError: with every problem, its line, and the nearest valid key.
    """
    if document.data is None and not document.at:
        needed = [key for key, info in model.model_fields.items() if info.is_required()]
        hint = f"needed: {', '.join(needed)}" if needed else ""
        raise ConfigurationError(Problem(document.where(()), "the file is empty", hint))
    if not isinstance(document.data, dict):
        raise ConfigurationError(
            Problem(document.where(()), f"expected a mapping{_got(document.data)}")
        )
    try:
        return model.model_validate(document.data)
    except ValidationError as error:
        raise ConfigurationError(_all_problems(error, model, document, stand_ins or {})) from None


def _all_problems(
    error: ValidationError,
    model: type[BaseModel],
    document: Document,
    stand_ins: Mapping[str, Any],
) -> list[Problem]:
    """The problems of an error, and those that it kept from being looked for.

    pydantic compares the parts of a model once each is right by itself. So what is wrong is taken
    out, with what it stands in where that cannot do without, and the rest is looked at again.
    """
    problems: list[Problem] = []
    broken: set[Location] = set()
    while True:
        reports = list(_located(error, model, document))
        new = [r for r in reports if not _follows(r, broken) and r.problem not in problems]
        problems += [report.problem for report in new]
        taken = {_up_to_list(report.location) for report in new}
        if not taken - broken - {()}:
            taken = {_up_to_list(report.location)[:-1] for report in reports}
        taken -= broken | {()}
        if not taken:
            return problems
        broken |= taken
        data = _without(document.data, taken)
        gone = {str(location[0]) for location in broken if location}
        data |= {key: value for key, value in stand_ins.items() if key in gone}
        document = replace(document, data=data)
        try:
            model.model_validate(data)
        except ValidationError as again:
            error = again
        else:
            return problems


@dataclass(frozen=True)
class _Report:
    """A problem with its place in the data.

    of_misfit: it comes of comparing parts, and not of the place itself.
    """

    location: Location
    problem: Problem
    of_misfit: bool = False

    @property
    def of_name(self) -> bool:
        """Whether a name is wrong, whatever stands under it."""
        return self.of_misfit and self.problem.hint.startswith(("did you mean", "valid:"))


def _follows(report: _Report, broken: set[Location]) -> bool:
    """Whether a problem comes of what was taken out."""
    location = report.location
    said = f"{report.problem.what} {report.problem.hint.partition(' valid: ')[0]}"
    for gone in filter(None, broken):
        if location[: len(gone)] == gone:
            return True
        if gone[: len(location)] == location and not report.of_name:
            return True
        if gone[-1] in location or f"{gone[-1]!r}" in said or f"`{gone[-1]}`" in said:
            return True
        # What the key was meant to be is now missing, or what could have been given instead.
        meant = (*location[-1:], *_IN_TICKS.findall(said))
        if gone[:-1] == location[:-1] and any(_is_near(key, gone[-1]) for key in meant):
            return True
    return False


_IN_TICKS = re.compile("`(.+?)`")  # a key that a message names


def _is_near(name: str | int, other: str | int) -> bool:
    return bool(difflib.get_close_matches(str(name), [str(other)], cutoff=0.5))


def _up_to_list(location: Location) -> Location:
    """A location above any list: others in the list would change their places."""
    number = next((n for n, part in enumerate(location) if isinstance(part, int)), len(location))
    return location[:number]


def _without(data: Any, locations: Iterable[Location]) -> Any:
    """A copy of nested mappings without what stands at the locations."""
    if not isinstance(data, dict):
        return data
    kept = {}
    for key, value in data.items():
        below = [location[1:] for location in locations if location[:1] == (key,)]
        if () not in below:
            kept[key] = _without(value, below) if below else value
    return kept


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
    """The problems of a pydantic error, in the words of this project; one for each place."""
    return [report.problem for report in _located(error, model, document)]


def _located(
    error: ValidationError, model: type[BaseModel], document: Document
) -> Iterator[_Report]:
    """Each problem with its location in the data.

    Where several types are allowed, pydantic reports each by itself and marks the place with the
    type's name; such reports are put together.
    """
    found: dict[Location, list[tuple[str, str]]] = {}
    of_types: set[Location] = set()
    of_misfits: set[Location] = set()
    for detail in error.errors(include_url=False):
        location, passes_type = _in_data(detail["loc"], detail["type"], document.data)
        what, hint = _in_words(detail, model, location)
        if (what, hint) not in found.setdefault(location, []):
            found[location].append((what, hint))
        if passes_type:
            of_types.add(location)
        if detail["type"] == MISFIT:
            of_misfits.add(location)
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
            # Of a mapping's form nothing is said where something else may stand there, too.
            hints = (hint for text, hint in reports if not text.startswith("should be a mapping"))
            hint = next(filter(None, hints), "")
        problem = Problem(document.where(location), what, hint)
        yield _Report(location, problem, location in of_misfits)


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
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == MISFIT:
        return context["what"], context["hint"]
    if kind == "extra_forbidden":
        return "unknown key", nearest(str(location[-1]), _keys_at(model, location[:-1]))
    if kind == "missing":
        is_value = isinstance(detail["loc"][-1], int)
        return f"this {'value' if is_value else 'key'} is missing", ""
    if kind in _WANTED:
        keys = ", ".join(_keys_at(model, location)) if kind == "model_type" else ""
        hint = f"its keys: {keys}" if keys else ""
        if kind == "dict_type":
            hint = "NAME: VALUE for each"
        return f"should be {_WANTED[kind]}{_got(value)}", hint
    if kind in ("too_short", "too_long") and context["field_type"] == "Tuple":
        wanted = context["min_length" if kind == "too_short" else "max_length"]
        return f"should have {wanted} values, got {len(value)}{_got(value, ': ')}", ""
    what = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if kind == "literal_error":
        return what + _got(value), _nearest_of(str(value), context["expected"])
    return _REASON.sub("", what) + _got(value), ""


_WANTED = {
    "model_type": "a mapping",
    "dict_type": "a mapping",
    "tuple_type": "a list",
    "list_type": "a list",
}
_REASON = re.compile(r", (unable to (parse|interpret)|got a number with a fractional).*")


def _nearest_of(value: str, expected: str) -> str:
    """The nearest of the values that pydantic lists: the list itself stands in what it says."""
    close = difflib.get_close_matches(value, re.findall(r"'([^']*)'", expected), n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else ""


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = SHOWN + 1
_SHORT.maxdict = _SHORT.maxlist = _SHORT.maxtuple = SHOWN


def _got(value: Any, before: str = ", got ") -> str:
    """`, got 3`; nothing where it would fill the screen."""
    text = _SHORT.repr(value)
    return f"{before}{text}" if len(text) <= SHOWN and "..." not in text else ""


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
