"""Writes golden/mergekit_evolve.safetensors: what mergekit makes of mergekit_evolve_cases.py.

`make mergekit-golden` runs it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from make_mergekit_golden import PYTHON, flat
from mergekit_cases import write_models
from mergekit_evolve_cases import GENOMES, evolve_file, genotype, states
from safetensors.torch import load_file, save_file
from torch import Tensor

HERE = Path(__file__).parent
TARGET = HERE / "golden" / "mergekit_evolve.safetensors"


def mergekit_evolves(folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any], str]:
    """What mergekit makes of each case over a folder's models, first genotypes, and its version."""
    arguments = []
    for case in GENOMES:
        (folder / f"{case}.yaml").write_text(evolve_file(case))
        (folder / f"{case}.json").write_text(json.dumps(genotype(case).tolist()))
        arguments += [f"{case}.yaml", f"{case}.json", f"mergekit_{case}"]
    done = subprocess.run(
        [os.environ[PYTHON], str(HERE / "run_mergekit_evolve.py"), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, version = json.loads(done.stdout.splitlines()[-1])
    made = {case: load_file(folder / f"mergekit_{case}" / "model.safetensors") for case in GENOMES}
    return made, dict(zip(GENOMES, first, strict=True)), version


def main() -> None:
    """Run mergekit on everything and write the file."""
    models = states()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve()
        write_models(folder, models)
        made, first, version = mergekit_evolves(folder)
    stored = {f"in/{model}": flat(state) for model, state in models.items()}
    stored |= {f"out/{case}": flat(state) for case, state in made.items()}
    files = {case: [evolve_file(case), genotype(case).tolist()] for case in GENOMES}
    metadata = {"mergekit": version, "files": json.dumps(files), "first": json.dumps(first)}
    save_file(stored, TARGET, metadata)
    TARGET.chmod(0o644)


if __name__ == "__main__":
    sys.exit(main())
