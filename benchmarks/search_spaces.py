"""What search spaces cost beside the merge: decoding, and other layers in a model in memory.

    python benchmarks/search_spaces.py

First: milliseconds to check and decode a random genome of every file of the catalogue, for models
of 40 layers and 8 experts (fewer where an operator takes fewer), median of 200. Then, on random
weights in the shape of SmolLM2-135M (30 layers): milliseconds until a candidate with other layers
is in memory.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "search_spaces"))

from stand_ins import catalogue_space, template_of

from evomerge.checkpoints.anatomy import anatomy_of
from evomerge.checkpoints.open import open_checkpoint
from evomerge.documents import Document
from evomerge.merging.resident import Resident
from evomerge.search_spaces import make_space, parse_space
from evomerge.search_spaces.catalogue import entries

LAYERS, EXPERTS = 40, 8
CANDIDATES = 200
SMOLLM2 = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
STRUCTURES: dict[str, dict[str, Any]] = {
    "8 of 30 layers removed": {"kind": "layer_pruning", "remove": 0.25, "by": "flag"},
    "15 to 45 of 60, from two models": {
        "kind": "layer_stack",
        "models": "all",
        "layers": [0.5, 1.5],
    },
    "the same, each with an input scale": {
        "kind": "layer_stack",
        "models": "all",
        "layers": [0.5, 1.5],
        "scales": {"range": [0.5, 1.5], "of": "input"},
    },
}


def decoding() -> None:
    print(f"{'space':<22} {'genes':>6} {'ms':>7}   ({LAYERS} layers, {EXPERTS} experts)")
    slowest = 0.0
    for entry in entries():
        space = catalogue_space(entry.name, LAYERS, EXPERTS)
        generator = np.random.default_rng(0)
        taken = []
        for _ in range(CANDIDATES):
            genome = space.sample(generator)
            started = time.perf_counter()
            if not space.violations(genome):
                space.decode(genome)
                taken.append(1e3 * (time.perf_counter() - started))
        median = statistics.median(taken) if taken else float("nan")
        slowest = max(slowest, median)
        print(f"{entry.name:<22} {len(space.genes):>6} {median:>7.3f}")
    print(f"slowest: {slowest:.3f} ms\n")


def restructuring() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(**SMOLLM2)
    module = LlamaForCausalLM(config)
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    state.pop("lm_head.weight")
    other = {name: tensor + 0.01 for name, tensor in state.items()}
    models = {"base": state, "expert_0": other}
    checkpoints = {name: open_checkpoint(tensors, name=name) for name, tensors in models.items()}
    resident = Resident.open(checkpoints, "base", build=lambda: LlamaForCausalLM(config))
    anatomy = anatomy_of(checkpoints["base"])
    print(f"{'structure':<36} {'first':>8} {'then, median':>13} {'worst':>8}   (ms)")
    for label, data in STRUCTURES.items():
        space = make_space(parse_space(Document(data)), template_of(["expert_0"]), anatomy)
        generator = np.random.default_rng(1)
        taken = []
        for _ in range(20):
            recipe = space.decode(space.sample(generator))
            started = time.perf_counter()
            resident.write(recipe)
            taken.append(1e3 * (time.perf_counter() - started))
        then = taken[1:]
        print(f"{label:<36} {taken[0]:>8.1f} {statistics.median(then):>13.1f} {max(then):>8.1f}")


if __name__ == "__main__":
    decoding()
    restructuring()
