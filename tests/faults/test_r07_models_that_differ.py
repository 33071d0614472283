"""R7: models that differ in shapes, vocabulary, tied weights, dtype, rope settings, tokenizer.

Passes if: all differences come in one table, from headers and small files alone and before anything
is started, in at most 2 s for three 7B models.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from drivers import command_line
from results.small_run import write_experiment
from safetensors.torch import load_file, save_file
from sparse_models import sparse_model

from evomerge.checkpoints.open import open_checkpoint
from evomerge.checkpoints.preflight import preflight
from evomerge.documents import Document
from evomerge.errors import ModelError
from evomerge.experiment.config import parse_experiment
from evomerge.experiment.wire import open_models


def bytes_read() -> int:
    """By this process so far, from files of any kind."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])


def test_three_7b_models_in_two_seconds(tmp_path: Path, figure: Any) -> None:
    folders = [sparse_model(tmp_path / name) for name in ("base", "math", "code")]
    start = time.perf_counter()
    opened = {folder.name: open_checkpoint(folder, name=folder.name) for folder in folders}
    assert preflight(opened, "base") == []
    figure("R7", "three 7B models that fit", time.perf_counter() - start, 2.0)
    assert opened["math"].size_bytes > 13e9


def test_three_7b_models_that_differ_in_everything(tmp_path: Path, figure: Any) -> None:
    """As a run opens them; what is read of 75 GB is the headers and the small files."""
    base = sparse_model(tmp_path / "base")
    math = sparse_model(tmp_path / "math", rows=32001, tie_word_embeddings=True, rope_theta=5e5)
    code = sparse_model(tmp_path / "code", ffn=11008, dtype="F32")
    size = sum(file.stat().st_size for file in tmp_path.glob("*/*"))
    small = sum(file.stat().st_size for file in tmp_path.glob("*/*.json"))
    config = parse_experiment(
        Document(
            {
                "base": str(base),
                "experts": {"math": str(math), "code": str(code)},
                "space": "per_expert",
                "fitness": {"tasks": {"t": {"kind": "python"}}, "objectives": {"t": "t"}},
                "searcher": {"kind": "random"},
                "budget": {"candidates": 1},
            }
        )
    )
    before, start = bytes_read(), time.perf_counter()
    with pytest.raises(ModelError) as caught:
        open_models(config)
    figure("R7", "three 7B models that differ", time.perf_counter() - start, 2.0)
    read = (bytes_read() - before - 3 * small) / 1e6  # a tokenizer may be looked at three times
    figure("R7", f"read of {size / 1e9:.0f} GB, beside JSON", max(0.0, read), 1.0, unit="MB")
    assert caught.value.exit_code == 3
    text = str(caught.value)
    for part in (
        "math: tensor 'model.embed_tokens.weight': has shape [32001, 4096]",
        "math: tie_word_embeddings",
        "math: config.json rope.rope_theta: 500000.0",
        "math: tokenizer: has 32001 tokens, the base has 32000",
        "token ids differ",
        "code: tensor 'model.layers.0.mlp.down_proj.weight': has shape [4096, 11008]",
        "code: 226 tensors are float32, the base's bfloat16 (no obstacle)",
    ):
        assert part in text, (part, text)


def test_all_differences_come_in_one_table(tiny_zoo: Path, tmp_path: Path) -> None:
    """By the command line, whichever verb; no ledger and no worker is there yet."""
    odd = tmp_path / "odd"
    shutil.copytree(tiny_zoo / "sort", odd)
    tensors = {n: t.bfloat16() for n, t in load_file(odd / "model.safetensors").items()}
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1].clone()
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:-2].clone()
    save_file(tensors, odd / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((odd / "config.json").read_text())
    config |= {"tie_word_embeddings": not config["tie_word_embeddings"]}
    config |= {"rope_theta": 5e5, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    (odd / "config.json").write_text(json.dumps(config))
    tokens = json.loads((odd / "tokenizer.json").read_text())
    vocabulary = tokens["model"]["vocab"]
    first, second = list(vocabulary)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (odd / "tokenizer.json").write_text(json.dumps(tokens))
    experts = {"odd": str(odd), "back": str(tiny_zoo / "back")}
    path = str(write_experiment(tmp_path / "experiment", tiny_zoo, experts=experts))
    for verb in (("validate", path), ("run", path, "--out", str(tmp_path / "run"))):
        code, _, err = command_line(*verb)
        assert code == 3
        for part in (
            "'model.norm.weight': has shape [63], the base has [64]",
            "'model.embed_tokens.weight': has shape",
            "tie_word_embeddings",
            "bfloat16",
            "rope",
            "token ids differ",
        ):
            assert part in err, (part, err)
    assert not (tmp_path / "run" / "ledger.sqlite").exists()


def test_the_bytes_that_are_read_are_seen(tmp_path: Path) -> None:
    """The test's own oracle."""
    (tmp_path / "x").write_bytes(bytes(5_000_000))
    before = bytes_read()
    (tmp_path / "x").read_bytes()
    assert 5_000_000 <= bytes_read() - before < 6_000_000
