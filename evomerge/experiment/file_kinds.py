"""Which kind of file a YAML file is, where another kind is wanted."""

from __future__ import annotations

from typing import Any

from evomerge.documents import Document
from evomerge.errors import ConfigurationError, Problem
from evomerge.search_spaces import SPACES

CALLED = {
    "experiments": "an experiment",
    "experiments/sweeps": "a sweep",
    "search_spaces": "a search space",
    "fitness": "a fitness",
}


def kind_of(data: Any) -> str | None:
    """What a file is, by its content; None where that does not tell."""
    if not isinstance(data, dict):
        return None
    keys = data.keys()
    if "experiment" in keys:
        return "experiments/sweeps"
    if len({"base", "experts", "space", "fitness", "searcher", "budget"} & keys) >= 2:
        return "experiments"
    if {"tasks", "objectives"} & keys:
        return "fitness"
    if data.get("kind") in list(SPACES) or {"operator", "search"} <= keys:
        return "search_spaces"
    if {"default", "slots", "segments"} & keys and "models" in keys:
        return "recipe"
    if "task" in keys and {"dataset_path", "doc_to_text", "output_type"} & keys:
        return "task"
    return None


def check_kind(document: Document, wanted: str, place: str) -> None:
    """Refuse a file that is surely of another kind.

    Raises:
        ConfigurationError: saying what it is.
    """
    found = kind_of(document.data)
    if found is None or found == wanted:
        return
    called = {**CALLED, "recipe": "a recipe", "task": "a task of lm-eval"}
    what = f"{document.path} is {called[found]}, and {called[wanted]} is wanted here"
    raise ConfigurationError(Problem(place, what, _HINTS.get((wanted, found), "")))


_HINTS = {
    ("experiments", "experiments/sweeps"): "evomerge sweep runs it",
    ("experiments", "search_spaces"): "name it under `space:` in an experiment",
    ("experiments", "fitness"): "name it under `fitness:` in an experiment",
    ("experiments", "recipe"): "evomerge merge makes it, evomerge score measures it",
    ("fitness", "task"): "name it as a task's `path:` in a fitness",
}
