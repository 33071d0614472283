"""What mergekit makes of genotypes; for an interpreter that has it, not for the tests' own.

python tests/run_mergekit_evolve.py FILE GENOTYPE OUT [...]: files of mergekit-evolve, genotypes as
JSON, folders. Prints a JSON list of first genotypes, and which version it was.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path

import numpy as np
import torch
import yaml
from mergekit.evo.config import EvolMergeConfiguration
from mergekit.evo.genome import ModelGenome
from mergekit.merge import run_merge
from mergekit.options import MergeOptions


def main(arguments: list[str]) -> None:
    """Merge by each genotype, in float32: rounding every step to bfloat16 would hide mistakes."""
    torch.set_num_threads(1)
    options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True, random_seed=1)
    first = []
    for file, values, out in zip(*(arguments[i::3] for i in range(3)), strict=True):
        config = EvolMergeConfiguration.model_validate(yaml.safe_load(Path(file).read_text()))
        genome = ModelGenome(config.genome)
        genotype = np.array(json.loads(Path(values).read_text()), dtype=np.float64)
        merge = genome.genotype_merge_config(genotype)
        run_merge(merge.model_copy(update={"dtype": "float32"}), out, options)
        first.append(genome.initial_genotype().tolist())
    print(json.dumps([first, importlib.metadata.version("mergekit")]))


if __name__ == "__main__":
    main(sys.argv[1:])
