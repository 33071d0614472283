"""Greedy generation, in fixed batches.

What depends on the tokenizer and the chosen prompts alone is planned once and kept; per candidate
only the model runs. The answers are those of lm-evaluation-harness's `HFLM`: the same truncation,
the same order of prompts, and padding on the left, so equal batches give equal bits.

Not covered: encoder-decoder models, models without a key-value cache, and the logits processors of
a `generation_config` (decoding is plainly greedy).
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from evomerge.fitness.forward import ForwardClock, Tokens, device_of, padded

_END, _STOP, _DOUBT = 1, 2, 3  # what a token does to an answer; 0 is nothing


class StopRule:
    """When a generated answer is over: at an end token, or at a stop string.

    A token can only complete a stop string if its own text holds the string's last character; so
    nearly all steps are decided by a look-up in a table of the vocabulary, without decoding.

    Args:
        tokenizer: a transformers tokenizer.
        end_ids: tokens that end an answer and are not part of it.
        strings: stop strings; one that is a special token counts as an end token.
        vocabulary_size: columns of the model's logits.
    """

    def __init__(
        self, tokenizer: Any, end_ids: Sequence[int], strings: Sequence[str], vocabulary_size: int
    ) -> None:
        self.strings = tuple(string for string in strings if string)
        self.tokenizer = tokenizer
        specials = set(tokenizer.all_special_ids)
        texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
        size = max(vocabulary_size, len(texts))
        self._effects = np.zeros(size, np.uint8)
        last = {string[-1] for string in self.strings}
        # A blank may be stripped where a token stands alone, and half a character has no text.
        always = any(character == " " or ord(character) > 127 for character in last)
        for token, text in enumerate(texts):
            if token in specials:
                self._effects[token] = _END if text in self.strings else 0
            elif any(string in text for string in self.strings):
                self._effects[token] = _STOP
            elif always or not last.isdisjoint(text):
                self._effects[token] = _DOUBT
        self._effects[list(end_ids)] = _END

    def mark(
        self, tokens: NDArray[np.int64], running: NDArray[np.bool_], ends: NDArray[np.int64]
    ) -> None:
        """Note in `running` and `ends` which answers the newest tokens bring to an end.

        Args:
            tokens: (steps, rows) of every answer so far.
            running: (rows,) whether an answer goes on.
            ends: (rows,) its length; an end token is not part of it.
        """
        effects = self._effects[tokens[-1]] * running
        if not effects.any():
            return
        over = effects == _STOP
        for row in np.flatnonzero(effects == _DOUBT).tolist():
            text = self.tokenizer.decode(tokens[:, row].tolist(), skip_special_tokens=True)
            over[row] = any(string in text for string in self.strings)
        ends[over] = len(tokens)
        running &= ~over
        over = effects == _END
        ends[over] = len(tokens) - 1
        running &= ~over

    def text(self, tokens: Sequence[int]) -> str:
        """The answer's text up to the first stop string."""
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=True)
        for string in self.strings:
            text = text.split(string)[0]
        return text


@dataclass(frozen=True)
class _PromptBatch:
    input_ids: Tensor  # (rows, length), padded on the left
    mask: Tensor | None  # (rows, length + max_new_tokens); None where nothing is padded
    position_ids: Tensor  # (rows, length + max_new_tokens)
    requests: NDArray[np.int64]  # (rows,)


class PromptPlan:
    """The batches that answer some prompts.

    Args:
        prompts: token ids; those too long lose their beginning.
        order: requests in the order in which they are put into batches.
        batch_size: rows in a forward pass.
        max_new_tokens: length of the longest answer.
        max_length: positions of the model, for prompt and answer together.
    """

    def __init__(
        self,
        prompts: Sequence[Tokens],
        order: Sequence[int],
        batch_size: int,
        max_new_tokens: int,
        max_length: int,
    ) -> None:
        self.max_new_tokens = max_new_tokens
        self.num_requests = len(prompts)
        self.batches = []
        for start in range(0, len(order), batch_size):
            requests = np.asarray(order[start : start + batch_size])
            rows = [prompts[request][-(max_length - max_new_tokens) :] for request in requests]
            width = max(map(len, rows))
            mask = torch.ones((len(rows), width + max_new_tokens), dtype=torch.long)
            for row, ids in enumerate(rows):
                mask[row, : width - len(ids)] = 0
            position_ids = (mask.cumsum(-1) - 1).clamp(min=0)
            input_ids = padded(rows, "left")
            attended = mask if bool((mask == 0).any()) else None
            self.batches.append(_PromptBatch(input_ids, attended, position_ids, requests))


def generate(
    module: nn.Module, plan: PromptPlan, stop: StopRule, clock: ForwardClock
) -> list[Tokens | None]:
    """The greedy answer to every prompt: its tokens, up to the one that ended it.

    None where a logit is not finite.
    """
    answers: list[Tokens | None] = [None] * plan.num_requests
    accepted = frozenset(inspect.signature(module.forward).parameters)
    with torch.inference_mode():
        for batch in plan.batches:
            tokens, ends, finite = _decode(
                module, batch, plan.max_new_tokens, stop, clock, accepted
            )
            for row, request in enumerate(batch.requests.tolist()):
                answers[request] = tuple(tokens[row][: ends[row]]) if finite[row] else None
    return answers


def _decode(
    module: nn.Module,
    batch: _PromptBatch,
    max_new_tokens: int,
    stop: StopRule,
    clock: ForwardClock,
    accepted: frozenset[str],
) -> tuple[list[list[int]], list[int], list[bool]]:
    """Greedy decoding of one batch.

    Returns:
        tokens of shape (rows, steps), each answer's length, and whether its logits are finite.
    """
    device = device_of(module)
    rows, width = batch.input_ids.shape
    ids, positions = batch.input_ids.to(device), batch.position_ids.to(device)
    start = 0
    mask = None if batch.mask is None else batch.mask.to(device)
    made = np.zeros((max_new_tokens, rows), np.int64)
    ends = np.full(rows, max_new_tokens)
    running = np.ones(rows, np.bool_)
    lived = np.zeros(rows, np.int64)  # steps up to the one that ended the answer
    best_logits = []
    inputs: dict[str, Any] = {"use_cache": True}
    if "logits_to_keep" in accepted:
        inputs["logits_to_keep"] = 1
    step = 0
    for step in range(max_new_tokens):
        if "position_ids" in accepted:
            inputs["position_ids"] = positions[:, start : width + step]
        if mask is not None:
            inputs["attention_mask"] = mask[:, : width + step]
        with clock:
            output = module(ids, **inputs)
        inputs["past_key_values"] = output.past_key_values
        best, ids = output.logits[:, -1].max(-1, keepdim=True)  # (rows, 1); of equals the first
        best_logits.append(best)
        start = width + step
        made[step] = ids[:, 0].cpu().numpy()
        lived += running
        stop.mark(made[: step + 1], running, ends)
        if not running.any():
            break
    # The maximum picks NaN and infinity, so what is not finite shows in the best logits.
    # After its own end a row only goes on because others do.
    is_over = np.arange(step + 1) >= lived[:, None]  # (rows, steps)
    is_finite = torch.isfinite(torch.cat(best_logits, 1)).cpu().numpy() | is_over
    finite: list[bool] = np.all(is_finite, axis=1).tolist()
    return made[: step + 1].T.tolist(), ends.tolist(), finite
