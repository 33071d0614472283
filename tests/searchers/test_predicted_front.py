"""The surrogate's front. Oracles: differences, grids, exact hypervolumes, and fits from scratch."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
from test_map_pareto import Weights, bowls_of, names, search

from evomerge.pareto import hypervolume, non_dominated
from evomerge.records import Estimate, Evaluation, Facts, Score
from evomerge.searchers import make_searcher, map_pareto, quadratic_fit
from evomerge.searchers.predicted_front import Aim, predicted_front
from evomerge.searchers.quadratic import Quadratic, terms
from evomerge.searchers.quadratic_fit import fit
from evomerge.searchers.surrogate_front import most_volume, sobol


def of_weights(weights: Any, link: Any = "identity") -> Quadratic:
    """A quadratic that is given, rather than fitted."""
    row = np.asarray(weights, dtype=np.float64)
    return Quadratic(link, True, 1.0, row, np.eye(len(row)), 1.0, 0.0, 0, lambda: np.zeros(1))


@pytest.mark.parametrize("link", ["identity", "sigmoid", "softplus"])
@pytest.mark.parametrize("products", [True, False])
@pytest.mark.parametrize(("mean", "error"), [(1.0, 0.0), (1.0, 2.0), (0.0, 1.0)])
def test_gradients_are_those_of_predictions_and_errors(
    link: Any, products: bool, mean: float, error: float
) -> None:
    generator = np.random.default_rng(0)
    points, values = generator.random((40, 3)), generator.uniform(0.05, 0.95, 40)
    at = generator.random((6, 3))
    for sign in (1.0,) if link == "sigmoid" else (1.0, -1.0):
        model = fit(points, sign * values, np.zeros(40), link, products)
        found, gradient = model.rise(at, mean, error)
        np.testing.assert_allclose(found, mean * model.predict(at) + error * model.error(at))
        ahead, behind = (
            [model.rise(at + way * 1e-6 * row, mean, error)[0] for row in np.eye(3)]
            for way in (1, -1)
        )
        slopes = (np.array(ahead) - np.array(behind)).T / 2e-6
        np.testing.assert_allclose(gradient, slopes, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("products", [True, False])
def test_tangents_touch_the_errors_and_are_nowhere_larger(products: bool) -> None:
    """Wherever they are looked at; it is Cauchy's and Schwarz's inequality."""
    generator = np.random.default_rng(2)
    points, values = generator.random((40, 3)), generator.uniform(0.05, 0.95, 40)
    model = fit(points, values, np.zeros(40), "identity", products)
    for _ in range(20):
        at, elsewhere = generator.random((2, 50, 3))
        tangents = model.tangents(at)
        np.testing.assert_allclose(tangents.rise(2 * at - 1)[0], model.error(at))
        bounds, errors = tangents.rise(2 * elsewhere - 1)[0], model.error(elsewhere)
        assert (bounds <= errors * (1 + 1e-9)).all()
        assert (bounds < 0.99 * errors).mean() > 0.3  # of three genes, most errors are alike
        found, gradient = model.rise(at, 1.0, 2.0, tangents)
        values_there, slopes = model.rise(at, 1.0, 2.0)
        np.testing.assert_allclose(found, values_there)
        np.testing.assert_allclose(gradient, slopes)


@pytest.mark.parametrize(("genes", "aims"), [(2, 2), (2, 3), (3, 2), (3, 4)])
@pytest.mark.parametrize("kind", ["bowls", "anything"])
def test_a_fine_grids_front_is_found(genes: int, aims: int, kind: str) -> None:
    """Whatever the curvature: quadratics that are not concave have optima in several corners."""
    generator = np.random.default_rng([genes, aims])
    side = np.linspace(0, 1, {2: 81, 3: 21}[genes] if aims < 4 else 13)
    grid = np.array(list(itertools.product(side, repeat=genes)))
    for _ in range(3):
        weights = generator.normal(size=(aims, terms(grid[:1], True).shape[1]))
        if kind == "bowls":
            weights[:, 1 + genes : 1 + 2 * genes] = -2
            weights[:, 1 + 2 * genes :] *= 0.2
        models = [of_weights(row) for row in weights]
        found, _ = predicted_front(
            [Aim(model) for model in models], sobol(256, genes, generator), 100, 60, generator
        )
        assert ((found >= 0) & (found <= 1)).all()
        values, best = (np.stack([m.predict(x) for m in models], 1) for x in (found, grid))
        front = best[non_dominated(best)]
        reference = front.min(axis=0) - 0.1 * np.ptp(front, axis=0)
        assert (values[:, None] - values).min(axis=2).max() < 1e-9  # nobody dominates another
        share = 0.98 if aims == 2 else 0.95  # so few points are no surface
        assert hypervolume(values, reference) >= share * hypervolume(front, reference)


def test_the_best_of_many_corners_is_found() -> None:
    """Convex quadratics of 8 genes are best in one of 256 corners, and have optima in others."""
    corners = np.array(list(itertools.product([0.0, 1.0], repeat=8)))
    shares = []
    for seed in range(6):
        generator = np.random.default_rng(seed)
        weights = generator.normal(size=(2, 45))
        weights[:, 9:17] = 2.0
        aims = [Aim(of_weights(row)) for row in weights]
        found, _ = predicted_front(aims, sobol(256, 8, generator), 60, 60, generator)
        best = [aim.rise(found)[0].max() / aim.rise(corners)[0].max() for aim in aims]
        shares += best
    assert np.mean(shares) > 0.96  # .985; .926 where compromises may begin at one point


def test_a_front_nearby_saves_the_first_pass_and_its_points_need_not_be_far() -> None:
    generator = np.random.default_rng(1)
    aims = [Aim(of_weights([0, 1, 0, -1, -1, 0.2])), Aim(of_weights([0, 0, 1, -1, -1, 0.2]))]
    start = sobol(64, 2, generator)
    near, before = predicted_front(aims, start, 40, 60, generator)
    again, values = predicted_front(aims, start[:0], 40, 60, generator, near)
    np.testing.assert_allclose(values, np.stack([a.rise(again)[0] for a in aims], 1))
    reference = before.min(axis=0) - 0.1
    assert hypervolume(values, reference) >= 0.99 * hypervolume(before, reference)


def test_the_same_seed_gives_the_same_front() -> None:
    aims = [Aim(of_weights([0, 1, 0, -1, -1, 0.2])), Aim(of_weights([0, 0, 1, -1, -1, 0.2]))]
    start = sobol(64, 2, np.random.default_rng(0))
    seeds = (3, 3, 4)
    fronts = [predicted_front(aims, start, 20, 30, np.random.default_rng(s))[0] for s in seeds]
    np.testing.assert_array_equal(fronts[0], fronts[1])
    assert fronts[0].shape != fronts[2].shape or not (fronts[0] == fronts[2]).all()


@pytest.mark.parametrize("objectives", [2, 3])
def test_what_adds_most_volume_comes_first(objectives: int) -> None:
    """By exact hypervolumes, of as much as Sobol points can tell."""
    generator = np.random.default_rng(objectives)
    known = generator.random((6, objectives)) * 0.6
    values = generator.random((30, objectives))
    front = known[non_dominated(known)]
    low, high = front.min(axis=0), np.vstack([values, front]).max(axis=0)
    reference = low - 0.1 * (high - low)
    chosen = most_volume(values, known, 4, generator)
    assert len(set(chosen)) == 4
    have = known
    for one in chosen:
        volumes = [hypervolume(np.vstack([have, value]), reference) for value in values]
        assert volumes[one] >= max(volumes) - 0.01 * np.prod(high - reference)
        have = np.vstack([have, values[one]])
    assert most_volume(known - 0.01, known, 4, generator) == []


# --- fits that begin from the one before ----------------------------------------------------------


def test_a_fit_from_the_one_before_is_a_fit_from_scratch() -> None:
    generator = np.random.default_rng(6)
    points = generator.random((80, 3))
    line = terms(points, True) @ generator.normal(size=10)
    values = 1 / (1 + np.exp(-line)) + generator.normal(scale=0.01, size=80)
    values = np.clip(values, 0, 1)
    before = fit(points[:60], values[:60], np.zeros(60), "auto", True)
    assert before.link == "sigmoid"
    warm = fit(points, values, np.zeros(80), "auto", True, before=before)
    fresh = fit(points, values, np.zeros(80), "auto", True)
    np.testing.assert_allclose(warm.predict(points), fresh.predict(points), atol=1e-3)
    # A link is kept even where another predicts better by now, unless values forbid it.
    straight = fit(points, values, np.zeros(80), "identity", True)
    assert fit(points, values, np.zeros(80), "auto", True, before=straight).link == "identity"
    assert fit(points, values + 1, np.zeros(80), "auto", True, before=warm).link != "sigmoid"


def test_a_handful_of_new_points_among_many_is_worth_no_fit(monkeypatch: Any) -> None:
    """But scores that have changed are, and so is what has gathered since the last fit."""
    fits = []
    monkeypatch.setattr(map_pareto, "fit", lambda *of, **more: fits.append(0) or fit(*of, **more))
    monkeypatch.setattr(map_pareto, "FRESH", 0.15)  # of 12 in the design, and a round of 2
    facts = Facts(objectives=names(2))
    searcher = make_searcher("map_pareto", Weights(2), 0, facts, {"population": 2})
    number, counts, told = 0, [], []
    for _ in range(5):
        asked = searcher.ask(12)
        told = [
            Evaluation(
                number + i,
                x,
                Score({f"f{k}": Estimate(float(v), 0.01, 10) for k, v in enumerate(row)}),
            )
            for i, (x, row) in enumerate(
                zip(asked, bowls_of(2, 0, "sigmoid")(np.array(asked)), strict=True)
            )
        ]
        number += len(told)
        searcher.tell(told)
        counts.append(len(fits) // 2)
    assert counts == [0, 1, 1, 2, 2]  # 12 are fitted, 14 are not, 16 are, 18 are not
    searcher.relearn(told)
    searcher.ask(2)
    assert len(fits) // 2 == 3


def test_a_part_of_the_design_is_fitted_even_where_nearly_all_of_it_failed() -> None:
    """Bins look at what each point's score is away from a fit without it: of all points."""
    facts = Facts(objectives=names(2))
    options = {"variant": "bayesian", "design": 400}
    searcher = make_searcher("map_pareto", Weights(3), 0, facts, options)
    number = 0
    for part in range(4):
        asked = searcher.ask(400)
        assert asked
        scored = len(asked) if part == 0 else 1
        told = [Evaluation(number + i, x, None) for i, x in enumerate(asked)]
        for i, row in enumerate(bowls_of(2, 0, "sigmoid")(np.array(asked)[:scored, :2])):
            scores = {f"f{k}": Estimate(float(v), 0.01, 10) for k, v in enumerate(row)}
            told[i] = dataclasses.replace(told[i], score=Score(scores))
        number += len(asked)
        searcher.tell(told)


@pytest.mark.parametrize("link", ["identity", "sigmoid", "softplus"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_few_new_points_are_followed_to_the_fit_from_scratch(
    monkeypatch: Any, link: Any, sign: float
) -> None:
    """Of the same weights, and nearly the same errors, with no decomposition of all points."""
    if sign < 0 and link == "sigmoid":
        pytest.skip("a sigmoid is not negative")
    generator = np.random.default_rng(7)
    points, pool = generator.random((190, 11)), generator.random((50, 11))  # 78 terms
    line = terms(points, True) @ generator.normal(scale=0.5, size=78)
    means = {
        "identity": line,
        "sigmoid": 1 / (1 + np.exp(-line)),
        "softplus": np.log1p(np.exp(line)),
    }
    values = means[link] + generator.normal(scale=0.03, size=190)
    values = sign * {"sigmoid": np.clip(values, 0, 1), "softplus": abs(values)}.get(link, values)
    errors = generator.uniform(0.02, 0.05, 190)
    # The last nine are new, among them the best of all, and the others do not count as before.
    before = fit(points[:181], values[:181], errors[:181], link, True)
    counts = 1 / (1 + (2 * points[:, 0]) ** 2)
    scratch = fit(points, values, errors, link, True, counts)
    monkeypatch.delattr(quadratic_fit, "_gauss_newton")
    followed = fit(points, values, errors, link, True, counts, before)
    apart = np.abs(followed.predict(pool) - scratch.predict(pool))
    assert (apart < 0.01 * scratch.error(pool)).all()  # before, they are one apart
    np.testing.assert_allclose(followed.error(pool), scratch.error(pool), rtol=0.2)
    new = points[181:]
    np.testing.assert_allclose(followed.error(new), scratch.error(new), rtol=0.15)
    assert followed.noise == pytest.approx(scratch.noise, rel=0.01)
    assert followed.num_points == 190
    again = fit(points, values, errors, link, True, counts, followed)  # nothing new
    np.testing.assert_allclose(again.error(pool), followed.error(pool), rtol=1e-2)


def test_many_fits_in_a_row_follow_to_the_fit_from_scratch(monkeypatch: Any) -> None:
    generator = np.random.default_rng(8)
    points, pool = generator.random((250, 11)), generator.random((50, 11))
    line = terms(points, True) @ generator.normal(scale=0.5, size=78)
    values = np.clip(1 / (1 + np.exp(-line)) + generator.normal(scale=0.1, size=250), 0, 1)
    errors = np.full(250, 0.1)
    scratch = fit(points, values, errors, "sigmoid", True)
    model = fit(points[:160], values[:160], errors[:160], "sigmoid", True)
    monkeypatch.delattr(quadratic_fit, "_gauss_newton")
    for stop in range(169, 251, 9):
        model = fit(points[:stop], values[:stop], errors[:stop], "sigmoid", True, before=model)
    model = fit(points, values, errors, "sigmoid", True, before=model)
    apart = np.abs(model.predict(pool) - scratch.predict(pool))
    assert (apart < 0.01 * scratch.error(pool)).all()
    np.testing.assert_allclose(model.error(pool), scratch.error(pool), rtol=0.1)


@pytest.mark.parametrize("case", ["fewer points than terms", "other points", "many new points"])
def test_what_cannot_be_followed_is_fitted_from_scratch(case: str) -> None:
    generator = np.random.default_rng(9)
    points, pool = generator.random((120, 11)), generator.random((50, 11))
    values, errors = generator.normal(size=120), np.full(120, 0.1)
    told = {"fewer points than terms": 50, "other points": 115, "many new points": 90}[case]
    count = {"fewer points than terms": 55, "other points": 120, "many new points": 120}[case]
    before = fit(points[:told], values[:told], errors[:told], "identity", True)
    if case == "other points":
        before = dataclasses.replace(before, num_points=0)
    given = points[:count], values[:count], errors[:count], "identity", True
    scratch, found = fit(*given), fit(*given, before=before)
    np.testing.assert_allclose(found.error(pool), scratch.error(pool), rtol=1e-6)
    np.testing.assert_allclose(found.predict(pool), scratch.predict(pool), atol=1e-6)


def test_a_score_that_comes_late_is_not_taken_for_a_new_one() -> None:
    """A failure in the middle of what was fitted has a score by the next round."""
    space = Weights(11)
    facts = Facts(objectives=names(1))
    options = {"population": 4, "steps": 5, "design": 100}
    searcher = make_searcher("map_pareto", space, 0, facts, options)
    function = bowls_of(11, 0, "quadratic")
    asked = searcher.ask(100)
    told = [
        Evaluation(i, genome, Score({"f0": Estimate(float(value[0]), 0.1, 10)}))
        for i, (genome, value) in enumerate(zip(asked, function(asked), strict=True))
    ]
    searcher.tell([*told[:50], dataclasses.replace(told[50], score=None), *told[51:]])
    searcher.ask(1)
    assert searcher._fitted[0].num_points == 99
    searcher.tell([told[50]])
    assert searcher._fitted[0].num_points == 0


def test_links_are_chosen_anew_with_a_quarter_more_points(monkeypatch: Any) -> None:
    asked: list[tuple[int, bool]] = []

    def watched(points: Any, *rest: Any) -> Quadratic:
        asked.append((len(points), rest[5] is None))
        return fit(points, *rest)

    monkeypatch.setattr(map_pareto, "fit", watched)
    searcher = make_searcher(
        "map_pareto", Weights(2), 0, Facts(objectives=names(2)), {"population": 4, "steps": 5}
    )
    search(searcher, bowls_of(2, 0, "sigmoid"), 36)
    chosen = [points for points, anew in asked[::2] if anew]
    assert [points for points, _ in asked[::2]] == list(range(12, 36, 4))
    assert chosen == [12, 16, 20, 28]  # 24 is less than a quarter more than 20, and 32 than 28
