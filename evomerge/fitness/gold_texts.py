"""Whole texts of a task's items: what the model is asked, and the right answer behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from evomerge.errors import ConfigurationError, Problem
from evomerge.fitness.texts import Prompting
from evomerge.records import ItemId


@runtime_checkable
class GoldTexts(Protocol):
    """What a task has that knows the right answers."""

    def text(self, item: ItemId, tokenizer: Any) -> str:
        """Prompt and right answer; the prompt alone where there is no one answer."""
        ...


def texts_of_items(name: str, task: Any, items: Sequence[ItemId], tokenizer: Any) -> list[str]:
    """A task's items as texts: with the answer where the task tells it, else prompts alone.

    Raises:
        ConfigurationError: the task has no texts.
    """
    if isinstance(task, GoldTexts):
        return [task.text(item, tokenizer) for item in items]
    if isinstance(task, Prompting):
        return [task.prompt(item, tokenizer) for item in items]
    what = f"a task of kind {type(task).__name__} has no texts"
    raise ConfigurationError(Problem(f"task {name}", what, "name one of kind lm_eval"))
