"""Statistics of no data, with which operators can be tried out on tensors of no model."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import torch
from torch import Tensor

from evomerge.checkpoints.anatomy import Anatomy
from evomerge.checkpoints.open import Checkpoint
from evomerge.merging.calibration.in_turn import Room
from evomerge.merging.operators.regmean import mean_of, regression


class StandIn:
    """Random statistics that are possible ones; a tensor's hang on its name, model and kind."""

    digest = "stand-in"

    def __init__(self, checkpoints: Mapping[str, Checkpoint]) -> None:
        self._checkpoints = checkpoints

    def of(self, kind: str, model: str) -> Mapping[str, Tensor]:
        """As of `Statistics`; for `gram` and `mean`, matrices count as linear layers' weights."""
        checkpoint = self._checkpoints[model]
        found = {}
        for name in checkpoint.names:
            shape = checkpoint.shape(name)
            is_fisher = kind.startswith("fisher")
            # Gram matrices and means are of the same inputs; gradients are of other labels.
            of = f"{kind}/{model}/{name}" if is_fisher else f"{model}/{name}"
            draw = torch.Generator().manual_seed(zlib.crc32(of.encode()))
            if is_fisher:
                found[name] = torch.randn(shape, generator=draw).square()
            elif len(shape) == 2:
                x = torch.randn(2 * shape[1], shape[1], generator=draw)
                found[name] = x.T @ x / len(x) if kind == "gram" else x.abs().mean(dim=0)
        return found

    def in_turn(
        self, anatomy: Anatomy, sources: tuple[str, ...], alpha: float, room: Room
    ) -> Mapping[str, Tensor]:
        """As of `Statistics`, from `gram` alone."""
        del anatomy, room
        grams = [self.of("gram", source) for source in sources]
        merged = {}
        for name in self._checkpoints[sources[0]].names:
            tensors = [self._checkpoints[source].tensor(name) for source in sources]
            known = [gram[name] for gram in grams if name in gram]
            made = regression(tensors, known).merged(alpha) if known else mean_of(tensors)
            merged[name] = made
        return merged

    def norm(self, kind: str, model: str) -> float:
        """As of `Statistics`."""
        return float(sum(float(t.norm()) ** 2 for t in self.of(kind, model).values()) ** 0.5)
