"""Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685), written in PEFT's format."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from evomerge.files import fsync, write_text

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class LowRank(nn.Module):
    """A frozen linear layer plus scale * B A.

    Args:
        linear: weight of shape (out, in), without a bias.
        rank: rows of A, columns of B.
        scale: alpha / rank.
        generator: what A is drawn from; B starts at zero, so nothing changes at first.
    """

    def __init__(
        self, linear: nn.Linear, rank: int, scale: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.scale = scale
        bound = 1 / math.sqrt(linear.in_features)  # as PEFT: Kaiming's with a = sqrt(5)
        drawn = torch.rand((rank, linear.in_features), generator=generator)
        self.a = nn.Parameter((2 * drawn - 1) * bound)
        self.b = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        low = nn.functional.linear(nn.functional.linear(inputs, self.a), self.b)
        return self.linear(inputs) + self.scale * low  # type: ignore[no-any-return]


def add_adapter(model: LlamaForCausalLM, rank: int, alpha: float, source: torch.Generator) -> None:
    """Freeze the model and wrap every projection of its layers."""
    model.requires_grad_(False)
    for layer in model.model.layers:
        for block in (layer.self_attn, layer.mlp):
            for name in PROJECTIONS:
                if (linear := getattr(block, name, None)) is not None:
                    setattr(block, name, LowRank(linear, rank, alpha / rank, source))


def write_adapter(
    folder: Path, model: LlamaForCausalLM, *, rank: int, alpha: float, base: str, card: str
) -> None:
    """Write an adapter that PEFT opens; factors in float32.

    base: what the adapter's settings name as the model that it changes.
    """
    folder.mkdir(parents=True)
    tensors = {}
    for name, module in model.named_modules():
        if isinstance(module, LowRank):
            stem = f"base_model.model.{name}"
            tensors[f"{stem}.lora_A.weight"] = module.a.detach().contiguous()
            tensors[f"{stem}.lora_B.weight"] = module.b.detach().contiguous()
    settings = {
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": sorted(PROJECTIONS),
        "task_type": "CAUSAL_LM",
    }
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    write_text(folder / "adapter_config.json", json.dumps(settings, indent=2) + "\n")
    write_text(folder / "README.md", card)
    for path in (*folder.iterdir(), folder):
        fsync(path)
