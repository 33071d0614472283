"""Models with scaled layers as folders. Oracle: transformers with layers scaled by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from scaled_models import layers_of, loaded, logits, scale_inputs_by_hand, text, write_folder

import evomerge
from evomerge.checkpoints.anatomy import anatomy_of
from evomerge.checkpoints.input_scales import INPUT_SCALES
from evomerge.checkpoints.open import Checkpoint, open_checkpoint
from evomerge.checkpoints.preflight import preflight
from evomerge.cli import main
from evomerge.errors import ConfigurationError, ModelError
from evomerge.experiment.recipes import open_recipe_models, read_recipe
from evomerge.experiment.score import recipe_of as recipe_of_model
from evomerge.merging.resident import Resident
from evomerge.recipe import Recipe
from evomerge.results.adapter_export import export_adapter
from evomerge.results.export import export_model, merged_tensors
from evomerge.results.mergekit_yaml import mergekit_yaml

SCALES = [1.0, 0.5, 1.7, 0.5]
SLOTS = [
    {"layer": layer, "input_scale": scale}
    for layer, scale in zip((0, 1, 1, 2), SCALES, strict=True)
]
MODELS = ("base", "a")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("scaled")
    for seed, name in enumerate(MODELS):
        write_folder(place / name, "llama", seed)
    return place


def recipe_of(
    folder: Path, slots: Any = SLOTS, operator: str = "passthrough", **more: Any
) -> Recipe:
    return Recipe.model_validate(
        {
            "base": "base",
            "models": {name: str(folder / name) for name in MODELS},
            "default": {"operator": operator, "sources": ["a"]},
            "slots": slots,
            **more,
        }
    )


def opened(folder: Path) -> dict[str, Checkpoint]:
    return {name: open_checkpoint(folder / name, name=name) for name in MODELS}


@pytest.fixture(scope="module")
def exported(folder: Path) -> Path:
    return export_model(recipe_of(folder), opened(folder), folder / "out", scales="attribute")


def in_memory(folder: Path) -> torch.nn.Module:
    resident = Resident.open(opened(folder), "base")
    resident.write(recipe_of(folder))
    return resident.module


def test_scaled_inputs_are_refused_unless_asked_for(folder: Path) -> None:
    recipe = recipe_of(folder)
    for attempt in (
        lambda: export_model(recipe, opened(folder), folder / "no"),
        lambda: merged_tensors(recipe, opened(folder)),
    ):
        with pytest.raises(ConfigurationError) as caught:
            attempt()
        told = str(caught.value)
        assert "slots 1, 2, 3: input_scale" in told
        assert "epsilon" in told
        assert "--scales attribute" in told
    assert not (folder / "no").exists()
    with pytest.raises(ConfigurationError, match="did you mean 'attribute'"):
        export_model(recipe, opened(folder), folder / "no", scales="atribute")


def test_an_export_says_its_scales_and_how_to_apply_them(folder: Path, exported: Path) -> None:
    assert json.loads((exported / "config.json").read_text())[INPUT_SCALES] == SCALES
    assert not (exported / "mergekit_config.yml").exists()
    expected = in_memory(folder)
    stock = loaded(exported)
    by_hand = loaded(exported)
    scale_inputs_by_hand(layers_of(by_hand), SCALES)
    assert (logits(stock) - logits(expected)).abs().max() > 0.1, "stock loaders ignore them"
    applied = evomerge.apply_scales(stock)
    assert applied is stock
    for module in (stock, evomerge.apply_scales(stock)):  # twice is once
        torch.testing.assert_close(logits(module), logits(by_hand), rtol=0, atol=2e-6)
        torch.testing.assert_close(logits(module), logits(expected), rtol=0, atol=2e-6)
        assert text(module, use_cache=True) == text(by_hand, use_cache=False)


def test_the_code_of_the_card_does_what_it_says(folder: Path, exported: Path) -> None:
    card = (exported / "README.md").read_text()
    assert "| layer | made of | input times |" in card
    assert "| 2 | `a` 1 | 1.7 |" in card
    assert "evomerge_recipe.yaml --scales attribute --out" in card
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {}
    exec(code.group(1), names)  # noqa: S102 (our own)
    module = loaded(exported)
    names["scale_inputs"](module)
    torch.testing.assert_close(logits(module), logits(in_memory(folder)), rtol=0, atol=2e-6)


def test_a_scaled_folder_is_measured_as_it_was_found(folder: Path, exported: Path) -> None:
    base = {"base": open_checkpoint(exported, name="base")}
    resident = Resident.open(base, "base")
    expected = logits(in_memory(folder))
    torch.testing.assert_close(logits(resident.module), expected, rtol=0, atol=2e-6)
    resident.write(recipe_of_model(str(exported)))
    torch.testing.assert_close(logits(resident.module), expected, rtol=0, atol=2e-6)
    # Layers that are moved take their scales along, and a slot's own comes on top.
    moved = recipe_of_model(str(exported)).model_copy(
        update={"slots": recipe_of(folder, [{"layer": 2, "input_scale": 2.0}, {"layer": 0}]).slots}
    )
    resident.write(moved)
    again = export_model(moved, base, folder / "moved", scales="attribute")
    assert json.loads((again / "config.json").read_text())[INPUT_SCALES] == [1.7 * 2.0, 1.0]
    by_hand = loaded(again)
    scale_inputs_by_hand(layers_of(by_hand), [3.4, 1.0])
    torch.testing.assert_close(logits(resident.module), logits(by_hand), rtol=0, atol=2e-6)
    with pytest.raises(ConfigurationError, match="slots 1, 2, 3"):
        export_model(recipe_of_model(str(exported)), base, folder / "no")
    alone = recipe_of(folder, [{"layer": 0}]).slots
    plain = export_model(moved.model_copy(update={"slots": alone}), base, folder / "plain")
    assert INPUT_SCALES not in json.loads((plain / "config.json").read_text())


def test_a_scaled_model_is_not_merged_with_others(folder: Path, exported: Path) -> None:
    plain = open_checkpoint(folder / "a", name="a")
    for base in ("plain", "scaled"):
        models = {"plain": plain, "scaled": open_checkpoint(exported, name="scaled")}
        with pytest.raises(ModelError) as caught:
            preflight(models, base, uneven=True)
        told = [str(problem) for problem in caught.value.problems]
        assert any(t.startswith(f"scaled: config.json {INPUT_SCALES}: its layers") for t in told)
        assert sum(INPUT_SCALES in t for t in told) == 1
    assert preflight({"scaled": open_checkpoint(exported, name="scaled")}, "scaled") == []


@pytest.mark.parametrize("value", [[1.0], "x", [1, 0, 1], [1, True, 1], [1, float("inf"), 1]])
def test_a_config_with_other_scales_is_refused(folder: Path, tmp_path: Path, value: Any) -> None:
    base = open_checkpoint(folder / "a", name="a")
    base.config[INPUT_SCALES] = value
    with pytest.raises(ModelError, match="expected a list of 3 positive numbers"):
        Resident.open({"a": base}, "a")
    module = loaded(folder / "a")
    module.config.evomerge_input_scales = value
    with pytest.raises(ModelError, match="expected a list of 3 positive numbers"):
        evomerge.apply_scales(module)


def test_a_model_without_scales_is_left_as_it_is(folder: Path) -> None:
    module = loaded(folder / "a")
    before = logits(module)
    assert torch.equal(logits(evomerge.apply_scales(module)), before)
    out = export_model(recipe_of(folder, None), opened(folder), folder / "none", scales="attribute")
    assert INPUT_SCALES not in json.loads((out / "config.json").read_text())
    assert "apply_scales" not in (out / "README.md").read_text()


def test_adapters_have_no_scales(folder: Path) -> None:
    for key in ("input_scale", "branch_scale"):
        slots = [{"layer": 0}, {"layer": 1, key: 0.5}, {"layer": 2}]
        with pytest.raises(ConfigurationError, match="--adapter: scales"):
            export_adapter(recipe_of(folder, slots), opened(folder), folder / "adapter")


def test_on_the_command_line(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = recipe_of(folder).model_dump(mode="json", exclude_defaults=True)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"evomerge_recipe": 1, **data}))
    words = ["evomerge", "merge", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "slots 1, 2, 3: input_scale" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", [*words, "--scales", "attribute"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert json.loads((tmp_path / "out" / "config.json").read_text())[INPUT_SCALES] == SCALES
    again = read_recipe(tmp_path / "out" / "evomerge_recipe.yaml")
    assert again.slots == recipe_of(folder).slots


# --- branch scales for mergekit -------------------------------------------------------------------


def test_scaled_branches_of_layers_as_they_are_have_words_in_mergekit(folder: Path) -> None:
    """The oracle: the file read back, whose scales by filter are tested against mergekit."""
    slots = [{"layer": 0, "branch_scale": 0.5}, {"layer": 1}, {"layer": 1, "branch_scale": 2.0}]
    recipe = recipe_of(folder, slots)
    models = opened(folder)
    made = mergekit_yaml(recipe, models, anatomy_of(models["base"]))
    assert made is not None
    assert "filter: down_proj" in made
    (folder / "scaled.yml").write_text(made)
    again = read_recipe(folder / "scaled.yml")
    expected = merged_tensors(recipe, models)
    found = merged_tensors(again, open_recipe_models(again))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=0)
    linear = recipe_of(folder, slots, operator="linear")
    assert mergekit_yaml(linear, models, anatomy_of(models["base"])) is None
