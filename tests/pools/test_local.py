"""The local pool: equal results from any number of workers, whatever happens to them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toy_tasks
from toy_pools import PATIENCE_S, all_gone, answers, collect, make_jobs, make_spec, search
from toys import SEARCHERS, outcome_of

from evomerge.errors import ModelError, NoWorkersLeft
from evomerge.pools import PoolConfig, make_pool
from evomerge.pools.dispatch import ATTEMPTS
from evomerge.pools.inline import InlinePool
from evomerge.pools.local import local_pool


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return toy_tasks.write_models(tmp_path_factory.mktemp("models"))


# --- jobs -----------------------------------------------------------------------------------------


def test_workers_answer_as_the_driver_itself(models, tmp_path):
    jobs = make_jobs(models, 12)
    expected = answers(collect(InlinePool(make_spec(models)), jobs))
    pool = local_pool(make_spec(models), 2, tmp_path / "log")
    processes = [m.process for m in pool._crew._members.values()]
    try:
        outcomes = collect(pool, jobs)
    finally:
        pool.close()
    assert answers(outcomes) == expected
    assert {outcome.worker for outcome in outcomes.values()} <= {"local-0", "local-1"}
    assert not any(process.is_alive() for process in processes)
    assert [process.exitcode for process in processes] == [0, 0]  # they left by themselves


def test_a_worker_that_is_killed_is_replaced_and_its_job_runs_again(models, tmp_path):
    jobs = make_jobs(models, 8)
    expected = answers(collect(InlinePool(make_spec(models)), jobs))
    once = tmp_path / "once"
    once.touch()
    pool = local_pool(make_spec(models, once=str(once)), 2, tmp_path / "log")
    try:
        assert answers(collect(pool, jobs)) == expected
        assert not once.exists()
        os.kill(
            next(iter(pool._crew._members.values())).process.pid or 0, signal.SIGKILL
        )  # an idle one
        assert answers(collect(pool, make_jobs(models, 8))) == expected
        assert all(m.process.is_alive() for m in pool._crew._members.values())
    finally:
        pool.close()


def test_a_job_that_kills_is_given_up_and_no_other(models, tmp_path):
    jobs = make_jobs(models, 40)
    harmless = answers(collect(InlinePool(make_spec(models)), jobs))
    pool = local_pool(make_spec(models, deadly=True), 2, tmp_path / "log")
    try:
        outcomes = answers(collect(pool, jobs))
    finally:
        pool.close()
    deadly = [number for number, (_, failure) in outcomes.items() if failure is not None]
    assert 1 <= len(deadly) <= 10
    for number in deadly:
        responses, failure = outcomes[number]
        assert responses == []
        assert failure.kind == "worker"
        assert f"died {ATTEMPTS} times" in failure.reason
        assert "exit code -9" in failure.reason
    assert {n: o for n, o in outcomes.items() if n not in deadly} == {
        n: o for n, o in harmless.items() if n not in deadly
    }


@pytest.mark.parametrize("fault", ["dies", "raises"])
def test_workers_that_never_start(models, tmp_path, fault):
    pool = local_pool(make_spec(models, fault), 2, tmp_path / "log")
    try:
        with pytest.raises(NoWorkersLeft, match="while they start") as caught:
            collect(pool, make_jobs(models, 3))
    finally:
        pool.close()
    assert caught.value.exit_code == 7
    assert str(tmp_path / "log") in str(caught.value)
    if fault == "raises":
        assert "this module cannot be made" in (tmp_path / "log").read_text()


def test_what_a_worker_refuses_is_the_users_to_read(models, tmp_path):
    pool = local_pool(make_spec(models, "refuses"), 1, tmp_path / "log")
    try:
        with pytest.raises(ModelError, match="does not fit"):
            collect(pool, make_jobs(models, 1))
    finally:
        pool.close()


def test_what_lives_in_memory_is_measured_in_the_driver(models):
    spec = make_spec(models)
    assert isinstance(make_pool(PoolConfig(workers=3), spec, None), InlinePool)


# --- runs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SEARCHERS)
def test_a_search_is_the_same_from_any_number_of_workers(kind, models, tmp_path):
    expected = outcome_of(search(models, tmp_path / "0", make_spec(models), 0, kind))
    for workers in (1, 2, 4) if kind == "cma_es" else (4,):
        once = tmp_path / "once"
        once.touch()  # and one of them is killed
        spec = make_spec(models, once=str(once))
        out = search(models, tmp_path / str(workers), spec, workers, kind)
        assert outcome_of(out) == expected
        assert not once.exists()
        assert "worker local-0 is gone" in (out / "run.log").read_text() or workers > 1


def test_candidates_that_kill_fail_and_the_search_goes_on(models, tmp_path):
    spec = make_spec(models, deadly=True)
    outcomes = [outcome_of(search(models, tmp_path / str(n), spec, n, "cma_es")) for n in (1, 3)]
    assert outcomes[0] == outcomes[1]
    reasons = {failure.kind for failure in outcomes[0]["failures"].values() if failure}
    assert reasons == {"worker"}
    assert outcomes[0]["final"]["best"]["holdout"]


def test_a_run_without_workers_goes_on_when_there_are_some(models, tmp_path):
    expected = outcome_of(search(models, tmp_path / "whole", make_spec(models), 0, "cma_es"))
    with pytest.raises(NoWorkersLeft):
        search(models, tmp_path / "run", make_spec(models, "dies"), 2, "cma_es")
    search(models, tmp_path / "run", make_spec(models), 2, "cma_es")
    assert outcome_of(tmp_path / "run") == expected


# --- drivers that die, in processes of their own --------------------------------------------------

SCRIPT = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
import toy_pools as t, toy_tasks
from evomerge.pools.local import local_pool

# No `if __name__ == "__main__"`: workers must not run the user's script again.
(Path({folder!r}) / "runs").open("a").write("once\\n")
models = toy_tasks.write_models(Path({folder!r}))
spec = t.make_spec(models, pids={folder!r} + "/pids", sleep_s=60.0)
pool = local_pool(spec, 2, None)
for job in t.make_jobs(models, 4):
    pool.submit(job)
while True:
    pool.collect(0.5)
"""


def test_workers_die_with_a_driver_that_is_killed(tmp_path):
    (tmp_path / "pids").mkdir()
    script = tmp_path / "script.py"
    script.write_text(
        SCRIPT.format(tests=str(Path(toy_tasks.__file__).parent), folder=str(tmp_path))
    )
    driver = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE)
    try:
        until = time.monotonic() + PATIENCE_S
        while len(list((tmp_path / "pids").iterdir())) < 2 and time.monotonic() < until:
            time.sleep(0.1)
    finally:
        driver.kill()
        _, errors = driver.communicate()
    pids = [int(path.name) for path in (tmp_path / "pids").iterdir()]
    assert len(pids) == 2, errors.decode()
    assert all_gone(pids, 5)
    assert (tmp_path / "runs").read_text() == "once\n"
    assert b"leaked" not in errors
