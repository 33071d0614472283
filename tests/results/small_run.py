"""An experiment on the tiny family that takes seconds: few items, measured in the driver."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from evomerge.files import catalogue_folder

SPLIT = {"search": 24, "fresh": 12, "holdout": 30}


def write_experiment(folder: Path, zoo: Path, **changes: Any) -> Path:
    """An experiment file with a fitness file beside it; `changes` may hold keys of both."""
    tasks = catalogue_folder("fitness") / "tasks" / "tiny"
    fitness = {
        "tasks": {
            name: {"task": f"evomerge_tiny_{name}", "path": str(tasks / f"{name}.yaml")}
            for name in ("sort", "back")
        },
        "objectives": {"mean": {"tasks": ["sort", "back"]}},
        "split": SPLIT,
        "finalists": 3,
    }
    experiment = {
        "base": str(zoo / "base"),
        "experts": {"sort": str(zoo / "sort"), "back": str(zoo / "back")},
        "space": "per_expert",
        "fitness": "fitness.yaml",
        "searcher": {"kind": "random", "population": 6},
        "budget": {"candidates": 12},
        "pool": {"workers": 0},
    }
    for key, value in changes.items():
        target = fitness if key in {*fitness, "select", "estimator"} else experiment
        target[key] = value
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "fitness.yaml").write_text(yaml.safe_dump(fitness, sort_keys=False))
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(experiment, sort_keys=False))
    return path
