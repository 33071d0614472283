"""What a searcher cannot do without, and who is there that can do without it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from evomerge.genes import Real
from evomerge.protocols import LineageSpace, SearchSpace
from evomerge.records import Facts


@dataclass(frozen=True)
class Need:
    """A condition on the space and the facts, and what is said where it does not hold."""

    holds: Callable[[SearchSpace, Facts], bool]
    otherwise: str  # goes on after the searcher's name


def _has_genes(space: SearchSpace, facts: Facts) -> bool:
    del facts
    return bool(space.genes)


def _has_reals_alone(space: SearchSpace, facts: Facts) -> bool:
    del facts
    return not space.constraints and all(isinstance(gene, Real) for gene in space.genes)


def _has_lineages(space: SearchSpace, facts: Facts) -> bool:
    del facts
    return isinstance(space, LineageSpace)


def _has_experts(space: SearchSpace, facts: Facts) -> bool:
    del space
    return len(facts.experts) > 1


def _knows_relations(space: SearchSpace, facts: Facts) -> bool:
    del space
    return len(facts.gram) > 1


def _has_several_objectives(space: SearchSpace, facts: Facts) -> bool:
    del space
    return len(facts.objectives) > 1


def _always(space: SearchSpace, facts: Facts) -> bool:
    del space, facts
    return True


NEEDS: dict[str, Need] = {
    "genes": Need(
        _has_genes, "searches lists of genes, and this space's genomes are something else"
    ),
    "reals": Need(
        _has_reals_alone,
        "moves on straight lines between genomes, and here some genes are no free real numbers",
    ),
    "lineages": Need(
        _has_lineages, "crosses lineages, and this space's genomes are none (kind: niches has them)"
    ),
    "experts": Need(
        _has_experts, "begins with experts, and this space cannot express two or more of them alone"
    ),
    "gram": Need(
        _knows_relations,
        "asks how similar the experts' task vectors are, and that is not known here",
    ),
    "several_objectives": Need(
        _has_several_objectives, "trades objectives for each other, and there is one"
    ),
    # Of the estimator, which is checked where both are known.
    "complete_responses": Need(_always, "compares candidates item by item"),
}


def unmet(needs: frozenset[str], space: SearchSpace, facts: Facts) -> list[str]:
    """What is said of the needs that do not hold."""
    return [
        NEEDS[name].otherwise
        for name in NEEDS
        if name in needs and not NEEDS[name].holds(space, facts)
    ]
