"""The claims of the README on families that were never used in development.

For each seed of the tiny family: CMA-ES as in the quickstart, random search at the same cost, and
CMA-ES raced; each against the best expert and against the best point of the whole task arithmetic
grid *on the holdout itself*, which favours the grid. All in one process, so that costs compare.

    python benchmarks/quickstart.py --seeds 100 101 102
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.experiment.config import ExperimentConfig, read_experiment
from evomerge.experiment.run import run_experiment
from evomerge.experiment.wire import Parts, wire
from evomerge.files import catalogue_folder
from evomerge.pools.worker import Worker
from evomerge.records import Job, Measurements
from evomerge.results.intervals import paired_gain
from evomerge.results.references import ARITHMETIC
from evomerge.run import Run

EXPERIMENTS = ("quickstart", "random_baseline", "quickstart_racing")


def with_zoo_seed(name: str, zoo: int, seed: int) -> ExperimentConfig:
    """An experiment of the catalogue on another family."""
    config = read_experiment(catalogue_folder("experiments") / f"{name}.yaml")
    experts = {n: p.replace("zoo:tiny/", f"zoo:tiny@{zoo}/") for n, p in config.experts.items()}
    base = config.base.replace("zoo:tiny/", f"zoo:tiny@{zoo}/")
    pool = config.pool.model_copy(update={"workers": 0})
    return config.model_copy(update={"experts": experts, "base": base, "seed": seed, "pool": pool})


def holdout(parts: Parts, recipes: dict[str, Any]) -> Measurements:
    """The holdout responses of some recipes."""
    worker = Worker(parts.worker, "benchmark")
    measurements = Measurements(parts.num_items)
    for number, recipe in enumerate(recipes.values()):
        for responses in worker.run(Job(number, 0, recipe, parts.split.holdout)).responses:
            measurements.add(recipe.fingerprint, responses)
    return measurements


def costs(run: Run) -> dict[str, float]:
    """Items by purpose, and milliseconds a candidate beside the forward passes."""
    items = {"references": 0, "search": 0, "final": 0}
    beside, searched = [], 0.0
    for _, cohort, data in run.ledger.events("measured"):
        items[{-1: "references", -2: "final"}.get(cohort, "search")] += data["num_items"]
        merge_s, measure_s, forward_s = data["seconds"]
        if cohort >= 0:
            beside.append(merge_s + measure_s - forward_s)
            searched += merge_s + measure_s
    times = [
        t
        for (t,) in run.ledger._db.execute(
            "SELECT time FROM events WHERE kind IN ('asked', 'told') AND cohort >= 0"
        )
    ]
    candidates = len(run.ledger.evaluations())
    return {
        **items,
        "worker_ms": 1e3 * sum(beside) / candidates,
        "driver_ms": 1e3 * (max(times) - min(times) - searched) / candidates,
        "search_s": max(times) - min(times),
    }


def compare(zoo: int, seed: int, folder: Path) -> dict[str, Any]:
    """All experiments on one family."""
    runs = {}
    for name in EXPERIMENTS:
        start = time.monotonic()
        path = folder / f"{name}-{zoo}-{seed}"
        runs[name] = Run(run_experiment(with_zoo_seed(name, zoo, seed), path))
        print(f"# {path.name}: {time.monotonic() - start:.0f} s", flush=True)
    parts = wire(with_zoo_seed("quickstart", zoo, seed))
    ledger = runs["quickstart"].ledger
    references = {c.label: c.recipe for c in ledger.candidates.values() if -25 <= c.id < 0}
    found = {name: run.best().recipe for name, run in runs.items()}
    answers = holdout(parts, {**references, **found})

    def mean(recipe: Any) -> float:
        return float(
            np.mean([answers.values(recipe.fingerprint, t, i).mean() for t, i in items.items()])
        )

    def gain(first: Any, second: Any) -> tuple[float, float, float]:
        return paired_gain(
            parts.objectives, answers, first.fingerprint, second.fingerprint, items, seed
        )

    items = parts.split.holdout
    grid = {n: r for n, r in references.items() if n.startswith(ARITHMETIC)}
    best_grid = max(grid, key=lambda n: mean(grid[n]))
    experts = {n: references[n] for n in parts.config.experts}
    best_expert = max(experts, key=lambda n: mean(experts[n]))
    row: dict[str, Any] = {"zoo": zoo, "seed": seed}
    row["references"] = {n: mean(references[n]) for n in ("base", *experts, "uniform", best_grid)}
    for name, recipe in found.items():
        row[name] = {
            "holdout": mean(recipe),
            "over_expert": gain(recipe, experts[best_expert]),
            "over_grid": gain(recipe, grid[best_grid]),
            **costs(runs[name]),
        }
    row["racing_minus_full"] = gain(found["quickstart_racing"], found["quickstart"])
    return row


def show(row: dict[str, Any]) -> None:
    """One family's rows as Markdown."""
    references = ", ".join(f"{n} {v:.3f}" for n, v in row["references"].items())
    print(f"\n## zoo {row['zoo']}, seed {row['seed']}: {references}\n")
    print(
        "| | holdout | over the best expert | over the best grid point | items of the search "
        "| references | finalists, holdout | ms beside forward | driver ms |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name in EXPERIMENTS:
        r = row[name]
        gains = [
            f"{v:+.3f} [{low:+.3f}, {high:+.3f}]"
            for v, low, high in (r["over_expert"], r["over_grid"])
        ]
        print(
            f"| {name} | {r['holdout']:.3f} | {gains[0]} | {gains[1]} | {r['search']:,} | "
            f"{r['references']:,} | {r['final']:,} | {r['worker_ms']:.1f} | {r['driver_ms']:.1f} |"
        )
    value, low, high = row["racing_minus_full"]
    full, raced = row["quickstart"], row["quickstart_racing"]
    print(
        f"\nracing minus full: {value:+.3f} [{low:+.3f}, {high:+.3f}], at "
        f"{raced['search'] / full['search']:.3f} of the search's items, "
        f"{(raced['search'] + raced['references']) / (full['search'] + full['references']):.3f} "
        "with the references"
    )


def main() -> None:
    """Run, print, and leave the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101, 102])
    parser.add_argument("--search-seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark"))
    arguments = parser.parse_args()
    rows = []
    for zoo in arguments.seeds:
        rows.append(compare(zoo, arguments.search_seed, arguments.out))
        show(rows[-1])
    (arguments.out / "figures.json").write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
