"""The family `tiny_run`: sixteen checkpoints of one training run, trained from a seed on first use.

From `zoo:tiny/base` one run goes on whose mixture moves from one skill to the next, so a checkpoint
has what it has just practised and loses what it has not: the trade-offs that Khalifa et al. 2024
(arXiv:2412.04144) find among checkpoints of generalist training. The run's learning rate stays as
it is after the warm-up: no checkpoint is meant to be the last.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import LlamaForCausalLM

from evomerge.files import cache_folder
from evomerge.protocols import Progress
from evomerge.zoo.folders import made_whole, write_model
from evomerge.zoo.tiny_folders import new_tokenizer
from evomerge.zoo.tiny_items import CHECKPOINTS, SKILLS, examples
from evomerge.zoo.tiny_training import (
    BASE,
    Stage,
    batches,
    new_optimizer,
    one_thread,
    take_step,
    train_all,
    with_replay,
)

REVISION = 1  # to be raised when the same stages come to train other weights
REPLAY = 0.1  # of the base's mixture: little enough that what is no longer practised is forgotten


def shares(done: float) -> dict[str, float]:
    """What of each skill is practised when this part of the run is done: all of one, or of two."""
    place = done * (len(SKILLS) - 1)
    return {skill: max(0.0, 1 - abs(place - i)) for i, skill in enumerate(SKILLS)}


RUN = tuple(
    Stage(
        name,
        with_replay(shares(i / (len(CHECKPOINTS) - 1)), REPLAY),
        steps=24,
        learning_rate=1e-3,
    )
    for i, name in enumerate(CHECKPOINTS)
)


def tiny_run(
    folder: Path | None = None, *, seed: int = 0, progress: Progress | None = None
) -> Path:
    """The folder with `base` and `c01` to `c16`, trained now unless it is there already.

    The same seed gives the same bytes on the same machine, and the same base as `zoo:tiny` has.

    Args:
        folder: Where to train into; by default a place of its own in the user's cache folder.
        seed: What the weights and the items of training are drawn from.
        progress: Called as (model, steps done, steps of this model).

    Raises:
        ConfigurationError: the folder holds something else, or cannot be written.
        DiskFull: the models did not fit on the disk.
    """
    base, run = BASE, RUN
    target = (folder or cache_folder() / "zoo" / f"tiny_run-seed{seed}").expanduser().absolute()

    def write(part: Path) -> None:
        for name, model in checkpoints(seed, base, run, progress):
            write_model(part / name, model, new_tokenizer(), card(name, seed))

    return made_whole(target, _label(seed, (base, *run)), write, in_cache=folder is None)


def checkpoints(
    seed: int, base: Stage, run: tuple[Stage, ...], progress: Progress | None = None
) -> Iterator[tuple[str, LlamaForCausalLM]]:
    """Train the base, then the stages of the run one after another; yield (name, model).

    The same model object is yielded every time: write it before asking for the next. One optimizer
    serves the whole run. Reads and changes no global generator; runs on one thread.
    """
    [(name, model)] = train_all(seed, (base,), progress)
    yield name, model
    optimizer = new_optimizer(model)
    done = 0
    for stage in run:
        with one_thread():
            model.train()
            for step, batch in enumerate(batches(stage, seed)):
                warm = min(1.0, (done + 1) / stage.warmup_steps)
                take_step(model, optimizer, batch, stage.learning_rate * warm)
                done += 1
                if progress is not None:
                    progress(stage.name, step + 1, stage.steps)
            model.eval()
        yield stage.name, model


def _label(seed: int, stages: tuple[Stage, ...]) -> dict[str, Any]:
    """What tells one run from another: its seed, and a hash of how it is trained."""
    recipe = json.dumps([REVISION, *(asdict(stage) for stage in stages)], sort_keys=True)
    sha256 = hashlib.sha256(recipe.encode()).hexdigest()
    return {"zoo": "tiny_run", "seed": seed, "models": [s.name for s in stages], "training": sha256}


def card(name: str, seed: int) -> str:
    """The model card of one folder."""
    what = "what the run begins with" if name == "base" else f"after {name[1:]} parts of the run"
    return f"""---
license: apache-2.0
library_name: transformers
---

# tiny_run/{name}

A toy language model, {what}. evomerge trained it from seed {seed},
as one of a family made for trying out the merging of checkpoints of one training run.

{examples()}

Licence: Apache-2.0.
"""
