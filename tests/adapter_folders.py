"""Tiny random models and PEFT adapters over them; what PEFT itself makes of the two."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


def tiny_llama(folder: Path, *, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """A random Llama of two layers; q_proj and o_proj are square."""
    from transformers import LlamaConfig, LlamaForCausalLM

    settings: dict[str, Any] = {
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": False,
        "attention_bias": True,
    }
    return _saved(LlamaForCausalLM, LlamaConfig(**{**settings, **changes}), folder, dtype)


def tiny_gpt2(folder: Path, **changes: Any) -> Path:
    """A random GPT-2 of two layers: Conv1D, learnt positions, biases everywhere."""
    from transformers import GPT2Config, GPT2LMHeadModel

    settings: dict[str, Any] = {"vocab_size": 40, "n_positions": 16, "n_embd": 16}
    settings |= {"n_layer": 2, "n_head": 4, "n_inner": 24, "tie_word_embeddings": False}
    return _saved(GPT2LMHeadModel, GPT2Config(**{**settings, **changes}), folder, torch.float32)


def _saved(cls: Any, config: Any, folder: Path, dtype: torch.dtype) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = cls(config)
        for parameter in model.parameters():  # biases and norms that are nothing special
            nn.init.normal_(parameter, std=0.3)
    model.to(dtype).save_pretrained(folder)
    return folder


def load(folder: Path) -> nn.Module:
    from transformers import AutoModelForCausalLM

    model: nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    return model


def lora(base: Path, folder: Path, *, seed: int = 1, **settings: Any) -> Path:
    """An adapter with random factors (and random biases and whole modules, where it has any)."""
    import peft

    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        model = peft.get_peft_model(load(base), peft.LoraConfig(**{"r": 3, **settings}))
        for _, parameter in model.named_parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter, std=0.2)
        model.save_pretrained(folder)
    return folder


def merged_by_peft(base: Path, folder: Path) -> dict[str, Tensor]:
    """The state dict after PEFT's own merge_and_unload."""
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.PeftModel.from_pretrained(load(base), folder).merge_and_unload()
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def copied(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to
