"""The merged model's chat template; the oracle is what transformers reads from the folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from token_models import MERGEKIT_MODELS, write_folder
from transformers import AutoTokenizer

from evomerge.checkpoints.chat_template import template_of
from evomerge.checkpoints.open import open_checkpoint
from evomerge.errors import ConfigurationError
from evomerge.experiment.recipes import open_recipe_models
from evomerge.recipe import Recipe
from evomerge.results.export import export_model

IDS, ROWS = MERGEKIT_MODELS["base"]


def folders(tmp_path: Path, templates: dict[str, str | None]) -> dict[str, str]:
    """Models of the same tokens; odd ones keep their template in tokenizer_config.json."""
    paths = {}
    for seed, (name, template) in enumerate(templates.items()):
        folder = write_folder(tmp_path / name, IDS, num_rows=ROWS, tied=True, seed=seed)
        if template is not None and seed % 2:
            settings_file = folder / "tokenizer_config.json"
            settings = json.loads(settings_file.read_text()) if settings_file.exists() else {}
            settings_file.write_text(json.dumps({**settings, "chat_template": template}))
        elif template is not None:
            (folder / "chat_template.jinja").write_text(template)
        paths[name] = str(folder)
    return paths


def exported(
    tmp_path: Path,
    templates: dict[str, str | None],
    chosen: str | None,
    tokenizer: str | None = None,
) -> str | None:
    """The template that transformers finds in a merge."""
    recipe = Recipe.model_validate(
        {
            "base": "base",
            "models": folders(tmp_path, templates),
            "default": {"operator": "task_arithmetic"},
            "chat_template": chosen,
            "tokenizer": tokenizer,
        }
    )
    notes: list[str] = []
    out = export_model(recipe, open_recipe_models(recipe, notes=notes), tmp_path / "out")
    assert any("chat_template auto" in note for note in notes) == (chosen == "auto")
    template: str | None = AutoTokenizer.from_pretrained(out).chat_template
    again = export_model(
        recipe, open_recipe_models(recipe), tmp_path / "out"
    )  # the card's recipe says it too
    assert template_of(open_checkpoint(again, name="out")) == template
    return template


HELLO, HELLO_TOO = "hello {{ messages }}", "hi {{ messages }}"


@pytest.mark.parametrize("tokenizer", [None, "union"])
@pytest.mark.parametrize(
    ("templates", "chosen", "expected"),
    [
        ({"base": HELLO, "x": HELLO_TOO}, None, HELLO),
        ({"base": None, "x": HELLO_TOO}, None, None),
        ({"base": HELLO, "x": HELLO_TOO}, "own {{ messages }}", "own {{ messages }}"),
        ({"base": None, "x": None}, "own {{ messages }}", "own {{ messages }}"),
        ({"base": None, "x": HELLO_TOO, "y": None}, "auto", HELLO_TOO),
        ({"base": HELLO, "x": HELLO_TOO, "y": HELLO_TOO}, "auto", HELLO_TOO),
        ({"base": HELLO, "x": HELLO_TOO}, "auto", HELLO),
        ({"base": None, "x": None}, "auto", None),
    ],
)
def test_the_template_is_the_one_that_was_asked_for(
    tmp_path: Path,
    templates: dict[str, str | None],
    chosen: str | None,
    expected: str | None,
    tokenizer: str | None,
) -> None:
    assert exported(tmp_path, templates, chosen, tokenizer) == expected


def test_names_of_templates_are_refused_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"'chatml' is no Jinja template \(write its text"):
        exported(tmp_path, {"base": None, "x": None}, "chatml")
