"""Writes golden/mergekit_vocabulary.json: what mergekit makes of models with other tokens.

Run it by hand where mergekit 0.1.5 is: `python tests/checkpoints/make_golden_vocabulary.py`;
the test reads the file that it has written. Rows are recorded by token, as mergekit
numbers the tokens of a union otherwise, and keeps no padding rows.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from safetensors.torch import load_file
from token_models import (
    MERGEKIT_MODELS,
    MERGEKIT_MULTIPLE,
    MERGEKIT_TOKENS,
    MERGEKIT_WEIGHTS,
    TABLES,
    write_folder,
)
from transformers import AutoTokenizer

TARGET = Path(__file__).parent / "golden" / "mergekit_vocabulary.json"


def merged(folder: Path, tokenizer: str, tied: bool) -> dict[str, Any]:
    paths = {
        name: write_folder(folder / name, ids, num_rows=rows, tied=tied, seed=seed)
        for seed, (name, (ids, rows)) in enumerate(MERGEKIT_MODELS.items())
    }
    config = {
        "merge_method": "task_arithmetic",
        "base_model": str(paths["base"]),
        "models": [
            {"model": str(paths[name]), "parameters": {"weight": weight}}
            for name, weight in MERGEKIT_WEIGHTS.items()
        ],
        "dtype": "float32",
    }
    source = tokenizer.split()[0]
    source = str(paths.get(source, source)) if source != "base" else "base"
    if tokenizer.endswith("rows"):
        tokens = json.loads(json.dumps(MERGEKIT_TOKENS))
        for token in tokens.values():
            if isinstance(token["source"], str):
                token["source"] = str(paths[token["source"]])
            elif "model" in token["source"]:
                token["source"]["model"] = str(paths[token["source"]["model"]])
        multiple = {"pad_to_multiple_of": MERGEKIT_MULTIPLE}
        config["tokenizer"] = {"source": source, "tokens": tokens, **multiple}
    else:
        config["tokenizer_source"] = source
    out = folder / "out"
    run_merge(MergeConfiguration.model_validate(config), str(out), MergeOptions(quiet=True))
    state = {}
    for path in out.glob("*.safetensors"):
        state |= load_file(path)
    ids = AutoTokenizer.from_pretrained(out).get_vocab()
    made: dict[str, Any] = {
        table: {token: state[table][i].tolist() for token, i in sorted(ids.items())}
        for table in TABLES["llama", tied]
    }
    made["rows"] = len(state["model.embed_tokens.weight"])
    return made


def main() -> None:
    golden: dict[str, Any] = {"mergekit": importlib.metadata.version("mergekit")}
    for tied in (False, True):
        for tokenizer in ("union", "base", "x", "union with rows", "base with rows"):
            with tempfile.TemporaryDirectory() as folder:
                key = f"{tokenizer} {'tied' if tied else 'untied'}"
                golden[key] = merged(Path(folder), tokenizer, tied)
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
