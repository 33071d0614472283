"""From text to tokens, by the rules of lm-evaluation-harness's `HFLM`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from evomerge.errors import ConfigurationError, Problem
from evomerge.fitness.forward import Tokens
from evomerge.fitness.generation import StopRule

POSITIONS = ("n_positions", "max_position_embeddings", "n_ctx")  # a configuration's names of them
_UNLIMITED = 10**12  # tokenizers without a limit report 1e30


class Encoder:
    """Encodes text for one tokenizer, and remembers what it encoded.

    Args:
        tokenizer: a transformers tokenizer.
        config: the model's configuration.
    """

    def __init__(self, tokenizer: Any, config: Any) -> None:
        self.tokenizer = tokenizer
        self.config = config
        self.max_length = max_length(config, tokenizer)
        self._known: dict[str, Tokens] = {}
        first = tokenizer.bos_token_id
        self.prefix_id: int | None = tokenizer.eos_token_id if first is None else first
        self._prefix = None if self.prefix_id is None else tokenizer.decode([self.prefix_id])

    def encode(self, text: str) -> Tokens:
        """Token ids with the special tokens that the tokenizer adds, unless they stand there."""
        if text not in self._known:
            extra = {"verbose": False}  # no warning of texts that lose their beginning
            if self._prefix is not None and text.startswith(self._prefix):
                extra["add_special_tokens"] = False
            self._known[text] = tuple(self.tokenizer.encode(text, **extra))
        return self._known[text]

    def pair(self, context: str, continuation: str) -> tuple[Tokens, Tokens]:
        """Context and continuation; blanks at their border belong to the continuation.

        Raises:
            ConfigurationError: the continuation has no tokens, or too many.
        """
        if context == "":
            tokens = tuple(
                self.tokenizer.encode(continuation, add_special_tokens=False, verbose=False)
            )
            if self.prefix_id is None or tokens[:1] == (self.prefix_id,):
                pair = (tokens[:1], tokens[1:])
            else:
                pair = ((self.prefix_id,), tokens)
        else:
            bare = context.rstrip()
            # Encoded as one text: a word may be one token across the border.
            start = self.encode(bare)
            pair = (start, self.encode(context + continuation)[len(start) :])
        if not pair[0] or not 0 < len(pair[1]) <= self.max_length:
            what = f"has {len(pair[1])} tokens, expected 1 to {self.max_length}"
            raise ConfigurationError(Problem(f"continuation {continuation!r}", what))
        return pair

    @cached_property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens that end an answer: the tokenizer's and the model configuration's."""
        configured = getattr(self.config, "eos_token_id", None)
        ends = set(configured if isinstance(configured, list | tuple) else [configured])
        return tuple(sorted((ends | {self.tokenizer.eos_token_id}) - {None}))

    def stop_rule(self, strings: tuple[str, ...]) -> StopRule:
        """When an answer ends; makes a table of the vocabulary."""
        return StopRule(self.tokenizer, self.end_ids, strings, self.config.vocab_size)


def max_length(config: Any, tokenizer: Any) -> int:
    """The positions that a model has, as far as its configuration or tokenizer tells."""
    text_config = getattr(config, "text_config", None) or config
    for name in POSITIONS:
        if (value := getattr(text_config, name, None)) is not None:
            return int(value)
    limit = getattr(tokenizer, "model_max_length", None)
    return int(limit) if limit is not None and limit < _UNLIMITED else 2048


@dataclass(frozen=True)
class GreedySettings:
    """Where a generated answer ends."""

    until: tuple[str, ...]
    max_new_tokens: int

    @classmethod
    def from_kwargs(cls, kwargs: Mapping[str, Any], where: str) -> GreedySettings:
        """Read lm-eval's `generation_kwargs`.

        Raises:
            ConfigurationError: answers would be sampled, or a setting is not known or no such
                value.
        """
        rest = dict(kwargs)
        until = rest.pop("until", None) or []
        strings = [until] if isinstance(until, str) else until
        lengths = [
            rest.pop(name, None)
            for name in ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
        ]
        most = next((length for length in lengths if length is not None), 256)
        # lm-eval itself sees to it that this is a number.
        temperature, sample = float(rest.pop("temperature", 0) or 0), rest.pop("do_sample", None)
        problems = []
        is_list = isinstance(strings, list | tuple)
        if not is_list or not all(isinstance(text, str) for text in strings):
            problems.append(Problem(f"{where} until", f"expected texts, got {until!r}"))
        if not isinstance(most, int) or isinstance(most, bool) or most < 1:
            what = f"expected a whole number from 1, got {most!r}"
            problems.append(Problem(f"{where} max_gen_toks", what))
        if sample or (sample is None and temperature > 0):
            problems.append(
                Problem(where, "answers would be sampled", "only do_sample: false is supported")
            )
        # Without sampling these change nothing.
        for name in ("top_p", "top_k", "min_p", "seed"):
            rest.pop(name, None)
        neutral = {"num_beams": 1, "repetition_penalty": 1.0, "num_return_sequences": 1}
        for name, value in rest.items():
            if neutral.get(name, object()) != value:
                problems.append(Problem(where, f"not supported: {name}: {value}"))
        if problems:
            raise ConfigurationError(problems)
        return cls(tuple(strings), int(most))
