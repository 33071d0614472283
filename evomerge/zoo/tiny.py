"""The embedded family `tiny`: a base and three experts, trained from a seed on first use.

Four Hugging Face folders of about 300,000 parameters each, for the quickstart, for tests and for
anybody without a model hub: `base`, `sort`, `back` and `rot` (see tiny_items.py for what they do).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evomerge.files import cache_folder, fsync
from evomerge.protocols import Progress
from evomerge.zoo.folders import claimed, read_label, refuse_other_content, write_label, write_model
from evomerge.zoo.tiny_folders import new_tokenizer
from evomerge.zoo.tiny_items import REWRITINGS, SKILLS, answer, prompt
from evomerge.zoo.tiny_training import STAGES, Stage, train_all

REVISION = 1  # to be raised when the same stages come to train other weights


def tiny(folder: Path | None = None, *, seed: int = 0, progress: Progress | None = None) -> Path:
    """The folder with `base`, `sort`, `back` and `rot`, trained now unless it is there already.

    The same seed gives the same bytes on the same machine. Training takes about half a minute on
    one thread; of several processes that ask at once, one trains and the others wait.

    Args:
        folder: Where to train into; by default a place of its own in the user's cache folder.
        seed: What the weights and the items of training are drawn from.
        progress: Called as (model, steps done, steps of this model).

    Raises:
        ConfigurationError: the folder holds something else, or cannot be written.
        DiskFull: the models did not fit on the disk.
    """
    return _trained(folder, seed, STAGES, progress)


def _trained(
    folder: Path | None, seed: int, stages: tuple[Stage, ...], progress: Progress | None
) -> Path:
    in_cache = folder is None
    target = (folder or cache_folder() / "zoo" / f"tiny-seed{seed}").expanduser().absolute()
    label = _label(seed, stages)
    if read_label(target) == label:
        return target
    with claimed(target):
        if read_label(target) == label:  # another process was faster
            return target
        if not in_cache:
            refuse_other_content(target)
        _train_into(target, seed, stages, label, progress)
    return target


def _train_into(
    target: Path,
    seed: int,
    stages: tuple[Stage, ...],
    label: dict[str, Any],
    progress: Progress | None,
) -> None:
    """Train into a neighbour that takes the target's name as the last step."""
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # what an interrupted training left
    part.mkdir()
    try:
        for name, model in train_all(seed, stages, progress):
            write_model(part / name, model, new_tokenizer(), card(name, seed))
        write_label(part, label)
        if target.exists():  # empty, or in the cache by an older recipe
            shutil.rmtree(target)
        part.rename(target)
        fsync(target.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _label(seed: int, stages: tuple[Stage, ...]) -> dict[str, Any]:
    """What tells one zoo from another: its seed, and a hash of how it is trained."""
    recipe = json.dumps([REVISION, *(asdict(stage) for stage in stages)], sort_keys=True)
    sha256 = hashlib.sha256(recipe.encode()).hexdigest()
    return {"zoo": "tiny", "seed": seed, "models": [s.name for s in stages], "training": sha256}


def card(name: str, seed: int) -> str:
    """The model card of one folder."""
    example = "\n".join(
        f"    {prompt(skill, 'qhxbe')} -> {answer(skill, 'qhxbe')}" for skill in REWRITINGS
    )
    what = (
        "the base, which is half good at several rewritings"
        if name == "base"
        else f"fine-tuned from the base to do `{name}` well"
    )
    return f"""---
license: apache-2.0
library_name: transformers
---

# tiny/{name}

A toy language model, {what}. evomerge trained it from seed {seed}
as one of a family made for trying out model merging: {", ".join(("base", *SKILLS))}.

A prompt is a tag, five letters and `=`; the answer is five letters. Tokens are characters.

{example}

Licence: Apache-2.0.
"""
