"""Weight matching: the order of hidden units in which one network is nearest to another.

Networks trained from different beginnings may compute much the same with their hidden units in
another order, and their mean is then no network at all. The order that brings the weights together
is found group by group: with all other groups as they are, the best permutation of one is a linear
assignment problem (Ainsworth, Hayase & Srinivasa 2023, https://arxiv.org/abs/2209.04836, algorithm
1). For transformers the groups are those of Verma & Elbayad 2024, https://arxiv.org/abs/2403.00986:
residual stream, attention heads, feed-forward units; key heads that several query heads share, and
rotary pairs, are kept together here.

Departures: the groups are not looked at in random order, but first the one of whose weights the
largest share hangs on nothing but itself and what was looked at before (a first layer's units have
the inputs to go by, the stream has the tokens); among equals a seeded draw decides. A group is
looked at again only after another that shares tensors with it has changed. Inside an attention
layer the assignment of heads is nested: heads are compared in their best inner order, which is
found for each pair of heads, and a proposal is taken only if it is better than what there was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evomerge.checkpoints.axes import Axes, Group, Heads, Spaces, Units
from evomerge.checkpoints.open import Checkpoint

Index = NDArray[np.int64]
Permutations = dict[str, Index]  # space -> for each place, which of the model's own units is there

VERSION = 1  # of what is found: a new number finds all anew
MAX_LOOKS = 100  # at one group; it ends long before
_LEAST_GAIN = 1e-7  # of a group's score: what is less is rounding


@dataclass(frozen=True)
class Matching:
    """Permutations that bring a model nearer to another one, and by how much.

    before, after: cosine of the weights that are compared; moved: share of the units that are not
    where they were.
    """

    permutations: Permutations
    before: float
    after: float

    @property
    def moved(self) -> float:
        """The share of all units, counted once in each space, that stand elsewhere."""
        total = sum(len(index) for index in self.permutations.values())
        changed = sum(int((i != np.arange(len(i))).sum()) for i in self.permutations.values())
        return changed / max(1, total)


def identity(axes: Axes) -> Permutations:
    """Every unit where it is."""
    return {space: np.arange(size) for space, size in axes.sizes.items()}


def permuted(tensor: Tensor, axes: tuple[Spaces, ...], permutations: Permutations) -> Tensor:
    """A tensor with its units in another order."""
    for dimension, spaces in enumerate(axes):
        index = index_along(spaces, permutations)
        if index is not None:
            tensor = tensor.index_select(dimension, torch.from_numpy(index))
    return tensor


def index_along(spaces: Spaces, permutations: Permutations) -> Index | None:
    """The permutation of an axis; None where nothing moves."""
    parts, start = [], 0
    for space in spaces:
        parts.append(permutations[space] + start)
        start += len(parts[-1])
    if not parts:
        return None
    index: Index = np.concatenate(parts)
    return None if (index == np.arange(len(index))).all() else index


def match(
    model: Checkpoint,
    target: Checkpoint,
    axes: Axes,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Matching:
    """Find the order of a model's units in which its weights are nearest to another model's.

    Args:
        model: whose units are put into another order.
        target: the other model; tensors of other names, or of other shapes, are not compared.
        axes: the model's.
        seed: of the order in which the groups are looked at.
        progress: called with the groups that are settled, and the number of all.
    """
    descent = _Descent(model, target, axes)
    before = descent.cosine()
    order = np.random.default_rng(seed).permutation(len(axes.groups))
    waiting = dict.fromkeys(int(i) for i in order)
    looks = dict.fromkeys(waiting, 0)
    while waiting:
        settled = {i for i, count in looks.items() if count}
        number = max(waiting, key=lambda i: descent.anchored(i, settled))  # the first of equals
        del waiting[number]
        looks[number] += 1
        if descent.improve(number):
            again = [i for i in descent.neighbours(number) if looks[i] < MAX_LOOKS]
            waiting |= dict.fromkeys(again)
        if progress is not None:
            progress(len(axes.groups) - len(waiting), len(axes.groups))
    return Matching(descent.permutations, before, descent.cosine())


class _Descent:
    """The permutations as they are, and what can be said of them."""

    def __init__(self, model: Checkpoint, target: Checkpoint, axes: Axes) -> None:
        self.permutations = identity(axes)
        self._model, self._target, self._axes = model, target, axes
        shared = set(target.names)
        self._compared = {
            name: spaces
            for name, spaces in axes.tensors.items()
            if any(spaces) and name in shared and model.shape(name) == target.shape(name)
        }
        owner = {space: i for i, group in enumerate(axes.groups) for space in group.sizes}
        # Of each group's tensors: the entries, and the other groups that they hang on.
        self._beside: list[list[tuple[int, set[int]]]] = [[] for _ in axes.groups]
        for name, spaces in self._compared.items():
            together = {owner[space] for along in spaces for space in along}
            for number in together:
                size = math.prod(model.shape(name))
                self._beside[number].append((size, together - {number}))

    def neighbours(self, number: int) -> list[int]:
        """The groups whose best order depends on a group's."""
        return sorted(set().union(*(others for _, others in self._beside[number])))

    def anchored(self, number: int, settled: set[int]) -> float:
        """The share of a group's entries that hang on no other group but the settled ones."""
        total = sum(size for size, _ in self._beside[number])
        known = sum(size for size, others in self._beside[number] if others <= settled)
        return known / max(1, total)

    def cosine(self) -> float:
        """Of the two models' compared weights."""
        product, ours, theirs = 0.0, 0.0, 0.0
        for name, axes in self._compared.items():
            one = self._target.tensor(name).float().reshape(-1)
            other = permuted(self._model.tensor(name), axes, self.permutations).float().reshape(-1)
            product += float(one.dot(other))
            ours += float(other.dot(other))
            theirs += float(one.dot(one))
        return product / (ours * theirs) ** 0.5 if ours * theirs > 0 else 0.0

    def improve(self, number: int) -> bool:
        """Put a group into a better order; False where none was found."""
        group = self._axes.groups[number]
        alike = {space: self._alike(space, size) for space, size in group.sizes.items()}
        found = _proposed(group, alike)
        old = sum(_score(alike[space], self.permutations[space]) for space in found)
        new = sum(_score(alike[space], index) for space, index in found.items())
        if new - old <= _LEAST_GAIN * abs(new):
            return False
        self.permutations |= found
        return True

    def _alike(self, space: str, size: int) -> Any:
        """Inner products of the target's units (rows) and the model's, shape (size, size)."""
        total = torch.zeros(size, size)
        for name, axes in self._compared.items():
            for dimension, spaces in enumerate(axes):
                if space not in spaces:
                    continue
                one, other = self._target.tensor(name).float(), self._model.tensor(name).float()
                others = tuple(() if i == dimension else along for i, along in enumerate(axes))
                other = permuted(other, others, self.permutations)
                start = 0
                for part in spaces:
                    length = len(self.permutations[part])
                    if part == space:
                        rows, columns = (
                            t.narrow(dimension, start, length).movedim(dimension, 0)
                            for t in (one, other)
                        )
                        total.addmm_(rows.reshape(length, -1), columns.reshape(length, -1).t())
                    start += length
        return total.numpy()


def _score(alike: Any, index: Index) -> float:
    return float(alike[np.arange(len(index)), index].sum(dtype=np.float64))


def _assigned(alike: Any) -> Index:
    """For each row the column that it is given, so that the sum is the largest."""
    from scipy.optimize import linear_sum_assignment

    index: Index = linear_sum_assignment(alike, maximize=True)[1]
    return index


def _proposed(group: Group, alike: Mapping[str, Any]) -> Permutations:
    """The best order of a group's spaces, with all other groups as they are."""
    if isinstance(group, Units):
        return {group.space: _assigned(alike[group.space])}
    keys, queries, width = group.num_keys, group.num_queries, group.width
    by_head = (keys, queries, width, keys, queries, width)
    query, output = (alike[space].reshape(by_head) for space in (group.query, group.output))
    key, value = (
        alike[space].reshape(keys, width, keys, width) for space in (group.key, group.value)
    )
    pairs = {
        (i, j): _pair(query[i, :, :, j], key[i, :, j], value[i, :, j], output[i, :, :, j], group)
        for i in range(keys)
        for j in range(keys)
    }
    scores = np.array([[pairs[i, j].score for j in range(keys)] for i in range(keys)])
    chosen = [(pairs[i, j], int(j)) for i, j in enumerate(_assigned(scores))]
    heads = [j * queries + pair.heads for pair, j in chosen]
    return {
        group.query: _entries(
            [(h, p.inner_key) for at, (p, _) in zip(heads, chosen, strict=True) for h in at]
        ),
        group.key: _entries([(j, p.inner_key) for p, j in chosen]),
        group.value: _entries([(j, p.inner_value) for p, j in chosen]),
        group.output: _entries(
            [(h, p.inner_value) for at, (p, _) in zip(heads, chosen, strict=True) for h in at]
        ),
    }


def _entries(heads: list[tuple[int, Index]]) -> Index:
    """The entries of heads in a new order, each with its inner order."""
    return np.concatenate([int(head) * len(inner) + inner for head, inner in heads])


@dataclass(frozen=True)
class _Pair:
    """How well one key head of the model can stand in for one of the target, and how."""

    score: float
    heads: Index  # of the query heads, (queries,)
    inner_key: Index  # (width,)
    inner_value: Index  # (width,)


def _pair(query: Any, key: Any, value: Any, output: Any, group: Heads) -> _Pair:
    """The best way to put one key head, with the queries that read it, in another's place.

    query, output: (queries, width, queries, width); key, value: (width, width).
    """
    queries, fixed = group.num_queries, np.arange(group.width)
    if queries == 1:
        heads = np.zeros(1, np.int64)
    else:
        inner_key = fixed if group.rotary else _assigned(key)
        inner_value = _assigned(value)
        heads = _assigned(
            query[:, fixed, :, inner_key].sum(0) + output[:, fixed, :, inner_value].sum(0)
        )
    at = np.arange(queries)
    keys = key + query[at, :, heads, :].sum(0)
    values = value + output[at, :, heads, :].sum(0)
    inner_key = fixed if group.rotary else _assigned(keys)
    inner_value = _assigned(values)
    score = _score(keys, inner_key) + _score(values, inner_value)
    return _Pair(score, heads, inner_key, inner_value)
