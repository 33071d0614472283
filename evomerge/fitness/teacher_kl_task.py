"""How near a model stays to an expert: fitness without labels.

DAM (arXiv:2410.08371) and Expert Merging train a merge to predict what each expert predicts on that
expert's own prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evomerge.errors import ConfigurationError, Problem
from evomerge.fitness.forward import Tokens
from evomerge.fitness.item_failures import responses_of
from evomerge.fitness.positions import log_probabilities
from evomerge.fitness.prompt_task import PromptRun, PromptTask, Sequences, means_of
from evomerge.protocols import ResidentModel
from evomerge.records import ItemId, Responses

EXACT_VOCABULARY = 4096  # up to here a teacher's whole distribution is kept


@dataclass(frozen=True)
class Lesson:
    """What the teacher said of one prompt, at each position of its own answer.

    Where the vocabulary is large only the likeliest tokens are kept, and what the others have
    together.
    """

    sequence: Tokens  # the prompt and its answer, less the last token
    chosen: Tensor  # (positions,) the teacher's likeliest tokens
    tokens: Tensor | None  # (positions, kept); None for the whole vocabulary
    log_p: Tensor  # (positions, kept) nats
    rest: Tensor | None  # (positions,) log-probability of all other tokens together


def divergences(lessons: Sequence[Lesson], log_q: Tensor) -> Tensor:
    """KL(teacher || candidate) at each position of some lessons, in nats; (positions,).

    log_q: (positions, vocabulary) of the candidate, lesson after lesson.
    """
    log_p = torch.cat([lesson.log_p for lesson in lessons])
    tokens = [lesson.tokens for lesson in lessons if lesson.tokens is not None]
    rests = [lesson.rest for lesson in lessons if lesson.rest is not None]
    if not tokens:
        return _kl(log_p, log_q).sum(-1)
    compared = torch.cat(tokens)
    kept = log_q.gather(-1, compared)
    others = log_q.scatter(-1, compared, -torch.inf).logsumexp(-1)
    return _kl(log_p, kept).sum(-1) + _kl(torch.cat(rests), others)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """The terms p (log p - log q); 0 where p is."""
    p = log_p.exp()
    terms = p * (log_p - log_q)
    return torch.where(p > 0, terms, torch.where(log_q.isnan(), log_q, torch.zeros_like(terms)))


class TeacherKLTask(PromptTask):
    """Minus KL(teacher || candidate) over the teacher's own answers; fulfils `protocols.Task`.

    The teacher answers every prompt once, greedily, before the first candidate is measured; what
    it says at each token of its answer (up to `tokens`, with the one that ends it) is kept. A
    candidate reads the prompt and that answer, and its score is minus the mean divergence over the
    tokens, in nats: 0 for the teacher itself.

    Up to 4,096 tokens of vocabulary the divergence is exact; beyond, the `top` likeliest tokens are
    compared one by one and all others as one, which never gives more than the whole divergence.

    Columns: `score`; `agreement`, the share of the tokens where the candidate's likeliest one is
    the teacher's; `positions`, the number of tokens.

    Args:
        teacher: the name of the model whose predictions count: an expert's, mostly.
        top: how many tokens of a large vocabulary are kept for each position.
        (the others): as for `PromptTask`.
    """

    def __init__(
        self,
        name: str,
        *,
        teacher: str,
        path: str | None = None,
        of: Any = None,
        field: str = "prompt",
        tokens: int = 8,
        until: Sequence[str] | None = None,
        top: int = 256,
        batch_size: int = 64,
        limit: int | None = None,
        allow_code: bool = False,  # noqa: ARG002 - there is none
    ) -> None:
        super().__init__(name, path, of, field, tokens, until, batch_size, limit)
        self.teacher = teacher
        self._top = top
        self._lessons: dict[ItemId, Lesson] = {}

    @property
    def content(self) -> list[Any]:
        """What decides the responses, apart from the models."""
        return [*super().content, self.teacher, self._top]

    def prepare(self, model: ResidentModel, write: Callable[[str], None]) -> None:
        """Let the teacher answer every prompt.

        write: puts a model of the family, by its name, into `model`.

        Raises:
            ConfigurationError: there is no such model, or its logits are not finite.
        """
        write(self.teacher)
        self._runs.clear()  # what was planned was so for other lessons
        run, items = self.run(model), tuple(self.items)
        found = run.answered(model.module, items)
        sequences = [sequence for sequence in found if sequence is not None]
        plan = run.reading(sequences)
        finite = len(sequences) == len(items)
        for requests, log_p in log_probabilities(model.module, plan, self.clock):
            finite = finite and not bool(log_p.isnan().any())
            parts = torch.split(log_p, [sequences[request][1] for request in requests])
            for request, part in zip(requests, parts, strict=True):
                self._lessons[items[request]] = self._lesson(sequences[request][0], part)
        if not finite:
            what = f"the logits of {self.teacher!r} are not finite"
            raise ConfigurationError(Problem(f"task {self.name} teacher", what))

    def sequences(self, run: PromptRun, items: Sequence[ItemId]) -> Sequences:  # noqa: ARG002
        """The prompts with the teacher's answers, at what it chose."""
        lessons = [self._lessons[item] for item in items]
        return [(lesson.sequence, len(lesson.chosen)) for lesson in lessons]

    def _lesson(self, sequence: Tokens, log_p: Tensor) -> Lesson:
        chosen = log_p.argmax(-1)
        if log_p.shape[-1] <= EXACT_VOCABULARY:
            return Lesson(sequence, chosen, None, log_p.clone(), None)
        top = log_p.topk(min(self._top, log_p.shape[-1] - 1), dim=-1)
        rest = log_p.scatter(-1, top.indices, -torch.inf).logsumexp(-1)
        return Lesson(sequence, chosen, top.indices, top.values, rest)

    def respond(self, model: ResidentModel, items: Sequence[ItemId]) -> Responses:
        """Responses in the order of `items`.

        Raises:
            CandidateError: a logit is not finite.
            ConfigurationError: nobody called `prepare`.
        """
        asked = [int(item) for item in items]
        if not self._lessons:
            what = "the teacher was not asked: call prepare() first"
            raise ConfigurationError(Problem(f"task {self.name}", what))
        lessons = [self._lessons[item] for item in asked]
        plan = self.run(model).plan(tuple(asked))
        columns = {
            name: np.full(len(asked), np.nan, np.float32)
            for name in ("score", "agreement", "positions")
        }
        for requests, log_q in log_probabilities(model.module, plan, self.clock):
            taught = [lessons[request] for request in requests]
            lengths = [len(lesson.chosen) for lesson in taught]
            agreed = log_q.argmax(-1) == torch.cat([lesson.chosen for lesson in taught])
            rows = list(requests)
            columns["score"][rows] = -means_of(divergences(taught, log_q), lengths)
            columns["agreement"][rows] = means_of(agreed, lengths)
            columns["positions"][rows] = lengths
        return responses_of(self.name, asked, columns, {}, None)
