"""The embedded family `tiny`: a base and three experts, trained from a seed on first use.

Four Hugging Face folders of about 300,000 parameters each, for the quickstart, for tests and for
anybody without a model hub: `base`, `sort`, `back` and `rot` (see tiny_items.py for what they do).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evomerge.files import cache_folder
from evomerge.protocols import Progress
from evomerge.zoo.folders import made_whole, write_model
from evomerge.zoo.tiny_folders import new_tokenizer
from evomerge.zoo.tiny_items import SKILLS, examples
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
    stages = STAGES
    target = (folder or cache_folder() / "zoo" / f"tiny-seed{seed}").expanduser().absolute()

    def write(part: Path) -> None:
        for name, model in train_all(seed, stages, progress):
            write_model(part / name, model, new_tokenizer(), card(name, seed))

    return made_whole(target, _label(seed, stages), write, in_cache=folder is None)


def _label(seed: int, stages: tuple[Stage, ...]) -> dict[str, Any]:
    """What tells one zoo from another: its seed, and a hash of how it is trained."""
    recipe = json.dumps([REVISION, *(asdict(stage) for stage in stages)], sort_keys=True)
    sha256 = hashlib.sha256(recipe.encode()).hexdigest()
    return {"zoo": "tiny", "seed": seed, "models": [s.name for s in stages], "training": sha256}


def card(name: str, seed: int) -> str:
    """The model card of one folder."""
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

{examples()}

Licence: Apache-2.0.
"""
