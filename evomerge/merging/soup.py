"""Model soups: the plain mean of models, and which models to put into it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evomerge.errors import ConfigurationError, Problem
from evomerge.merging.operator import Block, Operator, Values, chunks

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class _Prepared:
    mean: Tensor  # (numel,) float32
    nbytes: int


def _prepare(block: Block, values: Values) -> _Prepared:
    del values
    import torch

    first = block.sources[0]
    mean = torch.empty(block.numel, dtype=torch.float32, device=first.device)
    for part in chunks(block.numel):
        total = first[part].float()
        for source in block.sources[1:]:
            total = total + source[part]
        mean[part] = total / len(block.sources)
    return _Prepared(mean, mean.nbytes)


def _apply(prepared: _Prepared, values: Values, out: Tensor) -> None:
    del values
    out.copy_(prepared.mean)


UNIFORM_SOUP = Operator(
    name="uniform_soup",
    paper="Wortsman et al. 2022, Model soups, https://arxiv.org/abs/2203.05482 (sec. 2)",
    summary="The mean of all sources",
    parameters=(),
    needs_base=False,
    min_sources=1,
    max_sources=None,
    prepare=_prepare,
    apply=_apply,
    notes="What `linear` gives with equal weights. Which models go in is what a greedy soup "
    "chooses: `evomerge.merging.soup.greedy_soup`.",
)


def greedy_soup(
    names: Sequence[str], score_of: Callable[[tuple[str, ...]], float]
) -> tuple[str, ...]:
    """The models to average: each is kept if the mean with it scores no lower than without.

    Source: Wortsman et al. 2022, https://arxiv.org/abs/2203.05482, recipe 1.

    Args:
        names: in descending score of the models alone; the first is always kept.
        score_of: the score of the mean of some models, higher is better. It is called once for
            each name; a score that is not a number loses.

    Raises:
        ConfigurationError: a name stands twice.
    """
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigurationError([Problem("soup", f"{name!r} stands twice") for name in twice])
    kept: tuple[str, ...] = ()
    best = -math.inf
    for name in names:
        score = score_of((*kept, name))
        if score >= best or not kept:
            kept = (*kept, name)
            best = best if math.isnan(score) else score
    return kept
