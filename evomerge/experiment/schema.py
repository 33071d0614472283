"""JSON Schema (draft 2020-12) of the files that people write, for editors that complete and check.

Everything comes from the pydantic models and the tables that read the files, so nothing can drift:
a new searcher, kind, operator or key is in the schema as soon as it is in its table. A schema says
less than `evomerge validate`: not whether files and names exist, nor what goes with what.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from evomerge.experiment.config import ExperimentConfig
from evomerge.experiment.sweep import SweepConfig
from evomerge.fitness import TASKS
from evomerge.fitness.config import FitnessConfig
from evomerge.fitness.estimators import ESTIMATORS
from evomerge.fitness.estimators.kinds import READINGS
from evomerge.merging import OPERATORS
from evomerge.merging.table import POST_STEPS
from evomerge.recipe import Match, Recipe
from evomerge.records import Parameter
from evomerge.search_spaces import SPACES
from evomerge.searchers import SEARCHERS
from evomerge.searchers.scalarised import ScalariseConfig
from evomerge.trackers import TRACKERS

Json = dict[str, Any]
DRAFT = "https://json-schema.org/draft/2020-12/schema"


class _Definitions:
    """What is under `$defs`, by name; each made once."""

    def __init__(self) -> None:
        self.made: Json = {}

    def ref(self, name: str, make: Callable[[], Json]) -> Json:
        """A reference to a definition, made now if it is not there."""
        if name not in self.made:
            self.made[name] = {}  # whoever refers to it while it is made finds it
            self.made[name] = make()
        return {"$ref": f"#/$defs/{name}"}

    def model(self, model: type[BaseModel]) -> Json:
        """The schema of a pydantic model, with those it is made of as definitions."""
        schema = model.model_json_schema(ref_template="#/$defs/{model}")
        for name, part in schema.pop("$defs", {}).items():
            self.made.setdefault(name, _polished(_with_operators(part)))
        whole: Json = _polished(_with_operators(schema))
        return whole


def experiment_schema(defs: _Definitions) -> Json:
    """Of an experiment file, with its space and its fitness in it or named."""
    schema = defs.model(ExperimentConfig)
    properties = schema["properties"]
    match = {"anyOf": [{"type": "string"}, defs.ref("Match", lambda: defs.model(Match))]}
    entry = {"path": {"type": "string", "description": "as without `match`"}, "match": match}
    expert = {
        "anyOf": [
            {"type": "string"},
            {"type": "object", "properties": entry, "required": ["path"]}
            | {"additionalProperties": False},
        ]
    }
    properties["experts"] |= {"additionalProperties": expert}
    for key, make in (("space", space_schema), ("fitness", fitness_schema)):
        whole = defs.ref(key, lambda make=make: make(defs))  # type: ignore[misc]
        named = {"type": "string", "description": "a file, or a name in the catalogue"}
        properties[key] = _described(properties[key], {"anyOf": [named, whole]})
    trackers = {name: (kind.summary, defs.model(kind.Options)) for name, kind in TRACKERS.items()}
    tracker = defs.ref("tracker", lambda: _by_kind("tracker", trackers, defs))
    one = [{"enum": list(TRACKERS)}, tracker]
    several = {"type": "array", "items": {"anyOf": one}}
    properties["trackers"] = _described(properties["trackers"], {"anyOf": [*one, several]})
    searcher = defs.ref("searcher", lambda: _searcher(defs))
    properties["searcher"] = _described(properties["searcher"], searcher)
    return schema


def _searcher(defs: _Definitions) -> Json:
    scalarise = defs.ref("scalarise", lambda: defs.model(ScalariseConfig))
    of_kinds = {
        kind: (searcher.summary, _beside(defs.model(searcher.Options), {"scalarise": scalarise}))
        for kind, searcher in SEARCHERS.items()
    }
    return _by_kind("searcher", of_kinds, defs)


def space_schema(defs: _Definitions) -> Json:
    """Of a search space file."""
    of_kinds = {name: (kind.summary, defs.model(kind.config)) for name, kind in SPACES.items()}
    return _by_kind("space", of_kinds, defs)


def fitness_schema(defs: _Definitions) -> Json:
    """Of a fitness file."""
    schema = defs.model(FitnessConfig)
    properties = schema["properties"]
    tasks = {name: (kind.summary, defs.model(kind.options)) for name, kind in TASKS.items()}
    code = {"pattern": "^python:", "description": "python:file.py:function, with --allow-code"}
    task = _by_kind("task", tasks, defs, default="lm_eval", others=(code,))
    properties["tasks"] |= {"additionalProperties": defs.ref("task", lambda: task)}
    weights = {"type": "object", "additionalProperties": {"type": "number", "exclusiveMinimum": 0}}
    listed = {"type": "array", "items": {"type": "string"}}
    objective = defs.made["ObjectiveConfig"]
    objective["properties"]["tasks"] = _described(
        objective["properties"]["tasks"], {"anyOf": [listed, weights]}
    )
    properties["objectives"] |= {
        "additionalProperties": {
            "anyOf": [
                {"type": "string", "description": "a task's name, for its mean score"},
                {"$ref": "#/$defs/ObjectiveConfig"},
            ]
        }
    }
    estimator = defs.ref("estimator", lambda: _estimator(defs))
    properties["estimator"] = _described(properties["estimator"], estimator)
    return schema


def _estimator(defs: _Definitions) -> Json:
    """Of an estimator; those in another have the options of readings alone."""
    readings = {
        name: (kind.summary, _nested(defs.model(kind.options))) for name, kind in READINGS.items()
    }
    defs.ref("reading", lambda: _by_kind("reading", readings, defs))
    whole = {
        name: (kind.summary, _nested(defs.model(kind.options))) for name, kind in ESTIMATORS.items()
    }
    return _by_kind("estimator", whole, defs, default="full")


def _nested(schema: Json) -> Json:
    for key in ("of", "estimator"):
        if key in schema.get("properties", {}):
            inner = {"$ref": "#/$defs/reading"}
            schema["properties"][key] = _described(schema["properties"][key], inner)
    return schema


def recipe_schema(defs: _Definitions) -> Json:
    """Of a recipe."""
    return defs.model(Recipe)


def sweep_schema(defs: _Definitions) -> Json:
    """Of a sweep."""
    schema = defs.model(SweepConfig)
    properties = schema["properties"]
    experiment = defs.ref("experiment", lambda: experiment_schema(defs))
    named = {"type": "string", "description": "a file, or a name in the catalogue"}
    properties["experiment"] = _described(
        properties["experiment"], {"anyOf": [named, {"type": "object"}]}
    )
    searcher = {"$ref": "#/$defs/searcher"}
    kinds = {"enum": list(SEARCHERS)}
    several = [
        {"type": "object", "additionalProperties": searcher},
        {"type": "array", "items": {"anyOf": [kinds, searcher]}},
    ]
    properties["searchers"] = _described(properties["searchers"], {"anyOf": several})
    keys = defs.made[experiment["$ref"].rpartition("/")[2]]["properties"]
    changed = {k: v for k, v in keys.items() if k not in ("searcher", "seed", "name")}
    properties["change"] |= {"properties": changed, "additionalProperties": False}
    return schema


SCHEMAS: Mapping[str, Callable[[_Definitions], Json]] = {
    "experiment": experiment_schema,
    "space": space_schema,
    "fitness": fitness_schema,
    "recipe": recipe_schema,
    "sweep": sweep_schema,
}


def schema_of(kind: str) -> Json:
    """The schema of a kind of file, one of SCHEMAS."""
    defs = _Definitions()
    schema = SCHEMAS[kind](defs)
    head = {"$schema": DRAFT, "title": f"evomerge: {kind}"}
    # A modeline's or an editor's own key at the top is no mistake of the file.
    return head | schema | {"$defs": dict(sorted(defs.made.items()))}


# --- pieces ---------------------------------------------------------------------------------------


def _by_kind(
    name: str,
    of_kinds: Mapping[str, tuple[str, Json]],
    defs: _Definitions,
    *,
    default: str | None = None,
    others: Iterable[Json] = (),
) -> Json:
    """A mapping whose `kind` decides what else may stand in it.

    default: the kind of a mapping without one. others: further values of `kind`, with any options.
    """
    choices = [{"const": kind, "description": summary} for kind, (summary, _) in of_kinds.items()]
    cases = []
    for kind, (summary, options) in of_kinds.items():
        whole = _beside(options, {"kind": {"const": kind}})
        then = defs.ref(f"{name}_{kind}", lambda s=summary, w=whole: {**w, "description": s})  # type: ignore[misc]
        needed = {} if kind == default else {"required": ["kind"]}
        cases.append({"if": {"properties": {"kind": {"const": kind}}, **needed}, "then": then})
    kinds: Json = {"anyOf": [*choices, *others]}
    if default is not None:
        kinds["default"] = default
    required = {} if default is not None else {"required": ["kind"]}
    return {"type": "object", "properties": {"kind": kinds}, **required, "allOf": cases}


def _beside(schema: Json, keys: Json) -> Json:
    """A mapping's schema with more keys."""
    return {**schema, "properties": {**keys, **schema.get("properties", {})}}


def _described(old: Json, new: Json) -> Json:
    """Another schema in the place of one, with its description and its default."""
    return {**new, **{k: old[k] for k in ("description", "default") if k in old}}


def _polished(schema: Any) -> Any:
    """Without pydantic's titles; what a description says of each key stands with the key."""
    if isinstance(schema, list):
        return [_polished(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {k: _polished(v) for k, v in schema.items() if k != "title" or not isinstance(v, str)}
    properties, text = made.get("properties"), made.get("description")
    if isinstance(properties, dict) and isinstance(text, str):
        made["description"], told = split_description(text, list(properties))
        for key, said in told.items():
            properties[key].setdefault("description", said)
    return made


def split_description(text: str, keys: Iterable[str]) -> tuple[str, dict[str, str]]:
    """A docstring's first words, and what it says of each key (`key: ...` or `key, other: ...`)."""
    names = "|".join(map(re.escape, keys))
    if not names:
        return text, {}
    label = re.compile(rf"(?:^|\n\s*|(?<=[.;]) )((?:{names})(?:, (?:{names}))*): ")
    parts = label.split(text)
    told = {}
    for label_text, said in zip(parts[1::2], parts[2::2], strict=True):
        for key in label_text.split(", "):
            told[key] = " ".join(said.split())
    return " ".join(parts[0].split()), told


def _with_operators(schema: Json) -> Json:
    """A mapping with an `operator`: its names, and the parameters of each in `search`."""
    properties = schema.get("properties", {})
    if "operator" not in properties or not {"search", "parameters"} & properties.keys():
        return schema
    steps = "|".join(map(re.escape, POST_STEPS))
    names = "|".join(map(re.escape, OPERATORS))
    followed = {"pattern": rf"^\s*({names})\s*(\|\s*({steps})\s*)+$"}
    known = [
        {"const": name, "description": operator.summary} for name, operator in OPERATORS.items()
    ]
    may_be_none = "anyOf" in properties["operator"]
    options = [*known, followed, *([{"type": "null"}] if may_be_none else ())]
    schema["properties"]["operator"] = _described(properties["operator"], {"anyOf": options})
    default = properties["operator"].get("default")
    cases = []
    for name, operator in OPERATORS.items():
        parameters = {p.name: {"description": _parameter_text(p)} for p in operator.parameters}
        key = "search" if "search" in properties else "parameters"
        then = {"properties": {key: _only(parameters)}}
        if "fixed" in properties:  # beside parameters: genes by their names, which have dots
            then["properties"]["fixed"] = _only(parameters, others=r"[.*]")
        needed = {} if name == default else {"required": ["operator"]}
        test = {"properties": {"operator": {"const": name}}, **needed}
        cases.append({"if": test, "then": then})
    schema["allOf"] = cases
    return schema


def _only(parameters: Json, others: str = "") -> Json:
    names = {"enum": list(parameters)}
    allowed = {"anyOf": [names, {"pattern": others}]} if others else names
    return {"properties": parameters, "propertyNames": allowed}


def _parameter_text(parameter: Parameter) -> str:
    bounds = ", ".join(parameter.options)
    if parameter.low is not None or parameter.high is not None:
        low = "" if parameter.low is None else f"{parameter.low:g}"
        high = "" if parameter.high is None else f"{parameter.high:g}"
        bounds = f"{low} to {high}"
    kind = parameter.kind + (f": {bounds}" if bounds else "")
    return f"{parameter.help} ({kind}; default {parameter.default})"
