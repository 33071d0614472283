"""The passes of passes.py in torch, chunk by chunk: for GPUs, and where numba is missing.

On a CPU this is several times slower than the kernels: each step reads and writes memory again. On
a GPU each step costs a launch, which takes longer than the arithmetic of most tensors: so sources
are looked at together, and nothing waits for what the GPU has found.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from evomerge.merging.operator import parts_of
from evomerge.merging.sparsify import HALF

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from evomerge.merging.passes import Agreement, Selection
    from evomerge.merging.reads import Models


def weighted_sum(models: Models, weights: NDArray[np.floating[Any]], out: Tensor) -> None:
    """See `passes.weighted_sum`."""
    sources = models.sources
    for segment, parts in _segments(models):
        first, *others = weights[:, segment].tolist()
        for part in parts:
            merged = sources[0][part].float() * first
            for source, weight in zip(sources[1:], others, strict=True):
                merged.add_(source[part], alpha=weight)
            out[part].copy_(merged)


def add_task_vectors(
    models: Models, selection: Selection, agreement: Agreement, out: Tensor
) -> None:
    """See `passes.add_task_vectors`."""
    import torch

    base, chosen = cast("Tensor", models.base), _Chosen.of(models, selection)
    counted = chosen.factors.new_tensor(agreement.counted.tolist())[:, None]
    for segment, parts in _segments(models):
        fill: Tensor | float = 1.0
        held = None
        if parts and agreement.zero_sum == "majority" and agreement.consensus != "sum":
            tally: Tensor | int = 0
            for part in parts:
                held = chosen.task_vectors(segment, part)
                tally = held.sum(0).sign_().sum(dtype=torch.int64) + tally
            fill = cast("Tensor", tally).sign().to(torch.float32)
        for part in parts:
            again = held is None or len(parts) > 1
            taus = chosen.task_vectors(segment, part) if again else cast("Tensor", held)
            sums = taus.sum(0)
            if agreement.consensus != "sum":
                signs = sums.sign()
                signs.masked_fill_(signs == 0, fill)
                agreeing = taus.mul_(signs).clamp_(min=0)  # turned so that they are positive
                sums = agreeing.sum(0).mul_(signs)
                if agreement.consensus == "agree_normalised":
                    divisor = agreeing.gt(0).mul(counted).sum(0)
                    sums /= divisor.masked_fill_(divisor == 0, 1.0)
            # Not in place: float32 entries are the model's own.
            out[part].copy_(base[part].float().add(sums, alpha=agreement.scale))


def kept_mass(
    models: Models, selection: Selection
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """See `passes.kept_mass`."""
    import torch

    chosen = _Chosen.of(models, selection)
    masses = torch.zeros(
        (2, len(models.segments), len(models.sources)),
        dtype=torch.float64,
        device="cpu" if chosen.factors.device.type == "mps" else chosen.factors.device,
    )
    for segment, parts in _segments(models):
        for part in parts:
            taus = chosen.differences(part)
            masses[0, segment] += taus.abs().sum(1).to(masses.device)
            taus = chosen.sparse(taus, segment, part)
            masses[1, segment] += taus.abs().sum(1).to(masses.device)
    before, after = masses.transpose(1, 2).cpu().numpy()
    return before, after


@dataclass
class _Chosen:
    """What is chosen of task vectors, with its numbers where the models are.

    limits: (2, segments, sources, 1); factors: (segments, sources, 1).
    """

    models: Models
    selection: Selection
    limits: Tensor
    factors: Tensor

    @classmethod
    def of(cls, models: Models, selection: Selection) -> _Chosen:
        import torch

        device = models.sources[0].device
        numbers = np.concatenate([selection.limits.transpose(2, 1, 0), selection.factors.T[None]])
        told = torch.from_numpy(numbers.astype(np.float32)).to(device)[..., None]
        return cls(models, selection, told[:2], told[2])

    def task_vectors(self, segment: int, part: slice) -> Tensor:
        """The weighted, sparsified task vectors of a part, (sources, entries)."""
        taus = self.sparse(self.differences(part), segment, part)
        if self.selection.divide:
            for k, tau in enumerate(taus):
                levels = self._levels(k, segment, part)
                tau /= levels.add_(HALF).div_(2 * HALF).clamp_(1e-12)
        return taus.mul_(self.factors[segment])

    def differences(self, part: slice) -> Tensor:
        """The task vectors of a part as they are."""
        import torch

        models = self.models
        origin = cast("Tensor", models.base)[part].float()
        taus = origin.new_empty((len(models.sources), len(origin)))
        for source, tau in zip(models.sources, taus, strict=True):
            torch.sub(source[part].float(), origin, out=tau)
        return taus

    def sparse(self, taus: Tensor, segment: int, part: slice) -> Tensor:
        """Zeros in place of what is not chosen; may change its argument."""
        import torch

        selection, (low, high) = self.selection, self.limits[:, segment]
        if selection.mode == "all":
            return taus
        if selection.mode == "at_least":
            kept = taus.abs().ge(low)
        elif selection.mode == "magnitude":
            sizes = taus.abs()
            kept = sizes.ge(low).logical_and_(sizes.le(high))
        else:
            kept = torch.empty_like(taus, dtype=torch.bool)
            for k, (draws, row) in enumerate(zip(self.models.draws, kept, strict=True)):
                drawn = selection.mode == "draw"
                level = low[k] if drawn else self._levels(k, segment, part)
                torch.lt(draws[part].to(row.device), level, out=row)
        return taus.masked_fill_(kept.logical_not_(), 0)

    def _levels(self, k: int, segment: int, part: slice) -> Tensor:
        first, slope = self.selection.limits[k, segment].tolist()
        ranks = self.models.ranks[k][part].to(self.factors.device)  # they may lie in a file
        levels: Tensor = ranks.float().mul_(slope).add_(first)
        return levels


def _segments(models: Models) -> Iterator[tuple[int, list[slice]]]:
    """Each segment's number and parts."""
    for number, segment in enumerate(models.segments):
        yield number, list(parts_of(segment, len(models.sources), like=models.sources[0]))
