"""What is searched: experts, TIES with a weight and a density for each, tasks and their items."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.documents import Document
from evomerge.experiment.config import ExperimentConfig, parse_experiment
from evomerge.files import catalogue_folder
from evomerge.fitness import make_task
from evomerge.fitness.split import Split, split_items
from evomerge.zoo import zoo_path

OWN_HOLDOUT = 8  # items of each task for evomerge's own report, which is not what is compared


@dataclass(frozen=True)
class Case:
    """A family of models and how much of its tasks a search sees.

    seeds: of families and searches. seconds: for each search. finale_s: of these, what evomerge's
    choice by fresh items takes. search, fresh, holdout: items of each task. rungs, finalists: of
    the race.
    """

    family: str
    experts: tuple[str, ...]
    batch_size: int
    metric: str
    seeds: tuple[int, ...]
    seconds: float
    finale_s: float
    search: int
    fresh: int
    holdout: int
    rungs: tuple[int, ...]
    finalists: int

    def model(self, name: str, seed: int) -> str:
        """A model as files name it."""
        return f"zoo:{self.family}@{seed}/{name}"

    def paths(self, seed: int) -> dict[str, str]:
        """Name -> folder, the base first."""
        return {n: str(zoo_path(self.model(n, seed))) for n in ("base", *self.experts)}

    def task_name(self, expert: str) -> str:
        """What lm-eval calls an expert's task."""
        return f"evomerge_{self.family}_{expert}"

    @property
    def task_folder(self) -> Path:
        """Where the tasks and their data are."""
        if self.family == "tiny":
            return catalogue_folder("fitness") / "tasks" / "tiny"
        return zoo_path(f"zoo:{self.family}/tasks/{self.experts[0]}.yaml").parent

    def entries(self) -> dict[str, dict[str, Any]]:
        """Task -> its entry in a fitness file."""
        return {
            expert: {
                "kind": "lm_eval",
                "task": self.task_name(expert),
                "path": str(self.task_folder / f"{expert}.yaml"),
                "batch_size": self.batch_size,
            }
            for expert in self.experts
        }

    def split(self) -> Split:
        """The items of everybody's search, evomerge's fresh ones, and the holdout of all."""
        tasks = {name: make_task(name, entry).items for name, entry in self.entries().items()}
        return split_items(tasks, self.search, self.fresh, self.holdout, 0)

    def space(self) -> dict[str, Any]:
        """The merges of mergekit's TIES: weights are divided by their sum."""
        return {
            "kind": "weights",
            "operator": "ties",
            "search": {
                "weight": {"per": ["expert"], "range": [0, 1]},
                "density": {"per": ["expert"], "range": [0, 1]},
            },
            "fixed": {"normalize": True, "compat": "mergekit"},
        }

    def experiment(
        self, seed: int, *, races: bool, candidates: int, dtype: str = "float32"
    ) -> ExperimentConfig:
        """The experiment of evomerge.

        races: candidates race, and fresh items choose among the best. Otherwise everybody answers
            all search items and these choose, as in the other tools.
        """
        estimator: Mapping[str, Any] = {"kind": "full"}
        if races:
            estimator = {"kind": "racing", "rungs": list(self.rungs), "keep": 0.33, "incumbents": 1}
        fitness = {
            "tasks": self.entries(),
            "objectives": {"mean": {"tasks": list(self.experts)}},
            "estimator": dict(estimator),
            "split": {
                "search": self.search,
                "fresh": self.fresh if races else 0,
                "holdout": OWN_HOLDOUT,
            },
            "finalists": self.finalists if races else 1,
        }
        count = len(self.experts)
        data = {
            "base": self.model("base", seed),
            "experts": {name: self.model(name, seed) for name in self.experts},
            "space": self.space(),
            "fitness": fitness,
            "searcher": {"kind": "cma_es", "x0": [1 / count] * count + [1.0] * count},
            "budget": {"candidates": candidates},
            "seed": seed,
            "pool": {"kind": "local", "workers": 0},
            "dtype": dtype,
        }
        if not races:
            data |= {
                "in_flight": 1,
                "cohort": 1,
            }  # told one by one: the end of the time cuts off little
        return parse_experiment(Document(data))


CASES = {
    "tiny": Case(
        family="tiny",
        experts=("sort", "back", "rot"),
        batch_size=256,
        metric="exact_match,none",
        seeds=(0, 1, 2),
        seconds=60,
        finale_s=4,
        search=240,
        fresh=240,
        holdout=544,
        rungs=(12, 36, 96),
        finalists=4,
    ),
    "smollm2": Case(
        family="smollm2",
        experts=("sentiment", "domain", "sums"),
        batch_size=16,
        metric="acc,none",
        seeds=(0,),
        seconds=360,
        finale_s=50,
        search=60,
        fresh=60,
        holdout=500,
        rungs=(8, 24, 60),
        finalists=3,
    ),
}
