"""Values by parts of tensors' names; the oracle is a walk over all names."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stand_ins import llama, space_of
from stand_ins import named as named_of

from evomerge.documents import Document
from evomerge.errors import ConfigurationError
from evomerge.recipe import Recipe
from evomerge.search_spaces import parse_space
from evomerge.search_spaces.dead import dead_genes

FILTERS = ["self_attn", "down_proj", "mlp", "norm"]
ANATOMY = llama(6)


def weights(**searched: Any) -> Any:
    every = {"per": ["expert"], "range": [0, 1], "filters": FILTERS}
    search = {"weight": every | searched, "density": {"range": [0, 1], "filters": ["mlp"]}}
    return space_of({"kind": "weights", "operator": "ties", "search": search}, num_experts=2)


def curves(**curve: Any) -> Any:
    every = {"per": ["expert"], "knots": 3, "range": [-1, 1], "filters": FILTERS}
    search = {"weight": every | curve}
    data = {"kind": "depth_profile", "operator": "task_arithmetic", "search": search}
    return space_of(data, num_experts=2)


def first_of(tensor: str, filters: list[str]) -> str:
    return next((part for part in filters if part in tensor), "")


def in_force(recipe: Recipe, tensor: str) -> dict[str, Any]:
    place = ANATOMY.places[tensor]
    return recipe.merge_for(place.layer, place.component, tensor).parameters


def named(*parts: str) -> str:
    return ".".join(filter(None, parts))


SPACES = {
    "all layers": weights(),
    "groups": weights(per=["expert", "layer"], layers_per_group=2, apart=[]),
    "ends apart": weights(per=["expert", "layer"], layers_per_group=3),
    "components": weights(per=["expert", "component"]),
    "shares": weights(values="softmax"),
    "gates": weights(gate=0.4),
    "curves": curves(),
    "from the first layer": curves(outside="first"),
}


@pytest.mark.parametrize("kind", SPACES)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_there_and_back(kind: str, seed: int) -> None:
    import numpy as np

    space = SPACES[kind]
    recipe = space.decode(space.sample(np.random.default_rng(seed)))
    assert recipe.tensors
    assert space.decode(space.encode(recipe)) == recipe
    assert Recipe.from_json(recipe.to_json()).fingerprint == recipe.fingerprint


@settings(max_examples=25, deadline=None)
@given(point=st.data())
def test_a_tensor_has_the_value_of_the_first_filter_in_its_name(point: st.DataObject) -> None:
    space = SPACES["groups"]
    count = len(space.genes)
    genome = point.draw(st.lists(st.floats(0, 1), min_size=count, max_size=count))
    value = named_of(space.codec, genome)
    recipe = space.decode(genome)
    for tensor, place in ANATOMY.places.items():
        depth = place.layer if place.layer is not None else 0 if "embed" in tensor else 5
        group = f"layers_{depth // 2 * 2}_{depth // 2 * 2 + 1}"
        found = in_force(recipe, tensor)
        for expert in space.experts:
            gene = named("weight", expert, group, first_of(tensor, FILTERS))
            assert found["weight"][expert] == value[gene], tensor
        assert found["density"] == value[named("density", first_of(tensor, ["mlp"]))]


@settings(max_examples=25, deadline=None)
@given(point=st.data())
def test_a_filter_has_a_curve_of_its_own(point: st.DataObject) -> None:
    space = SPACES["from the first layer"]
    count = len(space.genes)
    genome = point.draw(st.lists(st.floats(0, 1), min_size=count, max_size=count))
    value = named_of(space.codec, genome)
    recipe = space.decode(genome)
    for tensor, place in ANATOMY.places.items():
        part = first_of(tensor, FILTERS)
        t = (place.layer or 0) / 5 * 2
        left, share = min(int(t), 1), t - min(int(t), 1)
        for expert in space.experts:
            genes = [named("weight", expert, part, f"knot_{left + i}") for i in (0, 1)]
            a, b = (value.get(gene, 0.0) for gene in genes)  # far knots of the ends have no gene
            expected = (1 - share) * a + share * b
            assert in_force(recipe, tensor)["weight"][expert] == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("kind", SPACES)
def test_every_gene_matters(kind: str) -> None:
    assert dead_genes(SPACES[kind], None) == []


def test_what_is_filtered_away_has_no_gene() -> None:
    space = weights(filters=["model", "lm_head"])
    assert {gene.name for gene in space.genes if gene.name.startswith("weight.expert_0")} == {
        "weight.expert_0.model",
        "weight.expert_0.lm_head",
    }


def test_a_curve_has_the_knots_near_its_tensors_alone() -> None:
    space = curves(filters=["layers.5", "embed"], per=[])
    assert [gene.name for gene in space.genes] == [
        "weight.layers.5.knot_2",
        "weight.embed.knot_0",
        "weight.knot_0",
        "weight.knot_1",
        "weight.knot_2",
    ]


def test_a_filter_that_is_in_no_name_is_refused() -> None:
    for make in (weights, curves):
        with pytest.raises(ConfigurationError) as caught:
            make(filters=["self_atn", "mlp", "mlp.up"])
        told = [str(problem) for problem in caught.value.problems]
        assert told[0].startswith("space.search.weight.filters: 'self_atn' is in no tensor's name")
        assert "did you mean 'self_attn'" in told[0]
        assert told[1].startswith("space.search.weight.filters: 'mlp.up' is in no")  # mlp took them


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (
            {"kind": "weights", "search": {"weight": {"range": [0, 1], "filters": ["a", "a", ""]}}},
            ["search.weight.filters.1: 'a' stands twice", "search.weight.filters.2: an empty one"],
        ),
        (
            {"kind": "masks", "search": {"weight": {"range": [0, 1], "filters": ["a"]}}},
            ["search.weight.filters: switches are for components"],
        ),
        (
            {
                "kind": "depth_profile",
                "search": {
                    "weight": {
                        "range": [0, 1],
                        "filters": ["a"],
                        "knots": {"attention": 2, "mlp": 2, "other": 1},
                    }
                },
            },
            ["search.weight.filters: go with one number of knots"],
        ),
    ],
)
def test_what_goes_with_no_filters_is_told(data: dict[str, Any], told: list[str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_space(Document({"operator": "task_arithmetic", **data}))
    found = [str(problem) for problem in caught.value.problems]
    assert len(found) == len(told), found
    for problem, start in zip(found, told, strict=True):
        assert problem.startswith(start)
