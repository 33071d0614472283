"""What becomes of an item that a model could not answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import CandidateError
from evomerge.records import ItemId, Responses


def responses_of(
    task: str,
    items: Sequence[ItemId],
    columns: Mapping[str, NDArray[np.float32]],
    failures: Mapping[ItemId, str],
    worst: float | None,
    texts: tuple[str, ...] | None = None,
) -> Responses:
    """Responses in which failed items, and those whose score is not finite, have the worst score.

    So has every item where none could be answered: that the candidate fails then is judged over all
    items that it was asked, which may be those of many jobs (`Measurements.can_answer`).

    Args:
        task: its name.
        items: what was asked.
        columns: name -> (items,) values; `score` among them.
        failures: item -> why it could not be answered.
        worst: the lowest score that there is; None where scores have no bound, as log-likelihoods.
        texts: what was generated.

    Raises:
        CandidateError: an item could not be answered, and there is no worst score.
    """
    asked = np.asarray(items, np.int64)
    failed = dict(failures)
    for place in np.flatnonzero(~np.isfinite(columns["score"])):
        failed.setdefault(int(asked[place]), "the score is not finite")
    if not failed:
        return Responses(task, asked, columns, texts)
    if worst is None:
        item = next(int(item) for item in asked if int(item) in failed)
        raise CandidateError(f"item {item}: {failed[item]}; its scores have no worst value")
    has_failed = np.isin(asked, list(failed))
    kept = {
        name: np.where(has_failed, worst if name == "score" else np.nan, values).astype(np.float32)
        for name, values in columns.items()
    }
    return Responses(task, asked, kept, texts, failed)
