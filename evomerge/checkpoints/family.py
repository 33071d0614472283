"""The models of one merge, opened together and made to fit each other where they can be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import torch

from evomerge.checkpoints.adapters import base_notes, open_adapter
from evomerge.checkpoints.chat_template import chosen_template, with_chat_template
from evomerge.checkpoints.folder import has_adapter_too, is_adapter
from evomerge.checkpoints.heads import settle_heads
from evomerge.checkpoints.matched import match_models
from evomerge.checkpoints.matching import Matching
from evomerge.checkpoints.open import Checkpoint, open_checkpoint
from evomerge.checkpoints.prefixes import match_prefixes
from evomerge.checkpoints.vocabulary import align_vocabularies
from evomerge.errors import ModelError, Problem
from evomerge.protocols import Progress
from evomerge.recipe import Match, TokenizerSpec

Source = str | Path | Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Family:
    """Opened models by name, as merges see them.

    Attributes:
        checkpoints: the models; some may be seen through a change (see derived.py).
        base: the name of the one that the others are compared with.
        notes: what was changed to make them fit, for the user to read.
    """

    checkpoints: dict[str, Checkpoint]
    base: str
    notes: tuple[str, ...] = ()


def open_family(
    sources: Mapping[str, Source],
    base: str,
    *,
    allow_pickle: bool = False,
    tokenizer: str | TokenizerSpec | None = None,
    chat_template: str | None = None,
    matches: Mapping[str, str | Match] | None = None,
    matchings: Mapping[str, Matching] | None = None,
    progress: Progress | None = None,
) -> Family:
    """Open the models of a merge; whoever opens the same ones sees the same tensors.

    Args:
        sources: by name, a folder (of a model or an adapter), a file or a state dict in memory.
        base: one of the names.
        allow_pickle: whether pickled weights may be read.
        tokenizer: whose tokens the merged model has: `union`, or one of the names; None where
            all models have the same.
        chat_template: of the merged model, if another than its tokenizer's; or `auto`.
        matches: by name, the model whose hidden units' order it is brought into.
        matchings: what was found of these elsewhere; the others are looked for.
        progress: told of the matching of units, and of the aligning of tokens.

    Raises:
        ConfigurationError: `tokenizer` or `matches` names no model.
        ModelError: everything that is missing or damaged, each problem with its model's name.
    """
    checkpoints: dict[str, Checkpoint] = {}
    problems: list[Problem] = []
    notes: list[str] = []
    # The base first: adapters are read as changes of it.
    for name in sorted(sources, key=lambda name: name != base):
        source = sources[name]
        try:
            if name != base and _is_adapter(source):
                if base in checkpoints:  # else there is an error already
                    adapted = open_adapter(
                        source, name=name, base=checkpoints[base], allow_pickle=allow_pickle
                    )
                    checkpoints[name] = adapted
                    notes += base_notes(adapted)
                continue
            checkpoints[name] = open_checkpoint(source, name=name, allow_pickle=allow_pickle)
            if isinstance(source, str | Path) and has_adapter_too(Path(source).expanduser()):
                notes.append(f"{name}: the adapter in {source} is not read, the model beside it is")
        except ModelError as error:
            problems += [Problem(f"model {name}", str(p)) for p in error.problems]
    if problems:
        raise ModelError(problems)
    checkpoints, matched = match_prefixes({name: checkpoints[name] for name in sources}, base)
    notes += matched
    if matches:  # before rows of one model's tokens stand in another
        checkpoints, told = match_models(checkpoints, matches, progress, matchings)
        notes += told
    template: str | None = None
    if chat_template is not None:  # before all models have the output's small files
        template, chosen = chosen_template(checkpoints, base, chat_template)
        notes += chosen
    if tokenizer is not None:
        checkpoints, found = align_vocabularies(checkpoints, base, tokenizer, progress)
        notes += found
    if template is not None:
        checkpoints[base] = with_chat_template(checkpoints[base], template)
    checkpoints, settled = settle_heads(checkpoints, base)
    notes += settled
    return Family(checkpoints, base, tuple(notes))


def _is_adapter(source: Source) -> TypeGuard[str | Path]:
    try:
        return isinstance(source, str | Path) and is_adapter(Path(source).expanduser())
    except OSError:  # opening it will say what is wrong
        return False
