"""R10: the machine, torch or Python runs out of memory under a job.

Passes if: the job gets one more chance, alone, on a fresh worker; a second want of memory gives it
up, with the reason `memory`; nobody else fails; and what was measured does not change: no batch
size or anything else is made smaller in silence.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import toy_tasks
from toy_pools import answers, collect, make_jobs, make_spec
from toy_tasks import ToyTask

from evomerge.pools import local
from evomerge.pools.dispatch import MEMORY_ATTEMPTS, Dispatcher
from evomerge.pools.inline import InlinePool
from evomerge.pools.local import Processes


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return toy_tasks.write_models(tmp_path_factory.mktemp("models"))


def measured(models: dict[str, str], tmp_path: Path, task: ToyTask) -> tuple[dict[int, Any], Any]:
    """Outcomes of twelve jobs by two workers, and who was sent which."""
    spec = make_spec(models)
    crew = Processes(replace(spec, python_tasks=spec.python_tasks | {"second": task}), 2, tmp_path)
    sent: list[tuple[str, int]] = []
    send = crew.send

    def noted(worker: str, job: Any) -> None:
        sent.append((worker, job.id))
        send(worker, job)

    crew.send = noted  # type: ignore[method-assign]
    pool = Dispatcher(crew)
    try:
        return collect(pool, make_jobs(models, 12)), sent
    finally:
        pool.close()


@pytest.mark.parametrize("harm", ["torch", "memory", "allocate"])
def test_no_memory_twice_gives_a_job_up_and_no_other(harm, models, tmp_path):
    """The sixth job alone asks six items; `allocate` wants more than the process may have."""
    expected = answers(collect(InlinePool(make_spec(models)), make_jobs(models, 12)))
    task = ToyTask("second", at_items=6, harm=harm)
    outcomes, sent = measured(models, tmp_path / "log", task)
    failure = outcomes[5].failure
    assert failure is not None
    assert failure.kind == "memory"
    assert outcomes[5].responses == ()
    who = [worker for worker, job in sent if job == 5]
    assert len(who) == len(set(who)) == MEMORY_ATTEMPTS
    later = [worker for worker, _ in sent[sent.index((who[0], 5)) + 1 :]]
    assert who[0] not in later  # the first was ended: it may hold what was lacking
    assert {n: a for n, a in answers(outcomes).items() if n != 5} == {
        n: a for n, a in expected.items() if n != 5
    }


@pytest.mark.parametrize("harm", ["torch", "memory", "kill"])
def test_no_memory_once_changes_nothing(harm, models, tmp_path, monkeypatch):
    """The second time there is enough: the answers are those of a run that never lacked any."""
    expected = answers(collect(InlinePool(make_spec(models)), make_jobs(models, 12)))
    once = tmp_path / "once"
    once.touch()
    # The kernel's counter of processes that it ended goes up with the one that is killed.
    monkeypatch.setattr(local, "ended_for_memory", lambda: int(not once.exists()))
    outcomes, _ = measured(models, tmp_path / "log", ToyTask("second", once=str(once), harm=harm))
    assert not once.exists()
    assert answers(outcomes) == expected


def test_what_the_system_ends_twice_is_given_up_for_want_of_memory(models, tmp_path, monkeypatch):
    ended = iter(range(10_000))
    monkeypatch.setattr(local, "ended_for_memory", lambda: next(ended))
    outcomes, sent = measured(models, tmp_path / "log", ToyTask("second", at_items=6))
    failed = {n: o.failure for n, o in outcomes.items() if o.failure is not None}
    assert failed.keys() == {5}
    assert failed[5].kind == "memory"
    assert "want of memory" in failed[5].reason
    assert [job for _, job in sent].count(5) == MEMORY_ATTEMPTS
