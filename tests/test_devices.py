"""Models on devices that are not the CPU, and on several: merging, structures, tasks, plans.

The devices are made up (see fake_gpus.py): they refuse what GPUs refuse, and compute as the CPU.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_gpus import KIND, fake_gpus, held
from test_ahead import Hash, recipe, spec, stacked
from test_ahead import llamas as llamas  # a fixture

from evomerge.checkpoints.anatomy import anatomy_of
from evomerge.checkpoints.open import Checkpoint, open_checkpoint
from evomerge.errors import ConfigurationError
from evomerge.experiment.config import read_experiment
from evomerge.experiment.wire import wire
from evomerge.fitness.shared_prefix import logits_at
from evomerge.merging import spread
from evomerge.merging.materialise import Merger
from evomerge.merging.resident import Resident
from evomerge.merging.spread import device_map_of, located
from evomerge.merging.table import OPERATORS
from evomerge.merging.targets import targets_of
from evomerge.pools.worker import Worker
from evomerge.recipe import Merge, ModelSource, Recipe
from evomerge.records import Job, Responses

FAR = f"{KIND}:1"
TOKENS = torch.arange(10)[None]
MAP = {
    "model.embed_tokens": f"{KIND}:0",
    "model.rotary_emb": f"{KIND}:0",
    "model.layers.0": f"{KIND}:0",
    "model.layers.1": FAR,
    "model.layers.2": FAR,
    "model.norm": FAR,
    "lm_head": f"{KIND}:0",  # tied to the embedding
}


@pytest.fixture(scope="module")
def opened(llamas: dict[str, str]) -> dict[str, Checkpoint]:
    return {name: open_checkpoint(Path(path), name=name) for name, path in llamas.items()}


@pytest.fixture
def spread_out(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Every model that is opened is spread over two devices."""
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")  # modes are a thread's own
    places: dict[str, str] = dict(MAP)
    lie(monkeypatch, places)
    return places


def lie(monkeypatch: pytest.MonkeyPatch, places: Any) -> None:
    """What is not opened on the CPU is opened there."""

    def found(origin: Any, dtype: Any, device: str, cache_bytes: int) -> Any:
        return torch.device("cpu") if device == "cpu" else places

    monkeypatch.setattr("evomerge.merging.resident.located", found)


def same(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(held(one), held(other), rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module", params=[0, 12_000, 2**20], ids="copies of {} bytes".format)
def far_bytes(request: pytest.FixtureRequest) -> int:
    """Of copies of the models, on both devices together."""
    return int(request.param)


@pytest.fixture(scope="module")
def far(opened: dict[str, Checkpoint], far_bytes: int) -> Resident:
    with pytest.MonkeyPatch.context() as patch, fake_gpus():
        patch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")
        lie(patch, dict(MAP))
        return Resident.open(opened, "base", device="auto", shelf_bytes=far_bytes)


@pytest.mark.parametrize(
    "operator",
    [name for name, o in OPERATORS.items() if o.needs == "nothing" and not o.needs_adapters],
)
def test_every_operator_merges_where_the_model_is(
    opened: dict[str, Checkpoint], far: Resident, far_bytes: int, operator: str
) -> None:
    """On two devices at once; the oracle is the CPU."""
    most = OPERATORS[operator].max_sources
    sources = {name: ModelSource(path=name) for name in opened}
    merge = Merge(operator=operator, sources=("a", "b")[:most])
    one = Recipe(base="base", models=sources, default=merge)
    with fake_gpus():
        far.write(one)
    merger = Merger(opened, anatomy_of(opened["base"]), "base")
    state = far.module.state_dict()
    for name, expected in merger.tensors(one):
        same(state[name], expected)
    assert {str(tensor.device) for tensor in state.values()} == {f"{KIND}:0", FAR}
    shelf = far.merger.family.shelf
    held_on = Counter[torch.device]()
    for (_, _, device), copied in shelf._tensors.items():
        held_on[device] += copied.nbytes
    budget = far_bytes // 2  # on each of two
    assert all(held_on[device] <= budget for device in held_on)
    assert bool(held_on) == bool(budget)
    for (model, name, _), copied in shelf._tensors.items():
        torch.testing.assert_close(
            held(copied), opened[model].tensor(name).reshape(-1), rtol=0, atol=0
        )


def test_models_are_copied_to_a_device_once(
    opened: dict[str, Checkpoint], spread_out: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whatever operators; and every time, once the copies are given up."""
    read: list[tuple[str, str]] = []
    for name, checkpoint in opened.items():
        monkeypatch.setattr(
            checkpoint,
            "tensor",
            lambda tensor, name=name, own=checkpoint.tensor: (
                read.append((name, tensor)) or own(tensor)
            ),
        )
    with fake_gpus():
        far = Resident.open(opened, "base", device="auto", cache_bytes=0, shelf_bytes=2**20)
        read.clear()
        for one in (recipe(weight=0.5), recipe(weight=0.7), recipe("ties", trim="tensor")):
            far.write(one)
        assert len(read) == len(set(read)) == 3 * len(opened["base"].names)
        assert far.give_up_copies()
        assert not far.give_up_copies()
        for weight in (0.1, 0.2):
            read.clear()
            far.write(recipe(weight=weight))
        assert len(read) == 3 * len(opened["base"].names)


def test_a_head_takes_chosen_states_from_another_device(
    opened: dict[str, Checkpoint], far: Resident
) -> None:
    near = Resident.open(opened, "base")
    near.write(recipe(weight=0.5))
    positions = torch.tensor([3, 7])
    with fake_gpus(), torch.no_grad():
        far.write(recipe(weight=0.5))
        start = f"{KIND}:0"
        inputs = {"input_ids": TOKENS.to(start)}
        chosen = logits_at(far.module, inputs, positions.to(start))
    same(chosen, logits_at(near.module, {"input_ids": TOKENS}, positions))


def logits(model: Resident) -> torch.Tensor:
    device = model.module.model.embed_tokens.weight.device
    with torch.inference_mode():
        return held(model.module(TOKENS.to(device)).logits)


@pytest.mark.parametrize("operator", ["dare_ties", "della"])
def test_random_draws_are_counted_where_they_lie(
    opened: dict[str, Checkpoint], monkeypatch: pytest.MonkeyPatch, operator: str
) -> None:
    """What finds no room on the device goes to a file, and comes back piece by piece."""
    lie(monkeypatch, torch.device(FAR))
    monkeypatch.setattr("evomerge.merging.resident.targets_of", tied_targets)
    monkeypatch.setattr("evomerge.merging.cache._WORTH_A_FILE", 64)
    monkeypatch.setattr("evomerge.merging.blocks.CHUNK", 0)  # each tensor is a group of its own
    expected = Resident.open(opened, "base")
    expected.write(recipe(operator, density=0.5))
    for cache_bytes in (2_000, 2**20):
        with fake_gpus():
            far = Resident.open(
                opened, "base", device="auto", cache_bytes=cache_bytes, shelf_bytes=2**20
            )
            for density in (0.2, 0.5):
                far.write(recipe(operator, density=density))
        for name, tensor in far.module.state_dict().items():
            same(tensor, expected.module.state_dict()[name])
        entries = far.merger.family.cache._entries.values()
        kept = [t for e in entries for t in (*e.prepared.models.draws, *e.prepared.models.ranks)]
        on_device = sum(t.nbytes for t in kept if t.device.type == KIND)
        assert 0 < on_device <= cache_bytes
        assert any(t.device.type == "cpu" for t in kept) == (cache_bytes == 2_000)


@pytest.mark.parametrize("helps", [True, False])
def test_a_full_gpu_gives_up_copies_and_takes_fewer(
    llamas: dict[str, str], monkeypatch: pytest.MonkeyPatch, helps: bool
) -> None:
    """A task that has room only where no copies are kept, or never; then all of them come back."""
    lie(monkeypatch, torch.device(FAR))
    monkeypatch.setattr("evomerge.merging.resident.targets_of", tied_targets)

    class Large(Hash):
        def respond(self, model: Any, items: Any) -> Any:
            if not helps or model.merger.family.shelf.used.total() > 30_000:
                raise torch.OutOfMemoryError
            return Responses("hash", tuple(items), {"score": np.zeros(len(items))})

    with fake_gpus():
        worker = Worker(spec(llamas, Large(), device="auto", shelf_bytes=50_000), "far")
        outcome = worker.run(Job(0, 0, recipe(weight=0.5), {"hash": (0,)}))
        assert (outcome.failure is None) == helps
        shelf = worker.model.merger.family.shelf
        (budget,) = shelf.budgets.values()
        assert (20_000 < budget < 30_000) if helps else (budget == 50_000)
        assert (
            worker.run(Job(1, 1, recipe(weight=0.6), {"hash": (0,)})).failure is None or not helps
        )


@pytest.mark.parametrize("device", [FAR, "auto"])
def test_structures_and_twins_stay_on_their_devices(
    opened: dict[str, Checkpoint], spread_out: Any, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers of one device are moved between those of another; their inputs follow."""
    if device != "auto":
        lie(monkeypatch, torch.device(device))
        monkeypatch.setattr("evomerge.merging.resident.targets_of", tied_targets)
    recipes = [recipe(weight=0.5), stacked(2, 0, 1, 1), stacked(1, scale=0.5), recipe("ties")]
    near = Resident.open(opened, "base")
    with fake_gpus():
        far = Resident.open(opened, "base", device=device)
        for model in (far, far.twin()):
            for one in recipes:
                model.write(one)
                near_logits = (near.write(one), logits(near))[1]
                same(logits(model), near_logits)
        with pytest.raises(RuntimeError, match="expected all tensors on one device"):
            held(far.module.model.norm(torch.ones(1, 16)) + torch.ones(1, 16))


def tied_targets(module: Any, origin: Checkpoint) -> Mapping[str, torch.Tensor]:
    """Ties that moving to a device that is made up has cut."""
    module.lm_head.weight = module.model.embed_tokens.weight
    return targets_of(module, origin)


@pytest.mark.slow
def test_tasks_bring_their_inputs_to_the_model(
    tiny_zoo: Path, monkeypatch: pytest.MonkeyPatch, spread_out: Any
) -> None:
    """Choices, label-free tasks, texts and decoding, on a model over two devices."""
    layers = {f"model.layers.{n}": f"{KIND}:{int(n > 0)}" for n in range(6)}
    spread_out.update(layers, **{"lm_head": FAR})
    quickstart = wire(read_experiment(Path("experiments/quickstart.yaml")))
    label_free = wire(read_experiment(Path("experiments/quickstart_label_free.yaml")))
    prompts = str(Path("fitness/tasks/tiny/sort.jsonl").resolve())
    tasks = {
        **quickstart.worker.tasks,
        **label_free.worker.tasks,
        "clock": {"kind": "latency", "prompt_tokens": 16, "new_tokens": 4},
        "texts": {"kind": "perplexity", "path": prompts, "field": "prompt"},
        "sure": {"kind": "entropy", "path": prompts, "tokens": 3},
    }
    spec = replace(quickstart.worker, tasks=tasks)
    merge = Merge(operator="ties", sources=("sort", "back", "rot"))
    sources = {name: ModelSource(path=name) for name in spec.models}
    one = Recipe(base="base", models=sources, default=merge)
    job = Job(0, 0, one, dict.fromkeys(tasks, (0, 1, 2, 3)))
    with fake_gpus():
        far = Worker(replace(spec, device="auto"), "far").run(job)
    monkeypatch.undo()
    near = Worker(spec, "near").run(job)
    assert (far.failure, near.failure) == (None, None)
    for here, there in zip(near.responses, far.responses, strict=True):
        if here.task != "clock":
            for column, values in here.columns.items():
                assert there.columns[column] == pytest.approx(values, abs=1e-3), here.task


# --- plans ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A model of twelve layers, each about a thirteenth of it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=16,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=12,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    folder = tmp_path_factory.mktemp("deep")
    LlamaForCausalLM(config).save_pretrained(folder)
    return open_checkpoint(folder, name="base")


def test_a_plan_keeps_within_each_gpu_and_evens_out(deep: Checkpoint) -> None:
    size = deep.size_bytes
    module = Resident.open({"base": deep}, "base").module
    for memory in ({0: size, 1: size}, {0: size // 2, 1: size, 2: size // 2}):
        found = device_map_of(deep, None, memory)
        assert set(found.values()) > {0}
        placed = dict.fromkeys(memory, 0)
        seen = set()
        for name, tensor in module.state_dict().items():
            (part,) = [part for part in found if name == part or name.startswith(part + ".")]
            if tensor.data_ptr() not in seen:
                placed[int(found[part])] += tensor.nbytes
            seen.add(tensor.data_ptr())
        assert all(placed[gpu] <= memory[gpu] for gpu in memory)
        assert max(placed.values()) < 0.75 * size


def test_half_the_bytes_need_half_the_room(deep: Checkpoint) -> None:
    base = deep
    room = {0: int(base.size_bytes * 0.3), 1: int(base.size_bytes * 0.45)}
    with pytest.raises(ConfigurationError, match="nothing is offloaded"):
        device_map_of(base, None, room)
    found = device_map_of(base, torch.bfloat16, room)
    assert set(found.values()) == {0, 1}


def test_auto_is_one_gpu_where_the_model_fits(
    deep: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, free = deep, [0, 0]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda n: (free[n], free[n]))
    free[:] = [math.ceil(base.size_bytes / spread.SHARE) + 1] * 2
    assert located(base, None, "auto", 0) == torch.device("cuda", 0)
    over_both = located(base, None, "auto", base.size_bytes // 4)
    assert isinstance(over_both, dict)
    assert set(over_both.values()) == {0, 1}
    free[:] = [base.size_bytes // 4] * 2
    with pytest.raises(ConfigurationError, match=r"needs .* GB, and the GPUs have room for"):
        located(base, None, "auto", 0)


@pytest.mark.parametrize(
    ("device", "told"),
    [
        ("gpu", "no such device"),
        ("cuda:3", "this process sees 0 CUDA devices"),
        ("mps", "no MPS"),
        ("auto", "no GPU is visible"),
    ],
)
def test_devices_that_are_not_there_are_refused(
    opened: dict[str, Checkpoint], device: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigurationError, match=told):
        Resident.open(opened, "base", device=device)
