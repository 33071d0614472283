"""A run as people are told of it: what reports, cards and comparisons are made from.

Read from the run's folder alone: its ledger, and its experiment file as text. No model is opened,
so that a run can be shown on a machine that has none of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import ArrayLike, NDArray

from evomerge.files import EXPERIMENT
from evomerge.ledger import FINAL, LEDGER, REFERENCES, Ledger
from evomerge.pareto import hypervolume, non_dominated
from evomerge.records import CandidateId, Evaluation
from evomerge.results.progress import Found

Json = dict[str, Any]

MAX_STEPS = 240  # of a search, that a curve shows
MARGIN = 0.1  # how far below the worst value the corner of a hypervolume is, the range = 1


@dataclass(frozen=True)
class ObjectiveFacts:
    """An objective as its user named it; a `sign` of -1 says that it is to be small."""

    name: str
    sign: int = 1
    cost: str | None = None

    def shown(self, value: float) -> float:
        """A value in the user's own units: inside, everything is maximised."""
        return self.sign * value


@dataclass(frozen=True)
class Step:
    """Where a search was when a cohort had been told.

    item_evaluations: of the references and the search so far. seconds: that drivers had worked.
    incumbent: the best by its search score (see `results.progress.described`); None before one has
        a score. front: the values of those that nobody dominates, shape (points, objectives).
    """

    candidates: int
    item_evaluations: int
    seconds: float
    incumbent: Json | None
    front: NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """One outcome: whose, when (seconds that drivers had worked), and where its time went."""

    candidate: CandidateId
    cohort: int
    seconds: float
    worker: str
    num_items: int
    merge_s: float
    measure_s: float
    forward_s: float
    failure: Mapping[str, str] | None

    @property
    def phase(self) -> str:
        """`references`, `search` or `last choice`."""
        return {REFERENCES: "references", FINAL: "last choice"}.get(self.cohort, "search")


class Account:
    """A run folder, read once.

    Raises:
        ConfigurationError: there is no run.
        LedgerDamaged: its ledger cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ledger = Ledger(folder / LEDGER, read_only=True)
        self._about: Mapping[str, Any] = self.ledger.meta.get("about", {})  # older runs have none

    def __enter__(self) -> Account:
        return self

    def __exit__(self, *_: object) -> None:
        self.ledger.close()

    # --- what was searched ------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The experiment's name, or the folder's."""
        return self._about.get("name") or self.folder.resolve().name

    @cached_property
    def experiment_text(self) -> str:
        """The resolved experiment, as YAML."""
        path = self.folder / EXPERIMENT
        return path.read_text(encoding="utf-8") if path.exists() else ""

    @cached_property
    def experiment(self) -> Json:
        """The same, as a mapping."""
        data = yaml.safe_load(self.experiment_text)
        return data if isinstance(data, dict) else {}

    @cached_property
    def objectives(self) -> tuple[ObjectiveFacts, ...]:
        """In their declared order; of older runs only the names are known."""
        if told := self._about.get("objectives"):
            return tuple(ObjectiveFacts(o["name"], o["sign"], o["cost"]) for o in told)
        scores = [e.score for e in self.evaluations.values() if e.score is not None]
        names = scores[0].objectives.items() if scores else ()
        return tuple(ObjectiveFacts(n, -1, n) if e.is_cost else ObjectiveFacts(n) for n, e in names)

    @cached_property
    def experts(self) -> tuple[str, ...]:
        """The experts' names, in their declared order."""
        return tuple(self._about.get("experts") or self.experiment.get("experts", {}))

    @property
    def genes(self) -> tuple[str, ...]:
        """The genes' names; () where genomes are no vectors, or nobody noted them."""
        return tuple(self._about.get("genes", ()))

    @property
    def num_layers(self) -> int | None:
        """Of the base; None where nobody noted it."""
        return self._about.get("num_layers")

    @property
    def num_items(self) -> Mapping[str, Mapping[str, int]]:
        """`search`, `fresh`, `holdout` -> task -> items; of older runs it is empty."""
        return dict(self._about.get("items", {}))

    # --- what was found ---------------------------------------------------------------------------

    @cached_property
    def evaluations(self) -> dict[CandidateId, Evaluation]:
        """The latest evaluation of every candidate."""
        return self.ledger.evaluations()

    @cached_property
    def final(self) -> Json | None:
        """The final table; None before the run is finished."""
        return self.ledger.final()

    @cached_property
    def references_told(self) -> Json:
        """Reference -> what the estimator said of it on the search items (see `described`)."""
        told = [data for _, _, data in self.ledger.events("references")]
        return told[0] if told else {}

    @cached_property
    def sessions(self) -> tuple[Json, ...]:
        """Where and with what each driver worked."""
        return tuple(data for _, _, data in self.ledger.events("session"))

    @cached_property
    def measured(self) -> tuple[Measured, ...]:
        """Every outcome, in the order of arrival."""
        found = []
        for kind, cohort, seconds, data in self._working("measured"):
            if kind == "measured":
                items = 0 if data["failure"] else data["num_items"]
                merge_s, measure_s, forward_s = data["seconds"]
                found.append(
                    Measured(
                        data["candidate"],
                        cohort,
                        seconds,
                        data["worker"],
                        items,
                        merge_s,
                        measure_s,
                        forward_s,
                        data["failure"],
                    )
                )
        return tuple(found)

    @property
    def seconds(self) -> float:
        """That drivers had worked when the last answer came, or the last cohort was told."""
        last = [self.measured[-1].seconds] if self.measured else []
        return max([*last, *(step.seconds for step in self.steps[-1:])], default=0.0)

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """The search from its beginning to its end, in at most `MAX_STEPS` steps."""
        tells = [data for _, _, data in self.ledger.events("told", "scored")]
        wanted = set(np.linspace(0, len(tells) - 1, MAX_STEPS).round().astype(int).tolist())
        found, front = Found(), np.empty((0, len(self.objectives)))
        top = 0  # the highest rung that anybody has come to
        items, number, steps = 0, -1, []
        for kind, cohort, seconds, data in self._working("measured", "told", "scored"):
            if kind == "measured":
                counts = cohort >= REFERENCES and not data["failure"]
                items += data["num_items"] if counts else 0
                continue
            if kind in ("told", "scored"):
                number += 1
                found.told(data, cut_short=kind == "scored")
                reached = max((e["rung"] for e in data if e["score"] is not None), default=top)
                kept = front if reached <= top else front[:0]
                shown = _front(kept, data, max(top, reached))
                if kind == "told":  # a cohort that was cut short counts until something is told
                    front, top = shown, max(top, reached)
                if number in wanted:
                    steps.append(Step(found.count, items, seconds, found.incumbent(), shown))
        return tuple(steps)

    def _working(self, *kinds: str) -> Iterator[tuple[str, int, float, Any]]:
        """Events, with the seconds that drivers had worked by then."""
        worked, start, last = 0.0, None, 0.0
        every = ("session", "asked", "measured", "told", "scored", "references", "final", "ended")
        for kind, cohort, moment, data in self.ledger.timeline(*every):
            if kind == "session":
                worked += last - start if start is not None else 0.0
                start = moment
            last = moment
            if kind in kinds:
                yield kind, cohort, worked + moment - (start if start is not None else moment), data


def _front(front: NDArray[np.float64], told: Sequence[Json], top: int) -> NDArray[np.float64]:
    """The front with those that came to rung `top`; who is scored anew is there twice."""
    scored = [entry for entry in told if entry["score"] is not None]
    values = [[value for value, *_ in e["score"].values()] for e in scored if e["rung"] == top]
    if not values:
        return front
    new = np.unique(np.array(values), axis=0)
    new = new[[not (front >= point).all(axis=1).any() for point in new]]
    if not len(new):
        return front
    new = new[non_dominated(new)]
    beaten = np.zeros(len(front), dtype=bool)
    for point in new:  # none of which is equal to one of the front
        beaten |= (point >= front).all(axis=1)
    return np.unique(np.vstack([front[~beaten], new]), axis=0)


def share_dominated(values: ArrayLike, worst: ArrayLike, best: ArrayLike) -> float:
    """How much of a box a front dominates: 0 nothing, 1 all of it.

    The box reaches from the worst to the best value of each objective, and a margin below, so that
    the extremes count; each objective is scaled to it.

    values: shape (points, objectives); worst, best: shape (objectives,); everything maximised.
    """
    low, points = np.asarray(worst, dtype=np.float64), np.asarray(values, dtype=np.float64)
    spread = np.asarray(best, dtype=np.float64) - low
    same = spread <= 0  # all have the best there is
    if points.size == 0:
        return 0.0
    scaled = np.where(same, 1.0, (points - low) / np.where(same, 1.0, spread))
    corner = np.full(len(low), -MARGIN)
    return hypervolume(scaled, corner) / (1 + MARGIN) ** len(low)
