"""A tokenizer.json that knows the tokens of several: the first one's, with the others' appended.

The first one's tokens keep their ids, and it keeps the way it splits text:

- Added tokens of the others (special or not) become added tokens with their flags. A token that is
  an ordinary one in the first and an added one in another is recognised as the other does.
- Ordinary tokens go into the model's vocabulary. WordLevel, WordPiece and Unigram then use them as
  they use their own. A BPE gets the merges that make new tokens, after its own: text is split as
  before, and then neighbours may be joined into a token that only another model has. Merges that
  make a known token are left out, as they would split known text otherwise.

Not covered: tokenizers without a tokenizer.json, and ordinary tokens of another kind of model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from evomerge.errors import ModelError, Problem

_BEFORE_ALL = -10.0  # added to a Unigram's lowest score: for what is never found by its score
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True)
class Tokenizer:
    """A parsed tokenizer.json.

    Attributes:
        name: how messages call its model.
        data: the parsed file.
        all_ids: every token's id.
        ids: those of the tokens that the model has rows for.
    """

    name: str
    data: Mapping[str, Any]
    all_ids: Mapping[str, int]
    ids: Mapping[str, int]

    @cached_property
    def added(self) -> dict[str, dict[str, Any]]:
        """The entries of added tokens, by token."""
        return {entry["content"]: entry for entry in self.data.get("added_tokens") or ()}


def ids_of(text: str, where: str) -> dict[str, int]:
    """Every token's id, as the tokenizers library reads the text of a tokenizer.json.

    Raises:
        ModelError: if it cannot be read, or two tokens share an id.
    """
    import tokenizers

    try:
        read = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing more particular
        what = f"is no tokenizer: {str(error).splitlines()[0][:120]}"
        raise ModelError(Problem(where, what)) from None
    ids: dict[str, int] = read.get_vocab(with_added_tokens=True)
    by_id: dict[int, str] = {}
    for token in sorted(ids):
        other = by_id.setdefault(ids[token], token)
        if other != token:
            raise ModelError(Problem(where, f"{other!r} and {token!r} share the id {ids[token]}"))
    return ids


@dataclass(frozen=True)
class Union:
    """The text of a tokenizer.json, with every token's id."""

    text: str
    data: Mapping[str, Any]
    ids: Mapping[str, int]


def union_of(first: Tokenizer, others: Sequence[Tokenizer], where: str) -> Union | None:
    """The tokenizer.json of all their tokens; None if the first one knows them already.

    New ids follow the first one's largest: first the ordinary tokens, then the added ones, each by
    model and then by the model's ids.

    Raises:
        ModelError: if ordinary tokens would have to be added to another kind of tokenizer, or the
            first one's ids have holes.
    """
    known = first.all_ids
    ordinary: dict[str, Tokenizer] = {}
    entries: dict[str, dict[str, Any]] = {}
    for other in others:
        for token in sorted(other.ids, key=lambda token: other.ids[token]):
            if token in other.added and token not in first.added:
                entries.setdefault(token, other.added[token])
            elif token not in known:
                ordinary.setdefault(token, other)
    for token in entries:  # added in one model, ordinary in another: one id
        ordinary.pop(token, None)
    if not ordinary and not entries:
        return None
    made = {**first.data, "model": dict(first.data["model"])}
    expected = dict(known)
    start = max(known.values(), default=-1) + 1
    for token in (*ordinary, *(token for token in entries if token not in known)):
        expected[token] = start + len(expected) - len(known)
    if ordinary:
        _extend_model(made, first, ordinary, expected)
    added = [{**entry, "id": expected[token]} for token, entry in entries.items()]
    made["added_tokens"] = [*(made.get("added_tokens") or ()), *added]
    made["added_tokens"].sort(key=lambda entry: entry["id"])
    text = json.dumps(made, ensure_ascii=False)
    if not _reads_as(text, expected, where):
        what = "no tokens can be appended: its ids have holes, or are not those of its order"
        raise ModelError(Problem(where, what))
    return Union(text, made, expected)


def added_tokens_decoder(data: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The table of added tokens as tokenizer_config.json has it."""
    return {
        str(entry["id"]): {
            "content": entry["content"],
            **{flag: bool(entry.get(flag, False)) for flag in FLAGS},
        }
        for entry in data.get("added_tokens") or ()
    }


def _reads_as(text: str, expected: Mapping[str, int], where: str) -> bool:
    try:
        return ids_of(text, where) == expected
    except ModelError:
        return False


def _extend_model(
    made: dict[str, Any],
    first: Tokenizer,
    ordinary: Mapping[str, Tokenizer],
    ids: Mapping[str, int],
) -> None:
    """Put ordinary tokens into the model of `made`, with the merges that make them."""
    donors = list({id(donor): donor for donor in ordinary.values()}.values())
    _refuse_other_kinds(first, donors, ordinary)
    model = made["model"]
    # The added tokens' ids are counted on from the model's vocabulary: it has to hold them too.
    inside = _vocabulary(model)
    appended = [token for token in first.added if token not in inside]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {
            **model["vocab"],
            **{token: ids[token] for token in (*appended, *ordinary)},
        }
    else:
        lowest = min((score for _, score in model["vocab"]), default=0.0) + _BEFORE_ALL
        scores = {id(d): dict(d.data["model"]["vocab"]) for d in donors}
        rows = [(ids[token], token, lowest) for token in appended]
        rows += [(ids[token], token, scores[id(donor)][token]) for token, donor in ordinary.items()]
        model["vocab"] = [*model["vocab"], *([token, score] for _, token, score in sorted(rows))]
    if model.get("type", "BPE") == "BPE":
        pairs = [_pair(merge) for merge in model.get("merges") or ()]
        seen = set(pairs)
        prefix = model.get("continuing_subword_prefix") or ""
        for donor in donors:
            for left, right in map(_pair, donor.data["model"].get("merges") or ()):
                makes = left + right.removeprefix(prefix)
                if makes in ordinary and {left, right} <= ids.keys() and (left, right) not in seen:
                    seen.add((left, right))
                    pairs.append((left, right))
        model["merges"] = [list(pair) for pair in pairs]


def _refuse_other_kinds(
    first: Tokenizer, donors: Sequence[Tokenizer], ordinary: Mapping[str, Tokenizer]
) -> None:
    problems = []
    for donor in donors:
        mine, theirs = _kind(donor.data), _kind(first.data)
        if mine != theirs:
            own = [token for token, d in ordinary.items() if d is donor]
            what = f"{len(own)} tokens, first {own[0]!r}, are those of a {mine} tokenizer; "
            what += f"{first.name} has a {theirs} one, which cannot use them"
            hint = f"`tokenizer: {first.name}`, or another model's name"
            problems.append(Problem(f"{donor.name}: tokenizer.json", what, hint))
    if problems:
        raise ModelError(problems)


def _kind(data: Mapping[str, Any]) -> str:
    """The model's type, and whether its tokens are spelt in bytes."""
    kind = str(data["model"].get("type") or ("BPE" if "merges" in data["model"] else "WordLevel"))
    steps = json.dumps([data.get("pre_tokenizer"), data.get("decoder")])
    return f"byte-level {kind}" if '"ByteLevel"' in steps else kind


def _vocabulary(model: Mapping[str, Any]) -> set[str]:
    vocabulary = model["vocab"]
    return set(vocabulary) if isinstance(vocabulary, dict) else {token for token, _ in vocabulary}


def _pair(merge: Any) -> tuple[str, str]:
    """A merge as its two tokens; older files write them as one text."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right
