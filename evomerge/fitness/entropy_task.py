"""How sure a model is: fitness without labels.

AdaMerging (Yang et al. 2024, arXiv:2310.02575) minimises the entropy of a merged model's
predictions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from evomerge.fitness.item_failures import responses_of
from evomerge.fitness.positions import log_probabilities
from evomerge.fitness.prompt_task import PromptTask, means_of
from evomerge.protocols import ResidentModel
from evomerge.records import ItemId, Responses

NOT_FINITE = "a logit is not finite"


class EntropyTask(PromptTask):
    """Minus the mean entropy of the next-token distribution, in nats; fulfils `protocols.Task`.

    At the token after the prompt, or at each of the first `tokens` of the model's own greedy
    answer. A model that is sure of everything has 0, whether it is right or not: see docs/tasks.md.

    Columns: `score`; `positions`, how many distributions it is the mean of.
    """

    def __init__(
        self,
        name: str,
        *,
        path: str | None = None,
        of: Any = None,
        field: str = "prompt",
        tokens: int = 1,
        until: Sequence[str] | None = None,
        batch_size: int = 64,
        limit: int | None = None,
        allow_code: bool = False,  # noqa: ARG002 - there is none
    ) -> None:
        super().__init__(name, path, of, field, tokens, until, batch_size, limit)

    def respond(self, model: ResidentModel, items: Sequence[ItemId]) -> Responses:
        """Responses in the order of `items`.

        Raises:
            CandidateError: a logit is not finite.
        """
        asked = tuple(int(item) for item in items)
        run = self.run(model)
        if self.tokens == 1:
            plan, counts, failures = run.plan(asked), [1] * len(asked), {}
        else:
            found = run.answered(model.module, asked)
            failures = {i: NOT_FINITE for i, s in zip(asked, found, strict=True) if s is None}
            sequences = [s or (p, 1) for s, p in zip(found, run.prompts(asked), strict=True)]
            plan, counts = run.reading(sequences), [chosen for _, chosen in sequences]
        scores = np.full(len(asked), np.nan, np.float32)
        for requests, log_p in log_probabilities(model.module, plan, self.clock):
            entropies = torch.special.entr(log_p.exp()).sum(-1)
            scores[list(requests)] = -means_of(entropies, [counts[r] for r in requests])
        columns = {"score": scores, "positions": np.array(counts, np.float32)}
        return responses_of(self.name, asked, columns, failures, None)
