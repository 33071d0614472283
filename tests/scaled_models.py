"""Tiny models of every type whose branches can be scaled, and scaled by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evomerge.checkpoints.open import Checkpoint, open_checkpoint

TOKENS = torch.arange(1, 9)[None]
GREEDY = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
LAYERS = 3

LLAMA = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": LAYERS,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0,
}  # fmt: skip
FALCON = {
    "vocab_size": 32, "hidden_size": 16, "num_hidden_layers": LAYERS, "num_attention_heads": 2,
    "bias": True, "pad_token_id": 0,
}  # fmt: skip
GPT = {"vocab_size": 32, "n_embd": 16, "n_layer": LAYERS, "n_head": 2, "n_positions": 32}
MOE = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
# Of the types whose settings are not LLAMA; a type may stand here in several forms.
SETTINGS: dict[str, dict[str, Any]] = {
    "gpt2": GPT,
    "gpt_bigcode": GPT,
    "gptj": {**GPT, "rotary_dim": 4},
    "codegen": {**GPT, "n_head": 4, "rotary_dim": 4, "n_ctx": 32},
    "gpt_neo": {
        "vocab_size": 32, "hidden_size": 16, "num_layers": LAYERS, "num_heads": 2,
        "max_position_embeddings": 32,
        "attention_types": [[["global"], 1], [["local", "global"], 1]],
    },
    "opt": {
        **LLAMA, "ffn_dim": 12, "word_embed_proj_dim": 16, "max_position_embeddings": 32,
    },
    "falcon": {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 1},
    "falcon one after the other": {**FALCON, "parallel_attn": False, "multi_query": False},
    "gpt_neox": LLAMA,
    "gpt_neox one after the other": {**LLAMA, "use_parallel_residual": False},
    "stablelm": {**LLAMA, "use_parallel_residual": True},
    "stablelm one after the other": {**LLAMA, "use_parallel_residual": False},
    "granite": {**LLAMA, "residual_multiplier": 0.7},
    "mixtral": {**LLAMA, "num_local_experts": 3},
    "olmoe": {**LLAMA, "num_experts": 3, "num_experts_per_tok": 2},
    "qwen2_moe": {**LLAMA, **MOE, "shared_expert_intermediate_size": 8, "mlp_only_layers": [1]},
    "qwen3_moe": {**LLAMA, **MOE, "mlp_only_layers": [1]},
}  # fmt: skip
# The modules of a block whose output goes into the stream as it is.
BRANCHES = {
    "gpt2": ("attn", "mlp"),
    "gpt_bigcode": ("attn", "mlp"),
    "gptj": ("attn", "mlp"),
    "codegen": ("attn", "mlp"),
    "gpt_neo": ("attn", "mlp"),
    "opt": ("self_attn", "fc2"),
    "falcon": ("self_attention", "mlp"),
    "gpt_neox": ("attention", "mlp"),
    "glm4": ("post_self_attn_layernorm", "post_mlp_layernorm"),
    **dict.fromkeys(
        ("olmo2", "olmo3", "exaone4"), ("post_attention_layernorm", "post_feedforward_layernorm")
    ),
}


def write_folder(folder: Path, kind: str, seed: int, dtype: torch.dtype = torch.float32) -> Path:
    """A model of random weights that are large enough for every layer to count."""
    import transformers

    settings = SETTINGS.get(kind, LLAMA)
    config = transformers.AutoConfig.for_model(kind.split()[0], **settings)
    torch.manual_seed(seed)
    module = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    module.to(dtype).save_pretrained(folder)
    return folder


def opened_family(folder: Path, kind: str, names: Sequence[str]) -> dict[str, Checkpoint]:
    return {
        name: open_checkpoint(write_folder(folder / name, kind, seed), name=name)
        for seed, name in enumerate(names)
    }


def loaded(folder: Path) -> Any:
    """By transformers alone."""
    import transformers

    module, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"], info
    assert not info["unexpected_keys"], info
    return module.eval()


def layers_of(module: nn.Module) -> nn.ModuleList:
    found = [part for part in module.modules() if isinstance(part, nn.ModuleList)]
    return found[0]


def scale_outputs_by_hand(kind: str, module: nn.Module, scales: Sequence[float]) -> None:
    """Multiply what the modules of each layer's branches give."""

    def times(scale: float) -> Any:
        def hook(part: nn.Module, args: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (output[0] * scale, *output[1:])
            return output * scale

        return hook

    for layer, scale in zip(layers_of(module), scales, strict=True):
        for name in BRANCHES.get(kind.split()[0], ("self_attn", "mlp")):
            layer.get_submodule(name).register_forward_hook(times(scale))


def scale_inputs_by_hand(layers: nn.ModuleList, scales: Sequence[float]) -> None:
    """Give layers another `forward`, which multiplies the hidden states first."""

    def times(forward: Any, scale: float) -> Any:
        def scaled(*args: Any, hidden_states: Tensor | None = None, **more: Any) -> Any:
            if hidden_states is not None:
                return forward(hidden_states=hidden_states * scale, **more)
            return forward(args[0] * scale, *args[1:], **more)

        return scaled

    for layer, scale in zip(layers, scales, strict=True):
        layer.forward = times(layer.forward, scale)


def logits(module: nn.Module) -> Tensor:
    with torch.no_grad():
        return module(TOKENS, use_cache=False).logits


def text(module: nn.Module, *, use_cache: bool) -> list[int]:
    with torch.no_grad():
        return module.generate(TOKENS, use_cache=use_cache, **GREEDY)[0].tolist()
