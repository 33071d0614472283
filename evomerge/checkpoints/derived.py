"""A model seen through a change: other names, or tensors that are computed when asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
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
        name: what this one is called; the origin's name by default.
        path: where tokenizer and small files are; the origin's path by default.
        config: the changed config.json; the origin's by default.
        beside: what else is read to make tensors; what it holds, and a NaN in it, counts.
        small_files: tokenizer and the like, by name, a path or a text; by default the origin's,
            or those in `path`.
        change: all that the change depends on, as JSON; with the checksums of what is read it
            gives this one's.
    """

    def __init__(
        self,
        origin: Checkpoint,
        tensors: Mapping[str, str | Made],
        *,
        name: str | None = None,
        path: Path | None = None,
        config: Mapping[str, Any] | None = None,
        beside: Checkpoint | None = None,
        small_files: Mapping[str, Path | str] | None = None,
        change: Any,
    ) -> None:
        super().__init__(
            origin.name if name is None else name,
            {},
            path=origin.path if path is None else path,
            config=origin.config if config is None else config,
            files=origin.files + (() if beside is None else beside.files),
        )
        self.origin = origin
        self._beside = beside
        if small_files is None and path is None and isinstance(origin, Derived):
            small_files = origin.small_files
        self.small_files: dict[str, Path | str] | None
        self.small_files = None if small_files is None else dict(small_files)
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

    def stretches(self, name: str, starts: Sequence[int], length: int) -> torch.Tensor:
        """Some of a tensor's entries; one that is made is made whole for them."""
        found = self._source(name)
        if isinstance(found, str):
            return self.origin.stretches(found, starts, length)
        flat = found.make().reshape(-1)
        return torch.cat([flat[start : start + length] for start in starts])

    def is_made(self, name: str) -> bool:
        """Whether a tensor is computed, here or by the origin."""
        found = self._source(name)
        return self.origin.is_made(found) if isinstance(found, str) else True

    def own_name(self, name: str) -> str | None:
        """The origin's name of a tensor; None where it is made here."""
        found = self._source(name)
        return found if isinstance(found, str) else None

    def stored_at(self, name: str) -> Hashable:
        """Where the origin stores a tensor; one that is made is nobody else's."""
        found = self._source(name)
        return self.origin.stored_at(found) if isinstance(found, str) else (id(self), name)

    def survey(self, progress: Callable[[int, int], None] | None = None) -> Survey:
        """The surveys of what is read, with a checksum that tells the change."""
        if self._survey is None:
            read = [self.origin.survey(progress)]
            if self._beside is not None:
                read.append(self._beside.survey(progress))
            content = canonical_json([*(found.sha256 for found in read), self._change])
            non_finite = tuple(name for found in read for name in found.non_finite)
            self._survey = Survey(hashlib.sha256(content.encode()).hexdigest(), non_finite)
        return self._survey

    def non_finite(self, progress: Callable[[int, int], None] | None = None) -> tuple[str, ...]:
        """The tensors with a NaN or an Inf of all that is read."""
        found = self.origin.non_finite(progress)
        return found if self._beside is None else found + self._beside.non_finite(progress)

    def close(self) -> None:
        """Let go of the mapped files."""
        self.origin.close()
        if self._beside is not None:
            self._beside.close()

    def _source(self, name: str) -> str | Made:
        found = self._tensors.get(name)
        if found is None:
            self._missing(name)
        return found
