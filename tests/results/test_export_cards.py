"""Cards of models: a hub reads their heads, and nothing that models or tasks say formats them.

The oracles are huggingface_hub's own reader of heads, and markdown-it, which parses the rest.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, metadata_load
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from evomerge.recipe import Merge, ModelSource, Recipe
from evomerge.results.account import ObjectiveFacts
from evomerge.results.card import adapter_card, model_card, recipe_yaml
from evomerge.results.card_scores import HEADS, Found, scores_section
from evomerge.results.export_index import index_card
from evomerge.results.exported_rows import exported_row, rows_csv
from evomerge.results.markdown import block, code, plain, table
from evomerge.results.origins import Origin, hub_snapshot, licence_of, origins_of

PARSER = MarkdownIt("commonmark").enable("table")
HOSTILE = (
    "a|b",
    "`; rm -rf /`",
    "<script>alert(1)</script>",
    "[click](javascript:alert(1))",
    "line\n---\n# heading\n| x |",
    "``` \n```yaml",
    "![x](http://evil/x.png)",
    "*bold* _em_ ~~s~~ &lt; $x$ {y}",
    "---\nlicense: mit\n---",
    "\x00\x1b[31m\u202eright-to-left\u2066",
    "&#60;b&#62;",
)
HEADINGS = {
    *("Scores", "Beside the references", "Models", "Recipe", "The search"),
    *("As an adapter", "Layers", "Stretches"),
}


def estimate(value: float, items: int = 10) -> dict[str, float]:
    return {"value": value, "standard_error": 0.0 if items == 0 else 0.1, "num_items": items}


def found_of(name: str, label: str = "") -> Found:
    """What a search knows, where everything is called the same."""
    objectives = (ObjectiveFacts(name), ObjectiveFacts(f"{name} size", -1, "parameters"))
    parts = {
        part: {name: estimate(value), f"{name} size": estimate(-1234567.0, 0)}
        for part, value in {"told": 0.9, "search": 0.8, "fresh": 0.7, "holdout": 0.6}.items()
    }
    row = {"candidate": 7, "label": label, **parts, "failed_items": {name: 2}}
    shown = exported_row(row, "f" * 64, objectives, None)
    gain = {"reference": name, "value": 0.1, "low": -0.1, "high": 0.2}
    search = {
        **{"name": name, "seed": 3, "digest": "d" * 64, "processor": name},
        **{"versions": {name: name}, "experiment": f"name: {name!r}\n```\n# no heading\n"},
    }
    pictures = {"front.png": "the front on the holdout"}
    return Found(shown, objectives, {name: shown}, gain, search, pictures)


def recipe_of(*names: str) -> Recipe:
    models = {name: ModelSource(path=f"/models/{name}", sha256="a" * 64) for name in names}
    weights = dict.fromkeys(names[1:], 0.5)
    merge = Merge(operator="task_arithmetic", parameters={"weight": weights})
    return Recipe(base=names[0], models=models, default=merge)


def check_inert(card: str) -> list[Any]:
    """That a card is made of what a card is made of, and nothing else; its tokens."""
    _, _, body = card.split("---\n", 2)
    tokens = PARSER.parse(body)
    inline = [child for token in tokens for child in token.children or ()]
    kinds = {token.type for token in (*tokens, *inline)}
    assert not kinds & {"html_block", "html_inline", "hr", "blockquote_open", "lheading_open"}
    assert {t.attrs["src"] for t in inline if t.type == "image"} <= {
        "front.png",
        "convergence.png",
    }
    assert not any(token.type == "link_open" for token in inline)
    titles = [
        tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open"
    ]
    assert set(titles[1:]) <= HEADINGS
    widths: set[int] = set()
    for token in tokens:
        if token.type in ("tr_open", "table_open"):
            width = 0
        elif token.type in ("th_open", "td_open"):
            width += 1
        elif token.type == "tr_close":
            widths.add(width)
        elif token.type == "table_close":
            assert len(widths) == 1, "a row is wider than its table"
            widths = set()
    return tokens


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_shown_and_do_nothing(name: str, tmp_path: Path) -> None:
    recipe, found = recipe_of(name, f"{name} 2"), found_of(name, name)
    origins = {n: Origin(source.path) for n, source in recipe.models.items()}
    for card in (
        model_card(recipe, name, origins, found),
        adapter_card(recipe, name, [name], 4, origins, found),
    ):
        check_inert(card)
        (tmp_path / "README.md").write_text(card)
        head = metadata_load(tmp_path / "README.md")
        assert head is not None
        assert "license" not in head
        assert head["tags"][-1] == "evomerge"
    rows = [{**found.row, "folder": "candidate_7"}]
    index = index_card(rows, found.objectives, found.search, found.references, name, found.pictures)
    tokens = PARSER.parse(index)
    inline = [child for token in tokens for child in token.children or ()]
    links = {token.attrs["href"] for token in inline if token.type == "link_open"}
    assert links == {"candidate_7/", "front.json", "front.csv"}
    assert not any(token.type.startswith("html") for token in (*tokens, *inline))
    assert sum(token.type == "heading_open" for token in tokens) == 1


@settings(max_examples=60)
@given(st.text(max_size=60))
def test_any_text_is_one_cell_and_reads_as_itself(text: str) -> None:
    shown = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    for made, kind in ((plain(text), "text"), (code(text), "code_inline")):
        tokens = PARSER.parse(table(["a", "b"], [["x", made], ["y", "z"]]))
        cells = [tokens[i + 1] for i, token in enumerate(tokens) if token.type == "td_open"]
        assert len(cells) == 4
        children = cells[1].children or []
        assert {child.type for child in children} <= {kind, "text_special", "text"}
        read = "".join(child.content for child in children)
        if shown and text.isprintable():
            assert read.strip() == shown.strip()


@settings(max_examples=60)
@given(st.text(alphabet="`~\n yaml-#", max_size=60))
def test_a_block_ends_where_it_is_to(text: str) -> None:
    tokens = PARSER.parse(f"{block(text, 'yaml')}\n\nafter")
    assert tokens[0].type == "fence"
    assert tokens[0].content.strip("\n") == text.strip("\n")
    assert tokens[2].content == "after"


def test_a_hub_reads_the_head_and_the_scores() -> None:
    recipe = recipe_of("base", "math")
    origins = {
        "base": Origin("org/base", "org/base", "0123abc", "mit"),
        "math": Origin("org/math", "org/math", "0123abc", "mit"),
    }
    card = ModelCard(model_card(recipe, "merged", origins, found_of("accuracy")))
    data = card.data
    assert data.base_model == ["org/base", "org/math"]
    assert data.to_dict()["base_model_relation"] == "merge"
    assert data.license == "mit"
    assert data.library_name == "transformers"
    assert data.model_name == "merged"
    (result,) = data.eval_results  # a cost is none
    assert result.metric_value == 0.6
    assert result.dataset_name == "accuracy (holdout, 10 items)"
    assert "standard error 0.1" in result.metric_name
    assert data.eval_results[0].task_type == "text-generation"
    assert "Gain over the best reference" in card.text
    assert "| accuracy size (less is better) | 1.235M | 1.235M |" in card.text
    as_adapter = ModelCard(adapter_card(recipe, "merged", ["a line"], None, origins)).data
    assert as_adapter.base_model == "org/base"
    assert as_adapter.to_dict()["base_model_relation"] == "adapter"


def test_an_estimate_that_is_the_mean_of_all_search_items_is_told_once() -> None:
    """Their errors are made in two ways; where values differ, both are told."""
    found = found_of("x")
    assert HEADS["told"] in scores_section(found)
    for parts in found.row["objectives"].values():
        parts["told"] = {**parts["search"], "standard_error": 0.2}
    assert HEADS["told"] not in scores_section(found)


def test_a_hub_is_told_of_no_path() -> None:
    recipe = recipe_of("base", "math")
    origins = {"base": Origin("org/base", "org/base"), "math": Origin("/home/me/math")}
    here = yaml.safe_load(model_card(recipe, "m", origins).split("---\n")[1])
    assert here["base_model"] == ["org/base", "/home/me/math"]
    there = yaml.safe_load(model_card(recipe, "m", origins, for_hub=True).split("---\n")[1])
    assert there["base_model"] == ["org/base"]
    alone = model_card(recipe, "m", {n: Origin("/x") for n in origins}, for_hub=True)
    assert "base_model" not in yaml.safe_load(alone.split("---\n")[1])


@pytest.mark.parametrize(
    ("licences", "stated"),
    [
        (("mit", "mit"), "mit"),
        (("mit", "apache-2.0"), None),
        (("mit", None), None),
        ((None, None), None),
    ],
)
def test_a_licence_is_stated_where_all_state_it(
    licences: tuple[str | None, str | None], stated: str | None
) -> None:
    names = ("base", "math")
    origins = {n: Origin(n, licence=licence) for n, licence in zip(names, licences, strict=True)}
    card = model_card(recipe_of(*names), "m", origins)
    assert yaml.safe_load(card.split("---\n")[1]).get("license") == stated
    assert ("this card states none" in card) == (stated is None)


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("---\nlicense: apache-2.0\n---\n# x", "apache-2.0"),
        ("---\r\nlicense: mit\r\n---\r\n", "mit"),
        ("---\nlicense:\n- mit\n---\n", "mit"),
        ("---\nlicense: [mit, apache-2.0]\n---\n", None),
        ("---\nlicense: other\n---\n", None),
        ("---\nlicense: '<b>mine</b>'\n---\n", None),
        ("---\nlicense: {a: b}\n---\n", None),
        ("---\n- license\n---\n", None),
        ("---\nlicense: [\n---\n", None),
        ("---\n" + "[" * 1500 + "\n---\n", None),
        ("---\nlicense: !!python/object/apply:os.system [ls]\n---\n", None),
        ("no head\n---\nlicense: mit\n---\n", None),
        ("", None),
        ("\udcff", None),
    ],
)
def test_licences_are_read_from_heads_alone(text: str, licence: str | None, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(text.encode(errors="surrogateescape"))
    assert licence_of(tmp_path) == licence
    assert licence_of(tmp_path / "missing") is None
    assert licence_of(None) is None


def test_a_snapshot_of_a_hub_is_named_by_its_id(tmp_path: Path) -> None:
    revision = "c" * 40
    path = tmp_path / "hub" / "models--org--a-model--v2" / "snapshots" / revision
    path.mkdir(parents=True)
    assert hub_snapshot(str(path)) == ("org/a-model--v2", revision)
    assert hub_snapshot("/models/org/a-model") == (None, None)
    recipe = Recipe(
        base="base",
        models={"base": ModelSource(path=str(path)), "math": ModelSource(path="/x/math")},
        default=Merge(operator="linear"),
    )
    opened: Any = {"base": SimpleNamespace(path=path), "math": SimpleNamespace(path=None)}
    origins = origins_of(recipe, opened, {"base": "whatever", "math": "zoo:tiny/math"})
    assert [o.name for o in origins.values()] == ["org/a-model--v2", "zoo:tiny/math"]
    card = model_card(recipe, "m", origins)
    assert str(path) not in card.split("## Recipe")[0]
    assert f"at revision `{revision}`" in card


def test_a_candidate_that_was_not_held_out_says_so() -> None:
    found = found_of("accuracy")
    objectives = {name: {"told": parts["told"]} for name, parts in found.row["objectives"].items()}
    row = {**found.row, "objectives": objectives, "mean_of_objectives": {"told": {"value": 0.9}}}
    card = model_card(recipe_of("base", "math"), "m", None, replace(found, row=row))
    assert "there is no unbiased number of this model" in card
    assert "model-index" not in card
    assert "Beside the references" not in card
    cells = rows_csv([row], found.objectives).splitlines()[1].split(",")
    assert cells[6:9] == ["", "", ""]


def test_the_recipe_of_a_card_is_the_one_beside_it() -> None:
    recipe = recipe_of(*HOSTILE[:3])
    tokens = check_inert(model_card(recipe, "m", None, None))
    (fence,) = [token for token in tokens if token.type == "fence"]
    assert yaml.safe_load(fence.content) == yaml.safe_load(recipe_yaml(recipe))
