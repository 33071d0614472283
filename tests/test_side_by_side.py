"""The benchmark beside other tools: its arithmetic by hand, and that all sides get the same items.

The oracle for the items is lm-eval: one model's score by `simple_evaluate` is evomerge's own. With
mergekit (slow) both tools' genomes must give one merge, and it must score as our recipe does.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from make_mergekit_golden import PYTHON
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "side_by_side"))
import ours
import theirs
from accounting import Account, ForwardTimer, Moment, mean_of, paired
from cases import CASES
from shown import lines_of

from evomerge.experiment.wire import wire
from evomerge.recipe import Recipe
from evomerge.records import Job, Outcome

TINY = CASES["tiny"]


# --- time -----------------------------------------------------------------------------------------


def test_an_account_is_what_one_reckons_by_hand() -> None:
    account = Account("wall", 20, Moment(wall_s=60.0, processor_s=30.0), forward_s=10.0)
    assert account.per_minute == 20
    assert account.outside_each_s == 2.5
    assert account.forward_each_s == 0.5
    assert account.share_of_processor == 0.5
    by_processor = Account("processor", 20, account.spent, 10.0)
    assert by_processor.per_minute == 40
    assert by_processor.outside_each_s == 1.0
    assert Account.of_json(account.to_json()) == account
    both = account + Account("wall", 0, Moment(6.0, 3.0), 2.0)
    assert (both.num_candidates, both.seconds, both.forward_s) == (20, 66.0, 12.0)
    with pytest.raises(ValueError, match="wall and processor"):
        account + by_processor


def test_forward_passes_are_counted_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count(step=3)  # each look at the clock is three seconds later
    timer = ForwardTimer("wall")
    monkeypatch.setattr(timer, "_now", lambda: float(next(ticks)))
    module, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    timer.watch(module)
    other(module(module(torch.ones(1, 2))))
    assert timer.seconds == 6


def test_a_stopwatch_tells_phases_apart_and_ends_the_search() -> None:
    watch = ours.Stopwatch(seconds=None, clock="processor")
    for phase, seconds in (("references", 4.0), ("search", 1.0), ("search", 0.5)):
        watch.phase(phase)
        watch.measured(Outcome(Job(0, 0, None, {}), forward_s=seconds))  # type: ignore[arg-type]
    cohorts: Any = [[SimpleNamespace(id=n) for n in ids] for ids in ((0, 1), (1, 2))]
    for evaluations in cohorts:
        watch.told(evaluations)
    assert watch.forward_s == {"references": 4.0, "search": 1.5}
    assert watch.num_told == 3  # an incumbent is told of again
    watch.seconds = 0.0
    with pytest.raises(ours.TimeIsUp):
        watch.told([])


# --- the loops ------------------------------------------------------------------------------------


class NoMerging:
    """Takes the place of mergekit's process: a second of processor time a merge."""

    first = (1 / 3, 1.0, 1 / 3, 1.0, 1 / 3, 1.0)
    processor_s = 0.0

    def __init__(self) -> None:
        self.asked: list[tuple[float, ...]] = []

    def merge(self, way: str, values: Sequence[float], out: Path) -> None:
        out.mkdir()
        self.asked.append(tuple(values))
        self.processor_s += 1.0


class NoScoring:
    """The nearer the first value is to .7, the better; resets numpy's generator as lm-eval does."""

    clock = "processor"

    def __init__(self, server: NoMerging, *, resets: bool = True) -> None:
        self.forward, self._server, self._resets = ForwardTimer("processor"), server, resets

    def score(self, folder: Path) -> float:
        assert folder.is_dir()
        if self._resets:
            with theirs.own_generators():
                np.random.seed(1234)  # noqa: NPY002
        self.forward.seconds += 0.25
        return -abs(self._server.asked[-1][0] - 0.7)


@pytest.mark.parametrize("way", ["mergekit", "mergenetic"])
def test_a_loop_counts_its_candidates_and_keeps_the_best(way: str, tmp_path: Path) -> None:
    server: Any = NoMerging()
    scoring: Any = NoScoring(server)
    found = theirs.search(way, server, scoring, seed=0, seconds=40, scratch=tmp_path / "candidate")
    asked = np.array(server.asked)
    assert found.account.num_candidates == len(asked)
    assert 38 <= len(asked) <= 40  # our own processor time counts, too
    assert found.account.forward_s == pytest.approx(0.25 * len(asked))
    assert found.account.spent.processor_s >= len(asked)
    assert found.values == min(server.asked, key=lambda values: abs(values[0] - 0.7))
    if way == "mergenetic":
        assert asked.min() >= 0
        assert asked.max() <= 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("way", ["mergekit", "mergenetic"])
def test_a_search_does_not_notice_that_lm_eval_seeds_generators(way: str, tmp_path: Path) -> None:
    asked = []
    for resets in (True, False):
        server: Any = NoMerging()
        scoring: Any = NoScoring(server, resets=resets)
        theirs.search(way, server, scoring, seed=0, seconds=40, scratch=tmp_path / "candidate")
        asked.append(server.asked[:35])
    assert asked[0] == asked[1]


# --- the same items -------------------------------------------------------------------------------


@pytest.mark.parametrize("races", [True, False])
def test_evomerge_searches_on_the_items_that_the_others_get(tiny_zoo: Path, races: bool) -> None:
    split = TINY.split()
    parts = wire(TINY.experiment(0, races=races, candidates=1))
    assert parts.split.search == split.search
    assert all(parts.split.fresh.values()) == races
    for task, held_out in split.holdout.items():
        seen = {*parts.split.search[task], *parts.split.fresh[task]}
        assert len(held_out) == TINY.holdout
        assert seen.isdisjoint(held_out)


def test_lm_eval_is_asked_the_same_items(tiny_zoo: Path) -> None:
    few = {task: ids[:20] for task, ids in TINY.split().search.items()}
    scoring = theirs.Scoring(TINY, few, clock="wall")
    asked = {task: scoring._samples[TINY.task_name(task)] for task in few}
    assert asked == {task: list(ids) for task, ids in few.items()}
    scores = ours.holdout_scores(TINY, {"base": str(tiny_zoo / "rot")}, None, few)
    assert {task: len(values) for task, values in scores.items()} == dict.fromkeys(few, 20)
    assert 0 < mean_of(scores) < 1
    assert scoring.score(tiny_zoo / "rot") == pytest.approx(mean_of(scores))
    assert scoring.forward.seconds > 0


# --- what is shown --------------------------------------------------------------------------------


def test_one_search_is_compared_by_items_and_several_by_searches() -> None:
    generator = np.random.default_rng(0)
    first, second = ({"any": generator.random(200)} for _ in range(2))
    value, low, high = paired([(first, second)])  # type: ignore[list-item]
    told = stats.ttest_rel(first["any"], second["any"]).confidence_interval(0.95)
    assert value == pytest.approx((told.low + told.high) / 2)
    assert (low, high) == pytest.approx((told.low, told.high), abs=1e-3)  # Student's t, 199 degrees
    several = [({"any": [gain, gain + 0.2]}, {"any": [0.0, 0.2]}) for gain in (0.1, 0.3, 0.2)]
    told = stats.ttest_1samp([0.1, 0.3, 0.2], 0).confidence_interval(0.95)
    assert paired(several) == pytest.approx((0.2, told.low, told.high))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="same items"):
        paired([(first, {"any": [1.0]})])  # type: ignore[dict-item]


def test_a_table_compares_with_full_evaluation_and_on_the_seeds_of_both() -> None:
    def row(way: str, seed: int, forward_s: float, score: float) -> dict[str, Any]:
        account = Account("wall", 10, Moment(60.0, 60.0), forward_s).to_json()
        scores = {"any": [score, score, score + 0.1]}
        return {"way": way, "seed": seed, "account": account, "holdout": scores}

    rows = [
        row("mergekit", 0, 20, 0.5),
        row("mergekit", 1, 20, 0.0),  # nobody to compare it with
        row("evomerge", 0, 55, 0.7),
        row("evomerge_full", 0, 58, 0.6),
    ]
    lines = {line[0]: line for line in lines_of(rows, ("mergekit", "evomerge", "evomerge_full"))}
    assert lines["mergekit"][1:5] == ["20", "10.0", "4.000", "20.0"]
    assert lines["evomerge"][-2:] == ["", "-0.100 [-0.100, -0.100]"]
    assert lines["mergekit"][-2:] == ["+0.200 [+0.200, +0.200]", "+0.100 [+0.100, +0.100]"]


# --- with mergekit --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(PYTHON not in os.environ, reason=f"${PYTHON} names no mergekit")
def test_both_genomes_give_one_merge_which_is_ours(tiny_zoo: Path, tmp_path: Path) -> None:
    few = {task: ids[:40] for task, ids in TINY.split().search.items()}
    weights, densities = (0.4, 0.3, 0.6), (0.5, 0.7, 0.9)
    paths = TINY.paths(0)
    with theirs.MergeServer(Path(os.environ[PYTHON]), paths) as server:
        assert server.first == pytest.approx([1 / 3, 1.0] * 3)
        pairs = itertools.chain(*zip(weights, densities, strict=True))
        server.merge("mergekit", list(pairs), tmp_path / "mergekit")
        server.merge("mergenetic", (*weights, *densities), tmp_path / "mergenetic")
        assert server.processor_s > 0
    found = [
        ours.holdout_scores(TINY, {"base": str(tmp_path / way)}, None, few)
        for way in ("mergekit", "mergenetic")
    ]
    assert found[0] == found[1]
    named = {
        "weight": dict(zip(TINY.experts, weights, strict=True)),
        "density": dict(zip(TINY.experts, densities, strict=True)),
    }
    default = {
        "operator": "ties",
        "sources": list(TINY.experts),
        "parameters": named | TINY.space()["fixed"],
    }
    recipe = Recipe.model_validate(
        {"base": "base", "models": {name: name for name in paths}, "default": default}
    )
    assert ours.holdout_scores(TINY, paths, recipe, few) == found[0]
    scoring = theirs.Scoring(TINY, few, clock="wall")
    assert scoring.score(tmp_path / "mergekit") == pytest.approx(mean_of(found[0]))


@pytest.mark.slow
@pytest.mark.parametrize("races", [False, True])
def test_a_search_ends_in_time_and_accounts_for_all_of_it(
    tiny_zoo: Path, tmp_path: Path, races: bool
) -> None:
    found = ours.search(
        TINY, seed=0, seconds=20, clock="processor", races=races, folder=tmp_path / "run"
    )
    assert found.account.num_candidates == found.search.num_candidates >= 10
    assert 15 < found.account.seconds < 25
    assert found.search.forward_s < found.account.forward_s < found.account.seconds
    assert 0 < found.search.outside_each_s < found.search.forward_each_s
    assert found.recipe.default is not None
    assert found.recipe.default.operator == "ties"
