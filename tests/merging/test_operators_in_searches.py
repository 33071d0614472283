"""What a search and a recipe can do with an operator follows from its declaration alone."""

from __future__ import annotations

import pytest
import torch
import yaml

import evomerge as package
from evomerge.checkpoints.adapters import as_adapter
from evomerge.checkpoints.anatomy import anatomy_of
from evomerge.checkpoints.open import open_checkpoint
from evomerge.documents import Document
from evomerge.errors import ConfigurationError
from evomerge.experiment.recipes import open_recipe_models, read_recipe
from evomerge.merging import OPERATORS
from evomerge.merging.calibration.stand_in import StandIn
from evomerge.merging.materialise import Merger
from evomerge.recipe import Recipe
from evomerge.search_spaces import make_space, parse_space

MODELS = ("base", "a", "b", "c")
STATES = {
    model: {
        f"layers.{i}.mlp.up.weight": torch.randn(
            4, 3, generator=torch.Generator().manual_seed(9 * i + m)
        )
        for i in range(2)
    }
    for m, model in enumerate(MODELS)
}
CHECKPOINTS = {name: open_checkpoint(state, name=name) for name, state in STATES.items()}


def searched(operator):
    return {
        parameter.name: {"range": [parameter.low, parameter.high]}
        for parameter in operator.parameters
        if parameter.kind == "real" and not parameter.per_source
    } | {
        parameter.name: {"range": [0.1, 1], "per": ["expert", "layer"]}
        for parameter in operator.parameters
        if parameter.per_source and parameter.low <= 0.1 and parameter.high >= 1
    }


@pytest.mark.parametrize(
    "operator",
    [o for o in (*OPERATORS.values(), OPERATORS["ties | lines"]) if searched(o)],
    ids=lambda operator: operator.name,
)
def test_every_real_parameter_is_a_gene_and_all_others_are_fixed(operator):
    fixed = {p.name: p.default for p in operator.parameters if p.kind not in ("real",)}
    fixed |= {p.name: p.options[-1] for p in operator.parameters if p.kind == "choice"}
    data = {"kind": "weights", "operator": operator.name, "search": searched(operator)}
    config = parse_space(Document({**data, "fixed": fixed}))
    experts = MODELS[1:][: operator.max_sources]
    assert config.check_experts(experts) == []
    template = Recipe.model_validate(
        {
            "base": "base",
            "models": {name: f"/{name}" for name in ("base", *experts)},
            "default": {"operator": operator.name},
        }
    )
    models = {name: CHECKPOINTS[name] for name in ("base", *experts)}
    if operator.needs_adapters:
        models |= {name: as_adapter(models[name], models["base"]) for name in experts}
    anatomy = anatomy_of(models["base"])
    space = make_space(config, template, anatomy)
    genome = [0.3 + 0.4 * i / len(space.genes) for i in range(len(space.genes))]
    recipe = space.decode(genome)
    assert space.encode(recipe) == pytest.approx(genome, abs=1e-4)
    merger = Merger(models, anatomy, "base", 2**20, statistics=StandIn(models))
    for _, value in merger.tensors(recipe):
        assert torch.isfinite(value).all()


@pytest.mark.parametrize(
    ("fixed", "told"),
    [
        ({"max_iter": 1.5}, "fixed.max_iter: expected a whole number from 1 to 1000"),
        ({"max_iter": "many"}, "got 'many'"),
    ],
)
def test_wrong_integers_of_a_space_are_told(fixed, told):
    data = {"operator": "karcher", "search": {"tol": {"range": [0, 1]}}, "fixed": fixed}
    with pytest.raises(ConfigurationError, match=told):
        parse_space(Document({"kind": "weights", **data}))


def test_an_integer_is_a_gene_with_whole_numbers():
    data = {"operator": "karcher", "search": {"max_iter": {"range": [1, 9]}}}
    config = parse_space(Document({"kind": "weights", **data}))
    template = Recipe.model_validate(
        {"base": "base", "models": {n: f"/{n}" for n in MODELS}, "default": {"operator": "linear"}}
    )
    space = make_space(config, template, anatomy_of(CHECKPOINTS["base"]))
    found = {space.decode([i / 99]).default.parameters["max_iter"] for i in range(100)}
    assert found == set(range(1, 10))
    data["search"]["max_iter"]["range"] = [1, 2.5]
    with pytest.raises(ConfigurationError, match="whole number"):
        parse_space(Document({"kind": "weights", **data}))


@pytest.mark.parametrize(
    ("operator", "count", "wants"),
    [("nuslerp", 3, "2"), ("slerp", 2, "1"), ("nearswap", 2, "1"), ("model_stock", 1, "2 or more")],
)
def test_a_wrong_number_of_models_is_told_before_any_is_opened(tmp_path, operator, count, wants):
    names = MODELS[: count + 1]
    data = {
        "base": "base",
        "models": {name: f"nowhere/{name}" for name in names},
        "default": {"operator": operator},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(ConfigurationError, match=f"{operator} takes {wants}, got {count}"):
        open_recipe_models(read_recipe(tmp_path / "recipe.yaml"))


def test_a_value_for_some_sources_alone_is_an_error():
    with pytest.raises(ConfigurationError, match="no value for b, c"):
        package.merge(
            {name: STATES[name] for name in "abc"},
            "linear",
            base=STATES["base"],
            parameters={"weight": {"a": 1}},
        )
