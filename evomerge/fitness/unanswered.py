"""Items without a right answer: whatever a model says to them, it is wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.errors import ConfigurationError
from evomerge.fitness.choices import named_right
from evomerge.fitness.lm_eval_files import scores_by_own_code


def without_answer(task: Any, documents: Sequence[Any]) -> list[int]:
    """Positions of the documents in which an lm-eval task finds no right answer.

    None where the score need not be a comparison with one: documents whose likelihood is the
    score, and scoring by the task's own code.
    """
    if task.OUTPUT_TYPE == "loglikelihood_rolling" or _judges_by_itself(task):
        return []
    return [place for place, document in enumerate(documents) if not _is_answered(task, document)]


def _judges_by_itself(task: Any) -> bool:
    metrics = (entry.get("metric") for entry in task.config.metric_list or ())
    return scores_by_own_code(task) or any(map(callable, metrics))


def _is_answered(task: Any, document: Mapping[str, Any]) -> bool:
    try:
        if task.OUTPUT_TYPE == "multiple_choice":
            right, choices = named_right(task, document)
            return any(one in range(len(choices)) for one in right)
        target = task.doc_to_target(document)
        several = target if isinstance(target, list) else [target]
        return any(not _is_blank(one) for one in several) and not _is_none(task, document, target)
    except ConfigurationError:
        raise  # the guard's
    except Exception:
        return False  # a template, or the task's code, that chokes on what is not there


def _is_blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _is_none(task: Any, document: Mapping[str, Any], target: Any) -> bool:
    """Whether the target is the word that templates make of an empty field; it may be an answer."""
    if not isinstance(target, str) or target.strip() != "None":
        return False
    filled = {name: "" if value is None else value for name, value in document.items()}
    return _is_blank(task.doc_to_target(filled))
