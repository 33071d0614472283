"""What a model's settings say about its tokens: how many there are, and ids of special ones."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_IDS = re.compile(r"(_token_ids?|_token_index|^(begin_)?suppress_tokens|^(bad|force)_words_ids)$")


def declared_size(config: Mapping[str, Any]) -> int | None:
    """vocab_size, of the text model where there are several."""
    for part in (config.get("text_config"), config):
        if isinstance(part, Mapping) and isinstance(size := part.get("vocab_size"), int):
            return size
    return None


def resized(config: Mapping[str, Any], num_rows: int) -> dict[str, Any]:
    """A config for another number of tokens."""
    made: dict[str, Any] = json.loads(json.dumps(config))
    text = made.get("text_config")
    parts = [made, *([text] if isinstance(text, dict) else [])]
    declaring = [part for part in parts if "vocab_size" in part] or parts[-1:]
    for part in declaring:
        part["vocab_size"] = num_rows
    return made


def following(
    settings: Mapping[str, Any], tokens: Mapping[int, str], ids: Mapping[str, int]
) -> dict[str, Any]:
    """Settings with the ids of special tokens changed, by token.

    Args:
        settings: of config.json or generation_config.json.
        tokens: by the old id.
        ids: new ids, by token; one that is not among them becomes None, or leaves its list.
    """

    def moved(value: Any) -> Any:
        if isinstance(value, list):
            return [m for v in value if (m := moved(v)) is not None]
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            return value
        return ids.get(tokens[value]) if value in tokens else None

    return {
        key: following(value, tokens, ids)
        if isinstance(value, Mapping)
        else moved(value)
        if _IDS.search(key)
        else value
        for key, value in settings.items()
    }


def with_ids_of(settings: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the ids of special tokens that `chosen` has, which are kept as they are."""
    made = dict(settings)
    for key, value in chosen.items():
        if isinstance(value, Mapping) and isinstance(made.get(key), Mapping):
            made[key] = with_ids_of(made[key], value)
        elif _IDS.search(key) and value is not None:
            made[key] = value
    return made
