"""Adapter folders as experts. Oracle: PEFT's own merge_and_unload, and B @ A in float64."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_folders import (
    ATTENTION,
    copied,
    lora,
    merged_by_peft,
    tiny_gpt2,
    tiny_llama,
)
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from evomerge.checkpoints.adapter_config import ADAPTER_CONFIG, AdapterSettings
from evomerge.checkpoints.adapters import ADAPTER_MODEL, Adapted, open_adapter
from evomerge.checkpoints.family import open_family
from evomerge.checkpoints.open import open_checkpoint
from evomerge.checkpoints.preflight import check_finite, preflight
from evomerge.errors import ModelError
from evomerge.pools.worker import Worker, WorkerSpec

State = dict[str, Tensor]


@dataclass(frozen=True)
class Models:
    """Bases, and one plain adapter of the Llama."""

    folder: Path

    def __getitem__(self, name: str) -> Path:
        return self.folder / name


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("models")
    tiny_llama(folder / "llama")
    tiny_llama(folder / "tied", tie_word_embeddings=True)
    tiny_gpt2(folder / "gpt2")
    lora(folder / "llama", folder / "plain", target_modules=ATTENTION, lora_alpha=5)
    return Models(folder)


def opened(base: Path, adapter: Path, **options: Any) -> Adapted:
    family = open_family({"base": base, "x": adapter}, "base", **options)
    found = family.checkpoints["x"]
    assert isinstance(found, Adapted)
    assert preflight(family.checkpoints, "base") == []
    return found


CASES: dict[str, tuple[str, int, dict[str, Any]]] = {
    # name: base, number of tensors that differ from it, settings
    "plain": ("llama", 8, {"target_modules": ATTENTION, "lora_alpha": 5}),
    "rslora": ("llama", 14, {"target_modules": "all-linear", "use_rslora": True}),
    "patterns": (
        "llama",
        8,
        {
            "target_modules": ATTENTION,
            "rank_pattern": {"q_proj": 5, r"layers\.1.*v_proj": 2},
            "alpha_pattern": {"o_proj": 9, "^model.layers.0.self_attn.k_proj": 3},
        },
    ),
    "all biases": ("llama", 16, {"target_modules": ATTENTION, "bias": "all"}),
    "biases of A and B": ("llama", 16, {"target_modules": ATTENTION, "bias": "lora_only"}),
    "bias of B": ("llama", 16, {"target_modules": ATTENTION, "lora_bias": True}),
    "embedding": ("llama", 9, {"target_modules": [*ATTENTION, "embed_tokens"]}),
    "tied embedding": ("tied", 9, {"target_modules": [*ATTENTION, "embed_tokens"]}),
    "head": ("llama", 1, {"target_modules": ["lm_head"]}),
    "whole modules": (
        "llama",
        11,
        {"target_modules": ATTENTION, "modules_to_save": ["lm_head", "embed_tokens", "model.norm"]},
    ),
    "Conv1D": ("gpt2", 8, {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    # PEFT saves fan_in_fan_out as its last layer has it: here c_proj, a square Conv1D, has another.
    "Conv1D and a linear head": ("gpt2", 5, {"target_modules": ["c_proj", "lm_head"]}),
    "embeddings of GPT-2": ("gpt2", 4, {"target_modules": ["c_attn", "wte", "wpe"]}),
}


@pytest.mark.parametrize("case", CASES)
def test_an_adapter_is_what_peft_merges(case: str, models: Models, tmp_path: Path) -> None:
    base, num_changed, settings = CASES[case]
    adapter = lora(models[base], tmp_path / "adapter", **settings)
    expected = merged_by_peft(models[base], adapter)
    found = opened(models[base], adapter)
    origin = open_checkpoint(models[base], name="base")
    assert found.names == origin.names
    changed = 0
    for name in found.names:
        made = found.tensor(name)
        assert made.dtype == found.dtype(name)
        assert tuple(made.shape) == found.shape(name)
        torch.testing.assert_close(made, expected[name], atol=1e-6, rtol=1e-6)
        changed += not torch.equal(made, origin.tensor(name))
    assert changed == num_changed
    rest = {name: tensor for name, tensor in expected.items() if name not in found.names}
    assert all(torch.equal(t, expected["model.embed_tokens.weight"]) for t in rest.values())


def test_small_changes_do_not_drown_in_bfloat16(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base", dtype=torch.bfloat16)
    adapter = lora(base, tmp_path / "adapter", target_modules=["q_proj"], r=2, lora_alpha=0.001)
    found, origin = opened(base, adapter), open_checkpoint(base, name="base")
    name = "model.layers.0.self_attn.q_proj.weight"
    factors = load_file(adapter / ADAPTER_MODEL)
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    product = factors[key.format("B")].double() @ factors[key.format("A")].double() * 0.0005
    delta = found.tensor(name).double() - origin.tensor(name).double()
    torch.testing.assert_close(delta, product, atol=1e-7, rtol=0)
    rounded = found.tensor(name).bfloat16() != origin.tensor(name)
    assert rounded.float().mean() < 0.5 < (delta != 0).float().mean()
    a, b, scale = found.adapter.factors(name)
    torch.testing.assert_close(scale * (b @ a).double(), product, atol=1e-7, rtol=0)


def test_a_base_whose_file_leaves_the_prefix_out(models: Models, tmp_path: Path) -> None:
    adapter = lora(
        models["gpt2"], tmp_path / "adapter", target_modules=["c_attn"], modules_to_save=["ln_f"]
    )
    bare = copied(models["gpt2"], tmp_path / "bare")
    state = load_file(bare / "model.safetensors")
    save_file(
        {name.removeprefix("transformer."): tensor for name, tensor in state.items()},
        bare / "model.safetensors",
    )
    expected, found = opened(models["gpt2"], adapter), opened(bare, adapter)
    for name in found.names:
        full = name if name in expected.names else f"transformer.{name}"
        assert torch.equal(found.tensor(name), expected.tensor(full))
    changed = {name.partition(".")[0] for name in found.adapter.tensors.names}
    assert changed == {"h", "ln_f"}


def test_a_state_dict_may_be_the_base(models: Models) -> None:
    state = load_file(models["llama"] / "model.safetensors")
    family = open_family({"base": state, "x": models["plain"]}, "base")
    expected = opened(models["llama"], models["plain"])
    found = family.checkpoints["x"]
    assert all(torch.equal(found.tensor(name), expected.tensor(name)) for name in found.names)


def test_the_checksum_tells_base_and_adapter(models: Models, tmp_path: Path) -> None:
    def sha256(base: Path, adapter: Path) -> str:
        return opened(base, adapter).sha256()

    first = sha256(models["llama"], models["plain"])
    moved = copied(models["plain"], tmp_path / "moved")
    assert sha256(models["llama"], moved) == first
    edit_config(moved, lora_alpha=6)
    other_scale = sha256(models["llama"], moved)
    edit_config(moved, lora_alpha=5)
    edit_tensors(moved, lambda tensors: {k: t + 0.5 for k, t in tensors.items()})
    other_factors = sha256(models["llama"], moved)
    other_base = tiny_llama(tmp_path / "base", rope_theta=5000.0)
    edit_tensors(other_base, lambda t: {k: v * 2 for k, v in t.items()}, "model.safetensors")
    assert len({first, other_scale, other_factors, sha256(other_base, models["plain"])}) == 4


def test_a_worker_takes_the_runs_adapter_and_no_other(models: Models, tmp_path: Path) -> None:
    adapter = copied(models["plain"], tmp_path / "adapter")
    sources = {"base": str(models["llama"]), "x": str(adapter)}
    known = {"x": opened(models["llama"], adapter).sha256()}
    Worker(WorkerSpec(sources, "base", sha256=known), "w")
    edit_tensors(adapter, lambda tensors: {k: t + 0.5 for k, t in tensors.items()})
    with pytest.raises(ModelError, match=r"model x: .* has changed since the run began"):
        Worker(WorkerSpec(sources, "base", sha256=known), "w")


def test_nan_in_an_adapter_is_named(models: Models, tmp_path: Path) -> None:
    adapter = copied(models["plain"], tmp_path / "adapter")

    def poison(tensors: State) -> State:
        next(t for name, t in tensors.items() if "1.self_attn.v_proj.lora_B" in name)[0] = torch.nan
        return tensors

    edit_tensors(adapter, poison)
    with pytest.raises(ModelError) as caught:
        check_finite(opened(models["llama"], adapter))
    assert len(caught.value.problems) == 1
    assert "layers.1.self_attn.v_proj.lora_B.weight" in str(caught.value)
    assert str(adapter) in str(caught.value)


def test_another_base_is_a_note(models: Models, tmp_path: Path) -> None:
    adapter = copied(models["plain"], tmp_path / "adapter")
    sources = {"base": models["llama"], "x": adapter}
    assert open_family(sources, "base").notes == ()
    edit_config(adapter, base_model_name_or_path="someone/else")
    (note,) = open_family(sources, "base").notes
    assert "x" in note
    assert "someone/else" in note
    assert str(models["llama"]) in note


def test_a_model_with_an_adapter_beside_it_is_the_model(models: Models, tmp_path: Path) -> None:
    both = copied(models["llama"], tmp_path / "both")
    for file in models["plain"].iterdir():
        (both / file.name).write_bytes(file.read_bytes())
    family = open_family({"base": models["llama"], "x": both}, "base")
    assert not isinstance(family.checkpoints["x"], Adapted)
    assert "x: the adapter in" in family.notes[0]


def test_an_adapter_is_no_base(models: Models) -> None:
    with pytest.raises(ModelError, match=r"model base: .*plain: is a PEFT adapter, .* no model"):
        open_family({"base": models["plain"], "x": models["llama"]}, "base")


def test_pickled_factors_need_permission(models: Models, tmp_path: Path) -> None:
    adapter = copied(models["plain"], tmp_path / "adapter")
    torch.save(load_file(adapter / ADAPTER_MODEL), adapter / "adapter_model.bin")
    (adapter / ADAPTER_MODEL).unlink()
    with pytest.raises(ModelError, match=r"adapter_model\.bin: is a pickle"):
        opened(models["llama"], adapter)
    expected = opened(models["llama"], models["plain"])
    found = opened(models["llama"], adapter, allow_pickle=True)
    assert all(torch.equal(found.tensor(name), expected.tensor(name)) for name in found.names)


# --- patterns -------------------------------------------------------------------------------------

PATTERNS = st.lists(
    st.sampled_from(
        [
            "q_proj",
            "layers.1.q_proj",
            r"layers\.[01]\..*",
            "^model.layers.0.v_proj",
            "proj",
            ".*v_proj",
        ]
    ),
    unique=True,
)


@given(PATTERNS, st.sampled_from([f"model.layers.{i}.{p}_proj" for i in (0, 1) for p in "qv"]))
def test_patterns_match_as_in_peft(patterns: list[str], module: str) -> None:
    from peft.utils.other import get_pattern_key

    ranks = {pattern: 10 + i for i, pattern in enumerate(patterns)}
    settings = AdapterSettings(7, 2.0, ranks, {}, False, False, "")
    assert settings.rank_of(module) == ranks.get(get_pattern_key(list(ranks), module), 7)


# --- damage ---------------------------------------------------------------------------------------


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / ADAPTER_CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(folder: Path, change: Callable[[State], State], file: str = ADAPTER_MODEL) -> None:
    tensors = load_file(folder / file)
    save_file({k: t.contiguous() for k, t in change(tensors).items()}, folder / file)


def config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_config(folder, **changes)


def tensors(change: Callable[[State], State]) -> Callable[[Path], None]:
    return lambda folder: edit_tensors(folder, change)


Q0 = "base_model.model.model.layers.0.self_attn.q_proj"
A, B = f"{Q0}.lora_A.weight", f"{Q0}.lora_B.weight"


def renamed(old: str, new: str) -> Callable[[Path], None]:
    return tensors(lambda t: {name.replace(old, new): tensor for name, tensor in t.items()})


DAMAGE: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    # what is done to the folder: what the message has to name
    "another method": (config(peft_type="IA3"), (ADAPTER_CONFIG, "'IA3'", "LORA")),
    "no JSON": (lambda f: (f / ADAPTER_CONFIG).write_text("{"), (ADAPTER_CONFIG, "JSON")),
    "DoRA": (config(use_dora=True), ("use_dora", "DoRA")),
    "several options": (
        config(trainable_token_indices=[1], layer_replication=[[0, 1]], target_parameters=["w"]),
        ("trainable_token_indices", "layer_replication", "target_parameters"),
    ),
    "an option of tomorrow": (config(use_tomorrow=True), ("use_tomorrow", "unknown option")),
    "PiSSA": (config(init_lora_weights="pissa"), ("init_lora_weights", "changes the base")),
    "rank zero": (config(r=0), (f"{ADAPTER_CONFIG}: r: ", "above 0")),
    "alpha of no number": (config(lora_alpha="16"), ("lora_alpha", "'16'")),
    "alpha too large": (config(lora_alpha=10**400), ("lora_alpha",)),
    "pattern that explodes": (config(alpha_pattern={"(a+)+$": 3}), ("alpha_pattern.(a+)+$",)),
    "pattern that is none": (config(rank_pattern={"(": 3}), ("rank_pattern.(",)),
    "no weights": (lambda f: (f / ADAPTER_MODEL).unlink(), ("holds", ADAPTER_MODEL)),
    "cut off": (
        lambda f: (f / ADAPTER_MODEL).write_bytes((f / ADAPTER_MODEL).read_bytes()[:900]),
        (ADAPTER_MODEL,),
    ),
    "no B": (tensors(lambda t: {k: v for k, v in t.items() if k != B}), (A, "lora_B is missing")),
    "no A": (tensors(lambda t: {k: v for k, v in t.items() if k != A}), (B, "lora_A is missing")),
    "ranks differ": (tensors(lambda t: {**t, B: t[B][:, :2]}), (A, "3 rows", "2 columns")),
    "rank of the config": (config(r=4), (A, "the rank 4")),
    "does not fit the base": (
        tensors(lambda t: {**t, A: torch.zeros(3, 7)}),
        (A, "[16, 7]", "[16, 16]"),
    ),
    "not in the base": (
        renamed("layers.0.self_attn.q_proj", "layers.0.self_attn.q_prj"),
        ("q_prj", "did you mean 'model.layers.0.self_attn.q_proj.weight'"),
    ),
    "a layer too many": (renamed("layers.1.", "layers.9."), ("layers.9.",)),
    "whole tensor that is not in the base": (
        tensors(lambda t: {**t, "base_model.model.score.weight": torch.zeros(2, 16)}),
        ("score.weight", "the base has no"),
    ),
    "whole tensor of another shape": (
        tensors(lambda t: {**t, "base_model.model.model.norm.weight": torch.zeros(17)}),
        ("model.norm.weight", "[17]", "[16]"),
    ),
    "DoRA's tensor": (
        tensors(lambda t: {**t, f"{Q0}.lora_magnitude_vector": torch.zeros(16)}),
        ("lora_magnitude_vector", "DoRA"),
    ),
    "another kind of tensor": (
        tensors(lambda t: {**t, f"{Q0}.lora_diag": torch.zeros(3)}),
        ("lora_diag", "not supported"),
    ),
    "a convolution's": (
        tensors(lambda t: {**t, A: torch.zeros(3, 16, 1, 1)}),
        (A, "expected A (r, in)"),
    ),
    "integers": (tensors(lambda t: {**t, A: t[A].to(torch.int32)}), (A, "int32")),
    "twice": (
        tensors(lambda t: {**t, f"{Q0}.lora_A.default.weight": t[A].clone()}),
        ("lora_A", "says the same as"),
    ),
    "empty": (tensors(lambda t: {}), (ADAPTER_MODEL, "holds no lora_A")),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_told_by_name(case: str, models: Models, tmp_path: Path) -> None:
    damage, names = DAMAGE[case]
    adapter = copied(models["plain"], tmp_path / "adapter")
    damage(adapter)
    base = open_checkpoint(models["llama"], name="base")
    with pytest.raises(ModelError) as caught:
        open_adapter(adapter, name="x", base=base)
    text = str(caught.value)
    assert str(adapter) in text
    assert not [name for name in names if name not in text], text


def test_all_problems_are_told_at_once(models: Models, tmp_path: Path) -> None:
    adapter = copied(models["plain"], tmp_path / "adapter")
    edit_tensors(adapter, lambda t: {k: v for k, v in t.items() if "lora_B" not in k})
    with pytest.raises(ModelError) as caught:
        opened(models["llama"], adapter)
    assert len(caught.value.problems) == 8
    assert all(str(problem).startswith("model x: ") for problem in caught.value.problems)
