"""How well a model predicts texts."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from evomerge.errors import ConfigurationError, Problem
from evomerge.fitness.forward import ForwardClock, Tokens
from evomerge.fitness.item_failures import responses_of
from evomerge.fitness.likelihoods import ContinuationPlan, log_likelihoods
from evomerge.fitness.prompts import Encoder
from evomerge.fitness.texts import FilePrompts
from evomerge.protocols import ResidentModel
from evomerge.recipe import canonical_json
from evomerge.records import ItemId, Responses


class PerplexityTask:
    """The mean log-likelihood per token of each text, in nats; exp(-score) is its perplexity.

    A text's first token is predicted from the tokenizer's first special token. A text that is
    longer than the model is predicted in windows that do not overlap, each from the last token
    before it, as lm-evaluation-harness's `loglikelihood_rolling` does. Fulfils `protocols.Task`.

    Columns: `score`; `loglikelihood`, the sum in nats; `tokens`, how many were predicted.

    Args:
        name: the task's name.
        path: a .txt file (a text on each line), or a .jsonl or .csv file.
        field: of a record, which holds its text.
        max_length: tokens of a window; the model's positions by default.
        batch_size: rows of a forward pass.
        limit: use the first texts only.
        allow_code: changes nothing here.

    Raises:
        ConfigurationError: the file cannot be read.
    """

    def __init__(
        self,
        name: str,
        *,
        path: str,
        field: str = "text",
        max_length: int | None = None,
        batch_size: int = 16,
        limit: int | None = None,
        allow_code: bool = False,  # noqa: ARG002 - there is none
    ) -> None:
        self.name = name
        self.clock = ForwardClock()
        self._texts = FilePrompts(f"task {name}", path, field, limit)
        self._max_length, self._batch_size = max_length, batch_size
        self._windows: dict[tuple[int, int], list[list[tuple[Tokens, Tokens]]]] = {}
        self._tokenizer: Any = None  # held, so that no other can have its id

    @property
    def items(self) -> Sequence[ItemId]:
        """Positions in the file's texts."""
        return self._texts.items

    @property
    def fingerprint(self) -> str:
        """sha256 of the texts and of how they are cut."""
        content = ["perplexity", self._texts.fingerprint, self._max_length, self._batch_size]
        return hashlib.sha256(canonical_json(content).encode()).hexdigest()

    @property
    def forward_s(self) -> float:
        """Seconds spent in the model's forward passes."""
        return self.clock.seconds

    def prompt(self, item: ItemId, tokenizer: Any = None) -> str:
        """The text of an item."""
        return self._texts.prompt(item, tokenizer)

    def respond(self, model: ResidentModel, items: Sequence[ItemId]) -> Responses:
        """Responses in the order of `items`.

        Raises:
            CandidateError: a log-likelihood is not finite.
            ConfigurationError: the model has no tokenizer, or a text has no tokens.
        """
        asked = [int(item) for item in items]
        windows = self._encoded(model)
        pairs = [windows[item] for item in asked]
        flat = [pair for of_item in pairs for pair in of_item]
        encoder_length = max((len(c) + len(t) for c, t in flat), default=1)
        plan = ContinuationPlan(flat, self._batch_size, encoder_length)
        sums, _ = log_likelihoods(model.module, plan, self.clock)
        starts = list(itertools.accumulate(map(len, pairs), initial=0))[:-1]
        totals = np.add.reduceat(sums.astype(np.float64), starts) if asked else sums
        tokens = np.array([sum(len(t) for _, t in of_item) for of_item in pairs], np.float64)
        columns = {"score": totals / tokens, "loglikelihood": totals, "tokens": tokens}
        return responses_of(
            self.name, asked, {n: v.astype(np.float32) for n, v in columns.items()}, {}, None
        )

    def _encoded(self, model: ResidentModel) -> list[list[tuple[Tokens, Tokens]]]:
        """Every text's (context, continuation) windows, for the model's tokenizer."""
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        encoder = encoder_of(model, self.name)
        longest = min(self._max_length or encoder.max_length, encoder.max_length)
        key = (id(model.tokenizer), longest)
        if key in self._windows:
            return self._windows[key]
        if encoder.prefix_id is None:
            what = "the tokenizer has neither a first nor an end token to predict from"
            raise ConfigurationError(Problem(f"task {self.name}", what))
        encoded = []
        for item in self.items:
            tokens = list(encoder.encode(self.prompt(item)))
            if not tokens:
                raise ConfigurationError(Problem(f"task {self.name}", f"text {item} has no tokens"))
            windows = get_rolling_token_windows(tokens, encoder.prefix_id, longest, 1)
            pairs = map(make_disjoint_window, windows)
            encoded.append([(tuple(context), tuple(goal)) for context, goal in pairs])
        self._tokenizer = model.tokenizer
        self._windows = {key: encoded}
        return encoded


def encoder_of(model: ResidentModel, task: str) -> Encoder:
    """The encoder of a language model in memory.

    Raises:
        ConfigurationError: it has no tokenizer.
    """
    if model.tokenizer is None:
        what = f"the model ({type(model.module).__name__}) has no tokenizer"
        raise ConfigurationError(Problem(f"task {task}", what))
    return Encoder(model.tokenizer, model.module.config)
