"""The niches space: a codec without loss for tables of lineages, and named refusals."""

from __future__ import annotations

import copy
import json
import math
import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.checkpoints.anatomy import Anatomy, anatomy_of
from evomerge.checkpoints.open import open_checkpoint
from evomerge.documents import Document, parse, read_yaml
from evomerge.errors import ConfigurationError
from evomerge.files import catalogue_folder
from evomerge.merging.flat_order import FlatModels
from evomerge.merging.materialise import Merger
from evomerge.recipe import Recipe
from evomerge.search_spaces.niches import Niches, NichesConfig

EXPERTS = ("a", "b", "c")
SHAPES = {"embed": (5, 3), "layers.0.up": (4, 3), "layers.1.up": (4, 3), "norm": (3,)}
TOTAL = sum(math.prod(shape) for shape in SHAPES.values())


def checkpoints_of(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    states = {
        model: {n: torch.randn(s, generator=generator).to(dtype) for n, s in SHAPES.items()}
        for model in ("base", *EXPERTS)
    }
    return {name: open_checkpoint(state, name=name) for name, state in states.items()}


CHECKPOINTS = checkpoints_of()
ANATOMY: Anatomy = anatomy_of(CHECKPOINTS["base"])
SEEDS = FlatModels(CHECKPOINTS, "base")


def template(**changes: Any) -> Recipe:
    models = {name: f"/{name}" for name in ("base", *EXPERTS)}
    data = {"base": "base", "models": models, "default": {"operator": "ties"}, **changes}
    return Recipe.model_validate(data)


def space_of(models: Any = SEEDS, changes: Any = None, **config: Any) -> Niches:
    parsed = parse(NichesConfig, Document({"kind": "niches", **config}))
    return Niches(parsed, template(**changes or {}), ANATOMY, seeds=models)


def table(stops: list[int], **weights: list[float]) -> dict[str, Any]:
    return {"stops": stops, "weights": weights}


GOOD = table([4, TOTAL], a=[0.5, 1.0], b=[0.25, 0.0], c=[0.0, 0.0])


# --- there and back -------------------------------------------------------------------------------


@st.composite
def tables(draw: st.DrawFn) -> dict[str, Any]:
    stops = sorted({*draw(st.sets(st.integers(1, TOTAL - 1), max_size=6)), TOTAL})
    numbers = st.floats(-2, 2) | st.integers(-2, 2) | st.just(-0.0) | st.just(0)
    weights = {
        name: draw(st.lists(numbers, min_size=len(stops), max_size=len(stops))) for name in EXPERTS
    }
    weights["a"][0] = draw(st.floats(0.5, 1))
    return {"stops": stops, "weights": weights}


@settings(max_examples=150, deadline=None)
@given(tables(), st.sampled_from([{}, {"dtype": "bfloat16", "tokenizer": "a", "mask_seed": 3}]))
def test_what_is_decoded_is_as_if_validated_and_is_encoded_back(
    genome: dict[str, Any], changes: dict[str, Any]
) -> None:
    space = space_of(None, changes)
    genome = json.loads(json.dumps(genome))
    assert space.violations(genome) == []
    recipe = space.decode(genome)
    validated = Recipe.model_validate(
        {
            **dict(template(**changes)),
            "default": {"operator": "linear"},
            "segments": {"stops": genome["stops"], "weights": genome["weights"]},
        }
    )
    again = Recipe.from_json(recipe.to_json())
    for other in (validated, again):
        assert recipe == other
        assert recipe.to_json() == other.to_json()
        assert recipe.fingerprint == other.fingerprint
    assert space.encode(recipe) == genome
    assert space.decode(space.encode(again)) == again


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["whole", "part"]), st.booleans())
def test_samples_are_lineages_without_violations(seed: int, angle: str, split: bool) -> None:
    space = space_of(angle=angle, split=split)
    one, other = (space.sample(np.random.default_rng(seed)) for _ in range(2))
    assert json.loads(json.dumps(one)) == one == other
    assert space.violations(one) == []
    assert space.encode(space.decode(one)) == one
    assert len(one["stops"]) <= (5 if split else 1)


def test_samples_differ_and_reach_the_most_births() -> None:
    space = space_of()
    generator = np.random.default_rng(0)
    lengths = [len(space.sample(generator)["stops"]) for _ in range(200)]
    assert {1, 2, 3, 4, 5} == {*lengths, 1}


def test_designs_are_the_seeds_and_their_average() -> None:
    *alone, average = space_of(None).designs()
    assert alone[1] == table([TOTAL], a=[0.0], b=[1.0], c=[0.0])
    assert average == table([TOTAL], a=[0.333333333], b=[0.333333333], c=[0.333333333])
    everything = space_of(None, seeds="all").designs()
    assert len(everything) == 5
    assert everything[3]["weights"]["base"] == [1.0]


def test_a_child_is_slerp_of_its_parents_merged_models() -> None:
    space = space_of()
    generator = np.random.default_rng(4)
    parents = [space.sample(generator) for _ in range(2)]
    child = space.cross(*parents, 0.3, 19)

    merger = Merger(CHECKPOINTS, ANATOMY, "base", 0)

    def flat(genome: Any) -> np.ndarray:
        tensors = dict(merger.tensors(space.decode(genome)))
        return np.concatenate([tensors[n].numpy().reshape(-1) for n in sorted(tensors)]).astype(
            np.float64
        )

    one, other = map(flat, parents)
    omega = np.arccos(one @ other / np.linalg.norm(one) / np.linalg.norm(other))
    left, right = (
        (np.sin((1 - w) * omega) * one + np.sin(w * omega) * other) / np.sin(omega)
        for w in (0.3, 0.7)
    )
    expected = np.concatenate([left[:19], right[19:]])
    assert np.abs(flat(child) - expected).max() < 1e-6


def test_coefficients_are_short_numbers() -> None:
    space = space_of()
    child = space.cross(*space.designs()[:2], 1 / 3, 11)
    for weight in (w for weights in child["weights"].values() for w in weights):
        assert len(f"{weight!r}".replace("0.", "")) <= 9


def test_neighbours_that_are_equal_when_rounded_are_one_stretch() -> None:
    space = space_of()
    assert space.cross(*space.designs()[:2], 0.5 + 1e-12, 11)["stops"] == [TOTAL]


def test_the_file_says_whose_angle_it_is() -> None:
    whole, part = (space_of(angle=angle) for angle in ("whole", "part"))
    one, other = (SEEDS.read(name, 0, 11).astype(np.float64) for name in "ab")
    omega = np.arccos(one @ other / np.linalg.norm(one) / np.linalg.norm(other))
    child = part.cross(*part.designs()[:2], 0.3, 11)
    expected = np.sin([0.7 * omega, 0.3 * omega]) / np.sin(omega)
    assert np.allclose([child["weights"][n][0] for n in "ab"], expected, rtol=1e-8, atol=0)
    assert child != whole.cross(*whole.designs()[:2], 0.3, 11)


def test_what_was_crossed_before_does_not_show() -> None:
    parents = space_of().designs()[:2]
    fresh, used = space_of(), space_of()
    for split in range(1, TOTAL, 3):
        used.cross(*parents, 0.2, split)
    assert used.cross(*parents, 0.3, 19) == fresh.cross(*parents, 0.3, 19)


def test_without_split_points_a_child_is_one_mix_everywhere() -> None:
    space = space_of(split=False)
    assert space.cross(*space.designs()[:2], 0.3, 11)["stops"] == [TOTAL]


# --- what is refused ------------------------------------------------------------------------------


def changed(**changes: Any) -> dict[str, Any]:
    genome = copy.deepcopy(GOOD)
    for key, value in changes.items():
        place = genome if key == "stops" else genome["weights"]
        if value is None:
            del place[key]
        else:
            place[key] = value
    return genome


@pytest.mark.parametrize(
    ("genome", "told"),
    [
        ([0.5], "expected a table with stops and weights"),
        ({"stops": [TOTAL]}, "expected a table with stops and weights"),
        (changed(stops="x"), "stops: expected a list of whole numbers"),
        (changed(stops=[4.0, TOTAL]), "stops: expected a list of whole numbers"),
        (changed(stops=[True, TOTAL]), "stops: expected a list of whole numbers"),
        (changed(stops=[4, 41]), f"stops: the last one is 41, the models have {TOTAL} entries"),
        (changed(stops=[0, TOTAL]), "stops: expected numbers above 0, got 0"),
        (changed(stops=[TOTAL, TOTAL]), f"ascending numbers, got {TOTAL} after {TOTAL}"),
        ({"stops": [TOTAL], "weights": 3}, "weights: expected a list of coefficients"),
        (changed(b=None), "weights.b: is missing"),
        (changed(bb=[1, 1]), "weights.bb: is no seed .did you mean 'b'?"),
        (changed(base=[1, 1]), "weights.base: is no seed"),
        (changed(c=[1.0]), "weights.c: expected 2 coefficients, got 1"),
        (changed(c=["1", 1]), "weights.c: expected a list of numbers"),
        (changed(c=[True, 1]), "weights.c: expected a list of numbers"),
        (changed(c=[math.nan, 1]), "weights.c: holds a coefficient that is not finite"),
        (changed(c=[1, -math.inf]), "weights.c: holds a coefficient that is not finite"),
        (changed(c=[1, 10**400]), "weights.c: holds a coefficient that is not finite"),
        (changed(a=[0, 0], b=[0.0, -0.0]), "weights: all coefficients are 0"),
    ],
)
def test_a_wrong_table_is_told_by_name(genome: Any, told: str) -> None:
    import re

    (problem,) = space_of(None).violations(genome)
    assert re.search(told, problem), problem


def test_all_violations_are_told() -> None:
    found = space_of(None).violations(changed(stops=[9, 4], b=None, c=[math.nan, 1]))
    assert len(found) == 4


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"segments": None, "default": {"operator": "ties"}}, "segments: the recipe has none"),
        ({"dtype": "float16"}, "dtype: the recipe has 'float16' where this space has None"),
        ({"mask_seed": 1}, "mask_seed"),
        ({"models": {"base": "/base", "a": "/elsewhere"}}, "models"),
        ({"segments": {"stops": [7], "weights": {"a": [1]}}}, "the last one is 7"),
        ({"segments": {"stops": [TOTAL], "weights": {"base": [1]}}}, "base: is no seed"),
    ],
)
def test_recipes_of_no_table_are_refused(changes: dict[str, Any], told: str) -> None:
    segments = {"stops": [TOTAL], "weights": {"a": [1]}}
    data = {"default": {"operator": "linear"}, "segments": segments, **changes}
    with pytest.raises(ValueError, match=told):
        space_of(None).encode(template(**data))


def test_the_base_is_a_seed_where_the_file_says_so() -> None:
    space = space_of(seeds="all")
    recipe = template(default={"operator": "linear"}, segments=table([TOTAL], base=[1.0]))
    assert space.encode(recipe)["weights"]["base"] == [1.0]
    assert "base" in space.sample(np.random.default_rng(0))["weights"]


def test_crossing_needs_the_models_and_the_rest_does_not() -> None:
    space = space_of(None)
    assert space.genes == ()
    with pytest.raises(ConfigurationError, match="made without seeds"):
        space.cross(*space.designs()[:2], 0.5, 3)
    with pytest.raises(ConfigurationError, match="at least one"):
        Niches(NichesConfig(kind="niches"), template(models={"base": "/base"}), ANATOMY)


def test_the_file_of_the_catalogue_is_the_published_one() -> None:
    config = parse(NichesConfig, read_yaml(catalogue_folder("search_spaces") / "m2n2.yaml"))
    assert config == NichesConfig(kind="niches")
    with pytest.raises(ConfigurationError, match="angle"):
        parse(NichesConfig, Document({"kind": "niches", "angle": "hole"}))


# --- how long it takes ----------------------------------------------------------------------------


def test_a_table_of_hundreds_of_stretches_is_decoded_in_a_moment() -> None:
    stops = list(range(1, 300))
    space = space_of(type("Seeds", (), {"total": 299, "read": None})())
    generator = np.random.default_rng(0)
    weights = {name: generator.random(299).tolist() for name in EXPERTS}
    genome = {"stops": stops, "weights": weights}
    taken = []
    for _ in range(20):
        start = time.perf_counter()
        assert not space.violations(genome)
        space.decode(genome)
        taken.append(time.perf_counter() - start)
    assert min(taken) < 1e-3
