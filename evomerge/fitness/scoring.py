"""Forward passes: log-likelihoods of continuations, and greedy generation, in fixed batches.

What depends on the tokenizer and the chosen requests alone is planned once and kept; per candidate
only the model runs. The numbers are those of lm-evaluation-harness's `HFLM`: the same truncation,
the same order of requests, and padding where it puts it (right for log-likelihoods, left for
generation), so equal batches give equal bits.

Not covered: encoder-decoder models, models without a key-value cache (they can score, but not
generate), and the logits processors of a `generation_config` (decoding is plainly greedy).
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from evomerge.errors import CandidateError

Tokens = tuple[int, ...]


class ForwardClock:
    """Adds up the seconds that are spent inside the model: `with clock: module(...)`."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._start = 0.0

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.seconds += time.perf_counter() - self._start


# --- log-likelihoods ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _ScoringBatch:
    """One forward pass and what is read from it.

    Scored positions are numbered within the batch; requests that continue the same tokens share
    them, so the single-token choices of a question cost one row.
    """

    input_ids: Tensor  # (rows, length), padded on the right
    positions: Tensor  # (scored,) index into rows * length
    token_positions: Tensor  # (tokens,) index into scored
    tokens: Tensor  # (tokens,)
    requests: NDArray[np.int64]  # (batch requests,) in the order of `starts`
    starts: NDArray[np.int64]  # (batch requests,) where a request's tokens begin
    by_length: tuple[
        tuple[Tensor, Tensor], ...
    ]  # (which requests, (requests, n) index into tokens)


class ContinuationPlan:
    """The batches that score some (context, continuation) pairs of tokens.

    Args:
        pairs: token ids of context and continuation; neither is empty.
        batch_size: rows in a forward pass.
        max_length: positions of the model; longer sequences lose their beginning.
    """

    def __init__(
        self, pairs: Sequence[tuple[Tokens, Tokens]], batch_size: int, max_length: int
    ) -> None:
        self.num_requests = len(pairs)
        groups: dict[Tokens, list[int]] = {}
        for request, (context, continuation) in enumerate(pairs):
            groups.setdefault(context + continuation[:-1], []).append(request)
        longest = {
            key: max(requests, key=lambda request: len(pairs[request][1]))
            for key, requests in groups.items()
        }
        # The longest sequence first, as in HFLM: what does not fit in memory fails at once.
        order = sorted(groups, key=lambda key: (-len(key) - 1, (*key, pairs[longest[key]][1][-1])))
        self.batches = [
            _scoring_batch(
                order[start : start + batch_size], groups, [p[1] for p in pairs], max_length
            )
            for start in range(0, len(order), batch_size)
        ]

    @property
    def num_tokens(self) -> int:
        """Tokens that the forward passes compute, padding included."""
        return sum(batch.input_ids.numel() for batch in self.batches)


def _scoring_batch(
    keys: Sequence[Tokens],
    groups: dict[Tokens, list[int]],
    continuations: Sequence[Tokens],
    max_length: int,
) -> _ScoringBatch:
    rows = [key[-max_length:] for key in keys]
    width = max(map(len, rows))
    input_ids = torch.zeros((len(rows), width), dtype=torch.long)
    positions: list[int] = []
    token_positions: list[int] = []
    tokens: list[int] = []
    requests: list[int] = []
    starts: list[int] = []
    for row, (key, ids) in enumerate(zip(keys, rows, strict=True)):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        most = max(len(continuations[request]) for request in groups[key])
        end = row * width + len(ids)
        positions.extend(range(end - most, end))
        for request in groups[key]:
            continuation = continuations[request]
            requests.append(request)
            starts.append(len(tokens))
            tokens.extend(continuation)
            token_positions.extend(range(len(positions) - len(continuation), len(positions)))
    lengths = np.diff([*starts, len(tokens)])
    by_length = []
    for length in np.unique(lengths):
        chosen = np.flatnonzero(lengths == length)
        index = np.asarray(starts)[chosen, None] + np.arange(length)
        by_length.append((torch.from_numpy(chosen), torch.from_numpy(index)))
    return _ScoringBatch(
        input_ids,
        torch.tensor(positions),
        torch.tensor(token_positions),
        torch.tensor(tokens),
        np.asarray(requests),
        np.asarray(starts),
        tuple(by_length),
    )


def log_likelihoods(
    module: nn.Module, plan: ContinuationPlan, clock: ForwardClock
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Log-likelihood of every continuation, and whether greedy decoding would give it.

    Returns:
        (requests,) summed log-probabilities in nats, and (requests,) flags.

    Raises:
        CandidateError: a log-likelihood is not finite.
    """
    sums = np.zeros(plan.num_requests, np.float32)
    greedy = np.zeros(plan.num_requests, np.bool_)
    device = _device(module)
    with torch.inference_mode():
        for batch in plan.batches:
            with clock:
                logits = module(batch.input_ids.to(device)).logits
            scored = logits.flatten(0, 1)[batch.positions.to(device)]  # (scored, vocabulary)
            # A bfloat16 log-softmax has steps of an eighth at -20, and choices would tie.
            log_probabilities = log_softmax(scored, dim=-1, dtype=torch.float32).cpu()
            taken = log_probabilities[batch.token_positions, batch.tokens]  # (tokens,)
            matches = log_probabilities.argmax(-1)[batch.token_positions] == batch.tokens
            batch_sums = torch.empty(len(batch.requests))
            for chosen, index in batch.by_length:
                batch_sums[chosen] = taken[index].sum(-1)
            # argmax picks NaN, so a broken model whose gold answer stands first would be perfect.
            if not bool(torch.isfinite(batch_sums).all()):
                raise CandidateError("a log-likelihood is not finite (NaN or infinite logits)")
            sums[batch.requests] = batch_sums.numpy()
            greedy[batch.requests] = np.logical_and.reduceat(matches.numpy(), batch.starts)
    return sums, greedy


# --- generation -----------------------------------------------------------------------------------


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
        self._ends = np.zeros(size, np.bool_)
        self._ends[list(end_ids)] = True
        self._stops = np.zeros(size, np.bool_)
        self._doubtful = np.zeros(size, np.bool_)
        last = {string[-1] for string in self.strings}
        # A blank may be stripped where a token stands alone, and half a character has no text.
        always = any(character == " " or ord(character) > 127 for character in last)
        for token, text in enumerate(texts):
            if token in specials:
                self._ends[token] |= text in self.strings
            elif any(string in text for string in self.strings):
                self._stops[token] = True
            elif always or not last.isdisjoint(text):
                self._doubtful[token] = True

    def mark(
        self, tokens: NDArray[np.int64], running: NDArray[np.bool_], ends: NDArray[np.int64]
    ) -> None:
        """Note in `running` and `ends` which answers the newest tokens bring to an end.

        Args:
            tokens: (rows, steps) of every answer so far.
            running: (rows,) whether an answer goes on.
            ends: (rows,) its length; an end token is not part of it.
        """
        newest, step = tokens[:, -1], tokens.shape[1] - 1
        over = self._ends[newest] & running
        ends[over] = step
        running &= ~over
        over = self._stops[newest] & running
        for row in np.flatnonzero(self._doubtful[newest] & running).tolist():
            text = self.tokenizer.decode(tokens[row].tolist(), skip_special_tokens=True)
            over[row] = any(string in text for string in self.strings)
        ends[over] = step + 1
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
    position_ids: Tensor  # (rows, length)
    requests: NDArray[np.int64]  # (rows,)


class PromptPlan:
    """The batches that answer some prompts.

    Args:
        prompts: token ids; those too long lose their beginning.
        order: requests in the order in which they are put into batches.
        batch_size: rows in a forward pass.
        max_new_tokens: length of the longest answer.
        max_length: positions of the model, for prompt and answer together.
        pad_id: any token; it is never attended to.
    """

    def __init__(
        self,
        prompts: Sequence[Tokens],
        order: Sequence[int],
        batch_size: int,
        max_new_tokens: int,
        max_length: int,
        pad_id: int,
    ) -> None:
        self.max_new_tokens = max_new_tokens
        self.num_requests = len(prompts)
        self.batches = []
        for start in range(0, len(order), batch_size):
            requests = np.asarray(order[start : start + batch_size])
            rows = [prompts[request][-(max_length - max_new_tokens) :] for request in requests]
            width = max(map(len, rows))
            input_ids = torch.full((len(rows), width), pad_id)
            mask = torch.ones((len(rows), width + max_new_tokens), dtype=torch.long)
            for row, ids in enumerate(rows):
                input_ids[row, width - len(ids) :] = torch.tensor(ids)
                mask[row, : width - len(ids)] = 0
            position_ids = (mask[:, :width].cumsum(-1) - 1).clamp(min=0)
            padded = bool((mask == 0).any())
            self.batches.append(
                _PromptBatch(input_ids, mask if padded else None, position_ids, requests)
            )


def generate(
    module: nn.Module, plan: PromptPlan, stop: StopRule, clock: ForwardClock
) -> list[Tokens]:
    """The greedy answer to every prompt: its tokens, up to the one that ended it.

    Raises:
        CandidateError: a logit is not finite.
    """
    answers: list[Tokens] = [()] * plan.num_requests
    accepted = inspect.signature(module.forward).parameters
    with torch.inference_mode():
        for batch in plan.batches:
            tokens, ends = _decode(module, batch, plan.max_new_tokens, stop, clock, accepted)
            for request, row, end in zip(batch.requests.tolist(), tokens, ends, strict=True):
                answers[request] = tuple(row[:end])
    return answers


def _decode(
    module: nn.Module,
    batch: _PromptBatch,
    max_new_tokens: int,
    stop: StopRule,
    clock: ForwardClock,
    accepted: Any,
) -> tuple[list[list[int]], list[int]]:
    """Greedy decoding of one batch: tokens of shape (rows, steps), and each answer's length."""
    device = _device(module)
    rows, width = batch.input_ids.shape
    ids, positions = batch.input_ids.to(device), batch.position_ids.to(device)
    mask = None if batch.mask is None else batch.mask.to(device)
    made = np.zeros((rows, max_new_tokens), np.int64)
    ends = np.full(rows, max_new_tokens)
    running = np.ones(rows, np.bool_)
    best_logits = []
    inputs: dict[str, Any] = {"use_cache": True}
    if "logits_to_keep" in accepted:
        inputs["logits_to_keep"] = 1
    step = 0
    for step in range(max_new_tokens):
        if "position_ids" in accepted:
            inputs["position_ids"] = positions
        if mask is not None:
            inputs["attention_mask"] = mask[:, : width + step]
        with clock:
            output = module(ids, **inputs)
        inputs["past_key_values"] = output.past_key_values
        logits = output.logits[:, -1]  # (rows, vocabulary)
        ids, positions = logits.argmax(-1, keepdim=True), positions[:, -1:] + 1
        best_logits.append(logits.gather(-1, ids))
        made[:, step] = ids[:, 0].cpu().numpy()
        stop.mark(made[:, : step + 1], running, ends)
        if not running.any():
            break
    # argmax picks NaN and infinity, so what is not finite shows in the best logits.
    if not bool(torch.isfinite(torch.cat(best_logits, 1)).all()):
        raise CandidateError("a logit is not finite")
    return made[:, : step + 1].tolist(), ends.tolist()


def _device(module: nn.Module) -> torch.device:
    parameter = next(module.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device
