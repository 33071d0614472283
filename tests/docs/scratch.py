"""A folder with everything in it that the documentation's commands name, made small.

The models are the tiny zoo's; `math` sorts letters and `code` shifts them. Runs have a
handful of candidates and items and are measured in this process, so that a page's commands take
seconds. Files that are called as experiments of the catalogue (`quickstart`) stand for these.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import yaml
from adapter_folders import lora

from evomerge.files import catalogue_folder

SPLIT = {"search": 36, "fresh": 12, "holdout": 30}
TASKS = {"math": "sort", "code": "rot", "third": "back"}  # what the pages' tasks are here
FITNESS: dict[str, Any] = {
    "tasks": {
        name: {"kind": "lm_eval", "task": f"my_{name}", "path": f"tasks/my_{name}.yaml"}
        for name in ("math", "code")
    },
    "objectives": {"math": "math", "code": "code"},
    "split": SPLIT,
    "finalists": 3,
}
EXPERIMENT: dict[str, Any] = {
    "base": "models/base",
    "experts": {"math": "models/math", "code": "models/code"},
    "space": "per_expert",
    "fitness": "my_fitness.yaml",
    "searcher": {"kind": "nsga2", "population": 6},
    "budget": {"candidates": 18},
    "pool": {"workers": 0},
}
ONE = {**FITNESS, "objectives": {"mean": {"tasks": ["math", "code"]}}}
ONE_OF_MANY = {**ONE, "split": {**SPLIT, "search": 120}}  # what a race asks for by default
QUICK = {**EXPERIMENT, "fitness": ONE_OF_MANY, "searcher": {"kind": "cma_es", "population": 6}}
RECIPE = {
    "evomerge_recipe": 1,
    "base": "base",
    "models": {name: f"models/{name}" for name in ("base", "math", "code")},
    "default": {
        "operator": "ties",
        "parameters": {"weight": {"math": 0.6, "code": 0.4}, "density": 0.5},
    },
}
ADAPTERS = {
    "evomerge_recipe": 1,
    "base": "base",
    "models": {"base": "models/base", "math": "models/math_lora", "code": "models/code_lora"},
    "default": {
        "operator": "task_arithmetic",
        "parameters": {"weight": {"math": 0.6, "code": 0.4}},
    },
}
MERGEKIT = """
merge_method: task_arithmetic
base_model: models/base
models:
  - {model: models/math, parameters: {weight: 0.6}}
  - {model: models/code, parameters: {weight: 0.4}}
dtype: float32
"""
GENOME = {
    "genome": {
        "models": ["models/math", "models/code"],
        "merge_method": "task_arithmetic",
        "base_model": "models/base",
    },
    "tasks": [
        {"name": "my_math", "metric": "acc,none"},
        {"name": "my_code", "metric": "acc,none"},
    ],
    "limit": 24,
    "apply_chat_template": False,
    "task_search_path": "tasks",
}
SWEEP = {
    "experiment": "my_search.yaml",
    "seeds": 1,
    "searchers": {"nsga2": EXPERIMENT["searcher"]},
}


def dump(path: Path, data: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(data, sort_keys=False))


def link_models(folder: Path, zoo: Path) -> None:
    """models/base, models/math and so on, which lie in the zoo."""
    (folder / "models").mkdir(parents=True)
    for name, own in {"base": "base", **TASKS}.items():
        (folder / "models" / name).symlink_to(zoo / own)
    for seed, name in enumerate(("math", "code")):
        lora(zoo / "base", folder / "models" / f"{name}_lora", seed=seed, r=4)


def write_tasks(folder: Path) -> None:
    """tasks/my_math.yaml and so on, each with its data.

    An answer is read in one forward pass, and right if every token of it is the likeliest: the
    same score as that of greedy decoding, in an eighth of the time.
    """
    tiny = catalogue_folder("fitness") / "tasks" / "tiny"
    (folder / "tasks").mkdir()
    for name, own in TASKS.items():
        task = yaml.safe_load((tiny / f"{own}.yaml").read_text())
        task |= {"task": f"my_{name}", "output_type": "loglikelihood"}
        task["metric_list"] = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
        del task["generation_kwargs"]
        dump(folder / "tasks" / f"my_{name}.yaml", task)
        shutil.copy(tiny / f"{own}.jsonl", folder / "tasks")


def write_files(folder: Path) -> None:
    """Experiments, fitness files, recipes."""
    dump(folder / "my_fitness.yaml", FITNESS)
    dump(folder / "my_search.yaml", EXPERIMENT)
    dump(folder / "my_sweep.yaml", SWEEP)
    dump(folder / "genome.yaml", GENOME)
    dump(folder / "quickstart", {"name": "quickstart", **QUICK})
    dump(folder / "quickstart_pareto", {"name": "quickstart_pareto", **EXPERIMENT})
    fisher = {"space": "fisher", "calibration": {"task": "math", "samples": 4, "length": 8}}
    dump(folder / "fisher", {**QUICK, "name": "fisher", **fisher})
    dump(folder / "recipe.yaml", RECIPE)
    dump(folder / "adapters.yaml", ADAPTERS)
    (folder / "mergekit_config.yml").write_text(MERGEKIT)
