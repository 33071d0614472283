"""Shrinkage against scikit-learn's Gaussian process, and on families whose truth is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern
from test_estimators import MEAN, Lab, all_items

from evomerge.errors import ConfigurationError
from evomerge.fitness.estimators import make_estimator
from evomerge.fitness.estimators.genome_model import Scored, Shape, fit, posterior
from evomerge.records import Cohort, Told

Floats = NDArray[np.float64]


def scored(seed: int, num: int = 40, genes: int = 3) -> Scored:
    """A bump over the cube, seen through noise."""
    generator = np.random.default_rng(seed)
    genomes = generator.random((num, genes))
    truth = np.exp(-4 * ((genomes - 0.6) ** 2).sum(axis=1))
    variances = generator.uniform(0.001, 0.01, num)
    values = truth + generator.normal(size=num) * np.sqrt(variances)
    return Scored(genomes, values, variances, np.arange(num))


def test_the_posterior_is_that_of_a_gaussian_process() -> None:
    data, length = scored(0), 0.3
    shape = Shape(length, signal=0.05, own=0.0, shared=0.0)
    kernel = ConstantKernel(0.05) * Matern(length * np.sqrt(3), nu=2.5)
    covariance = kernel(data.genomes) + np.diag(data.variances + 1e-9)
    ones = np.ones(len(data.values))
    mean = ones @ np.linalg.solve(covariance, data.values)
    mean /= ones @ np.linalg.solve(covariance, ones)
    oracle = GaussianProcessRegressor(kernel, alpha=data.variances + 1e-9, optimizer=None)
    oracle.fit(data.genomes, data.values - mean)
    expected, errors = oracle.predict(data.genomes[:9], return_std=True)
    values, variances = posterior(data, shape, range(9))
    assert values == pytest.approx(expected + mean, abs=1e-9)
    assert (variances >= errors**2 - 1e-12).all()  # that the mean is estimated adds to it
    assert variances == pytest.approx(errors**2, rel=0.1)


def test_luck_that_all_share_is_not_taken_for_merit() -> None:
    """Two groups of the same merges, one on easy items: the offset must vanish."""
    data = scored(1, 60)
    groups = np.arange(60) % 2
    shifted = replace(data, values=data.values + 0.2 * groups, groups=groups)
    shape = Shape(0.4, signal=0.05, own=0.001, shared=0.0)
    variances = np.full(60, 0.04)  # a half of it is shared: a deviation of .14
    with_luck = replace(shifted, variances=variances)
    values, _ = posterior(with_luck, replace(shape, shared=0.5), range(60))
    naive, _ = posterior(with_luck, shape, range(60))
    truth = np.exp(-4 * ((data.genomes - 0.6) ** 2).sum(axis=1))

    def offset(found: Floats) -> float:
        gap = found - truth
        return float(gap[groups == 1].mean() - gap[groups == 0].mean())

    assert abs(offset(values)) < 0.5 * abs(offset(naive)) + 0.01


def test_too_little_or_nothing_but_a_constant_teaches_nothing() -> None:
    few = scored(0, 5)
    assert fit(few) is None
    flat = replace(scored(0), values=np.full(40, 0.5))
    assert fit(flat) is None


def family(seed: int, num: int, genes: int) -> tuple[Floats, dict[str, Floats]]:
    """Genomes, and answers whose odds fall smoothly with the distance from an optimum."""
    generator = np.random.default_rng(seed)
    genomes, best = generator.random((num, genes)), generator.random(genes)
    ability = 1.5 - 24 * ((genomes - best) ** 2).mean(axis=1)
    answers = {}
    for task in "ab":
        difficulty = generator.normal(size=300) * 1.5
        odds = 1 / (1 + np.exp(difficulty - ability[:, None]))
        answers[task] = (generator.random((num, 300)) < odds).astype(float)
    return genomes, answers


def search(config: dict[str, Any], seed: int) -> tuple[Floats, Floats, Floats]:
    """Ten cohorts of twelve: estimates, standard errors and truths of the last five."""
    genomes, answers = family(seed, 120, 4)
    lab = Lab(answers)
    lab.candidates = tuple(replace(c, genome=genomes[c.id].tolist()) for c in lab.candidates)
    estimator = make_estimator(config, MEAN, all_items(answers), seed)
    history: list[Told] = []
    rows = []
    for number in range(10):
        own = lab.candidates[12 * number : 12 * number + 12]
        cohort = Cohort(number, own, lab.measurements, history=tuple(history))
        scores = lab.run(estimator, cohort)
        history += estimator.told(cohort)
        rows += [(scores[c.id].objectives["mean"], c.id) for c in own if number >= 5]
    truth = (answers["a"].mean(axis=1) + answers["b"].mean(axis=1)) / 2
    return (
        np.array([estimate.value for estimate, _ in rows]),
        np.array([estimate.standard_error for estimate, _ in rows]),
        np.array([truth[id_] for _, id_ in rows]),
    )


@pytest.mark.parametrize("rotate", [False, True])
def test_neighbours_make_a_few_answers_worth_many(rotate: bool) -> None:
    errors: dict[str, list[float]] = {"subset": [], "shrinkage": []}
    covered, best_bias = [], []
    for seed in range(6):
        for kind, found in errors.items():
            config = {"kind": kind, "items": 10, "rotate": rotate}
            values, deviations, truth = search(config, seed)
            gaps = values - truth
            # What items that never change do to everybody, nobody can tell from them.
            found.append(float(np.abs(gaps if rotate else gaps - gaps.mean()).mean()))
            if kind == "shrinkage":
                covered.append(np.abs(values - truth) < 1.96 * deviations)
                top = np.argsort(truth)[-5:]
                best_bias.append(float(gaps[top].mean() - (0.0 if rotate else gaps.mean())))
    assert np.mean(errors["shrinkage"]) < 0.7 * np.mean(errors["subset"])
    assert np.mean(covered) > 0.88
    assert abs(np.mean(best_bias)) < 0.04  # the best are not drawn to the family's mean


def test_a_search_is_the_same_again_and_references_keep_their_own_scores() -> None:
    config = {"kind": "shrinkage", "items": 8, "of": {"kind": "subset"}}
    first, second = search(config, 3), search(config, 3)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    _, answers = family(0, 12, 2)
    lab = Lab(answers)
    lab.candidates = tuple(replace(c, genome=None) for c in lab.candidates)
    plain = make_estimator({"kind": "subset", "items": 8}, MEAN, all_items(answers), 0)
    shrunk = make_estimator(config, MEAN, all_items(answers), 0)
    cohort = Cohort(-1, lab.candidates, lab.measurements)
    assert lab.run(plain, cohort) == lab.run(shrunk, cohort)


def test_genomes_that_are_no_lists_of_numbers_are_refused() -> None:
    _, answers = family(0, 4, 2)
    lab = Lab(answers)
    lab.candidates = tuple(replace(c, genome={"parents": [1]}) for c in lab.candidates)
    estimator = make_estimator({"kind": "shrinkage", "items": 8}, MEAN, all_items(answers), 0)
    with pytest.raises(ConfigurationError, match="genomes are lists of numbers"):
        lab.run(estimator, Cohort(0, lab.candidates, lab.measurements))


def test_a_recipe_counts_once_however_often_it_was_told() -> None:
    genomes, answers = family(2, 24, 2)
    lab = Lab(answers)
    lab.candidates = tuple(replace(c, genome=genomes[c.id].tolist()) for c in lab.candidates)
    config = {"kind": "shrinkage", "items": 10}
    scores = []
    for copies in (1, 6):
        estimator = make_estimator(config, MEAN, all_items(answers), 0)
        first = Cohort(0, lab.candidates[:16], lab.measurements)
        lab.run(estimator, first)
        told = estimator.told(first)
        again = [
            replace(t, candidate=replace(t.candidate, id=100 + n))
            for n in range(copies - 1)
            for t in told[:1]
        ]
        own = lab.candidates[16:]
        cohort = Cohort(1, own, lab.measurements, history=(*told[:15], *again, *told[15:]))
        scores.append(lab.run(estimator, cohort))
    for id_, score in scores[0].items():
        assert score.values == pytest.approx(scores[1][id_].values, abs=0.02)
    twice = (*lab.candidates[16:], replace(lab.candidates[16], id=50))
    estimator = make_estimator(config, MEAN, all_items(answers), 0)
    both = lab.run(estimator, Cohort(0, twice, lab.measurements))
    assert both[16] == both[50]
