"""A search space in words: how many genes of which kind, when they matter, what binds them."""

from __future__ import annotations

import re
from collections import Counter

from evomerge.genes import KINDS, Gene, Integer, Level, Real
from evomerge.protocols import SearchSpace
from evomerge.search_spaces.cube import CubeSpace
from evomerge.search_spaces.limits import Limited

NUMBER = re.compile(r"\d+")


def kinds(space: SearchSpace) -> str:
    """`10 integers, 120 flags, 40 reals`."""
    counts = Counter(KINDS[type(gene)] for gene in space.genes)
    return ", ".join(f"{n} {kind}{'s' if n != 1 else ''}" for kind, n in counts.items())


def families(space: SearchSpace) -> list[str]:
    """Genes that differ by numbers alone, in one line each: their count, names and values."""
    found: dict[tuple[str, str], int] = {}
    for gene in space.genes:
        key = NUMBER.sub("*", gene.name), _values(gene)
        found[key] = found.get(key, 0) + 1
    return [f"{count} x {name}: {values}" for (name, values), count in found.items()]


def conditions(space: SearchSpace) -> list[str]:
    """When genes matter, each form once."""
    found = {
        (NUMBER.sub("*", gene.name), _form(str(gene.when))): None
        for gene in space.genes
        if gene.when is not None
    }
    return [f"{name}: when {condition}" for name, condition in found]


def constraints(space: SearchSpace) -> list[str]:
    """What binds genes together."""
    space = space.space if isinstance(space, Limited) else space
    if not isinstance(space, CubeSpace):
        return []
    return [str(constraint) for constraint in space.codec.constraints]


def _form(condition: str) -> str:
    """A condition without the numbers that differ from layer to layer."""
    return re.sub(r"(?<=[._])\d+|(?<= is )\d+", "*", condition)


def _values(gene: Gene) -> str:
    if isinstance(gene, Real):
        return f"{gene.low:g} to {gene.high:g}" + (", log scale" if gene.log else "")
    if isinstance(gene, Integer):
        return f"{gene.low} to {gene.high}, whole"
    if isinstance(gene, Level):
        return "one of " + ", ".join(f"{level:g}" for level in gene.levels)
    options = getattr(gene, "options", ("yes", "no"))
    return " or ".join(options) if len(options) <= 8 else f"one of {len(options)}"
