"""Checks a YAML block of the documentation with the parser that reads such files.

What a block is, is seen from its keys, or said before it: `<!-- yaml: KIND -->`. A fragment is put
into a complete file first. KINDs:

    experiment, fitness, space, sweep, recipe, mergekit     whole files, or some of their keys
    tasks, task, experts, objectives, space:KIND            what stands below such a key
    one a line                                               each line is a fragment by itself
    other                                                    YAML of another program: parsed alone
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import scratch
import yaml
from blocks import Block

from evomerge.documents import Document, parse, read_yaml
from evomerge.experiment.config import ExperimentConfig, parse_experiment
from evomerge.experiment.mergekit_file import is_mergekit
from evomerge.experiment.recipes import read_recipe
from evomerge.experiment.sweep import SweepConfig
from evomerge.fitness.config import FitnessConfig, read_fitness
from evomerge.recipe import Recipe
from evomerge.search_spaces import SPACES, parse_space


def check(block: Block, folder: Path) -> None:
    """Read a block as the program does, from a file in `folder`.

    Raises:
        ConfigurationError: with what is wrong there.
        ValueError: it is nothing that evomerge reads.
    """
    kind = block.marks.get("yaml", "")
    if kind == "one a line":
        for line in block.text.splitlines():
            if line.strip():
                _check(line + "\n", _kind_of(yaml.safe_load(line), block), folder)
        return
    data = yaml.safe_load(block.text)
    _check(block.text, kind or _kind_of(data, block), folder)


def _kind_of(data: Any, block: Block) -> str:
    """What it is, by its keys."""
    keys = set(data) if isinstance(data, Mapping) else set()
    if is_mergekit(data):
        return "mergekit"
    if "evomerge_recipe" in keys:
        return "recipe"
    if data.get("kind") in SPACES:
        return "space"
    if "genome" in keys:
        return "experiment"
    if {"experiment", "seeds"} <= keys:
        return "sweep"
    read_by = {"experiment": ExperimentConfig, "fitness": FitnessConfig, "recipe": Recipe}
    for kind, config in read_by.items():
        if keys and keys <= set(config.model_fields):
            return kind
    raise ValueError(f"{block.where}: say what it is: <!-- yaml: KIND -->, see yaml_blocks.py")


def _check(text: str, kind: str, folder: Path) -> None:
    path = folder / "block_of_a_page.yaml"
    kind, _, more = kind.partition(":")
    path.write_text(text)
    document = read_yaml(path)
    data: Any = document.data
    if kind == "experiment":
        whole = data if "genome" in data else {**scratch.EXPERIMENT, **data}
        parse_experiment(Document(whole, path))
    elif kind == "fitness":
        read_fitness(Document(_whole_fitness(data), path))
    elif kind in ("tasks", "task"):
        tasks = {"one": data} if kind == "task" else data
        read_fitness(Document(_whole_fitness({"tasks": tasks}), path))
    elif kind == "objectives":
        read_fitness(Document({**scratch.FITNESS, "objectives": data}, path))
    elif kind == "space":
        parse_space(Document({"kind": more, **data} if more else data, path))
    elif kind == "experts":
        parse_experiment(Document({**scratch.EXPERIMENT, "experts": data}, path))
    elif kind == "sweep":
        parse(SweepConfig, document)
    elif kind in ("recipe", "mergekit"):
        if kind == "recipe" and "evomerge_recipe" not in data:
            scratch.dump(path, {**scratch.RECIPE, **data})
        read_recipe(path)
    elif kind != "other":
        raise ValueError(f"unknown kind of YAML {kind!r}: see yaml_blocks.py")


def _whole_fitness(data: dict[str, Any]) -> dict[str, Any]:
    """A fragment with an objective for each of its tasks; or over the tasks of the scratch."""
    if "tasks" in data and "objectives" not in data:
        data = {**data, "objectives": {name: name for name in data["tasks"]}}
    return {**scratch.FITNESS, **data}
