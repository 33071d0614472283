"""mergekit's YAML in and out; the oracle is mergekit 0.1.5, recorded and, where it is, live."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from make_mergekit_golden import PYTHON, TARGET, all_files, flat, mergekit_makes, written
from mergekit_cases import READ, WRITE, recipe_data, states, write_models
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from evomerge.checkpoints.anatomy import anatomy_of
from evomerge.checkpoints.open import open_checkpoint
from evomerge.cli import main
from evomerge.errors import ConfigurationError
from evomerge.experiment.mergekit_file import value_for
from evomerge.experiment.recipes import open_recipe_models, read_recipe
from evomerge.merging import OPERATORS
from evomerge.merging.mergekit_methods import METHODS
from evomerge.recipe import Recipe, TokenizerSpec
from evomerge.results.export import export_model, merged_tensors
from evomerge.results.mergekit_yaml import mergekit_yaml

with safe_open(TARGET, "pt") as golden:
    GOLDEN = {name: golden.get_tensor(name) for name in golden.keys()}  # noqa: SIM118
    METADATA = golden.metadata()
FILES: dict[str, str] = json.loads(METADATA["files"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models that the golden file was made of, as folders."""
    place = tmp_path_factory.mktemp("models").resolve()
    models = states()
    for model, state in models.items():
        start = 0
        for name in sorted(state):
            stop = start + state[name].numel()
            state[name] = GOLDEN[f"in/{model}"][start:stop].view(state[name].shape).clone()
            start = stop
    write_models(place, models)
    return place


def makes(recipe: Recipe) -> dict[str, Tensor]:
    return merged_tensors(recipe, open_recipe_models(recipe))


def from_file(folder: Path, case: str, text: str) -> Recipe:
    path = folder / f"{case}.yml"
    path.write_text(text)
    return read_recipe(path)


def assert_equal(found: Mapping[str, Tensor], expected: Tensor) -> None:
    # float32 to 1e-6; bfloat16 to one step, which two ways to sum may fall on two sides of
    half = next(iter(found.values())).dtype == torch.bfloat16
    torch.testing.assert_close(flat(found), expected, rtol=2**-7 if half else 0, atol=1e-6)
    if half:
        assert float((flat(found) != expected).float().mean()) < 0.01


def test_the_oracle_is_the_version_that_parity_is_claimed_for() -> None:
    assert METADATA["mergekit"] == "0.1.5"
    assert set(FILES) == {f"read_{case}" for case in READ} | {f"write_{case}" for case in WRITE}
    assert all(FILES[f"read_{case}"] == text for case, text in READ.items())


@pytest.mark.parametrize("case", READ)
def test_a_file_for_mergekit_gives_what_mergekit_gives(folder: Path, case: str) -> None:
    assert_equal(makes(from_file(folder, case, READ[case])), GOLDEN[f"out/read_{case}"])


@pytest.mark.parametrize("case", WRITE)
def test_an_exported_file_gives_in_mergekit_what_was_exported(folder: Path, case: str) -> None:
    recipe = Recipe.model_validate(recipe_data(case, folder))
    assert_equal(makes(recipe), GOLDEN[f"out/write_{case}"])


@pytest.mark.parametrize("case", [f"write_{case}" for case in WRITE])
def test_an_exported_file_is_read_again(folder: Path, case: str) -> None:
    assert_equal(makes(from_file(folder, case, FILES[case])), GOLDEN[f"out/{case}"])


def test_exported_files_are_those_that_mergekit_was_asked_about(folder: Path) -> None:
    for case, text in written(folder).items():
        assert text == FILES[f"write_{case}"]
        assert "not exact" not in text


@pytest.mark.slow
@pytest.mark.skipif(PYTHON not in os.environ, reason=f"{PYTHON} names no interpreter with mergekit")
def test_mergekit_itself_agrees_on_every_file(tmp_path: Path) -> None:
    """`make test-mergekit` runs this: the golden file is not needed, nor trusted."""
    folder = tmp_path.resolve()
    write_models(folder, states())
    made, version = mergekit_makes(folder, all_files(folder))
    assert version == "0.1.5"
    for case, expected in made.items():
        kind, _, name = case.partition("_")
        recipe = (
            read_recipe(folder / f"{case}.yml")
            if kind == "read"
            else Recipe.model_validate(recipe_data(name, folder))
        )
        found = makes(recipe)
        assert found.keys() == expected.keys(), case
        assert_equal(found, flat(expected))


# --- reading --------------------------------------------------------------------------------------


def test_a_recipe_says_once_what_tensors_have_in_common(folder: Path) -> None:
    recipe = from_file(folder, "ties", READ["ties"])
    assert recipe.merge_for(None, "embedding").parameters["density"] == {"a": 1.0, "b": 0.5}
    assert recipe.merge_for(0, "norm").parameters["weight"] == {"a": 1.0, "b": 0.5}
    assert set(recipe.tensors) == {
        f"model.layers.{i}.{part}.weight"
        for i in range(4)
        for part in ("self_attn.q_proj", "mlp.down_proj")
    }
    plain = from_file(folder, "linear", READ["linear"])
    assert plain.slots is None
    assert not plain.outside
    assert not plain.tensors


@pytest.mark.parametrize(
    ("setting", "name", "t", "expected"),
    [
        (0.5, "x", 0.3, 0.5),
        ("1e-4", "x", 0, 1e-4),
        ([0, 1], "x", 0.25, 0.25),
        ([0, 1, 0], "x", 0.75, 0.5),
        ([], "x", 0.75, None),
        ([{"filter": "mlp", "value": 1}, {"filter": "ml", "value": 2}], "a.mlp.b", 0, 1),
        ([{"filter": "mlp", "value": 1}, {"filter": "*", "value": 2}], "a.b", 0, 2),
        ([{"filter": "mlp", "value": 1}], "a.b", 0, None),
        ({"filter": "b", "value": [1, 3]}, "a.b", 1, 3),
    ],
)
def test_values_are_worked_out_as_mergekit_documents_it(
    setting: Any, name: str, t: float, expected: float | None
) -> None:
    assert value_for([{}, {"w": setting}], "w", float, name, t) == expected


def test_a_scope_without_a_value_leaves_it_to_the_next() -> None:
    scopes = [{"w": {"filter": "mlp", "value": 1}}, {"w": 2}]
    assert value_for(scopes, "w", float, "mlp", 0) == 1
    assert value_for(scopes, "w", float, "attn", 0) == 2


def changed(case: str, **changes: Any) -> str:
    return yaml.safe_dump({**yaml.safe_load(READ[case]), **changes}, sort_keys=False)


A = {"model": "a", "parameters": {"weight": 1}}
MISTAKES = {
    "method": (changed("linear", merge_method="liner"), ["merge_method", "did you mean 'linear'"]),
    "key": (changed("linear", dtyp="float32"), ["dtyp", "did you mean 'dtype'"]),
    "inner key": (changed("linear", models=[{**A, "wight": 1}]), ["models.0.wight: unknown key"]),
    "parameter": (
        changed("linear", parameters={"wieght": 1, "t": 0.5}),
        [".yml:", "parameters.wieght: linear has no such parameter (did you mean 'weight'", "s.t:"],
    ),
    "a shared one at a model": (
        changed("ties", models=[{"model": "a", "parameters": {"normalize": True}}]),
        ["models.0.parameters.normalize: is one for all models"],
    ),
    "a value": (changed("linear", parameters={"weight": "much"}), ["expected a number", "'much'"]),
    "a filter": (
        changed("linear", parameters={"weight": [{"fliter": "mlp", "value": 1}]}),
        ["unknown key fliter", "did you mean 'filter'"],
    ),
    "missing": (changed("linear", models=[{"model": "a"}, A]), ["a stands twice"]),
    "required": (
        changed("linear", models=[{"model": "a"}, {**A, "model": "b"}]),
        ["linear needs a value of weight for a"],
    ),
    "no base": (changed("slerp_outside", base_model=None), ["slerp needs base_model"]),
    "range": (
        changed("passthrough_stack", slices=[{"sources": [{"model": "a", "layer_range": [0, 9]}]}]),
        ["slice 0: layer_range [0, 9] of a, which has 4 layers"],
    ),
    "lengths": (
        changed(
            "passthrough_stack",
            merge_method="karcher",
            slices=[
                {
                    "sources": [
                        {"model": "a", "layer_range": [0, 2]},
                        {"model": "b", "layer_range": [0, 1]},
                    ]
                }
            ],
        ),
        ["different numbers of layers"],
    ),
    "both": (changed("linear", slices=[]), ["slices"]),
    "tokens": (changed("linear", tokenizer={"tokens": {"x": {}}}), ["tokenizer.tokens.x.source"]),
    "a token's source": (
        changed("linear", tokenizer={"tokens": {"x": {"source": {"kind": "zero", "token": "a"}}}}),
        ["a row of zeros has no token"],
    ),
    "lora": (changed("linear", models=[{**A, "model": "a+b"}]), ["apply the adapter first"]),
    "hub": (
        changed("linear", models=[{**A, "model": {"model": {"path": "a", "revision": "x"}}}]),
        ["revisions of hubs"],
    ),
    "dtype": (changed("linear", out_dtype="int64"), ["out_dtype: cannot write 'int64'"]),
    "rescaled ties": (changed("ties", parameters={"rescale": True}), ["rescale"]),
    "eps": (changed("multislerp", parameters={"weight": 1, "eps": 0.1}), ["eps"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_mergekit_ignores_or_evomerge_cannot_do_is_told(folder: Path, mistake: str) -> None:
    text, told = MISTAKES[mistake]
    with pytest.raises(ConfigurationError) as caught:
        from_file(folder, "mistake", text)
    for part in told:
        assert part in str(caught.value)


def test_paths_are_relative_to_the_file_or_else_to_the_working_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    recipe = from_file(tmp_path, "elsewhere", READ["linear"])
    assert recipe.models["a"].path == str(folder / "a")
    monkeypatch.chdir(tmp_path)
    assert from_file(folder, "beside", READ["linear"]).models["a"].path == str(folder / "a")


def test_an_adapter_of_the_base_is_a_model(folder: Path) -> None:
    text = changed("task_arithmetic", models=[{**A, "model": "base+some/adapter"}])
    recipe = from_file(folder, "adapter", text)
    assert recipe.models["adapter"].path == str(folder / "some" / "adapter")
    assert recipe.default.sources == ("adapter",)


def test_notes_say_what_is_not_quite_as_in_mergekit(folder: Path) -> None:
    path = folder / "notes.yml"
    path.write_text(changed("dare_dense", dtype="bfloat16", parameters={"density": 0.5}))
    notes: list[str] = []
    recipe = read_recipe(path, notes=notes)
    assert recipe.dtype == "bfloat16"
    assert "computes in bfloat16" in notes[0]
    assert "random masks" in notes[1]


# --- writing --------------------------------------------------------------------------------------


@pytest.fixture
def write(folder: Path) -> Callable[..., str | None]:
    def call(**recipe: Any) -> str | None:
        parsed = Recipe.model_validate({**recipe_data("linear", folder), **recipe})
        opened = open_recipe_models(parsed)
        return mergekit_yaml(parsed, opened, anatomy_of(opened["base"]))

    return call


@pytest.mark.parametrize(
    ("default", "remark"),
    [
        ({"operator": "ties", "parameters": {"density": 0.5}}, "trims each tensor by itself"),
        ({"operator": "dare_linear", "parameters": {"density": 0.5}}, "other random masks"),
        ({"operator": "dare_linear", "parameters": {"density": 0.5}}, "matching the L1 norm"),
        (
            {"operator": "task_arithmetic", "parameters": {"normalize": True}},
            "divides by summed weights",
        ),
    ],
)
def test_what_mergekit_computes_otherwise_is_marked(
    write: Callable[..., str | None], default: dict[str, Any], remark: str
) -> None:
    text = write(default=default)
    assert text is not None
    assert any(line.startswith("# not exact: ") and remark in line for line in text.splitlines()), (
        text
    )


@pytest.mark.parametrize(
    "recipe",
    [
        {"default": {"operator": "magmax"}},  # unknown to mergekit
        {"default": {"operator": "linear"}, "outside": {"head": {"operator": "slerp"}}},
        {"default": {"operator": "linear"}, "outside": {"head": {"sources": ["a"]}}},
    ],
)
def test_what_mergekit_cannot_say_is_not_written(
    write: Callable[..., str | None], recipe: dict[str, Any]
) -> None:
    if "head" in recipe.get("outside", {}):
        recipe["outside"]["head"].setdefault("sources", ["a"])
    assert write(**recipe) is None


def test_an_export_has_the_file_beside_the_recipe(folder: Path, tmp_path: Path) -> None:
    recipe = Recipe.model_validate(recipe_data("ties", folder))
    out = export_model(recipe, open_recipe_models(recipe), tmp_path / "out")
    data = yaml.safe_load((out / "mergekit_config.yml").read_text())
    assert data["base_model"] == str(folder / "base")
    assert [one["model"] for one in data["models"]] == [str(folder / m) for m in ("a", "b", "base")]


def test_the_card_says_which_layers_it_is_made_of(folder: Path, tmp_path: Path) -> None:
    recipe = from_file(folder, "stack", READ["passthrough_stack"])
    out = export_model(recipe, open_recipe_models(recipe), tmp_path / "out")
    card = (out / "README.md").read_text()
    assert "| 3 | `b` 1 |" in card
    plain = from_file(folder, "plain", READ["ties"])
    out = export_model(plain, open_recipe_models(plain), tmp_path / "plain")
    assert "## Layers" not in (out / "README.md").read_text()


def test_the_command_line_takes_the_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (folder / "cli.yml").write_text(READ["passthrough_stack"])
    out = tmp_path / "out"
    monkeypatch.setattr(
        "sys.argv", ["evomerge", "merge", str(folder / "cli.yml"), "--out", str(out)]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, None), capsys.readouterr().err
    assert json.loads((out / "config.json").read_text())["num_hidden_layers"] == 8
    assert_equal(load_file(out / "model.safetensors"), GOLDEN["out/read_passthrough_stack"])


def test_every_method_is_an_operator_with_the_parameters_that_are_named() -> None:
    for name, method in METHODS.items():
        declared = {parameter.name for parameter in OPERATORS[name].parameters}
        assert {setting.ours for setting in method.settings if setting.ours} <= declared


TOKENS = """
models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 1}}]
base_model: base
merge_method: task_arithmetic
dtype: float32
tokenizer:
  source: union
  pad_to_multiple_of: 4
  tokens:
    <one>: {source: a}
    <two>: {source: {kind: model_token, model: b, token: x}, force: true}
    <three>: {source: {kind: model_token, model: base, token_id: 3}}
    <four>: {source: {kind: zero}}
chat_template: "{{ messages[0]['content'] }}"
"""


def test_what_a_file_says_of_tokens_is_in_the_recipe_and_in_its_export(folder: Path) -> None:
    recipe = from_file(folder, "tokens", TOKENS)
    assert recipe.tokenizer == TokenizerSpec.model_validate(
        {
            "source": "union",
            "pad_to_multiple_of": 4,
            "tokens": {
                "<one>": {"model": "a"},
                "<two>": {"model": "b", "token": "x", "force": True},
                "<three>": {"model": "base", "id": 3},
                "<four>": {},
            },
        }
    )
    assert recipe.chat_template == "{{ messages[0]['content'] }}"
    opened = {
        name: open_checkpoint(source.path, name=name) for name, source in recipe.models.items()
    }
    text = mergekit_yaml(recipe, opened, anatomy_of(opened["base"]))
    assert text is not None
    assert from_file(folder, "again", text) == recipe


def test_a_name_alone_and_in_full_are_one_recipe(folder: Path) -> None:
    short = from_file(folder, "short", changed("ties", tokenizer_source="union"))
    full = from_file(folder, "full", changed("ties", tokenizer={"source": "union"}))
    assert short == full
    assert short.tokenizer == "union"
    assert short.fingerprint == full.fingerprint


def test_slices_of_a_model_with_other_names(folder: Path, tmp_path: Path) -> None:
    """An expert that was saved without its head's prefix, as a slice and as a whole model."""
    write_models(tmp_path, {"base": load_file(folder / "base" / "model.safetensors")})
    bare = {
        name.removeprefix("model."): tensor
        for name, tensor in load_file(folder / "deep" / "model.safetensors").items()
    }
    write_models(tmp_path, {"deep": bare})
    path = tmp_path / "deep.yml"
    path.write_text(READ["deeper_begun"])
    found = makes(read_recipe(path))
    assert_equal(found, GOLDEN["out/read_deeper_begun"])
