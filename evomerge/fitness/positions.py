"""The next-token distributions of a language model at the last positions of some sequences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from evomerge.fitness.forward import ForwardClock, Tokens, device_of, padded


@dataclass(frozen=True)
class _Batch:
    input_ids: Tensor  # (rows, length), padded on the right
    positions: Tensor  # (positions,) index into rows * length
    requests: tuple[int, ...]  # (rows,)


class PositionPlan:
    """The batches that read the last positions of some sequences, the longest first.

    Args:
        sequences: tokens, and at how many of the last of them to read what comes next.
        batch_size: rows in a forward pass.
        max_length: positions of the model; longer sequences lose their beginning.
    """

    def __init__(
        self, sequences: Sequence[tuple[Tokens, int]], batch_size: int, max_length: int
    ) -> None:
        order = sorted(range(len(sequences)), key=lambda r: (-len(sequences[r][0]), r))
        self.batches = []
        for start in range(0, len(order), batch_size):
            requests = order[start : start + batch_size]
            rows = [sequences[request][0][-max_length:] for request in requests]
            width = max(map(len, rows))
            positions: list[int] = []
            for row, (tokens, request) in enumerate(zip(rows, requests, strict=True)):
                end = row * width + len(tokens)
                positions.extend(range(end - sequences[request][1], end))
            self.batches.append(_Batch(padded(rows), torch.tensor(positions), tuple(requests)))


def log_probabilities(
    module: nn.Module, plan: PositionPlan, clock: ForwardClock
) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """Batch by batch: its requests, and all their positions' (positions, vocabulary), in nats.

    Not finite where the logits are not.
    """
    device = device_of(module)
    for batch in plan.batches:
        with torch.inference_mode():
            with clock:
                logits = module(batch.input_ids.to(device)).logits
            read = logits.flatten(0, 1)[batch.positions.to(device)]
            found = log_softmax(read, dim=-1, dtype=torch.float32).cpu()
        yield batch.requests, found
