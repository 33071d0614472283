"""What the command line says of models before it merges them: strangers, differences, places."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from evomerge.cli import main

sys.path.insert(0, str(Path(__file__).parent / "results"))
from small_run import write_experiment

Called = tuple[int, str, str]
Say = Callable[..., Called]


@pytest.fixture
def evomerge(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    """Call the command line: exit code, standard output, standard error."""
    monkeypatch.setenv("COLUMNS", "160")

    def call(*arguments: Any) -> Called:
        monkeypatch.setattr(sys, "argv", ["evomerge", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    return call


def changed(
    zoo: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> Path:
    """A copy of an expert with other tensors."""
    shutil.copytree(zoo / "sort", folder)
    tensors = change(load_file(folder / "model.safetensors"))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def stranger(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same shapes, trained from another seed as it were."""
    generator = torch.Generator().manual_seed(5)
    return {n: 0.05 * torch.randn(t.shape, generator=generator) for n, t in tensors.items()}


def recipe(folder: Path, zoo: Path, expert: Path, **keys: Any) -> Path:
    path = folder / "recipe.yaml"
    content = {
        "base": "base",
        "models": {"base": str(zoo / "base"), "odd": str(expert), "back": str(zoo / "back")},
        "default": {"operator": "task_arithmetic", "parameters": {"weight": 0.3}},
        **keys,
    }
    path.write_text(yaml.safe_dump(content))
    return path


def test_strangers_are_warned_of_by_validate_and_merge(
    tiny_zoo: Path, tmp_path: Path, evomerge: Say
) -> None:
    odd = changed(tiny_zoo, tmp_path / "odd", stranger)
    experts = {"odd": str(odd), "back": str(tiny_zoo / "back")}
    path = write_experiment(tmp_path / "experiment", tiny_zoo, experts=experts)
    code, out, _ = evomerge("validate", path)
    assert code == 0
    assert "cosine with base" in out
    assert "warning: odd: looks unrelated to the base (cosine " in out
    assert "warning: mean cosine between task vectors " in out
    assert "back: looks" not in out
    code, out, err = evomerge(
        "merge", recipe(tmp_path, tiny_zoo, odd), "--out", tmp_path / "merged"
    )
    assert code == 0
    assert "note: odd: looks unrelated to the base (cosine " in out
    assert "note: back" not in out
    assert "merging merged ..." in err  # a bar on a terminal
    assert f"wrote {tmp_path / 'merged'}" in out


def test_fine_tunes_are_merged_without_a_word(
    tiny_zoo: Path, tmp_path: Path, evomerge: Say
) -> None:
    path = recipe(tmp_path, tiny_zoo, tiny_zoo / "sort")
    code, out, _ = evomerge("merge", path, "--out", tmp_path / "merged")
    assert (code, out) == (0, f"wrote {tmp_path / 'merged'}\n")
    code, out, _ = evomerge("merge", path, "--out", tmp_path / "merged")
    assert (code, out) == (0, f"wrote {tmp_path / 'merged'}, over what was there\n")


def test_what_the_dtype_loses_is_said(tiny_zoo: Path, tmp_path: Path, evomerge: Say) -> None:
    base = load_file(tiny_zoo / "base" / "model.safetensors")

    def near(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {n: base[n] + 0.003 * (t - base[n]) for n, t in tensors.items()}

    odd = changed(tiny_zoo, tmp_path / "odd", near)
    path = recipe(tmp_path, tiny_zoo, odd, dtype="bfloat16")
    _, out, _ = evomerge("merge", path, "--out", tmp_path / "merged")
    assert "survive in bfloat16 at weight 0.5; `dtype: float32` keeps them" in out


def test_wrapped_experts_are_said_and_merged(tiny_zoo: Path, tmp_path: Path, evomerge: Say) -> None:
    odd = changed(tiny_zoo, tmp_path / "odd", lambda t: {f"_orig_mod.{n}": x for n, x in t.items()})
    _, out, _ = evomerge("merge", recipe(tmp_path, tiny_zoo, odd), "--out", tmp_path / "a")
    assert "by their names without '_orig_mod.'" in out
    plain = recipe(tmp_path, tiny_zoo, tiny_zoo / "sort")
    evomerge("merge", plain, "--out", tmp_path / "b")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert set(one) == set(other)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_anatomy_is_shown_as_a_table_and_as_json(tiny_zoo: Path, evomerge: Say) -> None:
    code, out, _ = evomerge("anatomy", tiny_zoo / "base")
    assert code == 0
    assert [row.split()[1:8:2] for row in out.splitlines() if "attention" in row] == [
        ["0-5", "attention", "24", "98,304"]
    ]
    _, out, _ = evomerge("anatomy", "zoo:tiny/sort", "--json")
    found = json.loads(out)
    assert found["num_layers"] == 6
    assert found["tensors"]["lm_head.weight"] == [None, "head"]
    assert found["tensors"]["model.layers.5.mlp.up_proj.weight"] == [5, "mlp"]
    code, _, err = evomerge("anatomy", tiny_zoo / "bas")
    assert code == 3
    assert "did you mean 'base'" in err
