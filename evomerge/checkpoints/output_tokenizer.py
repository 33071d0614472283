"""The tokenizer of a merged model: one of the models' own, or one of all their tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from evomerge.checkpoints.open import Checkpoint
from evomerge.checkpoints.small_files import GENERATION, SmallFile, content, parsed, small_files
from evomerge.checkpoints.token_settings import following, with_ids_of
from evomerge.checkpoints.tokens import vocabulary_file
from evomerge.checkpoints.union_tokenizer import (
    FLAGS,
    Tokenizer,
    Union,
    added_tokens_decoder,
    ids_of,
    union_of,
)
from evomerge.errors import ModelError, Problem
from evomerge.protocols import Progress
from evomerge.recipe import UNION, TokenizerSpec

FILE = "tokenizer.json"
SETTINGS = "tokenizer_config.json"
# Other forms of the same vocabulary: beside a union they would tell an older one.
_OTHER_FORMS = ("vocab", "merges", "added_tokens", "spiece", "sentencepiece", "tokenizer.model")


@dataclass(frozen=True)
class OwnTokens(Tokenizer):
    """A model's tokenizer.

    Attributes:
        text: of the file.
        assumed: whether the model has no tokenizer, and the base's is taken for it.
    """

    text: str = ""
    assumed: bool = False


@dataclass(frozen=True)
class Output:
    """The output's tokenizer.

    Attributes:
        chosen: the model that it is from; None for a union.
        ids: by token.
        files: the small files of the output.
        changes_base: whether files, ids or settings are not the base's own.
        special: the settings whose ids of special tokens win over the base's.
        notes: for the user.
    """

    chosen: str | None
    ids: Mapping[str, int]
    files: Mapping[str, SmallFile]
    changes_base: bool
    special: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def own_tokens(
    checkpoints: Mapping[str, Checkpoint],
    base: str,
    sizes: Mapping[str, int],
    progress: Progress | None = None,
) -> dict[str, OwnTokens]:
    """Every model's tokens; one without a tokenizer, but the base's number of rows, has the base's.

    sizes: by model, the rows of its tables.
    progress: called with the number of the model under way, and how many there are.

    Raises:
        ModelError: naming every model whose tokens are not known.
    """
    found: dict[str, OwnTokens] = {}
    problems: list[Problem] = []
    for number, name in enumerate(sorted(checkpoints, key=lambda name: name != base), start=1):
        if progress is not None:
            progress("aligning tokens", number, len(checkpoints))
        files = small_files(checkpoints[name])
        kind = vocabulary_file(files)
        if kind is None and name != base and base in found and sizes[name] == sizes[base]:
            found[name] = replace(found[base], name=name, assumed=True)
            continue
        where = f"{checkpoints[name].where}/{FILE}"
        try:
            if kind != FILE:
                raise ModelError(Problem(f"model {name}", *_no_tokenizer(kind)))
            text = content(files[FILE]).decode("utf-8", "replace")
            if base in found and text == found[base].text:
                data, ids = found[base].data, found[base].all_ids
            else:
                data, ids = parsed(text, where), ids_of(text, where)
        except ModelError as error:
            problems += error.problems
            continue
        with_rows = {token: i for token, i in ids.items() if i < sizes[name]}
        found[name] = OwnTokens(name, data, ids, with_rows, text)
    if problems:
        raise ModelError(problems)
    return {name: found[name] for name in checkpoints}


def choose_output(
    checkpoints: Mapping[str, Checkpoint],
    tokens: Mapping[str, OwnTokens],
    base: str,
    tokenizer: TokenizerSpec,
) -> Output:
    """The output that `tokenizer` asks for.

    Raises:
        ModelError: tokens cannot be added to it.
    """
    output = _chosen(checkpoints, tokens, base, tokenizer.source)
    # Their ids must not hang on the order in which a file has them.
    new = sorted(token for token in tokenizer.tokens if token not in output.ids)
    if not new:
        return output
    entries = []
    for token in new:
        row = tokenizer.tokens[token]
        giver, name = tokens.get(row.model or ""), row.token or token
        plain = {**dict.fromkeys(FLAGS, False), "normalized": True}
        flags = plain if giver is None else giver.added.get(name, plain)
        entries.append({**flags, "content": token})
    return _with_new(output, new, entries)


def _with_new(output: Output, new: Sequence[str], entries: Sequence[Mapping[str, Any]]) -> Output:
    """The output with further added tokens."""
    data = parsed(output.files[FILE], FILE)
    ids = {token: i for i, token in enumerate(new)}
    first = Tokenizer("the output", data, output.ids, output.ids)
    made = union_of(first, [Tokenizer("new", {"added_tokens": entries}, ids, ids)], FILE)
    assert made is not None  # noqa: S101 (there are new ones)
    return replace(output, ids=made.ids, files=_with_union(output.files, made), changes_base=True)


def _chosen(
    checkpoints: Mapping[str, Checkpoint],
    tokens: Mapping[str, OwnTokens],
    base: str,
    tokenizer: str,
) -> Output:
    assumed = [name for name, own in tokens.items() if own.assumed]
    notes = tuple(
        f"{name}: has no tokenizer; its rows are taken to be the base's" for name in assumed
    )
    files = small_files(checkpoints[base])
    if tokenizer == UNION:
        return _union(checkpoints, tokens, base, notes)
    own = tokens[tokenizer]
    if tokenizer == base or own.assumed:
        return Output(tokenizer, own.all_ids, files, changes_base=False, notes=notes)
    chosen = dict(small_files(checkpoints[tokenizer]))
    generation = _generation(files, chosen, tokens[base], own)
    if generation is None:
        chosen.pop(GENERATION, None)
    else:
        chosen[GENERATION] = generation
    special = checkpoints[tokenizer].config
    return Output(tokenizer, own.all_ids, chosen, changes_base=True, special=special, notes=notes)


def _union(
    checkpoints: Mapping[str, Checkpoint],
    tokens: Mapping[str, OwnTokens],
    base: str,
    notes: tuple[str, ...],
) -> Output:
    files = small_files(checkpoints[base])
    first = tokens[base]
    others = [own for name, own in sorted(tokens.items()) if name != base and not own.assumed]
    union = union_of(first, others, f"{checkpoints[base].where}/{FILE}")
    if union is None:
        return Output(None, tokens[base].all_ids, files, changes_base=False, notes=notes)
    made = _with_union(files, union)
    known = len(first.all_ids)
    new = len(union.ids) - known
    notes = (f"tokenizer union: the base's {known} tokens and {new} of the others", *notes)
    return Output(None, union.ids, made, changes_base=True, notes=notes)


def _with_union(files: Mapping[str, SmallFile], union: Union) -> dict[str, SmallFile]:
    """Small files with another tokenizer.json, and nothing that contradicts it."""
    made = {name: file for name, file in files.items() if not name.startswith(_OTHER_FORMS)}
    made[FILE] = union.text
    if SETTINGS in made:
        settings = parsed(made[SETTINGS], SETTINGS)
        if isinstance(settings, dict) and "added_tokens_decoder" in settings:
            settings["added_tokens_decoder"] = added_tokens_decoder(union.data)
            made[SETTINGS] = json.dumps(settings, ensure_ascii=False, indent=2)
    return made


def _generation(
    base: Mapping[str, SmallFile],
    chosen: Mapping[str, SmallFile],
    before: OwnTokens,
    after: OwnTokens,
) -> SmallFile | None:
    """The base's generation settings with the chosen model's tokens, or the only ones there are."""
    if GENERATION not in base:
        return chosen.get(GENERATION)
    by_id = {i: token for token, i in before.all_ids.items()}
    made = following(parsed(base[GENERATION], GENERATION), by_id, after.all_ids)
    if GENERATION in chosen:
        made = with_ids_of(made, parsed(chosen[GENERATION], GENERATION))
    return json.dumps(made, indent=2)


def _no_tokenizer(kind: str | None) -> tuple[str, str]:
    """What is wrong with a model's tokenizer, and what would mend it."""
    if kind is None:
        return (
            "has no tokenizer, so what its rows stand for is not known",
            "put the tokenizer.json that it was trained with into its folder",
        )
    return (
        f"has {kind} and no tokenizer.json, which aligning by token needs",
        "AutoTokenizer.from_pretrained(folder).save_pretrained(folder) writes one",
    )
