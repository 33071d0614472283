"""One reading of a model that yields its checksum and whether all its numbers are finite."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from evomerge.checkpoints.headers import DTYPE_NAMES, StoredFile
from evomerge.files import cache_folder, write_text
from evomerge.recipe import canonical_json

if TYPE_CHECKING:
    from evomerge.checkpoints.open import Checkpoint

_CHUNK = 1 << 22  # elements; small enough to be hashed out of the cache it was checked in
_FORMAT = 1


@dataclass(frozen=True)
class Survey:
    """What one reading found; `non_finite` are the tensors with a NaN or an Inf."""

    sha256: str
    non_finite: tuple[str, ...]


def survey(checkpoint: Checkpoint, progress: Callable[[int, int], None] | None = None) -> Survey:
    """Read a model once, or find the result of an earlier reading of the same files."""
    cached = _Cached(checkpoint.files)
    known = cached.load()
    if known is not None:
        return known
    found = _read(checkpoint, progress)
    cached.save(found)
    return found


def non_finite(
    checkpoint: Checkpoint, progress: Callable[[int, int], None] | None = None
) -> tuple[str, ...]:
    """The tensors with a NaN or an Inf, from a reading that computes no checksum: far faster."""
    known = _Cached(checkpoint.files).load()
    if known is not None:
        return known.non_finite
    found = []
    done, total = 0, checkpoint.size_bytes
    for name in checkpoint.names:
        tensor = checkpoint.tensor(name)
        if not all(map(_finite, torch.split(tensor.contiguous().view(-1), _CHUNK))):
            found.append(name)
        done += tensor.nbytes
        if progress is not None:
            progress(done, total)
    return tuple(found)


def _read(checkpoint: Checkpoint, progress: Callable[[int, int], None] | None) -> Survey:
    digest = hashlib.sha256()
    non_finite = []
    done, total = 0, checkpoint.size_bytes
    for name in checkpoint.names:
        tensor = checkpoint.tensor(name)
        dtype = DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype))
        # The length in front of the text keeps two models from meeting in one byte string.
        head = canonical_json([name, dtype, list(tensor.shape)]).encode()
        digest.update(len(head).to_bytes(8, "little") + head)
        finite = True
        for chunk in torch.split(tensor.contiguous().view(-1), _CHUNK):
            finite = finite and _finite(chunk)
            digest.update(chunk.view(torch.uint8).numpy().data)
            done += chunk.numel() * chunk.element_size()
            if progress is not None:
                progress(done, total)
        if not finite:
            non_finite.append(name)
    return Survey(digest.hexdigest(), tuple(non_finite))


def _finite(chunk: torch.Tensor) -> bool:
    if chunk.is_complex():
        chunk = torch.view_as_real(chunk)
    elif not chunk.is_floating_point() or not chunk.numel():
        return True
    if chunk.element_size() == 1:
        chunk = chunk.float()
    # NaN and Inf both survive a minimum and a maximum: one pass and nothing allocated.
    low, high = torch.aminmax(chunk)
    return bool(low.isfinite() & high.isfinite())


class _Cached:
    """The stored survey of some files, valid while none of them changes.

    A file each, so that processes that finish at once do not lose each other's work. A cache that
    cannot be read or written costs a reading, never an error.
    """

    def __init__(self, files: tuple[StoredFile, ...]) -> None:
        self._state = [asdict(file) | {"path": str(file.path)} for file in files]
        paths = canonical_json(sorted(str(file.path) for file in files))
        name = hashlib.sha256(paths.encode()).hexdigest()[:32] + ".json"
        self._path: Path | None = cache_folder() / "checksums" / name if files else None

    def load(self) -> Survey | None:
        if self._path is None:
            return None
        try:
            data = json.loads(self._path.read_text(encoding="utf-8"))
            if data["format"] != _FORMAT or data["files"] != self._state:
                return None
            return Survey(str(data["sha256"]), tuple(data["non_finite"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def save(self, found: Survey) -> None:
        if self._path is None:
            return
        data = asdict(found) | {"format": _FORMAT, "files": self._state}
        try:
            write_text(self._path, json.dumps(data, indent=1))
        except OSError:
            return
