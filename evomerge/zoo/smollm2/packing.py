"""Questions with choices as packed batches: the context once, its choices side by side after it.

Every choice continues the context alone: positions count from the context's end, and a mask lets a
token see the context and its own choice. The head is applied only where a token is scored, and the
last token of a choice is scored, never read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import log_softmax
from transformers import LlamaForCausalLM

Tokens = Sequence[int]


@dataclass(frozen=True)
class EncodedQuestion:
    """Token ids of a question's context and of its choices; none is empty."""

    context: Tokens
    choices: tuple[Tokens, ...]
    gold: int

    @property
    def num_read(self) -> int:
        """Tokens that the model reads."""
        return len(self.context) + sum(len(choice) - 1 for choice in self.choices)


@dataclass(frozen=True)
class Packed:
    """A batch of packed questions, and where its scored tokens are."""

    input_ids: Tensor  # (questions, length), padded on the right with 0
    position_ids: Tensor  # (questions, length)
    mask: Tensor  # (questions, 1, length, length), True where a token sees another
    positions: Tensor  # (scored,) index into questions * length: what predicts the token
    tokens: Tensor  # (scored,)
    owners: Tensor  # (scored,) index into questions * choices
    is_choice: Tensor  # (questions, choices), False where a question has fewer
    gold: Tensor  # (questions,)
    gold_lengths: Tensor  # (questions,) tokens of the right choice


def pack(questions: Sequence[EncodedQuestion]) -> Packed:
    """Lay questions out in rows, one each."""
    length = max(question.num_read for question in questions)
    width = max(len(question.choices) for question in questions)
    input_ids = torch.zeros((len(questions), length), dtype=torch.int64)
    position_ids = torch.zeros_like(input_ids)
    # A token that pads sees itself, so that no row of the softmax is empty.
    mask = torch.eye(length, dtype=torch.bool).repeat(len(questions), 1, 1, 1)
    is_choice = torch.zeros((len(questions), width), dtype=torch.bool)
    scored: list[tuple[int, int, int]] = []  # (position, token, owner)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    for row, question in enumerate(questions):
        start = len(question.context)
        input_ids[row, :start] = torch.tensor(question.context)
        position_ids[row, :start] = torch.arange(start)
        mask[row, 0, :start, :start] = causal[:start, :start]
        place = start
        for number, choice in enumerate(question.choices):
            is_choice[row, number] = True
            stop = place + len(choice) - 1
            input_ids[row, place:stop] = torch.tensor(choice[:-1], dtype=torch.int64)
            position_ids[row, place:stop] = torch.arange(start, start + stop - place)
            mask[row, 0, place:stop, :start] = True
            mask[row, 0, place:stop, place:stop] = causal[: stop - place, : stop - place]
            predictors = [start - 1, *range(place, stop)]
            scored += [
                (row * length + at, token, row * width + number)
                for at, token in zip(predictors, choice, strict=True)
            ]
            place = stop
    positions, tokens, owners = torch.tensor(scored).T
    gold = torch.tensor([question.gold for question in questions])
    lengths = torch.tensor([len(question.choices[question.gold]) for question in questions])
    return Packed(
        input_ids, position_ids, mask, positions, tokens, owners, is_choice, gold, lengths
    )


def batches_by_length(
    questions: Sequence[EncodedQuestion], batch_size: int, window: int
) -> Iterator[list[int]]:
    """Positions of questions in batches of similar length, which are padded little.

    window: batches that are sorted together; those further apart do not mix.
    """
    for start in range(0, len(questions), batch_size * window):
        places = range(start, min(start + batch_size * window, len(questions)))
        ordered = sorted(places, key=lambda place: (questions[place].num_read, place))
        cuts = range(0, len(ordered), batch_size)
        # Neither the short nor the long ones always first: what is trained last counts most.
        for cut in sorted(cuts, key=lambda cut: ordered[cut]):
            yield ordered[cut : cut + batch_size]


def choice_log_likelihoods(model: LlamaForCausalLM, batch: Packed) -> Tensor:
    """Summed log-probabilities of the choices in nats, (questions, choices); -inf where none is."""
    hidden = model.model(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        attention_mask=batch.mask,
        use_cache=False,
    ).last_hidden_state
    needed, back = torch.unique(batch.positions, return_inverse=True)  # choices share their first
    logits = model.lm_head(hidden.flatten(0, 1)[needed])  # (different positions, vocabulary)
    log_probabilities = log_softmax(logits, dim=-1, dtype=torch.float32)
    sums = torch.zeros(batch.is_choice.numel())
    sums = sums.index_add(0, batch.owners, log_probabilities[back, batch.tokens])
    return sums.view(batch.is_choice.shape).masked_fill(~batch.is_choice, -torch.inf)
