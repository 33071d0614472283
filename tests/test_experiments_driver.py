"""The driver of the experiments: what it compares, and that known answers are the measured ones."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from evomerge.documents import Document
from evomerge.experiment.config import ExperimentConfig, parse_experiment
from evomerge.experiment.run import run_experiment
from evomerge.experiment.wire import wire
from evomerge.files import catalogue_folder
from evomerge.ledger import LEDGER, Ledger
from evomerge.pareto import hypervolume

DRIVER = Path(__file__).parents[1] / "benchmarks" / "experiments"


@pytest.fixture(autouse=True)
def _driver_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DRIVER))


def small(objectives: dict[str, Any], **keys: Any) -> ExperimentConfig:
    """The tiny skills on few items."""
    tasks = {
        skill: {
            "kind": "lm_eval",
            "task": f"evomerge_tiny_{skill}",
            "path": str(catalogue_folder("fitness") / "tasks" / "tiny" / f"{skill}.yaml"),
            "batch_size": 16,
        }
        for skill in ("sort", "rot")
    }
    return parse_experiment(
        Document(
            {
                "name": "small",
                "base": "zoo:tiny/base",
                "experts": {skill: f"zoo:tiny/{skill}" for skill in tasks},
                "space": "per_expert",
                "fitness": {
                    "tasks": tasks,
                    "objectives": objectives,
                    "split": {"search": 16, "fresh": 8, "holdout": 24},
                    "finalists": 2,
                },
                "searcher": {"kind": "random"},
                "budget": {"candidates": 4},
                "pool": {"workers": 0},
                **keys,
            }
        )
    )


MEAN = {"mean": {"tasks": ["sort", "rot"]}}
BOTH = {"sort": "sort", "rot": "rot"}


def answers_in(folder: Path) -> dict[tuple[str, str], list[float]]:
    with closing(Ledger(folder / LEDGER, read_only=True)) as ledger:
        known = ledger.measurements
        return {
            (c.label or str(c.id), task): known.values(c.fingerprint, task, range(n)).tolist()
            for c in ledger.candidates.values()
            for task, n in known.num_items.items()
        }


def test_a_run_whose_references_are_known_is_the_run_that_measures_them(
    tiny_zoo: Path, tmp_path: Path
) -> None:
    from answers import Answers

    config = small(MEAN)
    run_experiment(config, tmp_path / "plain")
    for name in ("first", "second"):  # the second finds everything in the store
        parts = wire(config)
        (tmp_path / name).mkdir()
        with closing(Answers(tmp_path / "answers", parts)) as answers:
            answers.give_references(parts, tmp_path / name)
            assert (answers._pool is None) == (name == "second")
        run_experiment(config, tmp_path / name)
    np.testing.assert_equal(answers_in(tmp_path / "second"), answers_in(tmp_path / "plain"))
    finals = []
    for name in ("plain", "first", "second"):
        with closing(Ledger(tmp_path / name / LEDGER, read_only=True)) as ledger:
            finals.append({k: v for k, v in (ledger.final() or {}).items() if k != "ended"})
    assert finals[0] == finals[1] == finals[2]


def test_other_models_and_other_items_are_other_groups(tiny_zoo: Path) -> None:
    from answers import group_of

    groups = [
        group_of(wire(config))
        for config in (
            small(MEAN),
            small(BOTH),  # other objectives, the same answers
            small(MEAN, searcher={"kind": "sobol"}, seed=3),
            small(MEAN, dtype="bfloat16"),
            small(MEAN, experts={"sort": "zoo:tiny/sort", "rot": "zoo:tiny/back"}),
        )
    ]
    assert groups[0] == groups[1] == groups[2]
    assert len(set(groups)) == 3


def test_gains_and_hypervolumes_are_those_of_the_answers(tiny_zoo: Path, tmp_path: Path) -> None:
    from answers import Answers
    from judging import baselines, judged

    from evomerge.run import Run

    config = small(BOTH)
    run_experiment(config, tmp_path / "run")
    parts = wire(config)
    with closing(Answers(tmp_path / "answers", parts)) as answers:
        told = judged(parts, answers, tmp_path / "run", tmp_path / "run", 0, lambda _: None)
        known = answers.of({}, {}, lambda _: None)
    recipes = {**baselines(parts), "found": Run(tmp_path / "run").best().recipe}
    assert {"TIES as it comes", "DARE-TIES as it comes", "task_arithmetic 0.35"} <= set(recipes)
    mean = {}
    for label, recipe in recipes.items():
        skills = [
            known.values(recipe.fingerprint, task, parts.split.holdout[task]).mean()
            for task in ("sort", "rot")
        ]
        mean[label] = float(np.mean(skills))
        assert told["scores"][label]["mean"] == pytest.approx(mean[label])
        assert [told["scores"][label][task] for task in ("sort", "rot")] == pytest.approx(skills)
    grid = max(value for label, value in mean.items() if label.startswith("task_arithmetic"))
    gains = {name: row["gain"] for name, row in told["gains"].items()}
    assert gains["best of the grid, in hindsight"][0] == pytest.approx(mean["found"] - grid)
    assert gains["best expert"][0] == pytest.approx(mean["found"] - max(mean["sort"], mean["rot"]))
    assert gains["random search"] == (0.0, 0.0, 0.0)  # the twin is the run itself
    assert all(low <= value <= high for value, low, high in gains.values())

    fronts = told["fronts"]
    points = [
        [told["scores"][label][task] for task in ("sort", "rot")] for label in baselines(parts)
    ]
    volume = hypervolume(points, [0.0, 0.0])
    assert fronts["references and grid"]["above_zero"] == pytest.approx(volume)
    assert fronts["gains_above_zero"]["random search"] == pytest.approx([0, 0, 0])
    value, low, high = fronts["gains_above_zero"]["references and grid"]
    assert value == pytest.approx(fronts["found"]["above_zero"] - volume)
    assert low <= value <= high


def test_a_study_is_moved_to_a_seed_and_its_twin_spends_as_much(tmp_path: Path) -> None:
    from studies import BY_NAME, config_of, twin_config

    study = BY_NAME["quickstart"]
    config = config_of(study, 3, tmp_path)
    assert (config.base, config.seed) == ("zoo:tiny@3/base", 3)
    assert all(path.startswith("zoo:tiny@3/") for path in config.experts.values())
    twin = twin_config(study, config, 1234)
    assert twin is not None
    assert (twin.searcher.kind, twin.budget.item_evaluations) == ("random", 1234)
    assert (twin.space, twin.fitness, twin.seed) == (config.space, config.fitness, 3)


def test_the_studies_are_of_experiments_that_there_are() -> None:
    from studies import BY_NAME, STUDIES

    names = {path.stem for path in catalogue_folder("experiments").glob("*.yaml")}
    for study in STUDIES:
        assert study.name in names
        assert not study.after or BY_NAME[study.after].scale == study.scale
        assert not study.judge or (catalogue_folder("fitness") / f"{study.judge}.yaml").exists()
    assert "studies" in sys.modules


def test_kept_outcomes_are_of_the_files_as_they_are(tmp_path: Path) -> None:
    """A new key of space files must not make everything that was measured look old."""
    from studies import BY_NAME
    from study_tables import KEPT, outcomes

    kept = sorted(KEPT.glob("*.json"))
    assert len(kept) > 30
    for path in kept:
        assert len(outcomes(BY_NAME[path.stem], tmp_path)) == len(json.loads(path.read_text()))


def test_a_judge_with_tasks_of_its_own_judges_what_had_none(tiny_zoo: Path, tmp_path: Path) -> None:
    """What was searched without labels is judged by a fitness that has them."""
    from answers import Answers
    from judging import judged

    path = str(catalogue_folder("fitness") / "tasks" / "tiny" / "sort.jsonl")
    fitness = {
        "tasks": {"sure": {"kind": "entropy", "path": path, "tokens": 4, "batch_size": 16}},
        "objectives": {"sure": "sure"},
        "split": {"search": 16, "fresh": 8, "holdout": 24},
    }
    blind = small(MEAN, fitness=fitness)
    run_experiment(blind, tmp_path / "run")
    parts = wire(small(MEAN))
    for _ in range(2):  # and the store can be read again
        with closing(Answers(tmp_path / "answers", parts)) as answers:
            told = judged(parts, answers, tmp_path / "run", None, 0, lambda _: None)
        assert 0 <= told["scores"]["found"]["mean"] <= 1
        assert "mean" in told["scores"]["base"]


def test_answers_come_in_any_number_at_once(tiny_zoo: Path, tmp_path: Path) -> None:
    from answers import Answers
    from judging import baselines

    parts = wire(small(MEAN))
    recipes = dict(list(baselines(parts).items())[:4])
    with closing(Answers(tmp_path / "answers", parts)) as answers:
        one_by_one = answers.collect
        kept: list[Any] = []

        def all_at_once(timeout_s: float) -> list[Any]:
            kept.extend(one_by_one(timeout_s))
            return kept if len(kept) == len(recipes) else []

        answers.collect = all_at_once  # type: ignore[method-assign]
        known = answers.of(recipes, parts.split.holdout, lambda _: None)
    for recipe in recipes.values():
        assert not known.missing(recipe.fingerprint, "rot", parts.split.holdout["rot"])


@pytest.mark.parametrize(
    ("lanes", "jobs", "end"),
    [([[3], [2], [4]], 2, 6), ([[3], [2], [4]], 8, 4), ([[1, 1], [5]], 1, 7), ([], 2, 0)],
)
def test_lanes_end_when_the_last_one_does(lanes: list[list[float]], jobs: int, end: float) -> None:
    from schedule import makespan

    assert makespan(lanes, jobs) == end


def test_a_signal_ends_what_was_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import schedule
    from studies import STUDIES

    began = []

    class Sleeper(schedule.Spawned):
        def __init__(self, task: Any, out: Path) -> None:
            self._study, self._name, self._began = task[0], str(task), time.monotonic()
            self._log = out / "log"
            self._process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
            began.append(self._process)
            if len(began) == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(schedule, "Spawned", Sleeper)
    lanes = [deque([(study, 0)]) for study in STUDIES[:3]]
    with pytest.raises(KeyboardInterrupt):
        schedule.worked_off(lanes, tmp_path, 2)
    assert len(began) == 2
    assert all(process.poll() is not None for process in began)


def test_a_changed_experiment_is_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import one
    from studies import BY_NAME, config_of, run_folder

    study = BY_NAME["quickstart"]
    file = run_folder(tmp_path, study.name, 0) / "outcome.json"
    file.parent.mkdir()
    told_apart = one.fingerprint(study, 0, tmp_path)
    file.write_text(json.dumps({"experiment": told_apart}))
    assert one.is_done(study, 0, tmp_path)
    one.set_aside(told_apart, [file.parent])
    assert one.is_done(study, 0, tmp_path)
    changed = config_of(study, 1, tmp_path)
    monkeypatch.setattr(one, "config_of", lambda *_: changed)
    assert not one.is_done(study, 0, tmp_path)
    twin = tmp_path / "twin"
    twin.mkdir()
    one.set_aside(one.fingerprint(study, 0, tmp_path), [file.parent, twin])
    assert (tmp_path / "old" / f"twin-{told_apart}").exists()
    assert not file.exists()  # the old run is out of the way,
    assert (tmp_path / "old" / f"quickstart-0-{told_apart}" / "outcome.json").exists()
    (file.parent / "begun").touch()
    one.set_aside(one.fingerprint(study, 0, tmp_path), [file.parent])
    assert (file.parent / "begun").exists()  # and the new one, which is not finished, is not


def test_what_follows_another_study_changes_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import one
    from studies import BY_NAME, config_of

    study = BY_NAME["evolutionary_ps_then_dfs"]
    before = one.fingerprint(study, 0, tmp_path)
    assert before == one.fingerprint(study, 0, tmp_path / "elsewhere")

    def changed(which: Any, seed: int, runs: Path) -> ExperimentConfig:
        config = config_of(which, seed, runs)
        grown = {"budget": config.budget.model_copy(update={"candidates": 7})}
        return config.model_copy(update=grown if which.name == study.after else {})

    monkeypatch.setattr(one, "config_of", changed)
    assert before != one.fingerprint(study, 0, tmp_path)


@pytest.mark.parametrize(
    ("told", "keeps", "words"),
    [
        ((0.02, 0.01, 0.03), False, "holds"),
        ((0.02, -0.01, 0.05), False, "not told apart"),
        ((-0.02, -0.03, -0.01), False, "does not hold: the reverse"),
        ((-0.01, -0.015, 0.0), True, "holds, within 0.02"),
        ((-0.03, -0.04, -0.025), True, "does not hold"),
        ((-0.02, -0.03, -0.01), True, "not told apart"),
        ((0.0, 0.0, 0.0), False, "the same model"),
    ],
)
def test_verdicts_follow_from_intervals(
    told: tuple[float, float, float], keeps: bool, words: str
) -> None:
    from studies import Study
    from study_tables import verdict

    assert verdict(Study("any", "any", keeps=keeps), told) == words


def test_claims_about_another_study_are_paired_by_seed() -> None:
    from studies import BY_NAME
    from study_tables import claim_gap

    def row(seed: int, mean: float) -> dict[str, Any]:
        return {"seed": seed, "scores": {"found": {"mean": mean, "standard_error": 0.01}}}

    found = {
        "ties": [row(0, 0.8), row(1, 0.9)],
        "quickstart": [row(0, 0.7), row(1, 0.6), row(2, 0.0)],
    }
    told = claim_gap(BY_NAME["ties"], found)
    expected = stats.ttest_1samp([0.1, 0.3], 0).confidence_interval(0.95)
    assert told == pytest.approx((0.2, expected.low, expected.high))
    one = claim_gap(BY_NAME["ties"], {**found, "ties": found["ties"][:1]})
    assert one == pytest.approx((0.1, 0.1 - 1.96 * 0.01 * 2**0.5, 0.1 + 1.96 * 0.01 * 2**0.5))
