"""Searchers on textbook functions, beside the libraries that they are built on.

    python benchmarks/searchers.py [--runs 11] [--fronts 3] [--json]

CMA-ES: the median number of evaluations until a generation holds a value of 1e-8, in 10 dimensions,
from x0 ~ U(-4, 4) with sigma 2. NSGA-II: the median hypervolume of the last population, 100
candidates x 250 generations, reference point 1.1; NSGA-III the same, on DTLZ2 with 3 objectives,
12 variables and 91 reference directions and candidates. `anchor` is what the library is known to
need; `library` is the library alone, in this very run; `overhead` is the time inside ask and tell.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evomerge.genes import Real
from evomerge.pareto import hypervolume
from evomerge.records import Estimate, Evaluation, Facts, Score
from evomerge.searchers import make_searcher

Array = NDArray[np.float64]
DIMENSIONS = 10
WIDTH = 40.0  # the unit cube stands for [-20, 20]^10: wide enough for its bounds not to matter
TARGET = 1e-8


def sphere(x: Array) -> float:
    return float(x @ x)


def ellipsoid(x: Array) -> float:
    return float(10.0 ** (6 * np.arange(len(x)) / (len(x) - 1)) @ x**2)


def rosenbrock(x: Array) -> float:
    return float(np.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2))


FUNCTIONS: dict[str, tuple[Callable[[Array], float], float]] = {
    "sphere": (sphere, 1420),
    "ellipsoid": (ellipsoid, 4100),
    "rosenbrock": (rosenbrock, 5300),
}
FRONTS = {  # kind, problem -> hypervolume
    ("nsga2", "zdt1"): 0.870,
    ("nsga2", "zdt2"): 0.536,
    ("nsga2", "zdt3"): 1.327,
    ("nsga2", "zdt6"): 0.493,
    ("nsga3", "dtlz2"): 0.744,
}
OPTIONS: dict[str, dict[str, Any]] = {"nsga2": {"population": 100}, "nsga3": {"partitions": 12}}


class Run(NamedTuple):
    """What one search gave: evaluations or hypervolume, and the time in ask and tell."""

    figure: float
    seconds_per_generation: float


class Cube:
    """A search space of which only the genes matter."""

    constraints: tuple[Any, ...] = ()

    def __init__(self, num_genes: int) -> None:
        self.genes = tuple(Real(f"g{i}", 0.0, 1.0) for i in range(num_genes))


def start(seed: int) -> Array:
    return np.random.default_rng(seed).uniform(-4, 4, DIMENSIONS)


def cma_es(function: Callable[[Array], float], seed: int) -> Run:
    """Evaluations to the target, through evomerge."""
    space: Any = Cube(DIMENSIONS)
    x0 = (start(seed) / WIDTH + 0.5).tolist()
    options = {"x0": x0, "sigma0": 2 / WIDTH, "restarts": 0}
    searcher = make_searcher("cma_es", space, seed, Facts(), options)
    spent, evaluations, generations = 0.0, 0, 0
    while evaluations < 100_000:
        began = time.perf_counter()
        genomes = searcher.ask(searcher.population)
        spent += time.perf_counter() - began
        values = [function((np.array(genome) - 0.5) * WIDTH) for genome in genomes]
        told = [
            Evaluation(evaluations + i, genome, Score({"score": Estimate(-value, 0.0, 1)}))
            for i, (genome, value) in enumerate(zip(genomes, values, strict=True))
        ]
        evaluations, generations = evaluations + len(genomes), generations + 1
        if min(values, default=0.0) < TARGET:
            break
        began = time.perf_counter()
        searcher.tell(told)
        spent += time.perf_counter() - began
    return Run(evaluations, spent / generations)


def plain_cma(function: Callable[[Array], float], seed: int) -> Run:
    """Evaluations to the target, with pycma alone and unbounded."""
    import cma

    strategy = cma.CMAEvolutionStrategy(start(seed), 2.0, {"seed": seed + 1, "verbose": -9})
    spent, evaluations, generations = 0.0, 0, 0
    while evaluations < 100_000:
        began = time.perf_counter()
        genomes = strategy.ask()
        spent += time.perf_counter() - began
        values = [function(x) for x in genomes]
        evaluations, generations = evaluations + len(genomes), generations + 1
        if min(values) < TARGET:
            break
        began = time.perf_counter()
        strategy.tell(genomes, values)
        strategy.stop()
        spent += time.perf_counter() - began
    return Run(evaluations, spent / generations)


def front(kind: str, name: str, seed: int, generations: int = 250) -> Run:
    """Hypervolume of the last population, through evomerge."""
    problem = problem_of(name)
    space: Any = Cube(problem.n_var)
    facts = Facts(objectives=tuple(f"f{k}" for k in range(problem.n_obj)))
    searcher: Any = make_searcher(kind, space, seed, facts, OPTIONS[kind])
    spent, first_id = 0.0, 0
    for _ in range(generations):
        began = time.perf_counter()
        genomes = searcher.ask(searcher.population)
        spent += time.perf_counter() - began
        values = -problem.evaluate(problem.xl + np.array(genomes) * (problem.xu - problem.xl))
        told = [
            Evaluation(
                first_id + i,
                genome,
                Score({f"f{k}": Estimate(value, 0.0, 1) for k, value in enumerate(row)}),
            )
            for i, (genome, row) in enumerate(zip(genomes, values.tolist(), strict=True))
        ]
        first_id += len(genomes)
        began = time.perf_counter()
        searcher.tell(told)
        spent += time.perf_counter() - began
    # The living population is nobody else's business, so it has no public name.
    living = np.array([e.score.values for e in searcher._living.evaluations.values()])
    return Run(hypervolume(living, [-1.1] * problem.n_obj), spent / generations)


def plain_front(kind: str, name: str, seed: int, generations: int = 250) -> Run:
    """Hypervolume of the last population, with pymoo alone."""
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.algorithms.moo.nsga3 import NSGA3
    from pymoo.core.termination import NoTermination
    from pymoo.util.ref_dirs import get_reference_directions

    problem = problem_of(name)
    if kind == "nsga2":
        algorithm = NSGA2(pop_size=OPTIONS[kind]["population"], seed=seed)
    else:
        parts = OPTIONS[kind]["partitions"]
        directions = get_reference_directions("das-dennis", problem.n_obj, n_partitions=parts)
        algorithm = NSGA3(directions, seed=seed)
    algorithm.setup(problem, termination=NoTermination())
    spent = 0.0
    for _ in range(generations):
        began = time.perf_counter()
        offspring = algorithm.ask()
        spent += time.perf_counter() - began
        algorithm.evaluator.eval(problem, offspring)
        began = time.perf_counter()
        algorithm.tell(infills=offspring)
        spent += time.perf_counter() - began
    living = -algorithm.pop.get("F")
    return Run(hypervolume(living, [-1.1] * problem.n_obj), spent / generations)


def problem_of(name: str) -> Any:
    """A problem of pymoo's."""
    from pymoo.problems import get_problem

    return get_problem(name, n_var=12, n_obj=3) if name == "dtlz2" else get_problem(name)


def row(name: str, anchor: float, ours: list[Run], library: list[Run]) -> dict[str, Any]:
    """One line of the table: medians and their ratios."""
    figure, figure_library = (statistics.median(r.figure for r in runs) for runs in (ours, library))
    own_s, library_s = (
        statistics.median(r.seconds_per_generation for r in runs) for runs in (ours, library)
    )
    return {
        "name": name,
        "anchor": anchor,
        "evomerge": round(figure, 4),
        "library": round(figure_library, 4),
        "evomerge_to_anchor": round(figure / anchor, 3),
        "evomerge_to_library": round(figure / figure_library, 3),
        "overhead_ms": round(1000 * own_s, 3),
        "library_overhead_ms": round(1000 * library_s, 3),
        "overhead_ratio": round(own_s / library_s, 2),
    }


def measure(num_runs: int, num_fronts: int) -> list[dict[str, Any]]:
    """The table; library and evomerge take turns, so that both see the same load."""
    rows = []
    for name, (function, anchor) in FUNCTIONS.items():
        pairs = [(cma_es(function, s), plain_cma(function, s)) for s in range(num_runs)]
        rows.append(row(f"cma_es {name}", anchor, [p[0] for p in pairs], [p[1] for p in pairs]))
    for (kind, name), anchor in FRONTS.items():
        pairs = [(front(kind, name, s), plain_front(kind, name, s)) for s in range(num_fronts)]
        rows.append(row(f"{kind} {name}", anchor, [p[0] for p in pairs], [p[1] for p in pairs]))
    return rows


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=11, help="seeds for each CMA-ES row")
    parser.add_argument("--fronts", type=int, default=3, help="seeds for each row of a front")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = measure(arguments.runs, arguments.fronts)
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return
    print("  ".join(f"{key:>19}" for key in rows[0]))
    for line in rows:
        print("  ".join(f"{value:>19}" for value in line.values()))


if __name__ == "__main__":
    main()
