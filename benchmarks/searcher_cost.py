"""What the driver pays for a candidate: CPU time in ask and tell, for every searcher in the table.

    python benchmarks/searcher_cost.py [KIND ...] [--objectives 2] [--noise .2] [--seconds 20]
                                       [--json]

Populations of 10 (or a searcher's own) and 100, 20 and 200 genes, half of them real and half of all
types (6, 10, 20 and 40, the most, for map_pareto, after its design; its own population, too); after
a first generation, until 12 generations or so many seconds are over. Medians per candidate of a
generation, in ms, and the slowest generation; the made-up scores cost nothing that is counted. What
a row does not have is what that searcher refuses.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from evomerge.errors import ConfigurationError
from evomerge.genes import Choice, Flag, Gene, Integer, Real
from evomerge.records import Estimate, Evaluation, Facts, Genome, Responses, Score
from evomerge.searchers import SEARCHERS, make_searcher

NUM_EXPERTS = 3
NUM_ITEMS = 32
GENERATIONS = 12
MAP_GENES = (6, 10, 20, 40)  # of map_pareto, whose design grows with their square
PROMISE_MS = 5.0  # per candidate, but for `tpe` and `gp`


class Cube:
    """A space of half real genes and half of all types, or of real ones alone."""

    constraints: tuple[Any, ...] = ()

    def __init__(self, num_genes: int, *, is_mixed: bool) -> None:
        types = (Flag, lambda n: Choice(n, ("a", "b", "c")), lambda n: Integer(n, 0, 9))
        self.genes: tuple[Gene, ...] = tuple(
            types[i % 3](f"g{i}") if is_mixed and i % 2 else Real(f"g{i}", 0.0, 1.0)
            for i in range(num_genes)
        )

    def sample(self, generator: np.random.Generator) -> Genome:
        """A random genome."""
        return generator.random(len(self.genes)).tolist()

    def active(self, genome: Genome) -> list[bool]:
        """All genes matter."""
        return [True] * len(genome)


class Lines:
    """A space of lineages in one number."""

    genes: tuple[Gene, ...] = ()
    constraints: tuple[Any, ...] = ()
    total = 100

    def sample(self, generator: np.random.Generator) -> Genome:
        """A random genome."""
        return {"at": float(generator.random())}

    def active(self, genome: Genome) -> list[bool]:
        """There are no genes."""
        del genome
        return []

    def cross(self, first: Genome, second: Genome, mix: float, split: int) -> Genome:
        """A mean of two genomes."""
        del split
        return {"at": mix * first["at"] + (1 - mix) * second["at"]}


def made(kind: str, num_genes: int, options: dict[str, Any], objectives: int) -> tuple[Any, int]:
    """A searcher with what it needs, on the widest space that it takes; how many objectives."""
    needs = SEARCHERS[kind].needs
    num_objectives = objectives if SEARCHERS[kind].multi_objective else 1
    space: Any = Cube(num_genes, is_mixed="reals" not in needs)
    if "lineages" in needs:
        space = Lines()
    generator = np.random.default_rng(0)
    experts = tuple(space.sample(generator) for _ in range(NUM_EXPERTS))
    gram = tuple(tuple(4.0 if i == j else 1.0 for j in range(3)) for i in range(NUM_EXPERTS))
    names = tuple(f"f{k}" for k in range(num_objectives))
    facts = Facts(designs=experts, objectives=names, experts=experts, gram=gram)
    return make_searcher(kind, space, 0, facts, options), num_objectives


def evaluation(number: int, genome: Genome, num_objectives: int, noise: float) -> Evaluation:
    """Bowls, each with its optimum elsewhere; every twentieth candidate fails.

    noise: of a score, as a share of the first objective's standard deviation over random genomes.
    """
    x = np.asarray([genome["at"]] if isinstance(genome, dict) else genome)
    if number % 20 == 19:
        return Evaluation(number, genome, None)
    away = (
        np.random.default_rng(number).normal(size=num_objectives) * noise * 0.14 * np.sqrt(len(x))
    )
    values = [-float(((x - 0.3 - 0.3 * k) ** 2).sum()) + away[k] for k in range(num_objectives)]
    estimates = {f"f{k}": Estimate(value, 0.01, NUM_ITEMS) for k, value in enumerate(values)}
    right = (np.arange(NUM_ITEMS) * 7 % NUM_ITEMS / NUM_ITEMS < np.exp(max(values))).astype("f4")
    responses = {
        task: Responses(task, np.arange(NUM_ITEMS), {"score": right}) for task in ("t", "u")
    }
    return Evaluation(number, genome, Score(estimates), responses=responses)


def generations(
    searcher: Any, num_objectives: int, seconds: float, design: int = 0, noise: float = 0.0
) -> Iterator[float]:
    """Milliseconds per candidate, generation by generation, after so many of a design."""
    number, until = design, time.perf_counter() + seconds
    if design:
        asked = enumerate(searcher.ask(design))
        searcher.tell([evaluation(i, g, num_objectives, noise) for i, g in asked])
    for _ in range(GENERATIONS + 1):
        began = time.process_time()
        genomes = searcher.ask(searcher.in_flight)
        spent = time.process_time() - began
        if not genomes or time.perf_counter() > until:
            return
        told = [evaluation(number + i, g, num_objectives, noise) for i, g in enumerate(genomes)]
        number += len(genomes)
        began = time.process_time()
        searcher.tell(told)
        yield 1000 * (spent + time.process_time() - began) / len(genomes)


def measure(
    kinds: list[str], objectives: int, seconds: float, noise: float
) -> Iterator[dict[str, Any]]:
    """A row for each searcher, population and number of genes."""
    for kind in kinds:
        fields = SEARCHERS[kind].Options.model_fields
        variants: list[dict[str, Any]] = [{}]
        if "population" in fields:
            variants = [{"population": 10}, {"population": 100}]
            variants += [{}] if kind == "map_pareto" else []  # 16
        if "steady" in fields:
            variants.append({"population": 100, "steady": True})
        for options in variants:
            for num_genes in MAP_GENES if kind == "map_pareto" else (20, 200):
                if row := row_of(kind, options, num_genes, objectives, seconds, noise):
                    yield row


def row_of(
    kind: str,
    options: dict[str, Any],
    num_genes: int,
    objectives: int,
    seconds: float,
    noise: float,
) -> dict[str, Any] | None:
    """One row; None for what the searcher refuses, or for which there was no time."""
    try:
        searcher, num_objectives = made(kind, num_genes, options, objectives)
    except ConfigurationError as error:
        print(f"{kind} {options} {num_genes}: {error}")
        return None
    design = (num_genes + 1) * (num_genes + 2) if kind == "map_pareto" else 0
    spent = list(generations(searcher, num_objectives, seconds, design, noise))[1:]
    if not spent:
        print(f"{kind} {options} {num_genes}: more than {seconds} s for two generations")
        return None
    return {
        "searcher": kind + (" steady" if "steady" in options else ""),
        "asked_together": searcher.in_flight,
        "genes": num_genes,
        "ms_a_candidate": round(statistics.median(spent), 3),
        "slowest": round(max(spent), 3),
        "within_promise": statistics.median(spent) <= PROMISE_MS,
    }


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", default=list(SEARCHERS), metavar="KIND")
    parser.add_argument("--objectives", type=int, default=2, help="of those that take several")
    parser.add_argument("--noise", type=float, default=0.0, help="of scores, see `evaluation`")
    parser.add_argument("--seconds", type=float, default=20.0, help="at most, for each row")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = measure(arguments.kinds, arguments.objectives, arguments.seconds, arguments.noise)
    if arguments.json:
        print(json.dumps(list(rows), indent=1))
        return
    for number, line in enumerate(rows):
        if number == 0:
            print("  ".join(f"{key:>16}" for key in line))
        print("  ".join(f"{value!s:>16}" for value in line.values()), flush=True)


if __name__ == "__main__":
    main()
