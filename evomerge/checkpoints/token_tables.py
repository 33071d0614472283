"""Which tensors of a model have a row for each token: embedding, head, and what goes with them.

No architecture is known by name: the model is built on the meta device twice, the second time with
one token more. What has grown is a table of tokens, along the axis in which it has grown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evomerge.checkpoints.config_defaults import completed
from evomerge.checkpoints.module_tree import shapes_by_module
from evomerge.checkpoints.open import Checkpoint
from evomerge.checkpoints.token_settings import declared_size, resized
from evomerge.errors import ModelError, Problem

# The text's own vocabulary; and BERT's kinds of segments, which are no tokens.
_COUNTED = ("vocab_size", "text_config.vocab_size", "type_vocab_size")


@dataclass(frozen=True)
class Tables:
    """A model's tables of tokens.

    Attributes:
        checkpoint: the model.
        axes: by tensor name, the axis that counts tokens.
        num_rows: how many rows all of them have.
    """

    checkpoint: Checkpoint
    axes: Mapping[str, int]
    num_rows: int


def find_tables(checkpoint: Checkpoint) -> Tables:
    """The tables of a model; no tensor is read.

    Raises:
        ModelError: transformers cannot build the model, it has several vocabularies, or its tables
            have not the rows that its config says.
    """
    config = checkpoint.config
    where = checkpoint.where
    if not config:
        what = "has no config.json, so its tables of tokens are not known"
        raise ModelError(Problem(where, what, "`tokenizer` needs transformers folders"))
    if several := _other_vocabularies(completed(config)):
        what = f"has more than one vocabulary ({', '.join(several)}), which cannot be changed"
        raise ModelError(Problem(where, what))
    declared = declared_size(completed(config))
    if declared is None:
        raise ModelError(Problem(where, "its config has no vocab_size"))
    before = shapes_by_module(resized(config, declared), checkpoint.names)
    after = shapes_by_module(resized(config, declared + 1), checkpoint.names)
    if before is None or after is None:
        kind = config.get("model_type", "")
        what = f"transformers cannot build a model of type {kind!r}, so its tables are not known"
        raise ModelError(Problem(where, what))
    axes: dict[str, int] = {}
    for name, shape in before.items():
        grown = [axis for axis, size in enumerate(shape) if after[name][axis] != size]
        if grown:
            axes[name] = grown[0]
        if len(grown) > 1:
            raise ModelError(Problem(f"{where}: {name}", "counts tokens along several axes"))
    if not axes:
        raise ModelError(Problem(where, "no tensor has a row for each token"))
    problems = [
        Problem(f"{where}: {name}", f"has {rows} rows, vocab_size is {declared}")
        for name, axis in axes.items()
        if (rows := dict(enumerate(checkpoint.shape(name))).get(axis)) != declared
    ]
    problems += [
        Problem(
            f"{where}: {name}", f"may have a row for each of {declared} tokens: not in its class"
        )
        for name in checkpoint.names
        if name not in before and declared in checkpoint.shape(name)
    ]
    if problems:
        raise ModelError(problems)
    return Tables(checkpoint, axes, declared)


def _other_vocabularies(config: Mapping[str, Any], path: str = "") -> list[str]:
    """Keys that say the size of another vocabulary than the text's own."""
    found = []
    for key, value in config.items():
        place = f"{path}{key}"
        if isinstance(value, Mapping):
            found += _other_vocabularies(value, f"{place}.")
        elif "vocab_size" in str(key) and value and place not in _COUNTED:
            found.append(place)
    return found
