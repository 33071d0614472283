"""Who proposes genomes.

Most searchers work in the unit cube: a genome is a list of floats in [0, 1], one for every gene of
the search space. The libraries behind them are imported when a searcher is made, not before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evomerge.errors import ConfigurationError, Problem, nearest
from evomerge.protocols import Searcher, SearchSpace
from evomerge.records import Facts
from evomerge.searchers.cma_es import CmaEs
from evomerge.searchers.frank_wolfe import FrankWolfe
from evomerge.searchers.greedy_soup import GreedySoup
from evomerge.searchers.kinship import Kinship
from evomerge.searchers.map_pareto import MapPareto
from evomerge.searchers.needs import unmet
from evomerge.searchers.nsga2 import Nsga2
from evomerge.searchers.random import RandomSearch

# Each class carries its `summary`, its `Options` and what it can do, for help, docs and checks.
SEARCHERS: dict[str, type[Any]] = {
    "random": RandomSearch,
    "cma_es": CmaEs,
    "nsga2": Nsga2,
    "map_pareto": MapPareto,
    "greedy_soup": GreedySoup,
    "kinship": Kinship,
    "frank_wolfe": FrankWolfe,
}


def make_searcher(
    kind: str, space: SearchSpace, seed: int, facts: Facts, options: Mapping[str, Any]
) -> Searcher:
    """The searcher of that kind, ready to be asked.

    Raises:
        ConfigurationError: with the nearest valid name of an unknown kind or option, for an option
            out of bounds, a space or facts without something that it needs, a seed below 0, or
            several objectives with a searcher that can only search one.
    """
    if kind not in SEARCHERS:
        raise ConfigurationError(
            Problem("searcher.kind", f"unknown searcher {kind!r}", nearest(kind, SEARCHERS))
        )
    searcher = SEARCHERS[kind]
    problems = []
    if seed < 0:
        problems.append(Problem("seed", f"expected a whole number from 0, got {seed}"))
    if missing := _why_not(searcher, space, facts):
        able = ", ".join(n for n, other in SEARCHERS.items() if not _why_not(other, space, facts))
        hint = f"searchers that can: {able}" if able else ""
        problems += [Problem("searcher.kind", f"{kind} {text}", hint) for text in missing]
    if problems:
        raise ConfigurationError(problems)
    made: Searcher = searcher(space, seed, facts, **options)
    return made


def _why_not(searcher: type[Any], space: SearchSpace, facts: Facts) -> list[str]:
    """Why a searcher cannot search this space for these objectives."""
    found = unmet(searcher.needs, space, facts)
    if len(facts.objectives) > 1 and not searcher.multi_objective:
        names = ", ".join(facts.objectives)
        found.append(f"searches one objective, got {len(facts.objectives)}: {names}")
    return found
