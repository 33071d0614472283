"""How fast a merged model decodes, on the machine that measures it."""

from __future__ import annotations

import hashlib
import inspect
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from evomerge.errors import CandidateError, ConfigurationError, Problem
from evomerge.fitness.forward import device_of
from evomerge.fitness.item_failures import responses_of
from evomerge.fitness.prompts import max_length
from evomerge.protocols import ResidentModel
from evomerge.recipe import canonical_json
from evomerge.records import ItemId, Responses


class LatencyTask:
    """Minus the seconds that a token takes in greedy decoding; fulfils `protocols.Task`.

    A made-up prompt is read, then `new_tokens` are decoded one by one with a key-value cache; the
    time of the latter counts. An item is one repetition, after one that does not count.

    It is the one task whose answers depend on the machine and on what else runs there. So a search
    with it is not the same when it is run again: `deterministic` is False. Workers that share
    processors slow each other: measure with one.

    Columns: `score`; `prompt_s`, the seconds that reading the prompt took.

    Args:
        name: the task's name.
        prompt_tokens: length of the prompt.
        new_tokens: how many tokens are decoded.
        repeats: how often; the number of items.
        allow_code: changes nothing here.
    """

    deterministic = False

    def __init__(
        self,
        name: str,
        *,
        prompt_tokens: int = 64,
        new_tokens: int = 16,
        repeats: int = 5,
        allow_code: bool = False,  # noqa: ARG002 - there is none
    ) -> None:
        self.name = name
        self.forward_s = 0.0
        self._prompt_tokens, self._new_tokens = prompt_tokens, new_tokens
        self.items: Sequence[ItemId] = range(repeats)

    @property
    def fingerprint(self) -> str:
        """sha256 of what is decoded."""
        content = ["latency", self._prompt_tokens, self._new_tokens, len(self.items)]
        return hashlib.sha256(canonical_json(content).encode()).hexdigest()

    def respond(self, model: ResidentModel, items: Sequence[ItemId]) -> Responses:
        """One repetition for each of `items`.

        Raises:
            CandidateError: a logit is not finite: how fast a broken model decodes is no merit.
            ConfigurationError: the model has too few positions, or no key-value cache.
        """
        asked = [int(item) for item in items]
        most = max_length(model.module.config, model.tokenizer)
        if self._prompt_tokens + self._new_tokens > most:
            what = f"{self._prompt_tokens} + {self._new_tokens} tokens, the model has {most}"
            raise ConfigurationError(Problem(f"task {self.name} prompt_tokens", what))
        columns = {name: np.zeros(len(asked), np.float32) for name in ("score", "prompt_s")}
        if asked:
            self._decode(model.module)  # caches and allocators warm up
        for place in range(len(asked)):
            prompt_s, decode_s = self._decode(model.module)
            columns["score"][place] = -decode_s / self._new_tokens
            columns["prompt_s"][place] = prompt_s
            self.forward_s += prompt_s + decode_s
        return responses_of(self.name, asked, columns, {}, None)

    def _decode(self, module: Any) -> tuple[float, float]:
        """Seconds for the prompt, and for all new tokens."""
        device = device_of(module)
        inputs: dict[str, Any] = {"use_cache": True}
        if "logits_to_keep" in inspect.signature(module.forward).parameters:
            inputs["logits_to_keep"] = 1
        vocabulary = module.get_input_embeddings().weight.shape[0]
        ids = (torch.arange(self._prompt_tokens, device=device) % vocabulary)[None]
        best: list[torch.Tensor] = []
        with torch.inference_mode():
            start = _now(device)
            output = module(ids, **inputs)
            middle = _now(device)
            for _ in range(self._new_tokens):
                if (cache := getattr(output, "past_key_values", None)) is None:
                    what = f"{type(module).__name__} has no key-value cache"
                    raise ConfigurationError(Problem(f"task {self.name}", what))
                found = output.logits[:, -1].max(-1, keepdim=True)
                ids = found.indices
                best.append(found.values)
                output = module(ids, past_key_values=cache, **inputs)
            end = _now(device)
        # The maximum picks NaN and infinity; it is looked at after the clock has stopped.
        if not bool(torch.isfinite(torch.cat([*best, output.logits[:, -1]], 1)).all()):
            raise CandidateError("a logit is not finite")
        return middle - start, end - middle


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
