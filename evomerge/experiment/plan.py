"""A dry run: what an experiment would cost."""

from __future__ import annotations

from typing import Any

from evomerge.errors import ModelError, Problem
from evomerge.experiment.config import ExperimentConfig
from evomerge.experiment.wire import Parts, wire
from evomerge.pools.worker import Worker
from evomerge.protocols import Progress
from evomerge.records import Job
from evomerge.results.references import GRID, reference_recipes

TRIAL_ITEMS = 32  # of each task, answered by the base to learn the speed


def plan_experiment(config: ExperimentConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Label -> figure; the base answers a few items, so that hours are measured and not guessed.

    Raises:
        ConfigurationError, ModelError: whatever `evomerge validate` would find.
    """
    parts = wire(config, progress=progress)
    cohort = config.cohort or parts.searcher.population
    candidates = config.budget.candidates
    num_search = sum(map(len, parts.split.search.values()))
    num_fresh = sum(map(len, parts.split.fresh.values()))
    num_holdout = sum(map(len, parts.split.holdout.values()))
    per_cohort = parts.estimator.expected_items(cohort)
    searched = None if candidates is None else round(candidates / cohort * per_cohort)
    num_models = len(reference_recipes(parts.template)) - len(GRID)
    references = num_models * num_search + parts.estimator.expected_items(len(GRID))
    finalists = (config.fitness.finalists + 4) * num_fresh
    holdout = (num_models + 2) * num_holdout
    total = None if searched is None else references + searched + finalists + holdout
    seconds = seconds_per_item(parts)
    workers = max(1, config.pool.num_workers)
    size = sum(checkpoint.size_bytes for checkpoint in parts.models.checkpoints.values())
    return {
        "genes": len(parts.space.genes),
        "candidates": candidates if candidates is not None else "until the budget is spent",
        "candidates asked together": cohort,
        "items: references": f"{references:,}",
        "items: search": "unknown" if searched is None else f"{searched:,}",
        "items: finalists": f"{finalists:,}",
        "items: holdout": f"{holdout:,} or more with a front",
        "items: all": "unknown" if total is None else f"{total:,}",
        "models on disk": f"{size / 1e6:,.1f} MB",
        "seconds per item": f"{seconds:.2g} (base, one worker)",
        "hours": "unknown"
        if total is None
        else f"{total * seconds / workers / 3600:.2g} with {workers} worker(s)",
    }


def seconds_per_item(parts: Parts) -> float:
    """How long the base takes for an item, from a few of each task.

    Raises:
        ModelError: the base cannot be measured.
    """
    worker = Worker(parts.worker, "driver")
    recipe = reference_recipes(parts.template)["base"]
    trial = {task: ids[:TRIAL_ITEMS] for task, ids in parts.split.search.items()}
    job = Job(0, -1, recipe, trial)
    worker.run(job)  # compiles the tasks
    outcome = worker.run(job)
    if outcome.failure is not None:
        raise ModelError(Problem("base", outcome.failure.reason))
    return outcome.measure_s / job.num_items
