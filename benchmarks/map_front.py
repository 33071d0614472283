"""MAP's fronts against grid search's: hypervolume, at a tenth of the evaluations or fewer.

    python benchmarks/map_front.py made-up             # known functions of 2, 3 and 4 tasks
    python benchmarks/map_front.py tiny --experts sort back --step .05
    python benchmarks/map_front.py tiny --experts sort back rot --step .1

Both measure the same function: `tiny` asks real merges of the tiny family (task arithmetic, one
coefficient in [0, 1.2] per expert, one task per expert as its objective) the same search items.
What is compared are measured values. Hypervolumes are moocore's; the reference point is the grid
front's nadir less a tenth of the front's range, and for `tiny` (in brackets) the least that an
expert alone has of each task. With `--held-out N`, `tiny` also asks the merges of both fronts N
other items: the best of a whole grid has the luck of the search items on its side.
`--variant nested` and `bayesian` work too.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import moocore
import numpy as np
from numpy.typing import NDArray

from evomerge.documents import Document
from evomerge.experiment.config import parse_experiment
from evomerge.experiment.wire import wire
from evomerge.files import catalogue_folder
from evomerge.genes import Real
from evomerge.pools.worker import Worker
from evomerge.protocols import SearchSpace
from evomerge.records import Estimate, Evaluation, Facts, Genome, Job, Score
from evomerge.searchers import make_searcher

Array = NDArray[np.float64]
Values = Callable[[Genome], tuple[list[float], list[float]]]  # of each objective, and their errors

MOST = 150  # evaluations on known functions
MADE_UP = ("quadratic", "sigmoid", "not_quite")


class Cube:
    """So many coefficients in [0, 1]."""

    constraints = ()

    def __init__(self, num_genes: int) -> None:
        self.genes = tuple(Real(f"weight_{i}", 0.0, 1.0, decimals=None) for i in range(num_genes))


def made_up(kind: str, tasks: int, seed: int) -> Callable[[Array], Array]:
    """Concave quadratics of as many coefficients as tasks, each with an optimum of its own.

    Behind a sigmoid, or behind an exponential with a ripple that no quadratic has.
    """
    generator = np.random.default_rng([seed, tasks])
    best = 0.25 + 0.1 * generator.random((tasks, tasks))
    best[np.diag_indices(tasks)] = 0.75 + 0.2 * generator.random(tasks)
    factors = 0.3 * generator.normal(size=(tasks, tasks, tasks)) + np.eye(tasks)
    curvatures = factors @ factors.transpose(0, 2, 1)

    def values(points: Array) -> Array:
        found = []
        for task in range(tasks):
            away = points - best[task]
            bowl = -np.einsum("ij,jk,ik->i", away, curvatures[task], away)
            if kind == "sigmoid":
                bowl = 1 / (1 + np.exp(-(2 + 4 * bowl)))
            if kind == "not_quite":
                bowl = np.exp(1.5 * bowl) + 0.03 * np.sin(6 * points[:, task])
            found.append(bowl)
        return np.stack(found, axis=1)

    return values


def search(
    space: SearchSpace,
    facts: Facts,
    values: Values,
    budget: int,
    seed: int,
    options: dict[str, Any],
) -> tuple[list[Genome], Array]:
    """Everything that MAP measured, in order, and its values, (<= budget, objectives)."""
    searcher = make_searcher("map_pareto", space, seed, facts, options)
    asked: list[Genome] = []
    told: list[list[float]] = []
    while len(told) < budget and (genomes := searcher.ask(budget - len(told))):
        evaluations = []
        for number, genome in enumerate(genomes):
            found, errors = values(genome)
            estimates = {
                name: Estimate(value, error, 100)
                for name, value, error in zip(facts.objectives, found, errors, strict=True)
            }
            evaluations.append(Evaluation(len(told) + number, genome, Score(estimates)))
        searcher.tell(evaluations)
        asked += genomes
        told += [list(e.score.values) for e in evaluations if e.score]
    return asked, np.array(told)


def reference_of(grid: Array) -> tuple[Array, float]:
    """The reference point below a grid's front, and the front's hypervolume."""
    front = grid[moocore.is_nondominated(-grid)]
    reference = front.min(axis=0) - 0.1 * np.ptp(front, axis=0)
    return reference, moocore.hypervolume(-front, ref=-reference)


def share(told: Array, reference: Array, whole: float) -> float:
    """The hypervolume of what was told, of the grid's."""
    return float(moocore.hypervolume(-told, ref=-reference) / whole)


def grid_of(tasks: int, step: float) -> Array:
    """All points of a grid over the cube."""
    side = np.linspace(0, 1, round(1 / step) + 1)
    return np.array(list(itertools.product(side, repeat=tasks)))


def checkpoints(budget: int, tasks: int) -> list[int]:
    """The design, and then twice as many up to the budget."""
    sizes = [(tasks + 1) * (tasks + 2)]
    while 2 * sizes[-1] < budget:
        sizes.append(2 * sizes[-1])
    return [*(size for size in sizes if size < budget), budget]


def run_made_up(seeds: int, options: dict[str, Any]) -> None:
    """Known functions; the budget is a tenth of the grid, MOST at most."""
    for tasks, step in ((2, 0.05), (3, 0.05), (4, 0.1)):
        points = grid_of(tasks, step)
        budget = min(len(points) // 10, MOST)
        for kind in MADE_UP:
            shares = []
            for seed in range(seeds):
                function = made_up(kind, tasks, seed)
                reference, whole = reference_of(function(points))

                def values(
                    genome: Genome, function: Callable[[Array], Array] = function
                ) -> tuple[list[float], list[float]]:
                    found = function(np.array([genome]))[0].tolist()
                    return found, [0.0] * len(found)

                names = tuple(f"task_{k}" for k in range(tasks))
                facts = Facts(objectives=names)
                told = search(Cube(tasks), facts, values, budget, seed, options)[1]  # type: ignore[arg-type]
                sizes = checkpoints(budget, tasks)
                shares.append([share(told[:n], reference, whole) for n in sizes])
            mean, least = np.mean(shares, axis=0), np.min(shares, axis=0)
            cells = "  ".join(
                f"{n}: {m:.3f} ({w:.3f})" for n, m, w in zip(sizes, mean, least, strict=True)
            )
            print(f"{tasks} tasks, {kind:<10} grid {len(points):>6}  {cells}", flush=True)


def tiny(
    experts: list[str], num_items: int, held_out: int
) -> tuple[SearchSpace, Facts, Values, Values]:
    """The tiny family's merges, and what each scores on the experts' own tasks.

    The last one asks held-out items.
    """
    folder = catalogue_folder("fitness")
    tasks = {
        name: {
            "kind": "lm_eval",
            "task": f"evomerge_tiny_{name}",
            "path": str(folder / f"tasks/tiny/{name}.yaml"),
            "batch_size": 256,
        }
        for name in experts
    }
    data = {
        "name": "map_front",
        "base": "zoo:tiny/base",
        "experts": {name: f"zoo:tiny/{name}" for name in experts},
        "space": str(catalogue_folder("search_spaces") / "per_expert.yaml"),
        "fitness": {
            "tasks": tasks,
            "objectives": {name: name for name in experts},
            "estimator": {"kind": "full"},
            "split": {"search": num_items, "fresh": 100, "holdout": held_out or 100},
        },
        "searcher": {"kind": "random"},
        "budget": {"candidates": 1},
        "pool": {"kind": "local", "workers": 0},
    }
    parts = wire(parse_experiment(Document(data)))
    worker = Worker(parts.worker, "benchmark")

    def values_on(items: Mapping[str, Any], number: int) -> Values:
        known: dict[str, dict[str, float]] = {}

        def values(genome: Genome) -> tuple[list[float], list[float]]:
            recipe = parts.space.decode(genome)
            if (merge := recipe.fingerprint) not in known:
                answers = worker.run(Job(len(known), 0, recipe, items)).responses
                known[merge] = {a.task: float(a.columns["score"].mean()) for a in answers}
            found = [known[merge][name] for name in experts]
            return found, [math.sqrt(v * (1 - v) / number) for v in found]

        return values

    alone = parts.space.alone()
    facts = Facts(
        designs=tuple(parts.space.designs()),
        objectives=tuple(experts),
        experts=tuple(alone[name] for name in experts),
    )
    values = values_on(parts.split.search, num_items)
    return parts.space, facts, values, values_on(parts.split.holdout, held_out)


def run_tiny(
    experts: list[str],
    step: float,
    num_items: int,
    held_out: int,
    seeds: int,
    options: dict[str, Any],
) -> None:
    """Real merges: the grid, then MAP with a tenth of its evaluations."""
    space, facts, values, on_others = tiny(experts, num_items, held_out)
    points = grid_of(len(experts), step)
    began = time.monotonic()
    grid = np.array([values(point.tolist())[0] for point in points])
    seconds = time.monotonic() - began
    reference, whole = reference_of(grid)
    least = np.array([values(expert)[0] for expert in facts.experts]).min(axis=0)
    above = moocore.hypervolume(-grid, ref=-least)
    sizes = checkpoints(len(points) // 10, len(experts))
    print(
        f"tiny: {' '.join(experts)}; {num_items} items of each task; grid of step {step}: "
        f"{len(points)} evaluations, {1e3 * seconds / len(points):.0f} ms each, "
        f"{int(moocore.is_nondominated(-grid).sum())} on the front; options {options}"
    )
    for seed in range(seeds):
        asked, told = search(space, facts, values, sizes[-1], seed, options)
        cells = "  ".join(
            f"{n}: {share(told[:n], reference, whole):.3f} ({share(told[:n], least, above):.3f})"
            for n in sizes
        )
        if held_out:
            first = np.array([on_others(points[i].tolist())[0] for i in _front(grid)])
            found = np.array([on_others(asked[i])[0] for i in _front(told)])
            alone = np.array([on_others(expert)[0] for expert in facts.experts]).min(axis=0)
            other, its = reference_of(first)
            over = moocore.hypervolume(-first, ref=-alone)
            cells += f"  held out: {share(found, other, its):.3f} ({share(found, alone, over):.3f})"
        print(f"  seed {seed}: {cells}", flush=True)


def _front(values: Array) -> list[int]:
    """Who is not dominated; one of several with the same values."""
    found: list[int] = np.flatnonzero(moocore.is_nondominated(-values)).tolist()
    return found


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("what", choices=["made-up", "tiny"])
    parser.add_argument("--experts", nargs="+", default=["sort", "back", "rot"])
    parser.add_argument("--step", type=float, default=0.1)
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--held-out", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--variant", default="plain")
    parser.add_argument("--population", type=int, default=8)
    arguments = parser.parse_args()
    options = {"variant": arguments.variant, "population": arguments.population}
    if arguments.what == "made-up":
        run_made_up(arguments.seeds, options)
    else:
        run_tiny(
            arguments.experts,
            arguments.step,
            arguments.items,
            arguments.held_out,
            arguments.seeds,
            options,
        )


if __name__ == "__main__":
    main()
