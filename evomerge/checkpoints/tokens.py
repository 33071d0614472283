"""Two models' tokenizers compared: which token each row of the embedding stands for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from evomerge.checkpoints.folder import inside
from evomerge.checkpoints.headers import StoredFile
from evomerge.checkpoints.open import Checkpoint
from evomerge.errors import ModelError, Problem

MAX_TOKENIZER_BYTES = 100_000_000
_FILES = ("tokenizer.json", "vocab.json", "vocab.txt")
_OPAQUE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
_SECTIONS = ("normalizer", "pre_tokenizer", "post_processor", "merges")


def compare_tokenizers(
    name: str, one: Checkpoint, base: Checkpoint
) -> tuple[list[Problem], list[str]]:
    """Problems where token ids differ, warnings where only the way to split text does.

    Raises:
        ModelError: if a tokenizer file cannot be read.
    """
    mine, theirs = _file(one), _file(base)
    if mine is None or theirs is None:
        if mine is None and theirs is None:
            return [], []
        return [], [f"{name if mine is None else 'the base'}: has no tokenizer to compare"]
    if mine.name != theirs.name:
        return [], [f"{name}: {mine.name} cannot be compared with the base's {theirs.name}"]
    if _content(mine) == _content(theirs):
        return [], []
    if mine.name in _OPAQUE:
        return [], [f"{name}: {mine.name} differs from the base's"]
    here, there = _tokens(mine), _tokens(theirs)
    problems = _differences(name, here, there)
    if problems or mine.name != "tokenizer.json":
        return problems, []
    sections = ", ".join(_sections(mine, theirs))
    return [], [f"{name}: tokenizer.json differs in {sections}"] if sections else []


def _differences(name: str, here: dict[int, str], there: dict[int, str]) -> list[Problem]:
    where = f"{name}: tokenizer"
    changed = [i for i in sorted(here.keys() | there.keys()) if here.get(i) != there.get(i)]
    if not changed:
        return []
    problems = []
    if len(here) != len(there):
        problems.append(Problem(where, f"has {len(here)} tokens, the base has {len(there)}"))
    shown = "; ".join(
        f"{i}: {here.get(i, 'none')!r}, in the base {there.get(i, 'none')!r}" for i in changed[:3]
    )
    problems.append(Problem(where, f"{len(changed)} token ids differ, first {shown}"))
    return problems


def _file(checkpoint: Checkpoint) -> Path | None:
    """The file that says which token has which id."""
    if checkpoint.path is None or not checkpoint.path.is_dir():
        return None
    folder = checkpoint.path.resolve()
    for name in (*_FILES, *_OPAQUE):
        path = inside(folder, name)
        if path.is_file():
            return path
    return None


def _content(path: Path) -> bytes:
    size = StoredFile.of(path).size_bytes
    if size > MAX_TOKENIZER_BYTES:
        raise ModelError(Problem(str(path), f"{size} bytes; at most {MAX_TOKENIZER_BYTES}"))
    return path.read_bytes()


def _parsed(path: Path) -> Any:
    try:
        return json.loads(_content(path))
    except (ValueError, RecursionError) as error:
        what = str(error).splitlines()[0][:120]
        raise ModelError(Problem(str(path), f"is not valid JSON: {what}")) from None


def _tokens(path: Path) -> dict[int, str]:
    """Token by id."""
    if path.suffix == ".txt":
        lines = _content(path).decode("utf-8", "replace").split("\n")
        return dict(enumerate(lines[:-1] if lines[-1] == "" else lines))
    data = _parsed(path)
    try:
        if path.name == "vocab.json":
            return {int(i): token for token, i in data.items()}
        vocab = data["model"]["vocab"]
        if isinstance(vocab, dict):
            tokens = {int(i): token for token, i in vocab.items()}
        else:  # Unigram: [token, score] in the order of ids
            tokens = {i: str(token) for i, (token, _) in enumerate(vocab)}
        added = data.get("added_tokens") or []
        return tokens | {int(token["id"]): token["content"] for token in added}
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ModelError(Problem(str(path), "is no tokenizer: there is no vocabulary")) from None


def _sections(one: Path, other: Path) -> list[str]:
    mine, theirs = _parsed(one), _parsed(other)
    mine |= {"merges": mine["model"].get("merges")}
    theirs |= {"merges": theirs["model"].get("merges")}
    return [section for section in _SECTIONS if mine.get(section) != theirs.get(section)]
