"""A model written as transformers would, tensor by tensor, complete or not at all."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from evomerge.checkpoints.folder import inside
from evomerge.checkpoints.open import Checkpoint
from evomerge.checkpoints.shards import Layout, ShardWriter, layout_of, main_dtype, size_bytes
from evomerge.checkpoints.small_files import copy_files, small_files
from evomerge.checkpoints.staging import clear_leftovers, staged_folder
from evomerge.errors import ConfigurationError, Problem
from evomerge.failpoints import failpoint
from evomerge.files import check_room, disk_errors, fsync

MARK = "evomerge_recipe.yaml"  # a folder with this file is evomerge's own, and may be replaced


def write_model(
    folder: Path,
    tensors: Iterable[tuple[str, torch.Tensor]],
    *,
    like: Checkpoint,
    layout: Layout | None = None,
    config: Mapping[str, Any] | None = None,
    reads: Iterable[Checkpoint] = (),
    extra_files: Mapping[str, str | bytes] | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> Path:
    """Write a model folder; one tensor at a time is in memory.

    Killed at any instant, it leaves `folder` as it was or complete.

    Args:
        folder: a new or empty folder, or one with an evomerge_recipe.yaml, which is replaced.
        tensors: name and tensor, all those of the layout, in any order.
        like: the model that gives config.json, tokenizer, chat template and generation settings.
            Without a config there is just model.safetensors besides the extra files.
        layout: shape and dtype of what is written, where that is not what `like` has; floating
            tensors are cast.
        config: what config.json says instead of `like`'s, for a model of other layers.
        reads: the models that the tensors come from; no folder with one of them is replaced.
        extra_files: further files, by bare name (README.md, evomerge_recipe.yaml, ...).
        max_shard_bytes: a tensor larger than this gets a shard of its own.

    Returns:
        The folder.

    Raises:
        ConfigurationError: if the folder holds something else.
        DiskFull: before anything is written where it can be foreseen (1.2 x the model's size).
        ModelError: if the tensors are not those of the layout.
    """
    target = Path(folder).expanduser().resolve()
    layout = layout_of(like) if layout is None else layout
    files = small_files(like)
    if any(isinstance(file, Path) and file.parent == target for file in files.values()):
        what = "is the model that the tokenizer is read from"
        raise ConfigurationError(Problem(str(target), what, "choose another folder"))
    check_target(target, (like, *reads))
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers(target)
    check_room(target, size_bytes(layout))
    with disk_errors(target, size_bytes(layout)), staged_folder(target) as staged:
        sharded = bool(like.config)
        shards = ShardWriter(staged, layout, max_bytes=max_shard_bytes if sharded else math.inf)
        for name, tensor in tensors:
            shards.add(name, tensor)
        index = shards.finish()
        if like.config:
            _write_json(staged / "config.json", _config(config or like.config, main_dtype(layout)))
            copy_files(files, staged)
        for name, content in (extra_files or {}).items():
            _write_file(inside(staged.resolve(), name), content)
        failpoint("export.before_index")
        if index is not None:
            _write_json(staged / "model.safetensors.index.json", index)
    return target


def check_target(target: Path, reads: Iterable[Checkpoint]) -> None:
    """Refuse to lose anything that evomerge did not make, or that is being read.

    Raises:
        ConfigurationError: if a folder may not be replaced.
    """
    for checkpoint in reads:
        read = [file.path for file in checkpoint.files]
        read += [] if checkpoint.path is None else [checkpoint.path]
        if any(target in (path.resolve(), *path.resolve().parents) for path in read):
            what = f"holds the model {checkpoint.name!r} that is read from"
            raise ConfigurationError(Problem(str(target), what, "choose another folder"))
    if not target.exists() or (target / MARK).is_file():
        return
    if not target.is_dir() or any(target.iterdir()):
        what = f"exists, and was not written by evomerge (no {MARK})"
        raise ConfigurationError(Problem(str(target), what, "choose another folder"))


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
    _write_file(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _write_file(path: Path, content: str | bytes) -> None:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    fsync(path)
