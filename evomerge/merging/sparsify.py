"""Which entries of a task vector take part: limits that a pass over memory compares with."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from evomerge.merging.order import Magnitudes

HALF = 2**15  # draws have 2^16 levels: a density is exact to 1.5e-5, at two bytes an entry

Limits = tuple[float, float]
EVERYTHING: Limits = (0.0, math.inf)  # magnitudes
NOTHING: Limits = (math.inf, math.inf)


def largest(order: Magnitudes, density: float) -> Limits:
    """The magnitudes of the k = max(1, int(density n)) largest, and of all that equal the k-th.

    The order may be that of a larger whole. A density of 0 keeps nothing.
    """
    if density >= 1 or not len(order):
        return EVERYTHING
    if density <= 0:
        return NOTHING
    kept = max(1, int(density * len(order)))
    return order.at(len(order) - kept), math.inf


def without_outliers(order: Magnitudes, density: float, gamma: float) -> Limits:
    """The magnitudes of the int(density n) entries below the int(gamma n) largest.

    Fewer outliers are dropped where the density could not be had otherwise.
    """
    if density >= 1:
        return EVERYTHING
    size = len(order)
    kept, dropped = int(density * size), int(gamma * size)
    if kept <= 0:
        return NOTHING
    first = max(0, size - kept - dropped)
    return order.at(first), order.at(first + kept - 1)


def level_of_density(density: float) -> Limits:
    """The draws below the first number are as many as the density says."""
    return float(round(min(max(density, 0.0), 1.0) * 2 * HALF) - HALF), 0.0


def levels_of_ranks(density: float, epsilon: float) -> Limits:
    """The level of the lowest rank, -2^15, and what each rank adds: p = d - e + 2 e rank."""
    if density >= 1:
        return float(HALF), 0.0
    if density <= 0:
        return float(-HALF), 0.0
    lowest = (density - epsilon) * 2 * HALF - HALF
    slope = 2 * epsilon * 2 * HALF / (2 * HALF - 1)
    return lowest + slope * HALF, slope


def draw_into(mask_seed: int, tensor: str, source: str, out: Tensor) -> None:
    """One uniform draw for each entry, a function of its key alone: ~ U{-2^15 .. 2^15 - 1}.

    out: (numel,) int16, on the CPU.
    """
    import torch

    key = hashlib.sha256(f"{mask_seed}\0{tensor}\0{source}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "little") >> 1)
    torch.randint(-HALF, HALF, out.shape, generator=generator, out=out)
