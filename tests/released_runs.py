"""Runs that are kept as they were made by a released version: their models, task and experiments.

Nothing here may ever change: tests/assets/ledgers was made with it, and is resumed with it. A new
release adds its own: `python tests/released_runs.py` makes the folder of the installed version.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from evomerge.documents import Document
from evomerge.errors import CandidateError
from evomerge.experiment import run as runs
from evomerge.experiment.config import parse_experiment
from evomerge.experiment.wire import InMemory
from evomerge.ledger import LEDGER, Ledger
from evomerge.records import Responses
from evomerge.run import Run

ASSETS = Path(__file__).parent / "assets" / "ledgers"
NAMES = ("layers.0.weight", "layers.1.weight", "head.weight")
NUM_ITEMS = 24
KINDS: dict[str, dict[str, Any]] = {
    "finished": {"searcher": {"kind": "nsga2", "population": 4}, "budget": 12},
    "stopped": {"searcher": {"kind": "cma_es", "population": 4}, "budget": 12},
}
LONGER = 20  # what all of them are extended to


class ReleasedTask:
    """Scores, margins and texts; some candidates fail, and some items of others."""

    forward_s = 0.0
    worst = 0.0

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def items(self) -> Sequence[int]:
        return range(NUM_ITEMS)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"released {self.name}".encode()).hexdigest()

    def respond(self, model: Any, items: Sequence[int]) -> Responses:
        state = model.module.state_dict()
        flat = torch.cat([state[name] for name in NAMES]).double().numpy()
        kind = int(float((flat**2).sum()) * 1e3) % 13
        if kind == 5:
            raise CandidateError("one in thirteen fails")
        ids = np.asarray(items, np.int64)
        turns = np.arange(1, flat.size + 1)
        waves = np.sin(np.outer(ids + 1 + len(self.name), turns))
        margin = (waves @ flat).astype(np.float32)
        score = (margin > 1).astype(np.float32)
        failures = {int(item): "it is odd" for item in ids if kind == 7 and item % 8 == 3}
        lost = np.isin(ids, list(failures))
        score[lost], margin[lost] = 0.0, np.nan
        texts = tuple(f"{self.name} {item}: ü" for item in ids) if self.name == "second" else None
        return Responses(self.name, ids, {"score": score, "margin": margin}, texts, failures)


def module_of(models: Path) -> torch.nn.Module:
    """What the tensors fit into."""
    from evomerge.merging.bare import BareModule

    return BareModule(load_file(models / "base.safetensors"))


def experiment(kind: str, models: Path, budget: int | None = None) -> Any:
    """The experiment of a kind of run."""
    names = ["first", "second"]
    given = dict(KINDS[kind])
    candidates = given.pop("budget") if budget is None else budget
    given.pop("budget", None)
    one = {"mean": {"tasks": names}}
    several = {name: name for name in names}
    return parse_experiment(
        Document(
            {
                "base": str(models / "base.safetensors"),
                "experts": {n: str(models / f"{n}.safetensors") for n in ("left", "right")},
                "space": {
                    "kind": "weights",
                    "operator": "task_arithmetic",
                    "search": {"weight": {"per": ["expert", "layer"], "range": [0, 1.2]}},
                },
                "fitness": {
                    "tasks": {name: {"kind": "python"} for name in names},
                    "objectives": one if kind == "stopped" else several,
                    "estimator": {"kind": "racing", "rungs": [4, 12], "keep": 0.5},
                    "split": {"search": 12, "fresh": 4, "holdout": 8},
                    "finalists": 2,
                },
                "budget": {"candidates": candidates},
                "seed": 5,
                "pool": {"workers": 0},
                **given,
            }
        )
    )


def given(models: Path) -> InMemory:
    """What stands in no file."""
    tasks = {name: ReleasedTask(name) for name in ("first", "second")}
    return InMemory(build=lambda: module_of(models), python_tasks=tasks)


def go_on(kind: str, out: Path, models: Path, budget: int | None = None) -> Run:
    """Run, resume or extend it, without pictures."""
    drawn, runs.write_pictures = runs.write_pictures, lambda *_: []
    try:
        runs.run_experiment(experiment(kind, models, budget), out, in_memory=given(models))
    finally:
        runs.write_pictures = drawn
    return Run(out, in_memory=given(models))


def facts(run: Run) -> dict[str, Any]:
    """What must still be so, as JSON."""
    final = run.ledger.final()
    evaluations = run.ledger.evaluations()
    return {
        "digest": run.ledger.digest(),
        "candidates": len(evaluations),
        "failed": sorted(e.id for e in evaluations.values() if e.failure is not None),
        "failed_items": run.ledger.num_failed_items,
        "item_evaluations": run.ledger.item_evaluations,
        "best": None if final is None else final["best"]["candidate"],
        "front": None if final is None else [row["candidate"] for row in final["front"]],
    }


def _stopped_run(kind: str, out: Path, models: Path) -> None:
    """Kill it while the second generation is measured."""
    child = os.fork()
    if child == 0:
        os.environ["EVOMERGE_FAILPOINT"] = "result.after_commit:40"
        go_on(kind, out, models)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == -signal.SIGKILL, code


def make(folder: Path) -> None:
    """The runs of the installed version, and what becomes of them."""
    models = folder / "models"
    models.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for name in ("base", "left", "right"):
        state = {key: torch.randn(8, generator=generator) for key in NAMES}
        save_file(state, models / f"{name}.safetensors")
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as scratch:
            out = Path(scratch) / "run"
            if kind == "stopped":
                _stopped_run(kind, out, models)
            else:
                go_on(kind, out, models)
            Ledger(out / LEDGER).close()  # SQLite's log goes into it
            (folder / kind).mkdir()
            for name in (LEDGER, runs.EXPERIMENT, "run.lock"):
                shutil.copy(out / name, folder / kind / name)
            expected = {"now": facts(Run(out, in_memory=given(models)))}
            run = go_on(kind, out, models)
            expected["resumed"] = facts(run)
            expected["best"] = {name: tensor.tolist() for name, tensor in run.merge().items()}
            expected["extended"] = facts(go_on(kind, out, models, LONGER))
            text = json.dumps(expected, indent=1)
            (folder / kind / "expected.json").write_text(text + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    target = ASSETS / version("evomerge")
    if target.exists():
        sys.exit(f"{target} is there; what was released is not made again")
    make(target)
