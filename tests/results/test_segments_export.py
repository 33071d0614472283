"""Recipes with segments on the disk. Oracle: the seeds' flattened files, combined by numpy."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from adapter_folders import ATTENTION, load, lora, merged_by_peft, tiny_llama
from safetensors.torch import load_file, save_file
from torch import Tensor

from evomerge.checkpoints.anatomy import anatomy_of
from evomerge.checkpoints.family import open_family
from evomerge.cli import main
from evomerge.experiment.recipes import open_recipe_models, read_recipe
from evomerge.merging.flat_order import FlatModels
from evomerge.merging.materialise import Merger
from evomerge.merging.resident import Resident
from evomerge.recipe import Recipe
from evomerge.results.adapter_export import export_adapter
from evomerge.results.card import model_card, recipe_yaml
from evomerge.results.mergekit_yaml import mergekit_yaml


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with a tied head, a full expert, and an adapter."""
    folder = tmp_path_factory.mktemp("models")
    base = tiny_llama(folder / "base", tie_word_embeddings=True)
    lora(base, folder / "adapter", target_modules=ATTENTION)
    (folder / "full").mkdir()
    state = load_file(base / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    state = {n: t + 0.1 * torch.randn(t.shape, generator=generator) for n, t in state.items()}
    save_file(state, folder / "full" / "model.safetensors")
    (folder / "full" / "config.json").write_bytes((base / "config.json").read_bytes())
    return folder


def states_of(folder: Path) -> dict[str, dict[str, Tensor]]:
    """The stored tensors; of the adapter, what PEFT makes of it."""
    base = load_file(folder / "base" / "model.safetensors")
    merged = merged_by_peft(folder / "base", folder / "adapter")
    return {
        "base": base,
        "full": load_file(folder / "full" / "model.safetensors"),
        "adapter": {name: merged[name] for name in base},
    }


def flattened(state: dict[str, Tensor]) -> np.ndarray:
    return np.concatenate([state[name].numpy().reshape(-1) for name in sorted(state)])


def recipe_of(folder: Path, stops: list[int], weights: dict[str, list[float]]) -> Recipe:
    models = {name: str(folder / name) for name in ("base", "full", "adapter")}
    table = {"stops": stops, "weights": weights}
    return Recipe.model_validate({"base": "base", "models": models, "segments": table})


def table_of(folder: Path) -> tuple[list[int], dict[str, list[float]], np.ndarray]:
    """Stops, weights, and what they come to."""
    flat = {name: flattened(state) for name, state in states_of(folder).items()}
    total = len(flat["base"])
    generator = np.random.default_rng(0)
    stops = sorted({*generator.integers(1, total, 40).tolist(), total})
    weights = {name: generator.random(len(stops)).tolist() for name in ("full", "adapter")}
    lengths = np.diff(stops, prepend=0)
    merged = sum(np.repeat(weights[name], lengths) * flat[name] for name in weights)
    return stops, weights, np.asarray(merged)


def test_a_recipe_file_is_merged_to_a_model_that_transformers_loads(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stops, weights, expected = table_of(folder)
    recipe = recipe_of(folder, stops, weights)
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe_yaml(recipe))
    assert read_recipe(file) == recipe
    monkeypatch.setattr(sys, "argv", ["evomerge", "merge", str(file), "--out", str(tmp_path / "x")])
    with pytest.raises(SystemExit) as caught:
        main()
    assert not caught.value.code
    written = load_file(tmp_path / "x" / "model.safetensors")
    assert np.abs(flattened(written) - expected).max() < 1e-6
    module = load(tmp_path / "x")
    assert module.lm_head.weight is module.model.embed_tokens.weight
    assert not (tmp_path / "x" / "mergekit_config.yml").exists()
    assert read_recipe(tmp_path / "x" / "evomerge_recipe.yaml") == recipe
    card = (tmp_path / "x" / "README.md").read_text()
    assert f"{len(stops)} stretches" in card
    assert "| `full` |" in card


def test_the_resident_model_holds_what_is_exported(folder: Path) -> None:
    stops, weights, expected = table_of(folder)
    recipe = recipe_of(folder, stops, weights)
    checkpoints = open_recipe_models(recipe, notes=[])
    resident = Resident.open(checkpoints, "base")
    resident.write(recipe)
    state = resident.module.state_dict()
    held = {name: state[name] for name in checkpoints["base"].names}
    assert np.abs(flattened(held) - expected).max() < 1e-6


def test_adapters_are_read_as_the_models_that_they_make(folder: Path) -> None:
    sources = {name: folder / name for name in ("base", "full", "adapter")}
    models = FlatModels(open_family(sources, "base").checkpoints, "base")
    expected = flattened(states_of(folder)["adapter"])
    assert models.total == len(expected)
    whole = models.read("adapter", 0, models.total)
    assert np.abs(whole - expected).max() < 1e-6
    for start in range(0, models.total, 997):
        stop = min(start + 1500, models.total)
        assert (models.read("adapter", start, stop) == whole[start:stop]).all()


def test_mergekit_has_no_words_for_it_and_the_card_has_few(folder: Path) -> None:
    total = len(flattened(states_of(folder)["base"]))
    recipe = recipe_of(folder, [total], {"full": [0.5], "adapter": [0.5]})
    checkpoints = open_recipe_models(recipe, notes=[])
    assert mergekit_yaml(recipe, checkpoints, anatomy_of(checkpoints["base"])) is None
    card = model_card(recipe, "mixed", None)
    assert f"The {total:,} parameters, flattened, are a linear combination of the models." in card
    assert yaml.safe_load(card.split("---")[1])["base_model_relation"] == "merge"


@pytest.mark.parametrize(
    ("cut", "shares", "exact"),
    [
        ([], {"adapter": [0.4], "base": [0.6]}, True),
        ([700], {"adapter": [0.9, 0.4], "base": [0.1, 0.6]}, False),
        ([700], {"adapter": [0.5, 0.2], "base": [0.1, 0.2]}, False),
    ],
    ids=["one stretch", "two stretches", "two that sum to 1 together"],
)
def test_as_an_adapter_it_is_exact_or_the_nearest_of_a_rank(
    cut: list[int], shares: dict[str, list[float]], exact: bool, folder: Path, tmp_path: Path
) -> None:
    total = len(flattened(states_of(folder)["base"]))
    recipe = recipe_of(folder, [*cut, total], shares)
    checkpoints = open_recipe_models(recipe, notes=[])
    report = export_adapter(recipe, checkpoints, tmp_path / "adapter", rank=None if exact else 16)
    if exact:
        assert report.num_truncated == 0
        assert report.rank == 3
    merger = Merger(checkpoints, anatomy_of(checkpoints["base"]), "base", once=True)
    found = merged_by_peft(folder / "base", report.folder)
    for name, tensor in merger.tensors(recipe):
        assert (found[name] - tensor).abs().max() < 1e-5, name
