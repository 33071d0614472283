"""Two models' tokenizers compared: which token each row of the embedding stands for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evomerge.checkpoints.open import Checkpoint
from evomerge.checkpoints.small_files import SmallFile, content, parsed, small_files
from evomerge.errors import ModelError, Problem

ALIGN = "`tokenizer: union`, or a model's name there, aligns the models by token"
OPAQUE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")

_FILES = ("tokenizer.json", "vocab.json", "vocab.txt")
_SECTIONS = ("normalizer", "pre_tokenizer", "post_processor", "merges")


def compare_tokenizers(
    name: str, one: Checkpoint, base: Checkpoint
) -> tuple[list[Problem], list[str]]:
    """Problems where rows stand for other tokens, warnings where text is split in another way.

    Raises:
        ModelError: if a tokenizer file cannot be read.
    """
    padding = _compare_sizes(name, one, base)
    mine, theirs = small_files(one), small_files(base)
    my_kind, their_kind = vocabulary_file(mine), vocabulary_file(theirs)
    if my_kind is None or their_kind is None:
        lacking = [who for who, kind in ((name, my_kind), ("the base", their_kind)) if not kind]
        return padding, [f"{lacking[0]}: has no tokenizer to compare"] if len(lacking) == 1 else []
    if my_kind != their_kind and {my_kind, their_kind} & set(OPAQUE):
        return padding, [f"{name}: {my_kind} cannot be compared with the base's {their_kind}"]
    same_file = my_kind == their_kind and content(mine[my_kind]) == content(theirs[their_kind])
    if my_kind in OPAQUE:
        return padding, [] if same_file else [f"{name}: {my_kind} differs from the base's"]
    if same_file and my_kind == "tokenizer.json":
        return padding, []
    problems = _differences(name, tokens_by_id(one), tokens_by_id(base))
    if problems:
        return problems, []  # the sizes follow from them
    if my_kind != "tokenizer.json" or their_kind != my_kind:
        return padding, []
    sections = ", ".join(_sections(mine[my_kind], theirs[my_kind]))
    return padding, [f"{name}: tokenizer.json differs in {sections}"] if sections else []


def vocabulary_file(files: Mapping[str, SmallFile]) -> str | None:
    """The one of a model's small files that says which token has which id."""
    return next((kind for kind in (*_FILES, *OPAQUE) if kind in files), None)


def tokens_by_id(checkpoint: Checkpoint) -> dict[int, str]:
    """A model's tokens, with the added ones, read from its files alone.

    Raises:
        ModelError: if they cannot be read.
    """
    files = small_files(checkpoint)
    kind = vocabulary_file(files)
    if kind is None or kind in OPAQUE:
        what = "has no tokenizer" if kind is None else f"its {kind} cannot be read"
        raise ModelError(Problem(checkpoint.where, what))
    where = f"{checkpoint.where}: {kind}"
    if kind == "vocab.txt":
        lines = content(files[kind]).decode("utf-8", "replace").split("\n")
        tokens = dict(enumerate(lines[:-1] if lines[-1] == "" else lines))
    else:
        data = parsed(files[kind], where)
        try:
            tokens = _tokens(data) if kind == "tokenizer.json" else _by_id(data)
        except (AttributeError, KeyError, TypeError, ValueError):
            place = str(files[kind]) if not isinstance(files[kind], str) else where
            raise ModelError(Problem(place, "is no tokenizer: there is no vocabulary")) from None
    if kind != "tokenizer.json" and "added_tokens.json" in files:
        where = f"{checkpoint.where}: added_tokens.json"
        try:
            tokens |= _by_id(parsed(files["added_tokens.json"], where))
        except (AttributeError, TypeError, ValueError):
            raise ModelError(Problem(where, "is no table of tokens")) from None
    return tokens


def _tokens(data: Any) -> dict[int, str]:
    vocabulary = data["model"]["vocab"]
    if isinstance(vocabulary, dict):
        tokens = _by_id(vocabulary)
    else:  # Unigram: [token, score] in the order of ids
        tokens = {i: str(token) for i, (token, _) in enumerate(vocabulary)}
    added = data.get("added_tokens") or []
    return tokens | {int(token["id"]): str(token["content"]) for token in added}


def _by_id(vocabulary: Any) -> dict[int, str]:
    return {int(i): str(token) for token, i in vocabulary.items()}


def _differences(name: str, here: dict[int, str], there: dict[int, str]) -> list[Problem]:
    changed = [i for i in sorted(here.keys() | there.keys()) if here.get(i) != there.get(i)]
    if not changed:
        return []
    shown = "; ".join(
        f"{i}: {here.get(i, 'none')!r}, in the base {there.get(i, 'none')!r}" for i in changed[:3]
    )
    sizes = f"has {len(here)} tokens, the base has {len(there)}"
    what = f"{sizes}; {len(changed)} token ids differ, first {shown}"
    return [Problem(f"{name}: tokenizer", what, ALIGN)]


def _compare_sizes(name: str, one: Checkpoint, base: Checkpoint) -> list[Problem]:
    """Tables of other lengths for the same tokens: some of them have padding rows."""
    mine, theirs = _declared_size(one), _declared_size(base)
    if mine is None or theirs is None or mine == theirs:
        return []
    if all(one.shape(key) == base.shape(key) for key in set(one.names) & set(base.names)):
        return []  # one config says what its tensors do not
    what = f"the tables of tokens have {mine} rows, the base's {theirs}"
    return [Problem(f"{name}: vocab_size", what, ALIGN)]


def _declared_size(checkpoint: Checkpoint) -> int | None:
    text = checkpoint.config.get("text_config")
    for part in (checkpoint.config, text if isinstance(text, dict) else {}):
        if isinstance(size := part.get("vocab_size"), int):
            return size
    return None


def _sections(one: SmallFile, other: SmallFile) -> list[str]:
    mine, theirs = parsed(one, "tokenizer.json"), parsed(other, "tokenizer.json")
    mine |= {"merges": mine["model"].get("merges")}
    theirs |= {"merges": theirs["model"].get("merges")}
    return [section for section in _SECTIONS if mine.get(section) != theirs.get(section)]
