"""R1: the driver is killed, at every failpoint and at random times.

Passes if: digest, evaluations, front and failures of the resumed run are those of an uninterrupted
one, no candidate is there twice, and no more jobs are measured again than there are workers, for
each kill; also after three kills in one run. At least 50 random kills for each of five searchers,
of 20 generations of 8.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toys
from drivers import evomerge
from toys import Count, Toy, forked, measured_twice, outcome_of

from evomerge.experiment import run as runs
from evomerge.failpoints import FAILPOINTS
from evomerge.pools.inline import InlinePool

KILLED = -signal.SIGKILL
TOGETHER = ("results.before_commit", "results.after_commit")  # need several workers
RUN_FAILPOINTS = [n for n in FAILPOINTS if not n.startswith("export") and n not in TOGETHER]
# An early kill, then one in the middle of what is left, then a late one: each session counts anew.
OCCURRENCES = {"ask": (1, 3, 1), "result": (1, 40, 20), "tell": (1, 2, 1)}
pytestmark = pytest.mark.usefixtures("no_pictures")

FIVE = {  # searcher -> estimator
    "random": "racing",
    "cma_es": "racing",
    "nsga2": "racing",
    "rl_agent": "racing",
    "m2n2": "subset",
}


@pytest.fixture(autouse=True)
def five_searchers(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = {"kind": "rl_agent", "population": 8, "scalarise": {"kind": "parego"}}
    monkeypatch.setitem(toys.SEARCHERS, "rl_agent", agent)
    niches = {"kind": "m2n2", "archive": 5, "in_flight": 8}
    monkeypatch.setitem(toys.SEARCHERS, "m2n2", niches)
    monkeypatch.setitem(toys.ESTIMATORS, "subset", {"kind": "subset", "items": 10})


def toy_of(searcher: str, estimator: str, budget: int = 40) -> Toy:
    keys = {"space": {"kind": "niches"}} if searcher == "m2n2" else {}
    return Toy(searcher, estimator, budget, keys=keys)


def check_equal(folder: Path, expected: dict[str, Any], figure: Any) -> None:
    """That a run is the one that nobody disturbed, and no answer was committed twice."""
    found = outcome_of(folder)
    different = [key for key in expected if found[key] != expected[key]]
    figure("R1", "of digest, front, failures, ...: what differs", len(different), 0, unit="")
    asked = [id_ for ids in found["asked"].values() for id_ in ids]
    figure("R1", "candidates that are there twice", len(asked) - len(set(asked)), 0, unit="")
    figure("R1", "items that were committed twice", measured_twice(folder), 0, unit="")


SLOWLY = [(*pair, 3) for pair in FIVE.items() if pair[0] != "nsga2"]
SLOWLY += [(searcher, "full", 1) for searcher in ("random", "cma_es", "nsga2", "rl_agent")]


@pytest.mark.parametrize(
    ("searcher", "estimator", "kills"),
    [
        ("nsga2", "racing", 3),
        *((*pair, 1) for pair in FIVE.items() if pair[0] != "nsga2"),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOWLY),
    ],
)
@pytest.mark.parametrize("failpoint", RUN_FAILPOINTS)
def test_killed_at_a_failpoint(
    failpoint, searcher, estimator, kills, tmp_path, uninterrupted, figure
):
    toy = toy_of(searcher, estimator)
    expected = uninterrupted(toy)
    occurrences = OCCURRENCES[failpoint.partition(".")[0]]
    for occurrence in occurrences if kills == 3 else occurrences[1:2]:
        assert forked(lambda: toy.run(tmp_path), f"{failpoint}:{occurrence}") == KILLED
    toy.run(tmp_path)
    check_equal(tmp_path, expected, figure)


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


class Jobs:
    """Counts the jobs that drivers measure, in a file that outlives them."""

    def __init__(self, path: Path, patch: pytest.MonkeyPatch) -> None:
        self._path = path
        path.touch()
        real = InlinePool.collect

        def collect(pool: InlinePool, timeout_s: float) -> Any:
            found = real(pool, timeout_s)
            with path.open("ab", buffering=0) as file:
                file.write(b"." * len(found))
            return found

        patch.setattr(InlinePool, "collect", collect)

    def count(self) -> int:
        """Since the last time that somebody asked."""
        found = self._path.stat().st_size
        self._path.write_bytes(b"")
        return found


def killed_at_random(toy: Toy, out: Path, generator: np.random.Generator, seconds: float) -> int:
    """Start it three times, and kill it some time later; how often it was there to be killed."""
    ends = generator.uniform(0.0, seconds, 3)
    codes = [forked(lambda: toy.run(out), kill_after_s=float(end)) for end in ends]
    assert set(codes) <= {0, KILLED}
    return codes.count(KILLED)


@pytest.mark.parametrize("num_kills", [4, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.parametrize("searcher", FIVE)
def test_killed_at_random_times(num_kills, searcher, tmp_path, uninterrupted, monkeypatch, figure):
    """20 generations of 8, killed up to three times in a run, until there were kills enough."""
    is_long = num_kills >= 50
    toy = toy_of(searcher, FIVE[searcher], 160 if is_long else 40)
    jobs = Jobs(tmp_path / "jobs", monkeypatch)
    start = time.monotonic()
    toy.run(tmp_path / "whole")
    seconds = time.monotonic() - start
    expected, whole = outcome_of(tmp_path / "whole"), jobs.count()
    generator = np.random.default_rng([len(searcher), 5])
    kills, runs_killed, most = 0, 0, 0.0
    while kills < num_kills:
        out = tmp_path / str(runs_killed)
        runs_killed += 1
        found = killed_at_random(toy, out, generator, seconds)
        kills += found
        toy.run(out)
        check_equal(out, expected, figure)
        again = jobs.count() - whole
        most = max(most, again / max(1, found))
        shutil.rmtree(out)
    figure("R1", "jobs measured again for each kill, one worker", most, 1, unit="")
    if is_long:
        name = f"random kills of {searcher}"
        figure("R1", name, kills, num_kills, unit="", at_least=True)


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


def test_an_export_of_several_goes_on(tmp_path, uninterrupted):
    toy = Toy()
    run = toy.open(toy.run(tmp_path / "run"))
    run.export_front(tmp_path / "undisturbed", top=3)
    out = tmp_path / "out"
    assert forked(lambda: run.export_front(out, top=3), "export.shard:2") == KILLED
    assert json.loads((out / "front.json").read_text())["complete"] is False
    (whole,) = [path for path in out.iterdir() if (path / "evomerge_recipe.yaml").exists()]
    written = (whole / "model.safetensors").stat().st_mtime_ns

    assert forked(lambda: run.export_front(out, top=3), "export.before_index:2") == KILLED
    assert not (out / "front.csv").exists()
    done = run.export_front(out, top=3)
    assert [exported.kept for exported in done] == [True, True, False]
    assert (whole / "model.safetensors").stat().st_mtime_ns == written
    assert files_below(out) == files_below(tmp_path / "undisturbed")


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


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
