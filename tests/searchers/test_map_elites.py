"""MAP-Elites beside pyribs' own scheduler, its children by geometry, and what a user gets wrong."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from searcher_calls import Cube, Setting, bowls, evaluation

from evomerge.errors import ConfigurationError
from evomerge.records import Evaluation, Genome
from evomerge.searchers.map_elites import MapElites


def made(num_genes: int = 3, num_objectives: int = 2, **more: Any) -> MapElites:
    setting = {
        key: more.pop(key) for key in ("designs", "shape", "warm_start", "seed") if key in more
    }
    options = {"population": 8, **more}
    searcher = Setting(
        "map_elites", num_genes, num_objectives=num_objectives, options=options, **setting
    ).make()
    assert isinstance(searcher, MapElites)
    return searcher


def tell_next(searcher: MapElites, first_id: int, num_objectives: int = 2) -> list[Genome]:
    genomes = searcher.ask(1000)
    searcher.tell(
        [evaluation(first_id + i, g, bowls(g, num_objectives)) for i, g in enumerate(genomes)]
    )
    return genomes


def test_the_first_generation_is_the_designs_then_random_genomes() -> None:
    designs = ([1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0])
    first = made(designs=designs).ask(100)
    assert first[:2] == [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    assert len(first) == 8
    assert len(made(designs=designs, population=1).ask(100)) == 2


def sphere(x: Any) -> tuple[Any, Any]:
    """A quality and two behaviours in [0, 1]."""
    x = np.atleast_2d(x)
    return 1 - ((x - 0.4) ** 2).mean(axis=1), x[:, :2]


def own_figures(seed: int, generations: int) -> tuple[float, float]:
    ranges = {"f1": [0.0, 1.0], "f2": [0.0, 1.0]}
    searcher = made(
        8, 3, seed=seed, population=30, quality="f0", cells=15, ranges=ranges, line_sigma=0.2
    )
    first_id = 0
    for _ in range(generations):
        genomes = searcher.ask(100)
        quality, behaviour = sphere(genomes)
        searcher.tell(
            [
                evaluation(first_id + i, g, [quality[i], *behaviour[i]])
                for i, g in enumerate(genomes)
            ]
        )
        first_id += len(genomes)
    elites = searcher._archives[0]
    return len(elites) / 15**2, float(elites.qualities.sum())


def ribs_figures(seed: int, generations: int) -> tuple[float, float]:
    from ribs.archives import GridArchive
    from ribs.emitters import GaussianEmitter, IsoLineEmitter
    from ribs.schedulers import Scheduler

    archive = GridArchive(solution_dim=8, dims=[15, 15], ranges=[(0, 1)] * 2, seed=seed)
    start = np.random.default_rng(seed).random((15, 8))
    shared = {"initial_solutions": start, "bounds": [(0, 1)] * 8, "batch_size": 15}
    emitters = [
        GaussianEmitter(archive, sigma=0.1, seed=seed + 1, **shared),
        IsoLineEmitter(archive, iso_sigma=0.01, line_sigma=0.2, seed=seed + 2, **shared),
    ]
    scheduler = Scheduler(archive, emitters)
    for _ in range(generations):
        scheduler.tell(*sphere(scheduler.ask()))
    return float(archive.stats.coverage), float(archive.stats.qd_score)


def test_coverage_and_qd_score_are_those_of_pyribs_scheduler() -> None:
    own = np.array([own_figures(seed, 15) for seed in range(12)])
    theirs = np.array([ribs_figures(100 + seed, 15) for seed in range(12)])
    error = np.sqrt((own.var(axis=0, ddof=1) + theirs.var(axis=0, ddof=1)) / 12)
    assert (np.abs(own.mean(axis=0) - theirs.mean(axis=0)) < 3 * error).all()
    # And the errors are small enough to tell: five generations less would be seen.
    less = np.array([own_figures(seed, 10) for seed in range(12)])
    assert (theirs.mean(axis=0) - less.mean(axis=0) > 3 * error).all()


def test_children_of_the_line_lie_on_lines_through_two_elites() -> None:
    searcher = made(5, emitters=["iso_line"], iso_sigma=0.0, line_sigma=0.3)
    tell_next(searcher, 0)
    elites = searcher._archives[0].genomes
    children = np.array(searcher.ask(100))
    assert len(elites) > 2
    for child in children[((children > 0) & (children < 1)).all(axis=1)]:
        offs = [
            np.linalg.matrix_rank(np.array([child - a, b - a]), tol=1e-9) < 2
            for i, a in enumerate(elites)
            for b in elites[:i]
        ]
        assert any(offs)


def test_children_of_the_normal_distribution_are_that_far_from_an_elite() -> None:
    searcher = made(400, emitters=["gaussian"], sigma=0.01)
    tell_next(searcher, 0)
    elites = searcher._archives[0].genomes
    for child in np.array(searcher.ask(100)):
        off = (child - elites[np.abs(elites - child).mean(axis=1).argmin()])[child % 1 > 0]
        assert off.std() == pytest.approx(0.01, rel=0.2)


def test_emitters_take_turns() -> None:
    searcher = made(4, population=7, sigma=1.0, iso_sigma=0.0, line_sigma=0.0)
    tell_next(searcher, 0)
    elites = {tuple(g) for g in searcher._archives[0].genomes.tolist()}
    turns = [tuple(g) in elites for g in tell_next(searcher, 7)]
    assert turns == [False, True] * 3 + [False]


def test_discrete_genes_are_middles_of_their_cells() -> None:
    searcher = made(6, shape="mixed", population=20)  # flag, choice of 3, real, flag, ...
    for generation in range(4):
        genomes = np.array(tell_next(searcher, 20 * generation))
        assert set(genomes[:, 0]) <= {0.25, 0.75}
        assert set(np.round(genomes[:, 1] * 6, 9)) <= {1, 3, 5}


def test_the_quality_is_an_objective_or_the_mean_and_the_rest_is_behaviour() -> None:
    by_mean, by_name = made(num_objectives=3), made(num_objectives=3, quality="f1")
    named = made(num_objectives=3, quality="f1", behaviour=["f1", "f0"])
    for searcher in (by_mean, by_name, named):
        searcher.ask(8)
        searcher.tell([evaluation(i, [0.5] * 3, (0.1, 0.9, 0.2)) for i in range(8)])
    assert by_mean._archives[0].qualities[0] == pytest.approx(0.4)
    assert by_mean._archives[0].behaviours.tolist() == [[0.1, 0.9, 0.2]]
    assert by_name._archives[0].qualities.tolist() == [0.9]
    assert by_name._archives[0].behaviours.tolist() == [[0.1, 0.2]]
    assert named._archives[0].behaviours.tolist() == [[0.9, 0.1]]


def test_a_warm_start_is_bred_from_at_once() -> None:
    told: tuple[Evaluation, ...] = tuple(
        evaluation(i, [0.9, 0.1, 0.9], (0.5 + i / 10, 0.5)) for i in range(3)
    )
    searcher = made(warm_start=told, designs=([0.0] * 3,), sigma=0.001, iso_sigma=0.0)
    first = np.array(searcher.ask(8))
    assert first[0].tolist() == [0.0] * 3
    assert np.abs(first[1:] - [0.9, 0.1, 0.9]).max() < 0.01


def problems_of(**options: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        made(num_objectives=3, **options)
    return str(caught.value)


def test_options_name_objectives_and_make_a_grid_that_fits_into_memory() -> None:
    text = problems_of(quality="f", behaviour=["f0", "f11"], ranges={"x": [0, 1], "f1": [1, 0]})
    assert "searcher.quality (map_elites): no objective 'f' (did you mean" in text
    assert "searcher.behaviour (map_elites): no objective 'f11' (did you mean 'f1'?" in text
    assert "searcher.ranges (map_elites): no objective 'x' (valid: f0, f1, f2)" in text
    assert "searcher.ranges.f1 (map_elites): expected [low, high], got [1.0, 0.0]" in text
    assert "1000 cells on each of 3 axes are 1,000,000,000" in problems_of(cells=1000)
    assert "searcher.emitters.0" in problems_of(emitters=["cma"])


def test_by_default_there_are_about_225_cells() -> None:
    for num_objectives, cells in ((2, 15), (3, 6), (4, 4), (9, 2)):
        assert made(num_objectives=num_objectives)._archives._cells == cells
    assert made(quality="f0")._archives._cells == 30


def test_one_objective_has_nothing_to_be_diverse_in() -> None:
    from evomerge.records import Facts
    from evomerge.searchers import make_searcher

    cube: Any = Cube(3)
    with pytest.raises(ConfigurationError, match="trades objectives for each other"):
        make_searcher("map_elites", cube, 0, Facts(), {})


def test_without_pyribs_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ribs.archives", None)
    assert "pip install 'evomerge[diversity]'" in problems_of()
