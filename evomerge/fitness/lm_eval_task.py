"""Tasks of lm-evaluation-harness, compiled once and asked of many candidates.

lm-eval makes the prompts, filters the answers and scores them; the forward passes are ours
(likelihoods.py, generation.py), in batches that depend on the chosen items alone. With the same
batches the scores are those of `lm_eval.simple_evaluate` to the last bit (in float32).

Not covered: tasks with images, sampled answers, system instructions.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.errors import ConfigurationError, EvomergeError, Problem
from evomerge.fitness.chat import Chat
from evomerge.fitness.choices import gold_choices
from evomerge.fitness.contamination import benchmark_of
from evomerge.fitness.exact_match import exact_match, expected_answers
from evomerge.fitness.forward import ForwardClock
from evomerge.fitness.item_failures import responses_of
from evomerge.fitness.lm_eval_code import code_of
from evomerge.fitness.lm_eval_data import read_documents
from evomerge.fitness.lm_eval_files import (
    FEWSHOT_SEED,
    is_registered,
    open_task,
    scores_by_own_code,
)
from evomerge.fitness.lm_eval_guard import silent_and_offline
from evomerge.fitness.metrics import choose_filter, choose_metric, share_of_mean
from evomerge.fitness.prompts import Encoder, GreedySettings, max_length
from evomerge.fitness.rendered_once import remember_fields
from evomerge.fitness.rolling import RollingRun
from evomerge.fitness.task_runs import GenerationRun, LikelihoodRun, column
from evomerge.fitness.unanswered import without_answer
from evomerge.protocols import ResidentModel
from evomerge.records import ItemId, Responses

Run = LikelihoodRun | RollingRun | GenerationRun
UNIT_METRICS = frozenset(
    {"acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "f1", "em"}
)

_RUNS: dict[str, type[RollingRun] | type[GenerationRun]] = {  # by what is asked; or LikelihoodRun
    "loglikelihood_rolling": RollingRun,
    "generate_until": GenerationRun,
}
_MADE_UP = {"generate_until": "", "loglikelihood_rolling": -1.0}  # answers of a rehearsal


class LmEvalTask:
    """A task of lm-evaluation-harness; fulfils `protocols.Task`.

    Columns of its responses: `score`, the metric's value per item, negated where lm-eval says that
    less is better. For multiple choice also `choice`, the index of the best choice, and `margin`,
    the log-likelihood of the gold choice minus that of the best other one, in nats (per character
    or byte where the metric is). For log-likelihood tasks also `loglikelihood`, in nats; for
    perplexities of documents, the mean `score` is minus the perplexity's log (or minus the bits per
    byte): see `share_of_mean`. For generation also `length`, the number of tokens up to the one
    that ended the answer, and `answer`, a number that stands for the answer after the filter: of
    two candidates, equal answers have equal ones; and the texts.

    Args:
        name: evomerge's name of the task.
        task: lm-eval's name of it.
        path: a task file or a folder of them; None for lm-eval's own registry.
        metric: one of the task's metrics; its first by default.
        filter: one of the task's filters; its first by default.
        num_fewshot: examples in the prompt; what the task says by default.
        batch_size: rows of a forward pass. It changes scores in the last bits, and is fixed.
        limit: use the first documents only.
        overrides: keys of the task's file with other values.
        chat_template: make a conversation of each prompt, by the tokenizer's chat template.
        fewshot_as_multiturn: with turns of their own for the examples; else they are one message.
        max_new_tokens: length of the longest answer; what the task says where that is less.
        shared_prefix: compute what a question's choices share once; by default where it saves a
            fifth of the tokens. Models that cannot are asked one choice a row. False gives
            log-likelihoods to the last bit as lm-eval does, with the output head everywhere.
        higher_is_better: what the score's sign follows; what the task says by default.
        worst: the score of an item that could not be answered, while others could; where the
            metric is an accuracy or an exact match, it is known.
        allow_code: whether the task may run code: `!function`, or what the model writes.

    Raises:
        ConfigurationError: no such task, metric, filter or data file; or code that is not allowed.
    """

    def __init__(
        self,
        name: str,
        *,
        task: str,
        path: str | Path | None = None,
        metric: str | None = None,
        filter: str | None = None,  # noqa: A002 - lm-eval's word for it
        num_fewshot: int | None = None,
        batch_size: int = 128,
        limit: int | None = None,
        overrides: Mapping[str, Any] | None = None,
        chat_template: bool = False,
        fewshot_as_multiturn: bool = False,
        max_new_tokens: int | None = None,
        shared_prefix: bool | None = None,
        higher_is_better: bool | None = None,
        worst: float | None = None,
        allow_code: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ConfigurationError(Problem(name, f"batch_size: expected >= 1, got {batch_size}"))
        folder = None if path is None else Path(path)
        self.name = name
        self.batch_size = batch_size
        self.shared_prefix = shared_prefix
        self.clock = ForwardClock()
        self._is_registered = is_registered(folder)
        self._has_chat, self._has_turns = chat_template, fewshot_as_multiturn
        self._task, self._guard = open_task(
            task, folder, num_fewshot=num_fewshot, overrides=overrides, allow_code=allow_code
        )
        with silent_and_offline():
            self._docs = read_documents(self._task, limit)
        if not self._docs:
            raise ConfigurationError(Problem(name, "the task has no items"))
        remember_fields(self._task, self._docs)
        self.settings = GreedySettings.from_kwargs(
            self._task.get_config("generation_kwargs") or {}, f"{name} generation_kwargs"
        )
        most = self.settings.max_new_tokens
        self.max_new_tokens = most if max_new_tokens is None else min(most, max_new_tokens)
        self._filter_name, self._filters = choose_filter(name, self._task, filter)
        self.metric = choose_metric(self.name, self._task, metric, self._rehearse())
        told = bool(self._task.higher_is_better().get(self.metric, True))
        self._is_turned = higher_is_better is not None and higher_is_better != told
        with silent_and_offline(), self._guard:
            self._share = share_of_mean(self._task, self.metric, self._docs)
        # Per item, lm-eval's perplexities are log-likelihoods: more is better.
        likelihood = self.metric == "perplexity" or self._share is not None
        usual = 1.0 if told or likelihood else -1.0
        self._sign = -usual if self._is_turned else usual
        # A worst score exists where scores are known to lie between 0 and 1.
        bounds = sorted((0.0, self._sign))
        self.worst = bounds[0] if self.metric in UNIT_METRICS else None
        if worst is not None:
            self.worst = worst
        self._requests: dict[int, dict[ItemId, list[Any]]] = {}  # by the id of the tokenizer
        self._runs: dict[tuple[int, int], Run] = {}

    @property
    def items(self) -> Sequence[ItemId]:
        """Positions in the task's evaluation documents."""
        return range(len(self._docs))

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the task's configuration, documents, code, metric and batch size; not of paths.

        The chat template is the model's, and part of a run's identity.
        """
        config = dict(self._task.dump_config())
        for place in ("dataset_path", "dataset_kwargs", "metadata", "task_alias", "tag"):
            config.pop(place, None)
        shots = self._task.get_config("num_fewshot")
        sampler = getattr(self._task, "sampler", None)
        content: dict[str, Any] = {
            "config": config,
            "documents": self._docs,
            "examples": list(sampler.df) if shots and sampler is not None else [],
            "metric": [self.metric, self._filter_name, self.batch_size],
        }
        if code := code_of(self._task):
            content["code"] = code
        if self._has_chat:
            content["chat"] = self._has_turns
        if self._is_turned:
            content["turned"] = True
        if self.max_new_tokens < self.settings.max_new_tokens:
            content["max_new_tokens"] = self.max_new_tokens
        if self.shared_prefix is not False and not self.items_have_one_request:
            content["shared_prefix"] = self.shared_prefix
        text = json.dumps(content, sort_keys=True, default=_plain)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def benchmark(self) -> str | None:
        """The public benchmark that the items are of; None for other data."""
        return benchmark_of(self._task.dump_config(), is_registered=self._is_registered)

    @cached_property
    def unanswered(self) -> Sequence[ItemId]:
        """Items without a right answer, where the score is a comparison with one."""
        with silent_and_offline(), self._guard:
            return without_answer(self._task, self._docs)

    @property
    def forward_s(self) -> float:
        """Seconds spent in the model's forward passes since it was last set to 0."""
        return self.clock.seconds

    @forward_s.setter
    def forward_s(self, seconds: float) -> None:
        self.clock.seconds = seconds

    def prepare(self, model: ResidentModel, write: Callable[[str], None]) -> None:
        """Ask the base how models are asked, so that no candidate decides for others.

        Whether they take shared prefixes, and a head that sees scored positions alone.

        write: is not called.

        Raises:
            ConfigurationError: the task does not fit the tokenizer.
        """
        del write
        if model.tokenizer is not None and not self.items_have_one_request:
            run = self._run(model.tokenizer, model.module.config)
            if isinstance(run, LikelihoodRun):
                run.prepare(model.module)

    def respond(self, model: ResidentModel, items: Sequence[ItemId]) -> Responses:
        """Responses in the order of `items`.

        Raises:
            CandidateError: no item can be answered; or one cannot, and there is no worst score.
            ConfigurationError: the task does not fit the tokenizer or the model's length.
        """
        asked = tuple(int(item) for item in items)
        module, tokenizer = model.module, model.tokenizer
        if module.training:
            module.eval()
        run = self._run(tokenizer, module.config)
        if not asked:
            return Responses(self.name, np.zeros(0, np.int64), {"score": column([])})
        columns, texts, failures = run.respond(module, asked)
        return responses_of(self.name, asked, columns, failures, self.worst, texts)

    @property
    def items_have_one_request(self) -> bool:
        """Whether each item asks the model once; only choices are several questions."""
        return bool(self._task.OUTPUT_TYPE != "multiple_choice")

    # --- what lm-eval does ------------------------------------------------------------------------

    def requests(self, item: ItemId, tokenizer: Any) -> list[Any]:
        """lm-eval's instances of one item; a tokenizer that a run holds may have a chat template.

        Raises:
            ConfigurationError: it has none, and the task needs one.
        """
        chat = Chat.of(tokenizer, self.name) if self._has_chat else None
        known = self._requests.setdefault(id(tokenizer) if chat else 0, {})
        if item not in known:
            with silent_and_offline(), self._guard:
                if self._task.get_config("num_fewshot"):
                    # Examples are drawn from one generator, one item after the other.
                    self._task.set_fewshot_seed(seed=FEWSHOT_SEED)
                    known |= {place: self._instances(place, chat) for place in self.items}
                else:
                    known[item] = self._instances(item, chat)
        return known[item]

    def prompt(self, item: ItemId, tokenizer: Any) -> str:
        """What the model is asked, without the answer; of several requests the first one's."""
        return str(self.requests(item, tokenizer)[0].args[0])

    def text(self, item: ItemId, tokenizer: Any) -> str:
        """Prompt and right answer as one text; the prompt alone where there is no one answer."""
        made = self.requests(item, tokenizer)
        prompt = str(made[0].args[0])
        if self._task.OUTPUT_TYPE == "multiple_choice":
            right = self._golds[0][item] if self._golds is not None else []
            chosen = made[right[0]].args if right and right[0] < len(made) else (prompt,)
            return "".join(map(str, chosen[:2]))
        if self._task.OUTPUT_TYPE == "loglikelihood":
            return prompt + str(made[0].args[1])
        if self._task.OUTPUT_TYPE == "loglikelihood_rolling":
            return prompt
        with silent_and_offline(), self._guard:
            target = self._task.doc_to_target(self._docs[item])
        target = target[0] if isinstance(target, list) and target else target
        delimiter = str(self._task.get_config("target_delimiter") or "")
        return prompt + delimiter + target if isinstance(target, str) else prompt

    @cached_property
    def _golds(self) -> tuple[list[list[int]], list[list[str]]] | None:
        return self.gold()

    def score(self, item: ItemId, answers: Sequence[Any]) -> float:
        """The metric of one item, given the answer to each of its requests."""
        if self._expected is not None:
            return exact_match(self._expected[item], answers[0])
        with self._guard:
            value = self._results(item, answers)[self.metric]
        return self._sign * float(value if self._share is None else value[0] * self._share)

    def filtered(self, item: ItemId, text: str) -> str:
        """A generated answer after the task's filter, as text."""
        if self._expected is not None:
            return text
        with self._guard:
            return str(self._filtered(item, [text])[0])

    def score_or_reason(self, item: ItemId, answers: Sequence[Any]) -> tuple[float, str]:
        """The metric of one item, or NaN and why it has none: filters and metrics may choke."""
        try:
            score = self.score(item, answers)
        except (EvomergeError, MemoryError):
            raise
        except Exception as error:
            return float("nan"), f"{self.metric}: {type(error).__name__}: {error}"
        return score, "" if np.isfinite(score) else f"{self.metric} is not finite"

    def gold(self) -> tuple[list[list[int]], list[list[str]]] | None:
        """Every item's right choices and choices; None where they cannot be told."""
        if self._task.OUTPUT_TYPE != "multiple_choice":
            return None
        with silent_and_offline(), self._guard:
            return gold_choices(self._task, self._docs)

    @cached_property
    def _expected(self) -> list[str] | None:
        """Every item's right answer, where the score is whether the answer equals it."""
        with silent_and_offline(), self._guard:
            return expected_answers(self._task, self.metric, self._filters, self._docs)

    @cached_property
    def depends_on_best_choice_only(self) -> bool:
        """Whether an item's score is a function of which choice is best, so that it can be kept."""
        known = {"acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match"}
        return self.metric in known and not scores_by_own_code(self._task)

    def _instances(self, item: ItemId, chat: Chat | None = None) -> list[Any]:
        task, document = self._task, self._docs[item]
        config = task.config
        context = task.fewshot_context(
            document,
            num_fewshot=config.num_fewshot or 0,
            system_instruction=None,
            apply_chat_template=chat is not None,
            fewshot_as_multiturn=self._has_turns,
            chat_template=chat,
            gen_prefix=task.doc_to_prefix(document),
        )
        made = task.construct_requests(
            doc=document,
            ctx=context,
            metadata=(config["task"], item, config.repeats),
            apply_chat_template=chat is not None,
            chat_template=chat,
        )
        return made if isinstance(made, list) else [made]

    def _filtered(self, item: ItemId, answers: Sequence[Any]) -> list[Any]:
        repeats = self._task.get_config("repeats") or 1
        filtered: Any = [[answer] * repeats for answer in answers]
        for step in self._filters:
            filtered = step.apply(filtered, [self._docs[item]] * len(answers))
        return list(filtered)

    def _results(self, item: ItemId, answers: Sequence[Any]) -> Mapping[str, Any]:
        filtered = self._filtered(item, answers)
        results: Mapping[str, Any] = self._task.process_results(self._docs[item], filtered)
        return results

    def _rehearse(self) -> dict[str, Any]:
        """Metric -> the value of one item, given answers that are made up."""
        with silent_and_offline(), self._guard:
            try:
                answers = [
                    _MADE_UP.get(request.request_type, (-1.0 - index, False))
                    for index, request in enumerate(self._instances(0))
                ]
                return dict(self._results(0, answers))
            except ConfigurationError:
                raise  # the guard's
            except Exception:
                # A task's own code may choke on made-up answers; the first candidate will tell.
                return dict.fromkeys(self._task.aggregation(), 0.0)

    def _run(self, tokenizer: Any, config: Any) -> Run:
        key = (id(tokenizer), max_length(config, tokenizer))
        if key not in self._runs:
            # The run holds the tokenizer, so that its id cannot be taken by another.
            make = _RUNS.get(self._task.OUTPUT_TYPE, LikelihoodRun)
            self._runs[key] = make(self, Encoder(tokenizer, config))
        return self._runs[key]


def _plain(value: Any) -> Any:
    """What JSON cannot hold, as text that does not change from process to process."""
    if callable(value):
        try:
            return inspect.getsource(value)
        except (OSError, TypeError):
            return getattr(value, "__qualname__", type(value).__qualname__)
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return str(value)
