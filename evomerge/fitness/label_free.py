"""Fitness without labels: how sure a model is, and how near it stays to an expert.

Entropy: AdaMerging (Yang et al. 2024, arXiv:2310.02575) minimises the entropy of a merged model's
predictions. KL to the experts: DAM (arXiv:2410.08371) and Expert Merging train a merge to predict
what each expert predicts on that expert's own prompts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from evomerge.errors import ConfigurationError, Problem
from evomerge.fitness.forward import ForwardClock, Tokens
from evomerge.fitness.generation import PromptPlan, generate
from evomerge.fitness.item_failures import responses_of
from evomerge.fitness.perplexity_task import encoder_of
from evomerge.fitness.positions import PositionPlan, log_probabilities
from evomerge.fitness.prompts import Encoder
from evomerge.fitness.texts import prompts_of
from evomerge.protocols import ResidentModel
from evomerge.recipe import canonical_json
from evomerge.records import ItemId, Responses

EXACT_VOCABULARY = 4096  # up to here a teacher's whole distribution is kept


class PromptTask:
    """What both kinds share: prompts, and greedy answers to them.

    Args:
        name: the task's name.
        path: a file of prompts: .txt (one on each line), .jsonl or .csv.
        of: a task whose prompts to use; the fitness file names it.
        field: of a record, which holds its prompt.
        tokens: of an answer, at most.
        until: what ends an answer beside the tokenizer's end token; by default what ends those of
            the task `of`.
        batch_size: rows of a forward pass.
        limit: use the first prompts only.

    Raises:
        ConfigurationError: the prompts cannot be read.
    """

    def __init__(
        self,
        name: str,
        path: str | None,
        of: Any,
        field: str,
        tokens: int,
        until: Sequence[str] | None,
        batch_size: int,
        limit: int | None,
    ) -> None:
        self.name = name
        self.clock = ForwardClock()
        self.prompts = prompts_of(f"task {name}", path, of, field, limit)
        self.tokens, self.batch_size = tokens, batch_size
        settings = getattr(self.prompts, "settings", None)
        theirs = settings.until if settings is not None else ()
        self.until = tuple(theirs if until is None else until)

    @property
    def items(self) -> Sequence[ItemId]:
        """Positions in the prompts."""
        return self.prompts.items

    @property
    def forward_s(self) -> float:
        """Seconds spent in the model's forward passes."""
        return self.clock.seconds

    @property
    def content(self) -> list[Any]:
        """What decides the responses, apart from the model."""
        how = [self.tokens, list(self.until), self.batch_size]
        return [type(self).__name__, self.prompts.fingerprint, *how]

    @property
    def fingerprint(self) -> str:
        """sha256 of the prompts and of how they are asked."""
        return hashlib.sha256(canonical_json(self.content).encode()).hexdigest()

    def encoded(self, encoder: Encoder, items: Sequence[ItemId]) -> list[Tokens]:
        """The tokens of the prompts; one without any is the tokenizer's first token."""
        first = () if encoder.prefix_id is None else (encoder.prefix_id,)
        found = [encoder.encode(self.prompts.prompt(i, encoder.tokenizer)) or first for i in items]
        if not all(found):
            what = "a prompt has no tokens, and the tokenizer has no first token"
            raise ConfigurationError(Problem(f"task {self.name}", what))
        return found

    def answered(
        self, module: nn.Module, encoder: Encoder, prompts: Sequence[Tokens]
    ) -> list[tuple[Tokens, int] | None]:
        """Each prompt with the model's greedy answer, and how many tokens the model chose.

        The token that ends an answer was chosen too, and does not stand in the sequence: nothing is
        read after it. None where a logit is not finite.
        """
        if self.tokens == 1:
            return [(prompt, 1) for prompt in prompts]
        if self.tokens >= encoder.max_length:
            what = f"tokens: {self.tokens} leaves no room in {encoder.max_length} positions"
            raise ConfigurationError(Problem(f"task {self.name}", what))
        stop = encoder.stop_rule(self.until)
        order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), prompts[i]))
        plan = PromptPlan(prompts, order, self.batch_size, self.tokens, encoder.max_length)
        sequences: list[tuple[Tokens, int] | None] = []
        for prompt, answer in zip(prompts, generate(module, plan, stop, self.clock), strict=True):
            if answer is None:
                sequences.append(None)
                continue
            text = encoder.tokenizer.decode(answer, skip_special_tokens=True)
            has_stop = stop.text(answer) != text
            chosen = len(answer) if has_stop or len(answer) == self.tokens else len(answer) + 1
            kept = prompt[-(encoder.max_length - self.tokens) :] + answer[: chosen - 1]
            sequences.append((kept, chosen))
        return sequences


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
        asked = [int(item) for item in items]
        encoder = encoder_of(model, self.name)
        prompts = self.encoded(encoder, asked)
        found = self.answered(model.module, encoder, prompts)
        failures = {i: "a logit is not finite" for i, s in zip(asked, found, strict=True) if not s}
        sequences = [s or (p, 1) for s, p in zip(found, prompts, strict=True)]
        plan = PositionPlan(sequences, self.batch_size, encoder.max_length)
        scores = np.full(len(asked), np.nan, np.float32)
        for requests, log_p in log_probabilities(model.module, plan, self.clock):
            entropies = torch.special.entr(log_p.exp()).sum(-1)
            scores[list(requests)] = -_means(entropies, [sequences[r][1] for r in requests])
        counts = np.array([chosen for _, chosen in sequences], np.float32)
        columns = {"score": scores, "positions": counts}
        return responses_of(self.name, asked, columns, failures, None)


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
        encoder = encoder_of(model, self.name)
        items = list(self.items)
        found = self.answered(model.module, encoder, self.encoded(encoder, items))
        sequences = [sequence for sequence in found if sequence is not None]
        plan = PositionPlan(sequences, self.batch_size, encoder.max_length)
        finite = len(sequences) == len(items)
        for requests, log_p in log_probabilities(model.module, plan, self.clock):
            finite = finite and not bool(log_p.isnan().any())
            parts = torch.split(log_p, [sequences[request][1] for request in requests])
            for request, part in zip(requests, parts, strict=True):
                self._lessons[items[request]] = self._lesson(sequences[request][0], part)
        if not finite:
            what = f"the logits of {self.teacher!r} are not finite"
            raise ConfigurationError(Problem(f"task {self.name} teacher", what))

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
        sequences = [(lesson.sequence, len(lesson.chosen)) for lesson in lessons]
        encoder = encoder_of(model, self.name)
        plan = PositionPlan(sequences, self.batch_size, encoder.max_length)
        columns = {
            name: np.full(len(asked), np.nan, np.float32)
            for name in ("score", "agreement", "positions")
        }
        for requests, log_q in log_probabilities(model.module, plan, self.clock):
            taught = [lessons[request] for request in requests]
            lengths = [len(lesson.chosen) for lesson in taught]
            agreed = log_q.argmax(-1) == torch.cat([lesson.chosen for lesson in taught])
            rows = list(requests)
            columns["score"][rows] = -_means(divergences(taught, log_q), lengths)
            columns["agreement"][rows] = _means(agreed, lengths)
            columns["positions"][rows] = lengths
        return responses_of(self.name, asked, columns, {}, None)


def _means(values: Tensor, lengths: Sequence[int]) -> NDArray[np.float64]:
    """The mean of each stretch of some lengths."""
    starts = np.cumsum([0, *lengths[:-1]])
    return np.asarray(np.add.reduceat(values.double().numpy(), starts) / np.asarray(lengths))
