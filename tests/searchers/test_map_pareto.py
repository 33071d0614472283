"""MAP. Oracles: functions that are known, refits by brute force, and grids' hypervolumes."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from searcher_calls import Cube, evaluation

from evomerge.errors import ConfigurationError
from evomerge.genes import Real
from evomerge.pareto import hypervolume, non_dominated
from evomerge.records import Estimate, Evaluation, Facts, Genome, Score
from evomerge.searchers import make_searcher
from evomerge.searchers.charts import Chart, base_genome, farthest, shares
from evomerge.searchers.quadratic import terms
from evomerge.searchers.quadratic_fit import fit
from evomerge.searchers.surrogate_front import bins_of, by_bins, most_uncertain, spread

FAST = {"compromises": 40, "steps": 30}


class Weights(Cube):
    """Coefficients in [0, 1], so that the base is the cube's corner."""

    @property
    def genes(self) -> tuple[Real, ...]:  # type: ignore[override]
        return tuple(Real(f"w{i}", 0.0, 1.0) for i in range(self.num_genes))


def bowls_of(tasks: int, seed: int, kind: str) -> Callable[[Any], Any]:
    """Each task's quadratic, with an optimum of its own; plain, behind a sigmoid, or rippled."""
    generator = np.random.default_rng([seed, tasks])
    best = 0.25 + 0.1 * generator.random((tasks, tasks))
    best[np.diag_indices(tasks)] = 0.75 + 0.2 * generator.random(tasks)
    factors = 0.3 * generator.normal(size=(tasks, tasks, tasks)) + np.eye(tasks)

    def values(points: Any) -> Any:
        away = (np.asarray(points)[:, None, :] - best)[..., None]
        bowl = -((np.swapaxes(factors, 1, 2) @ away) ** 2).sum(axis=(2, 3))
        if kind == "sigmoid":
            return 1 / (1 + np.exp(-(2 + 4 * bowl)))
        if kind == "not quite":
            return np.exp(1.5 * bowl) + 0.03 * np.sin(6 * np.asarray(points))
        return bowl

    return values


def search(
    searcher: Any, values: Callable[[Any], Any], most: int, error: float = 0.0
) -> tuple[Any, Any]:
    """Genomes and their values, (<= most, ...)."""
    genomes: list[Genome] = []
    while len(genomes) < most and (asked := searcher.ask(most - len(genomes))):
        told = [
            Evaluation(
                len(genomes) + i,
                genome,
                Score({f"f{k}": Estimate(float(v), error, 10) for k, v in enumerate(row)}),
            )
            for i, (genome, row) in enumerate(zip(asked, values(asked), strict=True))
        ]
        searcher.tell(told)
        genomes += asked
    return np.array(genomes), values(genomes)


def names(count: int) -> tuple[str, ...]:
    return tuple(f"f{i}" for i in range(count))


def made(space: Any, facts: Facts, seed: int = 0, **options: Any) -> Any:
    return make_searcher("map_pareto", space, seed, facts, FAST | options)


# --- fronts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["quadratic", "sigmoid", "not quite"])
@pytest.mark.parametrize(("tasks", "step", "budget"), [(2, 0.05, 44), (3, 0.1, 100)])
def test_a_grids_hypervolume_for_a_tenth_of_its_evaluations(
    kind: str, tasks: int, step: float, budget: int
) -> None:
    side = np.linspace(0, 1, round(1 / step) + 1)
    function = bowls_of(tasks, 1, kind)
    grid = function(list(itertools.product(side, repeat=tasks)))
    assert budget <= len(grid) / 10
    front = grid[non_dominated(grid)]
    reference = front.min(axis=0) - 0.1 * np.ptp(front, axis=0)
    searcher = made(Weights(tasks), Facts(objectives=names(tasks)), population=8)
    _, found = search(searcher, function, budget)
    assert hypervolume(found, reference) >= 0.95 * hypervolume(front, reference)


def test_one_objective_finds_its_optimum() -> None:
    best = np.array([0.3, 0.8, 0.55])
    searcher = made(Weights(3), Facts(objectives=names(1)), population=4)
    genomes, values = search(
        searcher, lambda g: -((np.asarray(g) - best) ** 2).sum(axis=1)[:, None], 32
    )
    assert np.abs(genomes[values.argmax()] - best).max() < 0.02


def test_until_front_ends_once_the_front_is_measured() -> None:
    corner = made(Weights(2), Facts(objectives=names(2)), until="front")
    genomes, _ = search(corner, lambda g: np.asarray(g) @ np.ones((2, 2)), 500)
    assert len(genomes) < 100  # both objectives are best in one corner
    assert np.abs(genomes - 1).sum(axis=1).min() < 0.01
    assert corner.ask(5) == []
    endless = made(Weights(2), Facts(objectives=names(2)))
    assert len(search(endless, lambda g: np.asarray(g) @ np.ones((2, 2)), 100)[0]) == 100


def test_the_design_is_the_papers_size_and_begins_with_what_is_known() -> None:
    experts = ([0.5, 0.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 0.5])
    facts = Facts(designs=([0.2, 0.2, 0.2], experts[0]), experts=experts, objectives=names(2))
    searcher = made(Weights(3), facts)
    design = searcher.ask(100)
    assert len(design) == 20  # (3 + 1)(3 + 2)
    assert design[:5] == [[0.2, 0.2, 0.2], *experts, [0.0, 0.0, 0.0]]
    corners = np.sign(np.array(design[5:]) - 0.5)
    assert len({tuple(row) for row in corners}) == 8  # Sobol points are in every octant
    one_hots = made(Weights(3), Facts(objectives=names(2))).ask(4)
    assert one_hots == [[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [0, 0, 0]]


def test_what_is_too_large_is_refused_with_a_hint() -> None:
    with pytest.raises(ConfigurationError, match=r"1806 points .*nested"):
        made(Weights(41), Facts(objectives=names(2)))
    assert len(made(Weights(41), Facts(objectives=names(2)), design=30).ask(99)) == 30
    with pytest.raises(ConfigurationError, match="expected 2 numbers"):
        made(Weights(4), Facts(objectives=names(2)), variant="nested", preference=[1.0])


def test_a_warm_start_is_data() -> None:
    function = bowls_of(2, 3, "quadratic")
    generator = np.random.default_rng(0)
    points = generator.random((20, 2)).tolist()
    told = tuple(evaluation(i, p, v) for i, (p, v) in enumerate(zip(points, function(points))))  # noqa: B905
    grid = np.array(list(itertools.product(np.linspace(0, 1, 51), repeat=2)))
    optimal = grid[non_dominated(function(grid))]

    def distance(warm_start: tuple[Evaluation, ...]) -> float:
        facts = Facts(objectives=names(2), warm_start=warm_start)
        genomes, _ = search(made(Weights(2), facts, design=2, population=6), function, 8)
        return max(np.abs(optimal - g).max(axis=1).min() for g in genomes[2:])

    assert distance(told) < 0.03
    assert distance(()) > 0.1


# --- variants -------------------------------------------------------------------------------------


def test_bayesian_measures_half_and_then_four_rounds() -> None:
    searcher = made(Weights(3), Facts(objectives=names(2)), variant="bayesian")
    function = bowls_of(3, 0, "not quite")
    sizes = []
    while sum(sizes) < 20:
        asked = searcher.ask(100)
        start = sum(sizes)
        sizes.append(len(asked))
        told = function(asked)[:, :2]
        searcher.tell([evaluation(start + i, g, v) for i, (g, v) in enumerate(zip(asked, told))])  # noqa: B905
    assert sizes == [10, 3, 3, 2, 2]


def test_bins_are_angles_and_the_worst_predicted_get_the_most_points() -> None:
    at = np.radians([5, 20, 25, 40, 50, 85])
    assert bins_of(np.column_stack([np.cos(at), np.sin(at)])).tolist() == [0, 0, 1, 1, 2, 3]
    generator = np.random.default_rng(0)
    points = generator.random((60, 2))
    steep = np.where(points[:, 1] > 3 * points[:, 0], np.sin(30 * points[:, 0]), 0.0)
    models = [fit(points, steep, np.zeros(60), "identity", True)]
    pool = generator.random((256, 2))
    chosen = by_bins(models, np.ones(1), points, pool, 20)
    counts = np.bincount(bins_of(pool[chosen]), minlength=4)
    assert len(set(chosen.tolist())) == 20 == counts.sum()
    errors = [np.abs(models[0].left_out)[bins_of(points) == b] for b in range(4)]
    shares_ = np.array([e.mean() + e.std() / 2 for e in errors])
    np.testing.assert_allclose(counts, 20 * shares_ / shares_.sum(), atol=1)
    # What the worst bin cannot offer, others do.
    worst = np.flatnonzero(bins_of(pool) == int(shares_.argmax()))
    scarce = np.delete(pool, worst[2:], axis=0)
    chosen = by_bins(models, np.ones(1), points, scarce, 20)
    assert len(set(chosen.tolist())) == 20 == len(chosen)


def test_nested_merges_pairs_and_finds_a_good_front_of_many_experts() -> None:
    count = 6
    experts = tuple((0.8 * row).tolist() for row in np.eye(count))
    facts = Facts(experts=experts, objectives=names(count))
    generator = np.random.default_rng(1)
    best = 0.1 + 0.1 * generator.random((count, count)) + 0.6 * np.eye(count)

    def function(genomes: Sequence[Genome]) -> Any:
        return -((np.asarray(genomes)[:, None, :] - best) ** 2).sum(axis=2)

    genomes, values = search(made(Weights(count), facts, variant="nested"), function, 75)
    np.testing.assert_allclose(genomes[:7], [*experts, [0.0] * count])
    # Three pairs at first; each measures its own two genes alone.
    first = genomes[7 : 7 + 27]
    assert ((first > 0).sum(axis=1) <= 2).all()
    assert ((genomes[7:] > 0).sum(axis=1).max()) == count
    # The mean of all objectives: nearly as good as its optimum, which is known.
    optimum = function([best.mean(axis=0).tolist()])[0].mean()
    assert values.mean(axis=1).max() > optimum - 0.1 * (optimum - values[:7].mean(axis=1).max())


def test_nested_goes_gene_by_gene_without_experts_and_refuses_what_it_cannot_merge() -> None:
    searcher = made(Weights(4), Facts(objectives=names(1)), variant="nested")
    assert searcher.ask(9) == [*np.eye(4).tolist(), [0.0] * 4]
    shared = Facts(experts=([0.5, 0.5], [0.0, 0.5]), objectives=names(1))
    with pytest.raises(ConfigurationError, match="differs from the base in several"):
        made(Weights(2), shared, variant="nested")
    with pytest.raises(ConfigurationError, match="cannot be paired"):
        made(Weights(1), Facts(objectives=names(1)), variant="nested")

    class Ratios(Cube):
        @property
        def genes(self) -> tuple[Real, ...]:  # type: ignore[override]
            return tuple(Real(f"w{i}", 0.1, 1.0) for i in range(self.num_genes))

    with pytest.raises(ConfigurationError, match="cannot be 0"):
        made(Ratios(3), Facts(objectives=names(1)), variant="nested")


def test_charts() -> None:
    genes = (Real("a", -1.0, 1.0), Real("b", 0.0, 2.0), Real("c", -1.0, 3.0))
    base = base_genome(genes)
    assert base is not None
    assert base.tolist() == [0.5, 0.0, 0.25]
    ways = shares(base, [[0.75, 0.0, 0.25], [0.5, 0.4, 0.1]])
    assert not isinstance(ways, str)
    np.testing.assert_allclose(ways, [[0.5, 0, 0], [0, 2 / 3, -0.25]])
    chart = Chart(base, np.array(ways))
    genomes = np.array([*chart.genomes(np.array([[0.3, 0.6]])), [0.5, 0.5, 0.5]])
    points, inside = chart.points(genomes)
    np.testing.assert_allclose(points[0], [0.3, 0.6])
    assert inside.tolist() == [True, False]
    np.testing.assert_allclose(farthest(base, np.array([0.1, 0.0, -0.01])), [0.5, 0, -0.05])


# --- the surrogate --------------------------------------------------------------------------------


@pytest.mark.parametrize("link", ["identity", "sigmoid", "softplus"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_quadratic_behind_a_link_is_found_again(link: Any, sign: float) -> None:
    if sign < 0 and link == "sigmoid":
        pytest.skip("a sigmoid is not negative")
    generator = np.random.default_rng(0)
    points, fresh = generator.random((40, 3)), generator.random((50, 3))
    weights = generator.normal(size=10)
    links: dict[str, Callable[[Any], Any]] = {
        "identity": lambda line: line,
        "sigmoid": lambda line: 1 / (1 + np.exp(-line)),
        "softplus": lambda line: np.log1p(np.exp(line)),
    }

    def function(at: Any) -> Any:
        return sign * links[link](terms(at, True) @ weights)

    found = fit(points, function(points), np.zeros(40), link, True)
    np.testing.assert_allclose(found.predict(fresh), function(fresh), atol=2e-3)
    chosen = fit(points, function(points), np.zeros(40), "auto", True)
    assert chosen.link == link
    few = fit(points[:8], function(points[:8]), np.zeros(8), "auto", True)
    assert np.isfinite(few.predict(fresh)).all()


def test_what_is_left_out_is_what_a_refit_without_it_says() -> None:
    generator = np.random.default_rng(2)
    points = generator.random((15, 2))
    values = generator.normal(size=15)
    errors = generator.uniform(0.1, 1, 15)
    found = fit(points, values, errors, "identity", True)
    precision = 1 / (errors**2 + (errors**2).mean())
    rows = terms(points, True)
    for i in range(15):
        kept = np.arange(15) != i
        root = np.sqrt(precision[kept])[:, None]
        weights = np.linalg.lstsq(rows[kept] * root, values[kept] * root[:, 0])[0]
        assert found.left_out[i] == pytest.approx(values[i] - rows[i] @ weights, abs=1e-3)


def test_noisy_points_count_less() -> None:
    generator = np.random.default_rng(3)
    points = generator.random((60, 2))
    truth = -((points - 0.4) ** 2).sum(axis=1)
    errors = np.where(np.arange(60) % 2, 0.001, 0.5)
    values = truth + errors * generator.normal(size=60)
    weighted = fit(points, values, errors, "identity", True).predict(points)
    blind = fit(points, values, np.zeros(60), "identity", True).predict(points)
    assert np.abs(weighted - truth).mean() < 0.8 * np.abs(blind - truth).mean()


def test_extreme_scores_stay_finite() -> None:
    points = np.random.default_rng(4).random((30, 2))
    for values in (np.zeros(30), np.ones(30), (points[:, 0] > 0.5).astype(float)):
        for link in ("auto", "sigmoid", "softplus", "identity"):
            found = fit(points, values, np.zeros(30), link, True)  # type: ignore[arg-type]
            assert np.isfinite(found.predict(points)).all()
            assert np.isfinite(found.error(points)).all()
            assert np.abs(found.predict(points) - values).mean() < 0.3


def test_the_least_certain_points_come_first_and_count_as_measured() -> None:
    """By brute force: each following point has the largest variance given the ones before."""
    generator = np.random.default_rng(5)
    points, pool = generator.random((12, 2)), generator.random((30, 2))
    scales = np.array([1.0, 3.0])
    models = [
        fit(points, size * generator.normal(size=12), np.zeros(12), "identity", True)
        for size in (1.0, 6.0)
    ]
    chosen = most_uncertain(models, scales, pool, 5).tolist()
    rows = terms(pool, True)
    for number in range(5):
        measured = rows[chosen[:number]]
        variance = np.zeros(30)
        for model, scale in zip(models, scales, strict=True):
            precision = np.linalg.inv(model.noise * model.inverse)
            precision += measured.T @ measured / model.noise
            variance += np.einsum("ij,ij->i", rows @ np.linalg.inv(precision), rows) / scale**2
        variance[chosen[:number]] = -1
        assert variance[chosen[number]] == pytest.approx(variance.max(), rel=1e-6)


def test_spread_takes_the_extremes_and_then_the_farthest() -> None:
    values = np.column_stack([np.linspace(0, 1, 11), np.linspace(10, 0, 11)])
    assert spread(values, np.empty((0, 2)), 3) == [10, 0, 5]
    assert spread(values, values[[5]], 4)[:2] == [10, 0]
    assert set(spread(values, values[[5]], 4)[2:]) <= {2, 3, 7, 8}
    assert sorted(spread(values, values, 99)) == list(range(11))


ROUND = """
import numpy as np
from evomerge.genes import Real
from evomerge.records import Estimate, Evaluation, Facts, Score
from evomerge.searchers import make_searcher

class Cube:
    constraints = ()
    genes = tuple(Real(f"g{i}", 0, 1) for i in range(20))

searcher = make_searcher("map_pareto", Cube(), 0, Facts(objectives=("a", "b")), {})
told = []
for number, genome in enumerate(searcher.ask(462)):
    values = [-float(((np.array(genome) - at) ** 2).sum()) for at in (0.3, 0.6)]
    scores = {name: Estimate(value, 0.01, 9) for name, value in zip("ab", values)}
    told.append(Evaluation(number, genome, Score(scores)))
searcher.tell(told)
print(searcher.ask(16))
"""


def test_rounds_do_not_depend_on_the_number_of_threads() -> None:
    """In processes of their own, in which nobody has looked for BLAS libraries yet."""
    rounds = [
        subprocess.run(
            [sys.executable, "-c", ROUND],
            env={**os.environ, "OPENBLAS_NUM_THREADS": count, "OMP_NUM_THREADS": count},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for count in ("1", "2")
    ]
    assert rounds[0] == rounds[1] != ""
