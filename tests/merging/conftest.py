from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_states import States, merger_of, recipe_of
from torch import Tensor


@pytest.fixture
def merge() -> Callable[..., dict[str, Tensor]]:
    """Merge state dicts in one call: merge(states, operator, **parameters)."""

    def call(
        states: States, operator: str, sources: Any = None, *, mask_seed: int = 0, **parameters: Any
    ) -> dict[str, Tensor]:
        recipe = recipe_of(states, operator, sources, mask_seed=mask_seed, **parameters)
        return dict(merger_of(states).tensors(recipe))

    return call


@pytest.fixture
def family() -> dict[str, dict[str, Tensor]]:
    """A base and three experts: two layers, tensors outside them, and integers."""
    generator = torch.Generator().manual_seed(3)
    shapes = {
        "embed.weight": (11, 4),
        "layers.0.self_attn.q.weight": (4, 4),
        "layers.0.mlp.up.weight": (6, 4),
        "layers.0.norm.weight": (4,),
        "layers.1.self_attn.q.weight": (4, 4),
        "layers.1.mlp.up.weight": (6, 4),
        "layers.1.norm.weight": (4,),
        "head.weight": (3, 4),
    }
    states = {
        model: {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        for model in ("base", "a", "b", "c")
    }
    for i, state in enumerate(states.values()):
        state["steps"] = torch.tensor([i])
    states["base"]["only_here"] = torch.ones(2)
    return states
