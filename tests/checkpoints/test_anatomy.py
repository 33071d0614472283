"""The oracle is a table written by hand for every architecture, and transformers' own names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from evomerge.checkpoints.anatomy import Place, anatomy_of
from evomerge.checkpoints.open import open_checkpoint
from evomerge.errors import ModelError

transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}
GPT2 = {"vocab_size": 40, "n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 16}
OPT = {
    "vocab_size": 40,
    "hidden_size": 16,
    "ffn_dim": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "word_embed_proj_dim": 8,
    "max_position_embeddings": 16,
}
T5 = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
BART = {
    "vocab_size": 40,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
}
XLM = {"vocab_size": 40, "emb_dim": 16, "n_layers": 2, "n_heads": 2}
MOE = SIZES | {"num_key_value_heads": 1, "num_local_experts": 2}

# class, config class, settings, layers, {name: place}
MODELS: dict[str, tuple[str, str, dict[str, object], int, dict[str, tuple[int | None, str]]]] = {
    "llama": (
        "LlamaForCausalLM",
        "LlamaConfig",
        SIZES,
        3,
        {
            "model.embed_tokens.weight": (None, "embedding"),
            "lm_head.weight": (None, "head"),
            "model.norm.weight": (None, "norm"),
            "model.layers.2.self_attn.o_proj.weight": (2, "attention"),
            "model.layers.1.mlp.gate_proj.weight": (1, "mlp"),
            "model.layers.0.input_layernorm.weight": (0, "norm"),
        },
    ),
    "qwen2, tied": (
        "Qwen2ForCausalLM",
        "Qwen2Config",
        SIZES | {"tie_word_embeddings": True},
        3,
        {
            "model.embed_tokens.weight": (None, "embedding"),
            "model.layers.0.self_attn.q_proj.bias": (0, "attention"),
            "model.layers.2.mlp.down_proj.weight": (2, "mlp"),
        },
    ),
    "qwen3": (
        "Qwen3ForCausalLM",
        "Qwen3Config",
        SIZES,
        3,
        {"model.layers.0.self_attn.q_norm.weight": (0, "norm")},
    ),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        GPT2,
        3,
        {
            "transformer.wte.weight": (None, "embedding"),
            "transformer.wpe.weight": (None, "embedding"),
            "transformer.ln_f.bias": (None, "norm"),
            "transformer.h.1.attn.c_attn.weight": (1, "attention"),
            "transformer.h.1.attn.c_proj.bias": (1, "attention"),
            "transformer.h.2.mlp.c_proj.weight": (2, "mlp"),
            "transformer.h.0.ln_1.weight": (0, "norm"),
        },
    ),
    "bert": (
        "BertForSequenceClassification",
        "BertConfig",
        SIZES,
        3,
        {
            "bert.embeddings.token_type_embeddings.weight": (None, "embedding"),
            "bert.embeddings.LayerNorm.weight": (None, "norm"),
            "bert.pooler.dense.weight": (None, "other"),
            "classifier.weight": (None, "head"),
            "bert.encoder.layer.0.attention.self.query.bias": (0, "attention"),
            "bert.encoder.layer.0.attention.output.dense.weight": (0, "attention"),
            "bert.encoder.layer.1.intermediate.dense.weight": (1, "mlp"),
            "bert.encoder.layer.2.output.dense.weight": (2, "mlp"),
            "bert.encoder.layer.2.output.LayerNorm.bias": (2, "norm"),
        },
    ),
    "opt": (
        "OPTForCausalLM",
        "OPTConfig",
        OPT,
        3,
        {
            "model.decoder.embed_positions.weight": (None, "embedding"),
            "model.decoder.project_in.weight": (None, "other"),
            "model.decoder.final_layer_norm.weight": (None, "norm"),
            "model.decoder.layers.0.fc1.weight": (0, "mlp"),
            "model.decoder.layers.2.self_attn.out_proj.bias": (2, "attention"),
            "model.decoder.layers.2.final_layer_norm.weight": (2, "norm"),
        },
    ),
    "t5": (
        "T5ForConditionalGeneration",
        "T5Config",
        T5,
        4,
        {
            "shared.weight": (None, "embedding"),
            "encoder.block.1.layer.0.SelfAttention.q.weight": (1, "attention"),
            "encoder.block.0.layer.1.DenseReluDense.wi.weight": (0, "mlp"),
            "decoder.block.0.layer.1.EncDecAttention.k.weight": (2, "attention"),
            "decoder.block.1.layer.2.layer_norm.weight": (3, "norm"),
            "encoder.final_layer_norm.weight": (None, "norm"),
        },
    ),
    "bart: blocks of two classes": (
        "BartForConditionalGeneration",
        "BartConfig",
        BART,
        5,
        {
            "model.encoder.layers.1.fc1.weight": (1, "mlp"),
            "model.decoder.layers.2.encoder_attn.q_proj.weight": (4, "attention"),
        },
    ),
    "xlm: parallel lists": (
        "XLMModel",
        "XLMConfig",
        XLM,
        2,
        {
            "attentions.1.q_lin.weight": (1, "attention"),
            "ffns.1.lin2.weight": (1, "mlp"),
            "layer_norm2.0.weight": (0, "norm"),
            "position_embeddings.weight": (None, "embedding"),
        },
    ),
    "mixtral: files name experts that the modules fuse": (
        "MixtralForCausalLM",
        "MixtralConfig",
        MOE,
        3,
        {
            "model.layers.1.block_sparse_moe.experts.1.w2.weight": (1, "mlp"),
            "model.layers.2.block_sparse_moe.gate.weight": (2, "mlp"),
            "model.layers.2.self_attn.k_proj.weight": (2, "attention"),
        },
    ),
}


@pytest.mark.parametrize("case", MODELS)
def test_transformers_models(tmp_path: Path, case: str) -> None:
    model_class, config_class, settings, num_layers, expected = MODELS[case]
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**settings))
    model.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path, name="x")
    anatomy = anatomy_of(checkpoint)
    assert anatomy.num_layers == num_layers
    assert set(anatomy.places) == set(checkpoint.names)
    found = {
        name: (anatomy.places[name].layer, anatomy.places[name].component) for name in expected
    }
    assert found == expected
    assert sum(row[2] for row in anatomy.table()) == len(checkpoint.names)
    stored = sum(checkpoint.tensor(name).numel() for name in checkpoint.names)
    assert sum(row[3] for row in anatomy.table()) == stored
    for name, place in anatomy.places.items():
        assert name in anatomy.names_of(place.layer, place.component)
        if place.layer is not None:
            assert place.component in ("attention", "mlp", "norm", "other")
            assert anatomy.name_in_layer(name, place.layer) == name


def saved(folder: Path, model_class: str, config_class: str, **settings: object) -> Path:
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**settings))
    model.save_pretrained(folder)
    return folder


def test_the_table_of_llama(tmp_path: Path) -> None:
    folder = saved(tmp_path, "LlamaForCausalLM", "LlamaConfig", **SIZES)
    table = anatomy_of(open_checkpoint(folder, name="x")).table()
    assert table == [
        ("-", "embedding", 1, 40 * 16),
        ("-", "norm", 1, 16),
        ("-", "head", 1, 40 * 16),
        ("0-2", "attention", 12, 3 * 4 * 16 * 16),
        ("0-2", "mlp", 9, 3 * 3 * 16 * 24),
        ("0-2", "norm", 6, 3 * 2 * 16),
    ]


def test_files_may_leave_out_the_prefix(tmp_path: Path) -> None:
    """The hub's GPT-2 has names without "transformer."."""
    folder = saved(tmp_path, "GPT2Model", "GPT2Config", **GPT2)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"GPT2Model"', '"GPT2LMHeadModel"'))
    anatomy = anatomy_of(open_checkpoint(folder, name="x"))
    assert anatomy.num_layers == 3
    assert anatomy.places["h.2.attn.c_attn.weight"] == Place(2, "attention")
    assert anatomy.places["wte.weight"] == Place(None, "embedding")
    assert anatomy.name_in_layer("h.2.mlp.c_fc.bias", 0) == "h.0.mlp.c_fc.bias"


def test_an_unknown_class_goes_by_names_to_the_same_places(tmp_path: Path) -> None:
    folder = saved(tmp_path, "LlamaForCausalLM", "LlamaConfig", **SIZES)
    known = anatomy_of(open_checkpoint(folder, name="x"))
    config = (folder / "config.json").read_text()
    config = config.replace('"llama"', '"nobody"').replace("LlamaForCausalLM", "Nobody")
    (folder / "config.json").write_text(config)
    assert anatomy_of(open_checkpoint(folder, name="x")).places == known.places


def test_name_in_layer_and_its_errors(tmp_path: Path) -> None:
    anatomy = anatomy_of(
        open_checkpoint(saved(tmp_path, "T5ForConditionalGeneration", "T5Config", **T5), name="x")
    )
    query = "decoder.block.{}.layer.0.SelfAttention.q.weight"
    assert anatomy.name_in_layer(query.format(0), 3) == query.format(1)
    for name, layer in ((query.format(0), 9), (query.format(0), 0), ("shared.weight", 0)):
        with pytest.raises(ModelError, match=name):
            anatomy.name_in_layer(name, layer)
    with pytest.raises(ModelError, match="no such tensor"):
        anatomy.name_in_layer("shared.weigth", 0)


# --- plain state dicts --------------------------------------------------------------------------


def places(module: nn.Module | dict[str, torch.Tensor]) -> dict[str, tuple[int | None, str]]:
    state = module.state_dict() if isinstance(module, nn.Module) else module
    anatomy = anatomy_of(open_checkpoint(state, name="x"))
    return {name: (place.layer, place.component) for name, place in anatomy.places.items()}


def test_a_sequential_has_layers_without_gaps() -> None:
    net = nn.Sequential(
        nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2)
    )
    assert places(net) == {
        "0.weight": (0, "mlp"),
        "0.bias": (0, "mlp"),
        "2.weight": (1, "mlp"),
        "2.bias": (1, "mlp"),
        "3.weight": (2, "norm"),
        "3.bias": (2, "norm"),
        "5.weight": (3, "mlp"),
        "5.bias": (3, "mlp"),
    }


def test_numbers_at_the_end_of_a_word_count() -> None:
    shapes = {"fc1": (8, 4), "fc2": (8, 8), "fc3": (2, 8)}
    state = {f"{name}.weight": torch.zeros(shape) for name, shape in shapes.items()}
    state |= {f"{name}.bias": torch.zeros(shape[0]) for name, shape in shapes.items()}
    found = places(state)
    assert found["fc1.bias"] == (0, "mlp")
    assert found["fc3.weight"] == (2, "mlp")
    anatomy = anatomy_of(open_checkpoint(state, name="x"))
    assert anatomy.name_in_layer("fc1.weight", 1) == "fc2.weight"


def test_parallel_numberings_are_one() -> None:
    state = {f"conv{i}.weight": torch.zeros(2, 2, 3, 3) for i in (1, 2)}
    state |= {f"bn{i}.{leaf}": torch.zeros(2) for i in (1, 2) for leaf in ("weight", "running_var")}
    state |= {"classifier.weight": torch.zeros(2, 2), "classifier.bias": torch.zeros(2)}
    assert places(state) == {
        "conv1.weight": (0, "mlp"),
        "conv2.weight": (1, "mlp"),
        "bn1.weight": (0, "norm"),
        "bn2.weight": (1, "norm"),
        "bn1.running_var": (0, "norm"),
        "bn2.running_var": (1, "norm"),
        "classifier.weight": (None, "head"),
        "classifier.bias": (None, "head"),
    }


def test_the_outer_numbering_wins_over_a_longer_inner_one() -> None:
    state = {f"blocks.{i}.experts.{j}.w": torch.zeros(2, 2) for i in range(2) for j in range(5)} | {
        "tok_embeddings.weight": torch.zeros(3, 2),
        "blocks.0.attn.wq": torch.zeros(2, 2),
    }
    found = places(state)
    assert found["blocks.1.experts.4.w"] == (1, "mlp")
    assert found["blocks.0.attn.wq"] == (0, "attention")
    assert found["tok_embeddings.weight"] == (None, "embedding")


def test_no_numbers_no_layers() -> None:
    anatomy = anatomy_of(open_checkpoint({"weight": torch.zeros(2, 2)}, name="x"))
    assert anatomy.num_layers == 0
    assert anatomy.table() == [("-", "other", 1, 4)]
