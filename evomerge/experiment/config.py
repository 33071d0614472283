"""What an experiment file may say, and the reading of it with everything that it refers to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    field_validator,
    model_validator,
)

from evomerge import trackers as tracker_table
from evomerge.documents import (
    Document,
    Misfit,
    Strict,
    check_options,
    collect,
    parse,
    read_yaml,
    refuse,
)
from evomerge.errors import ConfigurationError, Problem, nearest
from evomerge.experiment.calibration_config import CalibrationConfig
from evomerge.experiment.file_kinds import check_kind
from evomerge.experiment.mergekit_genome import is_evolve_file
from evomerge.experiment.paths import (
    absolute,
    absolute_models,
    absolute_texts,
    absolute_tracker,
    find_in_catalogue,
)
from evomerge.fitness.config import FitnessConfig, pools_by_content, read_fitness
from evomerge.fitness.options import needs_code
from evomerge.pools import PoolConfig
from evomerge.recipe import UNION, DType, Match
from evomerge.records import Budget, Objective
from evomerge.search_spaces import parse_space
from evomerge.search_spaces.config import SpaceConfig
from evomerge.search_spaces.limits import LimitsConfig
from evomerge.search_spaces.niches import NichesConfig
from evomerge.searchers import OPTIONS, SEARCHERS
from evomerge.searchers.scalarised import ScalariseConfig
from evomerge.trackers import TrackerConfig

OTHERWISE = "call the expert otherwise"


class BudgetConfig(Strict):
    """When a search stops: whatever comes first.

    patience: so many candidates without a new best one that is surely better.
    target: what a candidate has surely reached: objective -> value, in the user's own units, or
        one number where there is one objective.
    """

    candidates: int | None = Field(default=None, ge=1)
    item_evaluations: int | None = Field(default=None, ge=1)
    hours: float | None = Field(default=None, gt=0)
    patience: int | None = Field(default=None, ge=1)
    target: float | dict[str, float] | None = None

    @model_validator(mode="after")
    def _some(self) -> BudgetConfig:
        if all(value is None or value == {} for value in dict(self).values()):
            known = ", ".join(type(self).model_fields)
            raise ValueError(f"at least one of {known} is needed")
        return self

    def budget(self) -> Budget:
        """The same, as the loop reads it."""
        return Budget(self.candidates, self.item_evaluations, self.hours, self.patience)

    def reached_at(self, objectives: Sequence[Objective]) -> dict[str, float]:
        """The target, objective -> value, everything maximised.

        Raises:
            ConfigurationError: an objective that there is not, or one number for several.
        """
        if self.target is None:
            return {}
        names = [objective.name for objective in objectives]
        if not isinstance(self.target, dict):
            if len(objectives) > 1:
                what = f"one number, and there are several objectives: {', '.join(names)}"
                hint = "say it for each that matters: {objective: value}"
                raise ConfigurationError(Problem("budget.target", what, hint))
            return {names[0]: objectives[0].sign * self.target}
        if unknown := [name for name in self.target if name not in names]:
            raise ConfigurationError(
                Problem(f"budget.target.{name}", f"no objective {name!r}", nearest(name, names))
                for name in unknown
            )
        signs = {objective.name: objective.sign for objective in objectives}
        return {name: signs[name] * value for name, value in self.target.items()}


class SearcherConfig(BaseModel):
    """The searcher's kind; what stands beside it are its own options.

    scalarise: makes one objective of several, for searchers of one.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    kind: str
    scalarise: ScalariseConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_mapping_with_kind(cls, data: Any) -> Any:
        if isinstance(data, str):
            hint = f"write {{kind: {data}}}" if data in SEARCHERS else nearest(data, SEARCHERS)
            refuse(cls, [Misfit((), f"should be a mapping, got {data!r}", hint)])
        if isinstance(data, Mapping) and "kind" not in data:
            hint = nearest("", SEARCHERS)
            refuse(cls, [Misfit(("kind",), "this key is missing", hint)])
        return data

    @model_validator(mode="after")
    def _known(self) -> SearcherConfig:
        if self.kind not in SEARCHERS:
            what = f"unknown searcher {self.kind!r}"
            refuse(self, [Misfit(("kind",), what, nearest(self.kind, SEARCHERS))])
        return self

    @property
    def options(self) -> dict[str, Any]:
        """What stands beside the kind."""
        return dict(self.__pydantic_extra__ or {})


class ExperimentConfig(Strict):
    """An experiment file, with its space and its fitness in it."""

    name: str = ""
    base: str
    experts: dict[str, str] = Field(min_length=1)
    # expert -> whose hidden units' order it is brought into; stands as {path:, match:} in files
    matches: dict[str, str | Match] = Field(default_factory=dict)
    space: SerializeAsAny[SpaceConfig]
    fitness: FitnessConfig
    calibration: CalibrationConfig | None = None  # texts, for operators that look at data
    searcher: SearcherConfig
    designs: tuple[str, ...] = ()  # recipe files: merges that are tried first
    warm_start: str | None = None  # the folder of a run that the searcher learns from beforehand
    budget: BudgetConfig
    limits: LimitsConfig = LimitsConfig()
    seed: int = Field(default=0, ge=0, lt=2**32)
    in_flight: int | None = Field(default=None, ge=1)
    cohort: int | None = Field(default=None, ge=1)
    pool: PoolConfig = PoolConfig()
    trackers: tuple[TrackerConfig, ...] = ()  # where its figures go beside the ledger
    threads_per_worker: int = Field(default=1, ge=1)
    dtype: DType | None = None
    tokenizer: str | None = None  # union, base, or an expert's name
    allow_pickle_weights: bool = False
    allow_code: bool = False

    @model_validator(mode="before")
    @classmethod
    def _matches_stand_with_experts(cls, data: Any) -> Any:
        """An expert may be {path: ..., match: ...}."""
        experts = data.get("experts") if isinstance(data, Mapping) else None
        if not isinstance(experts, Mapping):
            return data
        entries = {n: entry for n, entry in experts.items() if isinstance(entry, Mapping)}
        valid = ("path", "match")
        misfits = [
            Misfit(("experts", name, str(key)), "unknown key", nearest(str(key), valid))
            for name, entry in entries.items()
            for key in entry
            if key not in valid
        ]
        misfits += [
            Misfit(("experts", name), "has no `path`")
            for name, e in entries.items()
            if "path" not in e
        ]
        if misfits:
            refuse(cls, misfits)
        if not entries:
            return data
        paths = {name: entry["path"] for name, entry in entries.items()}
        matches = {n: e["match"] for n, e in entries.items() if e.get("match") is not None}
        named = data.get("matches") or {}
        return {**data, "experts": {**experts, **paths}, "matches": {**named, **matches}}

    @model_validator(mode="before")
    @classmethod
    def _trackers_may_be_names(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or "trackers" not in data:
            return data
        found = tracker_table.entries(data["trackers"])
        refuse(cls, tracker_table.misfits(found))
        return {**data, "trackers": found}

    @field_validator("experts")
    @classmethod
    def _names_are_free(cls, experts: dict[str, str]) -> dict[str, str]:
        misfits = []
        for name in experts:
            if name == "base":
                misfits.append(Misfit((name,), "`base` is the base model's own name", OTHERWISE))
            if name == "uniform" or name.startswith("task_arithmetic"):
                misfits.append(Misfit((name,), f"a reference is called {name!r}", OTHERWISE))
            if name == UNION:
                misfits.append(Misfit((name,), f"{UNION!r} stands for all models", OTHERWISE))
        refuse(cls, misfits)
        return experts

    @model_validator(mode="after")
    def _tokenizer_exists(self) -> ExperimentConfig:
        valid = [UNION, *self.models()]
        if self.tokenizer is not None and self.tokenizer not in valid:
            what = f"no model {self.tokenizer!r}"
            refuse(self, [Misfit(("tokenizer",), what, nearest(self.tokenizer, valid))])
        return self

    @model_validator(mode="after")
    def _matches_exist(self) -> ExperimentConfig:
        misfits = []
        for name, to in self.matches.items():
            model = Match.of(to).model
            if name not in self.experts:
                hint = nearest(name, self.experts)
                misfits.append(Misfit(("matches", name), "no such expert", hint))
            elif model not in self.models():
                hint = nearest(model, self.models())
                misfits.append(Misfit(("experts", name, "match"), f"no model {model!r}", hint))
        if misfits:
            refuse(self, misfits)
        return self

    def models(self) -> dict[str, str]:
        """Name -> path, with the base under the name `base`."""
        return {"base": self.base, **self.experts}

    def identity(self) -> dict[str, Any]:
        """What decides the trajectory: not the name, the budget, the pool, nor any path.

        Models, tasks, and what a search begins with count by their content, which `Parts.identity`
        adds.
        """
        unsaid = {"name", "budget", "pool", "base", "experts", "designs", "warm_start", "matches"}
        unsaid |= {"calibration", "trackers"}  # of the former, the texts count
        data = self.model_dump(mode="json", exclude=unsaid)
        data["fitness"]["estimator"] = pools_by_content(data["fitness"]["estimator"])
        for entry in data["fitness"]["tasks"].values():
            entry.pop("path", None)
            entry.pop("shared_prefix", None)  # the items' fingerprint has it; older runs had not
            if needs_code(entry.get("kind")):  # a file counts by its content, as all tasks do
                entry["kind"] = f"python:{Path(entry['kind'].removeprefix('python:')).name}"
        if data["tokenizer"] is None:  # older runs did not know the key, nor the next two
            del data["tokenizer"]
        if data["searcher"]["scalarise"] is None:
            del data["searcher"]["scalarise"]
        if not self.limits.given():
            del data["limits"]
        for objective in data["fitness"]["objectives"].values():
            if objective["cost"] is None:
                del objective["cost"]
            if not objective["agreement"]:
                del objective["agreement"]
        if self.calibration is not None:
            data["calibration"] = self.calibration.without_paths()
        return {**data, "experts": list(self.experts)}

    def to_yaml(self) -> str:
        """The resolved experiment, as it is frozen in the run folder."""
        return yaml.safe_dump(self.model_dump(mode="json", exclude_defaults=True), sort_keys=False)


def read_experiment(path: Path, *, notes: list[str] | None = None) -> ExperimentConfig:
    """Read an experiment file with the files that it refers to; or a file of mergekit-evolve.

    notes: is added what a user should know of the latter.

    Raises:
        ConfigurationError: with every problem of every file.
        ModelError: mergekit-evolve's base cannot be read.
    """
    return parse_experiment(read_yaml(path), notes=notes)


def parse_experiment(document: Document, *, notes: list[str] | None = None) -> ExperimentConfig:
    """Validate an experiment with the files that it refers to; paths are relative to its own.

    notes: as for `read_experiment`.

    Raises:
        ConfigurationError: with every problem of every file.
        ModelError: mergekit-evolve's base cannot be read.
    """
    if is_evolve_file(document.data):
        from evomerge.experiment.mergekit_evolve import experiment_of  # it makes such a config

        made, told = experiment_of(document)
        if notes is not None:
            notes += told
        return made
    found = survey(document)
    if found.problems or found.config is None:
        raise ConfigurationError(found.problems)
    return found.config


# What stands in for a broken part.
ANY_SPACE = NichesConfig(kind="niches")
ANY_FITNESS = FitnessConfig.model_validate(
    {"tasks": {"any": {"task": "any"}}, "objectives": {"any": "any"}}
)


STAND_INS = {
    "space": ANY_SPACE,
    "fitness": ANY_FITNESS,
    "searcher": SearcherConfig(kind="random"),
    "budget": BudgetConfig(candidates=1),
}


@dataclass
class Survey:
    """An experiment, as far as it and the files that it refers to could be read.

    documents: `space` and `fitness`, as they are written.
    space, fitness, config: None where they have problems.
    """

    document: Document
    documents: dict[str, Document] = field(default_factory=dict)
    space: SpaceConfig | None = None
    fitness: FitnessConfig | None = None
    config: ExperimentConfig | None = None
    problems: list[Problem] = field(default_factory=list)


def survey(document: Document) -> Survey:
    """Read an experiment with the files that it refers to, noting what is wrong.

    Raises:
        ConfigurationError: it is no mapping at all.
    """
    if not isinstance(document.data, dict):
        parse(ExperimentConfig, document)  # says so
    found = Survey(document)
    for key in ("space", "fitness"):
        if key in document.data and (
            part := collect(found.problems, partial(_refer, document, key))
        ):
            found.documents[key] = part
    if "space" in found.documents:
        found.space = collect(found.problems, partial(parse_space, found.documents["space"]))
    if "fitness" in found.documents:
        found.fitness = collect(found.problems, partial(read_fitness, found.documents["fitness"]))
    resolved = replace(document, data=_resolved(found))
    try:
        found.config = parse(ExperimentConfig, resolved, STAND_INS)
    except ConfigurationError as error:
        found.problems += error.problems
    check_options(found.problems, resolved, ("searcher",), OPTIONS, noted=["scalarise"])
    return found


def _resolved(found: Survey) -> dict[str, Any]:
    """The experiment's data with its space and its fitness in it, and with absolute paths.

    In the place of what is broken stands anything: the rest is checked all the same.
    """
    data = dict(found.document.data)
    folder = found.document.path.parent if found.document.path else Path.cwd()
    if "space" in data:
        data["space"] = found.space or ANY_SPACE
    if "fitness" in data:
        data["fitness"] = found.fitness or ANY_FITNESS
    for key in {"base", "experts"} & set(data):
        data[key] = absolute_models(data[key], folder)
    if isinstance(data.get("designs"), list):
        data["designs"] = [absolute(path, folder) for path in data["designs"]]
    if isinstance(data.get("calibration"), dict):
        data["calibration"] = absolute_texts(data["calibration"], folder)
    if "warm_start" in data:
        data["warm_start"] = absolute(data["warm_start"], folder)
    if "trackers" in data:
        data["trackers"] = [
            absolute_tracker(each, folder) for each in tracker_table.entries(data["trackers"])
        ]
    return data


def _refer(document: Document, key: str) -> Document:
    """The document that a key holds, or refers to."""
    value = document.data[key]
    kind = {"space": "search_spaces", "fitness": "fitness"}[key]
    folder = document.path.parent if document.path else Path.cwd()
    if isinstance(value, str):
        try:
            found = read_yaml(find_in_catalogue(value, kind, folder))
        except ConfigurationError as error:
            place = document.where((key,))
            raise ConfigurationError(
                [Problem(f"{place} -> {p.where}", p.what, p.hint) for p in error.problems]
            ) from None
        check_kind(found, kind, document.where((key,)))
        return found
    if not isinstance(value, dict):
        what = f"should be a file, a name in the catalogue, or a mapping, got {value!r}"
        raise ConfigurationError(Problem(document.where((key,)), what))
    return document.part(key)
