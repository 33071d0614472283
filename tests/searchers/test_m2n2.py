"""M2N2 against a plain loop of the paper's steps, and what a run of it must keep."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toys
from searcher_calls import Lines, Setting, evaluation
from toys import Toy, outcome_of

from evomerge.errors import ConfigurationError
from evomerge.experiment import run as runs
from evomerge.protocols import Searcher
from evomerge.records import Evaluation, Genome, Responses
from evomerge.searchers.m2n2 import M2n2


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "write_pictures", lambda *_: None)


def answers(genome: Genome, num_items: int = 20) -> np.ndarray:
    """Item j is right near j / num_items: nobody can have all."""
    return np.abs(np.arange(num_items) / num_items - genome["at"]) < 0.2


def told(number: int, genome: Genome, scores: Any = None) -> Evaluation:
    """An evaluation with these answers, in two tasks."""
    scores = np.asarray(answers(genome) if scores is None else scores, np.float32)
    half = len(scores) // 2
    parts = {"t": scores[:half], "u": scores[half:]}
    responses = {n: Responses(n, np.arange(len(s)), {"score": s}) for n, s in parts.items()}
    return replace(evaluation(number, genome, [float(scores.mean())]), responses=responses)


def one_by_one(searcher: Searcher, count: int) -> list[Genome]:
    genomes = []
    for number in range(count):
        (genome,) = searcher.ask(1)
        searcher.tell([told(number, genome)])
        genomes.append(genome)
    return genomes


class Published:
    """The published algorithm as loops, with the searcher's random numbers."""

    def __init__(self, seeds: tuple[Genome, ...], seed: int, size: int, **switches: Any) -> None:
        self.seeds, self.seed, self.switches = seeds, seed, switches
        self.rows = [([0.0] * 20, None)] * size

    def fitness(self, rows: list[Any]) -> tuple[list[Any], list[Any]]:
        alpha = self.switches.get("alpha", 1.0)
        z = [sum(row[0][j] for row in rows) or 1 for j in range(20)]
        share = [1 / Fraction(int(z_j)) ** int(alpha) for z_j in z]
        return share, [sum(int(s) * w for s, w in zip(row[0], share, strict=True)) for row in rows]

    def genome(self, number: int) -> Genome:
        if number < len(self.seeds):
            return self.seeds[number]
        generator = np.random.default_rng(np.random.SeedSequence([self.seed, number]))
        share, fitness = self.fitness(self.rows)
        lots = generator.random(2)

        def drawn(weights: list[Any], lot: float) -> int:
            place, rest = 0, Fraction(lot) * sum(weights)
            while rest >= weights[place]:
                rest -= weights[place]
                place += 1
            return place

        first = drawn(fitness, lots[0])
        gains = fitness
        if self.switches.get("attraction", True):
            mine = self.rows[first][0]
            gains = [
                sum(w * int(max(s - m, 0)) for w, s, m in zip(share, row[0], mine, strict=True))
                for row in self.rows
            ]
            if not sum(gains):
                gains = [f * (i != first) for i, f in enumerate(fitness)]
        second = drawn(gains, lots[1]) if sum(gains) else first
        mix, split = float(generator.random()), int(generator.integers(Lines.total))
        if not self.switches.get("crossover", True):
            return self.rows[first][1]
        split = split if self.switches.get("split", True) else Lines.total
        return Lines().cross(self.rows[first][1], self.rows[second][1], mix, split)

    def insert(self, genome: Genome) -> None:
        rows = [*self.rows, (answers(genome).astype(float).tolist(), genome)]
        _, fitness = self.fitness(rows)
        worst = fitness.index(min(fitness))
        if worst < len(self.rows):
            self.rows[worst] = rows[-1]


@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"alpha": 0.0, "attraction": False},
        {"split": False},
        {"crossover": False},
        {"alpha": 2.0},
    ],
    ids=str,
)
def test_one_in_flight_is_the_published_algorithm(switches: dict[str, Any]) -> None:
    setting = Setting("m2n2", 1, 7, options={"archive": 4, "in_flight": 1, **switches})
    seeds, _ = setting.experts()
    published = Published(seeds, 7, 4, **switches)
    expected = []
    for number in range(120):
        expected.append(published.genome(number))
        published.insert(expected[-1])
    assert one_by_one(setting.make(), 120) == expected


def test_a_plain_genetic_algorithm_finds_one_peak_and_niches_keep_several() -> None:
    """Every item right near its own place: niches spread over [0, 1], and a GA crowds together."""
    spreads = {}
    for name, switches in (("m2n2", {}), ("ga", {"alpha": 0.0, "attraction": False})):
        ends = ({"at": 0.0}, {"at": 1.0})
        options = {"archive": 6, "in_flight": 1, **switches}
        searcher = Setting("m2n2", 1, designs=ends, options=options).make()
        one_by_one(searcher, 300)
        assert isinstance(searcher, M2n2)
        alive = [searcher._genomes[member]["at"] for member in searcher._archive.members]
        spreads[name] = np.mean(np.any([answers({"at": x}) for x in alive], axis=0))
    assert spreads["m2n2"] > 0.9
    assert spreads["ga"] < 0.8


def test_parents_are_drawn_without_the_last_candidates_whatever_the_batches() -> None:
    streams = []
    for size in (1, 3, 4):
        searcher = Setting("m2n2", 1, 2, options={"archive": 4, "in_flight": 4}).make()
        genomes: list[Genome] = []
        waiting: list[Evaluation] = []
        while len(genomes) < 60 or waiting:
            born = searcher.ask(size) if len(genomes) < 60 else []
            waiting += [told(len(genomes) + i, g) for i, g in enumerate(born)]
            genomes += born
            assert len(waiting) <= 4
            searcher.tell(waiting[:1])
            waiting = waiting[1:]
        streams.append(genomes[:60])
    assert streams[0] == streams[1] == streams[2]


def test_failures_and_answers_that_are_not_finite_never_enter() -> None:
    searcher = Setting("m2n2", 1, options={"archive": 4, "in_flight": 1}).make()
    assert isinstance(searcher, M2n2)
    for number in range(60):
        (genome,) = searcher.ask(1)
        bad = [
            evaluation(number, genome, None),
            evaluation(number, genome, [float("nan")]),
            told(number, genome, np.full(20, np.nan)),
            replace(told(number, genome), violation=1.0),
        ]
        searcher.tell([told(number, genome) if number % 5 == 0 else bad[number % 5 - 1]])
        assert all(member % 5 == 0 for member in searcher._archive.members)
    assert len(searcher._genomes) == len(searcher._archive) == 4


def test_new_scores_replace_those_of_the_living_and_a_failure_removes_them() -> None:
    searcher = Setting("m2n2", 1, options={"archive": 4, "in_flight": 1}).make()
    assert isinstance(searcher, M2n2)
    genomes = one_by_one(searcher, 30)
    searcher.ask(1)
    one, other = searcher._archive.members[:2]
    dead = next(i for i in range(30) if i not in searcher._archive)
    searcher.tell([told(one, genomes[one], np.ones(20)), told(dead, genomes[dead], np.ones(20))])
    searcher.tell([evaluation(other, genomes[other], None)])
    assert (searcher._archive.scores(one) == 1).all()
    assert other not in searcher._archive
    assert dead not in searcher._archive
    assert searcher._genomes.keys() == set(searcher._archive.members)


def test_all_answer_the_same_items_and_were_asked_for() -> None:
    searcher = Setting("m2n2", 1, options={"in_flight": 1}).make()
    (genome,) = searcher.ask(1)
    with pytest.raises(ValueError, match="not asked for"):
        searcher.tell([told(1, genome)])
    searcher.tell([told(0, genome), told(-3, None, np.ones(20))])  # references are ignored
    (genome,) = searcher.ask(1)
    searcher.tell([told(1, genome, np.ones(22))])
    with pytest.raises(ValueError, match="candidate 1 has answered other items"):
        searcher.ask(1)


def test_one_model_or_none_is_no_trouble() -> None:
    for designs in (({"at": 0.5},), ({"at": 0.5}, {"at": 0.5})):
        searcher = Setting("m2n2", 1, designs=designs, options={"in_flight": 2}).make()
        assert len(one_by_one(searcher, 20)) == 20

    class Same(Lines):
        def sample(self, generator: np.random.Generator) -> Genome:
            return {"at": 0.5}

    setting = Setting("m2n2", 1, designs=({"at": 0.5},), options={"in_flight": 2})
    setting.space = Same  # type: ignore[method-assign]
    assert one_by_one(setting.make(), 10) == [{"at": 0.5}] * 10


def test_another_run_gives_its_best_to_be_measured_again() -> None:
    before = tuple(evaluation(i, {"at": i / 40}, [float(i % 7)]) for i in range(20))
    setting = Setting("m2n2", 1, options={"archive": 3, "in_flight": 8}, warm_start=before)
    genomes = setting.make().ask(8)
    assert genomes[:3] == list(setting.experts()[0])
    assert genomes[3:6] == [{"at": i / 40} for i in (6, 13, 5)]


# --- in a run -------------------------------------------------------------------------------------

LINEAGES = {"space": {"kind": "niches"}}
SEARCHER = {"kind": "m2n2", "archive": 6, "in_flight": 4}


@pytest.mark.parametrize("estimator", ["full", "subset"])
def test_a_run_resumed_anywhere_equals_one_that_was_not(
    estimator: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(toys.SEARCHERS, "m2n2", SEARCHER)
    monkeypatch.setitem(toys.ESTIMATORS, "subset", {"kind": "subset", "items": 10})
    toy = Toy("m2n2", estimator, keys=LINEAGES)
    whole = outcome_of(toy.run(tmp_path / "whole"))
    for budget in (3, 17, 18, 40):
        toy.run(tmp_path / "parts", budget)
    assert toys.forked(lambda: toy.run(tmp_path / "killed"), "tell.before_commit:20") < 0
    toy.run(tmp_path / "killed")
    assert outcome_of(tmp_path / "killed") == whole
    parts = outcome_of(tmp_path / "parts")
    assert parts["digest"] == whole["digest"]
    assert parts["final"] == whole["final"]
    stretches = [len(genome["stops"]) for genome in whole["genomes"].values() if genome]
    assert max(stretches) > 4  # children of children


@pytest.mark.parametrize("kind", ["racing", "shrinkage"])
def test_who_asks_each_candidate_other_items_is_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(toys.SEARCHERS, "m2n2", SEARCHER)
    monkeypatch.setitem(toys.ESTIMATORS, "rotating", {"kind": "subset", "items": 8, "rotate": True})
    chosen = "racing" if kind == "racing" else "rotating"
    with pytest.raises(ConfigurationError, match="m2n2 compares candidates item by item") as caught:
        Toy("m2n2", chosen, keys=LINEAGES).run(tmp_path)
    assert "full, or subset without rotate" in str(caught.value)


def test_a_space_of_genes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(toys.SEARCHERS, "m2n2", SEARCHER)
    with pytest.raises(ConfigurationError, match="kind: niches has them") as caught:
        Toy("m2n2").run(tmp_path)
    assert "m2n2 crosses lineages, and this space's genomes are none" in str(caught.value)
    assert "searchers that can: random" in str(caught.value)


def test_everything_it_keeps_is_small() -> None:
    """Genomes of the living alone, whatever was asked."""
    searcher = Setting("m2n2", 1, options={"archive": 5, "in_flight": 3}).make()
    assert isinstance(searcher, M2n2)
    one_by_one(searcher, 200)
    assert len(searcher._genomes) == 5
    assert len(searcher._waiting) <= 3
    json.dumps(list(searcher._genomes.values()))
