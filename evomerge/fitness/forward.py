"""What both kinds of forward passes need: the clock, and where the model is."""

from __future__ import annotations

import time
from types import TracebackType

import torch
from torch import nn

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


def device_of(module: nn.Module) -> torch.device:
    """Where the model's inputs belong."""
    parameter = next(module.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device
