"""NSGA-II: who survives, against brute force; designs, re-scored elites, barren parents."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.problem import Problem
from pymoo.core.termination import NoTermination
from searcher_calls import Cube, Setting, asked, bowls, drive, evaluation, replay

from evomerge.pareto import non_dominated
from evomerge.records import Evaluation, Genome
from evomerge.searchers.cells import cells_of, snapped
from evomerge.searchers.nsga2 import Nsga2
from evomerge.searchers.order import is_scored, order_key
from evomerge.searchers.standing import standing


def made(num_objectives: int = 2, designs: tuple[Genome, ...] = (), **options: Any) -> Nsga2:
    options = {"population": 8, **options}
    setting = Setting("nsga2", 3, 5, num_objectives, designs, options)
    searcher = setting.make()
    assert isinstance(searcher, Nsga2)
    return searcher


def tell_next(searcher: Nsga2, first_id: int, *, rungs: Any = None) -> list[Evaluation]:
    genomes = searcher.ask(100)
    told = [
        evaluation(
            first_id + i,
            genome,
            bowls(genome, searcher._living._num_objectives),
            rung=rungs[i] if rungs else 0,
        )
        for i, genome in enumerate(genomes)
    ]
    searcher.tell(told)
    return told


def test_the_first_generation_is_the_designs_then_random_genomes() -> None:
    designs = ([1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1.2])
    first = made(designs=designs).ask(100)
    assert first[:3] == [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1 / 3, 1 / 3, 1.0]]
    assert len(first) == 8
    assert len(made(designs=designs, population=2).ask(100)) == 3


def test_the_genomes_are_pymoos() -> None:
    algorithm = NSGA2(pop_size=8, seed=5)
    problem = Problem(n_var=3, n_obj=2, xl=np.zeros(3), xu=np.ones(3))
    algorithm.setup(problem, termination=NoTermination())
    searcher = made()
    for generation in range(12):
        offspring = algorithm.ask()
        told = tell_next(searcher, 8 * generation)
        assert np.array_equal([e.genome for e in told], offspring.get("X"))
        offspring.set("F", -np.array([bowls(x, 2) for x in offspring.get("X")]))
        algorithm.tell(infills=offspring)


def test_with_one_objective_the_best_survive() -> None:
    searcher, told = made(1), []
    for generation in range(6):
        told += tell_next(searcher, 8 * generation)
        best = sorted(told, key=order_key)[:8]
        assert set(searcher._living.evaluations) == {e.id for e in best}


def test_a_dropped_candidate_survives_only_where_finalists_are_missing() -> None:
    searcher = made()
    first = tell_next(searcher, 0, rungs=[2, 0, 1, 2, 0, 1, 2, 0])
    second = tell_next(searcher, 8, rungs=[0, 0, 1, 0, 2, 0, 2, 0])
    kept = [e for e in first + second if e.id in searcher._living.evaluations]
    rungs = sorted(e.score.rung for e in kept if e.score)
    assert rungs == [1, 1, 1, 2, 2, 2, 2, 2]


def test_a_rescored_elite_is_judged_by_its_new_scores() -> None:
    searcher = made(1)
    first = tell_next(searcher, 0)
    best = min(first, key=order_key)
    searcher.tell([evaluation(best.id, best.genome, [-100.0])])
    tell_next(searcher, 8)
    assert best.id not in searcher._living.evaluations
    worse = made(1)
    tell_next(worse, 0)
    worse.tell([evaluation(best.id, best.genome, None)])
    tell_next(worse, 8)
    assert best.id not in worse._living.evaluations


def test_scores_of_the_dead_change_nothing() -> None:
    quiet, disturbed = made(1), made(1)
    for generation in range(3):
        told = tell_next(quiet, 8 * generation)
        assert [e.genome for e in tell_next(disturbed, 8 * generation)] == [e.genome for e in told]
    dead = min(set(range(24)) - set(disturbed._living.evaluations))
    disturbed.tell([evaluation(dead, [0.0] * 3, [1000.0])])
    assert disturbed.ask(100) == quiet.ask(100)


def test_where_no_new_children_can_be_bred_strangers_fill_the_generation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    searcher = made()
    tell_next(searcher, 0)
    algorithm = searcher._living.algorithm
    bred = algorithm.ask()
    for first_id, available in ((8, None), (16, bred[:3])):
        monkeypatch.setattr(algorithm, "ask", lambda available=available: available)
        genomes = searcher.ask(100)
        assert len({tuple(genome) for genome in genomes}) == 8
        searcher.tell([evaluation(first_id + i, g, bowls(g, 2)) for i, g in enumerate(genomes)])
    monkeypatch.undo()
    assert len(searcher.ask(100)) == 8


def test_pymoo_giving_up_does_not_stop_the_search() -> None:
    # Nothing is crossed, and a mutation of this index moves nothing: all children are clones.
    searcher = made(crossover_probability=0.0, mutation_eta=1e18)
    for generation in range(5):
        assert len(tell_next(searcher, 8 * generation)) == 8


# --- a steady state -------------------------------------------------------------------------------


@settings(max_examples=8, deadline=None)
@given(
    st.integers(1, 20),
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
)
def test_a_steady_stream_is_the_same_for_any_batches(
    ahead: int, ask_counts: list[int], tell_counts: list[int]
) -> None:
    setting = Setting("nsga2", 3, 5, 2, options={"population": 8, "steady": True, "ahead": ahead})
    cut = itertools.cycle(ask_counts), itertools.cycle(tell_counts)
    calls = drive(setting.make(), 36, *cut, num_objectives=2)
    whole = itertools.repeat(100), itertools.repeat(100)
    expected = asked(drive(setting.make(), 36, *whole, num_objectives=2))
    common = min(len(expected), len(asked(calls)))
    assert asked(calls)[:common] == expected[:common]
    assert replay(setting.make(), json.loads(json.dumps(calls))) == asked(calls)


def test_steadily_at_most_so_many_are_outstanding_and_each_is_judged_by_itself() -> None:
    searcher = made(steady=True, ahead=5)
    assert (searcher.population, searcher.in_flight) == (1, 5)
    told = [evaluation(i, g, bowls(g, 2)) for i, g in enumerate(searcher.ask(100))]
    assert len(told) == 5
    assert searcher.ask(100) == []
    for number in range(40):
        searcher.tell([told[number]])
        assert told[number].id in searcher._living.evaluations or number >= 8
        assert len(searcher._living.evaluations) == min(number + 1, 8)
        (genome,) = searcher.ask(100)
        assert genome not in [e.genome for e in told[number + 1 :]]
        told.append(evaluation(len(told), genome, bowls(genome, 2)))
    # Whoever lives is dominated by at most those of its own front: the best of all are among them.
    values = np.array([e.score.values for e in told[:40] if e.score])
    best = {
        i
        for i in range(40)
        if not ((values >= values[i]).all(1) & (values > values[i]).any(1)).any()
    }
    assert len(best & set(searcher._living.evaluations)) >= min(len(best), 8)


def test_steadily_what_was_never_asked_for_cannot_be_told() -> None:
    searcher = made(steady=True)
    with pytest.raises(ValueError, match="outstanding"):
        searcher.tell([evaluation(0, [0.5] * 3, [0.0, 0.0])])


# --- what is known before -------------------------------------------------------------------------


def test_a_warm_starts_best_come_after_the_designs() -> None:
    generator = np.random.default_rng(0)
    genomes = generator.random((60, 3)).tolist()
    known = tuple(evaluation(i, g, bowls(g, 2)) for i, g in enumerate(genomes))
    known += (evaluation(60, [0.1] * 3, None), evaluation(61, [0.2] * 3, [9.0, 9.0], violation=1.0))
    design = [1.0, 0.0, 0.0]
    setting = Setting("nsga2", 3, 5, 2, (design,), {"population": 12}, warm_start=known)
    first = setting.make().ask(100)
    assert first[0] == design
    assert len(first) == 12
    values = np.array([bowls(g, 2) for g in genomes])
    front = non_dominated(values)
    on_front = [genomes[i] for i in np.flatnonzero(front)]
    assert all(genome in genomes for genome in first[1:])
    assert sum(genome in on_front for genome in first[1:]) == min(len(on_front), 11)


def test_mixed_genes_are_searched_to_their_optimum() -> None:
    cells = cells_of(Cube(12, "mixed"))
    best = snapped(np.random.default_rng(1).random(12), cells)
    searcher = Setting("nsga2", 12, 0, 1, options={"population": 24}, shape="mixed").make()
    least = []
    for generation in range(60):
        told = []
        for i, genome in enumerate(searcher.ask(100)):
            wrong = np.where(cells > 0, np.abs(np.array(genome) - best), 0.0)
            told.append(evaluation(24 * generation + i, genome, [-float((wrong > 1e-9).sum())]))
        least.append(max(e.score.values[0] for e in told if e.score))
        searcher.tell(told)
    assert max(least) == 0.0


coarse = st.sampled_from([0.0, 0.5, 1.0])


@st.composite
def evaluations(draw: st.DrawFn) -> list[Evaluation]:
    ids = draw(st.lists(st.integers(0, 40), unique=True, min_size=1, max_size=10))
    return [
        evaluation(
            i,
            [0.5],
            draw(st.none() | st.tuples(coarse, coarse)),
            rung=draw(st.integers(0, 2)),
            violation=draw(st.sampled_from([0.0, 0.0, 0.0, 1.0, 2.0])),
        )
        for i in ids
    ]


@settings(deadline=None)
@given(evaluations())
def test_standing(some: list[Evaluation]) -> None:
    values, violations = standing(some, 2)
    assert np.isfinite(values).all()
    positive = sorted(violations[violations > 0])
    assert positive == list(range(1, len(positive) + 1))
    for i, a in enumerate(some):
        if a.score and is_scored(a):
            assert values[i].tolist() == list(a.score.values)
        for j, b in enumerate(some):
            key_a, key_b = order_key(a)[:3], order_key(b)[:3]
            if key_a < key_b:
                assert violations[i] < violations[j]
            elif key_a == key_b and violations[i] and a.score and b.score:
                x, y = np.array(a.score.values), np.array(b.score.values)
                if (x >= y).all() and (x > y).any():
                    assert violations[i] < violations[j]
    valid = [e for e in some if e.score and e.violation == 0]
    top = max((e.score.rung for e in valid if e.score), default=None)
    compared = {e.id for e in valid if e.score and e.score.rung == top}
    assert compared == {some[i].id for i in np.flatnonzero(violations == 0)}
