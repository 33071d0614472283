"""A quarter of a real model's layers removed: searched at random, and as one would do by hand.

    evomerge zoo smollm2
    evomerge run smollm2_pruned
    python benchmarks/pruning.py runs/smollm2_pruned

The best candidate of the run against the same merge without as many consecutive layers: the last,
those before the last one, and those in the middle. On the holdout, with paired 95 % intervals.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import evomerge
from evomerge.experiment.wire import wire
from evomerge.merging.costs import in_short
from evomerge.pools.worker import Worker
from evomerge.recipe import Recipe, Slot
from evomerge.records import Candidate, Job
from evomerge.results.intervals import mean_estimate, mean_of_objectives, paired_gain


def without(best: Recipe, first: int, count: int, num_layers: int) -> Recipe:
    """The merge of the best candidate, without layers [first, first + count)."""
    kept = [layer for layer in range(num_layers) if not first <= layer < first + count]
    merges = (best.slots or ())[0].merges  # alike in all slots
    return Recipe(
        **{**dict(best), "slots": tuple(Slot(layer=layer, merges=merges) for layer in kept)}
    )


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    run = evomerge.Run(folder)
    parts = wire(run.config)
    best = run.best()
    assert best.recipe is not None
    num_layers = parts.models.anatomy.num_layers
    count = num_layers - len(best.recipe.slots or ())
    kept = [slot.layer for slot in best.recipe.slots or ()]
    removed = sorted(set(range(num_layers)) - set(kept))
    print(f"candidate {best.id} removes {removed}")
    starts = {
        f"last {count}": num_layers - count,
        f"{count} before the last": num_layers - count - 1,
        f"middle {count}": (num_layers - count) // 2,
    }
    recipes = {
        "searched at random": best.recipe,
        "nothing removed": without(best.recipe, 0, 0, num_layers),
        **{name: without(best.recipe, first, count, num_layers) for name, first in starts.items()},
    }
    worker = Worker(parts.worker, "driver")
    measurements = run.ledger.measurements
    objectives, items = parts.objectives, parts.split.holdout
    print(f"{'':<24} {'parameters':>10} {'holdout':>15}   search's best minus it, 95 % interval")
    for number, (name, recipe) in enumerate(recipes.items()):
        candidate = Candidate(number, None, recipe)
        asked = {t: measurements.missing(recipe.fingerprint, t, ids) for t, ids in items.items()}
        asked = {task: ids for task, ids in asked.items() if ids}
        if asked:
            outcome = worker.run(Job(number, number, recipe, asked))
            assert outcome.failure is None, outcome.failure
            for responses in outcome.responses:
                measurements.add(recipe.fingerprint, responses)
        value, error = mean_estimate(
            mean_of_objectives(objectives, measurements, candidate.fingerprint, items)
        )
        size = in_short(parts.costs(recipe)["parameters"])
        line = f"{name:<24} {size:>10} {value:>8.3f} ±{error:.3f}"
        if recipe != best.recipe:
            gain, low, high = paired_gain(
                objectives, measurements, best.fingerprint, recipe.fingerprint, items, 0
            )
            line += f"   {gain:+.3f} [{low:+.3f}, {high:+.3f}]"
        print(line, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
