"""Merges with mergekit for a driver in another environment; runs in mergekit's own.

python benchmarks/side_by_side/merge_server.py SETUP: JSON lines come in, JSON lines go out. SETUP
is JSON: names (the experts), paths (of base and experts), dtype. A request is {"way", "values",
"out"}; the answer is the processor time that this process has used so far, in seconds.

`mergekit`: what mergekit-evolve makes of a genotype. `mergenetic`: the file that Mergenetic's TIES
stands for, weights first. Both in mergekit's own process, kept alive, as the tools do it.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from typing import Any

import numpy as np
import torch
from mergekit.config import MergeConfiguration  # type: ignore[import-not-found]
from mergekit.evo.config import EvolMergeConfiguration  # type: ignore[import-not-found]
from mergekit.evo.genome import ModelGenome  # type: ignore[import-not-found]
from mergekit.merge import run_merge  # type: ignore[import-not-found]
from mergekit.options import MergeOptions  # type: ignore[import-not-found]

OPTIONS = {  # as mergekit-evolve and Mergenetic set them, less the model card
    "out_shard_size": 10**12,
    "copy_tokenizer": True,
    "lazy_unpickle": True,
    "low_cpu_memory": True,
    "write_model_card": False,
    "quiet": True,
    "random_seed": 0,
}


class Merges:
    """Values of a search -> mergekit's configuration."""

    def __init__(self, setup: dict[str, Any]) -> None:
        self._paths, self._names, self.dtype = setup["paths"], setup["names"], setup["dtype"]
        definition = {
            "models": [self._paths[name] for name in self._names],
            "base_model": self._paths["base"],
            "merge_method": "ties",
        }
        file = EvolMergeConfiguration.model_validate({"genome": definition, "tasks": ["any"]})
        self.genome = ModelGenome(file.genome)

    def mergekit(self, values: list[float]) -> MergeConfiguration:
        """A genotype of mergekit-evolve; it always says bfloat16."""
        made = self.genome.genotype_merge_config(np.array(values))
        return made.model_copy(update={"dtype": self.dtype})

    def mergenetic(self, values: list[float]) -> MergeConfiguration:
        """Weights, then densities."""
        count = len(self._names)
        models: list[dict[str, Any]] = [{"model": self._paths["base"]}]
        for name, weight, density in zip(self._names, values[:count], values[count:], strict=True):
            chosen = {"weight": weight, "density": density}
            models.append({"model": self._paths[name], "parameters": chosen})
        return MergeConfiguration.model_validate(
            {
                "models": models,
                "merge_method": "ties",
                "base_model": self._paths["base"],
                "parameters": {"int8_mask": True},
                "dtype": self.dtype,
            }
        )


def main() -> None:
    torch.set_num_threads(1)
    merges = Merges(json.loads(sys.argv[1]))
    options = MergeOptions(**OPTIONS)
    about = {
        "first": merges.genome.initial_genotype().view(-1).tolist(),
        "version": importlib.metadata.version("mergekit"),
        "processor_s": time.process_time(),
    }
    answers = sys.stdout
    sys.stdout = sys.stderr  # nothing else may stand between answers
    print(json.dumps(about), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        run_merge(getattr(merges, asked["way"])(asked["values"]), asked["out"], options)
        print(json.dumps({"processor_s": time.process_time()}), file=answers, flush=True)


if __name__ == "__main__":
    main()
