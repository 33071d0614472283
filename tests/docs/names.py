"""What Python blocks take for granted: the reader's own networks, data and functions."""

from __future__ import annotations

from typing import Any


def names_for(page: str) -> dict[str, Any]:
    """The names that a page's Python blocks use and do not define."""
    if page in ("README.md", "python.md"):
        return _digits()
    if page == "spaces.md":
        return _vectors()
    return {}


def _digits() -> dict[str, Any]:
    """A small network in three versions, and what scores it."""
    import torch
    from torch import Tensor, nn

    generator = torch.Generator().manual_seed(0)
    questions = torch.randn(40, 8, generator=generator)
    answers = torch.randint(0, 3, (40,), generator=generator)

    def make_network() -> nn.Module:
        return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))

    def made(seed: int) -> nn.Module:
        network = make_network()
        drawn = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for tensor in network.parameters():
                tensor.copy_(torch.randn(tensor.shape, generator=drawn))
        return network

    def correct(network: nn.Module) -> Tensor:
        return (network(questions).argmax(1) == answers).float()

    base, low, high = made(0), made(1), made(2)
    return {
        "base": base,
        "low": low,
        "high": high,
        "make_network": make_network,
        "correct": correct,
    }


def _vectors() -> dict[str, Any]:
    """Two parameter vectors, and which items a vector gets right."""
    import numpy as np

    generator = np.random.default_rng(0)
    first, second = (generator.normal(size=12).astype(np.float32) for _ in range(2))
    items = generator.normal(size=(20, 12))

    def right(vector: Any) -> Any:
        return (items @ np.asarray(vector) > 0).astype(np.float32)

    return {"first": first, "second": second, "right": right}
