"""What a user should know of a searcher before a long run: of its designs, and of its cost."""

from __future__ import annotations

import json
from collections.abc import Iterator

from evomerge.experiment.config import ExperimentConfig
from evomerge.protocols import SearchSpace
from evomerge.searchers import SEARCHERS


def searcher_warnings(config: ExperimentConfig, space: SearchSpace) -> Iterator[str]:
    """Where the budget goes to designs alone, and where asking itself takes seconds."""
    kind, options = config.searcher.kind, config.searcher.options
    searcher = SEARCHERS[kind]
    most = getattr(searcher, "comfortable_genes", None)
    if most is not None and len(space.genes) > most:
        yield (
            f"{kind} takes seconds to ask for a candidate of {len(space.genes)} genes: it is made "
            f"for up to {most}"
        )
    first = set(map(json.dumps, space.designs())) if getattr(searcher, "asks_designs", 0) else ()
    budget = config.budget.candidates
    if "designs" in searcher.Options.model_fields:
        default = searcher.Options.model_fields["designs"].default
        first = first if options.get("designs", default) else ()
    if budget is not None and len(first) > budget / 2:
        yield (
            f"{kind} begins with the {len(first)} designs of the space, and the budget is {budget} "
            "candidates: few or none are left for what it learns from them"
        )
