"""What every searcher in the table has to keep: decisions about replay, order and failure."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import searcher_calls
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from searcher_calls import (
    LEAST_POPULATION,
    LENGTH,
    MOST_GENES,
    SMALL,
    Setting,
    asked,
    bowls,
    drive,
    evaluation,
    fewest_objectives,
    in_cube,
    point_of,
    replay,
)

from evomerge.records import Estimate, Evaluation, Score
from evomerge.searchers import SEARCHERS
from evomerge.searchers.scalarised import ScalariseConfig

ALL = sorted(SEARCHERS)
# Their rounds are as large as the experts are many, and most of them end; no choice of theirs is
# random. So what follows of rounds of eight, or of seeds, is not for them: see their own tests.
BY_EXPERTS = {"frank_wolfe", "greedy_soup", "kinship"}
IN_EIGHTS = [kind for kind in ALL if kind not in BY_EXPERTS]
# Those that wait for a whole generation; the others are asked ahead.
GENERATIONAL = [
    k for k in IN_EIGHTS if (s := Setting(k, 5, options=SMALL[k]).make()).in_flight == s.population
]
ANY_SHAPE = [
    kind
    for kind in ALL
    if ("genes" in SEARCHERS[kind].needs or not SEARCHERS[kind].needs)
    and "reals" not in SEARCHERS[kind].needs
]


def few(kind: str) -> int:
    """As few objectives as the kind can do with."""
    return fewest_objectives(SEARCHERS[kind])


REPEATABLE = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)


def rounds(kind: str, most: int) -> int:
    """How many rounds of 8 candidates a test takes: so many, or what the kind's length has."""
    return min(most, LENGTH.get(kind, 8 * most) // 8)


def small(kind: str, num_genes: int = 5, **more: Any) -> Setting:
    """A searcher whose first steps are short."""
    return Setting(kind, num_genes, options=SMALL[kind], **more)


@st.composite
def searches(draw: st.DrawFn, kind: str) -> Setting:
    num_genes = draw(st.integers(1, 30))
    any_shape = kind in ANY_SHAPE
    unit = st.floats(0, 1, allow_subnormal=False)
    genome = (
        st.builds(lambda at: {"at": at}, unit)
        if "lineages" in SEARCHERS[kind].needs
        else st.lists(unit, min_size=num_genes, max_size=num_genes)
    )
    return Setting(
        kind,
        num_genes,
        seed=draw(st.integers(0, 2**32)),
        num_objectives=draw(st.integers(1, 3)) if SEARCHERS[kind].multi_objective else 1,
        designs=tuple(draw(st.lists(genome, max_size=3))),
        options=SMALL[kind]
        if "population" not in SMALL[kind]
        else SMALL[kind] | {"population": draw(st.integers(LEAST_POPULATION.get(kind, 3), 12))},
        shape=draw(st.sampled_from(["reals", "mixed", "conditional"])) if any_shape else "reals",
    )


def genome_of(kind: str, point: list[float]) -> Any:
    """A genome of a point; a lineage of the toy space has one number."""
    return {"at": point[0]} if "lineages" in SEARCHERS[kind].needs else point


sizes = st.lists(st.integers(1, 20), min_size=1, max_size=6)


@pytest.mark.parametrize("kind", ALL)
def test_genomes_lie_in_the_cube_and_replay_is_equal_for_any_batches(kind: str) -> None:
    # A Gaussian process of three objectives takes half a second for each candidate.
    @settings(REPEATABLE, max_examples=3 if kind == "gp" else REPEATABLE.max_examples)
    @given(searches(kind), sizes, sizes)
    def check(setting: Setting, ask_counts: list[int], tell_counts: list[int]) -> None:
        first, second = setting.make(), setting.make()
        length = LENGTH.get(kind, 50)
        cycles = itertools.cycle(ask_counts), itertools.cycle(tell_counts)
        calls = drive(first, length, *cycles, num_objectives=setting.num_objectives)
        genomes = asked(calls)
        assert all(in_cube(genome, setting.num_genes) for genome in genomes)
        assert all(len(call[2]) <= call[1] for call in calls if call[0] == "ask")
        recorded = json.loads(json.dumps(calls))
        assert asked(recorded) == genomes
        assert replay(second, recorded) == genomes
        assert first.recommend() == second.recommend()
        # The batches only cut the stream; how, changes nothing in it.
        whole = drive(
            setting.make(),
            length,
            itertools.repeat(50),
            itertools.repeat(50),
            num_objectives=setting.num_objectives,
        )
        common = min(len(genomes), len(asked(whole)))
        assert asked(whole)[:common] == genomes[:common]

    check()


SCALARISED = [kind for kind in ALL if "several_objectives" not in SEARCHERS[kind].needs]


@pytest.mark.parametrize("kind", SCALARISED)
def test_of_one_number_for_two_objectives_batches_change_nothing_either(kind: str) -> None:
    of_kind = st.sampled_from(["weighted_sum", "chebyshev", "parego"])

    @settings(REPEATABLE, max_examples=3 if kind == "gp" else REPEATABLE.max_examples)
    @given(of_kind, st.integers(2, 9), st.integers(0, 2), sizes, sizes)
    def check(
        how: Any, every: int, num_given: int, ask_counts: list[int], tell_counts: list[int]
    ) -> None:
        drawn = {"every": every} if how == "parego" else {}
        generator = np.random.default_rng(0)
        setting = small(kind, 4, num_objectives=2, scalarise=ScalariseConfig(kind=how, **drawn))
        setting.given = tuple(setting.space().sample(generator) for _ in range(num_given))

        def stream(ask_counts: list[int], tell_counts: list[int]) -> list[Any]:
            steps = itertools.cycle(ask_counts), itertools.cycle(tell_counts)
            length = LENGTH.get(kind, 50)
            return asked(drive(setting.make(), length, *steps, num_objectives=2))

        whole, pieces = stream([50], [50]), stream(ask_counts, tell_counts)
        common = min(len(whole), len(pieces))
        assert common > num_given
        assert whole[:common] == pieces[:common]

    check()


def test_replay_is_equal_in_another_process_with_another_hash_seed_and_threads() -> None:
    recordings = []
    for kind in ALL:
        # An eigendecomposition of 300 rows depends on the number of threads.
        for num_genes, num_candidates in ((1, 150), (7, 150), (300, 90)):
            num_candidates = min(num_candidates, LENGTH.get(kind, num_candidates))
            setting = small(kind, min(num_genes, MOST_GENES.get(kind, num_genes)), seed=3)
            steps = itertools.cycle([13, 5, 22]), itertools.cycle([4, 31])
            calls = drive(setting.make(), num_candidates, *steps)
            recordings.append((setting, calls))
    script = Path(searcher_calls.__file__)
    sent = json.dumps([[dataclasses.asdict(setting), calls] for setting, calls in recordings])
    environment = os.environ | {
        "PYTHONHASHSEED": "4242",
        "OPENBLAS_NUM_THREADS": "2",
        "OMP_NUM_THREADS": "2",
    }
    answer = subprocess.run(
        [sys.executable, str(script)],
        input=sent,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    for line, (setting, calls) in zip(answer.stdout.splitlines(), recordings, strict=True):
        assert json.loads(line) == asked(calls), setting


@pytest.mark.parametrize("kind", IN_EIGHTS)
def test_seeds_differ(kind: str) -> None:
    streams = [small(kind, seed=seed).make().ask(8) for seed in range(3)]
    assert len({json.dumps(stream) for stream in streams}) == 3


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("num_genes", [1, 6, 320])
def test_global_generators_are_neither_read_nor_written(kind: str, num_genes: int) -> None:
    streams = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        before = (random.getstate(), np.random.get_state(), torch.get_rng_state())  # noqa: NPY002
        searcher = small(kind, min(num_genes, MOST_GENES.get(kind, num_genes))).make()
        length = 8 * rounds(kind, 10)
        streams.append(asked(drive(searcher, length, itertools.repeat(8), itertools.repeat(8))))
        searcher.recommend()
        assert random.getstate() == before[0]
        for now, then in zip(np.random.get_state(), before[1], strict=True):  # noqa: NPY002
            assert np.array_equal(now, then)
        assert torch.equal(torch.get_rng_state(), before[2])
    assert streams[0] == streams[1]


@pytest.mark.parametrize("kind", ALL)
def test_nothing_is_written_and_pycmas_signals_file_is_not_read(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stream() -> list[Any]:
        length = 8 * rounds(kind, 10)
        return asked(drive(small(kind).make(), length, itertools.repeat(8), itertools.repeat(8)))

    expected = stream()
    monkeypatch.chdir(tmp_path)
    Path("cma_signals.in").write_text("{'timeout': 0, 'maxiter': 1, 'CMA_on': 0}")
    assert stream() == expected
    assert [path.name for path in tmp_path.iterdir()] == ["cma_signals.in"]


@pytest.mark.parametrize("kind", GENERATIONAL)
def test_ask_is_empty_while_a_generation_is_outstanding(kind: str) -> None:
    searcher = small(kind).make()
    genomes = searcher.ask(5) + searcher.ask(5)
    assert len(genomes) == 8
    assert searcher.ask(5) == []
    told = [evaluation(i, genome, bowls(genome, few(kind))) for i, genome in enumerate(genomes)]
    searcher.tell(told[:7])
    assert searcher.ask(5) == []
    searcher.tell(told[7:])
    assert len(searcher.ask(5)) == 5


@pytest.mark.parametrize("kind", ALL)
def test_an_empty_ask_changes_nothing(kind: str) -> None:
    plain, disturbed = small(kind).make(), small(kind).make()
    assert disturbed.ask(0) == []
    assert disturbed.ask(-1) == []
    expected, genomes = plain.ask(8), disturbed.ask(3)
    assert disturbed.ask(0) == []
    assert genomes + disturbed.ask(5) == expected


@pytest.mark.parametrize(
    ("kind", "num_objectives"),
    [(kind, 1) for kind in IN_EIGHTS]
    + [(kind, 2) for kind in IN_EIGHTS if SEARCHERS[kind].multi_objective],
)
def test_generations_that_fail_entirely_do_not_stop_the_search(
    kind: str, num_objectives: int
) -> None:
    searcher = small(kind, num_objectives=num_objectives).make()
    told, num_rounds = 0, rounds(kind, 40)
    for generation in range(num_rounds):
        genomes = searcher.ask(100)
        assert genomes
        assert all(in_cube(genome, 5) for genome in genomes)
        dead = generation < 0.3 * num_rounds or generation % 3 == 0
        searcher.tell(
            [
                evaluation(told + i, g, None if dead else bowls(g, max(num_objectives, few(kind))))
                for i, g in enumerate(genomes)
            ]
        )
        told += len(genomes)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_counts_as_a_failure(kind: str, value: float) -> None:
    odd, failed = small(kind).make(), small(kind).make()
    for generation in range(rounds(kind, 6)):
        genomes = odd.ask(8)
        assert failed.ask(8) == genomes
        told = [
            evaluation(8 * generation + i, g, None if i % 3 == 0 else bowls(g, few(kind)))
            for i, g in enumerate(genomes)
        ]
        failed.tell(told)
        broken = Score({f"f{k}": Estimate(value, 0.0, 1) for k in range(few(kind))})
        odd.tell(
            [e if e.score else Evaluation(e.id, e.genome, broken) for e in told],
        )


@pytest.mark.parametrize("kind", IN_EIGHTS)
def test_told_again_is_deterministic_and_replaces_within_a_generation(kind: str) -> None:
    def stream(first_values: float) -> list[Any]:
        searcher, genomes = small(kind).make(), []
        for generation in range(rounds(kind, 6)):
            born = searcher.ask(8)
            genomes += born
            told = [
                evaluation(8 * generation + i, g, bowls(g, few(kind))) for i, g in enumerate(born)
            ]
            searcher.tell([evaluation(told[0].id, born[0], [first_values] * few(kind))])
            searcher.tell(told[:4])
            searcher.tell(told[4:])
            elite = genomes[: 8 * generation + 8 : 5]
            searcher.tell(
                [evaluation(5 * i, g, [-1.0 - i] * few(kind)) for i, g in enumerate(elite)]
            )
        return genomes

    assert stream(5.0) == stream(-70.0)


@pytest.mark.parametrize("kind", GENERATIONAL)
def test_what_was_never_asked_for_cannot_be_told(kind: str) -> None:
    searcher = small(kind).make()
    with pytest.raises(ValueError, match="asked for"):
        searcher.tell([evaluation(0, [0.5] * 5, [0.0] * few(kind))])
    genomes = searcher.ask(8)
    searcher.tell([evaluation(-1, None, [1.0])])  # a reference
    searcher.tell([evaluation(i, g, bowls(g, few(kind))) for i, g in enumerate(genomes)])
    assert len(searcher.ask(8)) == 8


@pytest.mark.parametrize("kind", ALL)
def test_recommend_is_in_the_cube_and_disturbs_nothing(kind: str) -> None:
    quiet, curious = small(kind).make(), small(kind).make()
    assert curious.recommend() is None
    for generation in range(rounds(kind, 30)):
        genomes = quiet.ask(8)
        assert curious.ask(8) == genomes
        told = [
            evaluation(8 * generation + i, g, bowls(g, few(kind))) for i, g in enumerate(genomes)
        ]
        quiet.tell(told)
        curious.tell(told)
        genome = curious.recommend()
        assert genome is None or in_cube(genome, 5)


@pytest.mark.parametrize("kind", [k for k in IN_EIGHTS if SEARCHERS[k].resumes_on_drift])
def test_goes_on_from_recorded_genomes_that_differ(kind: str) -> None:
    searcher = small(kind).make()
    generator = np.random.default_rng(0)
    for generation in range(rounds(kind, 12)):
        drifted = [
            genome_of(kind, np.clip(point_of(g) + generator.normal(0, 0.05, 5), 0, 1).tolist())
            for g in searcher.ask(8)
        ]
        assert len(drifted) == 8
        searcher.tell(
            [evaluation(8 * generation + i, g, bowls(g, few(kind))) for i, g in enumerate(drifted)]
        )
    assert all(in_cube(genome, 5) for genome in searcher.ask(8))


@pytest.mark.parametrize("kind", ALL)
def test_the_class_says_what_it_is(kind: str) -> None:
    searcher = SEARCHERS[kind]
    assert searcher.kind == kind
    assert len(searcher.summary) < 80
    assert isinstance(searcher.needs, frozenset)
    for name, field in searcher.Options.model_fields.items():
        assert field.description, name
    made = Setting(kind, 4).make()
    assert made.population >= 1
