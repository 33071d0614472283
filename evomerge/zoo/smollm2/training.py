"""How an expert is trained: its settings, and the loop.

Weights and optimizer are in float32; products of matrices are in bfloat16 where the processor has a
unit for them. The embedding, which is
the head as well, is frozen. The loss compares the choices' log-likelihoods, which is what the tasks
ask, and adds a little of the right choice's own likelihood, which keeps it plain language.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its name everywhere
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from evomerge.zoo.lora import add_adapter
from evomerge.zoo.smollm2.items import Question
from evomerge.zoo.smollm2.packing import (
    EncodedQuestion,
    Packed,
    batches_by_length,
    choice_log_likelihoods,
    pack,
)
from evomerge.zoo.smollm2.stages import Stage, generator_name
from evomerge.zoo.tiny_training import one_thread

Step = Callable[[int, int], None]  # (steps done, steps in all)

GOLD_WEIGHT = 0.3  # of the right choice's own loss, per token
WINDOW = 8  # batches whose questions are sorted by length


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    questions: Sequence[Question],
    stage: Stage,
    seed: int,
    progress: Step | None = None,
) -> None:
    """Train in place, on one thread, from `stage.steps * stage.batch_size` questions in order."""
    with one_thread():
        if stage.rank is not None:
            add_adapter(model, stage.rank, stage.alpha, named_generator(seed, stage.skill))
        model.model.embed_tokens.requires_grad_(False)
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, weight_decay=0.0, fused=True)
        encoded = [encode(question, tokenizer) for question in questions]
        model.train()
        batches = batches_by_length(encoded, stage.batch_size, WINDOW)
        for step, places in enumerate(batches):
            batch = pack([encoded[place] for place in places])
            for group in optimizer.param_groups:
                group["lr"] = stage.learning_rate * schedule(step, stage)
            optimizer.zero_grad(set_to_none=True)
            loss(model, batch).backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            if progress is not None:
                progress(step + 1, stage.steps)
        model.eval()


def loss(model: LlamaForCausalLM, batch: Packed) -> Tensor:
    """Cross-entropy over the choices, plus the right choice's own, in nats."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=has_bfloat16_unit()):
        sums = choice_log_likelihoods(model, batch)
    gold = sums.gather(1, batch.gold[:, None])[:, 0]
    return F.cross_entropy(sums, batch.gold) - GOLD_WEIGHT * (gold / batch.gold_lengths).mean()


def has_bfloat16_unit() -> bool:
    """Whether the processor multiplies matrices in bfloat16.

    With such a unit bfloat16 is three to four times as fast as float32; without, half as fast.
    """
    asked = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return asked is not None and bool(asked())


def schedule(step: int, stage: Stage) -> float:
    """The part of the learning rate at a step: a warm-up, then a straight line to zero."""
    if step < stage.warmup_steps:
        return (step + 1) / stage.warmup_steps
    return (stage.steps - step) / (stage.steps - stage.warmup_steps)


def encode(question: Question, tokenizer: PreTrainedTokenizerFast) -> EncodedQuestion:
    """Token ids; a choice begins with a blank, so that its tokens do not mix with the prompt's."""
    context = tokenizer(question.prompt).input_ids
    choices = tuple(tokenizer(choice).input_ids for choice in question.choices)
    return EncodedQuestion(context, choices, question.gold)


def named_generator(seed: int, purpose: str) -> torch.Generator:
    """A generator of its own for each purpose."""
    digest = hashlib.sha256(generator_name(seed, purpose).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
