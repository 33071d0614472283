"""Files that read well and make no sense, odd names, and models that are too small or too many."""

from __future__ import annotations

import json
from typing import Any

import pytest
from random_files import attempt, made
from stand_ins import llama

from evomerge.checkpoints.anatomy import Anatomy, Place
from evomerge.errors import ConfigurationError
from evomerge.merging.materialise import check_recipe
from evomerge.recipe import Recipe

THREE = ["a", "b", "c"]
TASK = {"kind": "weights", "operator": "task_arithmetic"}
PER_EXPERT = {"per": ["expert"], "range": [0, 1]}
BY_POSITION = {"kind": "layer_stack", "arrange": "by_position", "layers": [1, 2.0]}
SWAP = {"kind": "layer_swap", "bottom": [1, 2], "top": [1, 2]}


def weights(operator: str = "task_arithmetic", **search: Any) -> dict[str, Any]:
    return {"kind": "weights", "operator": operator, "search": search}


def nuslerp(low: float, high: float) -> dict[str, Any]:
    weight = {"per": ["expert"], "values": "pair", "range": [low, high]}
    merge = {"operator": "nuslerp", "search": {"weight": weight}}
    return {"kind": "layer_choice", "layers": {"merges": {"pair": merge}}}


def several(**search: Any) -> dict[str, Any]:
    return {"kind": "layer_choice", "layers": {"choose": "several", "search": search}}


@pytest.mark.parametrize(
    ("data", "experts", "told"),
    [
        # values that the operator never takes
        (
            {**weights(weight=PER_EXPERT), "fixed": {"weight.a": 99}},
            THREE,
            "space.fixed.weight.a: expected a number from -10 to 10, got 99.0",
        ),
        (
            {**weights(weight=PER_EXPERT), "fixed": {"weight.*": "much"}},
            THREE,
            "space.fixed.weight.*: expected a number from -10 to 10, got 'much'",
        ),
        (
            weights("ties", density={"per": ["expert"], "values": "normalised", "range": [-1, 1]}),
            THREE,
            "search.density.values: shares from -1 to 1 leave the operator's [0, 1]",
        ),
        (
            weights("della", epsilon={"per": ["expert"], "values": "simplex"}),
            THREE,
            "search.epsilon.values: shares from 0 to 1 leave the operator's [0, 0.5]",
        ),
        (
            weights(weight={"per": ["expert"], "values": "softmax", "range": [-800, 0]}),
            THREE,
            "search.weight.range: logits that are 800 apart leave the lower one nothing that",
        ),
        (
            nuslerp(0, 40),
            THREE,
            "layers.merges.pair.search.weight.range: logits that are 40 apart leave",
        ),
        (
            weights("karcher", max_iter={"range": [1, 20], "scale": "log"}),
            THREE,
            "search.max_iter.scale: is a integer, so has no log scale",
        ),
        (
            weights("ties", density={**PER_EXPERT, "gate": 0.1}),
            THREE,
            "search.density.gate: turns experts off by their weight, and this is density",
        ),
        # groups
        (
            {**weights(weight=PER_EXPERT), "expert_groups": {"team": []}},
            THREE,
            "expert_groups.team: names no expert",
        ),
        (
            {**weights(weight=PER_EXPERT), "expert_groups": {"a": ["b", "c"]}},
            THREE,
            "space.expert_groups.a: an expert that is not in the group is called so",
        ),
        (
            {**weights(weight=PER_EXPERT), "expert_groups": {"team": ["a", "d"]}},
            THREE,
            "space.expert_groups.team: no expert 'd'",
        ),
        # names that mean something else
        (
            {"kind": "layer_walk", "merges": {"b": {"operator": "linear"}}},
            THREE,
            "space.merges.b: a model is called so",
        ),
        (BY_POSITION, ["order", "a"], "experts.order: a gene of every place is called so"),
        (BY_POSITION, ["scale", "a"], "experts.scale: a gene of every place is called so"),
        (
            several(weight={"range": [0, 1]}),
            ["weight", "a"],
            "experts.weight: a gene of every layer is called so",
        ),
        (SWAP, ["ends", "a"], "experts.ends: means something else in `outside`"),
        ({**SWAP, "outer": "a", "inner": "a"}, THREE, "space.inner: 'a' is the outer expert"),
        # too many, too few
        (
            BY_POSITION,
            [f"e{i}" for i in range(17)],
            "space.arrange: 17 models in every place are more than can be put in order (16 at most",
        ),
        ({"kind": "masks", "operator": "slerp"}, THREE, "experts: slerp merges 1, got 3"),
        (
            {"kind": "masks", "operator": "linear", "mask": {"most": 0}},
            THREE,
            "space.mask: 1 to 0 of 4 switches leave nothing to choose",
        ),
        (
            {"kind": "masks", "operator": "linear", "mask": {"least": 1.0}},
            THREE,
            "space.mask: 4 to 4 of 4 switches leave nothing to choose",
        ),
        (
            {"kind": "layer_stack", "layers": [9.0, 10.0]},
            THREE,
            "space.layers: 36 or more of 12 in a row leave nothing to choose",
        ),
        ({"kind": "layer_stack", "layers": [1, 1e9]}, THREE, "layers.1: a share lies between 0"),
        ({"kind": "layer_stack", "repeats": 10**9}, THREE, "repeats: should be less than or equal"),
        (
            {"kind": "layer_walk", "skip": False},
            ["a"],
            "space: the first step can only take a's layer",
        ),
        ({"kind": ["weights"]}, THREE, "kind: unknown kind ['weights']"),
    ],
)
def test_what_makes_no_sense_is_told_with_its_place(
    data: dict[str, Any], experts: list[str], told: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        made(data, experts, llama(4))
    assert any(str(problem).startswith(told) for problem in caught.value.problems), caught.value


def points(space: Any) -> list[Recipe]:
    """The recipes of the corners, which come back; those of designs, too."""
    recipes = []
    for genome in [*([x] * len(space.genes) for x in (0.0, 0.5, 1.0)), *space.designs()]:
        if space.violations(genome):
            continue
        recipe = space.decode(genome)
        assert check_recipe(recipe, space.anatomy) == []
        assert space.decode(space.encode(recipe)) == recipe
        recipes.append(recipe)
    return recipes


KINDS: dict[str, dict[str, Any]] = {
    "weights": weights(weight={"per": ["expert", "layer", "component"], "range": [0, 1]}),
    "depth_profile": {
        "kind": "depth_profile",
        "operator": "task_arithmetic",
        "search": {"weight": {"knots": {"attention": 2, "mlp": 2, "other": 1}, "range": [0, 1]}},
    },
    "masks": {"kind": "masks", "operator": "task_arithmetic", "mask": {"per": ["expert", "layer"]}},
    "layer_choice": {"kind": "layer_choice"},
    "several": several(weight={"range": [0, 1]}),
    "layer_pruning": {"kind": "layer_pruning", "remove": 0.25},
    "layer_swap": SWAP,
    "in_a_row": {"kind": "layer_stack", "scales": {"range": [0.5, 1.5]}},
    "by_position": {**BY_POSITION, "scales": {"range": [0.5, 1.5]}},
    "layer_walk": {"kind": "layer_walk"},
}


@pytest.mark.parametrize("name", KINDS)
def test_a_model_without_layers_is_refused_unless_something_is_left_to_search(name: str) -> None:
    space, problems = attempt(KINDS[name], THREE, llama(0))
    assert bool(problems) == (name not in ("weights", "depth_profile"))
    assert space is None or points(space)


@pytest.mark.parametrize("name", KINDS)
def test_a_model_of_one_layer(name: str) -> None:
    one_way = {"layer_pruning", "layer_swap", "masks", "depth_profile"}  # nothing to choose
    space, problems = attempt(KINDS[name], THREE, llama(1))
    assert bool(problems) == (name in one_way)
    assert space is None or points(space)


def file_for(name: str, experts: list[str]) -> dict[str, Any]:
    """Of more than two experts a swap wants to know which."""
    return {**KINDS[name], **({"outer": experts[-1]} if name == "layer_swap" else {})}


@pytest.mark.parametrize("name", sorted(KINDS.keys() - {"by_position"}))
def test_twenty_six_experts(name: str) -> None:
    experts = [f"expert_{i}" for i in range(26)]
    assert points(made(file_for(name, experts), experts, llama(4)))


def test_a_swap_of_three_experts_says_which() -> None:
    _, problems = attempt(SWAP, THREE, llama(6))
    assert "between two of the 3: name them" in str(problems[0])


ODD = ["embedding", "layer", "layer_0", "mlp", "x.y", "skip", "go back.", "removed_0", "mask", "1"]


@pytest.mark.parametrize("name", KINDS)
def test_names_that_look_like_something_else(name: str) -> None:
    assert points(made(file_for(name, ODD), ODD, llama(4)))


def test_an_expert_without_weight_may_be_off_in_many_layers() -> None:
    """Its switches say nothing, and there may not be more of them on than the file lets."""
    mask = {"per": ["expert", "layer"], "most": 2}
    data = {"kind": "masks", "operator": "linear", "mask": mask, "search": {"weight": PER_EXPERT}}
    space = made(data, THREE, llama(4))
    genome = [1.0] * 12 + [0.0, 0.5, 1.0]
    recipe = space.decode(genome)
    assert space.decode(space.encode(recipe)) == recipe


def test_shares_have_no_negative_zero() -> None:
    weight = {"per": ["expert"], "values": "normalised", "range": [-1, 1]}
    space = made(weights(weight=weight), THREE, llama(2))
    recipe = space.decode([1.0, 0.0, 0.5 - 1e-7])
    assert "-0.0" not in recipe.to_json()
    assert space.decode(space.encode(recipe)).fingerprint == recipe.fingerprint


def test_whole_numbers_read_as_in_a_file() -> None:
    space = made(weights("karcher", max_iter={"range": [1, 20]}), THREE, llama(2))
    recipe = space.decode([0.5])
    again = Recipe.from_json(recipe.to_json())
    assert json.loads(recipe.to_json())["default"]["parameters"]["max_iter"] == 11.0
    assert again.fingerprint == recipe.fingerprint


def test_a_gated_weight_comes_before_what_hangs_on_it_wherever_the_file_has_it() -> None:
    search = {"density": PER_EXPERT, "weight": {**PER_EXPERT, "range": [-1, 1], "gate": 0.2}}
    space = made(weights("ties", **search), THREE, llama(2))
    assert [gene.name for gene in space.genes][:3] == ["weight.a", "weight.b", "weight.c"]
    off = [0.5, 1.0, 1.0, 0.9, 0.9, 0.9]
    assert space.active(off) == [True, True, True, False, True, True]
    assert space.decode(off) == space.decode([*off[:3], 0.1, *off[4:]])


def test_a_curve_over_components_that_a_model_lacks_is_left_out() -> None:
    places = {f"l.{i}.w": Place(i, "mlp") for i in range(3)}
    roles = dict.fromkeys(places, "l.*.w")
    space = made(KINDS["depth_profile"], THREE, Anatomy(places, 3, roles, dict.fromkeys(places, 1)))
    assert [gene.name for gene in space.genes] == ["weight.mlp.knot_0", "weight.mlp.knot_1"]


def test_ends_of_ranges_that_are_no_round_numbers_come_back() -> None:
    curve = {"knots": 3, "range": [0.12345, 0.98765]}
    data = {"kind": "depth_profile", "operator": "task_arithmetic", "search": {"weight": curve}}
    space = made(data, THREE, llama(5))
    low = space.decode([0.0, 0.5, 1.0])
    assert low.slots is not None
    assert low.slots[0].merges["default"].parameters["weight"] == 0.12345
    assert space.decode(space.encode(low)) == low


def test_designs_are_left_out_where_ranges_cannot_say_them() -> None:
    several_high = {"choose": "several", "search": {"weight": {"range": [0.55, 1]}}}
    space = made({"kind": "layer_pruning", "remove": 1, "layers": several_high}, THREE, llama(6))
    scales = (0.6, 0.7, 0.8, 1.0)
    assert len(space.designs()) == 3 * (1 + len(scales) * 7)
    high = {"operator": "linear", "search": {"weight": {"per": ["expert"], "range": [0.1, 1]}}}
    layers = {"experts": False, "merges": {"one": high}}
    assert made({"kind": "layer_choice", "layers": layers}, THREE, llama(4)).designs() == []


def test_a_place_that_was_too_much_has_no_order() -> None:
    """Six layers are wanted where four may be: the lowest coordinates are left out."""
    space = made({**BY_POSITION, "layers": [1, 4]}, ["a", "b"], llama(4))
    genome = [0.9, 0.8, 0.9, 0.9, 0.6, 0.1, 0.9, 0.7, 0.1, 0.9, 0.6, 0.1]
    active = dict(zip((gene.name for gene in space.genes), space.active(genome), strict=True))
    recipe = space.decode(genome)
    for layer in range(4):
        held = [slot for slot in recipe.slots or () if slot.layer == layer]
        assert active[f"layer_{layer}.order"] == (len(held) > 1)


def test_of_two_merges_by_one_operator_the_one_is_read_whose_range_has_the_value() -> None:
    low = {"operator": "linear", "search": {"weight": {"range": [0.1, 0.2]}}}
    high = {"operator": "linear", "search": {"weight": {"range": [0.8, 0.9]}}}
    fixed = {"operator": "linear", "fixed": {"weight": 0.5}}
    layers = {"experts": False, "merges": {"low": low, "high": high, "fixed": fixed}}
    space = made({"kind": "layer_choice", "layers": layers}, THREE, llama(3))
    assert space.designs() == []
    genome = [0.1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.9, 0.5, 0.5]
    back = space.encode(space.decode(genome))
    assert [space.codec.values(back)[i] for i in (0, 3, 6)] == ["low", "high", "fixed"]
