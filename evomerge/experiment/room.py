"""How many items an experiment asks, and how large its ledger becomes, before it is run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evomerge.experiment.wire import Parts
from evomerge.recipe import canonical_json
from evomerge.results.references import GRID, reference_recipes

ITEM_BYTES = 16  # an item's id, and three of its columns
CANDIDATE_BYTES = 1200  # beside genome and recipe: fingerprint, events, scores, half-filled pages
FILES_BYTES = 5_000_000  # the pictures, the log, and what SQLite writes before it is in the ledger
GENE_BYTES = 100  # in the genome and, with the names of what it decides, in the recipe
EXAMPLE = 2  # the stream of the run's seed that a genome is from, where there are no genes


@dataclass(frozen=True)
class Items:
    """Item evaluations of the parts of a run; of the search None where no budget says it."""

    references: int
    search: int | None
    finalists: int
    holdout: int

    @property
    def total(self) -> int | None:
        """All of them."""
        others = self.references + self.finalists + self.holdout
        return None if self.search is None else others + self.search


def expected_items(parts: Parts) -> Items:
    """What the run will ask, as far as its budget tells; racing asks less where many are poor."""
    config, split = parts.config, parts.split
    cohort = config.cohort or parts.searcher.population
    candidates = config.budget.candidates
    num_models = len(reference_recipes(parts.template)) - len(GRID)
    num_search, num_fresh, num_holdout = (
        sum(map(len, part.values())) for part in (split.search, split.fresh, split.holdout)
    )
    searched = None
    if candidates is not None:
        searched = round(candidates / cohort * parts.estimator.expected_items(cohort))
    return Items(
        references=num_models * num_search + parts.estimator.expected_items(len(GRID)),
        search=searched,
        finalists=(config.fitness.finalists + 4) * num_fresh,
        holdout=(num_models + 2) * num_holdout,
    )


def projected_bytes(parts: Parts) -> int:
    """What the run folder will hold at the end; for a budget of hours, after one generation."""
    items = expected_items(parts)
    cohort = parts.config.cohort or parts.searcher.population
    budget = parts.config.budget
    candidates, total = budget.candidates, items.total
    per_cohort = parts.estimator.expected_items(cohort)
    if candidates is None:
        candidates = cohort
        if budget.item_evaluations is not None:
            candidates = round(budget.item_evaluations / max(1, per_cohort) * cohort)
        total = budget.item_evaluations or per_cohort
    each = CANDIDATE_BYTES + _genome_and_recipe(parts)
    return FILES_BYTES + candidates * each + (total or 0) * ITEM_BYTES


def _genome_and_recipe(parts: Parts) -> int:
    """What a candidate's text takes; nothing is decoded where the number of genes tells enough."""
    size = len(parts.template.to_json())
    if genes := len(parts.space.genes):
        return size + GENE_BYTES * genes
    generator = np.random.default_rng(np.random.SeedSequence([parts.config.seed, EXAMPLE]))
    genome = parts.space.sample(generator)
    if not parts.space.violations(genome):
        size = len(parts.space.decode(genome).to_json())
    return size + len(canonical_json(genome))
