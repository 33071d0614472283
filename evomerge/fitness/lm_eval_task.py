"""Tasks of lm-evaluation-harness, compiled once and asked of many candidates.

lm-eval makes the prompts, filters the answers and scores them; the forward passes are ours
(likelihoods.py, generation.py), in batches that depend on the chosen items alone. With the same
batches the scores are those of `lm_eval.simple_evaluate` to the last bit (in float32).

Not covered: tasks with images, rolling log-likelihoods, sampled answers, system instructions.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.errors import ConfigurationError, EvomergeError, Problem, nearest
from evomerge.fitness.chat import Chat
from evomerge.fitness.choices import gold_choices
from evomerge.fitness.exact_match import exact_match, expected_answers
from evomerge.fitness.forward import ForwardClock
from evomerge.fitness.item_failures import responses_of
from evomerge.fitness.lm_eval_files import (
    FEWSHOT_SEED,
    open_task,
    scores_by_own_code,
)
from evomerge.fitness.lm_eval_guard import silent_and_offline
from evomerge.fitness.prompts import Encoder, GreedySettings, max_length
from evomerge.fitness.task_runs import GenerationRun, LikelihoodRun, column
from evomerge.protocols import ResidentModel
from evomerge.records import ItemId, Responses

UNIT_METRICS = frozenset(
    {"acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "f1", "em"}
)


class LmEvalTask:
    """A task of lm-evaluation-harness; fulfils `protocols.Task`.

    Columns of its responses: `score`, the metric's value per item, negated where lm-eval says that
    less is better. For multiple choice also `choice`, the index of the best choice, and `margin`,
    the log-likelihood of the gold choice minus that of the best other one, in nats (per character
    or byte where the metric is). For log-likelihood tasks also `loglikelihood`, in nats. For
    generation, the texts.

    Args:
        name: evomerge's name of the task.
        task: lm-eval's name of it.
        path: a task file or a folder of them; None for lm-eval's own registry.
        metric: one of the task's metrics; its first by default.
        filter: one of the task's filters; its first by default.
        num_fewshot: examples in the prompt; what the task says by default.
        batch_size: rows of a forward pass. It changes scores in the last bits, and is fixed.
        limit: use the first documents only.
        chat_template: make a conversation of each prompt, by the tokenizer's chat template.
        fewshot_as_multiturn: with turns of their own for the examples; else they are one message.
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
        chat_template: bool = False,
        fewshot_as_multiturn: bool = False,
        higher_is_better: bool | None = None,
        worst: float | None = None,
        allow_code: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ConfigurationError(Problem(name, f"batch_size: expected >= 1, got {batch_size}"))
        folder = None if path is None else Path(path)
        self.name = name
        self.batch_size = batch_size
        self.clock = ForwardClock()
        self._has_chat, self._has_turns = chat_template, fewshot_as_multiturn
        self._task, self._guard = open_task(
            task, folder, num_fewshot=num_fewshot, allow_code=allow_code
        )
        with silent_and_offline():
            self._docs = list(itertools.islice(self._task.eval_docs, limit))
        if not self._docs:
            raise ConfigurationError(Problem(name, "the task has no items"))
        _remember_fields(self._task, self._docs)
        self.settings = GreedySettings.from_kwargs(
            self._task.get_config("generation_kwargs") or {}, f"{name} generation_kwargs"
        )
        self._filter_name, self._filters = self._choose_filter(filter)
        self.metric = self._choose_metric(metric)
        told = bool(self._task.higher_is_better().get(self.metric, True))
        self._is_turned = higher_is_better is not None and higher_is_better != told
        # Per item, lm-eval's perplexity is the log-likelihood: more is better.
        usual = 1.0 if told or self.metric == "perplexity" else -1.0
        self._sign = -usual if self._is_turned else usual
        # A worst score exists where scores are known to lie between 0 and 1.
        bounds = sorted((0.0, self._sign))
        self.worst = bounds[0] if self.metric in UNIT_METRICS else None
        if worst is not None:
            self.worst = worst
        self._requests: dict[int, dict[ItemId, list[Any]]] = {}  # by the id of the tokenizer
        self._runs: dict[tuple[int, int], LikelihoodRun | GenerationRun] = {}

    @property
    def items(self) -> Sequence[ItemId]:
        """Positions in the task's evaluation documents."""
        return range(len(self._docs))

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the task's configuration, documents, metric and batch size; not of paths."""
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
        if self._has_chat:
            content["chat"] = self._has_turns
        if self._is_turned:
            content["turned"] = True
        text = json.dumps(content, sort_keys=True, default=_plain)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def forward_s(self) -> float:
        """Seconds spent in the model's forward passes since it was last set to 0."""
        return self.clock.seconds

    @forward_s.setter
    def forward_s(self, seconds: float) -> None:
        self.clock.seconds = seconds

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

    def score(self, item: ItemId, answers: Sequence[Any]) -> float:
        """The metric of one item, given the answer to each of its requests."""
        if self._expected is not None:
            return exact_match(self._expected[item], answers[0])
        with self._guard:
            value = self._results(item, answers)[self.metric]
        return self._sign * float(value)

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

    def _results(self, item: ItemId, answers: Sequence[Any]) -> Mapping[str, Any]:
        document = self._docs[item]
        repeats = self._task.get_config("repeats") or 1
        filtered: Any = [[answer] * repeats for answer in answers]
        for step in self._filters:
            filtered = step.apply(filtered, [document] * len(answers))
        results: Mapping[str, Any] = self._task.process_results(document, list(filtered))
        return results

    def _choose_filter(self, wanted: str | None) -> tuple[str, list[Any]]:
        ensembles = {ensemble.name: ensemble for ensemble in self._task._filters}
        if wanted is not None and wanted not in ensembles:
            problem = Problem(
                f"{self.name} filter", f"unknown filter {wanted!r}", nearest(wanted, ensembles)
            )
            raise ConfigurationError(problem)
        name = next(iter(ensembles)) if wanted is None else wanted
        return name, [make() for make in ensembles[name].filters]

    def _choose_metric(self, wanted: str | None) -> str:
        """The metric, after a rehearsal on one item: it must be one number per item."""
        with silent_and_offline(), self._guard:
            try:
                answers = [
                    "" if request.request_type == "generate_until" else (-1.0 - index, False)
                    for index, request in enumerate(self._instances(0))
                ]
                results = dict(self._results(0, answers))
            except ConfigurationError:
                raise  # the guard's
            except Exception:
                # A task's own code may choke on made-up answers; the first candidate will tell.
                results = dict.fromkeys(self._task.aggregation(), 0.0)
        numeric = [key for key, value in results.items() if _is_number(value)]
        chosen = wanted or next(iter(numeric or results))
        if chosen not in numeric:
            what = "is computed over all items at once" if chosen in results else "unknown metric"
            problem = Problem(
                f"{self.name} metric", f"{chosen!r}: {what}", nearest(chosen, numeric)
            )
            raise ConfigurationError(problem)
        return chosen

    def _run(self, tokenizer: Any, config: Any) -> LikelihoodRun | GenerationRun:
        key = (id(tokenizer), max_length(config, tokenizer))
        if key not in self._runs:
            encoder = Encoder(tokenizer, config)
            # The run holds the tokenizer, so that its id cannot be taken by another.
            generates = self._task.OUTPUT_TYPE == "generate_until"
            self._runs[key] = (GenerationRun if generates else LikelihoodRun)(self, encoder)
        return self._runs[key]


def _remember_fields(task: Any, documents: Sequence[Any]) -> None:
    """Keep what lm-eval renders of a document: it compiles the template at every call."""
    places = {id(document): place for place, document in enumerate(documents)}
    for name in ("doc_to_text", "doc_to_target", "doc_to_choice"):
        render = getattr(task, name, None)
        if render is not None:
            setattr(task, name, _remembering(render, places))


def _remembering(render: Callable[..., Any], places: Mapping[int, int]) -> Callable[..., Any]:
    known: dict[int, Any] = {}

    def recall(document: Any, *template: Any, **templates: Any) -> Any:
        place = places.get(id(document))
        if place is None or any(template) or any(templates.values()):
            return render(document, *template, **templates)
        if place not in known:
            known[place] = render(document)
        return known[place]

    return recall


def _is_number(value: Any) -> bool:
    return isinstance(value, bool | int | float | np.number | np.bool_)


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
