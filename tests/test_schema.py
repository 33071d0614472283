"""JSON schemas of the files: the oracle is the `jsonschema` package, and evomerge's own parser."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from evomerge.errors import ConfigurationError
from evomerge.experiment.config import ExperimentConfig, read_experiment
from evomerge.experiment.schema import SCHEMAS, schema_of, split_description
from evomerge.files import catalogue_folder
from evomerge.fitness import TASKS
from evomerge.fitness.config import FitnessConfig
from evomerge.fitness.estimators import ESTIMATORS
from evomerge.merging import OPERATORS
from evomerge.recipe import Recipe
from evomerge.search_spaces import SPACES
from evomerge.searchers import SEARCHERS
from evomerge.trackers import TRACKERS

sys.path.insert(0, str(Path(__file__).parent))
from wrong_files import CASES, E, F, S, Wrong, good_files

FOLDERS = {
    "search_spaces": "space",
    "fitness": "fitness",
    "experiments": "experiment",
    "experiments/sweeps": "sweep",
}
OF_FILES = {E: "experiment", S: "space", F: "fitness"}
# What a schema cannot say: names that are said elsewhere, files, and comparisons of values.
BEYOND = (
    *("no such", "no model", "no task", "no objective", "has no task", "no run here", "tiny has"),
    *("expected low < high", "leaves the operator's", "the shares sum", "60 items", "merges"),
    *("searches one", "searches lists", "several objectives", "circle", "is a ", "is an "),
    *("own name", "wants to run", "at least one of", "in the catalogue", "stands twice"),
    *("finite number", "must be positive", "UTF-8", "YAML", "itself", "is empty"),
)


@pytest.fixture(scope="module")
def validators() -> dict[str, Draft202012Validator]:
    return {kind: Draft202012Validator(schema_of(kind)) for kind in SCHEMAS}


@pytest.mark.parametrize("kind", SCHEMAS)
def test_a_schema_is_one(kind: str) -> None:
    schema = schema_of(kind)
    Draft202012Validator.check_schema(schema)
    assert json.loads(json.dumps(schema)) == schema
    for ref in _refs(schema):
        assert ref.removeprefix("#/$defs/") in schema["$defs"]
    assert schema == schema_of(kind)  # the same every time


@pytest.mark.parametrize(
    "path", [p for f in FOLDERS for p in sorted(catalogue_folder(f).glob("*.yaml"))],
    ids=lambda path: f"{path.parent.name}-{path.stem}",
)  # fmt: skip
def test_every_catalogue_file_is_valid(
    path: Path, validators: dict[str, Draft202012Validator]
) -> None:
    folder = "experiments/sweeps" if path.parent.name == "sweeps" else path.parent.name
    data = yaml.safe_load(path.read_text())
    if "genome" in data:  # a file of mergekit-evolve's, which has no schema here
        return
    assert _errors(validators[FOLDERS[folder]], data) == []
    if folder == "experiments":
        frozen = yaml.safe_load(read_experiment(path).to_yaml())
        assert _errors(validators["experiment"], frozen) == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_what_the_schema_refuses_evomerge_refuses_and_the_reverse(
    case: Wrong, validators: dict[str, Draft202012Validator]
) -> None:
    for file, kind in OF_FILES.items():
        told = [
            (where, what)
            for where, what, _ in case.problems
            if where.startswith(f"{file}:") and "->" not in where
        ]
        if any(word in what for _, what in told for word in ("YAML", "UTF-8", "itself", "a tab")):
            continue
        within = [what for _, what in told if not any(word in what for word in BEYOND)]
        try:
            data = yaml.safe_load({**good_files(), **case.files}[file])
        except (yaml.YAMLError, ValueError):
            continue
        found = _errors(validators[kind], data)
        if within:
            assert found, f"{file}: the schema accepts what evomerge refuses: {within}"
        elif not told and not isinstance(data, type(None)):
            if any(word in str(case.problems) for word in ("is an experiment", "is a search")):
                continue
            assert not found, f"{file}: the schema refuses what evomerge accepts: {found}"


def test_every_key_and_name_of_the_tables_is_there(
    validators: dict[str, Draft202012Validator],
) -> None:
    schema = schema_of("experiment")
    defs = schema["$defs"]
    assert set(schema["properties"]) == set(ExperimentConfig.model_fields)
    assert set(defs["fitness"]["properties"]) == set(FitnessConfig.model_fields)
    assert set(schema_of("recipe")["properties"]) == set(Recipe.model_fields)
    tables: dict[str, Any] = {
        "searcher": {n: s.Options for n, s in SEARCHERS.items()},
        "space": {n: kind.config for n, kind in SPACES.items()},
        "task": {n: kind.options for n, kind in TASKS.items()},
        "tracker": {n: kind.Options for n, kind in TRACKERS.items()},
        "estimator": {n: kind.options for n, kind in ESTIMATORS.items()},
    }
    for name, models in tables.items():
        for kind, model in models.items():
            extra = {"kind", "scalarise"} if name == "searcher" else {"kind"}
            assert set(defs[f"{name}_{kind}"]["properties"]) == {*model.model_fields, *extra}
    offered = {
        choice.get("const") for choice in defs["space_weights"]["properties"]["operator"]["anyOf"]
    }
    assert set(OPERATORS) <= offered


def test_every_option_of_a_searcher_is_described() -> None:
    defs = schema_of("experiment")["$defs"]
    for kind in SEARCHERS:
        for key, option in defs[f"searcher_{kind}"]["properties"].items():
            assert key in ("kind", "scalarise") or option["description"], (kind, key)


def test_a_docstring_says_what_each_key_is() -> None:
    text = "A pool.\n\nkind: `local`. workers, device: how\n    many, and on what.\nother: no key"
    first, told = split_description(text, ["kind", "workers", "device"])
    assert first == "A pool."
    assert told["kind"] == "`local`."
    assert told["workers"] == told["device"] == "how many, and on what. other: no key"


@pytest.mark.parametrize(
    ("space", "valid"),
    [
        ({"kind": "weights", "operator": "ties", "search": {"density": {"range": [0, 1]}}}, True),
        ({"kind": "weights", "operator": "ties", "search": {"densty": {"range": [0, 1]}}}, False),
        ({"kind": "weights", "operator": "linear", "search": {"density": {}}}, False),
        ({"kind": "weights", "operator": "ties | lines", "search": {"lines_alpha": {}}}, True),
        ({"kind": "weights", "operator": "ties | tise", "search": {"weight": {}}}, False),
        ({"kind": "niches"}, True),
        ({"kind": "niches", "operator": "ties"}, False),
        ({"operator": "ties"}, False),
    ],
)
def test_the_operator_decides_what_can_be_searched(
    space: Any, valid: bool, validators: dict[str, Draft202012Validator]
) -> None:
    assert validators["space"].is_valid(space) is valid


def test_wrong_values_of_all_options_are_refused_by_both(
    validators: dict[str, Draft202012Validator], tmp_path: Path
) -> None:
    """A list of nothing where no option of a searcher takes one."""
    base = yaml.safe_load(str(good_files()[E]))
    for kind, searcher in SEARCHERS.items():
        for key in searcher.Options.model_fields:
            data = {**base, "searcher": {"kind": kind, key: {"a": "b"}}}
            data["space"], data["fitness"] = "per_expert", "tiny_mean"
            path = tmp_path / "experiment.yaml"
            path.write_text(yaml.safe_dump(data))
            assert not validators["experiment"].is_valid(data), (kind, key)
            with pytest.raises(ConfigurationError, match=f"searcher.{key}"):
                read_experiment(path)


def _errors(validator: Draft202012Validator, data: Any) -> list[str]:
    return [f"{list(e.absolute_path)}: {e.message[:200]}" for e in validator.iter_errors(data)]


def _refs(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        if isinstance(schema.get("$ref"), str):
            yield schema["$ref"]
        for value in schema.values():
            yield from _refs(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _refs(value)
