"""The tensors of a model folder: which files hold them, and that nothing outside is read."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from evomerge.checkpoints.headers import (
    MAX_TENSORS,
    Entry,
    StoredFile,
    read_header,
    read_json,
    shortened,
)
from evomerge.errors import ModelError, Problem

Stored = dict[str, Entry | torch.Tensor]

MAX_SHARDS = 5_000  # the largest models have hundreds

_ADAPTER = "adapter_config.json"
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLE_SINGLE = "pytorch_model.bin"
_PICKLE_INDEX = "pytorch_model.bin.index.json"
_LIMITS = {"layer": 1_000, "block": 1_000, "depth": 1_000, "expert": 5_000, "label": 1_000_000}
_COUNT = re.compile(
    r"^((num|n|encoder|decoder)_)?(\w*_)?(?P<what>layer|block|depth|expert|label)s?$"
)
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_PICKLE_HINT = "allow_pickle_weights: true reads it, weights only; safetensors are safer"


def read_folder(folder: Path, *, allow_pickle: bool) -> tuple[Stored, dict[str, Any]]:
    """The entries and the config of a Hugging Face folder.

    Raises:
        ModelError: if it is damaged, quantised, an adapter, or holds no weights.
    """
    config_path = inside(folder, "config.json")
    config = read_json(config_path, what="a config") if config_path.exists() else {}
    if is_adapter(folder):
        what = "is a PEFT adapter, which is no model without its base"
        hint = "name its base model as the base, and this folder as an expert"
        raise ModelError(Problem(str(folder), what, hint))
    _refuse_quantised(config_path, config)
    if outsized := list(_outsized(config_path, config)):
        raise ModelError(shortened(outsized))
    if inside(folder, _SINGLE).exists():  # transformers looks in this order too
        return dict(read_header(inside(folder, _SINGLE))), config
    if inside(folder, _INDEX).exists():
        return dict(_read_sharded(folder, _INDEX)), config
    return _read_unusual(folder, allow_pickle=allow_pickle), config


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a PEFT adapter and no model of its own."""
    return (folder / _ADAPTER).exists() and not _has_model(folder)


def has_adapter_too(folder: Path) -> bool:
    """Whether a folder holds a PEFT adapter beside a model of its own."""
    return (folder / _ADAPTER).exists() and _has_model(folder)


def _has_model(folder: Path) -> bool:
    names = (_SINGLE, _INDEX, _PICKLE_SINGLE, _PICKLE_INDEX)
    return any((folder / name).exists() for name in names)


def inside(folder: Path, name: str) -> Path:
    """The path of a file of the folder, which it may not leave by its name or by a link.

    A snapshot of the Hugging Face cache links to its own repository's blobs; that is followed.

    Raises:
        ModelError: naming the file.
    """
    path = folder / name
    if not name or name in (".", "..") or any(c in name for c in "/\\\0"):
        raise ModelError(Problem(f"{folder}: {name!r}", "is no bare file name"))
    try:
        target = path.resolve()
    except (OSError, RuntimeError):  # a loop of links
        raise ModelError(Problem(str(path), "is a link that leads nowhere")) from None
    if target.parent == folder or target.is_relative_to(folder):
        return path
    blobs = folder.parent.parent / "blobs"
    if folder.parent.name == "snapshots" and target.parent == blobs:
        return path
    raise ModelError(Problem(str(path), f"is a link that leaves the folder, to {target}"))


def is_model_file(path: Path) -> bool:
    """Whether a file is, by its name, a model's tensors."""
    return path.is_file() and path.suffix in (".safetensors", *_PICKLE_SUFFIXES)


def read_pickle(path: Path, *, allow_pickle: bool) -> Stored:
    """The tensors of a weights-only pickle.

    Raises:
        ModelError: if pickles are not allowed, or it holds anything but tensors.
    """
    if path.suffix not in _PICKLE_SUFFIXES:
        what = "is no model: expected a folder, .safetensors, .bin, .pt or .pth"
        raise ModelError(Problem(str(path), what))
    if not allow_pickle:
        raise ModelError(Problem(str(path), "is a pickle, which could run code", _PICKLE_HINT))
    StoredFile.of(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old pickle protocols
            state = _load_weights(path)
    except Exception as error:  # a damaged pickle can end in any
        what = (str(error).splitlines() or ["damaged"])[0][:200]
        raise ModelError(Problem(str(path), f"cannot be read as weights only: {what}")) from None
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping):
        raise ModelError(Problem(str(path), f"expected a state dict, got {type(state).__name__}"))
    wrong = [
        Problem(f"{path}: {key!r}", f"expected a tensor, got {type(value).__name__}")
        for key, value in state.items()
        if not isinstance(value, torch.Tensor)
    ]
    if wrong:
        raise ModelError(shortened(wrong))
    return {str(key): value.detach() for key, value in state.items()}


def _load_weights(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap can only be used" not in str(error):
            raise
    return torch.load(path, map_location="cpu", weights_only=True)  # the format before zip


def _refuse_quantised(path: Path, config: Mapping[str, Any]) -> None:
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        settings = part.get("quantization_config")
        if settings:
            method = settings.get("quant_method") if isinstance(settings, dict) else None
            what = f"the model is quantised ({method or 'quantization_config'})"
            hint = "quantised weights cannot be merged; use the model it was made from"
            raise ModelError(Problem(str(path), what, hint))


def _outsized(path: Path, config: Mapping[str, Any]) -> Iterator[Problem]:
    """Counts that would take transformers hours to build a module tree or a table of."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _outsized(path, value)
        found = _COUNT.match(key)
        if not found:
            continue
        limit = _LIMITS[found.group("what")]
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and number > limit:
                what = f"{str(number)[:30]} are more than any model has: at most {limit}"
                yield Problem(f"{path}: {key}", what)


def _weight_map(folder: Path, index_name: str) -> dict[str, list[str]]:
    """File name -> the tensors that the index says it holds."""
    path = inside(folder, index_name)
    weight_map = read_json(path, what="an index", max_values=MAX_TENSORS).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(Problem(str(path), "has no weight_map of tensor names to files"))
    shards: dict[str, list[str]] = {}
    problems = []
    for tensor, shard in weight_map.items():
        if isinstance(shard, str):
            shards.setdefault(shard, []).append(tensor)
        else:
            problems.append(Problem(f"{path}: {tensor!r}", f"expected a file, got {shard!r}"))
    if len(shards) > MAX_SHARDS:
        raise ModelError(Problem(str(path), f"names {len(shards)} files; at most {MAX_SHARDS}"))
    for shard in shards:
        try:
            if not inside(folder, shard).exists():
                problems.append(Problem(f"{path}: {shard!r}", "this shard is missing"))
        except ModelError as error:
            problems += error.problems
    if problems:
        raise ModelError(shortened(problems))
    return shards


def _read_sharded(folder: Path, index_name: str) -> dict[str, Entry]:
    """The entries of all shards, which must be those that the index lists."""
    entries: dict[str, Entry] = {}
    problems: list[Problem] = []
    for shard, listed in _weight_map(folder, index_name).items():
        header = read_header(inside(folder, shard))
        where = str(folder / shard)
        for tensor in sorted(set(listed) - set(header)):
            problems.append(Problem(f"{where}: {tensor!r}", f"{index_name} lists it; it is not"))
        for tensor in sorted(set(header) - set(listed)):
            problems.append(Problem(f"{where}: {tensor!r}", f"{index_name} does not list it here"))
        entries |= header
    if problems:
        raise ModelError(shortened(problems))
    return entries


def _read_unusual(folder: Path, *, allow_pickle: bool) -> Stored:
    """Weights under other names than transformers gives them."""
    safe = sorted(p.name for p in folder.glob("*.safetensors"))
    if len(safe) == 1:
        return dict(read_header(inside(folder, safe[0])))
    if safe:
        what = f"has {len(safe)} safetensors files and no {_INDEX}: {', '.join(safe[:5])}"
        raise ModelError(Problem(str(folder), what, "name one of the files"))
    if (folder / _PICKLE_INDEX).exists() and allow_pickle:
        stored: Stored = {}
        for shard in _weight_map(folder, _PICKLE_INDEX):
            stored |= read_pickle(inside(folder, shard), allow_pickle=True)
        return stored
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLE_SUFFIXES)
    if _PICKLE_SINGLE in pickles or len(pickles) == 1:
        name = _PICKLE_SINGLE if _PICKLE_SINGLE in pickles else pickles[0]
        return read_pickle(inside(folder, name), allow_pickle=allow_pickle)
    if pickles:
        what = f"has pickled weights only: {', '.join(pickles[:5])}"
        raise ModelError(Problem(str(folder), what, _PICKLE_HINT))
    found = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
    raise ModelError(Problem(str(folder), f"holds no {_SINGLE} and no {_INDEX}", f"has {found}"))
