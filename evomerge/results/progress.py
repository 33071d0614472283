"""What was found so far and how fast it goes, kept up to date event by event."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import hypot
from typing import Any

from evomerge.pareto import best_first
from evomerge.records import CandidateId, Estimate, Evaluation, Score
from evomerge.stopping import CONFIDENCE

Json = dict[str, Any]

WINDOW_S = 300.0  # what "of late" means
RECENT_TELLS = 8  # whole generations are told at once: fewer than that say little of a rate


@dataclass
class Found:
    """What the search has been told of its candidates, as `Ledger.evaluations` has it."""

    entries: dict[CandidateId, Json] = field(default_factory=dict)
    keys: dict[CandidateId, tuple[int, float]] = field(default_factory=dict)  # rung, mean
    cut: dict[CandidateId, Json] = field(default_factory=dict)
    _incumbent: Json | None = None  # None where it has to be found again

    def told(self, entries: Sequence[Json], *, cut_short: bool) -> None:
        """Take in a cohort; one that a budget has cut short counts until something is told."""
        by_id = {entry["id"]: entry for entry in entries}
        self._incumbent = None
        self.cut = by_id if cut_short else {}
        if not cut_short:
            self.entries |= by_id
            scored = {id_: entry for id_, entry in by_id.items() if entry["score"] is not None}
            self.keys |= {id_: _key(entry) for id_, entry in scored.items()}

    @property
    def count(self) -> int:
        """The number of candidates."""
        return len(self.entries) + sum(id_ not in self.entries for id_ in self.cut)

    @property
    def num_failed(self) -> int:
        """Those that failed."""
        kept = [e for id_, e in self.entries.items() if id_ not in self.cut]
        return sum(e["failure"] is not None for e in (*kept, *self.cut.values()))

    def incumbent(self) -> Json | None:
        """The best candidate so far, by its search score, with 95 % intervals."""
        self._incumbent = self._incumbent or self._best()
        return self._incumbent

    def _best(self) -> Json | None:
        keys = dict(self.keys)
        for id_, entry in self.cut.items():
            keys.pop(id_, None)
            if entry["score"] is not None:
                keys[id_] = _key(entry)
        if not keys:
            return None
        top = max(keys.values())
        tied: dict[tuple[float, ...], Evaluation] = {}  # of equal scores the first candidate alone
        for id_ in sorted(id_ for id_, key in keys.items() if key == top):
            score = _score(self.cut.get(id_) or self.entries[id_])
            tied.setdefault(score.values, Evaluation(id_, None, score))
        first = best_first(list(tied.values()))[0]
        return described(first.id, first.score or Score({}))


def described(id_: CandidateId | None, score: Score) -> Json:
    """A candidate's search score as JSON: each objective, and the mean of the measured ones."""
    return {
        "candidate": id_,
        "objectives": {name: _interval(e) for name, e in score.objectives.items()},
        "mean": mean_of(score),
    }


def mean_of(score: Score) -> Json:
    """The mean of the measured objectives; their errors count as independent."""
    measured = [e for e in score.objectives.values() if not e.is_cost]
    error = hypot(*(e.standard_error for e in measured)) / max(1, len(measured))
    return _interval(Estimate(score.mean, error, sum(e.num_items for e in measured)))


def _interval(estimate: Estimate) -> Json:
    half = CONFIDENCE * estimate.standard_error
    return {
        "value": estimate.value,
        "standard_error": estimate.standard_error,
        "num_items": estimate.num_items,
        "low": estimate.value - half,
        "high": estimate.value + half,
    }


def _key(entry: Mapping[str, Any]) -> tuple[int, float]:
    """Rung, and `Score.mean` without an array for each of many candidates."""
    measured = [value for value, _, num_items in entry["score"].values() if num_items]
    values = measured or [value for value, _, _ in entry["score"].values()]
    return entry["rung"], sum(values) / len(values)


def _score(entry: Mapping[str, Any]) -> Score:
    return Score({name: Estimate(*e) for name, e in entry["score"].items()}, entry["rung"])


@dataclass
class _Worker:
    jobs: int = 0
    last: float = 0.0


@dataclass
class Tempo:
    """How fast a session goes.

    began: its time. Rates are of the last minutes, and those of candidates of a few generations at
    least: they are told together.
    """

    began: float = 0.0
    _jobs: deque[tuple[float, str, int, float]] = field(default_factory=deque)
    _tells: deque[tuple[float, int]] = field(default_factory=deque)
    _workers: dict[str, _Worker] = field(default_factory=dict)

    def measured(self, moment: float, worker: str, items: int, busy_s: float) -> None:
        """Take in an outcome."""
        self._jobs.append((moment, worker, items, busy_s))
        while self._jobs and self._jobs[0][0] < moment - WINDOW_S:
            self._jobs.popleft()
        known = self._workers.setdefault(worker, _Worker())
        known.jobs += 1
        known.last = moment

    def asked(self, moment: float) -> None:
        """Take in that the searcher was asked: the first cohort is measured from here on."""
        if not self._tells:
            self._tells.append((moment, 0))

    def told(self, moment: float, candidates: int) -> None:
        """Take in a cohort."""
        self._tells.append((moment, candidates))
        while len(self._tells) > RECENT_TELLS and self._tells[0][0] < moment - WINDOW_S:
            self._tells.popleft()

    def rates(self, now: float) -> Json:
        """Candidates a minute, and item evaluations a second."""
        items = sum(n for moment, _, n, _ in self._jobs if moment >= now - WINDOW_S)
        candidates = sum(n for _, n in list(self._tells)[1:])
        since = self._tells[0][0] if self._tells else now
        return {
            "candidates_per_min": 60 * candidates / (now - since) if now > since else 0.0,
            "items_per_s": items / max(1e-3, min(WINDOW_S, now - self.began)),
        }

    def workers(self, now: float) -> list[Json]:
        """Those that answered in the last minutes, by name.

        items_per_s: while they measured. busy: the share of the time that they did.
        """
        span = max(1e-3, min(WINDOW_S, now - self.began))
        recent: dict[str, list[float]] = {}
        for moment, name, items, busy_s in self._jobs:
            if moment >= now - WINDOW_S:
                of = recent.setdefault(name, [0.0, 0.0])
                of[0] += items
                of[1] += busy_s
        return [
            {
                "name": name,
                "jobs": self._workers[name].jobs,
                "items_per_s": items / busy_s if busy_s else 0.0,
                "busy": min(1.0, busy_s / span),
                "last_s": now - self._workers[name].last,
            }
            for name, (items, busy_s) in sorted(recent.items())
        ]
