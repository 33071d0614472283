"""Where the models of a merge come from, and under what licences, as far as their files tell."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from evomerge.checkpoints.open import Checkpoint
from evomerge.recipe import Recipe

CARD = "README.md"
MAX_CARD_BYTES = 1_000_000
# A snapshot in huggingface_hub's cache: .../models--ORG--NAME/snapshots/REVISION
_SNAPSHOT = re.compile(r"/models--([^/]+(?:--[^/]+)*)/snapshots/([0-9a-f]{7,40})(?:/|$)")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]{1,96}")
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]{1,60}")  # as the hub writes them


@dataclass(frozen=True)
class Origin:
    """A model: what it is called, and what is known of it.

    name: its id on a hub, the experiment's reference (`zoo:tiny/sort`), or else its path.
    hub_id, revision: where it is a snapshot of a hub.
    licence: what its card says in its head, in the hub's words; None where nothing does.
    """

    name: str
    hub_id: str | None = None
    revision: str | None = None
    licence: str | None = None


def origins_of(
    recipe: Recipe,
    checkpoints: Mapping[str, Checkpoint],
    references: Mapping[str, str] | None = None,
) -> dict[str, Origin]:
    """Every model of a recipe.

    references: how the experiment names them, where there is one.
    """
    found = {}
    for label, source in recipe.models.items():
        path = checkpoints[label].path if label in checkpoints else None
        named = (references or {}).get(label, source.path)
        hub_id, revision = hub_snapshot(str(path) if path is not None else source.path)
        portable = named if named.startswith(("zoo:", "memory:")) else source.path
        found[label] = Origin(hub_id or portable, hub_id, revision, licence_of(path))
    return found


def hub_snapshot(path: str) -> tuple[str | None, str | None]:
    """The id and revision of a folder in the hub's cache; None for any other folder."""
    match = _SNAPSHOT.search(path)
    if match is None:
        return None, None
    hub_id = match[1].replace("--", "/", 1)
    return (hub_id, match[2]) if _HUB_ID.fullmatch(hub_id) else (None, None)


def licence_of(path: Path | None) -> str | None:
    """What the head of a model's card says, in the hub's own words; None where it says nothing.

    `other` is no licence that two models could share. A model that is a single file has no card:
    what lies beside it may be of something else.
    """
    if path is None:
        return None
    card = path / CARD
    try:
        if not card.is_file() or card.stat().st_size > MAX_CARD_BYTES:
            return None
        text = card.read_text(encoding="utf-8")
        head = re.match(r"---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", text, re.DOTALL)
        data = yaml.safe_load(head[1]) if head else None
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None
    licence = data.get("license") if isinstance(data, dict) else None
    if isinstance(licence, list) and len(licence) == 1:
        licence = licence[0]
    known = isinstance(licence, str) and _LICENCE.fullmatch(licence) and licence != "other"
    return str(licence) if known else None


def common_licence(origins: Mapping[str, Origin]) -> str | None:
    """The licence of all models, if each states one and it is the same."""
    stated = {origin.licence for origin in origins.values()}
    return stated.pop() if len(stated) == 1 else None
