"""The weights space: a codec without loss over any anatomy, with no gene that does nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.checkpoints.anatomy import COMPONENTS, Anatomy, Place, anatomy_of
from evomerge.checkpoints.open import open_checkpoint
from evomerge.documents import Document, read_yaml
from evomerge.errors import ConfigurationError
from evomerge.files import catalogue_folder
from evomerge.merging import OPERATORS
from evomerge.merging.check import check_merge
from evomerge.merging.materialise import Merger
from evomerge.recipe import Merge, Recipe
from evomerge.search_spaces import make_space, parse_space
from evomerge.search_spaces.weights import Weights

INSIDE = ("attention", "mlp", "norm", "other")
OUTSIDE = ("embedding", "head", "norm", "other")


def template_of(experts: list[str], operator: str, seed: int = 0) -> Recipe:
    return Recipe.model_validate(
        {
            "base": "base",
            "models": {name: f"/{name}" for name in ["base", *experts]},
            "default": {"operator": operator},
            "mask_seed": seed,
        }
    )


def space_of(data: dict[str, Any], anatomy: Anatomy, experts: list[str]) -> Weights:
    config = parse_space(Document({"kind": "weights", **data}))
    return make_space(config, template_of(experts, data["operator"]), anatomy)  # type: ignore[return-value]


@st.composite
def anatomies(draw: st.DrawFn) -> Anatomy:
    """Any model: layers need not be alike, nor need there be layers, or anything outside them."""
    num_layers = draw(st.integers(0, 4))
    places = [
        Place(layer, component)
        for layer in range(num_layers)
        for component in draw(st.lists(st.sampled_from(INSIDE), min_size=1, unique=True))
    ]
    least = 0 if places else 1
    places += [
        Place(None, c)
        for c in draw(st.lists(st.sampled_from(OUTSIDE), min_size=least, unique=True))
    ]
    names = {f"t{i}": place for i, place in enumerate(places)}
    return Anatomy(names, num_layers, dict.fromkeys(names, "r"), dict.fromkeys(names, 1))


@st.composite
def spaces(draw: st.DrawFn) -> Weights:
    with_genes = [n for n, o in OPERATORS.items() if any(p.kind == "real" for p in o.parameters)]
    operator = OPERATORS[draw(st.sampled_from(sorted(with_genes)))]
    reals = {p.name: p for p in operator.parameters if p.kind == "real"}
    search = {}
    for name in draw(st.lists(st.sampled_from(sorted(reals)), min_size=1, unique=True)):
        low, high = reals[name].low, reals[name].high
        bounds = sorted(draw(st.lists(st.integers(0, 64), min_size=2, max_size=2, unique=True)))
        edges = [low + (high - low) * b / 64 for b in bounds]
        per = draw(st.sampled_from([[], ["layer"], ["layer", "component"]]))
        if reals[name].per_source and draw(st.booleans()):
            per = ["expert", *per]
        search[name] = {"range": edges, "per": per}
    values: dict[str, Any] = {p.name: p.default for p in operator.parameters}
    values |= {p.name: p.high for p in operator.parameters if p.high is not None}
    values |= {p.name: p.options[-1] for p in operator.parameters if p.options}
    left = sorted(set(values) - set(search))
    fixed = {name: values[name] for name in left if draw(st.booleans())}
    num_experts = operator.max_sources or draw(st.integers(operator.min_sources, 3))
    data = {
        "operator": operator.name,
        "search": search,
        "fixed": fixed,
        # It means nothing where nothing varies by layer.
        "layers_per_group": draw(st.integers(1, 3 if "layer" in str(search) else 1)),
    }
    return space_of(data, draw(anatomies()), ["z", "y", "x"][:num_experts])


@settings(max_examples=200, deadline=None)
@given(spaces(), st.data())
def test_decoding_and_encoding_lose_nothing(space: Weights, data: st.DataObject) -> None:
    unit = st.floats(0, 1) | st.sampled_from([0.0, 1.0])
    genome = data.draw(st.lists(unit, min_size=len(space.genes), max_size=len(space.genes)))
    assert space.violations(genome) == []
    recipe = space.decode(genome)
    for place in space.anatomy.places.values():
        assert check_merge(recipe.merge_for(place.layer, place.component), "base") == []
    back = space.encode(recipe)
    assert space.decode(back) == recipe
    assert space.decode(back).fingerprint == recipe.fingerprint
    for gene, one, other in zip(space.genes, genome, back, strict=True):
        rounding = 1e-15 * max(abs(gene.low), abs(gene.high))
        assert abs(one - other) * (gene.high - gene.low) <= 1e-6 + rounding
        assert 0 <= other <= 1


@settings(max_examples=100, deadline=None)
@given(spaces())
def test_every_gene_changes_what_is_in_force_somewhere(space: Weights) -> None:
    places = set(space.anatomy.places.values())
    middle = [0.5] * len(space.genes)

    def in_force(genome: list[float]) -> list[Any]:
        recipe = space.decode(genome)
        merges = [recipe.merge_for(p.layer, p.component) for p in sorted(places, key=str)]
        return [merge.parameters for merge in merges]

    for i in range(len(middle)):
        assert in_force([*middle[:i], 0.75, *middle[i + 1 :]]) != in_force(middle)
    # and every place hears from some gene
    assert all(a != b for a, b in zip(in_force(middle), in_force([1.0] * len(middle)), strict=True))
    names = [gene.name for gene in space.genes]
    assert len(set(names)) == len(names)


def transformer(num_layers: int = 6) -> Anatomy:
    places = {f"l{i}.{c}": Place(i, c) for i in range(num_layers) for c in INSIDE[:3]}
    places |= {f"o.{c}": Place(None, c) for c in ("embedding", "norm", "head")}
    return Anatomy(places, num_layers, dict.fromkeys(places, "r"), dict.fromkeys(places, 1))


@pytest.mark.parametrize(
    ("name", "num_genes"),
    [("per_expert", 3), ("per_layer", 24), ("per_component", 60), ("dare_ties", 6)],
)
def test_catalogue_spaces_have_the_genes_they_say_and_encode_the_designs(
    name: str, num_genes: int
) -> None:
    config = parse_space(read_yaml(catalogue_folder("search_spaces") / f"{name}.yaml"))
    template = template_of(["sort", "back", "rot"], config.operator)
    space = make_space(config, template, transformer())
    assert len(space.genes) == num_genes
    designs = space.designs()
    assert len(designs) == 4
    for number, weights in enumerate([(1, 0, 0), (0, 1, 0), (0, 0, 1), (1 / 3, 1 / 3, 1 / 3)]):
        recipe = space.decode(designs[number])
        for place in transformer().places.values():
            merge = recipe.merge_for(place.layer, place.component)
            found = merge.parameters["weight"]
            assert [found[n] for n in ("sort", "back", "rot")] == pytest.approx(weights, abs=1e-6)
            assert set(merge.parameters.get("density", {"x": 1.0}).values()) == {1.0}


def test_a_zero_has_no_sign() -> None:
    data = {"operator": "task_arithmetic", "search": {"weight": {"range": [-1, 1]}}}
    space = space_of(data, transformer(), ["a"])
    below, above = space.decode([0.5 - 1e-9]), space.decode([0.5 + 1e-9])
    assert below.fingerprint == above.fingerprint == space.decode([0.5]).fingerprint


def test_groups_of_layers_share_genes() -> None:
    data = {"operator": "task_arithmetic", "layers_per_group": 4}
    search = {"weight": {"per": ["layer"], "range": [0, 1]}}
    space = space_of({**data, "search": search}, transformer(), ["a", "b"])
    assert [gene.name for gene in space.genes] == [
        "weight.embedding",
        "weight.layers_0_3",
        "weight.layers_4_5",
        "weight.head",
    ]
    recipe = space.decode([0.1, 0.2, 0.3, 0.4])
    found = [recipe.merge_for(i, "mlp").parameters["weight"] for i in range(6)]
    assert found == [0.2] * 4 + [0.3] * 2
    assert recipe.merge_for(None, "norm").parameters["weight"] == 0.4


PER_EXPERT = {
    "operator": "task_arithmetic",
    "search": {"weight": {"per": ["expert"], "range": [0, 1]}},
}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"default": {"operator": "ties", "parameters": {"weight": 0.5}}}, "expected operator"),
        (
            {
                "default": {"operator": "task_arithmetic"},
                "outside": {"head": {"parameters": {"weight": 0.1}}},
            },
            "one gene",
        ),
        ({"default": {"operator": "task_arithmetic", "parameters": {"weight": 2}}}, "outside .0"),
        (
            {
                "default": {
                    "operator": "task_arithmetic",
                    "parameters": {"weight": 0.5, "lambda": 2},
                }
            },
            "lambda: the recipe has 2",
        ),
        (
            {
                "default": {
                    "operator": "task_arithmetic",
                    "sources": ["a"],
                    "parameters": {"weight": 0.5},
                }
            },
            "merges ..a",
        ),
        (
            {"default": {"operator": "task_arithmetic", "parameters": {"weigth": 0.5}}},
            "no such parameter",
        ),
        ({"slots": [{"layer": 1}, {"layer": 0}]}, "rearranges or scales layers"),
        ({"mask_seed": 3}, "mask_seed: the recipe has 3"),
        ({"dtype": "bfloat16"}, "dtype"),
        (
            {
                "slots": [
                    {"layer": i, "merges": {"mlp": {"parameters": {"weight": 0.1}}} if i else {}}
                    for i in range(6)
                ]
            },
            "one gene",
        ),
    ],
)
def test_what_no_gene_says_is_not_encoded(changes: dict[str, Any], told: str) -> None:
    space = space_of(PER_EXPERT, transformer(), ["a", "b"])
    default = Merge(operator="task_arithmetic", parameters={"weight": {"a": 0.25, "b": 1.0}})
    known = Recipe(**{**dict(template_of(["a", "b"], "task_arithmetic")), "default": default})
    assert space.encode(known) == [0.25, 1.0]
    changed = Recipe.model_validate({**known.model_dump(exclude_defaults=True), **changes})
    with pytest.raises(ValueError, match=told):
        space.encode(changed)


@pytest.mark.parametrize(
    ("genome", "told"),
    [
        ([0.5], "expected a list of 2 numbers"),
        ([0.5, 1.5], "weight.b: 1.5 is outside"),
        (["a"], "list"),
        ([0.5, float("nan")], "outside"),
    ],
)
def test_violations_are_told(genome: Any, told: str) -> None:
    (found,) = space_of(PER_EXPERT, transformer(), ["a", "b"]).violations(genome)
    assert told in found


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"operator": "tise"}, ["operator: unknown operator 'tise' (did you mean 'ties'?"]),
        ({"search": {}}, ["search: Dictionary should have at least 1 item"]),
        (
            {
                "search": {
                    "weigt": {"range": [0, 1]},
                    "weight": {"range": [0, 11]},
                    "lambda": {"range": [0, 1], "per": ["expert"]},
                    "normalize": {"range": [0, 1]},
                    "trim": {"options": ["tensor", "tesnor"]},
                },
                "fixed": {"density": 2, "compat": "mergkit", "lambda": 1, "tirm": "auto"},
            },
            [
                "search.weigt: ties has no such parameter (did you mean 'weight'?",
                "search.weight.range: [0, 11] leaves the operator's [-10, 10]",
                "search.lambda.per: it is one value for all experts",
                "search.normalize: is a flag, so has no range",
                "search.trim.options: trim is never 'tesnor' (did you mean 'tensor'?",
                "fixed.lambda: is searched already",
                "fixed.density: expected a number from 0 to 1, got 2.0",
                "fixed.compat: expected one of published, mergekit, got 'mergkit' (did you mean",
                "fixed.tirm: ties has no such parameter (did you mean 'trim'?",
            ],
        ),
        (
            {"search": {"weight": {"range": [0, -1], "layer_groups": 2, "scale": "log"}}},
            [
                "search.weight.range: expected low < high",
                "search.weight.scale: a log scale needs a range that begins above 0",
                "search.weight.layer_groups: means nothing without `layer` in per",
            ],
        ),
        (
            {
                "search": {
                    "density": {"levels": [0.5, 0.2]},
                    "weight": {"levels": [0, 1], "range": [0, 1]},
                    "lambda": {"levels": [0.5, 1], "scale": "log"},
                }
            },
            [
                "search.density.levels: expected two or more numbers, each higher than the one",
                "search.weight.levels: expected one of range and levels",
                "search.lambda.scale: is of a range: levels are as they are",
            ],
        ),
        (
            {
                "search": {
                    "density": {"levels": [0.5, 2]},
                    "weight": {"levels": [0, 1], "per": ["expert"], "values": "normalised"},
                }
            },
            ["search.weight.levels: go with no gate, and with `values: raw` alone"],
        ),
        (
            {"search": {"density": {"levels": [0.5, 2]}, "trim": {"levels": [0, 1]}}},
            [
                "search.density.levels.1: 2 leaves the operator's [0, 1]",
                "search.trim: is a choice, so has no levels",
            ],
        ),
        (
            {"search": {"weight": {"range": [0, float("inf")]}}},
            ["search.weight.range.1: should be a finite"],
        ),
        ({"kind": "wieghts"}, ["kind: unknown kind 'wieghts' (did you mean 'weights'?"]),
    ],
)
def test_all_that_is_wrong_with_a_space_is_told(changes: dict[str, Any], told: list[str]) -> None:
    data = {
        "kind": "weights",
        "operator": "ties",
        "search": {"weight": {"range": [0, 1]}},
        **changes,
    }
    with pytest.raises(ConfigurationError) as caught:
        parse_space(Document(data))
    problems = [str(problem) for problem in caught.value.problems]
    assert len(problems) == len(told), problems
    for problem, start in zip(problems, told, strict=True):
        assert problem.startswith(start)


@pytest.mark.parametrize("name", ["per_expert", "per_layer", "per_component", "dare_ties"])
def test_every_gene_changes_the_tensors_of_the_tiny_family(name: str, tiny_zoo: Path) -> None:
    torch.set_num_threads(1)
    experts = ["sort", "back", "rot"]
    checkpoints = {n: open_checkpoint(tiny_zoo / n, name=n) for n in ["base", *experts]}
    anatomy = anatomy_of(checkpoints["base"])
    assert {p.component for p in anatomy.places.values()} <= set(COMPONENTS)
    config = parse_space(read_yaml(catalogue_folder("search_spaces") / f"{name}.yaml"))
    space = make_space(config, template_of(experts, config.operator), anatomy)
    merger = Merger(checkpoints, anatomy, "base", 2**28)

    def tensors(genome: list[float]) -> dict[str, torch.Tensor]:
        return dict(merger.tensors(space.decode(genome)))

    middle = [0.4] * len(space.genes)
    before, fingerprint = tensors(middle), space.decode(middle).fingerprint
    for i, gene in enumerate(space.genes):
        moved = [*middle[:i], 0.6, *middle[i + 1 :]]
        assert space.decode(moved).fingerprint != fingerprint
        after = tensors(moved)
        changed = {n for n in before if not torch.equal(before[n], after[n])}
        assert changed, gene.name
        if "layer_2" in gene.name:
            assert {anatomy.places[n].layer for n in changed} == {2}
        if gene.name.endswith(".mlp"):
            assert {anatomy.places[n].component for n in changed} == {"mlp"}
