"""Log-likelihoods of whole documents, in windows as long as the model: perplexity tasks.

The windows are those of lm-evaluation-harness's `HFLM.loglikelihood_rolling`, and so are their
batches: in the order of the documents, not by length. Equal batches give equal bits.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from evomerge.errors import ConfigurationError, Problem
from evomerge.fitness.likelihoods import ContinuationPlan, log_likelihoods
from evomerge.fitness.prompts import Encoder
from evomerge.fitness.task_runs import Answered, Kept, column
from evomerge.records import ItemId

if TYPE_CHECKING:
    from evomerge.fitness.lm_eval_task import LmEvalTask


@dataclass(frozen=True)
class _RollingPlan:
    batches: list[ContinuationPlan]
    bounds: list[int]  # an item's windows are [bounds[i], bounds[i + 1])


class RollingRun:
    """A task of documents' log-likelihoods, for one tokenizer.

    Raises:
        ConfigurationError: the tokenizer has no token to begin a document with.
    """

    def __init__(self, task: LmEvalTask, encoder: Encoder) -> None:
        self.task = task
        self.encoder = encoder
        if encoder.prefix_id is None:
            what = "the tokenizer has neither a first nor a last token to begin a document with"
            raise ConfigurationError(Problem(f"task {task.name}", what))
        self._prefix: int = encoder.prefix_id
        self._plans = Kept[_RollingPlan](self._plan)

    def respond(self, module: torch.nn.Module, items: tuple[ItemId, ...]) -> Answered:
        """Columns of the responses, as `LmEvalTask` tells; no texts; what could not be answered."""
        plan = self._plans(items)
        windows: list[float] = []
        for batch in plan.batches:
            windows += log_likelihoods(module, batch, self.task.clock)[0].tolist()
        sums = [sum(windows[start:end]) for start, end in itertools.pairwise(plan.bounds)]
        scores, failures = [], {}
        for item, total in zip(items, sums, strict=True):
            score, reason = self.task.score_or_reason(item, [total])
            if reason:
                failures[item] = reason
            scores.append(score)
        return {"score": column(scores), "loglikelihood": column(sums)}, None, failures

    def _plan(self, items: tuple[ItemId, ...]) -> _RollingPlan:
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        windows: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
        bounds = [0]
        for item in items:
            (request,) = self.task.requests(item, self.encoder.tokenizer)
            tokens = list(self.encoder.encode(request.args[0]))
            for pair in get_rolling_token_windows(tokens, self._prefix, self.encoder.max_length, 1):
                context, predicted = make_disjoint_window(pair)
                windows.append((tuple(context), tuple(predicted)))
            bounds.append(len(windows))
        size = self.task.batch_size
        return _RollingPlan(
            [
                ContinuationPlan(windows[start : start + size], size, self.encoder.max_length)
                for start in range(0, len(windows), size)
            ],
            bounds,
        )
