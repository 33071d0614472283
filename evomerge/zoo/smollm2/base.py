"""The base: SmolLM2-135M-Instruct, from a packaged GGUF file to an ordinary Hugging Face folder.

The weights are stored in float32. bfloat16 holds two thirds of the file's dequantized weights only
rounded, and many a change that an expert learns is smaller than half of its steps.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from evomerge.zoo.folders import write_model

# What of the file's configuration describes the model; the rest says how the file is packed.
_KEPT = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim"),
    *("num_attention_heads", "num_key_value_heads", "hidden_act", "rms_norm_eps"),
    *("max_position_embeddings", "rope_parameters", "rope_theta", "tie_word_embeddings"),
    *("attention_bias", "mlp_bias", "bos_token_id", "eos_token_id", "pad_token_id"),
)


def write_base(gguf: Path, folder: Path, card: str) -> None:
    """Write the model and the tokenizer of a GGUF file as a folder."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        # transformers looks for a folder with the file in it, and for others beside it.
        shutil.copyfile(gguf, Path(scratch) / "model.gguf")
        model, tokenizer = read_gguf(Path(scratch) / "model.gguf")
    write_model(folder, model, tokenizer, card)


def read_gguf(file: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The model of a GGUF file, in float32, and its tokenizer."""
    packed = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, local_files_only=True
    )
    tokenizer = AutoTokenizer.from_pretrained(
        file.parent, gguf_file=file.name, local_files_only=True
    )
    # What was loaded says that it is quantized, and cannot be saved: so a new model takes it over.
    kept = {key: getattr(packed.config, key) for key in _KEPT if hasattr(packed.config, key)}
    model = empty_model(LlamaConfig(**kept, dtype="float32"))
    model.load_state_dict(packed.state_dict())
    return model.eval(), tokenizer


def open_base(folder: Path) -> LlamaForCausalLM:
    """The base's folder as a model."""
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)


def open_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of the base's folder."""
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def empty_model(config: LlamaConfig) -> LlamaForCausalLM:
    """A model to load weights into; the caller's generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        return LlamaForCausalLM(config).float()
