"""Recipes: the table of precedence, one fingerprint for one merge, and JSON there and back."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from evomerge.documents import Document, parse
from evomerge.errors import ConfigurationError
from evomerge.recipe import Recipe, canonical_json

MODELS = {"base": "b", "x": "px", "a": "pa"}


def recipe(**changes: Any) -> Recipe:
    default = {"operator": "linear", "parameters": {"weight": 0.5}}
    return Recipe.model_validate({"base": "base", "models": MODELS, "default": default, **changes})


# --- precedence -----------------------------------------------------------------------------------


def value(number: float) -> dict[str, Any]:
    return {"parameters": {"weight": number}}


LAYERED = recipe(
    default={"operator": "linear", "parameters": {"weight": 1, "normalize": False}},
    outside={"head": value(2)},
    slots=[
        {"layer": 0, "merges": {"default": value(3), "attention": value(4)}},
        {"layer": 1, "merges": {"mlp": {"operator": "ties", **value(5)}}},
        {"layer": 2},
    ],
)


@pytest.mark.parametrize(
    ("slot", "component", "operator", "weight"),
    [
        (0, "attention", "linear", 4),  # the slot's component
        (0, "mlp", "linear", 3),  # the slot's default
        (1, "mlp", "ties", 5),  # another operator
        (1, "attention", "linear", 1),  # nothing for it in the slot: the recipe's default
        (2, "norm", "linear", 1),
        (None, "head", "linear", 2),
        (None, "embedding", "linear", 1),
    ],
)
def test_the_most_particular_merge_counts(
    slot: int | None, component: str, operator: str, weight: float
) -> None:
    merge = LAYERED.merge_for(slot, component)
    assert (merge.operator, merge.parameters["weight"]) == (operator, weight)
    # What is left out is inherited; but from another operator, no parameters are.
    assert merge.parameters.get("normalize") is (False if operator == "linear" else None)


def test_without_slots_layers_have_the_default() -> None:
    assert recipe(outside={"norm": value(3)}).merge_for(7, "norm").parameters == {"weight": 0.5}


def test_sources_are_inherited_and_else_all_models_but_the_base() -> None:
    assert recipe().merge_for(None, "other").sources == ("a", "x")
    inside = {"layer": 0, "merges": {"mlp": {"sources": ["x"]}}}
    some = recipe(default={"operator": "linear", "sources": ["x", "base"]}, slots=[inside])
    assert some.merge_for(None, "other").sources == ("x", "base")
    assert some.merge_for(0, "mlp").sources == ("x",)
    assert some.merge_for(0, "norm").sources == ("x", "base")


def test_a_parameter_with_a_value_for_each_source_is_inherited_whole() -> None:
    made = recipe(
        default={"operator": "linear", "parameters": {"weight": {"a": 1, "x": 2}}},
        outside={"head": {"parameters": {"weight": {"a": 3}}}},
    )
    assert made.merge_for(None, "head").parameters["weight"] == {"a": 3}
    assert made.merge_for(None, "norm").parameters["weight"] == {"a": 1, "x": 2}


# --- one fingerprint ------------------------------------------------------------------------------


def test_the_fingerprint_is_sha256_of_canonical_json() -> None:
    text = (
        '{"base":"base","default":{"operator":"linear","parameters":{"weight":0.5}},'
        '"evomerge_recipe":1,"models":{"a":"pa","base":"b","x":"px"}}'
    )
    assert recipe().fingerprint == hashlib.sha256(text.encode()).hexdigest()


def test_models_count_by_content_where_it_is_known() -> None:
    def at(folder: str, sha256: str | None) -> str:
        models = {n: {"path": f"{folder}/{n}", "sha256": sha256} for n in MODELS}
        return recipe(models=models).fingerprint

    assert at("here", "0" * 64) == at("there", "0" * 64)
    assert at("here", "0" * 64) != at("here", "1" * 64)
    assert at("here", None) != at("there", None)


def test_neither_order_nor_the_way_of_writing_numbers_counts() -> None:
    one = recipe(
        default={"operator": "ties", "parameters": {"weight": {"a": 1, "x": 0}, "lambda": 1}}
    )
    other = recipe(
        models=dict(reversed(MODELS.items())),
        default={"parameters": {"lambda": 1.0, "weight": {"x": 0.0, "a": 1.0}}, "operator": "ties"},
    )
    assert one == other
    assert one.fingerprint == other.fingerprint
    assert one.to_json() == other.to_json()
    # Sums are made in the order of the sources: it must survive the JSON as well.
    assert one.merge_for(None, "other") == other.merge_for(None, "other")
    assert Recipe.from_json(one.to_json()).merge_for(None, "other") == one.merge_for(None, "other")


def test_a_flag_is_no_number() -> None:
    flag, number = (recipe(default={"operator": "o", "parameters": {"p": v}}) for v in (True, 1))
    assert flag.default.parameters["p"] is True
    assert type(number.default.parameters["p"]) is float
    assert flag.fingerprint != number.fingerprint


@pytest.mark.parametrize(
    "changes",
    [
        {"mask_seed": 1},
        {"dtype": "bfloat16"},
        {"tokenizer": "x"},
        {"base": "x"},
        {"outside": {"head": value(0.5)}},
        {"slots": [{"layer": 0}]},
        {"slots": [{"layer": 0, "input_scale": 2}]},
        {"slots": [{"layer": 0, "branch_scale": 2}]},
        {"default": {"operator": "ties", "parameters": {"weight": 0.5}}},
        {"default": {"operator": "linear", "parameters": {"weight": 0.25}}},
        {"default": {"operator": "linear", "sources": ["a"], "parameters": {"weight": 0.5}}},
    ],
)
def test_whatever_changes_the_model_changes_the_fingerprint(changes: dict[str, Any]) -> None:
    assert recipe(**changes).fingerprint != recipe().fingerprint


# --- JSON -----------------------------------------------------------------------------------------

numbers = st.floats(-10, 10, allow_nan=False) | st.integers(-3, 3) | st.booleans()
values = numbers | st.text(max_size=4) | st.dictionaries(st.sampled_from("ax"), numbers, max_size=2)
merges = st.fixed_dictionaries(
    {},
    optional={
        "operator": st.sampled_from(["linear", "ties"]),
        "sources": st.lists(st.sampled_from(["a", "x", "base"]), max_size=3),
        "parameters": st.dictionaries(st.sampled_from(["weight", "t"]), values, max_size=2),
    },
)
slots = st.fixed_dictionaries(
    {"layer": st.integers(0, 3)},
    optional={
        "merges": st.dictionaries(st.sampled_from(["default", "mlp"]), merges, max_size=2),
        "input_scale": st.floats(0.001, 1000),
        "branch_scale": st.floats(-1000, 1000),
    },
)
recipes = st.fixed_dictionaries(
    {"default": merges.map(lambda m: {"operator": "slerp", **m})},
    optional={
        "outside": st.dictionaries(st.sampled_from(["head", "other"]), merges, max_size=2),
        "slots": st.lists(slots, max_size=3),
        "dtype": st.sampled_from(["float32", "bfloat16"]),
        "mask_seed": st.integers(0, 2**70),
        "models": st.just({**MODELS, "x": {"path": "q", "sha256": "00"}}),
    },
)


@settings(max_examples=150, deadline=None)
@given(recipes)
def test_json_there_and_back(data: dict[str, Any]) -> None:
    one = recipe(**data)
    again = Recipe.from_json(one.to_json())
    assert again == one
    assert again.to_json() == one.to_json() == canonical_json(json.loads(one.to_json()))
    assert again.fingerprint == one.fingerprint


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"defalt": {}}, "defalt: unknown key .did you mean 'default'?"),
        ({"slots": [{"layr": 0, "layer": 0}]}, "slots.0.layr: unknown key .did you mean 'layer'?"),
        ({"default": {"operator": "ties", "parametrs": {}}}, "default.parametrs: unknown key"),
        (
            {"slots": [{"layer": 0, "input_scale": 0}]},
            "input_scale: should be greater than 0, got 0",
        ),
        (
            {"slots": [{"layer": 0, "branch_scale": float("inf")}]},
            "branch_scale: should be .*a finite number.*, got inf$",
        ),
        ({"models": {"base": {"path": "b", "sha": ""}}}, "models.base.sha: unknown key"),
        ({"default": {}}, "default: an operator is needed"),
        ({"base": "bse"}, "unknown model.s. bse; models: a, base, x"),
        ({"outside": {"head": {"sources": ["y"]}}}, "unknown model.s. y"),
        ({"outside": {"layers": {}}}, "outside.layers: should be 'embedding', 'head'"),
        ({"mask_seed": -1}, "mask_seed: should be greater than or equal to 0, got -1"),
        ({"dtype": "float8"}, "dtype: should be 'float32', 'bfloat16' or 'float16', got 'float8'"),
        ({"evomerge_recipe": 2}, "evomerge_recipe: should be 1, got 2"),
        (
            {"default": {"operator": "ties", "parameters": {"weight": [1, 2]}}},
            "default.parameters.weight: should be a valid boolean or a valid number or a valid "
            "string or a mapping, got .1, 2.$",
        ),
        (
            {"default": {"operator": "ties", "parameters": {"weight": {"a": "much"}}}},
            "default.parameters.weight.a: should be a valid boolean.* or a valid number.*'much'$",
        ),
        (
            {"default": {"operator": "ties", "parameters": {"weight": float("nan")}}},
            "default.parameters.weight: should be .*a finite number.*, got nan$",
        ),
    ],
)
def test_every_mistake_is_named_with_its_place(changes: dict[str, Any], told: str) -> None:
    data = {"base": "base", "models": MODELS, "default": {"operator": "linear"}, **changes}
    with pytest.raises(ConfigurationError, match=told) as caught:
        parse(Recipe, Document(data))
    assert len(caught.value.problems) == 1


def test_a_slot_that_scales_nothing_has_the_fingerprint_of_before_there_were_scales() -> None:
    slots = [{"layer": 0, "merges": {"mlp": value(2)}}, {"layer": 2, "layers": {"a": 1}}]
    plain = recipe(slots=slots)
    assert plain.fingerprint == "9ff03c0851462a59e946d980c0282838fb30a42484b9c022709741c216e98b0b"
    spelt = recipe(slots=[{**slot, "input_scale": 1, "branch_scale": 1.0} for slot in slots])
    assert spelt.fingerprint == plain.fingerprint
    assert spelt.to_json() == plain.to_json()
    assert not spelt.is_scaled
    in_place = recipe(slots=[{"layer": 0}, {"layer": 1, "input_scale": 2}])
    assert in_place.is_scaled
    assert in_place.keeps_layers(2), "a layer that is scaled is where it was"


def test_a_recipe_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        recipe().base = "x"  # type: ignore[misc]
