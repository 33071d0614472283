"""The models' tensors on GPUs: copied there once, as far as there is room, and merged from there.

On the CPU the models lie in mapped files, and reading them costs nothing but the reading. A GPU
reads its own memory a hundred times faster than what has to come through the bus: a candidate whose
tensors are copied anew waits for seconds, where merging takes milliseconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import torch
from torch import Tensor


class Shelf:
    """Keeps tensors on devices, of so many bytes at most on each; who comes first stays.

    Every candidate reads all tensors in one order. To keep some of them for good saves their share
    of the copying; to make room for the latest would save nothing. Nobody may change what is kept.

    budgets: bytes of each device; what is not named keeps nothing.
    """

    def __init__(self, budgets: Mapping[torch.device, int] | None = None) -> None:
        self.budgets = dict(budgets or {})
        self.used: Counter[torch.device] = Counter()
        self._tensors: dict[tuple[str, str, torch.device], Tensor] = {}

    def tensor(
        self, model: str, name: str, device: torch.device, read: Callable[[], Tensor]
    ) -> tuple[Tensor, bool]:
        """A model's tensor on a device, and whether it is kept there; read: gives it on the CPU."""
        key = (model, name, device)
        if (kept := self._tensors.get(key)) is not None:
            return kept, True
        copied = read().to(device)
        if self.used[device] + copied.nbytes > self.budgets.get(device, 0):
            return copied, False
        self._tensors[key] = copied
        self.used[device] += copied.nbytes
        return copied, True

    def close(self) -> dict[torch.device, int]:
        """Keep nothing any more; returns how much was kept on each device."""
        kept = {device: used for device, used in self.used.items() if used}
        self._tensors.clear()
        self.used.clear()
        self.budgets = {}
        return kept
