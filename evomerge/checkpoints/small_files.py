"""The small files beside a model's weights: tokenizer, chat template, generation settings."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evomerge.checkpoints.derived import Derived
from evomerge.checkpoints.folder import inside
from evomerge.checkpoints.headers import StoredFile
from evomerge.checkpoints.open import Checkpoint
from evomerge.errors import ModelError, Problem
from evomerge.files import fsync

SmallFile = Path | str  # where it is, or its text

GENERATION = "generation_config.json"
TEMPLATES = "chat_templates"
MAX_BYTES = 100_000_000

_TOKENIZER_STARTS = (
    "tokenizer",
    "vocab",
    "merges",
    "special_tokens",
    "added_tokens",
    "spiece",
    "sentencepiece",
    "chat_template",
    "preprocessor_config",
    "processor_config",
)
_TOKENIZER_ENDINGS = (".json", ".txt", ".model", ".jinja", ".tiktoken")


def small_files(checkpoint: Checkpoint) -> dict[str, SmallFile]:
    """By their names relative to the folder, sorted; empty for a model without a folder.

    Raises:
        ModelError: if one is a link that leaves the folder.
    """
    if isinstance(checkpoint, Derived) and checkpoint.small_files is not None:
        return dict(checkpoint.small_files)
    if checkpoint.path is None or not checkpoint.path.is_dir():
        return {}
    folder = checkpoint.path.resolve()
    files: dict[str, SmallFile] = {}
    for path in sorted(folder.iterdir()):
        known = path.name.startswith(_TOKENIZER_STARTS) and path.name.endswith(_TOKENIZER_ENDINGS)
        if (known or path.name == GENERATION) and path.is_file():
            files[path.name] = inside(folder, path.name)
    if (folder / TEMPLATES).is_dir():
        templates = inside(folder, TEMPLATES)
        for path in sorted(templates.glob("*.jinja")):
            files[f"{TEMPLATES}/{path.name}"] = inside(templates.resolve(), path.name)
    return files


def content(file: SmallFile) -> bytes:
    """What is in a small file.

    Raises:
        ModelError: if it is not small.
    """
    if isinstance(file, str):
        return file.encode()
    size = StoredFile.of(file).size_bytes
    if size > MAX_BYTES:
        raise ModelError(Problem(str(file), f"{size} bytes; at most {MAX_BYTES}"))
    return file.read_bytes()


def parsed(file: SmallFile, where: str) -> Any:
    """A small file of JSON; `where` names it in messages if it has no path.

    Raises:
        ModelError: if it is not valid JSON.
    """
    try:
        return json.loads(content(file))
    except (ValueError, RecursionError) as error:
        what = str(error).splitlines()[0][:120]
        place = str(file) if isinstance(file, Path) else where
        raise ModelError(Problem(place, f"is not valid JSON: {what}")) from None


def copy_files(files: Mapping[str, SmallFile], folder: Path) -> None:
    """Write small files into a folder, and wait until they are on the disk."""
    for name, file in files.items():
        target = folder / name
        target.parent.mkdir(exist_ok=True)
        if isinstance(file, Path):
            shutil.copyfile(file, target)
        else:
            target.write_text(file, encoding="utf-8")
        fsync(target)
