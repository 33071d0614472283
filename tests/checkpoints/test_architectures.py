"""Every tensor of eight architectures has its place: the oracle is a table counted by hand.

The models are random, of the sizes below, saved by transformers and opened from the folder; without
config.json the numbers in the names must give the same layers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from evomerge.checkpoints.anatomy import anatomy_of
from evomerge.checkpoints.open import open_checkpoint

transformers = pytest.importorskip("transformers")

V, H, F, L, A = 40, 16, 24, 3, 2  # vocabulary, hidden, feed-forward, layers, heads

Rows = list[tuple[str, str, int, int]]


@dataclass(frozen=True)
class Case:
    """A class with its settings; rows of (layers, component, tensors, parameters), by hand.

    otherwise: tensors whose component the names alone cannot tell, and what they say instead.
    """

    model: str
    config: str
    settings: dict[str, Any]
    rows: Rows
    otherwise: dict[str, str] = field(default_factory=dict)


SIZES = {
    "vocab_size": V,
    "hidden_size": H,
    "intermediate_size": F,
    "num_hidden_layers": L,
    "num_attention_heads": A,
}

CASES = {
    "llama, grouped queries": Case(
        "LlamaForCausalLM",
        "LlamaConfig",
        SIZES | {"num_key_value_heads": 1},
        [
            ("-", "embedding", 1, V * H),
            ("-", "norm", 1, H),
            ("-", "head", 1, V * H),
            ("0-2", "attention", 3 * 4, 3 * (2 * H * H + 2 * H * H // 2)),  # q, o; k, v of one head
            ("0-2", "mlp", 3 * 3, 3 * 3 * H * F),
            ("0-2", "norm", 3 * 2, 3 * 2 * H),
        ],
    ),
    "qwen2: biases on q, k, v": Case(
        "Qwen2ForCausalLM",
        "Qwen2Config",
        SIZES | {"tie_word_embeddings": True, "num_key_value_heads": A},
        [
            ("-", "embedding", 1, V * H),
            ("-", "norm", 1, H),
            ("0-2", "attention", 3 * 7, 3 * (4 * H * H + 3 * H)),
            ("0-2", "mlp", 3 * 3, 3 * 3 * H * F),
            ("0-2", "norm", 3 * 2, 3 * 2 * H),
        ],
    ),
    "gpt2: conv1d, fused q, k, v": Case(
        "GPT2LMHeadModel",
        "GPT2Config",
        {"vocab_size": V, "n_embd": H, "n_layer": L, "n_head": A, "n_positions": 10},
        [
            ("-", "embedding", 2, V * H + 10 * H),
            ("-", "norm", 2, 2 * H),
            ("0-2", "attention", 3 * 4, 3 * (3 * H * H + 3 * H + H * H + H)),
            ("0-2", "mlp", 3 * 4, 3 * (2 * 4 * H * H + 4 * H + H)),
            ("0-2", "norm", 3 * 4, 3 * 4 * H),
        ],
    ),
    "gpt-neox": Case(
        "GPTNeoXForCausalLM",
        "GPTNeoXConfig",
        SIZES | {"max_position_embeddings": 10},
        [
            ("-", "embedding", 1, V * H),
            ("-", "norm", 2, 2 * H),
            ("-", "head", 1, V * H),
            ("0-2", "attention", 3 * 4, 3 * (3 * H * H + 3 * H + H * H + H)),
            ("0-2", "mlp", 3 * 4, 3 * (2 * H * F + F + H)),
            ("0-2", "norm", 3 * 4, 3 * 4 * H),
        ],
    ),
    "bert with a masked head": Case(
        "BertForMaskedLM",
        "BertConfig",
        SIZES | {"max_position_embeddings": 10},
        [
            ("-", "embedding", 3, V * H + 10 * H + 2 * H),
            ("-", "norm", 4, 4 * H),  # of the embeddings, and of the head's transform
            ("-", "head", 3, V + H * H + H),
            ("0-2", "attention", 3 * 8, 3 * (4 * H * H + 4 * H)),
            ("0-2", "mlp", 3 * 4, 3 * (2 * H * F + F + H)),
            ("0-2", "norm", 3 * 4, 3 * 4 * H),
        ],
    ),
    "t5: encoder and decoder": Case(
        "T5ForConditionalGeneration",
        "T5Config",
        {"vocab_size": V, "d_model": H, "d_kv": 8, "d_ff": F, "num_layers": 2, "num_heads": A},
        [
            ("-", "embedding", 1, V * H),
            ("-", "norm", 2, 2 * H),
            ("0", "attention", 5, 4 * H * H + 32 * A),  # the first block has relative positions
            ("0", "mlp", 2, 2 * H * F),
            ("0", "norm", 2, 2 * H),
            ("1", "attention", 4, 4 * H * H),
            ("1", "mlp", 2, 2 * H * F),
            ("1", "norm", 2, 2 * H),
            ("2", "attention", 9, 8 * H * H + 32 * A),
            ("2", "mlp", 2, 2 * H * F),
            ("2", "norm", 3, 3 * H),
            ("3", "attention", 8, 8 * H * H),
            ("3", "mlp", 2, 2 * H * F),
            ("3", "norm", 3, 3 * H),
        ],
    ),
    "vit": Case(
        "ViTForImageClassification",
        "ViTConfig",
        {k: v for k, v in SIZES.items() if k != "vocab_size"}
        | {"image_size": 8, "patch_size": 4, "num_channels": 3, "num_labels": 5},
        [
            ("-", "embedding", 4, H + 5 * H + 3 * 4 * 4 * H + H),  # class token, positions, patches
            ("-", "norm", 2, 2 * H),
            ("-", "head", 2, 5 * H + 5),
            ("0-2", "attention", 3 * 8, 3 * (4 * H * H + 4 * H)),
            ("0-2", "mlp", 3 * 4, 3 * (2 * H * F + F + H)),
            ("0-2", "norm", 3 * 4, 3 * 4 * H),
        ],
    ),
    "mixtral: experts in every block": Case(
        "MixtralForCausalLM",
        "MixtralConfig",
        SIZES | {"num_key_value_heads": 1, "num_local_experts": 4},
        [
            ("-", "embedding", 1, V * H),
            ("-", "norm", 1, H),
            ("-", "head", 1, V * H),
            ("0-2", "attention", 3 * 4, 3 * 3 * H * H),
            ("0-2", "mlp", 3 * (4 * 3 + 1), 3 * (4 * 3 * H * F + 4 * H)),  # and the router
            ("0-2", "norm", 3 * 2, 3 * 2 * H),
        ],
    ),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for number, (name, case) in enumerate(CASES.items()):
        config = getattr(transformers, case.config)(**case.settings)
        made[name] = tmp_path_factory.mktemp(f"model{number}")
        getattr(transformers, case.model)(config).save_pretrained(made[name])
    return made


@pytest.mark.parametrize("name", CASES)
def test_the_table(folders: dict[str, Path], name: str) -> None:
    checkpoint = open_checkpoint(folders[name], name="x")
    anatomy = anatomy_of(checkpoint)
    assert set(anatomy.places) == set(checkpoint.names)
    assert anatomy.table() == CASES[name].rows
    loaded = getattr(transformers, CASES[name].model).from_pretrained(folders[name])
    assert sum(row[3] for row in anatomy.table()) == loaded.num_parameters()


@pytest.mark.parametrize("name", CASES)
def test_a_plain_state_dict_has_the_same_layers(folders: dict[str, Path], name: str) -> None:
    known = anatomy_of(open_checkpoint(folders[name], name="x"))
    plain = anatomy_of(open_checkpoint(load_file(folders[name] / "model.safetensors"), name="y"))
    assert plain.num_layers == known.num_layers
    for tensor, place in known.places.items():
        assert plain.places[tensor].layer == place.layer, tensor
    components = {tensor: place.component for tensor, place in plain.places.items()}
    expected = {tensor: place.component for tensor, place in known.places.items()}
    assert components == expected | CASES[name].otherwise


@pytest.mark.slow
def test_smollm2(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real model, where it has been put into the zoo: 30 layers, grouped queries, tied."""
    monkeypatch.delenv("EVOMERGE_CACHE")  # the user's own cache, where the zoo is
    from evomerge.errors import EvomergeError
    from evomerge.zoo import zoo_path

    try:
        folder = zoo_path("zoo:smollm2/base")
    except (EvomergeError, KeyError, ImportError, OSError) as error:
        pytest.skip(f"SmolLM2-135M is not at hand: {error}")
    width, ffn, heads = 576, 1536, 9
    keys = width // heads * 3
    assert anatomy_of(open_checkpoint(folder, name="x")).table() == [
        ("-", "embedding", 1, 49152 * width),
        ("-", "norm", 1, width),
        ("0-29", "attention", 120, 30 * (2 * width * width + 2 * width * keys)),
        ("0-29", "mlp", 90, 30 * 3 * width * ffn),
        ("0-29", "norm", 60, 60 * width),
    ]
