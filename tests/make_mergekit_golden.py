"""Writes golden/mergekit_yaml.safetensors: what mergekit makes of the files of mergekit_cases.py.

`make mergekit-golden` runs it. The files that evomerge writes are recorded with mergekit's answers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from mergekit_cases import READ, WRITE, recipe_data, states, write_models
from safetensors.torch import load_file, save_file
from torch import Tensor

from evomerge.experiment.recipes import open_recipe_models
from evomerge.recipe import Recipe
from evomerge.results.export import export_model

HERE = Path(__file__).parent
TARGET = HERE / "golden" / "mergekit_yaml.safetensors"
PYTHON = "EVOMERGE_MERGEKIT_PYTHON"


def written(folder: Path) -> dict[str, str]:
    """The mergekit file that evomerge writes for each recipe over a folder's models."""
    texts = {}
    for case in WRITE:
        recipe = Recipe.model_validate(recipe_data(case, folder))
        out = export_model(recipe, open_recipe_models(recipe), folder / f"exported_{case}")
        text = (out / "mergekit_config.yml").read_text()
        texts[case] = text.replace(f"{folder.resolve()}{os.sep}", "")
    return texts


def mergekit_makes(
    folder: Path, files: Mapping[str, str]
) -> tuple[dict[str, dict[str, Tensor]], str]:
    """What mergekit makes of files over a folder's models, and its version."""
    arguments = []
    for name, text in files.items():
        (folder / f"{name}.yml").write_text(text)
        arguments += [f"{name}.yml", f"mergekit_{name}"]
    done = subprocess.run(
        [os.environ[PYTHON], str(HERE / "run_mergekit.py"), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    made = {name: load_file(folder / f"mergekit_{name}" / "model.safetensors") for name in files}
    return made, done.stdout.split()[-1]


def all_files(folder: Path) -> dict[str, str]:
    """Every file for mergekit, ours and those that are only read."""
    texts = {f"read_{case}": text for case, text in READ.items()}
    return texts | {f"write_{case}": text for case, text in written(folder).items()}


def flat(state: Mapping[str, Tensor]) -> Tensor:
    """All tensors end to end, in float32, in the order of their names."""
    return torch.cat([state[name].reshape(-1).float() for name in sorted(state)])


def main() -> None:
    """Run mergekit on everything and write the file."""
    models = states()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve()
        write_models(folder, models)
        files = all_files(folder)
        made, version = mergekit_makes(folder, files)
    stored = {f"in/{model}": flat(state) for model, state in models.items()}
    stored |= {f"out/{case}": flat(state) for case, state in made.items()}
    TARGET.parent.mkdir(exist_ok=True)
    metadata = {"mergekit": version, "files": json.dumps(files)}
    save_file(stored, TARGET, metadata)
    TARGET.chmod(0o644)


if __name__ == "__main__":
    sys.exit(main())
