"""Tiny language models with a tokenizer of words, and texts for them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from token_models import write_folder
from torch import nn

from evomerge.checkpoints.anatomy import anatomy_of
from evomerge.checkpoints.open import Checkpoint, open_checkpoint
from evomerge.merging.calibration import Calibration, Collected
from evomerge.merging.materialise import Merger
from evomerge.recipe import Recipe

WORDS = {"<unk>": 0, "<s>": 1, **{f"w{i}": i for i in range(2, 12)}}


def texts(count: int, seed: int = 0, longest: int = 9) -> tuple[str, ...]:
    """Texts of some words, of different lengths."""
    draw = random.Random(seed)
    lengths = [draw.randint(2, longest) for _ in range(count)]
    return tuple(" ".join(f"w{draw.randint(2, 11)}" for _ in range(n)) for n in lengths)


def family(folder: Path, names: Sequence[str], **settings: Any) -> dict[str, Checkpoint]:
    """Opened models of random weights, all large enough to count."""
    return {
        name: open_checkpoint(write_folder(folder / name, WORDS, seed=seed, **settings), name=name)
        for seed, name in enumerate(names)
    }


def merger_of(checkpoints: dict[str, Checkpoint], calibration: Calibration, **more: Any) -> Merger:
    statistics = Collected(calibration, checkpoints, "base")
    anatomy = anatomy_of(checkpoints["base"])
    return Merger(checkpoints, anatomy, "base", 2**24, statistics=statistics, **more)


def recipe_of(checkpoints: Any, operator: str, **parameters: Any) -> Recipe:
    models = {name: name for name in checkpoints}
    default = {"operator": operator, "parameters": parameters}
    return Recipe.model_validate({"base": "base", "models": models, "default": default})


def module_in(folder: Path) -> nn.Module:
    """What transformers loads, in float64, where sums are exact enough to compare with."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()


def ids_of(text: str) -> torch.Tensor:
    """What the tokenizer of words makes of a text."""
    return torch.tensor([WORDS[word] for word in text.split()])


def inputs_of(module: nn.Module, all_ids: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """What went into each linear layer, all tokens of all texts together, shape (tokens, in)."""
    seen: dict[str, list[torch.Tensor]] = {}
    handles = [
        layer.register_forward_hook(
            lambda _, args, __, name=name: seen.setdefault(name, []).append(
                args[0].detach().flatten(0, -2)
            )
        )
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear)
    ]
    with torch.no_grad():
        for ids in all_ids:
            module(input_ids=ids[None])
    for handle in handles:
        handle.remove()
    return {name: torch.cat(parts) for name, parts in seen.items()}
