"""Costs against torch: parameters of modules, sizes of files, and a counter of FLOPs."""

from __future__ import annotations

from pathlib import Path
from time import process_time
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from evomerge.checkpoints.anatomy import anatomy_of
from evomerge.checkpoints.open import open_checkpoint
from evomerge.merging.costs import Costs
from evomerge.recipe import Recipe
from evomerge.results.export import export_model
from evomerge.wording import in_short

LAYERS, HIDDEN, TOKENS = 3, 16, 7
SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": HIDDEN,
    "intermediate_size": 24,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "attn_implementation": "eager",
}


def recipe(path: str = "b", **changes: Any) -> Recipe:
    default = {"operator": "linear", "sources": ["base"], "parameters": {"weight": 1.0}}
    return Recipe.model_validate(
        {"base": "base", "models": {"base": path}, "default": default, **changes}
    )


def costs_of(folder: Path) -> Costs:
    checkpoint = open_checkpoint(folder, name="base")
    return Costs(checkpoint, anatomy_of(checkpoint))


def counted(model: torch.nn.Module, num_layers: int) -> float:
    """FLOPs a token, less those of attention scores and of the sums that they weigh."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.arange(TOKENS)[None], use_cache=False)
    scores = 2 * 2 * TOKENS * TOKENS * HIDDEN * num_layers
    return (counter.get_total_flops() - scores) / TOKENS


def saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=1)),
    "llama, tied": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "llama, biases": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=40, n_embd=HIDDEN, n_layer=LAYERS, n_head=2, n_positions=20)
    ),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("layers", [None, [0, 1, 2], [2], [0, 2, 1, 1, 0]])
def test_what_torch_counts_of_the_model_that_is_written(
    name: str, layers: list[int] | None, tmp_path: Path
) -> None:
    base = saved(MODELS[name](), tmp_path / "base")
    slots = None if layers is None else [{"layer": layer} for layer in layers]
    merged = recipe(str(base), slots=slots)
    found = costs_of(base)(merged)
    folder = export_model(merged, {"base": open_checkpoint(base, name="base")}, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    count = LAYERS if layers is None else len(layers)
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    assert found["layers"] == model.config.num_hidden_layers == count
    assert found["flops_per_token"] == counted(model, count)
    file = folder / "model.safetensors"
    header = int.from_bytes(file.read_bytes()[:8], "little")
    assert found["bytes"] == file.stat().st_size - 8 - header


def test_bytes_are_those_of_the_dtype_that_is_written(tmp_path: Path) -> None:
    base = saved(MODELS["llama"]().half(), tmp_path / "base")
    costs = costs_of(base)
    for dtype, width in ((None, 2), ("float32", 4), ("bfloat16", 2)):
        found = costs(recipe(dtype=dtype))
        assert found["bytes"] == width * found["parameters"]


def test_a_tied_head_that_is_stored_all_the_same_is_one_parameter(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = MODELS["llama, tied"]()
    base = saved(model, tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    found = costs_of(base)(recipe())
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    assert found["flops_per_token"] == counted(model, LAYERS)
    assert found["bytes"] == 4 * sum(t.numel() for t in tensors.values())  # it is written twice


@pytest.mark.parametrize("chosen", [1, 2, 4])
def test_a_mixtures_experts_count_by_the_share_that_a_token_takes(
    chosen: int, tmp_path: Path
) -> None:
    config = MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=chosen)
    base = saved(MixtralForCausalLM(config), tmp_path / "base")
    found = costs_of(base)(recipe())
    attention, router = (
        2 * HIDDEN * HIDDEN + 2 * HIDDEN * config.num_key_value_heads * 8,
        4 * HIDDEN,
    )
    expert, head = 3 * HIDDEN * 24, 40 * HIDDEN
    by_hand = 2 * (LAYERS * (attention + router + chosen * expert) + head)
    assert found["flops_per_token"] == by_hand
    assert found["parameters"] == sum(p.numel() for p in MixtralForCausalLM(config).parameters())


def test_a_state_dict_without_a_config() -> None:
    state = {
        "embed.weight": torch.zeros(11, 4),
        "layers.0.up.weight": torch.zeros(6, 4),
        "layers.0.up.bias": torch.zeros(6),
        "layers.1.up.weight": torch.zeros(8, 4),
        "layers.1.steps": torch.zeros(2, dtype=torch.int64),
        "head.weight": torch.zeros(3, 4),
    }
    checkpoint = open_checkpoint(state, name="base")
    costs = Costs(checkpoint, anatomy_of(checkpoint))
    assert costs(recipe()) == {
        "parameters": 44 + 30 + 32 + 12,
        "layers": 2,
        "bytes": 4 * (44 + 30 + 32 + 12) + 16,
        "flops_per_token": 2 * (24 + 32 + 12),
    }
    assert costs.least(recipe())["parameters"] == 44 + 30 + 12


UNEVEN = {f"layers.{i}.up.weight": torch.zeros(2 + i, 4).half() for i in range(4)}
UNEVEN |= {f"layers.{i}.down.weight": torch.zeros(4, 3 * i + 1) for i in range(4)}


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=12),
    st.sampled_from([None, "float32", "bfloat16"]),
)
@settings(max_examples=50, deadline=None)
def test_repeated_layers_count_each_time(layers: list[int], dtype: str | None) -> None:
    """By brute force: the tensors of every slot, one after another."""
    checkpoint = open_checkpoint(UNEVEN, name="base")
    costs = Costs(checkpoint, anatomy_of(checkpoint))
    tensors = [UNEVEN[f"layers.{layer}.{p}.weight"] for layer in layers for p in ("up", "down")]
    wanted = None if dtype is None else getattr(torch, dtype)
    size = sum(t.numel() for t in tensors)
    assert costs(recipe(slots=[{"layer": layer} for layer in layers], dtype=dtype)) == {
        "parameters": size,
        "layers": len(layers),
        "bytes": sum(t.numel() * (wanted or t.dtype).itemsize for t in tensors),
        "flops_per_token": 2 * size,
    }


def test_a_deep_recipe_costs_a_fraction_of_a_millisecond(tmp_path: Path) -> None:
    config = LlamaConfig(**SIZES | {"num_hidden_layers": 40})
    costs = costs_of(saved(LlamaForCausalLM(config), tmp_path / "base"))
    deep = recipe(slots=[{"layer": layer % 40} for layer in range(40)])
    seconds = []
    for _ in range(50):
        start = process_time()
        costs(deep)
        seconds.append(process_time() - start)
    assert min(seconds) < 0.0003


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (24, "24"),
        (0.5, "0.5"),
        (1234567, "1.235M"),
        (999960, "1M"),
        (120e6, "120M"),
        (-2.13e4, "-21.3k"),
    ],
)
def test_numbers_in_short(value: float, text: str) -> None:
    assert in_short(value) == text
