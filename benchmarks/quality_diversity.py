"""CycleQD beside MAP-Elites, NSGA-II and random search, on three tasks at equal evaluations.

All candidates of a search are sorted into one common grid: for each task an archive whose quality
is that task and whose axes are the other two, 15 x 15 cells over [0, 1]. Coverage is the share of
its cells that somebody is in, quality the mean of the best in each of those, and their product the
QD score; all are means over the three archives. The hypervolume is that of all candidates, above 0.

`toy`: 24 real genes, three tasks with optima in conflict. `tiny`: merges of the tiny family with a
coefficient for each expert and layer (24 genes), three skills, 48 fixed items each; it measures
with the pool's worker and leaves out references, finalists and holdout. The defaults of both
(`sigma` of CycleQD, `line_sigma` of MAP-Elites) were chosen on the toy, with seeds 10 to 17.

    python benchmarks/quality_diversity.py toy --out runs/quality_diversity
    python benchmarks/quality_diversity.py tiny --out runs/quality_diversity --seeds 0 1 2 3 4
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from evomerge.documents import Document, parse
from evomerge.experiment.config import ExperimentConfig, parse_experiment, read_experiment
from evomerge.experiment.wire import wire
from evomerge.files import catalogue_folder
from evomerge.genes import Real
from evomerge.pareto import hypervolume
from evomerge.pools.worker import Worker
from evomerge.records import Estimate, Evaluation, Facts, Genome, Job, Score
from evomerge.searchers import make_searcher

Floats = NDArray[np.float64]
VARIANTS: dict[str, dict[str, Any]] = {
    "cycle_qd": {"kind": "cycle_qd"},
    "map_elites": {"kind": "map_elites"},
    "map_elites, one task": {"kind": "map_elites", "quality": "a"},
    "nsga2": {"kind": "nsga2", "population": 24},
    "random": {"kind": "random"},
}
TASKS = ("a", "b", "c")
CELLS = 15
ITEMS = 48  # of each task
NUM_GENES = 24  # of the toy
FIGURES = ("coverage", "quality", "qd_score", "hypervolume", "best_mean")

Measure = Callable[[Genome], tuple[float, ...]]


class Toy:
    """Three tasks; each falls off around an optimum of its own, and has an expert near it."""

    constraints = ()

    def __init__(self, seed: int) -> None:
        generator = np.random.default_rng([seed, 24])
        self.genes = tuple(Real(f"g{i}", 0.0, 1.0) for i in range(NUM_GENES))
        self._optima = generator.random((len(TASKS), NUM_GENES))
        shifted = self._optima + generator.normal(0, 0.15, self._optima.shape)
        self._experts = np.clip(shifted, 0.0, 1.0)

    def sample(self, generator: np.random.Generator) -> Genome:
        """A random genome."""
        return generator.random(NUM_GENES).tolist()

    def active(self, genome: Genome) -> list[bool]:
        """All of them, everywhere."""
        return [True] * len(genome)

    def designs(self) -> tuple[Genome, ...]:
        """The experts and their mean."""
        return tuple(np.vstack([self._experts, self._experts.mean(axis=0)]).tolist())

    def measure(self, genome: Genome) -> tuple[float, ...]:
        """The score of each task, in (0, 1]."""
        distances = ((np.asarray(genome) - self._optima) ** 2).mean(axis=1)
        return tuple(np.exp(-distances / 0.06).tolist())


def tiny() -> tuple[Any, tuple[Genome, ...], Measure]:
    """The space of the tiny family, its designs, and how a genome is measured."""
    base = read_experiment(catalogue_folder("experiments") / "quickstart_pareto.yaml")
    split = {"search": ITEMS, "fresh": 0, "holdout": ITEMS}
    data = {
        **base.model_dump(exclude={"space", "fitness"}),
        "space": str(catalogue_folder("search_spaces") / "per_layer.yaml"),
        "fitness": {**base.fitness.model_dump(), "split": split},
    }
    parts = wire(parse(ExperimentConfig, Document(dict(parse_experiment(Document(data))))))
    worker = Worker(parts.worker, "benchmark")
    numbers = iter(range(10**9))

    def measure(genome: Genome) -> tuple[float, ...]:
        job = Job(next(numbers), 0, parts.space.decode(genome), parts.split.search)
        outcome = worker.run(job)
        told = {r.task: float(r.columns["score"].mean()) for r in outcome.responses}
        return tuple(told[task] for task in parts.split.search)

    return parts.space, tuple(parts.space.designs()), measure


def search(
    options: dict[str, Any],
    space: Any,
    designs: tuple[Genome, ...],
    measure: Measure,
    seed: int,
    candidates: int,
) -> Floats:
    """What all candidates of a search scored, shape (candidates, tasks)."""
    kind = options["kind"]
    more = {name: value for name, value in options.items() if name != "kind"}
    searcher = make_searcher(kind, space, seed, Facts(designs, TASKS), more)
    values: list[tuple[float, ...]] = []
    while len(values) < candidates:
        genomes = searcher.ask(searcher.population)
        told = [measure(genome) for genome in genomes]
        searcher.tell(
            [
                Evaluation(
                    len(values) + i,
                    genome,
                    Score({t: Estimate(v, 0.0, ITEMS) for t, v in zip(TASKS, row, strict=True)}),
                )
                for i, (genome, row) in enumerate(zip(genomes, told, strict=True))
            ]
        )
        values += told
    return np.array(values[:candidates])


def figures(values: Floats) -> dict[str, float]:
    """What is compared, from the scores of all candidates, shape (candidates, tasks)."""
    cells = np.minimum((values * CELLS).astype(int), CELLS - 1)
    coverages, qualities = [], []
    for task in range(values.shape[1]):
        best: dict[tuple[int, ...], float] = {}
        for cell, value in zip(np.delete(cells, task, 1).tolist(), values[:, task], strict=True):
            best[tuple(cell)] = max(best.get(tuple(cell), 0.0), float(value))
        coverages.append(len(best) / CELLS ** (values.shape[1] - 1))
        qualities.append(float(np.mean(list(best.values()))))
    return {
        "coverage": float(np.mean(coverages)),
        "quality": float(np.mean(qualities)),
        "qd_score": float(np.mean(np.multiply(coverages, qualities))),
        "hypervolume": hypervolume(values, np.zeros(values.shape[1])),
        "best_mean": float(values.mean(axis=1).max()),
    }


def run(what: str, results: Path, seeds: list[int], candidates: int, variants: list[str]) -> None:
    """All seeds and variants; what is in the results file already is not done again."""
    results.parent.mkdir(parents=True, exist_ok=True)
    lines = results.read_text().splitlines() if results.exists() else []
    done = {(row["variant"], row["seed"], row["candidates"]) for row in map(json.loads, lines)}
    models = tiny() if what == "tiny" else None
    for seed in seeds:
        toy = Toy(seed)
        space, designs, measure = models or (toy, toy.designs(), toy.measure)
        for variant in variants:
            if (variant, seed, candidates) in done:
                continue
            start = time.monotonic()
            values = search(VARIANTS[variant], space, designs, measure, seed, candidates)
            seconds = time.monotonic() - start
            row = {"variant": variant, "seed": seed, "candidates": candidates, "seconds": seconds}
            with results.open("a") as file:
                file.write(json.dumps({**row, **figures(values)}) + "\n")


def half_width(values: Floats) -> float:
    """Half of the 95 % interval of a mean (Student's t)."""
    count = len(values)
    return float(stats.t.ppf(0.975, count - 1) * values.std(ddof=1) / count**0.5)


def show(what: str, results: Path) -> None:
    """Means over seeds with 95 % intervals, and paired differences to CycleQD."""
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    for candidates in sorted({row["candidates"] for row in rows}):
        table = {
            variant: {row["seed"]: row for row in rows if _is(row, variant, candidates)}
            for variant in VARIANTS
        }
        complete = sorted(set.intersection(*(set(found) for found in table.values() if found)))
        if len(complete) < 2:
            continue
        print(f"{what}: {candidates} candidates, mean ± 95 % of {len(complete)} seeds\n")
        print(f"{'':<24}" + "".join(f"{name:>17}" for name in FIGURES))
        columns = {
            variant: np.array([[found[s][f] for f in FIGURES] for s in complete])
            for variant, found in table.items()
            if found
        }
        for variant, values in columns.items():
            _print_row(variant, values)
        print("\nCycleQD minus the other, paired by seed:")
        for variant, values in columns.items():
            if variant != "cycle_qd":
                _print_row(variant, columns["cycle_qd"] - values)
        print()


def _is(row: dict[str, Any], variant: str, candidates: int) -> bool:
    return bool(row["variant"] == variant and row["candidates"] == candidates)


def _print_row(name: str, values: Floats) -> None:
    cells = (f"{column.mean():>10.3f} ±{half_width(column):.3f}" for column in values.T)
    print(f"{name:<24}" + "".join(f"{cell:>17}" for cell in cells))


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("what", choices=["toy", "tiny"])
    parser.add_argument("--out", type=Path, default=Path("runs/quality_diversity"))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--candidates", type=int, default=300)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    options = parser.parse_args()
    results = options.out / f"{options.what}.jsonl"
    run(options.what, results, options.seeds, options.candidates, options.variants)
    show(options.what, results)


if __name__ == "__main__":
    main()
