"""Agreement with neighbours by brute force."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_estimators import Lab, all_items

from evomerge.fitness.agreement import answers_of, nearest
from evomerge.fitness.estimators import make_estimator
from evomerge.fitness.estimators.estimate import estimate
from evomerge.measurement import wanted_columns
from evomerge.records import Cohort, Objective, Request, Responses

AGREE = Objective("agree", {"a": 0.25, "b": 0.75}, "answer", agreement=2)


class Texts(Lab):
    """Answers are numbers that stand for texts; scores are not looked at."""

    def answer(self, request: Request) -> None:
        items = np.array(request.items)
        answers = self.answers[request.task][request.candidate, items].astype(np.float32)
        columns = {"score": np.zeros_like(answers), "answer": answers}
        fingerprint = self.candidates[request.candidate].fingerprint
        self.measurements.add(fingerprint, Responses(request.task, items, columns))


def lab(num: int = 6) -> Texts:
    generator = np.random.default_rng(0)
    made = Texts({t: generator.integers(0, 3, (num, 20)).astype(float) for t in "ab"})
    places = generator.random((num, 2))
    made.candidates = tuple(replace(c, genome=places[c.id].tolist()) for c in made.candidates)
    return made


def by_hand(made: Texts, who: int, others: list[int], items: dict[str, tuple[int, ...]]) -> float:
    place = {i: np.array(made.candidates[i].genome) for i in (who, *others)}
    near = sorted(others, key=lambda i: (float(np.linalg.norm(place[i] - place[who])), i))[:2]
    value = 0.0
    for task, weight in AGREE.weights.items():
        matrix, ids = made.answers[task], list(items[task])
        value += weight * np.mean([matrix[who, ids] == matrix[i, ids] for i in near])
    return float(value)


def test_a_candidate_is_worth_what_its_two_nearest_answer_too() -> None:
    made = lab()
    items = all_items(made.answers)
    full = make_estimator({"kind": "full"}, [AGREE], items, 0)
    scores = made.run(full, made.cohort(0, range(6)))
    for who in range(6):
        others = [i for i in range(6) if i != who]
        assert scores[who].values[0] == pytest.approx(by_hand(made, who, others, items))
    peers = made.candidates
    (found,) = estimate([AGREE], made.measurements, peers[0], items, peers).values()
    assert found == scores[0].objectives["agree"]


def test_earlier_candidates_are_neighbours_where_they_answered_the_same() -> None:
    made = lab()
    items = all_items(made.answers)
    full = make_estimator({"kind": "full"}, [AGREE], items, 0)
    assert full.needs_history
    first = made.cohort(0, range(4))
    made.run(full, first)
    second = replace(made.cohort(1, [4, 5]), history=tuple(full.told(first)))
    scores = made.run(full, second)
    assert scores[4].values[0] == pytest.approx(by_hand(made, 4, [0, 1, 2, 3, 5], items))
    # Other items than they answered: only the cohort itself is left.
    some = make_estimator({"kind": "subset", "items": 5, "rotate": True}, [AGREE], items, 0)
    assert some.needs_history
    made.run(some, made.cohort(0, range(4)))
    scores = made.run(some, replace(second, history=tuple(some.told(first))))
    told = {t: tuple(i) for t, i in some.told(second)[0].items.items()}
    assert scores[4].values[0] == pytest.approx(by_hand(made, 4, [5], told))


def test_who_has_no_neighbour_has_no_score() -> None:
    made = lab()
    full = make_estimator({"kind": "full"}, [AGREE], all_items(made.answers), 0)
    assert made.run(full, made.cohort(0, [0])) == {}


def test_equal_recipes_are_no_neighbours_and_choices_serve_where_there_are_no_texts() -> None:
    made = lab()
    twin = replace(made.candidates[1], id=9, recipe=made.candidates[0].recipe)
    assert made.candidates[0].fingerprint not in nearest(made.candidates[0], [twin], 2)
    choices = np.array([0.0, 1.0, 2.0, 1.0], np.float32)
    for number, other in enumerate((choices, np.array([0, 1, 1, 1], np.float32))):
        fingerprint = made.candidates[number].fingerprint
        columns = {"score": other, "choice": other}
        made.measurements.add(fingerprint, Responses("a", np.arange(4), columns))
    one, two = (c.fingerprint for c in made.candidates[:2])
    found = answers_of(AGREE, made.measurements, one, "a", range(4), [two])
    assert found.tolist() == [1, 1, 0, 1]


def test_a_reference_is_compared_with_everybody() -> None:
    made = lab()
    reference = replace(made.candidates[0], genome=None)
    assert nearest(reference, made.candidates, 2) == [c.fingerprint for c in made.candidates[1:]]
    assert Cohort(0, (), made.measurements).history == ()


def test_nobody_agrees_with_an_item_that_failed() -> None:
    made = lab()
    for number in range(2):
        answers = np.array([1.0, np.nan, 2.0], np.float32)
        columns = {"score": np.zeros(3, np.float32), "answer": answers}
        fingerprint = made.candidates[number].fingerprint
        made.measurements.add(fingerprint, Responses("a", np.arange(3), columns))
    one, two = (c.fingerprint for c in made.candidates[:2])
    assert answers_of(AGREE, made.measurements, one, "a", range(3), [two]).tolist() == [1, 0, 1]
    assert wanted_columns([AGREE]) == {}


def test_the_last_of_a_race_keeps_the_score_of_the_rung_before() -> None:
    made = lab(6)
    race = {"kind": "racing", "rungs": [5, 10, 20], "keep": 0.3, "incumbents": 0}
    estimator = make_estimator(race, [AGREE], all_items(made.answers), 0)
    scores = made.run(estimator, made.cohort(0, range(6)))
    assert sorted(score.rung for score in scores.values()) == [0, 0, 0, 0, 1, 1]
    assert set(scores) == set(range(6))
    told = {entry.candidate.id: entry.rung for entry in estimator.told(made.cohort(0, range(6)))}
    assert told == {id_: score.rung for id_, score in scores.items()}


def test_lineages_have_no_places_and_are_compared_with_everybody() -> None:
    made = lab(3)
    lineages = [replace(c, genome={"parents": [c.id]}) for c in made.candidates]
    found = nearest(lineages[0], lineages, 1)
    assert found == [c.fingerprint for c in lineages[1:]]


def test_items_are_chosen_by_a_column_with_values() -> None:
    made = lab()
    stratified = {"kind": "stratified", "items": 8}
    references = tuple(replace(c, label=f"model {c.id}") for c in made.candidates[:3])
    for reference in references:
        for task in "ab":
            made.answer(Request(reference.id, task, tuple(range(20))))
    estimator = make_estimator(stratified, [AGREE], all_items(made.answers), 0)
    cohort = replace(made.cohort(0, [3, 4, 5]), references=references)
    assert set(made.run(estimator, cohort)) == {3, 4, 5}
