"""CycleQD: elite sampling by the paper's formula, whose turn it is, and the final average."""

from __future__ import annotations

import importlib.util
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from brute_archive import brute_archive
from hypothesis import given, settings
from hypothesis import strategies as st
from searcher_calls import Setting, bowls, evaluation

from evomerge.errors import ConfigurationError
from evomerge.records import Evaluation
from evomerge.searchers.cycle_qd import CycleQd, draw_pair, elite_shares
from evomerge.searchers.elites import Elites


def made(num_genes: int = 3, num_objectives: int = 3, **more: Any) -> CycleQd:
    setting = {
        key: more.pop(key) for key in ("designs", "shape", "warm_start", "seed") if key in more
    }
    options = {"population": 8, **more}
    searcher = Setting(
        "cycle_qd", num_genes, num_objectives=num_objectives, options=options, **setting
    ).make()
    assert isinstance(searcher, CycleQd)
    return searcher


def elites_of(qualities: Any, behaviours: Any) -> Elites:
    count = len(qualities)
    return Elites(
        ids=np.arange(count),
        cells=np.arange(count),
        genomes=np.zeros((count, 1)),
        qualities=np.array(qualities),
        behaviours=np.array(behaviours).reshape(count, -1),
        means=np.zeros(count),
    )


def test_elite_sampling_is_the_papers_product() -> None:
    # By hand: a value counts .5 where it is the archive's lowest, .8 where it is the highest.
    elites = elites_of([0.2, 0.4, 0.3], [[10, -3.0], [20, -1.0], [10, -3.0]])
    gamma = np.array([0.5 * 0.5 * 0.5, 0.8 * 0.8 * 0.8, 0.65 * 0.5 * 0.5])
    assert elite_shares(elites, 0.5, 0.8) == pytest.approx(gamma / gamma.sum())


def test_what_all_elites_share_does_not_count() -> None:
    same = elites_of([0.3] * 4, [[0.5, k] for k in (0, 1, 1, 0)])
    assert elite_shares(same, 0.5, 0.8) == pytest.approx(np.array([5, 8, 8, 5]) / 26)
    assert elite_shares(same, 0.0, 1.0).tolist() == [0.25] * 4  # nobody would have a share


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(*[st.floats(-10, 10)] * 3), min_size=1, max_size=20))
def test_shares_sum_to_one_and_the_better_everywhere_has_the_larger_one(rows: Any) -> None:
    points = np.array(rows)
    shares = elite_shares(elites_of(points[:, 0], points[:, 1:]), 0.5, 0.8)
    assert shares.sum() == pytest.approx(1)
    for i, j in itertools.permutations(range(len(rows)), 2):
        if (points[i] >= points[j]).all():
            assert shares[i] >= shares[j] * (1 - 1e-9)


def test_parents_are_two_and_drawn_by_their_shares() -> None:
    generator = np.random.default_rng(0)
    shares = np.array([0.5, 0.3, 0.2])
    pairs = np.array([draw_pair(shares, generator) for _ in range(5_000)])
    assert (pairs[:, 0] != pairs[:, 1]).all()
    counts = np.bincount(pairs[:, 0], minlength=3) / len(pairs)
    assert counts == pytest.approx(shares, abs=0.03)
    assert draw_pair(np.array([1.0]), generator).tolist() == [0, 0]
    assert draw_pair(np.array([0.0, 1.0]), generator).tolist() == [1, 1]


def test_generations_breed_from_the_archives_in_turns_and_all_archives_take_all_children() -> None:
    """With nothing left to chance but the parents, children are midpoints of two of its elites."""
    cells, told = 4, dict[int, Evaluation]()
    searcher = made(6, sigma=0.0, mix_std=0.0, cells=cells, tasks=["f2", "f0", "f1"])
    told_apart = 0
    for generation in range(8):
        genomes = searcher.ask(100)
        if generation:
            turn = (generation - 1) % 3
            quality = (2, 0, 1)[turn]
            midpoints = []
            for own in (quality, *(q for q in range(3) if q != quality)):
                others = [k for k in range(3) if k != own]
                ids = sorted(brute_archive(told, own, others, cells).values())
                xs = [np.array(told[i].genome) for i in ids]
                midpoints.append([(a + b) / 2 for a, b in itertools.combinations(xs, 2)])
            for genome in genomes:
                by_archive = [any(np.allclose(genome, m) for m in some) for some in midpoints]
                assert by_archive[0]
                told_apart += not all(by_archive)
        batch = [evaluation(8 * generation + i, g, bowls(g, 3)) for i, g in enumerate(genomes)]
        told |= {e.id: e for e in batch}
        searcher.tell(batch)
    assert told_apart > 10  # other archives could not have bred all of that


def test_a_parents_weight_is_normal_around_one() -> None:
    # Parents at two corners of the cube: the child says the shares of both.
    corners = ([0.0, 1.0], [1.0, 0.0])
    searcher = made(2, 2, population=2000, sigma=0.0, mix_std=0.1, designs=corners)
    genomes = searcher.ask(5000)
    searcher.tell(
        [evaluation(i, g, (1.0 - i, float(i)) if i < 2 else None) for i, g in enumerate(genomes)]
    )
    children = np.array(searcher.ask(5000))
    assert children.sum(axis=1) == pytest.approx(1.0)
    shares = children[:, 0]
    w = np.random.default_rng(9).normal(1, 0.1, (200_000, 2))
    expected = w[:, 1] / w.sum(axis=1)
    assert (np.abs(shares - 0.5) > 0.15).sum() < 10  # it stays between the parents
    assert shares.mean() == pytest.approx(0.5, abs=0.005)
    assert shares.std() == pytest.approx(expected.std(), rel=0.08)


def test_it_recommends_the_average_of_each_tasks_best_weighted_by_their_means() -> None:
    searcher = made(2, 2, population=3)
    assert searcher.recommend() is None
    searcher.ask(3)
    rows = {0: ([1.0, 0.0], (0.9, 0.1)), 1: ([0.0, 1.0], (0.2, 0.6)), 2: ([0.5, 0.5], (0.5, 0.3))}
    searcher.tell([evaluation(i, *row) for i, row in rows.items()])
    first, second = math.exp(0.5), math.exp(0.4)
    share = first / (first + second)
    assert searcher.recommend() == pytest.approx([share, 1 - share])


def test_it_recommends_nothing_where_genomes_cannot_be_averaged() -> None:
    searcher = made(6, shape="mixed")
    searcher.tell([evaluation(i, g, bowls(g, 3)) for i, g in enumerate(searcher.ask(8))])
    assert searcher.recommend() is None


def test_discrete_genes_come_from_one_of_the_parents() -> None:
    searcher = made(
        5, shape="mixed", mutation_rate=0.0, sigma=0.0, designs=([0.0] * 5, [1.0] * 5), population=2
    )
    first = searcher.ask(8)
    assert first == [[0.0] * 5, [1.0] * 5]
    searcher.tell([evaluation(i, g, (i, 1.0 - i, 0.0)) for i, g in enumerate(first)])
    seen = {tuple(np.round(genome, 3)) for genome in searcher.ask(8)}
    for flag, choice, real, other_flag, _ in seen:
        assert flag in (0.25, 0.75)
        assert choice in (0.167, 0.833)
        assert 0.4 < real < 0.6
        assert other_flag in (0.25, 0.75)


def test_tasks_are_objectives_and_at_least_two() -> None:
    with pytest.raises(ConfigurationError, match="no objective 'g1'"):
        made(tasks=["f0", "g1"])
    with pytest.raises(ConfigurationError, match=r"searcher\.tasks"):
        made(tasks=["f0"])
    with pytest.raises(ConfigurationError, match="'f0' is named twice"):
        made(tasks=["f0", "f0"])
    two = made(tasks=["f2", "f0"])
    assert len(two._archives._grids) == 2


def test_it_illuminates_three_tasks_in_conflict_far_better_than_random_search() -> None:
    path = Path(__file__).parents[2] / "benchmarks" / "quality_diversity.py"
    spec = importlib.util.spec_from_file_location("benchmark_of_diversity", path)
    assert spec is not None
    assert spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    toy = benchmark.Toy(0)

    def figures(kind: str) -> dict[str, float]:
        values = benchmark.search({"kind": kind}, toy, toy.designs(), toy.measure, 0, 300)
        return dict(benchmark.figures(values))

    own, random = figures("cycle_qd"), figures("random")
    # Measured over 5 seeds: coverage .25 against .06, quality .30 against .14.
    assert own["coverage"] > 2 * random["coverage"]
    assert own["quality"] > 1.3 * random["quality"]
