"""One task for one tokenizer: its plans, the answers to them, and their scores, remembered."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from evomerge.errors import ConfigurationError, Problem
from evomerge.fitness.choices import ChoicePlan
from evomerge.fitness.forward import Tokens
from evomerge.fitness.generation import PromptPlan, generate
from evomerge.fitness.likelihoods import ContinuationPlan, log_likelihoods
from evomerge.fitness.prompts import Encoder
from evomerge.fitness.shared_prefix import TokenTree, TreeProbe, attention_window
from evomerge.records import ItemId

if TYPE_CHECKING:
    from evomerge.fitness.lm_eval_task import LmEvalTask

Columns = dict[str, NDArray[np.float32]]
Answered = tuple[Columns, tuple[str, ...] | None, dict[ItemId, str]]  # texts; item -> its failure
Plan = TypeVar("Plan")

_LikelihoodPlan = tuple[
    ContinuationPlan, list[int], ChoicePlan | None
]  # bounds: of items' requests

_JUDGED = 64  # items by which it is decided whether prefixes are shared
_WORTH = 0.8  # share of the tokens that may remain
NOT_FINITE = "a log-likelihood is not finite (NaN or infinite logits)"
_KEPT_PLANS = 32  # item sets whose batches are kept
_KEPT_SCORES = 500_000  # scored answers that are kept


class LikelihoodRun:
    """A task of log-likelihoods, for one tokenizer."""

    def __init__(self, task: LmEvalTask, encoder: Encoder) -> None:
        self.task = task
        self.encoder = encoder
        self.gold = task.gold()
        self._pairs: dict[ItemId, list[tuple[Tokens, Tokens]]] = {}
        self._plans = Kept[_LikelihoodPlan](self._plan)
        self._trees = Kept[_LikelihoodPlan](partial(self._plan, trees=True))
        self._takes_trees = TreeProbe()
        self._scores: dict[tuple[Any, ...], float] = {}

    def prepare(self, module: torch.nn.Module) -> None:
        """Decide how the module is asked, for whatever weights it will have."""
        if self._may_round:
            self._takes_trees.decide(module)

    def respond(self, module: torch.nn.Module, items: tuple[ItemId, ...]) -> Answered:
        """Columns of the responses, as `LmEvalTask` tells; no texts; what could not be answered."""
        takes_trees = self._may_round and self._takes_trees(module)
        plan, bounds, choices = self._plan_for(items) if takes_trees else self._plans(items)
        # A model that passed the probe has a head that may be given some of the positions.
        sums, greedy = log_likelihoods(module, plan, self.task.clock, whole_head=not takes_trees)
        finite = np.logical_and.reduceat(np.isfinite(sums), bounds[:-1])  # (items,)
        failures = {items[place]: NOT_FINITE for place in np.flatnonzero(~finite)}
        columns: Columns = {}
        if choices is not None:
            best, columns["margin"], columns["choice"] = choices.compare(sums, greedy)
        elif plan.num_requests == len(items):
            columns["loglikelihood"] = sums
        if choices is not None and self.task.depends_on_best_choice_only:
            keys = list(zip(items, best, strict=True))
        else:
            keys = []
        columns["score"] = self._score(
            items, keys, sums.tolist(), greedy.tolist(), bounds, failures
        )
        return columns, None, failures

    def _score(
        self,
        items: tuple[ItemId, ...],
        keys: list[tuple[Any, ...]],
        sums: list[float],
        greedy: list[bool],
        bounds: list[int],
        failures: dict[ItemId, str],
    ) -> NDArray[np.float32]:
        scores = []
        for place, item in enumerate(items):
            # argmax picks NaN, so a broken model whose gold answer stands first would be perfect.
            value = float("nan") if item in failures else None
            if value is None and keys:
                value = self._scores.get(keys[place])
            if value is None:
                span = slice(bounds[place], bounds[place + 1])
                value, reason = self.task.score_or_reason(
                    item, list(zip(sums[span], greedy[span], strict=True))
                )
                if reason:
                    failures[item] = reason
                elif keys:
                    self._scores[keys[place]] = value
            scores.append(value)
        return column(scores)

    def _plan_for(self, items: tuple[ItemId, ...]) -> _LikelihoodPlan:
        if self._wants_trees:
            made = self._trees(items)
            window = attention_window(self.encoder.config)
            if window is None or made[0].depth <= window:
                return made
        return self._plans(items)

    @cached_property
    def _may_round(self) -> bool:
        """Whether last bits may differ from lm-eval's."""
        return not self.task.items_have_one_request and self.task.shared_prefix is not False

    @cached_property
    def _wants_trees(self) -> bool:
        """Whether what the task's items share is worth it: decided by its first items, for all."""
        if not self._may_round:
            return False
        if self.task.shared_prefix:
            return True
        apart = together = 0
        for item in self.task.items[:_JUDGED]:
            keys = {context + continuation[:-1] for context, continuation in self._encoded(item)}
            apart += sum(map(len, keys))
            together += len(TokenTree.of(list(keys)).tokens)
        return together <= _WORTH * apart

    def _plan(self, items: tuple[ItemId, ...], trees: bool = False) -> _LikelihoodPlan:
        pairs = [self._encoded(item) for item in items]
        bounds = [0, *itertools.accumulate(map(len, pairs))]
        flat = [pair for of_item in pairs for pair in of_item]
        plan = ContinuationPlan(
            flat, self.task.batch_size, self.encoder.max_length, bounds if trees else None
        )
        if self.gold is None:
            return plan, bounds, None
        right, texts = self.gold
        choices = ChoicePlan(
            [right[item] for item in items],
            [texts[item] for item in items],
            [len(of_item) for of_item in pairs],
            self.task.metric,
        )
        return plan, bounds, choices

    def _encoded(self, item: ItemId) -> list[tuple[Tokens, Tokens]]:
        if item not in self._pairs:
            self._pairs[item] = [
                self.encoder.pair(*request.args)
                for request in self.task.requests(item, self.encoder.tokenizer)
            ]
        return self._pairs[item]


class GenerationRun:
    """A task of generated answers, for one tokenizer."""

    def __init__(self, task: LmEvalTask, encoder: Encoder) -> None:
        self.task = task
        self.encoder = encoder
        longest = task.max_new_tokens
        if longest >= encoder.max_length:
            what = f"max_gen_toks: {longest} leaves no room in {encoder.max_length} positions"
            hint = "the task's option `max_new_tokens` makes answers shorter"
            raise ConfigurationError(Problem(f"{task.name} generation_kwargs", what, hint))
        self.stop = encoder.stop_rule(task.settings.until)
        self._plans = Kept[PromptPlan](self._plan)
        self._answers: dict[tuple[ItemId, Tokens], tuple[str, float, int, str]] = {}

    def respond(self, module: torch.nn.Module, items: tuple[ItemId, ...]) -> Answered:
        """Columns as `LmEvalTask` tells, the answers, and what could not be answered."""
        answers = generate(module, self._plans(items), self.stop, self.task.clock)
        if len(self._answers) > _KEPT_SCORES:
            self._answers.clear()
        texts, scores, names, failures = [], [], [], {}
        for item, answer in zip(items, answers, strict=True):
            text, score, name, reason = "", float("nan"), 0, "a logit is not finite"
            if answer is not None:
                text, score, name, reason = self._scored(item, answer)
            if reason:
                failures[item] = reason
            texts.append(text)
            scores.append(score)
            names.append(name)
        lengths = column([len(answer or ()) for answer in answers])
        columns = {"score": column(scores), "length": lengths, "answer": column(names)}
        return columns, tuple(texts), failures

    def _scored(self, item: ItemId, answer: Tokens) -> tuple[str, float, int, str]:
        """An answer's text, its score, what stands for it, and why it has no score."""
        key = (item, answer)
        if key not in self._answers:
            text = self.stop.text(answer)
            score, reason = self.task.score_or_reason(item, [text])
            name = 0 if reason else _name_of(self.task.filtered(item, text))
            self._answers[key] = (text, score, name, reason)
        return self._answers[key]

    def _plan(self, items: tuple[ItemId, ...]) -> PromptPlan:
        tokenizer = self.encoder.tokenizer
        texts = [self.task.requests(item, tokenizer)[0].args[0] for item in items]
        prompts = [self.encoder.encode(text) for text in texts]
        # The longest first, as in HFLM: what does not fit in memory fails at once.
        order = sorted(range(len(items)), key=lambda i: (-len(prompts[i]), texts[i]))
        return PromptPlan(
            prompts,
            order,
            self.task.batch_size,
            self.task.max_new_tokens,
            self.encoder.max_length,
        )


class Kept(Generic[Plan]):
    """Plans by item set; the one that was not used for longest is forgotten."""

    def __init__(self, make: Callable[[tuple[ItemId, ...]], Plan]) -> None:
        self._make = make
        self._plans: OrderedDict[tuple[ItemId, ...], Plan] = OrderedDict()

    def __call__(self, items: tuple[ItemId, ...]) -> Plan:
        """The plan for some items, made at the first call."""
        if items not in self._plans:
            self._plans[items] = self._make(items)
            if len(self._plans) > _KEPT_PLANS:
                self._plans.popitem(last=False)
        self._plans.move_to_end(items)
        return self._plans[items]


def column(values: Sequence[float]) -> NDArray[np.float32]:
    """Scores as a response's column."""
    return np.asarray(values, np.float32)


def _name_of(answer: str) -> int:
    """24 bits of the answer's BLAKE2b hash: whole numbers that a float32 holds exactly."""
    return int.from_bytes(blake2b(answer.encode("utf-8", "replace"), digest_size=3).digest(), "big")
