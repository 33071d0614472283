"""Safetensors files of a known layout, filled tensor by tensor: none waits in memory for others."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from evomerge.checkpoints.headers import DTYPE_NAMES
from evomerge.checkpoints.open import Checkpoint
from evomerge.errors import ModelError, Problem, nearest
from evomerge.failpoints import failpoint

Layout = Mapping[str, tuple[tuple[int, ...], torch.dtype]]  # shape and dtype by name, in order


def layout_of(checkpoint: Checkpoint, dtype: torch.dtype | None = None) -> Layout:
    """A model's own layout, with its floating tensors in another dtype if one is given."""
    layout = {}
    for name in checkpoint.names:
        stored = checkpoint.dtype(name)
        cast = dtype is not None and stored.is_floating_point
        layout[name] = (checkpoint.shape(name), dtype if cast and dtype else stored)
    return layout


def size_bytes(layout: Layout) -> int:
    """What the tensors take."""
    return sum(_size(shape, dtype) for shape, dtype in layout.values())


def main_dtype(layout: Layout) -> torch.dtype | None:
    """The floating dtype of most of the bytes."""
    sizes: Counter[torch.dtype] = Counter()
    for shape, dtype in layout.values():
        if dtype.is_floating_point:
            sizes[dtype] += _size(shape, dtype)
    common = sizes.most_common(1)
    return common[0][0] if common else None


@dataclass
class _Shard:
    """A file that is being filled; `starts` are the places of its tensors."""

    path: Path
    starts: dict[str, int]
    missing: set[str]


class ShardWriter:
    """Writes tensors to their places in the shards of a folder, in any order.

    Args:
        folder: takes the files.
        layout: of all tensors; its order decides which of them share a shard.
        max_bytes: of a shard; a larger tensor has one of its own.

    Raises:
        ModelError: a dtype has no place in a safetensors file.
    """

    def __init__(self, folder: Path, layout: Layout, *, max_bytes: float = math.inf) -> None:
        for name, (_, dtype) in layout.items():
            if dtype not in DTYPE_NAMES:
                raise ModelError(Problem(f"tensor {name!r}", f"{dtype} cannot be stored"))
        self._folder, self._layout = folder, layout
        parts = list(_parts(layout, max_bytes))
        self._shards = [
            self._started(_file_name(number, len(parts)), names)
            for number, names in enumerate(parts, start=1)
        ]
        self._shard_of = {name: shard for shard in self._shards for name in shard.starts}

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Write a tensor, cast to the layout's dtype; the file is safe once it is whole.

        Raises:
            ModelError: the layout has no such tensor, it has another shape, or was given before.
        """
        where = f"tensor {name!r}"
        if name not in self._layout:
            hint = nearest(name, self._layout)
            raise ModelError(Problem(where, "is not one of those that were to be written", hint))
        shape, dtype = self._layout[name]
        if tuple(tensor.shape) != shape:
            what = f"expected shape {list(shape)}, got {list(tensor.shape)}"
            raise ModelError(Problem(where, what))
        shard = self._shard_of[name]
        if name not in shard.missing:
            raise ModelError(Problem(where, "was given twice"))
        shard.missing.remove(name)
        data = tensor.detach().to(dtype).cpu().contiguous().view(-1).view(torch.uint8)
        with shard.path.open("r+b") as stream:
            stream.seek(shard.starts[name])
            stream.write(data.numpy().data)
            if not shard.missing:
                stream.flush()
                os.fsync(stream.fileno())
        if not shard.missing:
            failpoint("export.shard")

    def finish(self) -> dict[str, Any] | None:
        """The index, if there are several files.

        Raises:
            ModelError: a tensor of the layout was never given.
        """
        missing = [name for shard in self._shards for name in sorted(shard.missing)]
        if missing:
            what = f"was never given ({len(missing)} in all)"
            raise ModelError(Problem(f"tensor {missing[0]!r}", what))
        if len(self._shards) == 1:
            return None
        weight_map = {name: shard.path.name for name, shard in self._shard_of.items()}
        metadata = {"total_size": size_bytes(self._layout)}
        return {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}

    def _started(self, file_name: str, names: list[str]) -> _Shard:
        """A file with its header, as long as it will be."""
        # Wide dtypes first, so that every tensor stays aligned, as safetensors' own writer does.
        names.sort(key=lambda name: (-self._layout[name][1].itemsize, name))
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        starts, end = {}, 0
        for name in names:
            shape, dtype = self._layout[name]
            start, end = end, end + _size(shape, dtype)
            starts[name] = start
            header[name] = {
                "dtype": DTYPE_NAMES[dtype],
                "shape": list(shape),
                "data_offsets": [start, end],
            }
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        path = self._folder / file_name
        with path.open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            stream.truncate(8 + len(text) + end)
            if not names:
                os.fsync(stream.fileno())
        data = 8 + len(text)
        return _Shard(path, {n: data + start for n, start in starts.items()}, set(names))


def _parts(layout: Layout, max_bytes: float) -> Iterable[list[str]]:
    """Names that share a shard; one empty shard where there are no tensors."""
    part: list[str] = []
    filled = 0
    for name, (shape, dtype) in layout.items():
        size = _size(shape, dtype)
        if part and filled + size > max_bytes:
            yield part
            part, filled = [], 0
        part.append(name)
        filled += size
    yield part


def _file_name(number: int, count: int) -> str:
    single = "model.safetensors"
    return single if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"


def _size(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return math.prod(shape) * dtype.itemsize
