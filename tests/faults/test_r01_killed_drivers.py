"""R1: the driver is killed, at every failpoint and at random times.

Passes if: digest, evaluations, front and failures of the resumed run are those of an uninterrupted
one, no candidate is there twice, and no more jobs are measured again than there are workers, for
each kill; also after three kills in one run. At least 50 random kills for each of five searchers,
of 20 generations of 8.
"""

from __future__ import annotations

import os
import signal
from typing import Any

import numpy as np
import pytest
import toys
from drivers import evomerge
from toys import Count, Toy, forked, measured_twice, outcome_of

from evomerge.experiment import run as runs
from evomerge.failpoints import FAILPOINTS

KILLED = -signal.SIGKILL
TOGETHER = ("results.before_commit", "results.after_commit")  # need several workers
RUN_FAILPOINTS = [n for n in FAILPOINTS if not n.startswith("export") and n not in TOGETHER]
# An early kill, then one in the middle of what is left, then a late one: each session counts anew.
OCCURRENCES = {"ask": (1, 3, 1), "result": (1, 40, 20), "tell": (1, 2, 1)}
pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.mark.parametrize(
    ("searcher", "estimator"),
    [
        ("random", "racing"),
        ("cma_es", "racing"),
        ("nsga2", "racing"),
        ("nsga2", "full"),
        pytest.param("random", "full", marks=pytest.mark.slow),
        pytest.param("cma_es", "full", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("failpoint", RUN_FAILPOINTS)
def test_killed_at_a_failpoint(failpoint, searcher, estimator, tmp_path, uninterrupted):
    toy = Toy(searcher, estimator)
    expected = uninterrupted(toy)
    occurrences = OCCURRENCES[failpoint.partition(".")[0]]
    for occurrence in occurrences if estimator == "racing" else occurrences[1:2]:
        assert forked(lambda: toy.run(tmp_path), f"{failpoint}:{occurrence}") == KILLED
    toy.run(tmp_path)
    assert outcome_of(tmp_path) == expected
    # What is lost is what was measured and not committed: one job for each kill.
    assert measured_twice(tmp_path) == 0


class Bunches:
    """A pool whose outcomes arrive together, as those of many workers do, and in another order."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def collect(self, timeout_s: float) -> list[Any]:
        found = [outcome for _ in range(5) for outcome in self._pool.collect(timeout_s)]
        return found[::-1]


@pytest.mark.parametrize("searcher", ["random", "cma_es"])
@pytest.mark.parametrize("failpoint", TOGETHER)
def test_killed_where_several_outcomes_share_a_commit(
    failpoint, searcher, tmp_path, uninterrupted, monkeypatch
):
    toy = Toy(searcher, "racing")
    expected = uninterrupted(toy)
    make_pool = runs.make_pool
    monkeypatch.setattr(runs, "make_pool", lambda *args: Bunches(make_pool(*args)))
    for occurrence in (1, 9):
        assert forked(lambda: toy.run(tmp_path), f"{failpoint}:{occurrence}") == KILLED
    toy.run(tmp_path)
    assert outcome_of(tmp_path) == expected
    assert measured_twice(tmp_path) == 0


@pytest.mark.parametrize("searcher", toys.SEARCHERS)
def test_killed_at_random_times(searcher, tmp_path, uninterrupted):
    toy = Toy(searcher, "racing")
    expected = uninterrupted(toy)
    generator = np.random.default_rng([len(searcher), 5])
    codes = [
        forked(lambda: toy.run(tmp_path), kill_after_s=float(generator.uniform(0.01, 0.2)))
        for _ in range(8)
    ]
    assert KILLED in codes
    toy.run(tmp_path)
    assert outcome_of(tmp_path) == expected


def test_a_kill_loses_one_job_and_a_finished_run_costs_nothing(tmp_path):
    """With one worker, what is committed and what is left sum up to the whole."""
    toy = Toy("nsga2", "racing")
    whole, rest, nothing = Count(), Count(), Count()
    toy.run(tmp_path / "whole", watchers=(whole,))
    assert forked(lambda: toy.run(tmp_path / "parts"), "result.before_commit:50") == KILLED
    toy.run(tmp_path / "parts", watchers=(rest,))
    assert whole.jobs == 49 + rest.jobs  # the fiftieth was measured, and is measured again
    before = outcome_of(tmp_path / "parts")
    toy.run(tmp_path / "parts", watchers=(nothing,))
    assert nothing.jobs == 0
    assert outcome_of(tmp_path / "parts") == before


def test_killed_before_the_ledger_is_there(tmp_path, monkeypatch, uninterrupted):
    """The folder alone says what was meant to run."""
    toy = Toy()

    def die(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def killed() -> None:
        monkeypatch.setattr(runs, "open_ledger", die)
        toy.run(tmp_path)

    assert forked(killed) == KILLED
    assert (tmp_path / runs.EXPERIMENT).exists()
    toy.run(tmp_path)
    assert outcome_of(tmp_path) == uninterrupted(toy)


# --- export ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("failpoint", ["export.shard", "export.before_index"])
def test_an_export_is_whole_or_not_there(failpoint, tmp_path, uninterrupted):
    from evomerge.checkpoints.open import open_checkpoint

    toy = Toy()
    run = toy.open(toy.run(tmp_path / "run"))
    target = tmp_path / "model"
    assert forked(lambda: run.export(folder=target), failpoint) == KILLED
    assert not target.exists()
    run.export(folder=target)
    written = open_checkpoint(str(target / "model.safetensors"), name="exported")
    merged = run.merge()
    assert set(written.names) == set(merged)
    for name, tensor in merged.items():
        assert (written.tensor(name) == tensor).all()
    first = {p.name: p.read_bytes() for p in target.iterdir()}
    assert forked(lambda: run.export(folder=target), failpoint) == KILLED
    assert {p.name: p.read_bytes() for p in target.iterdir()} == first
    run.export(folder=target)  # what the kill has left is cleared away
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "run"]


# --- the command line -----------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_line_resumes_and_any_number_of_workers_agrees(
    experiment, tmp_path, undisturbed
):
    digests = set()
    for workers in (0, 1, 2, 4):
        out = tmp_path / str(workers)
        first = evomerge("run", experiment, "--out", out, "--budget", 13, "--workers", workers)
        said, _ = first.communicate(timeout=200)
        assert first.returncode == 0, said
        assert "leaked" not in said
        more = evomerge("resume", out, "--budget", 24, "--workers", workers)
        said, _ = more.communicate(timeout=200)
        assert more.returncode == 0, said
        digests.add(outcome_of(out)["digest"])
    assert digests == {undisturbed["digest"]}
