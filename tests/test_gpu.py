"""What a real GPU computes, beside the processor: merges, structures, tasks, searches, memory.

`make test-gpu` runs them where torch sees a CUDA device; elsewhere they are skipped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_ahead import RECIPES, recipe, spec, stacked
from test_ahead import llamas as llamas  # a fixture
from toys import outcome_of

sys.path.insert(0, str(Path(__file__).parent / "results"))
from small_run import write_experiment

from evomerge.checkpoints.adapters import as_adapter
from evomerge.checkpoints.anatomy import anatomy_of
from evomerge.checkpoints.open import Checkpoint, open_checkpoint
from evomerge.experiment.config import read_experiment
from evomerge.experiment.run import run_experiment
from evomerge.experiment.wire import wire
from evomerge.merging.calibration.stand_in import StandIn
from evomerge.merging.materialise import Merger
from evomerge.merging.resident import Resident
from evomerge.merging.shelf import Shelf
from evomerge.merging.table import OPERATORS
from evomerge.pools import nodes, placement
from evomerge.pools.worker import Worker
from evomerge.recipe import Merge, ModelSource, Recipe
from evomerge.records import Job
from evomerge.run import Run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SKILLS = ("sort", "back", "rot")
CHAINS = ("task_arithmetic | lines", "ties | lines", "task_arithmetic | aim", "dare_ties | lines")
TOKENS = torch.arange(10)[None]


@pytest.fixture(scope="module")
def tiny(tiny_zoo: Path) -> dict[str, Checkpoint]:
    return {name: open_checkpoint(tiny_zoo / name, name=name) for name in ("base", *SKILLS)}


# --- merging --------------------------------------------------------------------------------------


# Of the entries: rounding may decide a mask. Arcee Fusion measures the divergence of nearly
# equal rows in float32, as mergekit does: there rounding is much of the difference.
FEW, FEW_OF_ARCEE = 1e-3, 5e-3


def agree(one: torch.Tensor, other: torch.Tensor, most: float) -> None:
    """The same but for rounding, and for few entries at which it decides."""
    assert one.device.type == "cuda"
    far = ~torch.isclose(one.cpu().double(), other.double(), rtol=1e-3, atol=1e-4)
    assert far.float().mean() <= most


@pytest.mark.parametrize("operator", [*OPERATORS, *CHAINS])
def test_every_operator_merges_as_on_the_processor(
    tiny: dict[str, Checkpoint], operator: str
) -> None:
    """Of real fine-tunes; twice, so that what was prepared serves anew."""
    found = OPERATORS[operator]
    experts = SKILLS[: found.max_sources]
    models = {name: tiny[name] for name in ("base", *experts)}
    if found.needs_adapters:
        models |= {name: as_adapter(models[name], models["base"]) for name in experts}
    sources = {name: ModelSource(path=name) for name in models}
    one = Recipe(base="base", models=sources, default=Merge(operator=operator, sources=experts))
    anatomy = anatomy_of(models["base"])
    near = Merger(models, anatomy, "base", 2**30, statistics=StandIn(models))
    shelf = Shelf({torch.device("cuda", 0): 2**30})
    far = Merger(models, anatomy, "base", 2**30, statistics=StandIn(models), shelf=shelf)
    expected = dict(near.tensors(one))
    outs = {n: torch.full_like(value, torch.nan, device="cuda") for n, value in expected.items()}
    for _ in range(2):
        for group, effective in far.plan(one).items():
            far.write(group, effective, [outs[name] for name in group.names])
        for name, value in expected.items():
            agree(outs[name], value, FEW_OF_ARCEE if operator == "arcee_fusion" else FEW)
    assert len(shelf._tensors) >= len(tiny["base"].names)
    for (model, name, _), copied in shelf._tensors.items():  # nobody has written into the models
        assert torch.equal(copied.cpu(), models[model].tensor(name).reshape(-1))


def test_a_merge_in_half_precision(tiny: dict[str, Checkpoint]) -> None:
    for operator in ("task_arithmetic", "ties", "dare_ties", "slerp"):
        experts = SKILLS[: OPERATORS[operator].max_sources]
        models = {name: tiny[name] for name in ("base", *experts)}
        sources = {name: ModelSource(path=name) for name in models}
        merge = Merge(operator=operator, sources=experts)
        one = Recipe(base="base", models=sources, default=merge, dtype="bfloat16")
        near, far = (
            Resident.open(models, "base", device=device, dtype=torch.bfloat16)
            for device in ("cpu", "cuda")
        )
        near.write(one)
        far.write(one)
        for name, value in near.module.state_dict().items():
            there = far.module.state_dict()[name]
            assert there.dtype == torch.bfloat16
            assert there.device.type == "cuda"
            torch.testing.assert_close(there.cpu(), value, rtol=0.01, atol=1e-3)


def logits(model: Resident) -> torch.Tensor:
    with torch.inference_mode():
        device = model.module.model.embed_tokens.weight.device
        return model.module(TOKENS.to(device)).logits.cpu()


def test_structures_and_twins(llamas: dict[str, str]) -> None:
    opened = {name: open_checkpoint(Path(path), name=name) for name, path in llamas.items()}
    near = Resident.open(opened, "base")
    far = Resident.open(opened, "base", device="cuda")
    for model in (far, far.twin()):
        for one in (recipe(weight=0.5), stacked(2, 0, 1, 1), stacked(1, scale=0.5), recipe("ties")):
            model.write(one)
            near.write(one)
            torch.testing.assert_close(logits(model), logits(near), rtol=1e-4, atol=1e-5)


# --- measuring ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def asked(tiny_zoo: Path) -> tuple[Any, Job]:
    """A worker with a task of every kind, and a job for it."""
    quickstart = wire(read_experiment(Path("experiments/quickstart.yaml")))
    label_free = wire(read_experiment(Path("experiments/quickstart_label_free.yaml")))
    prompts = str(Path("fitness/tasks/tiny/sort.jsonl").resolve())
    tasks = {
        **quickstart.worker.tasks,
        **label_free.worker.tasks,
        "texts": {"kind": "perplexity", "path": prompts, "field": "prompt"},
        "sure": {"kind": "entropy", "path": prompts, "tokens": 3},
    }
    spec = replace(quickstart.worker, tasks=tasks)
    merge = Merge(operator="ties", sources=SKILLS)
    sources = {name: ModelSource(path=name) for name in spec.models}
    one = Recipe(base="base", models=sources, default=merge)
    return spec, Job(0, 0, one, dict.fromkeys(tasks, tuple(range(32))))


def test_tasks_answer_as_on_the_processor(asked: tuple[Any, Job]) -> None:
    spec, job = asked
    near, far = (Worker(replace(spec, device=d), d).run(job) for d in ("cpu", "cuda"))
    assert (near.failure, far.failure) == (None, None)
    for here, there in zip(near.responses, far.responses, strict=True):
        for column, values in here.columns.items():
            assert there.columns[column] == pytest.approx(values, abs=2e-3), (here.task, column)


def test_the_same_answers_again(asked: tuple[Any, Job]) -> None:
    spec, job = asked
    one, other = (Worker(replace(spec, device="cuda"), "far").run(job) for _ in range(2))
    for here, there in zip(one.responses, other.responses, strict=True):
        for column, values in here.columns.items():
            assert there.columns[column].tolist() == values.tolist(), (here.task, column)


def test_latency_waits_for_the_gpu(asked: tuple[Any, Job]) -> None:
    """A forward pass of the tiny model takes a GPU longer than 0.1 ms, its launch excluded."""
    spec, job = asked
    clock = {"clock": {"kind": "latency", "prompt_tokens": 16, "new_tokens": 4}}
    worker = Worker(replace(spec, tasks=clock, device="cuda"), "far")
    outcome = worker.run(replace(job, items={"clock": (0,)}))
    assert outcome.failure is None
    (told,) = outcome.responses
    assert (told.columns["score"] < -1e-4).all()  # of a token, in seconds, the less the better
    assert (told.columns["prompt_s"] > 1e-4).all()


class Digest:
    """Answers with sums of the weights."""

    name, fingerprint, items, forward_s = "hash", "", range(2), 0.0

    def respond(self, model: Any, items: Any) -> Any:
        import numpy as np

        from evomerge.records import Responses

        sums = [float(t.double().sum()) for t in model.module.state_dict().values()]
        columns = {f"sum{n}": np.full(len(items), one) for n, one in enumerate(sums)}
        return Responses("hash", tuple(items), columns)


def test_preparing_ahead_changes_nothing(llamas: dict[str, str]) -> None:
    jobs = [Job(n, n, one, {"hash": (0, 1)}) for n, one in enumerate(RECIPES)]
    alone = Worker(spec(llamas, Digest(), device="cuda"), "alone")
    expected = [alone.run(job) for job in jobs]
    worker = Worker(spec(llamas, Digest(), device="cuda", ahead=True), "ahead")
    assert worker.prepares
    for job, wanted, later in zip(jobs, expected, [*jobs[1:], None], strict=True):
        if later is not None:
            worker.prepare(later)
        found = worker.run(job)
        assert found.failure == wanted.failure
        for here, there in zip(found.responses, wanted.responses, strict=True):
            assert {n: c.tolist() for n, c in here.columns.items()} == {
                n: c.tolist() for n, c in there.columns.items()
            }


# --- searches -------------------------------------------------------------------------------------


def experiment(folder: Path, zoo: Path, candidates: int = 60, **pool: Any) -> Any:
    path = write_experiment(
        folder,
        zoo,
        searcher={"kind": "nsga2", "population": 10},
        budget={"candidates": candidates},
        pool={"device": "cuda", **pool},
    )
    return read_experiment(path)


def test_a_search_and_the_same_again_with_other_workers(tmp_path: Path, tiny_zoo: Path) -> None:
    """One worker or three on one GPU, ahead or not, cut off and gone on with: the same course."""
    files = tmp_path / "files"
    run_experiment(experiment(files, tiny_zoo, workers=1, ahead=False), tmp_path / "one")
    expected = outcome_of(tmp_path / "one")
    assert len(expected["evaluations"]) == 60
    run_experiment(experiment(files, tiny_zoo, workers=3, ahead=True), tmp_path / "three")
    found = outcome_of(tmp_path / "three")
    assert found["evaluations"] == expected["evaluations"]
    assert found["digest"] == expected["digest"]
    for candidates in (25, 60):
        run_experiment(experiment(files, tiny_zoo, candidates, workers=2), tmp_path / "parts")
    assert outcome_of(tmp_path / "parts")["digest"] == expected["digest"]


def test_a_merge_that_a_gpu_found_is_exported(tmp_path: Path, tiny_zoo: Path) -> None:
    """Exporting merges on the processor, and asks the export what the worker asked."""
    run_experiment(experiment(tmp_path / "files", tiny_zoo, 20, workers=1), tmp_path / "run")
    out = Run(tmp_path / "run").export(folder=tmp_path / "model")
    assert (Path(out) / "model.safetensors").exists()


# --- memory ---------------------------------------------------------------------------------------


def until_nothing_is_left() -> Iterator[torch.Tensor]:
    """Blocks of 64 KB, as many as there are."""
    with contextlib.suppress(torch.OutOfMemoryError):
        while True:
            yield torch.empty(2**16, dtype=torch.uint8, device="cuda")


def test_too_little_memory_is_the_candidates_failure(tiny_zoo: Path, asked: Any) -> None:
    spec, job = asked
    worker = Worker(replace(spec, device="cuda", ahead=False), "far")
    assert worker.run(job).failure is None
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    used = torch.cuda.memory_reserved()
    torch.cuda.set_per_process_memory_fraction(used / total)
    try:
        big = replace(job, items={task: tuple(range(200)) for task in job.items})
        held = list(until_nothing_is_left())
        failed = worker.run(big).failure
        assert failed is not None
        assert failed.kind == "memory"
        del held
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert worker.run(job).failure is None


def test_what_cuda_takes_is_no_more_than_is_planned() -> None:
    """A process that multiplies matrices, in and beside the GPU."""
    code = (
        "import torch, sys\n"
        "from pathlib import Path\n"
        "def private():\n"
        "    lines = Path('/proc/self/status').read_text().splitlines()\n"
        "    return next(int(l.split()[1]) * 1024 for l in lines if l.startswith('RssAnon'))\n"
        "host = private()\n"
        "a = torch.ones(64, 64, device='cuda'); (a @ a).sum().item()\n"
        "torch.linalg.svd(a); torch.cuda.empty_cache()\n"
        "print(private() - host, torch.cuda.memory_reserved(), flush=True)\n"
        "sys.stdin.read()\n"
    )
    before = torch.cuda.mem_get_info()[0]
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        host, reserved = map(int, process.stdout.readline().split())
        context = before - torch.cuda.mem_get_info()[0] - reserved
    finally:
        process.communicate("")
    print(f"CUDA context {context / 1e6:.0f} MB, host {host / 1e6:.0f} MB")
    assert 0 < context < placement.CONTEXT_BYTES
    assert host < placement.CUDA_HOST_BYTES


def test_the_plan_of_this_machine(asked: Any) -> None:
    spec, _ = asked
    here = dataclasses.replace(nodes.this_node(), memory_bytes=64_000_000_000)
    assert here.gpus
    found = placement.place(here, spec.demand)
    assert found.device == "cuda"
    assert found.workers >= 1
    assert found.ahead
