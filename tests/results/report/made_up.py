"""Ledgers of runs that never were: as large, as strange and as unfinished as a test wants them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from evomerge.files import EXPERIMENT
from evomerge.ledger import LEDGER, REFERENCES, Ledger
from evomerge.recipe import Recipe
from evomerge.records import (
    Candidate,
    Estimate,
    Evaluation,
    Failure,
    Job,
    Outcome,
    Responses,
    Score,
)
from evomerge.results.progress import described

ITEMS = 100
SESSION = {
    "versions": {"evomerge": "0.0", "torch": "0.0"},
    "python": "3.11",
    "machine": "x86_64",
    "processor": "some",
    "instructions": "AVX",
    "host": "here",
    "pid": 1,
    "budget": {"candidates": 9},
    "pool": {"kind": "local", "workers": 2},
}


@dataclass(frozen=True)
class MadeUp:
    """What a run looked like.

    costs: the objectives that are costs; small: those that are to be small. kind: of its recipes,
    `weights`, `components`, `stack` or `segments`.
    """

    name: str = "made up"
    candidates: int = 60
    experts: Sequence[str] = ("one", "two")
    objectives: Sequence[str] = ("first", "second")
    costs: Mapping[str, str] = field(default_factory=dict)
    small: Sequence[str] = ()
    num_layers: int = 4
    failing: int = 7  # one in so many candidates fails; 0 none
    reason: str = "it does not work"
    worker: str = "local-0"
    operator: str = "task_arithmetic"
    kind: str = "weights"
    cohort: int = 10
    ended: bool = True
    seed: int = 0

    @property
    def genes(self) -> list[str]:
        """A coefficient for each expert and layer."""
        layers = range(self.num_layers)
        return [f"weight.{expert}.layer_{layer}" for expert in self.experts for layer in layers]

    def sign(self, objective: str) -> int:
        """-1 for what is to be small."""
        return -1 if objective in self.costs or objective in self.small else 1

    def recipe(self, genome: Sequence[float]) -> Recipe:
        """Weights for each layer and expert."""
        table = np.reshape(genome, (len(self.experts), self.num_layers)).round(4).tolist()
        weights = [
            {expert: row[layer] for expert, row in zip(self.experts, table, strict=True)}
            for layer in range(self.num_layers)
        ]
        common: dict[str, Any] = {
            "base": "base",
            "models": {name: {"path": f"/models/{name}"} for name in ("base", *self.experts)},
        }
        if self.kind == "segments":
            stops = [1000 * (i + 1) for i in range(self.num_layers)]
            by_model = {name: [w[name] for w in weights] for name in self.experts}
            return Recipe(**common, segments={"stops": stops, "weights": by_model})
        parts = ("attention", "mlp", "norm") if self.kind == "components" else ("default",)
        slots: list[dict[str, Any]] = [
            {"layer": i, "merges": {part: {"parameters": {"weight": w}} for part in parts}}
            for i, w in enumerate(weights)
        ]
        if self.kind == "stack":
            common["default"] = {"operator": "passthrough", "sources": ["base"]}
            for place, slot in enumerate(slots):
                slot["layer"] = int(genome[place] * self.num_layers)
                slot["input_scale"] = 0.5 + genome[place]
                expert = self.experts[place % len(self.experts)]
                slot["merges"] = {"default": {"sources": [expert]}}
        else:
            common["default"] = {"operator": self.operator}
        return Recipe(**common, slots=slots)

    def score(self, genome: Sequence[float], generator: np.random.Generator) -> Score:
        """The first gene is good for the first objective, and bad for the others."""
        found = {}
        for place, name in enumerate(self.objectives):
            value = genome[0] if place == 0 else 1 - genome[0] * (0.5 + place / 10)
            value = float(0.1 + 0.8 * value + 0.02 * generator.normal())
            if name in self.costs:
                found[name] = Estimate(-1e6 * (1 + value), 0.0, 0)
            else:
                found[name] = Estimate(self.sign(name) * value, 0.03, ITEMS)
        return Score(found)


def make(folder: Path, run: MadeUp) -> Path:
    """Write its folder."""
    folder.mkdir(parents=True)
    experiment = {
        "name": run.name,
        "base": "/models/base",
        "experts": {name: f"/models/{name}" for name in run.experts},
        "space": {"kind": "weights", "operator": run.operator},
        "searcher": {"kind": "random"},
    }
    (folder / EXPERIMENT).write_text(yaml.safe_dump(experiment, sort_keys=False))
    about = {
        "name": run.name,
        "objectives": [
            {"name": n, "sign": run.sign(n), "cost": run.costs.get(n), "tasks": []}
            for n in run.objectives
        ],
        "experts": list(run.experts),
        "genes": run.genes,
        "num_layers": run.num_layers,
        "items": {part: {"task": ITEMS} for part in ("search", "fresh", "holdout")},
    }
    meta = {"identity": {}, "evomerge": "0.0", "start": {}, "about": about}
    ledger = Ledger.create(folder / LEDGER, meta, {"task": 10_000})
    with ledger.together():
        _written(ledger, run)
    ledger.close()
    return folder


def _written(ledger: Ledger, run: MadeUp) -> None:
    generator = np.random.default_rng(run.seed)
    width = len(run.genes)
    ledger.note("session", SESSION)
    references = [
        Candidate(-1 - k, None, run.recipe(np.full(width, 0.1 * (k + 1))), label=label)
        for k, label in enumerate(("base", *run.experts, "uniform", "task_arithmetic 0.40"))
    ]
    ledger.asked(REFERENCES, len(references), references)
    told = {}
    for candidate in references:
        _measured(ledger, run, REFERENCES, candidate)
        told[candidate.label] = run.score(np.full(width, 0.4), generator)
    ledger.note("references", {label: described(None, score) for label, score in told.items()})
    scores: dict[int, Score] = {}
    for start in range(0, run.candidates, run.cohort):
        cohort = [
            Candidate(id_, genome, run.recipe(genome))
            for id_ in range(start, min(run.candidates, start + run.cohort))
            for genome in [generator.random(width).round(6).tolist()]
        ]
        number = start // run.cohort
        ledger.asked(number, run.cohort, cohort)
        evaluations = []
        for candidate in cohort:
            failed = bool(run.failing) and candidate.id % run.failing == run.failing - 1
            failure = Failure("merge", run.reason) if failed else None
            _measured(ledger, run, number, candidate, failure)
            if not failed:
                scores[candidate.id] = run.score(candidate.genome, generator)
            score = scores.get(candidate.id)
            evaluations.append(Evaluation(candidate.id, candidate.genome, score, failure))
        ledger.told(number, evaluations)
    if run.ended and scores:
        ledger.note("final", _final(run, scores, told))


def _measured(
    ledger: Ledger, run: MadeUp, cohort: int, candidate: Candidate, failure: Failure | None = None
) -> None:
    recipe = candidate.recipe
    assert recipe is not None
    items = np.arange(ITEMS)
    job = Job(0, candidate.id, recipe, {"task": tuple(items.tolist())})
    answers = Responses("task", items, {"score": np.zeros(ITEMS, np.float32)})
    responses = () if failure else (answers,)
    ledger.measured(cohort, Outcome(job, responses, failure, run.worker, 0.1, 0.5, 0.4))


def _final(run: MadeUp, scores: Mapping[int, Score], told: Mapping[str, Score]) -> dict[str, Any]:
    ranked = sorted(scores, key=lambda id_: -scores[id_].mean)
    rows = {id_: _row(id_, "", scores[id_]) for id_ in ranked[:5]}
    references = {
        label: _row(-1 - k, label, score) for k, (label, score) in enumerate(told.items())
    }
    gain = {"reference": run.experts[0], "value": 0.123, "low": 0.045, "high": 0.201}
    return {
        "best": rows[ranked[0]],
        "front": list(rows.values()) if len(run.objectives) > 1 else [],
        "references": references,
        "gain_over_best_reference": gain,
        "gains": {name: gain for name in run.objectives if name not in run.costs},
        "ended": "the budget is spent",
    }


def _row(candidate: int, label: str, score: Score) -> dict[str, Any]:
    def part(by: float) -> dict[str, Any]:
        return {
            name: {
                "value": e.value - (0 if e.is_cost else by),
                "standard_error": e.standard_error,
                "num_items": e.num_items,
            }
            for name, e in score.objectives.items()
        }

    means = {"value": score.mean - 0.01, "standard_error": 0.02}
    return {
        "candidate": candidate,
        "label": label,
        "told": part(0.0),
        "told_mean": {"value": score.mean},
        "search": part(0.0),
        "search_mean": {"value": score.mean, "standard_error": 0.02},
        "holdout": part(0.01),
        "holdout_mean": means,
        "winners_curse": 0.01,
    }
