from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from evomerge.checkpoints.open import Checkpoint, open_checkpoint
from evomerge.checkpoints.preflight import preflight
from evomerge.errors import ModelError

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "vocab_size": 3,
}
VOCABULARY = {"<s>": 0, "a": 1, "b": 2}


def tokenizer(vocabulary: dict[str, int], **sections: Any) -> dict[str, Any]:
    return {"model": {"type": "BPE", "vocab": vocabulary, "merges": []}, **sections}


def model(
    folder: Path,
    *,
    config: dict[str, Any] | None = None,
    tokens: dict[str, Any] | None = None,
    tensors: dict[str, torch.Tensor] | None = None,
) -> Checkpoint:
    folder.mkdir()
    base = {"embed.weight": torch.zeros(3, 4), "head.weight": torch.zeros(3, 4)}
    base |= {f"layers.{i}.w": torch.zeros(4, 4) for i in range(12)}
    save_file(base if tensors is None else tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    chosen = tokenizer(VOCABULARY) if tokens is None else tokens
    (folder / "tokenizer.json").write_text(json.dumps(chosen))
    return open_checkpoint(folder, name=folder.name)


def differences(tmp_path: Path, **changes: Any) -> str:
    base, expert = model(tmp_path / "base"), model(tmp_path / "math", **changes)
    with pytest.raises(ModelError) as caught:
        preflight({"base": base, "math": expert}, "base")
    return str(caught.value)


def warnings_of(tmp_path: Path, **changes: Any) -> list[str]:
    base, expert = model(tmp_path / "base"), model(tmp_path / "math", **changes)
    return preflight({"base": base, "math": expert}, "base")


def test_equal_models_fit(tmp_path: Path) -> None:
    assert warnings_of(tmp_path) == []


def test_other_numbers_of_layers_fit_where_a_recipe_names_layers(tmp_path: Path) -> None:
    base = model(tmp_path / "base", config=CONFIG | {"layer_types": ["full"] * 12})
    for depth in (9, 14):
        outside = {"embed.weight": torch.zeros(3, 4), "head.weight": torch.zeros(3, 4)}
        layers = {f"layers.{i}.w": torch.zeros(4, 4) for i in range(depth)}
        config = CONFIG | {"layer_types": ["full"] * depth}
        other = model(tmp_path / f"{depth}", config=config, tensors=outside | layers)
        assert preflight({"base": base, "other": other}, "base", uneven=True) == []
        with pytest.raises(ModelError, match=r"tensors? 'layers\.\*\.w'"):
            preflight({"base": base, "other": other}, "base")
    strange = {"layers.11.v": torch.zeros(4, 4), "layers.13.v": torch.zeros(4, 4)}
    other = model(tmp_path / "strange", config=config, tensors=outside | layers | strange)
    with pytest.raises(ModelError, match=r"2 tensors 'layers\.\*\.v'.*extra"):
        preflight({"base": base, "other": other}, "base", uneven=True)


def test_all_differences_come_at_once(tmp_path: Path) -> None:
    tensors = {"embed.weight": torch.zeros(4, 4), "extra.bias": torch.zeros(1)}
    tensors |= {f"layers.{i}.w": torch.zeros(4, 4) for i in range(3)}
    text = differences(
        tmp_path,
        tensors=tensors,
        tokens=tokenizer(VOCABULARY | {"b": 3, "c": 2}),
        config=CONFIG | {"rope_theta": 5e5, "tie_word_embeddings": True, "hidden_act": "gelu"},
    )
    for part in (
        "tensor 'embed.weight': has shape [4, 4], the base has [3, 4]",
        "tensor 'extra.bias': extra",
        "tensor 'head.weight': missing",
        "9 tensors 'layers.*.w': missing",
        "has 4 tokens, the base has 3",
        "2 token ids differ, first 2: 'c', in the base 'b'",
        "rope.rope_theta: 500000.0, the base has 10000.0",
        "tied to the embedding, in the base it is not tied",
        "hidden_act: 'gelu', the base has 'silu'",
    ):
        assert part in text
    assert all(line.startswith("math: ") for line in text.splitlines())


def test_many_wrong_shapes_are_counted(tmp_path: Path) -> None:
    tensors = {"embed.weight": torch.zeros(3, 5), "head.weight": torch.zeros(3, 5)}
    tensors |= {f"layers.{i}.w": torch.zeros(5, 5) for i in range(12)}
    text = differences(tmp_path, tensors=tensors)
    assert "6 more tensors have other shapes" in text
    assert len(text.splitlines()) == 9


@pytest.mark.parametrize(
    "change",
    [
        {"rms_norm_eps": 1e-5},
        {"num_key_value_heads": 1},
        {"num_attention_heads": 4},
        {"sliding_window": 4096},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        {"model_type": "mistral"},
        {"final_logit_softcapping": 30.0},
    ],
    ids=str,
)
def test_settings_that_change_the_function(tmp_path: Path, change: dict[str, Any]) -> None:
    dropped = ("rope_theta", "rope_scaling") if "rope_parameters" in change else ()
    config = {key: value for key, value in CONFIG.items() if key not in dropped} | change
    assert "config.json" in differences(tmp_path, config=config)


@pytest.mark.parametrize(
    "change",
    [
        {"torch_dtype": "bfloat16", "use_cache": False, "_name_or_path": "x"},
        {"rms_norm_eps": 1e-6, "attention_bias": False, "sliding_window": None},
        # the way of transformers 5 to say the same
        {"rope_theta": ..., "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        {"rope_theta": ..., "rope_scaling": ...},  # the class's default
        {"num_key_value_heads": ...},
        {"head_dim": 2048},  # what the class makes of the base's settings: 4096 / 2 heads
    ],
    ids=str,
)
def test_settings_that_mean_the_same(tmp_path: Path, change: dict[str, Any]) -> None:
    config = {k: v for k, v in (CONFIG | change).items() if v is not ...}
    assert warnings_of(tmp_path, config=config) == []


def test_other_settings_are_warned_of(tmp_path: Path) -> None:
    (warning,) = warnings_of(tmp_path, config=CONFIG | {"novel_trick": 3})
    assert warning == "math: config.json novel_trick: 3, the base has nothing"


def test_a_mix_of_dtypes_is_warned_of(tmp_path: Path) -> None:
    tensors = {"embed.weight": torch.zeros(3, 4), "head.weight": torch.zeros(3, 4)}
    tensors |= {f"layers.{i}.w": torch.zeros(4, 4, dtype=torch.bfloat16) for i in range(12)}
    assert warnings_of(tmp_path, tensors=tensors) == [
        "math: 12 tensors are bfloat16, the base's float32"
    ]


def test_the_way_to_split_text_is_warned_of(tmp_path: Path) -> None:
    tokens = tokenizer(VOCABULARY, normalizer={"type": "Lowercase"})
    assert warnings_of(tmp_path, tokens=tokens) == ["math: tokenizer.json differs in normalizer"]


@pytest.mark.parametrize("tokens", [{"a": 1}, {"model": {"vocab": 3}}, {"model": []}])
def test_a_damaged_tokenizer_is_named(tmp_path: Path, tokens: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"math/tokenizer\.json"):
        warnings_of(tmp_path, tokens=tokens)


def test_added_tokens_and_unigram_count(tmp_path: Path) -> None:
    unigram = {"model": {"type": "Unigram", "vocab": [["<s>", 0.0], ["a", -1.0], ["b", -2.0]]}}
    assert warnings_of(tmp_path, tokens=unigram | {"added_tokens": []}) == [
        "math: tokenizer.json differs in merges"
    ]
    added = tokenizer(VOCABULARY, added_tokens=[{"id": 3, "content": "<pad>"}])
    (tmp_path / "again").mkdir()
    text = differences(tmp_path / "again", tokens=added)
    assert "3: '<pad>', in the base 'none'" in text


def test_plain_state_dicts_are_compared_by_tensors() -> None:
    one = open_checkpoint({"w": torch.zeros(2, 2)}, name="one")
    two = open_checkpoint({"w": torch.zeros(2, 3)}, name="two")
    with pytest.raises(ModelError, match="two: tensor 'w'"):
        preflight({"one": one, "two": two}, "one")
