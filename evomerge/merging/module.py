"""The transformers module and tokenizer of a checkpoint, stored or seen through a change."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evomerge.checkpoints.derived import Derived
from evomerge.checkpoints.open import Checkpoint
from evomerge.checkpoints.small_files import GENERATION, copy_files, parsed, small_files
from evomerge.errors import ModelError, Problem

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model")
_FAILURES = (OSError, ValueError, KeyError, ImportError, RuntimeError)


def module_of(
    checkpoint: Checkpoint,
    dtype: torch.dtype | None,
    device_map: Mapping[str, int | str] | None = None,
) -> nn.Module:
    """The class that the config names, else a causal language model, with the weights.

    No tensor of the module is one of the checkpoint's: it may be written into. With a map from
    names of its parts to devices, transformers spreads it, and accelerate's hooks carry what goes
    from one part to the next.

    Raises:
        ModelError: transformers cannot make it.
    """
    import transformers

    kind = _class_of(checkpoint)
    spread = {} if device_map is None else {"device_map": dict(device_map)}
    try:
        if not isinstance(checkpoint, Derived):
            return _loaded(kind, checkpoint.path, dtype, **spread)
        config = _config_of(checkpoint)
        if kind is transformers.AutoModelForCausalLM:  # which loads nothing but folders
            with torch.device("meta"):
                kind = type(kind.from_config(config))
        state = {name: checkpoint.tensor(name).clone() for name in checkpoint.names}
        module = _loaded(kind, None, dtype, config=config, state_dict=state, **spread)
        generation = small_files(checkpoint).get(GENERATION)
        if generation is not None and hasattr(module, "generation_config"):
            settings = parsed(generation, GENERATION)
            module.generation_config = transformers.GenerationConfig.from_dict(settings)
        return module
    except _FAILURES as error:
        what = f"transformers cannot load it: {error}"
        raise ModelError(Problem(checkpoint.where, what)) from error


def empty_module_of(checkpoint: Checkpoint, dtype: torch.dtype | None) -> nn.Module:
    """As `module_of`, on the meta device: shapes and names without memory.

    Raises:
        ModelError: transformers cannot make it.
    """
    kind, config = _class_of(checkpoint), _config_of(checkpoint)
    make = kind.from_config if hasattr(kind, "from_config") else kind._from_config
    try:
        with torch.device("meta"):
            module: nn.Module = make(config, dtype=dtype) if dtype is not None else make(config)
    except _FAILURES as error:
        what = f"transformers cannot make it: {error}"
        raise ModelError(Problem(checkpoint.where, what)) from error
    return module


def _class_of(checkpoint: Checkpoint) -> Any:
    import transformers

    named = next(iter(checkpoint.config.get("architectures") or ()), "")
    return getattr(transformers, named, None) or transformers.AutoModelForCausalLM


def _config_of(checkpoint: Checkpoint) -> Any:
    import transformers

    settings = dict(checkpoint.config)
    return transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)


def tokenizer_of(checkpoint: Checkpoint) -> Any:
    """A checkpoint's tokenizer; None if it has none.

    Raises:
        ModelError: transformers cannot load it.
    """
    import transformers

    files = small_files(checkpoint)
    if not any(name in files for name in _TOKENIZER_FILES):
        return None

    def loaded(folder: Path) -> Any:
        try:
            return transformers.AutoTokenizer.from_pretrained(
                folder, trust_remote_code=False, local_files_only=True
            )
        except _FAILURES as error:
            what = f"transformers cannot load its tokenizer: {error}"
            raise ModelError(Problem(checkpoint.where, what)) from error

    if checkpoint.path is not None and not isinstance(checkpoint, Derived):
        return loaded(checkpoint.path)
    with tempfile.TemporaryDirectory(prefix="evomerge-tokenizer-") as folder:
        copy_files(files, Path(folder))
        # Where the tokenizer's own settings name no class, transformers asks the model's.
        (Path(folder) / "config.json").write_text(json.dumps(checkpoint.config), encoding="utf-8")
        return loaded(Path(folder))


def _loaded(kind: Any, path: Path | None, dtype: torch.dtype | None, **given: Any) -> nn.Module:
    module: nn.Module = kind.from_pretrained(
        path, dtype=dtype or "auto", trust_remote_code=False, local_files_only=True, **given
    )
    return module
