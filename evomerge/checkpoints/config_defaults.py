"""A model's config with what its class adds: versions of transformers differ in what they write."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def parsed_config(config: Mapping[str, Any]) -> Any | None:
    """The transformers config that a config.json stands for; None if its class is not known."""
    from transformers import AutoConfig

    settings = {k: v for k, v in config.items() if k not in ("model_type", "auto_map")}
    try:
        return AutoConfig.for_model(config.get("model_type", ""), **settings)
    except Exception:  # a config can ask for anything
        return None


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config with its class's defaults; as it is where transformers does not know the class."""
    parsed = parsed_config(config)
    return dict(config) if parsed is None else dict(parsed.to_dict())
