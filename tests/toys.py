"""Searches that cost milliseconds, runs in forked children, and what of a run must be equal."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evomerge.documents import Document
from evomerge.experiment import run as runs
from evomerge.experiment.config import ExperimentConfig, parse_experiment
from evomerge.experiment.wire import InMemory
from evomerge.fitness.python_task import PythonFitness
from evomerge.ledger import Ledger
from evomerge.records import Candidate, Evaluation, Outcome
from evomerge.run import Run

NUM_ITEMS = 44
SPLIT = {"search": 24, "fresh": 10, "holdout": 10}
SEARCHERS: dict[str, dict[str, Any]] = {
    "random": {"kind": "random", "population": 8},
    "cma_es": {"kind": "cma_es", "population": 8},
    "nsga2": {"kind": "nsga2", "population": 8},
}
ESTIMATORS: dict[str, dict[str, Any]] = {
    "full": {"kind": "full"},
    "racing": {"kind": "racing", "rungs": [6, 12, 24], "keep": 0.4, "incumbents": 2},
    "shrinkage": {
        "kind": "racing",
        "rungs": [4, 8],
        "estimator": {"kind": "shrinkage", "of": {"kind": "stratified"}},
    },
}


def states() -> dict[str, dict[str, Tensor]]:
    """A base and two experts of a kilobyte, with two layers."""
    generator = torch.Generator().manual_seed(0)

    def state() -> dict[str, Tensor]:
        names = ("layers.0.weight", "layers.1.weight", "head.weight")
        return {name: torch.randn(8, generator=generator) for name in names}

    return {"base": state(), "left": state(), "right": state()}


PROBES = torch.randn(2, NUM_ITEMS, 24, generator=torch.Generator().manual_seed(1))


def fitness(state: dict[str, Tensor], fail: bool = True) -> dict[str, Any]:
    """0/1 answers to two tasks; about one candidate in twelve cannot be measured."""
    flat = torch.cat([state[name] for name in sorted(state)]).double()
    if fail and int(float(flat.square().sum()) * 1e6) % 97 in range(40, 48):
        raise ValueError("a toy that breaks now and then")
    answers = (PROBES.double() @ flat > 1.5).float().numpy()
    return {"first": answers[0], "second": answers[1]}


@dataclass(frozen=True)
class Toy:
    """A search of toy models."""

    searcher: str = "random"
    estimator: str = "full"
    budget: int = 40
    seed: int = 3
    fitness: Callable[..., Any] = fitness
    keys: dict[str, Any] = field(default_factory=dict)  # of the experiment: in_flight, cohort

    def config(self, budget: int | dict[str, Any] | None = None) -> ExperimentConfig:
        names = ["first", "second"]
        several = self.searcher != "cma_es"
        chosen = self.budget if budget is None else budget
        return parse_experiment(
            Document(
                {
                    "base": "memory:base",
                    "experts": {"left": "memory:left", "right": "memory:right"},
                    "space": {
                        "kind": "weights",
                        "operator": "task_arithmetic",
                        "search": {"weight": {"per": ["expert", "layer"], "range": [0, 1.2]}},
                    },
                    "fitness": {
                        "tasks": {name: {"kind": "python"} for name in names},
                        "objectives": {n: n for n in names}
                        if several
                        else {"mean": {"tasks": names}},
                        "estimator": ESTIMATORS[self.estimator],
                        "split": SPLIT,
                        "finalists": 3,
                    },
                    "searcher": SEARCHERS[self.searcher],
                    "budget": {"candidates": chosen} if isinstance(chosen, int) else chosen,
                    "seed": self.seed,
                    "pool": {"workers": 0},
                    **self.keys,
                }
            )
        )

    def given(self) -> InMemory:
        python = PythonFitness(self.fitness, "state_dict")
        zeros = torch.zeros(NUM_ITEMS)
        tasks = python.tasks({"first": zeros, "second": zeros})
        models = states()
        return InMemory(models, Builder(models["base"]), tasks)

    def run(
        self,
        out: Path,
        budget: int | dict[str, Any] | None = None,
        watchers: tuple[Any, ...] = (),
    ) -> Path:
        """Run, or go on, in this process."""
        return runs.run_experiment(
            self.config(budget), out, in_memory=self.given(), watchers=watchers
        )

    def open(self, out: Path) -> Run:
        return Run(out, in_memory=self.given())


@dataclass(frozen=True)
class Builder:
    """Makes the module that holds a state dict."""

    state: dict[str, Tensor]

    def __call__(self) -> torch.nn.Module:
        from evomerge.merging.bare import BareModule

        return BareModule(self.state)


class Count:
    """A watcher that counts the jobs which came back."""

    def __init__(self) -> None:
        self.jobs = 0

    def measured(self, outcome: Outcome) -> None:
        self.jobs += 1

    def asked(self, candidates: list[Candidate]) -> None: ...
    def told(self, evaluations: list[Evaluation]) -> None: ...
    def progress(self, what: str, done: int, total: int) -> None: ...
    def started(self, parts: Any, ledger: Any) -> None: ...
    def resumed(self, found: Any) -> None: ...
    def phase(self, name: str) -> None: ...
    def warning(self, text: str) -> None: ...


# --- children that are killed ---------------------------------------------------------------------


def start_fork(action: Callable[[], Any], failpoint: str = "") -> int:
    """Run in a forked child; its process id.

    A fork needs no imports anew, and what it does to itself leaves the tests alone.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.environ["EVOMERGE_FAILPOINT"] = failpoint
            action()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def forked(action: Callable[[], Any], failpoint: str = "", kill_after_s: float = 0.0) -> int:
    """Run in a forked child to its end; its exit code, or minus the signal that ended it."""
    child = start_fork(action, failpoint)
    if kill_after_s:
        time.sleep(kill_after_s)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# --- what must be equal ---------------------------------------------------------------------------


def outcome_of(folder: Path) -> dict[str, Any]:
    """All of a run that an interruption must not change."""
    ledger = Ledger(folder / runs.LEDGER, read_only=True)
    try:
        return {
            "digest": ledger.digest(),
            "evaluations": ledger.evaluations(),
            "final": ledger.final(),
            "genomes": {id_: c.genome for id_, c in ledger.candidates.items()},
            "asked": ledger.asked_ids(),
            "failures": {
                id_: failure
                for id_, c in ledger.candidates.items()
                if (failure := ledger.measurements.failure(c.fingerprint, id_)) is not None
            },
            "item_evaluations": ledger.measurements.item_evaluations,
        }
    finally:
        ledger.close()


def measured_twice(folder: Path) -> int:
    """Item evaluations that the ledger holds more than once."""
    ledger = Ledger(folder / runs.LEDGER, read_only=True)
    try:
        jobs = [data for _, _, data in ledger.events("measured") if data["failure"] is None]
        return sum(data["num_items"] for data in jobs) - ledger.measurements.item_evaluations
    finally:
        ledger.close()
