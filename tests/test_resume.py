"""A run that is killed anywhere and resumed equals one that never was."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toys
from toys import Count, Toy, forked, measured_twice, outcome_of

from evomerge.errors import ConfigurationError, Interrupted, LedgerDamaged
from evomerge.experiment import run as runs
from evomerge.failpoints import FAILPOINTS
from evomerge.ledger import Ledger
from evomerge.pools import PoolConfig

KILLED = -signal.SIGKILL
RUN_FAILPOINTS = [name for name in FAILPOINTS if not name.startswith("export")]
# An early kill, then one in the middle of what is left, then a late one: each session counts anew.
OCCURRENCES = {"ask": (1, 3, 1), "result": (1, 40, 20), "tell": (1, 2, 1)}
ITEMS_OF_A_JOB = 48  # two tasks of 24 search items


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "write_pictures", lambda *_: None)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Toy], dict[str, Any]]:
    """What comes of a search that nobody disturbs."""
    known: dict[str, dict[str, Any]] = {}

    def outcome(toy: Toy) -> dict[str, Any]:
        if (key := repr(toy)) not in known:
            known[key] = outcome_of(toy.run(tmp_path_factory.mktemp("uninterrupted")))
        return known[key]

    return outcome


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


# --- signals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_of_a_measurement_is_nobodys_failure(
    number, tmp_path, uninterrupted
):
    """A user's function may catch every Exception; the signal passes all the same."""

    def run() -> None:
        try:
            Toy(fitness=Interrupted40(number)).run(tmp_path)
        except Interrupted as error:
            os._exit(error.exit_code)

    assert forked(run) == 128 + number
    toy = Toy(fitness=Interrupted40())
    toy.run(tmp_path)
    assert outcome_of(tmp_path) == uninterrupted(toy)


class Interrupted40:
    """The toy fitness; a signal comes while it is called for the fortieth time."""

    def __init__(self, number: int = 0) -> None:
        self._number = number
        self._calls = 0

    def __repr__(self) -> str:
        return "Interrupted40"

    def __call__(self, state: Any) -> Any:
        self._calls += 1
        if self._number and self._calls == 40:
            try:
                os.kill(os.getpid(), self._number)
                time.sleep(5)
            except Exception:
                return {}
        return toys.fitness(state)


# --- more of it -----------------------------------------------------------------------------------

EXTENDED = [
    *(Toy(searcher, estimator) for searcher in toys.SEARCHERS for estimator in toys.ESTIMATORS),
    Toy("random", "full", keys={"in_flight": 12, "cohort": 3}),
    Toy("random", "racing", keys={"in_flight": 12, "cohort": 3}),
    Toy("cma_es", "racing", keys={"in_flight": 5}),
    Toy("nsga2", "racing", keys={"in_flight": 20, "cohort": 8}),
]


@pytest.mark.parametrize("toy", EXTENDED, ids=lambda t: f"{t.searcher}-{t.estimator}-{t.keys}")
@pytest.mark.parametrize("first", [pytest.param(16, marks=pytest.mark.slow), 27])
def test_a_run_that_is_extended_equals_a_longer_one(toy, first, tmp_path, uninterrupted):
    toy.run(tmp_path, budget=first)
    short = outcome_of(tmp_path)
    assert len(short["evaluations"]) == first
    toy.run(tmp_path)
    extended, expected = outcome_of(tmp_path), uninterrupted(toy)
    assert extended["digest"] == expected["digest"]
    assert extended["evaluations"] == expected["evaluations"]
    assert extended["final"] == expected["final"]


def test_many_candidates_extended_by_as_many(tmp_path):
    """100 extended to 200 equals 200."""
    toy = Toy("cma_es", "racing")
    toy.run(tmp_path / "whole", budget=200)
    for budget in (100, 200):
        toy.run(tmp_path / "parts", budget=budget)
    whole, parts = outcome_of(tmp_path / "whole"), outcome_of(tmp_path / "parts")
    assert len(whole["evaluations"]) == 200
    assert parts["digest"] == whole["digest"]
    assert parts["final"] == whole["final"]


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

EXPERIMENT = """
name: small
base: {zoo}/base
experts: {{sort: {zoo}/sort, back: {zoo}/back}}
space: per_expert
fitness:
  tasks:
    sort: {{kind: lm_eval, task: evomerge_tiny_sort_choice, path: {tasks}}}
  objectives: {{sort: sort}}
  split: {{search: 16, fresh: 8, holdout: 16}}
  finalists: 2
searcher: {{kind: cma_es, population: 6}}
budget: {{candidates: 24}}
"""


def evomerge(*arguments: Any) -> subprocess.Popen[str]:
    """The command line, in a session of its own, as a shell would start it."""
    return subprocess.Popen(
        [sys.executable, "-m", "evomerge", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=os.environ | {"COLUMNS": "500"},
    )


def num_measured(folder: Path) -> int:
    """Outcomes that a run has committed; 0 before it has begun."""
    try:
        with contextlib.closing(Ledger(folder / runs.LEDGER, read_only=True)) as ledger:
            return len(list(ledger.events("measured")))
    except (ConfigurationError, LedgerDamaged):
        return 0


def processes_of(session: int) -> list[int]:
    """The processes of a session that are alive."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, its_session = stat.read_text().rsplit(")", 1)[1].split()[:4]
            if int(its_session) == session and state != "Z":
                found.append(int(stat.parent.name))
    return found


@pytest.fixture(scope="module")
def experiment(tiny_zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search of real, tiny language models with a task of lm-eval's."""
    path = tmp_path_factory.mktemp("experiment") / "small.yaml"
    tasks = Path(__file__).parents[1] / "fitness" / "tasks" / "tiny" / "sort_choice.yaml"
    path.write_text(EXPERIMENT.format(zoo=tiny_zoo, tasks=tasks))
    return path


@pytest.mark.parametrize(
    ("number", "workers"),
    [
        (signal.SIGINT, 2),
        pytest.param(signal.SIGTERM, 2, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 0, marks=pytest.mark.slow),
        (signal.SIGTERM, 0),
    ],
)
def test_a_signal_ends_a_run_that_can_be_resumed(
    number, workers, experiment, tmp_path, undisturbed
):
    out = tmp_path / "run"
    driver = evomerge("run", experiment, "--out", out, "--workers", workers)
    try:
        until = time.monotonic() + 60
        while num_measured(out) < 35 and time.monotonic() < until and driver.poll() is None:
            time.sleep(0.05)
        if number == signal.SIGTERM:
            driver.send_signal(signal.SIGSTOP)  # so that it is not done before the other begins
            second = evomerge("run", experiment, "--out", out)
            refusal, _ = second.communicate(timeout=60)
            driver.send_signal(signal.SIGCONT)
            assert second.returncode == 4
            assert f"process {driver.pid} on {socket.gethostname()} (since " in refusal
        if number == signal.SIGINT:
            os.killpg(driver.pid, number)  # Ctrl-C reaches the workers as well
        else:
            driver.send_signal(number)
        said, _ = driver.communicate(timeout=10)
        time.sleep(0 if not processes_of(driver.pid) else 5)
        assert processes_of(driver.pid) == []
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(driver.pid, signal.SIGKILL)
    assert driver.returncode == 128 + number
    assert f"evomerge resume {out}" in said
    assert "Traceback" not in said
    assert "leaked" not in said
    assert 35 <= num_measured(out) < 60
    config = runs.read_run_config(out)
    inline = config.model_copy(update={"pool": PoolConfig(workers=0)})
    runs.run_experiment(inline, out)
    assert outcome_of(out) == undisturbed


@pytest.fixture(scope="module")
def undisturbed(experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What comes of the experiment if nobody stops it."""
    out = tmp_path_factory.mktemp("undisturbed")
    changes = {"pool": PoolConfig(workers=0)}
    return outcome_of(
        runs.run_experiment(runs.read_experiment(experiment).model_copy(update=changes), out)
    )


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


def test_a_run_is_not_resumed_with_another_space() -> None:
    """Where a whole number counts and a fraction is a share, 1 and 1.0 are not the same."""
    from evomerge.experiment.identity import differences

    stack = {"kind": "layer_stack", "layers": [1.0, 2.0]}
    assert differences({"space": stack}, {"space": dict(stack)}) == []
    changed = {"space": {**stack, "layers": [1, 2]}}
    assert [key for key, _, _ in differences({"space": stack}, changed)] == ["space.layers"]
    # A run that was made before a key was there is one with the key's default.
    old = {"kind": "weights", "operator": "ties", "layers_per_group": 1, "fixed": {}}
    old["search"] = {"weight": {"per": ["expert"], "range": [0.0, 1.0]}}
    new = {"kind": "weights", "operator": "ties", "search": old["search"], "expert_groups": {}}
    assert differences({"space": old, "seed": 0}, {"space": new, "seed": 0}) == []
    assert differences({"space": old, "seed": 0}, {"space": new, "seed": 1}) == [("seed", 0, 1)]
