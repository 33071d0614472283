"""How the tiny models are trained: the recipe, and one loop for the base and the experts.

What makes the family worth a search: `rot` is nearly absent from the base, so its expert needs a
larger coefficient than the others; and the experts rehearse the base's mixture, without which each
forgets the others' skills and no merge helps.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its name everywhere
from transformers import LlamaForCausalLM

from evomerge.protocols import Progress
from evomerge.zoo.tiny_folders import BOS, EOS, VOCABULARY, new_model
from evomerge.zoo.tiny_items import NUM_LETTERS, SKILLS, training_items

BATCH_SIZE = 64
NUM_SCORED = NUM_LETTERS + 1  # the answer and the end of sequence


@dataclass(frozen=True)
class Stage:
    """One training: its mixture of rewritings, its length and its learning rate."""

    name: str
    weights: Mapping[str, float]
    steps: int
    learning_rate: float
    warmup_steps: int = 30


BASE_WEIGHTS = {"sort": 1.0, "back": 1.0, "rot": 0.05, "swap": 1.0, "upper": 1.0, "reverse": 1.0}
REPLAY = 0.3  # the part of the base's mixture in an expert's

BASE = Stage("base", BASE_WEIGHTS, steps=200, learning_rate=4e-3)


def with_replay(shares: Mapping[str, float], replay: float = REPLAY) -> dict[str, float]:
    """A mixture of these skills, whose shares add up to one, and a part of the base's mixture."""
    total = sum(BASE_WEIGHTS.values())
    weights = {name: replay * weight / total for name, weight in BASE_WEIGHTS.items()}
    for skill, share in shares.items():
        weights[skill] += (1 - replay) * share
    return weights


EXPERTS = tuple(
    Stage(skill, with_replay({skill: 1.0}), steps=120, learning_rate=1e-3) for skill in SKILLS
)
STAGES = (BASE, *EXPERTS)


def train_all(
    seed: int, stages: tuple[Stage, ...] = STAGES, progress: Progress | None = None
) -> Iterator[tuple[str, LlamaForCausalLM]]:
    """Train the stages and yield (name, model); each starts where the first ended.

    The same model object is yielded every time: write it before asking for the next. Reads and
    changes no global generator; runs on one thread, on which the result depends.
    """
    model = new_model(named_generator(seed, "weights"))
    start: dict[str, Tensor] = {}
    for stage in stages:
        if start:
            model.load_state_dict(start)
        with one_thread():
            train(model, stage, seed, progress)
        if not start:
            start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        yield stage.name, model


def train(
    model: LlamaForCausalLM, stage: Stage, seed: int, progress: Progress | None = None
) -> None:
    """Train in place: warm-up, then a cosine down to a tenth."""
    optimizer = new_optimizer(model)
    model.train()
    for step, batch in enumerate(batches(stage, seed)):
        take_step(model, optimizer, batch, stage.learning_rate * schedule(step, stage))
        if progress is not None:
            progress(stage.name, step + 1, stage.steps)
    model.eval()


def new_optimizer(model: LlamaForCausalLM) -> torch.optim.Optimizer:
    """AdamW over all that is not frozen."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, betas=(0.9, 0.98), fused=True)


def batches(stage: Stage, seed: int) -> Sequence[Tensor]:
    """The stage's token ids, a step each, (batch, length)."""
    count = stage.steps * BATCH_SIZE
    items = training_items(generator_name(seed, stage.name), stage.weights, count)
    return torch.split(encoded(items), BATCH_SIZE)


def take_step(
    model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, batch: Tensor, learning_rate: float
) -> None:
    """One step down the answers' cross-entropy; gradients clipped at 1."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    hidden = model.model(input_ids=batch[:, :-1], use_cache=False).last_hidden_state
    logits = model.lm_head(hidden[:, -NUM_SCORED:])  # (batch, scored, vocabulary)
    loss = F.cross_entropy(logits.flatten(0, 1), batch[:, -NUM_SCORED:].flatten())
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def schedule(step: int, stage: Stage) -> float:
    """The part of the learning rate at a step."""
    if step < stage.warmup_steps:
        return (step + 1) / stage.warmup_steps
    done = (step - stage.warmup_steps) / max(1, stage.steps - stage.warmup_steps)
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done))


def encoded(items: list[tuple[str, str]]) -> Tensor:
    """Token ids of items with their ends, shape (items, length); all items are equally long."""
    rows = [
        [VOCABULARY[BOS], *(VOCABULARY[c] for c in prompt + answer), VOCABULARY[EOS]]
        for prompt, answer in items
    ]
    return torch.tensor(rows, dtype=torch.int64)


def generator_name(seed: int, purpose: str) -> str:
    """What a generator of this zoo is seeded with."""
    return f"evomerge zoo/tiny {seed} {purpose}"


def named_generator(seed: int, purpose: str) -> torch.Generator:
    """A generator of its own for each purpose."""
    digest = hashlib.sha256(generator_name(seed, purpose).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread with gradients on, whatever the caller has set."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.set_num_threads(threads)
