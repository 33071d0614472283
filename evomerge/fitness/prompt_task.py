"""What tasks without labels share: prompts, and greedy answers to them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from evomerge.errors import ConfigurationError, Problem
from evomerge.fitness.forward import ForwardClock, Tokens
from evomerge.fitness.generation import PromptPlan, StopRule, generate
from evomerge.fitness.perplexity_task import encoder_of
from evomerge.fitness.positions import PositionPlan
from evomerge.fitness.prompts import Encoder, max_length
from evomerge.fitness.task_runs import Kept
from evomerge.fitness.texts import prompts_of
from evomerge.protocols import ResidentModel
from evomerge.recipe import canonical_json
from evomerge.records import ItemId

Sequences = list[tuple[Tokens, int]]  # tokens, and at how many of the last to read what comes next


class PromptTask:
    """Prompts, and how they are answered; the kinds of task say what is read.

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
        self._runs: dict[tuple[int, int], PromptRun] = {}

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

    def run(self, model: ResidentModel) -> PromptRun:
        """What is kept for the model's tokenizer.

        Raises:
            ConfigurationError: it has none.
        """
        key = (id(model.tokenizer), max_length(model.module.config, model.tokenizer))
        if key not in self._runs:
            # The run holds the tokenizer, so that its id cannot be taken by another.
            self._runs[key] = PromptRun(self, encoder_of(model, self.name))
        return self._runs[key]

    def sequences(self, run: PromptRun, items: Sequence[ItemId]) -> Sequences:
        """What is read whoever the candidate is: the prompts, at their ends."""
        return [(prompt, 1) for prompt in run.prompts(tuple(items))]


class PromptRun:
    """A task's prompts for one tokenizer; what does not depend on a candidate is kept.

    Calls of its attributes, for a tuple of items:

    prompts: their tokens; of a prompt without any, the tokenizer's first token.
    plan: how the sequences that the task reads of every candidate are read.
    """

    def __init__(self, task: PromptTask, encoder: Encoder) -> None:
        self.encoder = encoder
        self._task = task
        self.prompts = Kept[list[Tokens]](self._encoded)
        self.plan = Kept[PositionPlan](lambda items: self.reading(task.sequences(self, items)))
        self._answer_plans = Kept[PromptPlan](self._answer_plan)

    def reading(self, sequences: Sequences) -> PositionPlan:
        """How some sequences are read; nothing is kept."""
        return PositionPlan(sequences, self._task.batch_size, self.encoder.max_length)

    def answered(
        self, module: nn.Module, items: tuple[ItemId, ...]
    ) -> list[tuple[Tokens, int] | None]:
        """Each prompt with the model's greedy answer, and how many tokens the model chose.

        The token that ends an answer was chosen too, and does not stand in the sequence: nothing is
        read after it. None where a logit is not finite.

        Raises:
            ConfigurationError: answers are as long as the model, or longer.
        """
        prompts, most, encoder = self.prompts(items), self._task.tokens, self.encoder
        if most == 1:
            return [(prompt, 1) for prompt in prompts]
        answers = generate(module, self._answer_plans(items), self._stop, self._task.clock)
        sequences: list[tuple[Tokens, int] | None] = []
        for prompt, answer in zip(prompts, answers, strict=True):
            if answer is None:
                sequences.append(None)
                continue
            text = encoder.tokenizer.decode(answer, skip_special_tokens=True)
            has_stop = self._stop.text(answer) != text
            chosen = len(answer) if has_stop or len(answer) == most else len(answer) + 1
            kept = prompt[-(encoder.max_length - most) :] + answer[: chosen - 1]
            sequences.append((kept, chosen))
        return sequences

    @cached_property
    def _stop(self) -> StopRule:
        return self.encoder.stop_rule(self._task.until)

    def _encoded(self, items: tuple[ItemId, ...]) -> list[Tokens]:
        encoder, prompts = self.encoder, self._task.prompts
        first = () if encoder.prefix_id is None else (encoder.prefix_id,)
        found = [encoder.encode(prompts.prompt(i, encoder.tokenizer)) or first for i in items]
        if not all(found):
            what = "a prompt has no tokens, and the tokenizer has no first token"
            raise ConfigurationError(Problem(f"task {self._task.name}", what))
        return found

    def _answer_plan(self, items: tuple[ItemId, ...]) -> PromptPlan:
        task, most = self._task, self.encoder.max_length
        if task.tokens >= most:
            what = f"tokens: {task.tokens} leaves no room in {most} positions"
            raise ConfigurationError(Problem(f"task {task.name}", what))
        prompts = self.prompts(items)
        order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), prompts[i]))
        return PromptPlan(prompts, order, task.batch_size, task.tokens, most)


def means_of(values: Tensor, lengths: Sequence[int]) -> NDArray[np.float64]:
    """The mean of each stretch of some lengths."""
    starts = np.cumsum([0, *lengths[:-1]])
    return np.asarray(np.add.reduceat(values.double().numpy(), starts) / np.asarray(lengths))
