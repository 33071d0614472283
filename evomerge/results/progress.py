"""What was found so far and how fast it goes, kept up to date event by event."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import hypot
from typing import Any

import numpy as np

from evomerge.pareto import best_first, non_dominated
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
    _num_failed: int = 0  # of the entries
    _top: tuple[tuple[int, float], dict[CandidateId, None]] | None = None  # None: to be found anew
    _incumbent: Json | None = None  # None where it has to be found again
    _front: list[CandidateId] | None = None  # None where it has to be found from all
    _since: list[CandidateId] = field(default_factory=list)  # who was told since it was found

    def told(self, entries: Sequence[Json], *, cut_short: bool) -> None:
        """Take in a cohort; one that a budget has cut short counts until something is told."""
        by_id = {entry["id"]: entry for entry in entries}
        self._incumbent = None
        if self.cut or cut_short:
            self._front = None
        self.cut = by_id if cut_short else {}
        if not cut_short:
            for id_, entry in by_id.items():
                self._take(id_, entry)

    def _take(self, id_: CandidateId, entry: Json) -> None:
        before = self.entries.get(id_)
        self._num_failed += entry["failure"] is not None
        self._num_failed -= before is not None and before["failure"] is not None
        self.entries[id_] = entry
        if before is not None and self._front is not None and id_ in self._front:
            self._front = None  # whom it dominated may be on the front now
        self._since.append(id_)
        if entry["score"] is None:
            return
        self.keys[id_] = key = _key(entry)
        if self._top is None:
            return
        top, tied = self._top
        if id_ in tied and key != top:
            self._top = None
        elif key == top:
            tied[id_] = None
        if key > top:
            self._top = key, {id_: None}

    @property
    def count(self) -> int:
        """The number of candidates."""
        return len(self.entries) + sum(id_ not in self.entries for id_ in self.cut)

    @property
    def num_failed(self) -> int:
        """Those that failed."""
        known = [self.entries[id_] for id_ in self.cut if id_ in self.entries]
        replaced = sum(entry["failure"] is not None for entry in known)
        cut = sum(entry["failure"] is not None for entry in self.cut.values())
        return self._num_failed - replaced + cut

    def incumbent(self) -> Json | None:
        """The best candidate so far, by its search score, with 95 % intervals."""
        self._incumbent = self._incumbent or self._best()
        return self._incumbent

    def _best(self) -> Json | None:
        keys = self._with_cut()
        if not keys:
            return None
        if self.cut or self._top is None:
            top = max(keys.values())
            found = top, dict.fromkeys(sorted(id_ for id_, key in keys.items() if key == top))
            self._top = None if self.cut else found
        else:
            found = self._top
        tied: dict[tuple[float, ...], Evaluation] = {}  # of equal scores the first candidate alone
        for id_ in sorted(found[1]):
            score = _score(self.cut.get(id_) or self.entries[id_])
            tied.setdefault(score.values, Evaluation(id_, None, score))
        first = best_first(list(tied.values()))[0]
        return described(first.id, first.score or Score({}))

    def _with_cut(self) -> dict[CandidateId, tuple[int, float]]:
        if not self.cut:
            return self.keys
        keys = {id_: key for id_, key in self.keys.items() if id_ not in self.cut}
        return keys | {id_: _key(e) for id_, e in self.cut.items() if e["score"] is not None}

    def front(self) -> list[CandidateId]:
        """Those of the highest rung that nobody dominates, by their search scores."""
        keys = self._with_cut()
        if self._front is None:
            pool = list(keys)
        else:
            pool = list(dict.fromkeys((*self._front, *(i for i in self._since if i in keys))))
        self._since = []
        top = max((keys[id_][0] for id_ in pool), default=0)
        pool = [id_ for id_ in pool if keys[id_][0] == top]
        if pool:
            chosen = non_dominated(np.array([self.values(id_) for id_ in pool]))
            pool = [pool[i] for i in np.flatnonzero(chosen)]
        self._front = pool
        return pool

    def values(self, id_: CandidateId) -> list[float]:
        """A candidate's values, in the order of the objectives."""
        return [value for value, *_ in (self.cut.get(id_) or self.entries[id_])["score"].values()]


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
