"""The family `tiny_lora`: tiny's base and LoRA experts of it, trained from a seed on first use.

The experts practise what those of `zoo:tiny` do, but change the layers' projections alone, by
adapters of rank 16 (Hu et al. 2021, arXiv:2106.09685). They are for operators that merge adapters.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import LlamaForCausalLM

from evomerge.files import cache_folder
from evomerge.protocols import Progress
from evomerge.zoo.folders import made_whole, write_model
from evomerge.zoo.lora import add_adapter, write_adapter
from evomerge.zoo.tiny_folders import new_model, new_tokenizer
from evomerge.zoo.tiny_items import examples
from evomerge.zoo.tiny_training import (
    BASE,
    EXPERTS,
    Stage,
    named_generator,
    one_thread,
    train,
    train_all,
)

REVISION = 1  # to be raised when the same stages come to train other weights
RANK = 16
ALPHA = 32.0
STAGES = (BASE, *(replace(stage, learning_rate=3e-3) for stage in EXPERTS))


def tiny_lora(
    folder: Path | None = None, *, seed: int = 0, progress: Progress | None = None
) -> Path:
    """The folder with `base` and the adapters `sort`, `back` and `rot`, made unless it is there.

    The same seed gives the same weights on the same machine, and the same base as `zoo:tiny` has.

    Args:
        folder: Where to train into; by default a place of its own in the user's cache folder.
        seed: What the weights and the items of training are drawn from.
        progress: Called as (model, steps done, steps of this model).

    Raises:
        ConfigurationError: the folder holds something else, or cannot be written.
        DiskFull: the models did not fit on the disk.
    """
    stages = STAGES
    target = (folder or cache_folder() / "zoo" / f"tiny_lora-seed{seed}").expanduser().absolute()

    def write(part: Path) -> None:
        for name, model in _trained(seed, stages, progress):
            if name == "base":
                write_model(part / name, model, new_tokenizer(), card(name, seed))
            else:
                base, text = str(target / "base"), card(name, seed)
                write_adapter(part / name, model, rank=RANK, alpha=ALPHA, base=base, card=text)

    return made_whole(target, _label(seed, stages), write, in_cache=folder is None)


def _trained(
    seed: int, stages: tuple[Stage, ...], progress: Progress | None
) -> Iterator[tuple[str, LlamaForCausalLM]]:
    """The base, and then copies of it with an adapter each."""
    [(name, base)] = train_all(seed, stages[:1], progress)
    yield name, base
    start: dict[str, Tensor] = base.state_dict()
    for stage in stages[1:]:
        model = new_model(named_generator(seed, "weights"))
        model.load_state_dict(start)
        with one_thread():
            drawn = named_generator(seed, f"adapter {stage.name}")
            add_adapter(model, RANK, ALPHA, drawn)
            train(model, stage, seed, progress)
        yield stage.name, model


def _label(seed: int, stages: tuple[Stage, ...]) -> dict[str, Any]:
    """What tells one family from another: its seed, and a hash of how it is trained."""
    recipe = json.dumps([REVISION, RANK, ALPHA, *map(asdict, stages)], sort_keys=True)
    sha256 = hashlib.sha256(recipe.encode()).hexdigest()
    models = [stage.name for stage in stages]
    return {"zoo": "tiny_lora", "seed": seed, "models": models, "training": sha256}


def card(name: str, seed: int) -> str:
    """The model card of one folder."""
    what = (
        "A toy language model, half good at several rewritings."
        if name == "base"
        else f"A LoRA adapter of rank {RANK} that makes a toy language model do `{name}` well."
    )
    return f"""---
license: apache-2.0
library_name: {"transformers" if name == "base" else "peft"}
---

# tiny_lora/{name}

{what}
evomerge trained it from seed {seed},
as one of a family made for trying out the merging of adapters.

{examples()}

Licence: Apache-2.0.
"""
