"""Which entries of a task vector take part: the largest, or random ones."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    Magnitudes = NDArray[np.float32]

HALF = 2**15  # draws have 2^16 levels: a density is exact to 1.5e-5, at two bytes an entry


def ascending_magnitudes(values: Tensor) -> Magnitudes:
    """|values| in ascending order, on the CPU; numpy sorts floats several times faster."""
    import numpy as np

    magnitudes: Magnitudes = values.abs().float().cpu().numpy().ravel()
    return np.sort(magnitudes)


def trim_into(values: Tensor, magnitudes: Magnitudes, density: float, out: Tensor) -> None:
    """Keep the k = max(1, int(density n)) largest of n magnitudes, and all that equal the k-th.

    `magnitudes` may be those of a larger whole that `values` is a part of. A density of 0 keeps
    nothing.
    """
    import numpy as np
    import torch

    if density <= 0:
        out.zero_()
        return
    kept = max(1, int(density * len(magnitudes)))
    threshold = magnitudes[len(magnitudes) - kept]
    below = float(np.nextafter(threshold, np.float32(0)))  # x > below is x >= threshold
    torch.hardshrink(values, below, out=out)


def draws(mask_seed: int, tensor: str, source: str, numel: int) -> Tensor:
    """One uniform draw for each entry, a function of its key alone: ~ U{-2^15 .. 2^15 - 1}."""
    import torch

    key = hashlib.sha256(f"{mask_seed}\0{tensor}\0{source}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "little") >> 1)
    return torch.randint(-HALF, HALF, (numel,), dtype=torch.int16, generator=generator)


def drop_into(values: Tensor, draw: Tensor, density: float, out: Tensor) -> None:
    """Keep each entry whose draw is below the density's level; density is below 1."""
    import torch

    level = min(round(density * 2 * HALF) - HALF, HALF - 1)
    torch.lt(draw, level, out=out)  # into floats: a boolean costs ten times as much on a CPU
    out.mul_(values)
