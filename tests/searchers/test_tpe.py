"""TPE, beside optuna alone and on spaces with a known optimum."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import optuna
import pytest
import searcher_calls
from searcher_calls import Setting, asked, bowls, drive, evaluation
from toy_spaces import (
    LEAST_WEIGHT,
    best_of,
    branch_value,
    branches,
    cube,
    five_of_twenty,
    lightness,
    sphere,
)

from evomerge.records import Evaluation, Facts, Genome
from evomerge.searchers import make_searcher

SEEDS = range(4)


def optuna_alone(seed: int, num_candidates: int) -> float:
    """Optuna's own loop on the sphere of five genes."""

    def objective(trial: optuna.Trial) -> float:
        return sphere({f"x{i}": trial.suggest_float(f"x{i}", 0.0, 1.0) for i in range(5)})

    sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True)
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(objective, n_trials=num_candidates)
    optuna.logging.set_verbosity(level)
    return study.best_value


def test_it_is_as_good_as_optuna_alone_and_beats_random() -> None:
    found = [best_of("tpe", cube(5), sphere, 60, seed) for seed in SEEDS]
    alone = [optuna_alone(seed, 60) for seed in SEEDS]
    random = [best_of("random", cube(5), sphere, 60, seed) for seed in SEEDS]
    # Ten seeds each: means -.0112, -.0080 and -.104.
    assert np.mean(found) > 2 * np.mean(alone)
    assert np.mean(found) > 0.25 * np.mean(random)


def test_conditional_and_mixed_genes_are_searched() -> None:
    found = [best_of("tpe", branches(), branch_value, 120, seed) for seed in SEEDS]
    random = [best_of("random", branches(), branch_value, 120, seed) for seed in SEEDS]
    assert np.median(found) > -0.01  # of the optimum, 0
    assert np.median(found) > 0.25 * np.median(random)


def test_flags_that_are_counted_are_searched() -> None:
    found = [best_of("tpe", five_of_twenty(), lightness, 120, seed) for seed in SEEDS]
    random = [best_of("random", five_of_twenty(), lightness, 120, seed) for seed in SEEDS]
    assert np.median(found) > -1.3 * LEAST_WEIGHT
    assert np.median(random) < -1.6 * LEAST_WEIGHT


def test_a_small_space_is_asked_for_all_that_it_has() -> None:
    space = branches()
    space = type(space)(space.genes[:1])
    searcher = make_searcher("tpe", space, 0, Facts(), {"population": 1, "ahead": 0, "startup": 1})  # type: ignore[arg-type]
    seen = []
    for number in range(3):
        (genome,) = searcher.ask(1)
        seen.append(space.meaning(genome)["kind"])
        searcher.tell([evaluation(number, genome, [float(seen[-1] == "a")])])
    assert sorted(map(str, seen)) == ["a", "b", "c"]


def asked_knowing(told: list[Evaluation], objectives: int = 1) -> list[Genome]:
    """What is asked for in the unit square, knowing what is told."""
    facts = Facts(objectives=tuple(f"f{i}" for i in range(objectives)), warm_start=tuple(told))
    searcher = make_searcher("tpe", cube(2), 0, facts, {"population": 24, "samples": 64})  # type: ignore[arg-type]
    return searcher.ask(24)


def centre_of(told: list[Evaluation], objectives: int = 1) -> Genome:
    """The median of what is asked for."""
    genome: Genome = np.median(asked_knowing(told, objectives), axis=0).tolist()
    return genome


def at(place: float, ids: range) -> list[tuple[int, Genome]]:
    """Points around a place on the diagonal."""
    shifts = np.random.default_rng(len(ids)).uniform(-0.04, 0.04, (len(ids), 2))
    return [(i, (place + shift).tolist()) for i, shift in zip(ids, shifts, strict=True)]


def test_survivors_of_a_race_attract_whatever_the_values_of_the_dropped() -> None:
    told = [evaluation(i, g, [0.9], rung=0) for i, g in at(0.2, range(20))]
    told += [evaluation(i, g, [0.1], rung=2) for i, g in at(0.8, range(20, 24))]
    assert min(centre_of(told)) > 0.6


def test_failures_and_violations_are_avoided() -> None:
    told = [evaluation(i, g, None) for i, g in at(0.2, range(20))]
    told += [evaluation(i, g, None, violation=1.0) for i, g in at(0.5, range(20, 40))]
    told += [evaluation(i, g, [0.1]) for i, g in at(0.8, range(40, 48))]
    asked_for = np.array(asked_knowing(told))
    for place in (0.2, 0.5):
        near = np.abs(asked_for - place).max(axis=1) < 0.2
        assert near.mean() < 0.1  # of random points .16


def test_violations_that_have_a_score_rank_last() -> None:
    told = [evaluation(i, g, [0.9], violation=2.0) for i, g in at(0.2, range(20))]
    told += [evaluation(i, g, [0.1]) for i, g in at(0.8, range(20, 24))]
    assert min(centre_of(told)) > 0.6


def test_several_objectives_share_the_good() -> None:
    told = [evaluation(i, g, [0.1, 0.1]) for i, g in at(0.2, range(20))]
    told += [evaluation(i, g, [0.9, 0.5]) for i, g in at(0.8, range(20, 24))]
    assert min(centre_of(told, 2)) > 0.6


def test_a_warm_start_takes_the_place_of_the_spread_points() -> None:
    told = tuple(evaluation(i, g, [v]) for v, p in ((0, 0.2), (1, 0.8)) for i, g in at(p, range(5)))
    cold = Setting("tpe", 2).make().ask(4)
    warm = Setting("tpe", 2, warm_start=told[:6]).make().ask(4)
    warmer = Setting("tpe", 2, warm_start=told).make().ask(4)
    assert warm == cold  # four spread points are left
    assert warmer != cold


def test_designs_come_first_and_as_they_are() -> None:
    designs = ([0.13, 0.2], [0.9, 0.4], [0.13, 0.2])
    assert Setting("tpe", 2, designs=designs).make().ask(2) == [designs[0], designs[1]]
    assert Setting("tpe", 2, designs=designs, options={"designs": False}).make().ask(1) != [
        designs[0]
    ]


def test_optunas_log_is_silent_and_its_level_is_left(capfd: pytest.CaptureFixture[str]) -> None:
    before = optuna.logging.get_verbosity()
    drive(
        Setting("tpe", 6, shape="conditional").make(), 20, itertools.repeat(8), itertools.repeat(8)
    )
    assert optuna.logging.get_verbosity() == before
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["tpe", "successive"])
def test_conditional_genes_do_not_hang_on_the_hash_seed(kind: str) -> None:
    setting = Setting(kind, 12, seed=1, shape="conditional", options={"population": 6})
    calls = drive(setting.make(), 40, itertools.repeat(5), itertools.repeat(7))
    answer = subprocess.run(
        [sys.executable, str(Path(searcher_calls.__file__))],
        input=json.dumps([[dataclasses.asdict(setting), calls]]),
        env=os.environ | {"PYTHONHASHSEED": "99"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(answer.stdout) == asked(calls)


def test_a_failing_bowl_is_learnt_beside_its_failures() -> None:
    def half(genome: Genome, num_objectives: int) -> list[float] | None:
        return None if genome[0] > 0.6 else bowls(genome, num_objectives)

    def share(kind: str) -> float:
        calls = drive(
            Setting(kind, 3).make(), 60, itertools.repeat(4), itertools.repeat(4), 1, half
        )
        return float(np.mean([genome[0] > 0.6 for genome in asked(calls)[20:]]))

    assert share("tpe") < 0.5 * share("random")
