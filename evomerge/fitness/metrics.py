"""Which of a task's filters and metrics are asked for, and what is one number per item."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from evomerge.errors import ConfigurationError, Problem, nearest


def choose_filter(name: str, task: Any, wanted: str | None) -> tuple[str, list[Any]]:
    """A filter of an lm-eval task and its steps; the first by default.

    Raises:
        ConfigurationError: the task has no such filter, or it cannot be made.
    """
    ensembles = {ensemble.name: ensemble for ensemble in task._filters}
    if wanted is not None and wanted not in ensembles:
        what = f"unknown filter {wanted!r}"
        raise ConfigurationError(Problem(f"{name} filter", what, nearest(wanted, ensembles)))
    chosen = next(iter(ensembles)) if wanted is None else wanted
    try:
        return chosen, [make() for make in ensembles[chosen].filters]
    except Exception as error:  # what a filter's arguments may do: a pattern that is none, ...
        what = f"{chosen!r} cannot be made: {type(error).__name__}: {error}"
        raise ConfigurationError(Problem(f"{name} filter_list", what)) from error


def choose_metric(name: str, task: Any, wanted: str | None, results: Mapping[str, Any]) -> str:
    """A metric of an lm-eval task; the first that is a mean over items by default.

    An estimate from some items is one of their mean, so what lm-eval aggregates otherwise would be
    another number than lm-eval's.

    Args:
        name: evomerge's name of the task.
        task: lm-eval's task.
        wanted: what the user says.
        results: metric -> its value for some item.

    Raises:
        ConfigurationError: there is no such metric, or it is no mean over items.
    """
    valid = [key for key, value in results.items() if _is_mean(task, key, value)]
    chosen = wanted or next(iter(valid or results), None)
    if chosen is None:
        what = f"the task has no metric that lm-eval computes for {task.OUTPUT_TYPE}"
        raise ConfigurationError(Problem(f"{name} metric_list", what))
    if chosen not in valid:
        what = "unknown metric"
        if chosen in results:
            how = getattr(task.aggregation().get(chosen), "__name__", "its own code")
            what = f"is computed over all items at once, by {how!r}, and is no mean over items"
        raise ConfigurationError(
            Problem(f"{name} metric", f"{chosen!r}: {what}", nearest(chosen, valid))
        )
    return chosen


def is_ratio(task: Any, metric: str) -> bool:
    """Whether lm-eval divides sums over documents: log-likelihoods by numbers of words or bytes."""
    from lm_eval.api.metrics import bits_per_byte, weighted_perplexity

    aggregation = task.aggregation().get(metric)
    rolling = task.OUTPUT_TYPE == "loglikelihood_rolling"
    return rolling and aggregation in (bits_per_byte, weighted_perplexity)


def share_of_mean(task: Any, metric: str, documents: Sequence[Any]) -> float | None:
    """What a document's log-likelihood is multiplied with, so that its mean is the metric's log.

    lm-eval divides the sum of all documents' log-likelihoods by the sum of their words or bytes.
    Divided by the mean number of words or bytes of a document, the log-likelihoods have this ratio
    as their mean: minus the log of `word_perplexity` or `byte_perplexity`, or minus
    `bits_per_byte`. The mean over a random part of the documents estimates it without bias.

    None where the metric is not such a ratio.
    """
    from lm_eval.api.metrics import bits_per_byte

    if not is_ratio(task, metric):
        return None
    lengths = [task.process_results(document, [-1.0])[metric][1] for document in documents]
    if not sum(lengths) > 0:
        raise ConfigurationError(Problem(metric, "the documents are empty"))
    unit = math.log(2) if task.aggregation()[metric] is bits_per_byte else 1.0
    return float(len(lengths) / sum(lengths) / unit)


def _is_mean(task: Any, metric: str, value: Any) -> bool:
    """Whether a metric, or its log, is a mean over items, of which `value` is an example.

    The logs of ratios and of lm-eval's perplexity are means of log-likelihoods.
    """
    from lm_eval.api.metrics import mean, perplexity

    if is_ratio(task, metric):
        return True
    aggregation = task.aggregation().get(metric, mean)  # lm-eval's default, too
    is_perplexity = metric == "perplexity" and aggregation is perplexity
    is_number = isinstance(value, bool | int | float | np.number | np.bool_)
    return is_number and (is_perplexity or aggregation in (mean, np.mean, fmean))
