"""A model written as transformers would, shard by shard, complete or not at all."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from evomerge.checkpoints.folder import inside
from evomerge.checkpoints.headers import DTYPE_NAMES
from evomerge.checkpoints.open import Checkpoint
from evomerge.checkpoints.small_files import copy_files, small_files
from evomerge.checkpoints.staging import clear_leftovers, staged_folder
from evomerge.errors import ConfigurationError, DiskFull, ModelError, Problem
from evomerge.failpoints import failpoint
from evomerge.files import disk_errors, fsync

MARK = "evomerge_recipe.yaml"  # a folder with this file is evomerge's own, and may be replaced


def write_model(
    folder: Path,
    tensors: Iterable[tuple[str, torch.Tensor]],
    *,
    like: Checkpoint,
    config: Mapping[str, Any] | None = None,
    size_bytes: int | None = None,
    dtype: torch.dtype | None = None,
    extra_files: Mapping[str, str] | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> Path:
    """Write a model folder; at most one shard is held in memory.

    Killed at any instant, it leaves `folder` as it was or complete.

    Args:
        folder: a new or empty folder, or one with an evomerge_recipe.yaml, which is replaced.
        tensors: name and tensor; each must keep its values until the shard is written.
        like: the model that gives config.json, tokenizer, chat template and generation settings.
            Without a config there is just model.safetensors besides the extra files.
        config: what config.json says instead of `like`'s, for a model of other layers.
        size_bytes: what the tensors take, where that is not what `like`'s do.
        dtype: floating tensors are cast to it; None keeps each as it comes.
        extra_files: further text files, by bare name (README.md, evomerge_recipe.yaml, ...).
        max_shard_bytes: a tensor larger than this gets a shard of its own.

    Returns:
        The folder.

    Raises:
        ConfigurationError: if the folder holds something else.
        DiskFull: before anything is written where it can be foreseen (1.2 x the model's size).
        ModelError: if a tensor's dtype has no place in a safetensors file.
    """
    target = Path(folder).expanduser().resolve()
    _check_target(target, like)
    target.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers(target)
    _check_space(target, _size_bytes(like, dtype) if size_bytes is None else size_bytes)
    with disk_errors(target), staged_folder(target) as staged:
        shards = _Shards(staged, sharded=bool(like.config), max_bytes=max_shard_bytes)
        for name, tensor in tensors:
            shards.add(name, _cast(tensor, dtype))
        index = shards.finish()
        if like.config:
            _write_json(staged / "config.json", _config(config or like.config, shards.main_dtype()))
            copy_files(small_files(like), staged)
        for name, text in (extra_files or {}).items():
            _write_text(inside(staged.resolve(), name), text)
        failpoint("export.before_index")
        if index is not None:
            _write_json(staged / "model.safetensors.index.json", index)
    return target


class _Shards:
    """Collects tensors until a shard is full; the files get their final names at the end."""

    def __init__(self, folder: Path, *, sharded: bool, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes if sharded else math.inf
        self._waiting: dict[str, torch.Tensor] = {}
        self._waiting_bytes = 0
        self._written: list[tuple[Path, list[str]]] = []
        self._total_bytes = 0
        self._dtype_bytes: Counter[torch.dtype] = Counter()
        self._seen: set[str] = set()

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Take a tensor, and write the shard that it no longer fits into."""
        if name in self._seen:
            raise ModelError(Problem(f"tensor {name!r}", "was given twice"))
        if tensor.dtype not in DTYPE_NAMES:
            raise ModelError(Problem(f"tensor {name!r}", f"{tensor.dtype} cannot be stored"))
        size = tensor.numel() * tensor.element_size()
        if self._waiting and self._waiting_bytes + size > self._max_bytes:
            self._flush()
        self._seen.add(name)
        self._waiting[name] = tensor
        self._waiting_bytes += size
        self._total_bytes += size
        if tensor.is_floating_point():
            self._dtype_bytes[tensor.dtype] += size

    def finish(self) -> dict[str, Any] | None:
        """Write the last shard and name the files; the index, if there are several."""
        self._flush()
        count = len(self._written)
        if count == 1:
            self._written[0][0].rename(self._folder / "model.safetensors")
            return None
        weight_map: dict[str, str] = {}
        for number, (path, names) in enumerate(self._written, start=1):
            final = f"model-{number:05d}-of-{count:05d}.safetensors"
            path.rename(self._folder / final)
            weight_map |= dict.fromkeys(names, final)
        metadata = {"total_size": self._total_bytes}
        return {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}

    def main_dtype(self) -> torch.dtype | None:
        """The floating dtype of most of the bytes."""
        common = self._dtype_bytes.most_common(1)
        return common[0][0] if common else None

    def _flush(self) -> None:
        path = self._folder / f"shard-{len(self._written)}.safetensors"
        # Wide dtypes first, so that every tensor stays aligned, as safetensors' own writer does.
        order = sorted(self._waiting.items(), key=lambda item: (-item[1].element_size(), item[0]))
        _write_safetensors(path, dict(order))
        self._written.append((path, list(self._waiting)))
        self._waiting.clear()
        self._waiting_bytes = 0
        failpoint("export.shard")


def _write_safetensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            data = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
            stream.write(data.numpy().data)
        stream.flush()
        os.fsync(stream.fileno())


def _cast(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


def _check_target(target: Path, like: Checkpoint) -> None:
    """Refuse to lose anything that evomerge did not make, or that is being read."""
    if like.path is not None and like.path.resolve() == target:
        what = f"is the model {like.name!r} that is read from"
        raise ConfigurationError(Problem(str(target), what, "choose another folder"))
    if any(isinstance(f, Path) and f.parent == target for f in small_files(like).values()):
        what = "is the model that the tokenizer is read from"
        raise ConfigurationError(Problem(str(target), what, "choose another folder"))
    if not target.exists() or (target / MARK).is_file():
        return
    if not target.is_dir() or any(target.iterdir()):
        what = f"exists, and was not written by evomerge (no {MARK})"
        raise ConfigurationError(Problem(str(target), what, "choose another folder"))


def _size_bytes(like: Checkpoint, dtype: torch.dtype | None) -> int:
    projected = 0
    for name in like.names:
        stored = like.dtype(name)
        written = dtype if dtype is not None and stored.is_floating_point else stored
        projected += math.prod(like.shape(name)) * written.itemsize
    return projected


def _check_space(target: Path, projected: int) -> None:
    needed = projected * 6 // 5
    free = shutil.disk_usage(target.parent).free
    if free < needed:
        what = f"needs {needed / 1e6:.0f} MB, {free / 1e6:.0f} MB are free on the disk"
        raise DiskFull(Problem(str(target), what))


def _config(config: Mapping[str, Any], dtype: torch.dtype | None) -> dict[str, Any]:
    """The config with the dtype that was written, under the key that it already uses."""
    made = json.loads(json.dumps(config))
    if dtype is None:
        return dict(made)
    name = str(dtype).removeprefix("torch.")
    if "dtype" not in made and "torch_dtype" not in made:
        made["torch_dtype"] = name  # every version of transformers reads this one
    for part in (made, *(value for value in made.values() if isinstance(value, dict))):
        for key in ("dtype", "torch_dtype"):
            if part.get(key) is not None:
                part[key] = name
    return dict(made)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    _write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    fsync(path)
