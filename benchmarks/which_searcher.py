"""Which searcher should I use? Every one of them, in four spaces, on the same real merges.

    python benchmarks/which_searcher.py run --out runs/which_searcher
    python benchmarks/which_searcher.py show --out runs/which_searcher

The tiny family's three experts; every candidate answers the same 32 items of each of three skills
(`successive` races instead), and every searcher has the same number of item evaluations. What it
found is measured on 300 other items of each skill: the candidate with the best mean and, of the
searchers for several objectives, the share of the unit cube that the front dominates there.
Searchers for one objective search the mean. References (the experts, task arithmetic on a grid)
are left out: they would cost the same for each. `run` goes on where it was stopped; `show` prints
the table as Markdown.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from evomerge.documents import Document
from evomerge.errors import ConfigurationError
from evomerge.experiment.config import ExperimentConfig, parse_experiment
from evomerge.experiment.run import open_ledger
from evomerge.experiment.wire import Parts, wire
from evomerge.files import catalogue_folder
from evomerge.ledger import LEDGER, Ledger
from evomerge.loop import Search, run_search
from evomerge.measurement import Measurer, requests_for
from evomerge.pareto import best_first, hypervolume, non_dominated
from evomerge.pools import make_pool
from evomerge.records import Budget, Candidate
from evomerge.searchers import SEARCHERS

SKILLS = ("sort", "back", "rot")
SPLIT = {"search": 100, "fresh": 0, "holdout": 300}
ITEMS = 32  # of each skill
CANDIDATES = 100  # that answer so many items: the budget
FRONT = 5  # members of a front that are measured on the holdout, spread over it
HELD_OUT = 10_000  # the number of the cohort that answers the holdout
SUBSET = {"kind": "subset", "items": ITEMS}
RACE = {"kind": "racing", "rungs": [8, 32, 96], "keep": 0.33}
MIXED = {  # each layer from the base, an expert, or a task arithmetic of several with a scale
    "kind": "layer_choice",
    "outside": "uniform",
    "layers": {
        "choose": "several",
        "operator": "task_arithmetic",
        "search": {"weight": {"range": [0, 1]}},
    },
}
SPACES: dict[str, Any] = {
    "6 weights": "dare_ties",
    "weights per layer": "per_layer",
    "mixed": MIXED,
    "layer choice": "layer_choice",
    "lineages": "m2n2",
}
MEASURES = {"held_out": "mean", "hypervolume": "front"}  # and what they are called
RACING = {"successive": 5 * 27}  # as many whole cohorts as 100 candidates' items pay for
OPTIONS: dict[str, dict[str, Any]] = {  # beside the kind: generations for so few candidates
    "nsga2": {"population": 20},
    "nsga3": {"population": 20},
}


def experiment(kind: str, space: str, seed: int) -> ExperimentConfig:
    """One search."""
    tasks = {
        skill: {
            "kind": "lm_eval",
            "task": f"evomerge_tiny_{skill}",
            "path": str(catalogue_folder("fitness") / "tasks" / "tiny" / f"{skill}.yaml"),
            "batch_size": 256,
        }
        for skill in SKILLS
    }
    several = SEARCHERS[kind].multi_objective
    return parse_experiment(
        Document(
            {
                "base": "zoo:tiny/base",
                "experts": {skill: f"zoo:tiny/{skill}" for skill in SKILLS},
                "space": SPACES[space],
                "fitness": {
                    "tasks": tasks,
                    "objectives": {s: s for s in SKILLS}
                    if several
                    else {"mean": {"tasks": list(SKILLS)}},
                    "estimator": RACE if kind in RACING else SUBSET,
                    "split": SPLIT,
                },
                "searcher": {"kind": kind, **OPTIONS.get(kind, {})},
                "budget": {"candidates": CANDIDATES},
                "seed": seed,
                "pool": {"workers": 0},
            }
        )
    )


class Timed:
    """A searcher, and the seconds that it took itself."""

    def __init__(self, searcher: Any) -> None:
        self._searcher = searcher
        self.ask_s = self.tell_s = 0.0
        self.num_asked = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._searcher, name)

    def ask(self, count: int) -> Any:
        """What the searcher asks, timed."""
        start = time.perf_counter()
        genomes = self._searcher.ask(count)
        self.ask_s += time.perf_counter() - start
        self.num_asked += len(genomes)
        return genomes

    def tell(self, evaluations: Any) -> None:
        """Tell it, timed."""
        start = time.perf_counter()
        self._searcher.tell(evaluations)
        self.tell_s += time.perf_counter() - start


def search(parts: Parts, folder: Path) -> dict[str, Any]:
    """Search once, and measure what was found."""
    with closing(open_ledger(folder / LEDGER, parts)) as ledger:
        pool = make_pool(parts.config.pool, parts.worker, folder / "run.log")
        try:
            return _searched(parts, ledger, Measurer(pool, ledger))
        finally:
            pool.close()


def _searched(parts: Parts, ledger: Ledger, measurer: Measurer) -> dict[str, Any]:
    timed: Any = Timed(parts.searcher)
    population, in_flight = parts.searcher.population, parts.searcher.in_flight
    run = Search(
        searcher=timed,
        space=parts.space,
        estimator=parts.estimator,
        ledger=ledger,
        in_flight=max(in_flight, min(population, in_flight)),
        cohort_size=min(population, in_flight),
    )
    budget = Budget(candidates=RACING.get(parts.config.searcher.kind, CANDIDATES))
    start = time.perf_counter()
    why = run_search(run, measurer, budget)
    seconds = time.perf_counter() - start
    measurer.cancel()
    ranked = [e for e in best_first(list(ledger.evaluations().values())) if e.score is not None]
    chosen = ledger.candidates[ranked[0].id]
    for evaluation in ranked:  # the best mean, of those that have answered most
        top = ranked[0].score
        if evaluation.score.rung == top.rung and evaluation.score.mean > top.mean:
            chosen, top = ledger.candidates[evaluation.id], evaluation.score
    several = len(parts.objectives) > 1
    front = front_of(ranked, ledger) if several else []
    known = {c.fingerprint: c for c in (chosen, *front)}
    measurer.measure(HELD_OUT, requests_for(known.values(), parts.split.holdout))
    means = {f: held_out(parts, ledger, c) for f, c in known.items()}
    return {
        "held_out": float(means[chosen.fingerprint].mean()),
        "told": float(max(e.score.mean for e in ranked if e.score.rung == ranked[0].score.rung)),
        "hypervolume": hypervolume([means[c.fingerprint] for c in front], [0.0] * len(SKILLS))
        if several
        else None,
        "candidates": len(ledger.evaluations()),
        "items": ledger.spent(run.num_cohorts),
        "ask_ms": 1e3 * timed.ask_s / max(1, timed.num_asked),
        "tell_ms": 1e3 * timed.tell_s / max(1, timed.num_asked),
        "seconds": seconds,
        "ended": why,
    }


def front_of(ranked: Sequence[Any], ledger: Ledger) -> list[Candidate]:
    """The told front; of many, those that are spread best: each farthest from those before it.

    Where one races, of those who came to the highest rung, as in a run's own front.
    """
    top = [e for e in ranked if e.score.rung == ranked[0].score.rung]
    known = {ledger.candidates[e.id].fingerprint: e for e in reversed(top)}
    evaluations = list(known.values())
    values = np.array([e.score.values for e in evaluations])
    places = np.flatnonzero(non_dominated(values))
    chosen = [int(places[values[places].mean(axis=1).argmax()])]
    while len(chosen) < min(FRONT, len(places)):
        distance = [min(np.linalg.norm(values[i] - values[j]) for j in chosen) for i in places]
        chosen.append(int(places[int(np.argmax(distance))]))
    return [ledger.candidates[evaluations[i].id] for i in chosen]


def held_out(parts: Parts, ledger: Ledger, candidate: Candidate) -> NDArray[np.float64]:
    """The mean score of each skill on the holdout, shape (skills,)."""
    known = ledger.measurements
    return np.array(
        [
            known.values(candidate.fingerprint, skill, parts.split.holdout[skill]).mean()
            for skill in SKILLS
        ]
    )


def able() -> Iterator[tuple[str, str]]:
    """Every searcher with every space that it can search."""
    for space in SPACES:
        for kind in SEARCHERS:
            try:
                wire(experiment(kind, space, 0))
            except ConfigurationError as error:
                print(f"{space:<18} {kind:<14} {str(error).splitlines()[0]}", flush=True)
            else:
                yield kind, space


def run_all(out: Path, seeds: Sequence[int], kinds: Sequence[str], spaces: Sequence[str]) -> None:
    """All that is not in the results yet."""
    out.mkdir(parents=True, exist_ok=True)
    results = out / "results.jsonl"
    done = {(r["kind"], r["space"], r["seed"]) for r in read(out)}
    pairs = [(k, s) for k, s in able() if k in kinds and s in spaces]
    for seed in seeds:
        for kind, space in pairs:
            if (kind, space, seed) in done:
                continue
            folder = Path(tempfile.mkdtemp(prefix="which-searcher-"))
            try:
                found = search(wire(experiment(kind, space, seed)), folder)
            finally:
                shutil.rmtree(folder)
            row = {"kind": kind, "space": space, "seed": seed, **found}
            with results.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)


def read(out: Path) -> list[dict[str, Any]]:
    """The results so far."""
    path = out / "results.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def interval(values: Sequence[float]) -> tuple[float, float]:
    """A mean and half its 95 % interval over seeds (Student's t)."""
    found = np.array(values)
    if len(found) < 2:
        return float(found.mean()), float("nan")
    half = stats.t.ppf(0.975, len(found) - 1) * found.std(ddof=1) / len(found) ** 0.5
    return float(found.mean()), float(half)


def values_of(rows: Sequence[dict[str, Any]], key: str) -> list[float]:
    """What was measured; a searcher of one objective has no hypervolume."""
    return [row[key] for row in rows if row[key] is not None]


def least_of_random(known: Mapping[str, Sequence[dict[str, Any]]], key: str) -> float:
    """The lower end of random search's interval."""
    mean, half = interval(values_of(known["random"], key)) if "random" in known else (np.nan,) * 2
    return mean - half


def show(out: Path) -> None:
    """The table, a space after the other, the best first; `below`: than random's interval."""
    rows = read(out)
    for space in SPACES:
        mine = [r for r in rows if r["space"] == space]
        if not mine:
            continue
        known = {k: [r for r in mine if r["kind"] == k] for k in SEARCHERS}
        known = {k: found for k, found in known.items() if found}
        least = {key: least_of_random(known, key) for key in MEASURES}
        ranked = sorted(known, key=lambda k: -np.mean([r["held_out"] for r in known[k]]))
        print(f"\n**{space}** ({max(len(f) for f in known.values())} seeds)\n")
        print("| searcher | held-out mean | hypervolume | candidates | ask, ms | tell, ms | |")
        print("|---|---|---|---|---|---|---|")
        for kind in ranked:
            found = known[kind]
            mean, error = interval([r["held_out"] for r in found])
            volumes = values_of(found, "hypervolume")
            volume = "{:.3f} ± {:.3f}".format(*interval(volumes)) if volumes else ""
            told = [float(np.mean([r[key] for r in found])) for key in ("ask_ms", "tell_ms")]
            count = np.mean([r["candidates"] for r in found])
            below = [
                f"{name} below random"
                for key, name in MEASURES.items()
                if (values := values_of(found, key)) and np.mean(values) < least[key]
            ]
            print(
                f"| `{kind}` | {mean:.3f} ± {error:.3f} | {volume} | {count:.0f} "
                f"| {told[0]:.1f} | {told[1]:.1f} | {', '.join(below)} |"
            )


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("what", choices=["run", "show"])
    parser.add_argument("--out", type=Path, default=Path("runs/which_searcher"))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--kinds", nargs="+", default=list(SEARCHERS), choices=list(SEARCHERS))
    parser.add_argument("--spaces", nargs="+", default=list(SPACES), choices=list(SPACES))
    options = parser.parse_args()
    logging.getLogger("evomerge").setLevel(logging.ERROR)
    if options.what == "run":
        run_all(options.out, options.seeds, options.kinds, options.spaces)
    show(options.out)


if __name__ == "__main__":
    main()
