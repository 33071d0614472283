"""Estimators against brute force over made-up response matrices, where every ability is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from evomerge.errors import ConfigurationError
from evomerge.fitness.estimators import make_estimator
from evomerge.fitness.estimators.estimate import estimate
from evomerge.fitness.estimators.kinds import make_reading
from evomerge.protocols import Estimator
from evomerge.recipe import Recipe
from evomerge.records import (
    Candidate,
    Cohort,
    Failure,
    Measurements,
    Objective,
    Request,
    Responses,
)

Answers = dict[str, NDArray[np.float64]]  # task -> (candidates, items)
MEAN = (Objective("mean", {"a": 0.5, "b": 0.5}),)
RACE: dict[str, Any] = {"kind": "racing", "rungs": [4, 8, 16], "keep": 0.4, "incumbents": 2}


def candidate(number: int) -> Candidate:
    recipe = Recipe.model_validate(
        {
            "base": "base",
            "models": {"base": "b", "x": "x"},
            "default": {"operator": "linear", "parameters": {"weight": float(number)}},
        }
    )
    return Candidate(number, [0.0], recipe)


class Lab:
    """Answers requests from a matrix, and counts what it is asked."""

    def __init__(self, answers: Answers, failing: Sequence[tuple[int, str]] = ()) -> None:
        self.answers = answers
        self.candidates = tuple(candidate(i) for i in range(len(next(iter(answers.values())))))
        self.measurements = Measurements({t: m.shape[1] for t, m in answers.items()})
        self.failing = set(failing)
        self.broken: dict[tuple[int, str], set[int]] = {}  # items that cannot be answered

    def cohort(self, index: int, ids: Sequence[int], incumbents: Sequence[int] = ()) -> Cohort:
        chosen = tuple(self.candidates[i] for i in ids)
        rivals = tuple(self.candidates[i] for i in incumbents)
        return Cohort(index, chosen, self.measurements, rivals)

    def answer(self, request: Request) -> None:
        fingerprint = self.candidates[request.candidate].fingerprint
        if (request.candidate, request.task) in self.failing:
            asked = {request.task: request.items}
            self.measurements.fail(fingerprint, Failure("task", "made up"), asked, 0)
            return
        items = np.array(request.items)
        scores = self.answers[request.task][request.candidate, items].astype(np.float32)
        broken = self.broken.get((request.candidate, request.task), set())
        failures = {item: "broken" for item in request.items if item in broken}
        columns = {"score": scores, "margin": scores - 0.5}
        answers = Responses(request.task, items, columns, failures=failures)
        self.measurements.add(fingerprint, answers)

    def run(self, estimator: Estimator, cohort: Cohort) -> dict[int, Any]:
        while requests := estimator.requests(cohort):
            for request in requests:
                self.answer(request)
        return dict(estimator.scores(cohort))


def difference(
    objectives: Sequence[Objective],
    lab: Lab,
    first: Candidate,
    second: Candidate,
    items: dict[str, tuple[int, ...]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """First minus second, as a race compares them."""
    reading = make_reading({"kind": "subset"}, objectives, all_items(lab.answers), 0)
    return reading.difference(lab.cohort(0, []), first, second, items)


def all_items(answers: Answers) -> dict[str, tuple[int, ...]]:
    return {task: tuple(range(matrix.shape[1])) for task, matrix in answers.items()}


def random_answers(seed: int, num: int, sizes: dict[str, int]) -> Answers:
    """Right and wrong answers; candidates differ in ability, items in difficulty."""
    generator = np.random.default_rng(seed)
    ability = generator.normal(size=(num, 1))
    return {
        task: (ability + generator.normal(size=(num, size)) > generator.normal(size=size)).astype(
            float
        )
        for task, size in sizes.items()
    }


def test_a_candidate_that_answers_nothing_of_a_rung_fails_whatever_else_is_known():
    """In a race and in the final reading; answers to other items, there before, change nothing."""
    answers = {"a": np.ones((3, 12)), "b": np.ones((3, 12))}
    options = {"kind": "racing", "rungs": [2, 6], "keep": 0.9, "incumbents": 0}
    told = []
    for before in ([], [0, 1, 2, 3, 4, 5, 6], list(range(12))):
        lab = Lab(answers)
        race = make_estimator(options, MEAN, all_items(answers), 0)
        cohort = lab.cohort(0, [0, 1, 2])
        (first, *_) = [r for r in race.requests(cohort) if r.candidate == 1 and r.task == "b"]
        lab.broken = {(1, "b"): set(first.items)}
        if before:
            lab.answer(Request(1, "b", tuple(before)))
        assert sorted(lab.run(race, cohort)) == [0, 2]
        told.append(race.failures(cohort))
    assert told == [{1: Failure("task", "b: no item could be answered: broken")}] * 3


# --- values and standard errors -------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    share=st.floats(0.01, 0.99),
    sign=st.sampled_from([1, -1]),
    column=st.sampled_from(["score", "margin"]),
)
def test_an_objective_is_a_weighted_mean_of_strata(
    seed: int, share: float, sign: int, column: str
) -> None:
    answers = random_answers(seed, 2, {"a": 30, "b": 12})
    lab = Lab(answers)
    objective = Objective("o", {"a": share, "b": 1 - share}, column, sign)
    items = {"a": (3, 1, 20, 7), "b": (0, 11, 5)}
    for one in (0, 1):
        for task, wanted in items.items():
            lab.answer(Request(one, task, wanted))
    shift = 0.5 if column == "margin" else 0.0
    a, b = (answers[t][0, list(items[t])] - shift for t in "ab")
    found = estimate([objective], lab.measurements, lab.candidates[0], items)["o"]
    assert found.num_items == 7
    assert found.value == pytest.approx(sign * (share * np.mean(a) + (1 - share) * np.mean(b)))
    variance = share**2 * np.var(a, ddof=1) / 4 + (1 - share) ** 2 * np.var(b, ddof=1) / 3
    assert found.standard_error == pytest.approx(math.sqrt(variance))

    mean, error = difference([objective], lab, *lab.candidates, items)
    gaps = [answers[t][0, list(items[t])] - answers[t][1, list(items[t])] for t in "ab"]
    assert mean[0] == pytest.approx(
        sign * (share * np.mean(gaps[0]) + (1 - share) * np.mean(gaps[1]))
    )
    variance = (
        share**2 * np.var(gaps[0], ddof=1) / 4 + (1 - share) ** 2 * np.var(gaps[1], ddof=1) / 3
    )
    assert error[0] == pytest.approx(math.sqrt(variance))


def test_a_column_that_no_answer_has_is_refused_with_the_nearest_name() -> None:
    lab = Lab(random_answers(0, 1, {"a": 4}))
    lab.answer(Request(0, "a", (0, 1, 2, 3)))
    objective = Objective("o", {"a": 1.0}, "margn")
    with pytest.raises(ConfigurationError, match=r"no column 'margn' \(did you mean 'margin'"):
        estimate([objective], lab.measurements, lab.candidates[0], {"a": (0, 1)})


def test_full_is_the_mean_of_everything() -> None:
    answers = random_answers(1, 6, {"a": 20, "b": 10})
    lab = Lab(answers)
    full = make_estimator({"kind": "full"}, MEAN, all_items(answers), 0)
    scores = lab.run(full, lab.cohort(0, range(6)))
    expected = (answers["a"].mean(axis=1) + answers["b"].mean(axis=1)) / 2
    assert [scores[i].values[0] for i in range(6)] == pytest.approx(list(expected))
    assert lab.measurements.item_evaluations == full.expected_items(6) == 6 * 30


def test_a_subset_is_the_same_for_all_candidates_and_runs_of_a_seed() -> None:
    answers = random_answers(2, 5, {"a": 40, "b": 30})
    asked = []
    for seed in (3, 3, 4):
        lab = Lab(answers)
        subset = make_estimator({"kind": "subset", "items": 7}, MEAN, all_items(answers), seed)
        requests = subset.requests(lab.cohort(0, range(5)))
        assert {(r.task, len(set(r.items))) for r in requests} == {("a", 7), ("b", 7)}
        for task in "ab":
            assert len({r.items for r in requests if r.task == task}) == 1
        scores = lab.run(subset, lab.cohort(0, range(5)))
        items = {r.task: list(r.items) for r in requests}
        by_hand = np.mean([answers[t][2, items[t]].mean() for t in "ab"])
        assert scores[2].values[0] == pytest.approx(by_hand)
        assert lab.measurements.item_evaluations == subset.expected_items(5)
        asked.append(items)
    assert asked[0] == asked[1] != asked[2]


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"kind": "subset"}, "items: this key is missing"),
        ({"kind": "subset", "items": 400}, "400 items of each task were asked for"),
        ({"kind": "full", "items": 3}, "items: unknown key"),
        ({"kind": "racing", "rugns": [2, 4]}, "did you mean 'rungs'"),
        ({"kind": "racing", "rungs": [4, 4]}, "rungs must rise"),
        ({"kind": "racing", "rungs": [4, 800]}, "800 items of each task were asked for"),
        ({"kind": "racing", "keep": 1.0}, "keep: should be less than 1"),
        ({"kind": "race"}, "unknown estimator"),
    ],
)
def test_options_that_cannot_be_are_refused(config: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        make_estimator(config, MEAN, {"a": range(100), "b": range(100)}, 0)


# --- racing ---------------------------------------------------------------------------------------


def by_hand(values: Sequence[float], keep: float) -> list[int]:
    """Indices that a rung keeps: the best share, ties to the earlier."""
    count = math.ceil(keep * len(values))
    return sorted(sorted(range(len(values)), key=lambda i: (-values[i], i))[:count])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), num=st.integers(1, 12))
def test_a_race_is_successive_halving(seed: int, num: int) -> None:
    answers = random_answers(seed, num, {"a": 20, "b": 16})
    lab = Lab(answers)
    race = make_estimator(RACE, MEAN, all_items(answers), seed % 7)
    cohort = lab.cohort(0, range(num))
    left, items = list(range(num)), {"a": [], "b": []}
    for rung, count in enumerate([4, 8, 16]):
        requests = race.requests(cohort)
        assert {r.candidate for r in requests} == set(left)
        for task in "ab":  # common: everybody is asked the same; nested: only what is new
            (new,) = {r.items for r in requests if r.task == task}
            assert not set(new) & set(items[task])
            items[task] += new
            assert len(items[task]) == count
        for request in requests:
            lab.answer(request)
        scores = race.scores(cohort)
        values = [np.mean([answers[t][i, items[t]].mean() for t in "ab"]) for i in left]
        for i, value in zip(left, values, strict=True):
            assert scores[i].values[0] == pytest.approx(value)
            assert scores[i].rung == rung
        left = [left[k] for k in by_hand(values, 0.4)]
    assert race.requests(cohort) == []
    assert lab.measurements.item_evaluations <= race.expected_items(num)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), extra=st.lists(st.integers(0, 11), max_size=8))
def test_a_race_comes_out_the_same_whatever_else_is_known(seed: int, extra: list[int]) -> None:
    answers = random_answers(seed, 12, {"a": 40, "b": 40})
    race = make_estimator(RACE, MEAN, all_items(answers), 1)
    lab = Lab(answers)
    cohort = lab.cohort(2, range(10), incumbents=[10, 11])
    scores = lab.run(race, cohort)
    generator = np.random.default_rng(seed)
    for who in extra:
        wanted = tuple(generator.choice(40, 15, replace=False).tolist())
        lab.answer(Request(who, "a", wanted))
    assert race.requests(cohort) == []
    assert race.scores(cohort) == scores

    other = Lab(answers)  # and what was there before, or comes in another order, changes nothing
    for who in extra:
        other.answer(Request(who, "b", tuple(range(40))))
    again = other.cohort(2, range(10), incumbents=[10, 11])
    while requests := race.requests(again):
        for request in reversed(requests):
            other.answer(request)
    assert race.scores(again) == scores


def test_the_dropped_rank_below_every_survivor() -> None:
    answers = random_answers(5, 9, {"a": 64, "b": 64})
    lab = Lab(answers)
    scores = lab.run(make_estimator(RACE, MEAN, all_items(answers), 0), lab.cohort(0, range(9)))
    assert sorted((s.rung for s in scores.values()), reverse=True) == [2, 2, 1, 1, *[0] * 5]
    assert max(s.values[0] for s in scores.values() if s.rung == 0) > 0  # yet ranked below


def test_items_rotate_through_all_of_them_and_can_stand_still() -> None:
    answers = random_answers(0, 2, {"a": 48, "b": 48})
    seen: dict[bool, list[set[int]]] = {True: [], False: []}
    for rotate, windows in seen.items():
        race = make_estimator({**RACE, "rotate": rotate}, MEAN, all_items(answers), 0)
        for index in range(3):
            lab = Lab(answers)
            lab.run(race, lab.cohort(index, [0, 1]))
            answered = lab.measurements.missing(lab.candidates[0].fingerprint, "a", range(48))
            other = lab.measurements.missing(lab.candidates[1].fingerprint, "a", range(48))
            windows.append(set(range(48)) - (set(answered) & set(other)))
    assert [len(window) for window in seen[True]] == [16, 16, 16]
    assert set.union(*seen[True]) == set(range(48))
    assert seen[False][0] == seen[False][1] == seen[False][2]


def test_the_hopeless_leave_at_once_and_incumbents_are_scored_anew() -> None:
    good, bad = np.ones((3, 40)), np.zeros((6, 40))
    answers = {"a": np.vstack([bad, good]), "b": np.vstack([bad, good])}
    lab = Lab(answers)
    race = make_estimator(RACE, MEAN, all_items(answers), 0)
    scores = lab.run(race, lab.cohort(0, range(6), incumbents=[6, 7]))
    assert {i: s.rung for i, s in scores.items()} == dict.fromkeys(range(6), 0)
    assert lab.measurements.item_evaluations == 8 * 2 * 4  # nobody went on, nor did the incumbents

    lab = Lab(answers)
    scores = lab.run(race, lab.cohort(0, [0, 1, 8], incumbents=[6, 7]))
    assert scores[8].rung == scores[6].rung == scores[7].rung == 2
    assert scores[6].objectives["mean"].num_items == 32


def test_who_is_worse_by_a_hair_is_not_hopeless() -> None:
    almost = np.ones(40)
    almost[7] = 0.0  # one item in forty: within two standard errors of a paired difference
    answers = {task: np.array([almost, np.ones(40)]) for task in "ab"}
    lab = Lab(answers)
    options = {**RACE, "rungs": [39, 40]}
    race = make_estimator(options, MEAN, all_items(answers), 0)
    assert lab.run(race, lab.cohort(0, [0], incumbents=[1]))[0].rung == 1
    strict = make_estimator({**options, "confidence": 0.5}, MEAN, all_items(answers), 0)
    assert strict.scores(lab.cohort(0, [0], incumbents=[1]))[0].rung == 0


def test_with_several_objectives_only_a_dominated_one_is_hopeless() -> None:
    ones, zeros = np.ones(40), np.zeros(40)
    answers = {"a": np.array([ones, zeros, ones]), "b": np.array([zeros, zeros, ones * 0.5])}
    objectives = (Objective("a", {"a": 1.0}), Objective("b", {"b": 1.0}))
    lab = Lab(answers)
    race = make_estimator({**RACE, "keep": 0.9}, objectives, all_items(answers), 0)
    scores = lab.run(race, lab.cohort(0, [0, 1], incumbents=[2]))
    assert scores[0].rung == 2  # as good as the incumbent in one of them
    assert scores[1].rung == 0


def test_the_front_goes_on_before_a_better_mean_that_is_dominated() -> None:
    levels = {"a": [1.0, 0.75, 0.0, 0.7], "b": [0.0, 0.75, 1.0, 0.7]}
    answers = {
        task: np.array([[1.0] * int(40 * v) + [0.0] * (40 - int(40 * v)) for v in row])
        for task, row in levels.items()
    }
    objectives = (Objective("a", {"a": 1.0}), Objective("b", {"b": 1.0}))
    lab = Lab(answers)
    options = {"kind": "racing", "rungs": [20, 40], "keep": 0.75, "incumbents": 0}
    race = make_estimator(options, objectives, all_items(answers), 3)
    scores = lab.run(race, lab.cohort(0, range(4)))
    assert {i for i, s in scores.items() if s.rung == 1} == {0, 1, 2}
    assert sum(scores[3].values) > sum(scores[0].values)  # but 1 is better in both


def test_who_fails_later_is_not_replaced_and_has_no_score() -> None:
    answers = random_answers(3, 9, {"a": 40, "b": 40})
    whole = Lab(answers)
    race = make_estimator(RACE, MEAN, all_items(answers), 0)
    scores = whole.run(race, whole.cohort(0, range(9)))
    best = max(scores, key=lambda i: (scores[i].rung, scores[i].values))

    lab = Lab(answers)
    cohort = lab.cohort(0, range(9))
    for request in race.requests(cohort):
        lab.answer(request)
    second = {r.candidate for r in race.requests(cohort)}
    lab.failing = {(best, "a")}
    others = {r.candidate for r in race.requests(cohort)} - {best}
    rest = lab.run(race, cohort)
    assert best in second
    assert best not in rest
    assert {i for i, s in rest.items() if s.rung >= 1} == others


def regret(seed: int, estimator: dict[str, Any], num: int = 27) -> tuple[float, int]:
    """What is lost by the choice, and its cost; abilities are known."""
    generator = np.random.default_rng(seed)
    ability = generator.uniform(0.3, 0.8, size=(num, 1))
    answers = {t: (generator.random((num, 240)) < ability).astype(float) for t in "ab"}
    lab = Lab(answers)
    made = make_estimator(estimator, MEAN, all_items(answers), seed)
    scores = lab.run(made, lab.cohort(0, range(num)))
    best = max(scores, key=lambda i: (scores[i].rung, scores[i].values))
    return float(ability.max() - ability[best, 0]), lab.measurements.item_evaluations


def test_racing_chooses_nearly_as_well_as_full_at_a_fraction_of_its_cost() -> None:
    race = {"kind": "racing", "rungs": [15, 45, 120], "keep": 1 / 3, "incumbents": 0}
    raced, full = (
        np.array([regret(seed, config) for seed in range(60)])
        for config in (race, {"kind": "full"})
    )
    assert raced[:, 1].max() * 7 < full[:, 1].min()
    assert raced[:, 0].mean() < full[:, 0].mean() + 0.02
    # A subset of the same cost chooses worse: the items go where they matter.
    subset = {"kind": "subset", "items": int(raced[0, 1] // (2 * 27))}
    same_cost = np.array([regret(seed, subset) for seed in range(60)])
    assert raced[:, 0].mean() < same_cost[:, 0].mean()


# --- costs ----------------------------------------------------------------------------------------

SIZE = Objective("size", {}, sign=-1, cost="parameters")


class Priced(Lab):
    """A lab whose candidates have sizes."""

    def __init__(self, answers: Answers, sizes: Sequence[int]) -> None:
        super().__init__(answers)
        known = {c.fingerprint: size for c, size in zip(self.candidates, sizes, strict=True)}
        self.measurements = Measurements(
            {t: m.shape[1] for t, m in answers.items()},
            lambda recipe: {"parameters": known[recipe.fingerprint]},
        )


@pytest.mark.parametrize("kind", [{"kind": "full"}, {"kind": "subset", "items": 8}, RACE])
def test_a_cost_is_exact_and_asks_for_no_item(kind: dict[str, Any]) -> None:
    answers = random_answers(0, 6, {"a": 20, "b": 16})
    sizes = [500, 400, 300, 200, 100, 50]
    plain, priced = Lab(answers), Priced(answers, sizes)
    scores = {}
    for lab, objectives in ((plain, MEAN), (priced, (*MEAN, SIZE))):
        estimator = make_estimator(kind, objectives, all_items(answers), 3)
        scores[lab] = lab.run(estimator, lab.cohort(0, range(6)))
        expected = estimator.expected_items(6)
        assert expected == make_estimator(kind, MEAN, all_items(answers), 3).expected_items(6)
    for id_, score in scores[priced].items():
        size = score.objectives["size"]
        assert (size.value, size.standard_error, size.num_items) == (-sizes[id_], 0.0, 0)
        assert score.mean == score.objectives["mean"].value
        if kind is not RACE:
            assert score.objectives["mean"] == scores[plain][id_].objectives["mean"]


def test_a_race_drops_who_is_worse_and_not_cheaper_than_an_incumbent() -> None:
    """The same answers thrice: whoever costs as much as the incumbent, or more, has no hope."""
    answers = {"a": np.vstack([np.ones(16), *[np.zeros(16)] * 3])}
    mean = Objective("mean", {"a": 1.0})
    race = {"kind": "racing", "rungs": [4, 8], "keep": 0.99, "incumbents": 1, "confidence": 1}
    lab = Priced(answers, [100, 90, 100, 110])
    estimator = make_estimator(race, (mean, SIZE), all_items(answers), 0)
    scores = lab.run(estimator, lab.cohort(0, [1, 2, 3], incumbents=[0]))
    assert {id_: score.rung for id_, score in scores.items()} == {0: 1, 1: 1, 2: 0, 3: 0}
    rival, other = lab.candidates[:2]
    items = {"a": lab.measurements.answered(other.fingerprint, "a", range(16))}
    means, errors = difference((mean, SIZE), lab, other, rival, items)
    assert means.tolist() == [-1.0, 10.0]
    assert errors.tolist() == [0.0, 0.0]
