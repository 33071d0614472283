"""One objective out of several: against the formulas by hand, and a front that bulges inwards."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from searcher_calls import Cube, asked, drive, evaluation, replay

from evomerge.errors import ConfigurationError
from evomerge.records import Estimate, Evaluation, Facts, Score
from evomerge.searchers import make_searcher
from evomerge.searchers.scalarised import RHO, ScalariseConfig

TWO = Facts(objectives=("f0", "f1"))


def made(
    config: dict[str, Any], kind: str = "cma_es", num_genes: int = 3, seed: int = 1, **options: Any
) -> Any:
    cube: Any = Cube(num_genes)
    return make_searcher(kind, cube, seed, TWO, options, ScalariseConfig(**config))


class Listener:
    """A searcher that remembers what it was told last of everybody."""

    multi_objective, needs, resumes_on_drift, population, in_flight = False, frozenset(), True, 2, 2

    def __init__(self) -> None:
        self.told: dict[int, Estimate] = {}

    def ask(self, count: int) -> list[Any]:
        return [[0.5]] * count

    def tell(self, evaluations: Any) -> None:
        for one in evaluations:
            self.told[one.id] = one.score.objectives["scalarised"]


def heard(config: dict[str, Any], values: list[tuple[float, float]]) -> list[Estimate]:
    from evomerge.searchers.scalarised import Scalarised

    listener = Listener()
    wrapped = Scalarised(lambda _: listener, TWO, ScalariseConfig(**config), 0)
    wrapped.ask(len(values))
    for id_, pair in enumerate(values):
        scores = {f"f{k}": Estimate(v, 0.1 * (k + 1), 7) for k, v in enumerate(pair)}
        wrapped.tell([Evaluation(id_, [0.5], Score(scores))])
    return [listener.told[id_] for id_ in range(len(values))]


VALUES = [(0.0, 8.0), (1.0, 2.0), (4.0, 0.0)]  # best 4 and 8, worst 0 and 0


def test_a_weighted_sum_is_that_of_the_scaled_objectives() -> None:
    told = heard({"kind": "weighted_sum", "weights": {"f0": 3.0, "f1": 1.0}}, VALUES)
    assert [e.value for e in told] == pytest.approx(
        [-0.75 * 1.0, -0.75 * 0.75 - 0.25 * 0.75, -0.25 * 1.0]
    )
    assert told[0].standard_error == pytest.approx(np.hypot(0.75 * 0.1 / 4, 0.25 * 0.2 / 8))


def test_chebyshev_is_the_largest_weighted_distance() -> None:
    told = heard({"kind": "chebyshev"}, VALUES)
    distances = np.array([[0.5, 0.0], [0.375, 0.375], [0.0, 0.5]])
    expected = -(distances.max(axis=1) + RHO * distances.sum(axis=1))
    assert [e.value for e in told] == pytest.approx(expected.tolist())
    assert told[2].standard_error == pytest.approx(0.5 * 0.2 / 8)


def inward(genome: list[float], _: int) -> list[float]:
    """A front between (0, 1) and (1, 0) that bulges inwards; the rest of the genes only cost."""
    x, others = genome[0], np.asarray(genome[1:])
    cost = float(((others - 0.5) ** 2).sum())
    return [x**2 - cost, (1 - x) ** 2 - cost]


@pytest.mark.parametrize(("kind", "in_the_middle"), [("weighted_sum", False), ("chebyshev", True)])
def test_only_chebyshev_finds_the_inside_of_a_front(kind: str, in_the_middle: bool) -> None:
    searcher = made({"kind": kind})
    steps = itertools.repeat(8), itertools.repeat(8)
    drive(searcher, 400, *steps, num_objectives=2, measure=inward)
    genome = searcher.recommend()
    assert genome is not None
    assert (0.1 < genome[0] < 0.9) == in_the_middle


@pytest.mark.parametrize("kind", ["weighted_sum", "chebyshev", "parego"])
def test_replayed_it_asks_the_same(kind: str) -> None:
    config = {"kind": kind}
    steps = itertools.cycle([3, 7, 2]), itertools.cycle([1, 4, 9])
    calls = drive(made(config), 80, *steps, num_objectives=2)
    assert replay(made(config), calls) == asked(calls)


def test_parego_draws_new_weights_for_each_generation() -> None:
    searcher = made({"kind": "parego"}, population=6)
    drawn = []
    for generation in range(4):
        drawn.append(searcher._weights.tolist())
        genomes = searcher.ask(6)
        searcher.tell(
            [evaluation(6 * generation + i, g, inward(g, 2)) for i, g in enumerate(genomes)]
        )
    assert len({tuple(weights) for weights in drawn}) == 4
    assert all(sum(weights) == pytest.approx(1) and min(weights) >= 0 for weights in drawn)
    assert searcher.recommend() is None


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"kind": "weighted_sum", "weights": {"f": 1.0}}, "no objective 'f'"),
        ({"kind": "weighted_sum", "weights": {"f0": 0.0}}, "expected a number above 0, got 0"),
        ({"kind": "parego", "weights": {"f0": 1.0}}, "parego draws its weights"),
        ({"kind": "chebyshev", "every": 4}, "chebyshev draws nothing"),
    ],
)
def test_what_does_not_fit_is_told(config: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        made(config)
    assert told in str(caught.value)


def test_one_objective_is_none_to_choose_from() -> None:
    cube: Any = Cube(2)
    config = ScalariseConfig(kind="chebyshev")
    with pytest.raises(ConfigurationError, match="one objective alone"):
        make_searcher("cma_es", cube, 0, Facts(), {}, config)


@pytest.mark.parametrize("kind", ["tpe", "gp", "successive"])
def test_another_runs_numbers_are_on_the_same_scale_as_this_ones(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Worth .1 there, and the best; here somebody is worth 1."""
    points = np.random.default_rng(0).random((8, 3)).tolist()
    worth = np.linspace(0, 0.1, 8).tolist()
    warm = tuple(evaluation(i, point, [worth[i], 0.0]) for i, point in enumerate(points))
    facts = Facts(objectives=("f0", "f1"), warm_start=warm)
    config = ScalariseConfig(kind="weighted_sum", weights={"f0": 1.0})
    searcher: Any = make_searcher(kind, Cube(3), 1, facts, {"population": 4}, config)
    genomes = searcher.ask(4)
    values = (1.0, 0.5, 0.2, 0.0)
    searcher.tell([evaluation(i, g, [values[i], 0.0]) for i, g in enumerate(genomes)])
    learnt: list[list[float]] = []
    learn = searcher._searcher._window._proposer.learn

    def heard(known: Any) -> None:
        learnt.append([e.score.values[0] for e in searcher._searcher._before])
        learn(known)

    monkeypatch.setattr(searcher._searcher._window._proposer, "learn", heard)
    while not learnt:  # with what is told now
        searcher.ask(1)
    assert learnt[0] == pytest.approx([value - 1.0 for value in worth])


def test_who_was_not_asked_for_is_refused() -> None:
    searcher = made({"kind": "chebyshev"})
    genomes = searcher.ask(3)
    with pytest.raises(ValueError, match=r"told candidates \[3\] when 3 were asked for"):
        searcher.tell([evaluation(i, [0.5] * 3, [0.0, 0.0]) for i in (0, 3)])
    searcher.tell([evaluation(i, genome, [0.0, 1.0]) for i, genome in enumerate(genomes)])
