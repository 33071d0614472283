"""Points of the cube at which a gene matters, where chance alone would seldom be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evomerge.genes import (
    All,
    AtLeast,
    Beyond,
    Condition,
    Flag,
    Gene,
    Integer,
    NoneIs,
    OneOf,
    Real,
    Value,
)
from evomerge.search_spaces.codec import Codec, coordinate_of

SURE = 1.0, 0.0  # where a flag is set, or not, whatever count binds it to others


def fulfilled(
    codec: Codec, point: Sequence[float], number: int, generator: np.random.Generator
) -> list[float]:
    """The point moved so that a gene's condition holds, and those of the genes that it asks.

    number: the gene's. Conditions that only their own kind of space knows are left as they are.
    """
    moved = list(point)
    _fulfil(codec, codec.genes[number].when, moved, generator)
    return moved


def _fulfil(
    codec: Codec, condition: Condition | None, point: list[float], generator: np.random.Generator
) -> None:
    if isinstance(condition, All):
        for one in condition.conditions:
            _fulfil(codec, one, point, generator)
        return
    places = {gene.name: number for number, gene in enumerate(codec.genes)}
    wanted: dict[str, Value]
    if isinstance(condition, OneOf):
        chosen = condition.values[int(generator.integers(len(condition.values)))]
        wanted = {condition.gene: chosen}
    elif isinstance(condition, AtLeast):
        some = generator.choice(len(condition.genes), condition.count, replace=False)
        wanted = {condition.genes[i]: True for i in some}
    elif isinstance(condition, NoneIs):
        wanted = _others(codec.genes[places[condition.genes[0]]], condition, generator)
    elif isinstance(condition, Beyond):
        gene = codec.genes[places[condition.gene]]
        wanted = {condition.gene: _farthest(gene)}
    else:
        return
    for name, value in wanted.items():
        _fulfil(codec, codec.genes[places[name]].when, point, generator)
        if isinstance(codec.genes[places[name]], Flag):
            point[places[name]] = SURE[0] if value else SURE[1]
        else:
            point[places[name]] = coordinate_of(codec.genes[places[name]], value)


def _others(gene: Gene, condition: NoneIs, generator: np.random.Generator) -> dict[str, Value]:
    """Values of numbers of one range that are not the one that none may have, all different."""
    if not isinstance(gene, Integer):
        return {}
    left = [v for v in range(gene.low, gene.high + 1) if v != condition.value]
    if len(left) < len(condition.genes):
        return {}
    values = generator.permutation(left)[: len(condition.genes)]
    return {name: int(value) for name, value in zip(condition.genes, values, strict=True)}


def _farthest(gene: Gene) -> float:
    """The value of the largest magnitude."""
    if not isinstance(gene, Real):
        return 0.0
    return gene.high if abs(gene.high) >= abs(gene.low) else gene.low
