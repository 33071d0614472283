"""The models' tensors on a GPU: copied there once, as far as there is room, and merged from there.

On the CPU the models lie in mapped files, and reading them costs nothing but the reading. A GPU
reads its own memory a hundred times faster than what has to come through the bus: a candidate whose
tensors are copied anew waits for seconds, where merging takes milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Shelf:
    """Keeps tensors on devices, of at most `budget_bytes` together; who comes first stays.

    Every candidate reads all tensors in one order. To keep some of them for good saves their share
    of the copying; to make room for the latest would save nothing. Nobody may change what is kept.
    """

    def __init__(self, budget_bytes: int = 0) -> None:
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        self._tensors: dict[tuple[str, str, torch.device], Tensor] = {}

    def tensor(
        self, model: str, name: str, device: torch.device, read: Callable[[], Tensor]
    ) -> tuple[Tensor, bool]:
        """A model's tensor on a device, and whether it is kept there; read: gives it on the CPU."""
        key = (model, name, device)
        if (kept := self._tensors.get(key)) is not None:
            return kept, True
        copied = read().to(device)
        if self.used_bytes + copied.nbytes > self.budget_bytes:
            return copied, False
        self._tensors[key] = copied
        self.used_bytes += copied.nbytes
        return copied, True

    def close(self) -> bool:
        """Keep nothing any more; whether there was anything."""
        had = bool(self._tensors)
        self._tensors.clear()
        self.budget_bytes = self.used_bytes = 0
        return had
