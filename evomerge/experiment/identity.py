"""Whether two experiments are the same, as far as their trajectories go, and where they differ."""

from __future__ import annotations

from typing import Any

from evomerge.documents import Document, leaves
from evomerge.errors import ConfigurationError
from evomerge.recipe import canonical_json
from evomerge.search_spaces import parse_space


def differences(recorded: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Where two identities differ: the key, and both values."""
    one, other = leaves(of_today(recorded)), leaves(of_today(now))
    if one.get("start") != other.get("start"):  # sha256 say nothing to anybody
        one["start"], other["start"] = "designs or a warm_start of its own", "others"
    found = []
    for key in sorted({*one, *other}):
        was, is_now = one.get(key), other.get(key)
        # Of a space, 1 is a number of layers, and 1.0 is all of them.
        same = was == is_now
        if key.startswith("space."):
            same = canonical_json(was) == canonical_json(is_now)
        if not same:
            found.append((key, was, is_now))
    return found


def of_today(identity: dict[str, Any]) -> dict[str, Any]:
    """A recorded identity, with the keys of search spaces that older runs did not know."""
    try:
        space = parse_space(Document(identity["space"])).model_dump(mode="json")
    except ConfigurationError:
        return identity
    return {**identity, "space": space}
