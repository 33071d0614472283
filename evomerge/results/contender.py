"""A run as comparisons see it: read once, in its user's own sign."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isclose
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge.documents import leaves
from evomerge.fitness.config import ObjectiveConfig
from evomerge.fitness.estimators.estimate import Items
from evomerge.fitness.split import Split, split_items
from evomerge.recipe import canonical_json
from evomerge.records import Objective
from evomerge.results.account import Account, Step
from evomerge.results.intervals import mean_estimate, mean_of_objectives
from evomerge.results.watch import status
from evomerge.stopping import CONFIDENCE

Json = dict[str, Any]

ASPECTS = ("searcher", "estimator", "space", "name")  # what runs can be grouped by
PLACES = {"searcher": "searcher", "estimator": "fitness.estimator", "space": "space"}
_UNSAID: tuple[Any, ...] = (
    None,
    False,
    [],
    "",
)  # what an older run had no key for is as if it said nothing


@dataclass(frozen=True)
class Contender:
    """What a comparison needs of one run.

    state: `finished`, `running`, `stopped` or `silent`. seed: of the searcher.
    settings: dotted key -> value: what decides the result, seed and budget apart; models and items
        by their content. budget: the same for what it was allowed.
    yardstick: what the score is: (task, column, neighbours) -> its signed share of the mean.
    sign: -1 where the score is one objective that is to be small; all scores are in its own units.
    split: None where nobody can tell it. final: the final table. shares: what each holdout item
        adds to the chosen model's score, task by task; None where that is not known item by item.
    references: objective values on the search items, shape (references, objectives).
    """

    name: str
    folder: Path
    experiment: str
    state: str
    seed: int
    settings: Mapping[str, Any]
    budget: Mapping[str, Any]
    items: Mapping[str, str]
    objectives: tuple[Objective, ...]
    yardstick: Mapping[tuple[str, str, int], float]
    split: Split | None
    steps: tuple[Step, ...]
    final: Json | None
    fingerprint: str
    shares: Mapping[str, NDArray[np.float64]] | None
    references: NDArray[np.float64]
    costs: Json = field(default_factory=dict)

    @property
    def sign(self) -> int:
        """-1 where the one measured objective is to be small."""
        measured = _measured(self.objectives)
        return measured[0].sign if len(measured) == 1 else 1

    @property
    def models(self) -> dict[str, Any]:
        """The base and the experts, by their content."""
        return {k: v for k, v in self.settings.items() if k.startswith("models.")}

    @property
    def holdout(self) -> Items | None:
        """Task -> the items that are held out."""
        return None if self.split is None else self.split.holdout

    @property
    def held_out(self) -> Json | None:
        """The chosen model's score on the holdout, with its 95 % interval; None before the end."""
        if self.final is None:
            return None
        found = self.final["best"]["holdout_mean"]
        return self.interval(found["value"], found["standard_error"])

    def interval(self, value: float, error: float) -> Json:
        """A score inside as people see it."""
        shown, half = self.sign * value, CONFIDENCE * error
        ends = {"low": shown - half, "high": shown + half}
        return {"value": shown, "standard_error": error, **ends}

    def aspect(self, by: str) -> str:
        """What stands for one of `ASPECTS`, as text that is equal where it is."""
        if by == "name":
            return self.experiment
        place = PLACES[by]
        return canonical_json(
            {key: value for key, value in self.settings.items() if key.startswith(f"{place}.")}
        )

    def beside(self, by: str | None) -> str:
        """What two runs must share to be a pair: the seed, and all that they are not grouped by."""
        if by is None or by == "name":
            return str(self.seed)
        rest = {k: v for k, v in self.settings.items() if not k.startswith(f"{PLACES[by]}.")}
        return canonical_json({"seed": self.seed, "rest": rest, "budget": dict(self.budget)})


@dataclass(frozen=True)
class Group:
    """Runs of one configuration, or of one searcher, estimator, space or name."""

    name: str
    runs: tuple[Contender, ...]

    @property
    def finished(self) -> tuple[Contender, ...]:
        """Those that have a final table."""
        return tuple(run for run in self.runs if run.final is not None)


def read_contender(folder: Path, name: str) -> Contender:
    """Read a run, finished or not, of this version or an older one.

    Raises:
        ConfigurationError: there is no run in the folder.
        LedgerDamaged: its ledger cannot be read.
    """
    with Account(folder) as run:
        identity = run.ledger.meta.get("identity", {})
        objectives = _objectives(run, identity)
        split = _split(identity, run.ledger.meta["num_items"])
        state, final = status(folder)["state"], run.final
        fingerprint = run.ledger.candidates.fingerprint(final["best"]["candidate"]) if final else ""
        told = [row["objectives"] for row in run.references_told.values()]
        names = [o.name for o in objectives]
        points = [[row[n]["value"] for n in names] for row in told if all(n in row for n in names)]
        last = run.steps[-1] if run.steps else None
        return Contender(
            name=name,
            folder=folder,
            experiment=run.name,
            state=state,
            seed=int(identity.get("seed", 0)),
            settings=_settings(identity, run.ledger.meta.get("start"), run.experiment),
            budget=leaves(_budget(run)),
            items=identity.get("items", {}),
            objectives=objectives,
            yardstick=_yardstick(objectives),
            split=split,
            steps=run.steps,
            final=final,
            fingerprint=fingerprint,
            shares=_shares(run, objectives, split, fingerprint),
            references=np.array(points).reshape(len(points), len(names)),
            costs={
                "candidates": len(run.evaluations),
                "search_item_evaluations": last.item_evaluations if last else 0,
                "item_evaluations": sum(m.num_items for m in run.measured),
                "seconds": run.ledger.seconds_spent(),
            },
        )


def _measured(objectives: Sequence[Objective]) -> list[Objective]:
    return [objective for objective in objectives if objective.cost is None]


def _objectives(run: Account, identity: Mapping[str, Any]) -> tuple[Objective, ...]:
    """As the run had them; of older ones as they stand in the experiment."""
    told = run.ledger.meta.get("about", {}).get("objectives", ())
    if told and all("weights" in o for o in told):
        return tuple(
            Objective(
                o["name"], o["weights"], o["column"], o["sign"], o["cost"], agreement=o["agreement"]
            )
            for o in told
        )
    entries = identity.get("fitness", {}).get("objectives", {})
    return tuple(ObjectiveConfig.model_validate(e).objective(n) for n, e in entries.items())


def _yardstick(objectives: Sequence[Objective]) -> dict[tuple[str, str, int], float]:
    """What the mean of the measured objectives is made of."""
    measured = _measured(objectives)
    found: dict[tuple[str, str, int], float] = {}
    for o in measured:
        for task, weight in o.weights.items():
            key = task, o.column, o.agreement
            found[key] = found.get(key, 0.0) + o.sign * weight / len(measured)
    return {key: round(share, 9) for key, share in sorted(found.items())}


def _split(identity: Mapping[str, Any], num_items: Mapping[str, int]) -> Split | None:
    said = identity.get("fitness", {}).get("split")
    if said is None:
        return None
    every = {task: range(number) for task, number in num_items.items()}
    return split_items(every, said["search"], said["fresh"], said["holdout"], said["seed"])


def _settings(identity: Mapping[str, Any], start: Any, experiment: Mapping[str, Any]) -> Json:
    found = leaves({**identity, "start": _brief_start(start, experiment)})
    inside = [key for key in found if key.startswith("fitness.objectives.")]
    for key in inside:  # told as one thing: a column says nothing without its tasks
        del found[key]
    for name, objective in identity.get("fitness", {}).get("objectives", {}).items():
        found[f"fitness.objectives.{name}"] = objective
    return {k: v for k, v in found.items() if k != "seed" and v not in _UNSAID}


def _brief_start(start: Any, experiment: Mapping[str, Any]) -> Json:
    """What a run began with: by what the experiment names, and by its content where two differ."""
    told = {}
    for key, what in (start or {}).items():
        if what:
            digest = hashlib.sha256(canonical_json(what).encode()).hexdigest()[:8]
            named = experiment.get(key) or ""
            names = [named] if isinstance(named, str) else named
            told[key] = f"{', '.join(Path(name).name for name in names)} ({len(what)}, {digest})"
    return told


def _budget(run: Account) -> Json:
    """What the last driver was given, which may be more than the file says."""
    given = run.sessions[-1].get("budget") if run.sessions else None
    said = {k: v for k, v in (given or {}).items() if v is not None}
    return {"budget": said or run.experiment.get("budget", {})}


def _shares(
    run: Account, objectives: Sequence[Objective], split: Split | None, fingerprint: str
) -> dict[str, NDArray[np.float64]] | None:
    """Item by item, if that is what the final table says in all."""
    tasks = {task for o in _measured(objectives) for task in o.weights}
    if run.final is None or split is None or not tasks <= split.holdout.keys():
        return None
    answers = run.ledger.answers_of(fingerprint)
    shares = mean_of_objectives(objectives, answers, fingerprint, split.holdout)
    value, _ = mean_estimate(shares)
    told = run.final["best"]["holdout_mean"]["value"]
    # Agreement with other models is not a matter of single items, and has no such sum.
    return shares if isclose(value, told, rel_tol=1e-6, abs_tol=1e-9) else None
