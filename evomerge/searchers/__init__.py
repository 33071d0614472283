"""Who proposes genomes.

A searcher works in the unit cube: a genome is a list of floats in [0, 1], one for every gene of the
search space. cma and pymoo are imported when a searcher is made, not before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evomerge.errors import ConfigurationError, Problem, nearest
from evomerge.protocols import Searcher, SearchSpace
from evomerge.records import Facts
from evomerge.searchers.cma_es import CmaEs
from evomerge.searchers.nsga2 import Nsga2
from evomerge.searchers.random import RandomSearch

# Each class carries its `summary`, its `Options` and what it can do, for help, docs and checks.
SEARCHERS: dict[str, type[RandomSearch | CmaEs | Nsga2]] = {
    "random": RandomSearch,
    "cma_es": CmaEs,
    "nsga2": Nsga2,
}


def make_searcher(
    kind: str, space: SearchSpace, seed: int, facts: Facts, options: Mapping[str, Any]
) -> Searcher:
    """The searcher of that kind, ready to be asked.

    Raises:
        ConfigurationError: with the nearest valid name of an unknown kind or option, for an option
            out of bounds, a space without genes if it needs them, a seed below 0, or several
            objectives with a searcher that can only search one.
    """
    if kind not in SEARCHERS:
        raise ConfigurationError(
            Problem("searcher.kind", f"unknown searcher {kind!r}", nearest(kind, SEARCHERS))
        )
    problems = []
    if seed < 0:
        problems.append(Problem("seed", f"expected a whole number from 0, got {seed}"))
    if "genes" in SEARCHERS[kind].needs and not space.genes:
        able = ", ".join(n for n, other in SEARCHERS.items() if "genes" not in other.needs)
        what = f"{kind} searches lists of genes, and this space's genomes are something else"
        problems.append(Problem("searcher.kind", what, f"searchers that can: {able}"))
    if len(facts.objectives) > 1 and not SEARCHERS[kind].multi_objective:
        able = ", ".join(name for name, other in SEARCHERS.items() if other.multi_objective)
        problems.append(
            Problem(
                "searcher.kind",
                f"{kind} searches one objective, got {len(facts.objectives)}: "
                f"{', '.join(facts.objectives)}",
                f"searchers for several: {able}",
            )
        )
    if problems:
        raise ConfigurationError(problems)
    return SEARCHERS[kind](space, seed, facts, **options)
