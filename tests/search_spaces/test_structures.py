"""Layers removed, stacked and walked: in memory, exported, and as mergekit's slices."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from by_hand import (
    FAMILIES,
    Family,
    check,
    merge_of,
    opened,
    put_together,
    recipes_of,
    space_over,
    write_family,
)
from scaled_models import layers_of, loaded, logits

import evomerge
from evomerge.checkpoints.anatomy import anatomy_of
from evomerge.checkpoints.open import open_checkpoint
from evomerge.documents import read_yaml
from evomerge.experiment.recipes import open_recipe_models, read_recipe
from evomerge.files import catalogue_folder
from evomerge.merging.resident import Resident
from evomerge.recipe import Recipe
from evomerge.results.export import export_model, merged_tensors
from evomerge.results.mergekit_yaml import mergekit_yaml

AVERAGE = {"average": {"operator": "linear"}}
BRANCHES = {"range": [0.5, 1.5], "of": "branches"}
SPACES: dict[str, dict[str, Any]] = {
    "pruned": {
        "kind": "layer_pruning",
        "remove": 2,
        "layers": {"choose": "several", "search": {"weight": {"range": [0, 1]}}},
    },
    "pruned by flags": {"kind": "layer_pruning", "remove": 1, "by": "flag", "outside": "ends"},
    "in a row": {
        "kind": "layer_stack",
        "repeats": 2,
        "models": "all",
        "layers": [3, 7],
        "scales": {"range": [0.5, 1.5], "of": "input"},
    },
    "in a row, branches": {"kind": "layer_stack", "layers": [3, 6], "scales": BRANCHES},
    "by position": {
        "kind": "layer_stack",
        "arrange": "by_position",
        "keep_base": False,
        "layers": [2, 6],
        "scales": {"range": [0.5, 1.5]},
        "outside": "ends",
    },
    "walk": {"kind": "layer_walk", "steps": 2.0, "merges": AVERAGE},
}
CASES = [
    (family, space)
    for family in FAMILIES
    for space in SPACES
    if not (family == "gemma2" and "branches" in space)  # its norms come after its branches
]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_candidates_are_the_models_put_together_by_hand(
    name: str, kind: str, tmp_path: Path
) -> None:
    family = write_family(tmp_path, name)
    space = space_over(family, SPACES[kind])
    models = opened(family)
    resident = Resident.open(models, "base")
    seen = []
    for number, recipe in enumerate(recipes_of(space, 3)):
        expected = put_together(family, recipe)
        resident.write(recipe)
        check(resident.module, expected)
        scaled = any(slot.input_scale != 1 for slot in recipe.slots or ())
        assert scaled == ("scales" in SPACES[kind] and SPACES[kind]["scales"] != BRANCHES)
        out = export_model(recipe, models, tmp_path / f"out_{number}", scales="attribute")
        module = loaded(out)
        assert len(layers_of(module)) == len(recipe.slots or ())
        for key in ("num_hidden_layers", "layer_types"):
            assert getattr(module.config, key, None) == getattr(expected.config, key, None)
        check(evomerge.apply_scales(module), expected)
        seen.append(logits(expected))
    assert not any(torch.equal(one, seen[0]) for one in seen[1:])


def test_the_tiny_family(tiny_zoo: Path) -> None:
    """Trained models: what is removed, stacked or walked is told from what was not."""
    family = {"base": tiny_zoo / "base", "a": tiny_zoo / "sort", "b": tiny_zoo / "back"}
    resident = Resident.open(opened(family), "base")
    for data in SPACES.values():
        for recipe in recipes_of(space_over(family, data), 2):
            resident.write(recipe)
            check(resident.module, put_together(family, recipe))


def slices_by_hand(recipe: Recipe, family: Family) -> list[dict[str, Any]]:
    """Neighbouring layers of one model, in its own order, are one slice."""
    steps = [(*(merge_of(slot).sources or ()), slot.layer) for slot in recipe.slots or ()]
    found = []
    for _, run in groupby(enumerate(steps), key=lambda step: (step[1][0], step[1][1] - step[0])):
        layers = [layer for _, (_, layer) in run]
        model = steps[sum(len(range(*one["sources"][0]["layer_range"])) for one in found)][0]
        source = {"model": str(family[model]), "layer_range": [layers[0], layers[-1] + 1]}
        source["parameters"] = {"scale": 1.0}  # as mergekit has it where nothing is said
        found.append({"sources": [source]})
    return found


def test_a_frankenmerge_has_mergekits_slices(tmp_path: Path) -> None:
    family = write_family(tmp_path, "llama")
    data = read_yaml(catalogue_folder("search_spaces") / "frankenmerge.yaml").data
    space = space_over(family, data)
    models = opened(family)
    anatomy = anatomy_of(models["base"])
    counts = set()
    for number, recipe in enumerate(recipes_of(space, 8)):
        made = mergekit_yaml(recipe, models, anatomy)
        assert made is not None
        said = yaml.safe_load(made)
        assert said["merge_method"] == "passthrough"
        assert "not exact" not in made
        assert said["slices"] == slices_by_hand(recipe, family)
        counts.add(len(said["slices"]))
        path = tmp_path / f"{number}.yml"
        path.write_text(made)
        again = read_recipe(path)
        expected = merged_tensors(recipe, models)
        found = merged_tensors(again, open_recipe_models(again))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert len(counts) > 1


def test_a_stack_by_hand_is_found_and_written_as_it_was(tmp_path: Path) -> None:
    """The first three layers of one model, then the last three of the other."""
    family = write_family(tmp_path, "llama")
    space = space_over(family, {"kind": "layer_stack", "layers": [1, 2.0], "outside": "ends"})
    genome = [*(0.9, 0.9, 0.9, 0.1), *(0.1, 0.9, 0.9, 0.9)]
    recipe = space.decode(genome)
    made = mergekit_yaml(recipe, opened(family), anatomy_of(opened(family)["base"]))
    assert made is not None
    plain = {"parameters": {"scale": 1.0}}
    assert yaml.safe_load(made)["slices"] == [
        {"sources": [{"model": str(family["a"]), "layer_range": [0, 3], **plain}]},
        {"sources": [{"model": str(family["b"]), "layer_range": [1, 4], **plain}]},
    ]
    (tmp_path / "by_hand.yml").write_text(made)
    again = read_recipe(tmp_path / "by_hand.yml")
    tensors = merged_tensors(again, open_recipe_models(again))
    own = {model: open_checkpoint(family[model], name=model) for model in ("a", "b")}
    for slot, (model, layer) in enumerate(
        [*(("a", i) for i in (0, 1, 2)), *(("b", i) for i in (1, 2, 3))]
    ):
        for name in own[model].names:
            if f"layers.{layer}." in name:
                moved = name.replace(f"layers.{layer}.", f"layers.{slot}.")
                assert torch.equal(tensors[moved], own[model].tensor(name))
    assert torch.equal(
        tensors["model.embed_tokens.weight"], own["a"].tensor("model.embed_tokens.weight")
    )
    for name in ("model.norm.weight", "lm_head.weight"):
        assert torch.equal(tensors[name], own["b"].tensor(name))


def test_uniform_outside_is_the_mean_of_the_experts(tmp_path: Path) -> None:
    family = write_family(tmp_path, "llama")
    own = opened(family)
    for data in (
        {"kind": "layer_choice", "outside": "uniform"},
        {"kind": "layer_walk", "merges": AVERAGE},
        {"kind": "layer_pruning", "remove": 1, "outside": "uniform"},
        {"kind": "layer_stack", "outside": "uniform"},
        {"kind": "layer_swap", "bottom": [1, 2], "top": [1, 2], "outside": "uniform"},
    ):
        (recipe,) = recipes_of(space_over(family, data), 1)
        found = merged_tensors(recipe, own)
        for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
            mean = (own["a"].tensor(name) + own["b"].tensor(name)) / 2
            torch.testing.assert_close(found[name], mean, rtol=0, atol=1e-6)
