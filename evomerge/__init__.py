"""evomerge: search for the best way to merge fine-tuned models.

Names are imported when they are first used, so that `import evomerge` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evomerge.api import merge, search
    from evomerge.errors import EvomergeError
    from evomerge.merging.input_scales import apply_scales
    from evomerge.recipe import Merge, ModelSource, Recipe, Slot
    from evomerge.records import Candidate
    from evomerge.run import Run

__all__ = [
    "Candidate",
    "EvomergeError",
    "Merge",
    "ModelSource",
    "Recipe",
    "Run",
    "Slot",
    "apply_scales",
    "merge",
    "search",
]

_HOMES = {
    "Candidate": "evomerge.records",
    "EvomergeError": "evomerge.errors",
    "Merge": "evomerge.recipe",
    "ModelSource": "evomerge.recipe",
    "Recipe": "evomerge.recipe",
    "Run": "evomerge.run",
    "Slot": "evomerge.recipe",
    "apply_scales": "evomerge.merging.input_scales",
    "merge": "evomerge.api",
    "search": "evomerge.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'evomerge' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
