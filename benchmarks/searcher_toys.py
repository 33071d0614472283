"""Searchers on small functions with a known optimum: whole numbers, switches, warm starts, models.

    python benchmarks/searcher_toys.py [integers] [switches] [warm] [tpe] [gp] [--runs 31]

All functions are maximised and are 0 at their optimum. A run's seed draws its problem, too, except
for `tpe` and `gp`. Of `integers`, `switches` and `warm`, what is counted is the candidates of a run
up to the first that is good enough, restarts included: in how many runs there is one among the
first 20,000, and the median of all runs, those that find none counting as endless. Of `tpe` and
`gp` it is the best of so many candidates: in how many runs it is good enough, which is -.02, the
median, the mean and the worst run.

`integers`: 5 real genes in [0, 1] and 5 integers from 0 to 9. Minus 100 times the squared distance
of the reals, and minus .01 times that of the integers, from an optimum drawn from the inner .2 to
.8 of the cube. Good enough is -1e-4: all integers right, and the reals to .001. So the integers
matter least, and are to be found still when the reals have converged.

`switches`: real genes as above, and switches that cost .01 each where they are wrong; good enough
as above. `leading`: 15 switches of which only those count that come before the first wrong one;
good enough when all are right.

`warm`: a turned ellipsoid of 10 genes in [0, 1], condition 1e4 (axes of ratio 100, the steepest
weight 1e4), its optimum drawn from .35 to .65; good enough is -1e-5. Then its optimum is moved in
a random direction, so far as the row says. `warm` knows the 1,000 candidates of a run before the
move, which do not count; `cold` knows nothing.

`tpe`: minus the squared distance from .3 of 5 genes in [0, 1]; 60 candidates. `optuna` is its own
loop, one by one. `gp`: minus Branin's function, plus its minimum, of 2 genes; 30 candidates, in
random search 300.
"""

from __future__ import annotations

import argparse
import math
import statistics
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from evomerge.genes import Flag, Gene, Integer, Real, Value
from evomerge.records import Estimate, Evaluation, Facts, Genome, Score
from evomerge.search_spaces.codec import Codec
from evomerge.searchers import make_searcher

Values = list[Value]
Function = Callable[[Values], float]

MOST = 20_000  # candidates, where a run does not get there
KNOWN = 1_000  # candidates of the run that a warm start knows
PROBLEM, BEFORE = 1, 1_000  # keep apart what draws a problem, a run, and the run known before it
ENOUGH_MIXED, ENOUGH_ELLIPSOID, ENOUGH_MODELS = -1e-4, -1e-5, -0.02
BRANIN = 0.397887  # the minimum


class Space:
    """A search space of which all genes matter."""

    constraints: tuple[Any, ...] = ()

    def __init__(self, *genes: Gene) -> None:
        self.genes = genes
        self.codec = Codec(genes)

    def sample(self, generator: np.random.Generator) -> Genome:
        """A random genome."""
        return generator.random(len(self.genes)).tolist()

    def active(self, genome: Genome) -> list[bool]:
        """All genes matter."""
        return [True] * len(genome)


def reals(count: int) -> list[Gene]:
    """Reals in [0, 1]."""
    return [Real(f"x{i}", 0.0, 1.0, decimals=None) for i in range(count)]


# --- functions ------------------------------------------------------------------------------------


def mixed(space: Space, seed: int) -> Function:
    """Reals that matter much; integers and switches that matter little."""
    inner = np.random.default_rng([seed, PROBLEM]).uniform(0.2, 0.8, len(space.genes))
    best = np.array(space.codec.values(inner.tolist()), dtype=float)
    weights = np.array([100.0 if isinstance(gene, Real) else 0.01 for gene in space.genes])
    return lambda values: -float(weights @ (np.array(values, dtype=float) - best) ** 2)


def leading(space: Space, seed: int) -> Function:
    """Switches of which each counts where all before it are right."""
    inner = np.random.default_rng([seed, PROBLEM]).uniform(0.2, 0.8, len(space.genes))
    best = space.codec.values(inner.tolist())

    def value(values: Values) -> float:
        wrong = (i for i, pair in enumerate(zip(values, best, strict=True)) if pair[0] != pair[1])
        return float(next(wrong, len(best)) - len(best))

    return value


def ellipsoid(num_genes: int, seed: int, shift: float = 0.0) -> Function:
    """A turned ellipsoid, whose optimum is moved so far."""
    generator = np.random.default_rng([seed, PROBLEM])
    best, direction = generator.uniform(0.35, 0.65, num_genes), generator.normal(size=num_genes)
    best = best + shift * direction / np.linalg.norm(direction)
    turn, _ = np.linalg.qr(generator.normal(size=(num_genes, num_genes)))
    weights = 1e4 ** (np.arange(num_genes) / (num_genes - 1))
    return lambda values: -float(weights @ (turn @ (np.array(values, dtype=float) - best)) ** 2)


def sphere(values: Values) -> float:
    """A sphere around .3."""
    return -sum((float(x) - 0.3) ** 2 for x in values)


def branin(values: Values) -> float:
    """Branin's function, turned over, on the unit square."""
    x, y = 15 * float(values[0]) - 5, 15 * float(values[1])
    bowl = (y - 5.1 / (4 * math.pi**2) * x**2 + 5 / math.pi * x - 6) ** 2
    return BRANIN - bowl - 10 * (1 - 1 / (8 * math.pi)) * math.cos(x) - 10


# --- runs -----------------------------------------------------------------------------------------


def search(
    kind: str,
    space: Any,
    function: Function,
    seed: int,
    most: int,
    warm_start: tuple[Evaluation, ...] = (),
    **options: Any,
) -> Iterator[tuple[float, Evaluation]]:
    """At most so many candidates of a run, with their values."""
    searcher: Any = make_searcher(kind, space, seed, Facts(warm_start=warm_start), options)
    count = 0
    while count < most:
        genomes = searcher.ask(min(searcher.in_flight, most - count))
        if not genomes:
            return
        values = [function(space.codec.values(genome)) for genome in genomes]
        told = [
            Evaluation(count + i, genome, Score({"score": Estimate(value, 0.0, 1)}))
            for i, (genome, value) in enumerate(zip(genomes, values, strict=True))
        ]
        yield from zip(values, told, strict=True)
        searcher.tell(told)
        count += len(genomes)


def needed(candidates: Iterator[tuple[float, Evaluation]], enough: float) -> float:
    """How many candidates until one is good enough; infinite if none is."""
    return next((i for i, (value, _) in enumerate(candidates, 1) if value >= enough), math.inf)


def best_value(candidates: Iterator[tuple[float, Evaluation]]) -> float:
    """The best value of a run."""
    return max(value for value, _ in candidates)


def optuna_alone(seed: int, count: int) -> float:
    """The best of optuna's own loop on the sphere of 5 genes."""
    import optuna

    def objective(trial: optuna.Trial) -> float:
        return sphere([trial.suggest_float(f"x{i}", 0.0, 1.0) for i in range(5)])

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(objective, n_trials=count)
    return study.best_value


# --- tables ---------------------------------------------------------------------------------------


def show_needed(name: str, counts: list[float]) -> None:
    """A row of how many candidates runs needed."""
    reached = sum(math.isfinite(count) for count in counts)
    print(f"  {name:<44}{reached:>8}{statistics.median(counts):>10,.0f}", flush=True)


def show_best(name: str, values: list[float]) -> None:
    """A row of the best values of runs."""
    reached = sum(value >= ENOUGH_MODELS for value in values)
    figures = (statistics.median(values), statistics.mean(values), min(values))
    print(f"  {name:<44}{reached:>8}" + "".join(f"{x:>10.4f}" for x in figures), flush=True)


def integers(seeds: range) -> None:
    """`cma_es` with and without its care for discrete genes."""
    space = Space(*reals(5), *(Integer(f"n{i}", 0, 9) for i in range(5)))
    variants: dict[str, dict[str, Any]] = {"": {}, ", discrete: ignore": {"discrete": "ignore"}}
    for name, options in variants.items():
        runs = (search("cma_es", space, mixed(space, s), s, MOST, **options) for s in seeds)
        show_needed(f"5 reals, 5 integers: cma_es{name}", [needed(r, ENOUGH_MIXED) for r in runs])


def switches(seeds: range) -> None:
    """`cma_es_mixed` beside `cma_es`."""
    for num_reals, num_flags, function, enough in (
        (5, 5, mixed, ENOUGH_MIXED),
        (5, 15, mixed, ENOUGH_MIXED),
        (0, 15, mixed, ENOUGH_MIXED),
        (0, 15, leading, 0.0),
    ):
        space = Space(*reals(num_reals), *(Flag(f"f{i}") for i in range(num_flags)))
        said = f"{num_reals} reals, " if num_reals else ""
        said += f"{num_flags} switches" + (", leading" if function is leading else "")
        for kind in ("cma_es_mixed", "cma_es"):
            runs = (search(kind, space, function(space, s), s, MOST) for s in seeds)
            show_needed(f"{said}: {kind}", [needed(run, enough) for run in runs])


def warm(seeds: range) -> None:
    """`cma_es` that knows another run, or nothing."""
    num_genes = 10
    space = Space(*reals(num_genes))

    def run(seed: int, shift: float, known: tuple[Evaluation, ...]) -> float:
        moved = ellipsoid(num_genes, seed, shift)
        return needed(search("cma_es", space, moved, seed, MOST, known), ENOUGH_ELLIPSOID)

    def before(seed: int) -> tuple[Evaluation, ...]:
        function = ellipsoid(num_genes, seed)
        return tuple(e for _, e in search("cma_es", space, function, seed + BEFORE, KNOWN))

    for shift in (0.0, 0.03, 0.2):
        show_needed(f"moved by {shift:g}: warm", [run(s, shift, before(s)) for s in seeds])
        show_needed(f"moved by {shift:g}: cold", [run(s, shift, ()) for s in seeds])


def tpe(seeds: range) -> None:
    """`tpe` beside optuna's own loop and random search."""
    space, count = Space(*reals(5)), 60
    variants: dict[str, tuple[str, dict[str, Any]]] = {
        "tpe": ("tpe", {}),
        "tpe, one by one": ("tpe", {"population": 1, "ahead": 0}),
        "random": ("random", {}),
    }
    for name, (kind, options) in variants.items():
        runs = (search(kind, space, sphere, s, count, **options) for s in seeds)
        show_best(f"best of {count}: {name}", [best_value(run) for run in runs])
    show_best(f"best of {count}: optuna", [optuna_alone(s, count) for s in seeds])


def gp(seeds: range) -> None:
    """`gp` beside random search with ten times the candidates."""
    space = Space(*reals(2))
    variants: dict[str, tuple[str, int, dict[str, Any]]] = {
        "gp": ("gp", 30, {}),
        "gp, one by one, startup: 6": ("gp", 30, {"population": 1, "startup": 6}),
        "random": ("random", 300, {}),
    }
    for name, (kind, count, options) in variants.items():
        runs = (search(kind, space, branin, s, count, **options) for s in seeds)
        show_best(f"best of {count}: {name}", [best_value(run) for run in runs])


COUNTED = {"integers": integers, "switches": switches, "warm": warm}
JUDGED = {"tpe": tpe, "gp": gp}


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = COUNTED | JUDGED
    parser.add_argument("what", nargs="*", metavar="WHAT", help=f"of {', '.join(known)}; or all")
    parser.add_argument("--runs", type=int, default=31, help="seeds for each row")
    arguments = parser.parse_args()
    if unknown := set(arguments.what) - set(known):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    warnings.simplefilter("ignore")
    for number, what in enumerate(arguments.what or known):
        titles = ("median",) if what in COUNTED else ("median", "mean", "worst")
        reached = f"of {arguments.runs}"
        if number:
            print()
        print(f"{what:<46}{reached:>8}" + "".join(f"{title:>10}" for title in titles))
        known[what](range(arguments.runs))


if __name__ == "__main__":
    main()
