"""Model soups: the plain mean of models, and which models to put into it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from evomerge.errors import ConfigurationError, Problem
from evomerge.merging import passes
from evomerge.merging.operator import Operator, Values
from evomerge.merging.operators.linear import Sources, keep_sources

if TYPE_CHECKING:
    from torch import Tensor


def _apply(prepared: Sources, values: Values, out: Tensor) -> bool | None:
    del values
    count = len(prepared.models.sources)
    share = np.full((count, 1), 1 / count)
    return passes.weighted_sum(prepared.models, share, out)


UNIFORM_SOUP = Operator(
    name="uniform_soup",
    paper="Wortsman et al. 2022, Model soups, https://arxiv.org/abs/2203.05482 (sec. 2)",
    summary="The mean of all sources",
    parameters=(),
    needs_base=False,
    min_sources=1,
    max_sources=None,
    prepare=keep_sources,
    apply=_apply,
    notes="What `linear` gives with equal weights. Which models go in is what a greedy soup "
    "chooses: `evomerge.merging.operators.soup.greedy_soup`.",
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
