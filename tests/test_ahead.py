"""Preparing the next recipe beside a measurement changes nothing but the time."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_worker import models as models  # a fixture
from test_worker import spec_of

from evomerge.errors import CandidateError, ModelError, Problem
from evomerge.fitness.python_task import PythonFitness
from evomerge.merging.resident import Resident
from evomerge.pools.worker import Worker, WorkerSpec
from evomerge.recipe import Merge, ModelSource, Recipe, Slot
from evomerge.records import Failure, Job, Outcome, Responses

PATIENCE_S = 60.0
NAMES = ("base", "a", "b")


class Hash:
    """Answers with the bits of the model; `meanwhile` runs between two looks at them."""

    name, fingerprint, items, forward_s = "hash", "", range(2), 0.0

    def __init__(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        self.meanwhile = meanwhile
        self.versions: list[int] = []

    def respond(self, model: Any, items: Sequence[int]) -> Responses:
        before = bits(model.module)
        self.meanwhile()
        assert bits(model.module) == before, "the model changed while it was measured"
        self.versions.append(model.version)
        scores = np.frombuffer(before, np.uint8).astype(np.float32)
        return Responses(
            "hash", tuple(items), {f"bits{i}": np.full(len(items), s) for i, s in enumerate(scores)}
        )


def bits(module: torch.nn.Module) -> bytes:
    """sha256 of what a module computes with, wherever its blocks stand."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.digest()


@pytest.fixture(scope="module")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    folder = tmp_path_factory.mktemp("llamas")
    for i, name in enumerate(NAMES):
        torch.manual_seed(i)
        LlamaForCausalLM(config).save_pretrained(folder / name)
    return {name: str(folder / name) for name in NAMES}


def recipe(operator: str = "task_arithmetic", slots: Any = None, **parameters: Any) -> Recipe:
    merge = Merge(operator=operator, sources=("a", "b"), parameters=parameters)
    sources = {name: ModelSource(path=name) for name in NAMES}
    return Recipe(base="base", models=sources, default=merge, slots=slots)


def stacked(*layers: int, scale: float = 1.0) -> Recipe:
    slots = tuple(Slot(layer=layer, input_scale=scale) for layer in layers)
    return recipe(weight=0.5, slots=slots)


RECIPES = (
    recipe(weight=0.5),
    recipe("ties", density=0.4),
    recipe("dare_ties", density=0.5),
    recipe("linear", weight={"a": 1, "b": -1}),  # the weights cancel: it fails
    recipe("della", density=0.5),
    stacked(0, 1, 2, 1),
    recipe("linear", weight={"a": 1, "b": -1}),
    stacked(2, 0),
    recipe("ties", density=0.4),
    stacked(0, 1, 2, 2, scale=0.5),
    recipe("model_stock"),
    recipe("ties", density=0.4, trim="model"),
    recipe(weight=0.5),
)


def job(number: int, one: Recipe) -> Job:
    return Job(number, number, one, {"hash": (0, 1)})


def spec(llamas: dict[str, str], task: Any, **more: Any) -> WorkerSpec:
    return WorkerSpec(llamas, "base", python_tasks={"hash": task}, **more)


def told(outcome: Outcome) -> Any:
    """All of an outcome but the clock."""
    columns = [{n: c.tolist() for n, c in one.columns.items()} for one in outcome.responses]
    return outcome.job.id, outcome.failure, columns


def settle(worker: Worker) -> None:
    """Wait until nothing is being written beside."""
    if worker._models._begun is not None:
        worker._models._begun[1].exception(PATIENCE_S)


@pytest.fixture(scope="module")
def without(llamas: dict[str, str]) -> list[Any]:
    worker = Worker(spec(llamas, Hash()), "driver")
    return [told(worker.run(job(i, one))) for i, one in enumerate(RECIPES)]


def test_outcomes_are_equal_to_the_bit(llamas: dict[str, str], without: list[Any]) -> None:
    """Every operator and structure is written to its end between two looks at the other model."""
    task = Hash()
    worker = Worker(spec(llamas, task, ahead=True), "driver")
    task.meanwhile = lambda: settle(worker)
    jobs = [job(i, one) for i, one in enumerate(RECIPES)]
    outcomes = []
    for one, following in zip(jobs, [*jobs[1:], None], strict=True):
        if following is not None:
            worker.prepare(following)
        outcomes.append(told(worker.run(one)))
    assert outcomes == without
    assert {i for i, failure, _ in without if failure is not None} == {3, 6}
    assert all(failure.kind == "merge" for _, failure, _ in without if failure is not None)
    assert len(set(task.versions)) == len(task.versions) == len(RECIPES) - 2


def test_it_is_written_while_the_other_is_measured(llamas: dict[str, str]) -> None:
    """The first measurement ends only when the second recipe has been merged."""
    task, written = Hash(), threading.Event()
    worker = Worker(spec(llamas, task, ahead=True), "driver")
    idle = worker._models._idle
    assert idle is not None
    write = idle.write

    def noted(one: Recipe) -> int:
        count = write(one)
        written.set()
        return count

    idle.write = noted  # type: ignore[method-assign]
    task.meanwhile = lambda: pytest.fail("nobody wrote") if not written.wait(PATIENCE_S) else None
    first, second = job(0, RECIPES[0]), job(1, RECIPES[1])
    worker.prepare(second)
    measured = worker.model
    worker.run(first)
    assert worker.model is measured
    outcome = worker.run(second)
    assert worker.model is idle
    assert outcome.failure is None
    assert outcome.merge_s > 0


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_order_of_calls_gives_the_same(
    llamas: dict[str, str], without: list[Any], data: st.DataObject
) -> None:
    """Jobs are told ahead, forgotten, told again and run, in an order of their own."""
    worker = Worker(spec(llamas, Hash(), ahead=True), "driver")
    numbers = st.integers(0, len(RECIPES) - 1)
    calls = data.draw(st.lists(st.tuples(st.sampled_from(["prepare", "forget", "run"]), numbers)))
    for kind, number in calls:
        one = job(number, RECIPES[number])
        if kind == "prepare":
            worker.prepare(one)
        elif kind == "forget":
            worker.forget(number)
        else:
            assert told(worker.run(one)) == without[number]


def test_two_recipes_are_never_written_at_once(llamas: dict[str, str]) -> None:
    """The caches are shared: a job that was not told ahead waits for the one that is prepared."""
    worker = Worker(spec(llamas, Hash(), ahead=True), "driver")
    events: list[str] = []
    begun = threading.Event()

    def noted(name: str, model: Any) -> None:
        write = model.write

        def slow(one: Recipe) -> int:
            events.append(f"{name} begins")
            begun.set()
            time.sleep(0.2)
            count: int = write(one)
            events.append(f"{name} ends")
            return count

        model.write = slow

    noted("measured", worker.model)
    noted("idle", worker._models._idle)
    worker.prepare(job(1, RECIPES[1]))
    assert begun.wait(PATIENCE_S)
    worker.run(job(0, RECIPES[0]))
    assert events == ["idle begins", "idle ends", "measured begins", "measured ends"]


def test_what_is_forgotten_makes_room_for_the_next(llamas: dict[str, str]) -> None:
    worker = Worker(spec(llamas, Hash(), ahead=True), "driver")
    for number in range(4):
        worker.prepare(job(number, RECIPES[number]))
    worker.forget(0)
    worker.forget(1)
    worker.forget(17)
    settle(worker)
    begun = worker._models._begun
    assert begun is not None
    assert begun[0].id == 2


# --- what goes wrong ------------------------------------------------------------------------------


def fail_idle(worker: Worker, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(one: Recipe) -> int:
        raise error

    monkeypatch.setattr(worker._models._idle, "write", fail)


@pytest.mark.parametrize(
    ("error", "reason"),
    [(CandidateError("not finite"), "not finite"), (KeyError("a bug"), "KeyError: 'a bug'")],
)
def test_what_goes_wrong_beside_is_the_outcome_of_its_job(
    llamas: dict[str, str], monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    worker = Worker(spec(llamas, Hash(), ahead=True), "driver")
    fail_idle(worker, monkeypatch, error)
    worker.prepare(job(1, RECIPES[1]))
    assert worker.run(job(0, RECIPES[0])).failure is None
    failure = worker.run(job(1, RECIPES[1])).failure
    assert failure is not None
    assert (failure.kind, failure.reason) == ("merge", reason)
    assert worker.run(job(2, RECIPES[2])).failure is not None  # that model is the one that fails


def test_a_file_that_goes_bad_stops_the_worker_when_the_job_is_run(
    llamas: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(spec(llamas, Hash(), ahead=True), "driver")
    fail_idle(worker, monkeypatch, ModelError(Problem("a", "has changed")))
    worker.prepare(job(1, RECIPES[1]))
    assert worker.run(job(0, RECIPES[0])).failure is None
    with pytest.raises(ModelError, match="has changed"):
        worker.run(job(1, RECIPES[1]))


def test_without_memory_for_two_models_one_is_used(
    llamas: dict[str, str], without: list[Any]
) -> None:
    worker = Worker(spec(llamas, Hash(), ahead=True), "driver")
    write, fails = worker._write, [False, False, True]  # the last one first: job 1, beside

    def short(model: Resident, one: Recipe) -> Any:
        return Failure("memory", "out of it") if fails.pop() else write(model, one)

    worker._models._write_into = short
    worker.prepare(job(1, RECIPES[1]))
    settle(worker)
    assert told(worker.run(job(0, RECIPES[0]))) == without[0]
    assert told(worker.run(job(1, RECIPES[1]))) == without[1]
    assert not worker.prepares
    assert not fails
    worker.prepare(job(2, RECIPES[2]))
    fails.append(False)
    assert told(worker.run(job(2, RECIPES[2]))) == without[2]


def test_a_measurement_without_memory_is_tried_again_alone(
    llamas: dict[str, str], without: list[Any]
) -> None:
    errors = [MemoryError()]

    def short() -> None:
        if errors:
            raise errors.pop()

    worker = Worker(spec(llamas, Hash(short), ahead=True), "driver")
    worker.prepare(job(1, RECIPES[1]))
    assert told(worker.run(job(0, RECIPES[0]))) == without[0]
    assert not worker.prepares
    errors.append(MemoryError())
    failure = worker.run(job(1, RECIPES[1])).failure
    assert failure is not None
    assert failure.kind == "memory"


# --- who prepares ---------------------------------------------------------------------------------


def test_nothing_is_merged_beside_a_task_that_measures_time(llamas: dict[str, str]) -> None:
    class Timed(Hash):
        deterministic = False

    worker = Worker(spec(llamas, Timed(), ahead=True), "driver")
    assert not worker.prepares
    worker.prepare(job(1, RECIPES[1]))
    assert worker.run(job(1, RECIPES[1])).failure is None
    assert not Worker(spec(llamas, Hash()), "driver").prepares


def test_the_thread_beside_uses_the_workers_number_of_threads(llamas: dict[str, str]) -> None:
    before = torch.get_num_threads()
    seen = []
    try:
        worker = Worker(spec(llamas, Hash(), ahead=True, threads=3), "driver")
        idle, write = worker._models._idle, worker._models._idle.write
        idle.write = lambda one: seen.append(torch.get_num_threads()) or write(one)
        torch.set_num_threads(1)  # of this thread, and of threads that say nothing
        worker.prepare(job(1, RECIPES[1]))
        settle(worker)
    finally:
        torch.set_num_threads(before)
    assert seen == [3]


def test_a_function_of_the_user_sees_each_model_once(models: dict[str, str]) -> None:
    """Its scores are kept by model and version; two models must not be taken for one."""
    own = PythonFitness(lambda module: {"bits": float(module.weight.sum())}).tasks({"bits": 0.0})
    answers = []
    for ahead in (False, True):
        worker = Worker(spec_of(models, own["bits"], ahead=ahead), "driver")
        jobs = []
        for number, weight in enumerate((0.1, 0.7, 0.1, 0.4)):
            merge = Merge(
                operator="task_arithmetic", sources=("left",), parameters={"weight": weight}
            )
            sources = {name: ModelSource(path=path) for name, path in models.items()}
            whole = Recipe(base="base", models=sources, default=merge)
            jobs.append(Job(number, number, whole, {"bits": (0,)}))
        found = []
        for one, following in zip(jobs, [*jobs[1:], None], strict=True):
            if following is not None:
                worker.prepare(following)
                settle(worker)
            (responses,) = worker.run(one).responses
            found.append(float(responses.columns["score"][0]))
        answers.append(found)
    assert answers[0] == answers[1]
    assert len(set(answers[0])) == 3


def test_a_twin_shares_no_memory(llamas: dict[str, str], tmp_path: Path) -> None:
    worker = Worker(spec(llamas, Hash(), ahead=True), "driver")
    first, second = worker.model.module, worker._models._idle.module
    mine = {tensor.data_ptr() for tensor in [*first.parameters(), *first.buffers()]}
    others = {tensor.data_ptr() for tensor in [*second.parameters(), *second.buffers()]}
    assert not mine & others
    assert second.lm_head.weight is second.model.embed_tokens.weight
    assert first.config is not second.config


def test_what_is_told_too_late_is_no_obstacle(llamas: dict[str, str]) -> None:
    """A job is prepared that runs already, or is done: the next ones are prepared all the same."""
    worker = Worker(spec(llamas, Hash(), ahead=True), "w")
    for number in range(2):
        worker.run(job(number, RECIPES[number]))
    worker.prepare(job(0, RECIPES[0]))
    worker.prepare(job(1, RECIPES[1]))
    prepared = []
    for number in range(2, 8):
        one = job(number, RECIPES[number])
        worker.prepare(one)
        settle(worker)
        begun = worker._models._begun
        prepared.append(begun is not None and begun[0] == one)
        worker.run(one)
    assert prepared[-2:] == [True, True]
