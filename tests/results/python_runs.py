"""Runs of a fraction of a second: vectors are merged, and a function of Python's scores them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import evomerge
from evomerge.experiment import run as runs

NUM_ITEMS = 200
_GENERATOR = torch.Generator().manual_seed(7)
_QUESTIONS = {name: torch.randn(NUM_ITEMS, 12, generator=_GENERATOR) for name in ("left", "right")}
_WANTED = {name: torch.randn(12, generator=_GENERATOR) for name in ("left", "right")}


def models() -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """A base of noise, and an expert that is near what one half of the questions want."""
    generator = torch.Generator().manual_seed(1)
    base = {"layers.0.weight": 0.1 * torch.randn(12, generator=generator)}
    experts = {name: {"layers.0.weight": wanted.clone()} for name, wanted in _WANTED.items()}
    return base, experts


def answers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Item by item, whether the sign is right."""
    weight = state["layers.0.weight"].float()
    return {
        name: ((questions @ weight > 0) == (questions @ _WANTED[name] > 0)).float()
        for name, questions in _QUESTIONS.items()
    }


def mean(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """One objective of all items."""
    return {"right": torch.cat(list(answers(state).values()))}


def errors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Less is better."""
    return {"right": 1 - mean(state)["right"]}


def search(out: Path, fitness: Any = mean, **changes: Any) -> evomerge.Run:
    """A small search, without pictures."""
    base, experts = models()
    arguments: dict[str, Any] = {
        "searcher": {"kind": "random", "population": 6},
        "budget": 24,
        "pool": {"workers": 0},
        "split": {"search": 60, "fresh": 20, "holdout": 100},
        **changes,
    }
    drawn, runs.write_pictures = runs.write_pictures, lambda *_: []
    try:
        return evomerge.search(experts, base, fitness=fitness, out=out, **arguments)
    finally:
        runs.write_pictures = drawn
