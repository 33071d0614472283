"""Log-likelihoods of continuations, in fixed batches.

What depends on the tokenizer and the chosen requests alone is planned once and kept; per candidate
only the model runs. The numbers are those of lm-evaluation-harness's `HFLM`: the same truncation,
the same order of requests, and padding on the right, so equal batches give equal bits; trees
(shared_prefix.py), and an output head that sees the scored positions alone, give the same but for
last bits.

Not covered: encoder-decoder models.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from evomerge.fitness.forward import ForwardClock, Tokens, device_of, padded
from evomerge.fitness.shared_prefix import TokenTree, TreeRows, logits_at

REVISION = 2  # raised where answers change in their last bits


@dataclass(frozen=True)
class _ScoringBatch:
    """One forward pass and what is read from it.

    Scored positions are numbered within the batch; requests that continue the same tokens share
    them, so the single-token choices of a question cost one row of logits.
    """

    input_ids: Tensor  # (rows, length), padded on the right
    trees: TreeRows | None  # where a row is a tree
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
        bounds: to make one row of the pairs [bounds[i], bounds[i + 1]), with what they share once;
            None for a row of each pair, as in HFLM.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[Tokens, Tokens]],
        batch_size: int,
        max_length: int,
        bounds: Sequence[int] | None = None,
    ) -> None:
        self.num_requests = len(pairs)
        if bounds is None:
            rows = _sequence_rows(pairs, max_length)
        else:
            spans = itertools.pairwise(bounds)
            rows = [_tree_row(pairs, range(*span), max_length) for span in spans]
            rows.sort(key=lambda row: (-len(row.tokens), row.tokens))
        continuations = [continuation for _, continuation in pairs]
        self.batches = [
            _scoring_batch(rows[start : start + batch_size], continuations)
            for start in range(0, len(rows), batch_size)
        ]

    @property
    def num_tokens(self) -> int:
        """Tokens that the forward passes compute, padding included."""
        return sum(batch.input_ids.numel() for batch in self.batches)

    @property
    def depth(self) -> int:
        """Length of the longest sequence in a tree; 0 where there are no trees."""
        return max((batch.trees.depth for batch in self.batches if batch.trees), default=0)


@dataclass(frozen=True)
class _Row:
    tokens: Tokens
    requests: Sequence[Sequence[int]]  # those that read from the same places
    places: Sequence[Sequence[int]]  # where those read: a continuation of n tokens, the last n
    tree: TokenTree | None = None


def _sequence_rows(pairs: Sequence[tuple[Tokens, Tokens]], max_length: int) -> list[_Row]:
    groups: dict[Tokens, list[int]] = {}
    for request, (context, continuation) in enumerate(pairs):
        groups.setdefault(context + continuation[:-1], []).append(request)
    longest = {
        key: max(requests, key=lambda request: len(pairs[request][1]))
        for key, requests in groups.items()
    }
    # The longest sequence first, as in HFLM: what does not fit in memory fails at once.
    order = sorted(groups, key=lambda key: (-len(key) - 1, (*key, pairs[longest[key]][1][-1])))
    rows = []
    for key in order:
        tokens, most = key[-max_length:], len(pairs[longest[key]][1])
        rows.append(_Row(tokens, [groups[key]], [range(len(tokens) - most, len(tokens))]))
    return rows


def _tree_row(
    pairs: Sequence[tuple[Tokens, Tokens]], requests: Sequence[int], max_length: int
) -> _Row:
    groups: dict[Tokens, list[int]] = {}
    for request in requests:
        context, continuation = pairs[request]
        groups.setdefault((context + continuation[:-1])[-max_length:], []).append(request)
    tree = TokenTree.of(list(groups))
    places = [
        tree.paths[key][-max(len(pairs[request][1]) for request in group) :]
        for key, group in groups.items()
    ]
    return _Row(tree.tokens, list(groups.values()), places, tree)


def _scoring_batch(rows: Sequence[_Row], continuations: Sequence[Tokens]) -> _ScoringBatch:
    width = max(len(row.tokens) for row in rows)
    positions: list[int] = []
    token_positions: list[int] = []
    tokens: list[int] = []
    requests: list[int] = []
    starts: list[int] = []
    for number, row in enumerate(rows):
        known: dict[int, int] = {}  # place in the row -> index into `positions`
        for group, places in zip(row.requests, row.places, strict=True):
            for place in places:
                if place not in known:
                    known[place] = len(positions)
                    positions.append(number * width + place)
            for request in group:
                continuation = continuations[request]
                requests.append(request)
                starts.append(len(tokens))
                tokens.extend(continuation)
                token_positions.extend(known[place] for place in places[-len(continuation) :])
    lengths = np.diff([*starts, len(tokens)])
    by_length = []
    for length in np.unique(lengths):
        chosen = np.flatnonzero(lengths == length)
        index = np.asarray(starts)[chosen, None] + np.arange(length)
        by_length.append((torch.from_numpy(chosen), torch.from_numpy(index)))
    trees = [row.tree for row in rows if row.tree is not None]
    return _ScoringBatch(
        padded([row.tokens for row in rows]),
        TreeRows.of(trees) if trees else None,
        torch.tensor(positions),
        torch.tensor(token_positions),
        torch.tensor(tokens),
        np.asarray(requests),
        np.asarray(starts),
        tuple(by_length),
    )


def log_likelihoods(
    module: nn.Module, plan: ContinuationPlan, clock: ForwardClock, *, whole_head: bool = True
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Log-likelihood of every continuation, and whether greedy decoding would give it.

    Args:
        module: a causal language model.
        plan: what is asked.
        clock: gets the time of the forward passes.
        whole_head: compute the logits of all positions, as HFLM does, where rows are no trees; else
            of the scored ones alone, which may change last bits.

    Returns:
        (requests,) summed log-probabilities in nats, not finite where the logits are not, and
        (requests,) flags.
    """
    sums = np.zeros(plan.num_requests, np.float32)
    greedy = np.zeros(plan.num_requests, np.bool_)
    device = device_of(module)
    with torch.inference_mode():
        for batch in plan.batches:
            positions = batch.positions.to(device)
            if batch.trees is not None:
                inputs = batch.trees.inputs(module)
            else:
                inputs = {"input_ids": batch.input_ids.to(device)}
            with clock:
                if whole_head and batch.trees is None:
                    logits = module(inputs["input_ids"]).logits.flatten(0, 1)[positions]
                else:
                    logits = logits_at(module, inputs, positions)
            # A bfloat16 log-softmax has steps of an eighth at -20, and choices would tie.
            log_probabilities = log_softmax(logits, dim=-1, dtype=torch.float32).cpu()
            taken = log_probabilities[batch.token_positions, batch.tokens]  # (tokens,)
            matches = log_probabilities.argmax(-1)[batch.token_positions] == batch.tokens
            batch_sums = torch.empty(len(batch.requests))
            for chosen, index in batch.by_length:
                batch_sums[chosen] = taken[index].sum(-1)
            sums[batch.requests] = batch_sums.numpy()
            greedy[batch.requests] = np.logical_and.reduceat(matches.numpy(), batch.starts)
    return sums, greedy
