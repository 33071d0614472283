"""What every search is compared with: the models themselves and the merges that need no search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from evomerge.errors import ModelError, Problem
from evomerge.fitness.estimators.estimate import estimate, missing_requests
from evomerge.fitness.split import Split
from evomerge.ledger import REFERENCES, Ledger
from evomerge.measurement import Measurer
from evomerge.protocols import Estimator
from evomerge.recipe import Merge, Recipe
from evomerge.records import Candidate, Cohort, Objective, Score
from evomerge.results.progress import described

GRID = tuple(round(float(c), 2) for c in np.arange(0.05, 1.0001, 0.05))
ARITHMETIC = "task_arithmetic"


def reference_recipes(template: Recipe) -> dict[str, Recipe]:
    """Label -> recipe: the base, each expert, the uniform average, task arithmetic on a grid.

    `template` holds what all recipes of the run share; its merges do not count.
    """
    experts = [name for name in template.models if name != template.base]

    def merged(operator: str, sources: Sequence[str], weight: float) -> Recipe:
        default = Merge(operator=operator, sources=tuple(sources), parameters={"weight": weight})
        return Recipe(**{**dict(template), "default": default, "outside": {}, "slots": None})

    alone = {name: merged("linear", [name], 1.0) for name in (template.base, *experts)}
    grid = {f"{ARITHMETIC} {c:.2f}": merged(ARITHMETIC, experts, c) for c in GRID}
    return {**alone, "uniform": merged("linear", experts, 1.0), **grid}


def measure_references(
    template: Recipe, ledger: Ledger, measurer: Measurer, estimator: Estimator, split: Split
) -> tuple[Candidate, ...]:
    """Measure the references on the search items; they have the ids -1, -2, ...

    The models themselves and their average answer everything, for estimators that know others by
    them; the points of the grid compete by the estimator's own rules.

    Raises:
        ModelError: one of the models cannot be measured, so no merge of it could be.
    """
    candidates = tuple(
        Candidate(-1 - number, None, recipe, label=label)
        for number, (label, recipe) in enumerate(reference_recipes(template).items())
    )
    if -1 not in ledger.candidates:
        ledger.asked(REFERENCES, len(candidates), candidates)
    models = models_of(candidates)
    measurer.measure(REFERENCES, missing_requests(models, ledger.measurements, split.search))
    problems = [
        Problem(f"model {candidate.label}", failure.reason)
        for candidate in models
        if (failure := ledger.measurements.why_not(candidate.fingerprint, split.search, REFERENCES))
    ]
    if problems:
        raise ModelError(problems)
    cohort = grid_cohort(candidates, ledger)
    while requests := estimator.requests(cohort):
        measurer.measure(REFERENCES, requests)
    estimator.scores(cohort)  # an objective whose column no task has is refused now, not later
    return candidates


def references_told(
    references: Sequence[Candidate],
    ledger: Ledger,
    estimator: Estimator,
    objectives: Sequence[Objective],
    split: Split,
) -> dict[str, Any]:
    """Label -> its estimates on the search items, for those who watch a search.

    Points of the grid that a race has dropped are left out, and so are objectives of agreement,
    which references have with nobody.
    """
    plain = [objective for objective in objectives if not objective.agreement]
    found = {
        c.label: Score(estimate(plain, ledger.measurements, c, split.search))
        for c in models_of(references)
    }
    scores = estimator.scores(grid_cohort(references, ledger))
    top = max((score.rung for score in scores.values()), default=0)
    labels = {c.id: c.label for c in references}
    found |= {labels[id_]: score for id_, score in scores.items() if score.rung == top}
    return {
        label: described(None, score)
        for label, score in found.items()
        if score.values and np.isfinite(score.values).all()
    }


def grid_cohort(references: Sequence[Candidate], ledger: Ledger) -> Cohort:
    """The points of the task arithmetic grid, as a cohort of their own."""
    grid = tuple(c for c in references if c.label.startswith(ARITHMETIC))
    return Cohort(REFERENCES, grid, ledger.measurements, references=models_of(references))


def models_of(references: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """The references that answer all search items: the models themselves and their average."""
    return tuple(c for c in references if not c.label.startswith(ARITHMETIC))
