"""A search without labels beside the same search with them, judged by labels on the holdout.

Both are CMA-ES on the tiny family with the budget of the quickstart: one maximises exact match, the
other minus the KL divergence from each expert on its own prompts. What each chose answers the
holdout, 544 items of each skill, with labels. For each seed of the search: the mean exact match of
both, and the paired difference with its 95 % bootstrap interval.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evomerge.documents import read_yaml
from evomerge.experiment.config import read_experiment, read_fitness
from evomerge.experiment.run import run_experiment
from evomerge.experiment.wire import Parts, wire
from evomerge.files import catalogue_folder
from evomerge.pools import PoolConfig
from evomerge.pools.worker import Worker
from evomerge.recipe import Recipe
from evomerge.records import Job
from evomerge.results.references import reference_recipes
from evomerge.run import Run

EXPERIMENTS = {"labels": "quickstart", "label_free": "quickstart_label_free"}
RESAMPLES = 10_000


def searched(kind: str, seed: int, candidates: int, out: Path) -> Recipe:
    """What a search chose."""
    config = read_experiment(catalogue_folder("experiments") / f"{EXPERIMENTS[kind]}.yaml")
    budget = config.budget.model_copy(update={"candidates": candidates})
    config = config.model_copy(
        update={"seed": seed, "budget": budget, "pool": PoolConfig(workers=0)}
    )
    run = Run(run_experiment(config, out / f"{kind}-{seed}"))
    recipe = run.best().recipe
    if recipe is None:
        raise ValueError("what was chosen has no recipe")
    return recipe


def holdout_scores(worker: Worker, parts: Parts, recipe: Recipe) -> np.ndarray:
    """(tasks, items) of exact match on the holdout."""
    outcome = worker.run(Job(0, 0, recipe, parts.split.holdout))
    if outcome.failure is not None:
        raise ValueError(outcome.failure.reason)
    return np.stack([responses.columns["score"] for responses in outcome.responses])


def interval(values: np.ndarray) -> list[float]:
    """Mean over tasks of (tasks, items) and its 95 % bootstrap interval, items drawn by task."""
    generator = np.random.default_rng(0)
    means = np.zeros(RESAMPLES)
    for row in values:
        drawn = generator.integers(0, len(row), (RESAMPLES, len(row)))
        means += row[drawn].mean(1) / len(values)
    low, high = np.quantile(means, [0.025, 0.975])
    return [round(float(value), 4) for value in (values.mean(), low, high)]


def main() -> None:
    """Run the searches, and print a line of JSON for each result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--candidates", type=int, default=180)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    labelled = read_experiment(catalogue_folder("experiments") / "quickstart.yaml")
    fitness = read_fitness(read_yaml(catalogue_folder("fitness") / "tiny_mean.yaml"))
    parts = wire(labelled.model_copy(update={"fitness": fitness}))
    worker = Worker(parts.worker, "driver")

    def tell(what: str, **facts: Any) -> None:
        print(json.dumps({"what": what, **facts}), flush=True)

    for label, recipe in reference_recipes(parts.template).items():
        tell(label, exact_match=interval(holdout_scores(worker, parts, recipe)))
    for seed in range(arguments.seeds):
        scores = {}
        for kind in EXPERIMENTS:
            recipe = searched(kind, seed, arguments.candidates, arguments.out)
            scores[kind] = holdout_scores(worker, parts, recipe)
            by_task = scores[kind].mean(1).round(4).tolist()
            tell(kind, seed=seed, exact_match=interval(scores[kind]), by_task=by_task)
        tell(
            "label_free minus labels",
            seed=seed,
            exact_match=interval(scores["label_free"] - scores["labels"]),
        )


if __name__ == "__main__":
    main()
