"""The search is a function of the experiment alone: not of arrival, not of speed, not of luck."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import LedgerDamaged
from evomerge.fitness.estimators import make_estimator
from evomerge.genes import Real
from evomerge.ledger import Ledger
from evomerge.loop import Search, run_search
from evomerge.measurement import Measurer, checked
from evomerge.recipe import Merge, ModelSource, Recipe
from evomerge.records import (
    Budget,
    Evaluation,
    Facts,
    Failure,
    Genome,
    Job,
    Objective,
    Outcome,
    Responses,
)
from evomerge.searchers import make_searcher

NUM_ITEMS = 30
TASKS = ("t", "u")
ESTIMATORS = {
    "full": {"kind": "full"},
    "racing": {"kind": "racing", "rungs": [4, 8, 12], "keep": 0.5, "incumbents": 2},
}


@dataclass(frozen=True)
class Space:
    """Genomes in steps: with few steps, many candidates have the same recipe."""

    steps: int = 1000
    genes: tuple[Real, ...] = (Real("x", 0, 1), Real("y", 0, 1))
    constraints: tuple[Any, ...] = ()

    def decode(self, genome: Genome) -> Recipe:
        x, y = (round(float(value) * self.steps) / self.steps for value in genome)
        return Recipe(
            base="base",
            models={"base": ModelSource(path="base"), "a": ModelSource(path="a")},
            default=Merge(operator="linear", parameters={"weight": x, "other": y}),
        )

    def encode(self, recipe: Recipe) -> Genome:
        raise ValueError("not needed here")

    def sample(self, generator: np.random.Generator) -> Genome:
        return generator.random(2).tolist()

    def designs(self) -> list[Genome]:
        return []

    def violations(self, genome: Genome) -> list[str]:
        return ["too much of it"] if genome[0] + genome[1] > 1.7 else []


def answer(job: Job, *, failing: bool) -> Outcome:
    """A pure function of the recipe and the items; some items break some recipes."""
    merge = job.recipe.default.parameters
    x, y = float(merge["weight"]), float(merge["other"])  # type: ignore[arg-type]
    responses = []
    for task, items in job.items.items():
        scores = []
        for item in items:
            digest = hashlib.sha256(f"{x} {y} {task} {item}".encode()).digest()
            if failing and digest[0] < 3:
                return Outcome(job, failure=Failure("task", f"{task}: item {item} broke it"))
            peak = 0.3 if task == "t" else 0.6
            scores.append(float(digest[1] / 255 > (x - peak) ** 2 + (y - peak) ** 2 + 0.2))
        responses.append(Responses(task, np.array(items), {"score": np.array(scores, np.float32)}))
    return Outcome(job, tuple(responses))


@dataclass
class Shuffled:
    """A pool whose outcomes come in any order, any number at a time, some very late."""

    seed: int
    slots: int = 4
    failing: bool = False
    queue: list[Job] = field(default_factory=list)
    answered: list[tuple[str, str, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(self.seed)
        self._begun: list[Job] = []

    def submit(self, job: Job) -> None:
        self.queue.append(job)

    def collect(self, timeout_s: float) -> list[Outcome]:
        assert self.queue or self._begun, "waiting for nothing"
        while self.queue and len(self._begun) < self.slots:
            self._begun.append(self.queue.pop(0))
        count = int(self._random.integers(0, len(self._begun) + 1))
        order = self._random.permutation(len(self._begun))
        done = [self._begun[i] for i in order[:count]]
        self._begun = [job for job in self._begun if job not in done]
        outcomes = [answer(job, failing=self.failing) for job in done]
        self.answered += [
            (job.recipe.fingerprint, task, item)
            for job, outcome in zip(done, outcomes, strict=True)
            if outcome.failure is None
            for task, items in job.items.items()
            for item in items
        ]
        return outcomes

    def cancel(self) -> list[Job]:
        jobs, self.queue = self.queue, []
        return jobs

    def close(self) -> None: ...


class Recording:
    """A searcher that notes what it is called with."""

    def __init__(self, searcher: Any) -> None:
        self._searcher = searcher
        self.calls: list[tuple[Any, ...]] = []
        self.num_asked = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._searcher, name)

    def ask(self, count: int) -> list[Genome]:
        genomes: list[Genome] = self._searcher.ask(count)
        if genomes:
            first = self.num_asked
            self.num_asked += len(genomes)
            self.calls.append(("ask", count, list(range(first, self.num_asked))))
        return genomes

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        self.calls.append(("tell", evaluations))
        self._searcher.tell(evaluations)


@dataclass(frozen=True)
class Setting:
    """A search of which only the pool and the budget vary."""

    searcher: str = "random"
    estimator: str = "full"
    in_flight: int = 8
    cohort: int = 8
    steps: int = 1000
    failing: bool = False
    steady: bool = False

    def search(self, ledger: Ledger) -> tuple[Search, Recording]:
        objectives = [Objective(task, {task: 1.0}) for task in TASKS]
        if self.searcher == "cma_es":
            objectives = [Objective("mean", dict.fromkeys(TASKS, 0.5))]
        space = Space(self.steps)
        facts = Facts(objectives=tuple(o.name for o in objectives))
        options = {"population": 8} | ({"steady": True} if self.steady else {})
        searcher = Recording(make_searcher(self.searcher, space, 5, facts, options))
        items = dict.fromkeys(TASKS, tuple(range(NUM_ITEMS)))
        estimator = make_estimator(ESTIMATORS[self.estimator], objectives, items, 0)
        return Search(searcher, space, estimator, ledger, self.in_flight, self.cohort), searcher

    def ledger(self, path: Path) -> Ledger:
        if path.exists():
            ledger = Ledger(path)
        else:
            ledger = Ledger.create(path, {"identity": {}}, dict.fromkeys(TASKS, NUM_ITEMS))
        ledger._db.execute("PRAGMA synchronous = OFF")  # nobody is killed here
        return ledger

    def run(self, path: Path, pool: Shuffled, budget: Budget) -> tuple[str, list[tuple[Any, ...]]]:
        pool.failing = self.failing
        ledger = self.ledger(path)
        search, recording = self.search(ledger)
        run_search(search, Measurer(pool, ledger), budget)
        digest = ledger.digest()
        ledger.close()
        assert len(pool.answered) == len(set(pool.answered)), "measured twice"
        return digest, recording.calls


def tells(calls: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Who was asked for ahead when the items ran out is nobody's concern."""
    return [call for call in calls if call[0] == "tell"]


SETTINGS = [
    Setting("random", "full", 12, 3),
    Setting("random", "racing", 12, 3),
    Setting("random", "racing", 10, 4, steps=3, failing=True),
    Setting("random", "full", 7, 1, steps=3, failing=True),
    Setting("nsga2", "full", 5, 3),
    Setting("nsga2", "racing", 20, 8, failing=True),
    Setting("nsga2", "full", 8, 1, failing=True, steady=True),
    Setting("nsga2", "racing", 8, 4, steady=True),
    Setting("cma_es", "racing", 6, 6),
    Setting("cma_es", "full", 16, 5, steps=4, failing=True),
]


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_calls_depend_neither_on_arrival_nor_on_slots(setting, tmp_path):
    budget = Budget(candidates=40)
    expected = setting.run(tmp_path / "expected.sqlite", Shuffled(0, slots=1), budget)
    for seed in range(1, 6):
        pool = Shuffled(seed, slots=(1, 2, 3, 8, 100)[seed - 1])
        assert setting.run(tmp_path / f"{seed}.sqlite", pool, budget) == expected


def test_who_watches_is_told_what_is_durable(tmp_path):
    """Also where several outcomes share a commit: they are told after it."""
    setting = Setting()
    ledger = setting.ledger(tmp_path / "ledger.sqlite")
    search, _ = setting.search(ledger)
    told: list[bool] = []

    class Watcher:
        def measured(self, outcome: Outcome) -> None:
            told.append(ledger._db.in_transaction)

    run_search(search, Measurer(Shuffled(1, slots=8), ledger, (Watcher(),)), Budget(24))
    assert len(told) == len(list(ledger.events("measured")))
    assert not any(told)
    ledger.close()


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_a_budget_of_items_ends_alike_for_everybody(setting, tmp_path):
    budget = Budget(80, 600)
    expected = setting.run(tmp_path / "expected.sqlite", Shuffled(0, slots=1), budget)
    for seed in range(1, 4):
        pool = Shuffled(seed, slots=(2, 5, 100)[seed - 1])
        digest, calls = setting.run(tmp_path / f"{seed}.sqlite", pool, budget)
        assert (digest, tells(calls)) == (expected[0], tells(expected[1]))


@settings(max_examples=12, deadline=None)
@given(
    in_flight=st.integers(1, 20),
    cohort=st.integers(1, 20),
    searcher=st.sampled_from(["random", "nsga2", "cma_es"]),
    seed=st.integers(0, 99),
)
def test_a_candidate_waits_for_those_that_came_long_before(
    tmp_path_factory, in_flight, cohort, searcher, seed
):
    """Candidate i is asked for once all up to i - in_flight are told; all tells are in order."""
    setting = Setting(searcher, "full", in_flight, min(cohort, in_flight))
    path = tmp_path_factory.mktemp("window") / "l.sqlite"
    _, calls = setting.run(path, Shuffled(seed), Budget(candidates=24))
    told: list[int] = []
    for kind, *call in calls:
        if kind == "ask":
            count, ids = call
            assert len(ids) <= count <= setting.cohort
            assert len(told) > max(ids) - in_flight
        else:
            told += [evaluation.id for evaluation in call[0]]
    assert told == list(range(len(told)))
    assert len(told) >= 24 - setting.cohort


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize("first", [9, 16])
def test_a_longer_budget_goes_on_as_if_it_had_been_there(setting, first, tmp_path):
    expected = setting.run(tmp_path / "whole.sqlite", Shuffled(1), Budget(candidates=40))
    setting.run(tmp_path / "parts.sqlite", Shuffled(2), Budget(candidates=first))
    digest, calls = setting.run(tmp_path / "parts.sqlite", Shuffled(3), Budget(candidates=40))
    assert (digest, calls) == expected


def test_a_budget_of_items_can_be_extended(tmp_path):
    for number, setting in enumerate(SETTINGS):
        whole, parts = tmp_path / f"whole{number}.sqlite", tmp_path / f"parts{number}.sqlite"
        expected = setting.run(whole, Shuffled(1), Budget(80, 700))
        setting.run(parts, Shuffled(2), Budget(80, 300))
        digest, calls = setting.run(parts, Shuffled(3), Budget(80, 700))
        assert (digest, tells(calls)) == (expected[0], tells(expected[1]))


# --- what a pool brings ---------------------------------------------------------------------------


JOB = Job(0, 0, Space().decode([0.1, 0.2]), {"t": (0, 3)})


def responses(items: Sequence[int] = (0, 3), task: str = "t", **columns: Any) -> Responses:
    values = {name: np.array(column, np.float32) for name, column in columns.items()}
    values.setdefault("score", np.zeros(len(items), np.float32))
    return Responses(task, np.array(items), values)


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        (responses(score=[0.0, np.nan]), "non_finite"),
        (responses(margin=[np.inf, 0.0]), "non_finite"),
        (responses([0]), "task"),
        (responses([3, 0]), "task"),
        (responses([0, 3, 4]), "task"),
        (responses(task="u"), "task"),
    ],
)
def test_an_answer_that_is_none_is_a_failure(bad, kind):
    outcome = checked(Outcome(JOB, (bad,)))
    assert outcome.failure is not None
    assert outcome.failure.kind == kind
    assert outcome.responses == ()


def test_a_good_answer_passes():
    good = Outcome(JOB, (responses(margin=[-1e30, 0.5]),))
    assert checked(good) is good


# --- replay ---------------------------------------------------------------------------------------


def drifted(path: Path, setting: Setting) -> None:
    """A run whose third cohort was recorded with other genomes than the searcher would ask."""
    setting.run(path, Shuffled(0), Budget(candidates=24))
    ledger = Ledger(path)
    with ledger._db:
        (genome,) = ledger._db.execute("SELECT genome FROM candidates WHERE id = 17").fetchone()
        x, y = genome.strip("[]").split(",")
        moved = f"[{float(x) * 0.999},{y}]"
        ledger._db.execute("UPDATE candidates SET genome = ? WHERE id = 17", (moved,))
    ledger.close()


@pytest.mark.parametrize("searcher", ["random", "nsga2", "cma_es"])
def test_a_replay_that_drifts_goes_on_from_what_is_recorded(searcher, tmp_path, caplog):
    setting = Setting(searcher)
    drifted(tmp_path / "l.sqlite", setting)
    ledger = Ledger(tmp_path / "l.sqlite")
    recorded = {i: c.genome for i, c in ledger.candidates.items()}
    search, _ = setting.search(ledger)
    run_search(search, Measurer(Shuffled(1), ledger), Budget(candidates=40))
    assert "candidates 16 to 23 are asked differently" in caplog.text
    assert "going on from the recorded genomes" in caplog.text
    assert {i: ledger.candidates[i].genome for i in recorded} == recorded
    assert len(ledger.evaluations()) == 40
    ledger.close()


@pytest.mark.parametrize("searcher", ["random", "nsga2", "cma_es"])
def test_a_searcher_may_refuse_to_go_on(searcher, tmp_path):
    setting = Setting(searcher)
    drifted(tmp_path / "l.sqlite", setting)
    ledger = Ledger(tmp_path / "l.sqlite")
    search, recording = setting.search(ledger)
    recording.resumes_on_drift = False
    before = [e[0] for e in ledger.events("asked", "told", "measured")]
    with pytest.raises(LedgerDamaged, match="candidates 16 to 23") as caught:
        run_search(search, Measurer(Shuffled(1), ledger), Budget(candidates=40))
    assert caught.value.exit_code == 5
    assert [e[0] for e in ledger.events("asked", "told", "measured")] == before
    ledger.close()
