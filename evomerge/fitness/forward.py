"""What both kinds of forward passes need: the clock, and where the model is."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Literal

import torch
from torch import Tensor, nn

Tokens = tuple[int, ...]


class ForwardClock:
    """Adds up the seconds that are spent inside the model: `with clock: module(...)`."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._start = 0.0

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.seconds += time.perf_counter() - self._start


def padded(rows: Sequence[Tokens], side: Literal["left", "right"] = "right") -> Tensor:
    """Rows of tokens as one tensor of shape (rows, longest), each padded with a token of its own.

    Nobody attends to padding; but where one token's embedding is NaN, so is 0 times its value, and
    a row that is padded with it would fail for a token that does not stand in it.
    """
    width = max(map(len, rows))
    filled = torch.empty((len(rows), width), dtype=torch.long)
    for row, tokens in enumerate(rows):
        missing = width - len(tokens)
        own = torch.tensor(tokens)
        fill = own[:1] if side == "left" else own[-1:]
        parts = [own, fill.expand(missing)]
        filled[row] = torch.cat(parts if side == "right" else parts[::-1])
    return filled


def device_of(module: nn.Module) -> torch.device:
    """Where the model's inputs belong."""
    parameter = next(module.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device
