"""How many item evaluations a search needs, by estimator: held-out score against total cost.

Each estimator drives the same search (CMA-ES over a coefficient for each layer and expert of the
tiny family) from the same seeds. At each checkpoint the run is finished as a user's would be:
finalists and the searcher's mean on fresh items, the chosen one on the holdout. Its cost is
everything up to there: references, search and finalists, and not the report itself.

    python benchmarks/search_cost.py run --out runs/search_cost --seeds 0 1 2 3 4 5 6 7 8 9
    python benchmarks/search_cost.py show --out runs/search_cost

    python benchmarks/search_cost.py pool --run runs/smollm2_full

`run` goes on where it was stopped. `pool` is for models that are too slow to search anew for each
estimator: it asks the candidates of one recorded run again, in another random order for each seed
(random search, and the run's points of the task arithmetic grid with it), from recorded answers.
`show` prints the curves and, for each estimator, the first
checkpoint whose score is within .02 of full evaluation's last one: the lower end of the 95 %
interval of the difference (over seeds, paired) is above -.02.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from evomerge.documents import Document, parse
from evomerge.experiment.config import ExperimentConfig, parse_experiment, read_experiment
from evomerge.experiment.recorded import Recorded, read_run
from evomerge.experiment.replay import replay
from evomerge.experiment.run import run_experiment
from evomerge.files import catalogue_folder
from evomerge.fitness.split import split_items
from evomerge.records import Candidate
from evomerge.run import Run

FEW = {"items": 8, "rotate": True}  # of each task, others for each generation
VARIANTS: dict[str, dict[str, Any]] = {  # an estimator, and options of the searcher beside it
    "full": {"estimator": {"kind": "full"}},
    "racing 12-36-96": {"estimator": {"kind": "racing", "rungs": [12, 36, 96]}},
    "racing 4-12-36": {"estimator": {"kind": "racing", "rungs": [4, 12, 36]}},
    "racing 4-12-36, stratified": {
        "estimator": {
            "kind": "racing",
            "rungs": [4, 12, 36],
            "estimator": {"kind": "stratified"},
        },
    },
    "subset 8": {"estimator": {"kind": "subset", **FEW}},
    "stratified 8": {"estimator": {"kind": "stratified", **FEW}},
    "stratified 8, noise": {"estimator": {"kind": "stratified", **FEW}, "noise": "adapt"},
    "stratified 8, population 40": {
        "estimator": {"kind": "stratified", **FEW},
        "population": 40,
    },
    "irt 4, population 40": {"estimator": {"kind": "irt", **FEW, "items": 4}, "population": 40},
    "irt 8, population 40": {"estimator": {"kind": "irt", **FEW}, "population": 40},
    "shrinkage 8, stratified": {
        "estimator": {"kind": "shrinkage", **FEW, "of": {"kind": "stratified"}},
    },
}
CHECKPOINTS = (26, 52, 104, 208, 400, 700, 1000)
POOL_CHECKPOINTS = (12, 24, 48, 96)
POOL_SPLIT = {"search": 160, "fresh": 80}  # of a recorded run's search items; the rest is holdout
SPLIT = {"search": 240, "fresh": 100, "holdout": 544}
FINALISTS = 4
MARGIN = 0.02  # of held-out score, that counts as equal


def experiment(estimator: str, seed: int, candidates: int, space: str) -> ExperimentConfig:
    """The quickstart with another space, estimator and budget."""
    variant = dict(VARIANTS[estimator])
    base = read_experiment(catalogue_folder("experiments") / "quickstart.yaml")
    fitness = {
        **base.fitness.model_dump(),
        "estimator": variant["estimator"],
        "split": SPLIT,
        "finalists": FINALISTS,
    }
    data = {
        **base.model_dump(exclude={"space", "fitness", "searcher"}),
        "space": str(catalogue_folder("search_spaces") / f"{space}.yaml"),
        "searcher": {"kind": "cma_es", **{k: v for k, v in variant.items() if k != "estimator"}},
        "budget": {"candidates": candidates},
        "seed": seed,
        "pool": {"kind": "local", "workers": 0},
    }
    config = parse_experiment(Document({**data, "fitness": fitness}))
    return parse(ExperimentConfig, Document(dict(config)))


def checkpoint(folder: Path, config: ExperimentConfig) -> dict[str, Any]:
    """Go on to a budget, finish, and say what was found and what it cost."""
    start = time.monotonic()
    run = Run(run_experiment(config, folder))
    final = run.status()["final"]
    last = max((cohort for _, cohort, _ in run.ledger.events("told", "scored")), default=0)
    finalists = (FINALISTS + 1 + 3) * SPLIT["fresh"] * len(config.fitness.tasks)
    return {
        "candidates": config.budget.candidates,
        "items": run.ledger.spent(last) + finalists,
        "holdout": final["best"]["holdout_mean"]["value"],
        "best_reference": max(row["holdout_mean"]["value"] for row in final["references"].values()),
        "seconds": time.monotonic() - start,
    }


def run_all(
    out: Path, seeds: list[int], estimators: list[str], space: str, checkpoints: Sequence[int]
) -> None:
    """All seeds and estimators; what is in the results file already is not done again."""
    out.mkdir(parents=True, exist_ok=True)
    results = out / "results.jsonl"
    lines = results.read_text().splitlines() if results.exists() else []
    done = {(row["estimator"], row["seed"], row["candidates"]) for row in map(json.loads, lines)}
    for seed in seeds:
        for estimator in estimators:
            folder = out / f"{estimator.replace(' ', '_').replace(',', '')}-{seed}"
            for candidates in checkpoints:
                if (estimator, seed, candidates) in done:
                    continue
                config = experiment(estimator, seed, candidates, space)
                row = {"estimator": estimator, "seed": seed, **checkpoint(folder, config)}
                with results.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(json.dumps(row), flush=True)


def run_pool(out: Path, folder: Path, seeds: list[int], estimators: list[str]) -> None:
    """The same curves from the answers of one run, whose candidates answered everything."""
    recorded = read_run(folder)
    models = recorded.models
    grid = [c for c in recorded.references if c not in models]
    split = split_items(recorded.split.search, POOL_SPLIT["search"], POOL_SPLIT["fresh"], None, 0)
    recorded = replace(recorded, split=split, references=models)
    pool = [
        c
        for c in (*grid, *(c for cohort in recorded.cohorts for c in cohort))
        if c.recipe is not None
        and not recorded.measurements.missing(c.fingerprint, *next(iter(split.holdout.items())))
    ]
    reference = max(mean_of(recorded, c, split.holdout) for c in models)
    per_finalist = sum(map(len, split.fresh.values()))
    results = out / "results.jsonl"
    out.mkdir(parents=True, exist_ok=True)
    results.unlink(missing_ok=True)
    for seed in seeds:
        order = np.random.default_rng([seed, 7]).permutation(len(pool))
        for count in (*(c for c in POOL_CHECKPOINTS if c < len(pool)), len(pool)):
            chosen = [pool[i] for i in order[:count]]
            cohorts = tuple(tuple(chosen[i : i + 12]) for i in range(0, count, 12))
            for name in estimators:
                told = replay(replace(recorded, cohorts=cohorts, seed=seed), estimator_of(name))
                finalists = [recorded.ledger.candidates[i] for i in told["ranked"][:FINALISTS]]
                best = max(finalists, key=lambda c: mean_of(recorded, c, split.fresh))
                row = {
                    "estimator": name,
                    "seed": seed,
                    "candidates": count,
                    "items": told["spent"] + len(finalists) * per_finalist,
                    "holdout": mean_of(recorded, best, split.holdout),
                    "best_reference": reference,
                }
                with results.open("a") as file:
                    file.write(json.dumps(row) + "\n")


def mean_of(run: Recorded, candidate: Candidate, items: Mapping[str, Sequence[int]]) -> float:
    """The mean over tasks of a candidate's mean score."""
    values = [run.measurements.values(candidate.fingerprint, t, ids) for t, ids in items.items()]
    return float(np.mean([row.mean() for row in values]))


def estimator_of(name: str) -> dict[str, Any]:
    """A variant's estimator."""
    estimator: dict[str, Any] = VARIANTS[name]["estimator"]
    return estimator


def table(rows: list[dict[str, Any]], estimator: str, key: str) -> NDArray[np.float64]:
    """One figure of every seed (rows) at every checkpoint (columns)."""
    found = {(r["seed"], r["candidates"]): r[key] for r in rows if r["estimator"] == estimator}
    seeds = sorted({seed for seed, _ in found})
    return np.array([[found.get((s, c), np.nan) for c in checkpoints_of(rows)] for s in seeds])


def checkpoints_of(rows: list[dict[str, Any]]) -> list[int]:
    """All checkpoints of some rows."""
    return sorted({row["candidates"] for row in rows})


def lower_bound(differences: NDArray[np.float64]) -> float:
    """The lower end of the 95 % interval of a mean over seeds (Student's t)."""
    count = len(differences)
    quantile = stats.t.ppf(0.975, count - 1)
    return float(differences.mean() - quantile * differences.std(ddof=1) / count**0.5)


def show(out: Path) -> None:
    """The curves, and what each estimator needs for full evaluation's last score."""
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    checkpoints = checkpoints_of(rows)
    names = [name for name in VARIANTS if any(r["estimator"] == name for r in rows)]
    seeds = len(table(rows, "full", "holdout"))
    print(f"held-out mean ± standard error of {seeds} seeds (thousand item evaluations)\n")
    print(f"{'candidates':<28}" + "".join(f"{c:>22}" for c in checkpoints))
    for name in names:
        scores, items = table(rows, name, "holdout"), table(rows, name, "items")
        error = scores.std(axis=0, ddof=1) / len(scores) ** 0.5
        cells = zip(scores.mean(0), error, items.mean(0), strict=True)
        print(f"{name:<28}" + "".join(f"{s:>9.3f} ±{e:.3f} ({i / 1e3:.0f})" for s, e, i in cells))
    full, spent = table(rows, "full", "holdout"), table(rows, "full", "items").mean(0)
    reference = np.mean([r["best_reference"] for r in rows])
    print(f"\nbest reference on the holdout: {reference:.3f}")
    print(f"\nwithin {MARGIN} of full evaluation's {full[:, -1].mean():.3f} (lower 95 % bound):")
    for name in names:
        scores, items = table(rows, name, "holdout"), table(rows, name, "items").mean(0)
        bounds = [lower_bound(scores[:, k] - full[:, -1]) for k in range(len(checkpoints))]
        first = next((k for k, bound in enumerate(bounds) if bound >= -MARGIN), None)
        if first is None:
            print(f"{name:<28} not reached (best bound {max(bounds):+.3f})")
            continue
        print(
            f"{name:<28} {checkpoints[first]:>5} candidates, {items[first]:>9,.0f} items: "
            f"{spent[-1] / items[first]:.1f}x fewer than full at {checkpoints[-1]}"
        )


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("what", choices=["run", "pool", "show"])
    parser.add_argument("--out", type=Path, default=Path("runs/search_cost"))
    parser.add_argument("--run", type=Path, help="a recorded run, for `pool`")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--estimators", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--space", default="per_layer")
    parser.add_argument("--checkpoints", type=int, nargs="+", default=list(CHECKPOINTS))
    options = parser.parse_args()
    logging.getLogger("evomerge").setLevel(logging.ERROR)
    if options.what == "run":
        run_all(options.out, options.seeds, options.estimators, options.space, options.checkpoints)
    elif options.what == "pool":
        run_pool(options.out, options.run, options.seeds, options.estimators)
    show(options.out)


if __name__ == "__main__":
    main()
