"""lm-eval's exact match, recognised where it is plain equality of texts.

lm-eval takes some 25 microseconds to compare two texts; a candidate gives a hundred new answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evomerge.fitness.lm_eval_files import scores_by_own_code


def expected_answers(
    task: Any, metric: str, filters: Sequence[Any], documents: Sequence[Any]
) -> list[str] | None:
    """Every document's right answer; None where exact match is more than equality.

    More than equality: options such as `ignore_case`, filters that change the answer, several
    right answers, another metric of that name, or scoring by the task's own code.
    """
    from lm_eval.api.metrics import exact_match_fn
    from lm_eval.filters.selection import TakeFirstFilter

    plain = (
        metric == "exact_match"
        and task.OUTPUT_TYPE == "generate_until"
        and not scores_by_own_code(task)
        and task._metric_fn_list.get(metric) is exact_match_fn
        and not task._metric_fn_kwargs.get(metric)
        and all(type(step) is TakeFirstFilter for step in filters)
        and not task.multiple_target
        and task.config.doc_to_choice is None
    )
    if not plain:
        return None
    answers = [task.doc_to_target(document) for document in documents]
    # Other types are cast to text by lm-eval, lists are not.
    return answers if all(type(answer) is str for answer in answers) else None


def exact_match(expected: str, answer: str) -> float:
    """1 where the texts are equal; as in lm-eval's numpy arrays, NULs at the end do not count."""
    return float(expected.rstrip("\0") == answer.rstrip("\0"))
