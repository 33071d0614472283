"""The tasks of the skills: their items beside lm-eval's task files, in the family's folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from evomerge.files import catalogue_folder, write_text
from evomerge.fitness.split import Split, split_items
from evomerge.records import ItemId
from evomerge.zoo.smollm2.items import Data, task_questions

# Items of each task, as fitness/smollm2.yaml has them.
SEARCH, FRESH, HOLDOUT = 300, 200, 500


def write_tasks(folder: Path, data: Data, skills: Iterable[str]) -> None:
    """Write the skills' items as JSON lines, and the catalogue's task files beside them."""
    templates = catalogue_folder("fitness") / "tasks" / "smollm2"
    folder.mkdir(exist_ok=True)
    for skill in skills:
        lines = [
            json.dumps({"prompt": q.prompt, "choices": q.choices, "gold": q.gold})
            for q in task_questions(skill, data)
        ]
        write_text(folder / f"{skill}.jsonl", "".join(f"{line}\n" for line in lines))
        shutil.copyfile(templates / f"{skill}.yaml", folder / f"{skill}.yaml")


def split(skill: str, num_items: int) -> Split:
    """How a search with fitness/smollm2*.yaml splits the items."""
    return split_items({skill: range(num_items)}, SEARCH, FRESH, HOLDOUT, seed=0)


def holdout_items(skill: str, num_items: int) -> Sequence[ItemId]:
    """The items that report, and serve no choice."""
    return split(skill, num_items).holdout[skill]
