"""A model seen through a change: other names, or tensors that are computed when asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from evomerge.checkpoints.checksums import Survey
from evomerge.checkpoints.open import Checkpoint
from evomerge.recipe import canonical_json


@dataclass(frozen=True)
class Made:
    """A tensor that is computed whenever it is asked for; shape and dtype are known before."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], torch.Tensor]


class Derived(Checkpoint):
    """A checkpoint made from another one, tensor by tensor.

    Args:
        origin: the model that is changed; name, path and files are its own.
        tensors: by the new name, the origin's name of a tensor, or one that is made.
        config: the changed config.json; the origin's by default.
        change: all that the change depends on, as JSON; with the origin's checksum it gives this
            one's.
    """

    def __init__(
        self,
        origin: Checkpoint,
        tensors: Mapping[str, str | Made],
        *,
        config: Mapping[str, Any] | None = None,
        change: Any,
    ) -> None:
        super().__init__(
            origin.name,
            {},
            path=origin.path,
            config=origin.config if config is None else config,
            files=origin.files,
        )
        self.origin = origin
        self.names = tuple(sorted(tensors))
        self._tensors = dict(tensors)
        self._change = change

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without computing it."""
        found = self._source(name)
        return self.origin.shape(found) if isinstance(found, str) else found.shape

    def dtype(self, name: str) -> torch.dtype:
        """A tensor's dtype, without computing it."""
        found = self._source(name)
        return self.origin.dtype(found) if isinstance(found, str) else found.dtype

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor: the origin's own, or computed afresh."""
        found = self._source(name)
        return self.origin.tensor(found) if isinstance(found, str) else found.make()

    def survey(self, progress: Callable[[int, int], None] | None = None) -> Survey:
        """The origin's survey, with a checksum that tells the change."""
        if self._survey is None:
            found = self.origin.survey(progress)
            content = canonical_json([found.sha256, self._change])
            self._survey = Survey(hashlib.sha256(content.encode()).hexdigest(), found.non_finite)
        return self._survey

    def close(self) -> None:
        """Let go of the origin's mapped files."""
        self.origin.close()

    def _source(self, name: str) -> str | Made:
        found = self._tensors.get(name)
        if found is None:
            self._missing(name)
        return found
