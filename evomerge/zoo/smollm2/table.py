"""What the experts have learnt: the base's and each expert's accuracy on the expert's own task."""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from evomerge.zoo.smollm2.items import Data, task_questions
from evomerge.zoo.smollm2.packing import batches_by_length, choice_log_likelihoods, pack
from evomerge.zoo.smollm2.tasks import holdout_items
from evomerge.zoo.smollm2.training import encode
from evomerge.zoo.tiny_training import one_thread

BATCH_SIZE = 25


def holdout_accuracy(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, skill: str, data: Data
) -> dict[str, Any]:
    """The part of the skill's holdout items that the model answers right."""
    questions = task_questions(skill, data)
    chosen = [questions[item] for item in holdout_items(skill, len(questions))]
    encoded = [encode(question, tokenizer) for question in chosen]
    right: list[bool] = []
    with one_thread(), torch.inference_mode():
        for places in batches_by_length(encoded, BATCH_SIZE, window=len(encoded)):
            batch = pack([encoded[place] for place in places])
            best = choice_log_likelihoods(model, batch).argmax(1)
            right += (best == batch.gold).tolist()
    value = sum(right) / len(right)
    error = math.sqrt(value * (1 - value) / len(right))
    return {"value": value, "standard_error": error, "num_items": len(right)}
