"""Runs mergekit on files; for an interpreter that has it, not for the tests' own.

python tests/run_mergekit.py FILE OUT [FILE OUT ...]; paths in the files are as seen from here.
"""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import torch
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions


def main(arguments: list[str]) -> None:
    """Merge each file into the folder after it, and say which version did."""
    torch.set_num_threads(1)
    options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True, random_seed=1)
    for file, out in zip(arguments[::2], arguments[1::2], strict=True):
        config = MergeConfiguration.model_validate(yaml.safe_load(Path(file).read_text()))
        run_merge(config, out, options)
    print(importlib.metadata.version("mergekit"))


if __name__ == "__main__":
    main(sys.argv[1:])
