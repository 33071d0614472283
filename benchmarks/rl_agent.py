"""The agent that learns by reinforcement, beside random search: on a toy, and on real tiny merges.

    python benchmarks/rl_agent.py toy [--seeds 10]
    python benchmarks/rl_agent.py cost
    python benchmarks/rl_agent.py merges --out runs/rl_agent --space layer_choice --seeds 0 1 2 3
    python benchmarks/rl_agent.py show --out runs/rl_agent

`toy`: 12 layers, each from one of 4 sources. A layer's gain from a source is U(0, 1), and every two
neighbours add U(-1/4, 1/4) to it; the sum is scaled so that the worst choice is 0 and the optimum
1, both found by dynamic programming. 700 episodes. The target is the best candidate at .97 or
above; what the greedy policy makes is printed beside it. The settings were chosen on other toys
(seeds 100 to 115). `paper` has the paper's settings.

`merges`: the tiny family on 32 fixed items of each task, 300 candidates; then the best four and the
agent's own genome on 100 fresh items of each task, and the chosen one on the holdout.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from evomerge.documents import Document, parse
from evomerge.experiment.config import ExperimentConfig, parse_experiment, read_experiment
from evomerge.experiment.run import run_experiment
from evomerge.files import catalogue_folder
from evomerge.genes import Choice
from evomerge.records import Estimate, Evaluation, Facts, Genome, Score
from evomerge.run import Run
from evomerge.searchers import make_searcher

LAYERS, SOURCES, EPISODES, TARGET = 12, 4, 700, 0.97
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "random": ("random", {}),
    "paper": (
        "rl_agent",
        {
            "population": 4,
            "epochs": 40,
            "actor_rate": 3e-4,
            "critic_rate": 1e-3,
            "entropy": 1e-4,
        },
    ),
    "paper, 16 episodes an update": (
        "rl_agent",
        {"epochs": 40, "actor_rate": 3e-4, "critic_rate": 1e-3, "entropy": 1e-4},
    ),
    "default": ("rl_agent", {}),
}
MERGES = {"random": {"kind": "random"}, "rl_agent": {"kind": "rl_agent"}}
CANDIDATES, ITEMS, FINALISTS = 300, 32, 4
SPLIT = {"search": ITEMS, "fresh": 100, "holdout": 300}


class Toy:
    """A layer choice whose optimum is known."""

    def __init__(self, seed: int, num_layers: int = LAYERS) -> None:
        generator = np.random.default_rng([seed, 99])
        self.gains = generator.random((num_layers, SOURCES))
        self.pairs = 0.5 * (generator.random((num_layers - 1, SOURCES, SOURCES)) - 0.5)
        self.best, self.worst = self._extreme(1.0), self._extreme(-1.0)

    def _extreme(self, sign: float) -> float:
        """The largest (sign 1) or smallest (-1) sum, layer by layer."""
        best = sign * self.gains[0]  # of all that end with each source
        for gain, pair in zip(self.gains[1:], self.pairs, strict=True):
            best = (best[:, None] + sign * pair).max(axis=0) + sign * gain
        return sign * float(best.max())

    def of(self, chosen: NDArray[np.intp]) -> float:
        """The value of one source for each layer."""
        total = self.gains[np.arange(len(chosen)), chosen].sum()
        total += self.pairs[np.arange(len(chosen) - 1), chosen[:-1], chosen[1:]].sum()
        return (float(total) - self.worst) / (self.best - self.worst)

    def __call__(self, genome: Genome) -> float:
        """The value of a genome."""
        return self.of((np.array(genome) * SOURCES).astype(np.intp))

    @property
    def space(self) -> Any:
        """As much of a search space as a searcher sees."""
        sources = tuple(f"source_{i}" for i in range(SOURCES))
        return SimpleNamespace(
            genes=tuple(Choice(f"layer_{i}", sources) for i in range(len(self.gains))),
            constraints=(),
            sample=lambda generator: generator.random(len(self.gains)).tolist(),
        )


class Found(NamedTuple):
    """The best candidate, the greedy policy's value, and the searcher's time."""

    best: float
    greedy: float
    ms_per_candidate: float


def search(
    toy: Any, value: Callable[[Genome], float], seed: int, kind: str, options: Any, episodes: int
) -> Found:
    """One search with so many candidates."""
    searcher = make_searcher(kind, toy.space, seed, Facts(), options)
    best, spent, told = 0.0, 0.0, 0
    while told < episodes:
        start = time.process_time()
        genomes = searcher.ask(min(searcher.population, episodes - told))
        spent += time.process_time() - start
        evaluations = [
            Evaluation(told + i, genome, Score({"score": Estimate(value(genome), 0.0, 1)}))
            for i, genome in enumerate(genomes)
        ]
        best = max(best, *(e.score.values[0] for e in evaluations if e.score))
        told += len(genomes)
        start = time.process_time()
        searcher.tell(evaluations)
        spent += time.process_time() - start
    greedy = searcher.recommend()
    return Found(best, value(greedy) if greedy else float("nan"), 1e3 * spent / told)


def run_toy(seeds: int) -> None:
    """The table of the toy."""
    print(f"toy: {LAYERS} layers x {SOURCES} sources, {EPISODES} episodes, {seeds} seeds")
    print(f"{'':<30}{'best':>8}{'worst seed':>12}{'greedy':>8}{'worst seed':>12}  best >= {TARGET}")
    for name, (kind, options) in SETTINGS.items():
        toys = [Toy(seed) for seed in range(seeds)]
        found = [search(toy, toy, i, kind, options, EPISODES) for i, toy in enumerate(toys)]
        best, greedy, _ = np.array(found).T
        reached = f"{(best >= TARGET).sum()} of {seeds}"
        print(
            f"{name:<30}{best.mean():>8.3f}{best.min():>12.3f}{greedy.mean():>8.3f}"
            f"{greedy.min():>12.3f}  {reached}",
            flush=True,
        )


def run_cost() -> None:
    """What an agent costs, by genes."""
    print("processor time in ask and tell, ms a candidate (one thread)")
    for num_layers in (12, 50, 200):
        toy = Toy(0, num_layers)
        found = {n: search(toy, toy, 0, *SETTINGS[n], 160) for n in ("default", "paper")}
        told = ", ".join(f"{name} {f.ms_per_candidate:.1f}" for name, f in found.items())
        print(f"{num_layers:>4} genes: {told}", flush=True)


def experiment(space: str, searcher: dict[str, Any], seed: int) -> ExperimentConfig:
    """The quickstart with another space and searcher, on few fixed items."""
    base = read_experiment(catalogue_folder("experiments") / "quickstart.yaml")
    fitness = {
        **base.fitness.model_dump(),
        "estimator": {"kind": "full"},
        "split": SPLIT,
        "finalists": FINALISTS,
    }
    data = {
        **base.model_dump(exclude={"space", "fitness", "searcher"}),
        "space": str(catalogue_folder("search_spaces") / f"{space}.yaml"),
        "searcher": searcher,
        "budget": {"candidates": CANDIDATES},
        "seed": seed,
        "pool": {"kind": "local", "workers": 0},
    }
    config = parse_experiment(Document(data | {"fitness": fitness}))
    return parse(ExperimentConfig, Document(dict(config)))


def run_merges(out: Path, space: str, seeds: list[int]) -> None:
    """Both searchers from each seed; what is in the results file already is not done again."""
    out.mkdir(parents=True, exist_ok=True)
    results = out / "results.jsonl"
    lines = results.read_text().splitlines() if results.exists() else []
    done = {(row["space"], row["searcher"], row["seed"]) for row in map(json.loads, lines)}
    for seed in seeds:
        for name, searcher in MERGES.items():
            if (space, name, seed) in done:
                continue
            start = time.monotonic()
            folder = out / f"{space}-{name}-{seed}"
            run = Run(run_experiment(experiment(space, searcher, seed), folder))
            final = run.status()["final"]
            references = [r["holdout_mean"]["value"] for r in final["references"].values()]
            row = {
                "space": space,
                "searcher": name,
                "seed": seed,
                "holdout": final["best"]["holdout_mean"]["value"],
                "best_reference": max(references),
                "seconds": time.monotonic() - start,
            }
            with results.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)


def show(out: Path) -> None:
    """Held-out means of both searchers, and the interval of the paired difference."""
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    print(f"real merges of the tiny family: {CANDIDATES} candidates on {ITEMS} items a task, fixed")
    for space in sorted({row["space"] for row in rows}):
        found = {(r["searcher"], r["seed"]): r["holdout"] for r in rows if r["space"] == space}
        seeds = sorted(s for n, s in found if n == "random" and ("rl_agent", s) in found)
        values = {name: np.array([found[name, seed] for seed in seeds]) for name in MERGES}
        told = ", ".join(f"{name} {v.mean():.3f}" for name, v in values.items())
        difference = values["rl_agent"] - values["random"]
        spread = difference.std(ddof=1) / len(seeds) ** 0.5
        half = float(stats.t.ppf(0.975, len(seeds) - 1)) * spread
        best = np.mean([row["best_reference"] for row in rows if row["space"] == space])
        print(f"{space}, {len(seeds)} seeds: held-out mean {told} (best reference {best:.3f})")
        print(f"  difference {difference.mean():+.3f} +- {half:.3f} (95 %, paired by seed)")


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("what", choices=["toy", "cost", "merges", "show"])
    parser.add_argument("--out", type=Path, default=Path("runs/rl_agent"))
    parser.add_argument("--space", default="layer_choice")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    options = parser.parse_args()
    logging.getLogger("evomerge").setLevel(logging.ERROR)
    if options.what == "toy":
        run_toy(len(options.seeds))
    elif options.what == "cost":
        run_cost()
    elif options.what == "merges":
        run_merges(options.out, options.space, options.seeds)
    else:
        show(options.out)


if __name__ == "__main__":
    main()
