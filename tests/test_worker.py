"""A worker: the models of the run, in the dtype of the run, and whose fault it is."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import evomerge
from evomerge.documents import Document
from evomerge.errors import CandidateError, ConfigurationError, ModelError, Problem
from evomerge.experiment.config import parse_experiment
from evomerge.experiment.recipes import open_recipe_models
from evomerge.experiment.score import score_model, score_recipe
from evomerge.experiment.wire import InMemory, resolve, wire
from evomerge.fitness.python_task import PythonFitness
from evomerge.pools import PoolConfig, make_pool
from evomerge.pools.dispatch import Dispatcher
from evomerge.pools.inline import InlinePool
from evomerge.pools.local import local_pool
from evomerge.pools.worker import Worker, WorkerSpec
from evomerge.recipe import Merge, ModelSource, Recipe
from evomerge.records import Job, Outcome
from evomerge.results.export import export_model

State = dict[str, Tensor]


def build() -> nn.Module:
    return nn.Linear(4, 3)


def state(seed: int) -> State:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"weight": (3, 4), "bias": (3,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture
def models(tmp_path: Path) -> dict[str, str]:
    for seed, name in enumerate(("base", "left")):
        save_file(state(seed), tmp_path / f"{name}.safetensors")
    return {name: str(tmp_path / f"{name}.safetensors") for name in ("base", "left")}


class Dtypes:
    """A task that tells how many bits the weights have; `error` is raised instead."""

    name, fingerprint, items, forward_s = "bits", "", range(3), 0.0
    error: Exception | None = None

    def respond(self, model: Any, items: Any) -> Any:
        if self.error is not None:
            raise self.error
        scores = {"bits": [8.0 * model.module.weight.element_size()] * 3}
        (task,) = PythonFitness(lambda module: scores).tasks(scores).values()
        return task.respond(model, items)


def spec_of(models: dict[str, str], task: Any = None, **more: Any) -> WorkerSpec:
    return WorkerSpec(models, "base", build=build, python_tasks={"bits": task or Dtypes()}, **more)


def job_of(models: dict[str, str]) -> Job:
    merge = Merge(operator="linear", sources=("left",), parameters={"weight": 1.0})
    sources = {name: ModelSource(path=path) for name, path in models.items()}
    return Job(0, 0, Recipe(base="base", models=sources, default=merge), {"bits": (0, 2)})


# --- dtype ----------------------------------------------------------------------------------------


def experiment(models: dict[str, str], **more: Any) -> Document:
    fitness = {
        "tasks": {"bits": {"kind": "python"}},
        "objectives": {"bits": "bits"},
        "split": {"search": 1, "fresh": 1},
    }
    return Document(
        {
            "base": models["base"],
            "experts": {"left": models["left"]},
            "space": "per_expert",
            "fitness": fitness,
            "searcher": {"kind": "random"},
            "budget": {"candidates": 2},
            **more,
        }
    )


@pytest.mark.parametrize(("dtype", "bits"), [(None, 32.0), ("bfloat16", 16.0)])
def test_what_is_measured_has_the_dtype_of_the_export(
    models: dict[str, str], dtype: str | None, bits: float
) -> None:
    config = parse_experiment(experiment(models, **({"dtype": dtype} if dtype else {})))
    spec = wire(config, InMemory(build=build, python_tasks={"bits": Dtypes()})).worker
    (responses,) = Worker(spec, "driver").run(job_of(models)).responses
    assert responses.columns["score"].tolist() == [bits, bits]


def test_a_search_from_python_measures_in_its_dtype(models: dict[str, str], tmp_path: Path) -> None:
    seen = set()

    def fitness(module: nn.Module) -> dict[str, float]:
        seen.add(module.weight.dtype)
        return {"a": float(module.weight.float().sum())}

    run = evomerge.search(
        {"left": models["left"]},
        models["base"],
        fitness=fitness,
        build=build,
        budget=4,
        searcher="random",
        dtype="bfloat16",
        out=tmp_path / "run",
    )
    assert seen == {torch.bfloat16}
    # The score is that of the exported tensors to the last bit.
    best = run.status()["final"]["best"]
    merged = run.merge()["weight"]
    assert merged.dtype == torch.bfloat16
    assert best["holdout"]["a"]["value"] == pytest.approx(float(merged.float().sum()), abs=1e-6)


def test_a_measured_candidate_is_the_exported_folder_in_transformers(
    tiny_zoo: Path, tmp_path: Path
) -> None:
    import transformers

    folders = sorted(path.parent for path in tiny_zoo.rglob("config.json"))
    models = {"base": str(folders[0]), "left": str(folders[1])}
    sources = {name: ModelSource(path=path) for name, path in models.items()}
    merge = Merge(operator="task_arithmetic", sources=("left",), parameters={"weight": 0.37})
    recipe = Recipe(base="base", models=sources, default=merge, dtype="bfloat16")
    logits = {}

    class Logits(Dtypes):
        def respond(self, model: Any, items: Any) -> Any:
            logits["measured"] = model.module(torch.arange(3, 20)[None]).logits.detach()
            raise CandidateError("enough")

    spec = WorkerSpec(models, "base", python_tasks={"bits": Logits()}, dtype=recipe.dtype)
    Worker(spec, "driver").run(Job(0, 0, recipe, {"bits": (0,)}))
    folder = export_model(recipe, open_recipe_models(recipe), tmp_path / "out")
    exported = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    with torch.no_grad():
        expected = exported(torch.arange(3, 20)[None]).logits
    assert expected.dtype == torch.bfloat16
    assert torch.equal(logits["measured"], expected)


def test_a_recipe_is_scored_in_its_dtype(
    models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = []

    class Noted(Exception):
        pass

    def note(spec: WorkerSpec, name: str) -> None:
        specs.append(spec)
        raise Noted

    monkeypatch.setattr("evomerge.experiment.score.Worker", note)
    recipe = job_of(models).recipe.model_copy(update={"dtype": "float16"})
    with pytest.raises(Noted):
        score_recipe(recipe, {}, (), {}, allow_pickle_weights=True)
    assert (specs[0].dtype, specs[0].allow_pickle) == ("float16", True)


# --- the models of the run ------------------------------------------------------------------------


def test_a_worker_refuses_models_that_have_changed(models: dict[str, str], tmp_path: Path) -> None:
    config = parse_experiment(experiment(models))
    spec = wire(config, InMemory(build=build, python_tasks={"bits": Dtypes()})).worker
    Worker(spec, "driver")
    save_file(state(7), models["left"])
    with pytest.raises(ModelError, match=r"model left: .*left.safetensors has changed") as caught:
        Worker(spec, "driver")
    assert "model base" not in str(caught.value)


# --- whose fault it is ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"),
    ],
)
def test_a_want_of_memory_is_told_apart(
    models: dict[str, str], error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Dtypes()
    worker = Worker(spec_of(models, task), "driver")
    task.error = error
    failure = worker.run(job_of(models)).failure
    assert failure is not None
    assert failure.kind == "memory"

    def greedy(module: nn.Module) -> dict[str, float]:
        raise error

    own = PythonFitness(greedy).tasks({"bits": [0.0] * 3})["bits"]
    failure = Worker(spec_of(models, own), "driver").run(job_of(models)).failure
    assert failure is not None
    assert failure.kind == "memory"

    def fail(recipe: Recipe) -> None:
        raise error

    monkeypatch.setattr(worker.model, "write", fail)
    failure = worker.run(job_of(models)).failure
    assert failure is not None
    assert failure.kind == "memory"


def test_other_errors_are_the_candidates(models: dict[str, str]) -> None:
    task = Dtypes()
    worker = Worker(spec_of(models, task), "driver")
    for error in (RuntimeError("shapes"), CandidateError("no"), ValueError("no")):
        task.error = error
        failure = worker.run(job_of(models)).failure
        assert failure is not None
        assert failure.kind == "task"


def test_what_a_task_cannot_do_with_the_model_is_told_in_its_own_words(
    models: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    task = Dtypes()
    worker = Worker(spec_of(models, task), "driver")
    for error, told in (
        (Problem("task bits tokens", "too long"), "task bits tokens: too long"),
        (Problem("continuation 'x'", "has 5 tokens"), "bits: continuation 'x': has 5 tokens"),
    ):
        task.error = ConfigurationError(error)
        failure = worker.run(job_of(models)).failure
        assert failure is not None
        assert (failure.kind, failure.reason) == ("task", told)
    assert not caplog.records
    task.error = ValueError("a bug")
    worker.run(job_of(models))
    assert "failed unexpectedly" in caplog.text


class Vanishing:
    """Makes the module; the models change as soon as it is there. Workers can be sent it."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self) -> nn.Module:
        save_file({"weight": torch.zeros(1)}, self.path)
        return build()


def test_a_file_that_goes_bad_stops_the_run_and_not_the_candidate(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = replace(spec_of(models), build=Vanishing(models["left"]))
    original = Path(models["left"]).read_bytes()
    pool = InlinePool(spec)
    pool.submit(job_of(models))
    with pytest.raises(ModelError, match=r"left.safetensors: has changed since it was opened"):
        pool.collect(1)

    Path(models["left"]).write_bytes(original)
    worker = Worker(spec_of(models), "driver")

    def fail(recipe: Recipe) -> None:
        raise OSError(5, "Input/output error", "/mnt/left.safetensors")

    monkeypatch.setattr(worker.model, "write", fail)
    with pytest.raises(ModelError, match=r"/mnt/left.safetensors: cannot be read: Input/output"):
        worker.run(job_of(models))


def wait_for_outcome(pool: Dispatcher) -> Outcome | None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if outcomes := pool.collect(0.5):
            return outcomes[0]
    return None


def test_a_worker_process_tells_the_driver_what_stops_it(
    models: dict[str, str], tmp_path: Path
) -> None:
    spec = WorkerSpec(
        models, "base", build=Vanishing(models["left"]), python_tasks={"bits": Dtypes()}
    )
    pool = local_pool(spec, 1, tmp_path / "log")
    try:
        pool.submit(job_of(models))
        with pytest.raises(ModelError, match="has changed since it was opened"):
            wait_for_outcome(pool)
    finally:
        pool.close()


# --- pickles, homes, processors -------------------------------------------------------------------


def test_pickled_weights_are_read_where_they_are_allowed(tmp_path: Path) -> None:
    paths = {name: tmp_path / f"{name}.pt" for name in ("base", "left")}
    for seed, path in enumerate(paths.values()):
        torch.save(state(seed), path)

    def norm(tensors: State) -> dict[str, float]:
        return {"norm": -float(tensors["weight"].norm())}

    def search(**more: Any) -> evomerge.Run:
        return evomerge.search(
            {"left": paths["left"]},
            paths["base"],
            fitness=norm,
            budget=2,
            searcher="random",
            out=tmp_path / "run",
            **more,
        )

    for refused in (search, lambda: evomerge.merge(paths, "linear", base="base")):
        with pytest.raises(ModelError, match="allow_pickle_weights"):
            refused()
    run = search(allow_pickle_weights=True)
    assert run.merge()["weight"].shape == (3, 4)
    merged = evomerge.merge(paths, "linear", base="base", allow_pickle_weights=True)
    assert torch.equal(merged["bias"], state(1)["bias"])


def test_a_pickle_is_scored_where_it_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(state(0), path)
    with pytest.raises(ModelError, match="allow_pickle_weights"):
        score_model(str(path), "tiny_mean")
    with pytest.raises(ModelError, match="no transformers folder"):  # it was read
        score_model(str(path), "tiny_mean", allow_pickle_weights=True)


def test_a_home_folder_is_found_by_a_function_too(
    tiny_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = sorted(path.parent for path in tiny_zoo.rglob("config.json"))[0]
    (tmp_path / "base").symlink_to(folder)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/base") == str(tmp_path / "base")
    seen = []

    def fitness(module: Any) -> dict[str, float]:
        seen.append(type(module).__name__)
        return {"a": 0.0}

    evomerge.search(
        {"same": "~/base"},
        "~/base",
        fitness=fitness,
        budget=1,
        searcher="random",
        out=tmp_path / "run",
    )
    assert set(seen) == {"LlamaForCausalLM"}


def test_auto_counts_the_processors_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert PoolConfig().num_workers == 1
    monkeypatch.delattr(os, "sched_getaffinity")
    assert PoolConfig().num_workers == 64


def test_workers_that_cannot_be_used_are_mentioned(
    models: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "evomerge"):
        make_pool(PoolConfig(), spec_of(models), None)
        make_pool(PoolConfig(workers=0), spec_of(models), None)
        assert not caplog.records
        make_pool(PoolConfig(workers=3), spec_of(models), None)
    assert "workers: 3 is ignored" in caplog.text
