"""Who proposes genomes.

Most searchers work in the unit cube: a genome is a list of floats in [0, 1], one for every gene of
the search space. The libraries behind them are imported when a searcher is made, not before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from evomerge.errors import ConfigurationError, Problem, nearest
from evomerge.protocols import Searcher, SearchSpace
from evomerge.records import Facts
from evomerge.searchers.cma_es import CmaEs
from evomerge.searchers.cma_es_mixed import CmaEsMixed
from evomerge.searchers.cycle_qd import CycleQd
from evomerge.searchers.frank_wolfe import FrankWolfe
from evomerge.searchers.given_first import GivenFirst
from evomerge.searchers.gp import GaussianProcess
from evomerge.searchers.greedy_soup import GreedySoup
from evomerge.searchers.kinship import Kinship
from evomerge.searchers.m2n2 import M2n2
from evomerge.searchers.map_elites import MapElites
from evomerge.searchers.map_pareto import MapPareto
from evomerge.searchers.needs import unmet
from evomerge.searchers.nsga2 import Nsga2
from evomerge.searchers.nsga3 import Nsga3
from evomerge.searchers.random import RandomSearch
from evomerge.searchers.rl_agent import RlAgent
from evomerge.searchers.scalarised import ScalariseConfig, Scalarised
from evomerge.searchers.sobol import SobolSearch
from evomerge.searchers.successive import Successive
from evomerge.searchers.table import OptionsOf, Searchers
from evomerge.searchers.tpe import Tpe

# Each class carries its `summary`, its `Options` and what it can do, for help, docs and checks.
SEARCHERS: Mapping[str, type[Any]] = Searchers(
    {
        "random": RandomSearch,
        "sobol": SobolSearch,
        "cma_es": CmaEs,
        "cma_es_mixed": CmaEsMixed,
        "nsga2": Nsga2,
        "nsga3": Nsga3,
        "tpe": Tpe,
        "gp": GaussianProcess,
        "successive": Successive,
        "rl_agent": RlAgent,
        "map_elites": MapElites,
        "cycle_qd": CycleQd,
        "m2n2": M2n2,
        "map_pareto": MapPareto,
        "greedy_soup": GreedySoup,
        "kinship": Kinship,
        "frank_wolfe": FrankWolfe,
    }
)
OPTIONS = OptionsOf(SEARCHERS)


def make_searcher(
    kind: str,
    space: SearchSpace,
    seed: int,
    facts: Facts,
    options: Mapping[str, Any],
    scalarise: ScalariseConfig | None = None,
) -> Searcher:
    """The searcher of that kind, ready to be asked.

    The user's own merges come first. scalarise: how several objectives become one for it.

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
    seen = facts
    if scalarise is not None:
        problems += scalarise.problems(facts.objectives)
        seen = replace(facts, objectives=("scalarised",), warm_start=())
    if missing := _why_not(searcher, space, seen):
        able = ", ".join(n for n, other in SEARCHERS.items() if not _why_not(other, space, seen))
        hint = f"searchers that can: {able}" if able else ""
        problems += [Problem("searcher.kind", f"{kind} {text}", hint) for text in missing]
    if problems:
        raise ConfigurationError(problems)

    def made(known: Facts) -> Searcher:
        own: Searcher = searcher(space, seed, known, **options)
        asks_them = getattr(searcher, "asks_designs", False)
        return own if asks_them or not known.given else GivenFirst(own, known.given)

    return made(facts) if scalarise is None else Scalarised(made, facts, scalarise, seed)


def _why_not(searcher: type[Any], space: SearchSpace, facts: Facts) -> list[str]:
    """Why a searcher cannot search this space for these objectives."""
    found = unmet(searcher.needs, space, facts)
    if len(facts.objectives) > 1 and not searcher.multi_objective:
        names = ", ".join(facts.objectives)
        found.append(f"searches one objective, got {len(facts.objectives)}: {names}")
    return found
