"""Files of mergekit-evolve; the oracle is mergekit 0.1.5, recorded and, where it is, live."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from make_mergekit_evolve_golden import TARGET, mergekit_evolves
from make_mergekit_golden import PYTHON, flat
from mergekit_cases import LAYERS, write_models
from mergekit_evolve_cases import GENOMES, evolve_file, genotype, num_groups, states
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from evomerge.checkpoints.anatomy import anatomy_of
from evomerge.checkpoints.open import open_checkpoint
from evomerge.experiment.config import ExperimentConfig, read_experiment
from evomerge.experiment.mergekit_genome import SEARCHED
from evomerge.experiment.recipes import open_recipe_models
from evomerge.recipe import Recipe
from evomerge.results.export import merged_tensors
from evomerge.search_spaces import make_space

with safe_open(TARGET, "pt") as golden:
    GOLDEN = {name: golden.get_tensor(name) for name in golden.keys()}  # noqa: SIM118
    METADATA = golden.metadata()
FILES: dict[str, Any] = json.loads(METADATA["files"])
FIRST: dict[str, Any] = json.loads(METADATA["first"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models that the golden file was made of, as folders, and the files."""
    place = tmp_path_factory.mktemp("models").resolve()
    models = states()
    for model, state in models.items():
        start = 0
        for name in sorted(state):
            stop = start + state[name].numel()
            state[name] = GOLDEN[f"in/{model}"][start:stop].view(state[name].shape).clone()
            start = stop
    write_models(place, models)
    for case in GENOMES:
        (place / f"{case}.yaml").write_text(evolve_file(case))
    return place


def space_for(config: ExperimentConfig) -> Any:
    template = Recipe.model_validate(
        {
            "base": "base",
            "models": config.models(),
            "default": {"operator": "linear"},
            "dtype": "float32",  # so that the arithmetic is compared, and not its rounding
        }
    )
    return make_space(config.space, template, anatomy_of(open_checkpoint(config.base, name="base")))


def experts_of(case: str, config: ExperimentConfig) -> dict[int, str]:
    """The number of a model in the file -> its name here, if it is an expert."""
    genome = GENOMES[case]
    merged = [m for m in genome["models"] if m != "base" or genome["merge_method"][0] in "ls"]
    names = dict(zip(merged, config.experts, strict=True))
    return {i: names[model] for i, model in enumerate(genome["models"]) if model in names}


def values_of(case: str, config: ExperimentConfig, point: NDArray[np.float64]) -> dict[str, float]:
    """Genes' values that a genotype stands for; some of them have no gene here."""
    genome = GENOMES[case]
    size = genome.get("layer_granularity", 0) or LAYERS
    experts = experts_of(case, config)
    values = {}
    for (group, model, part, number), value in np.ndenumerate(point):
        if model not in experts:
            continue
        parameter = SEARCHED[genome["merge_method"]][number]
        first, last = group * size, (group + 1) * size - 1
        layers = f"layer_{first}" if first == last else f"layers_{first}_{last}"
        told = [*genome.get("filters", ()), ""][part]
        told = "" if told == "*" else told
        if parameter == "t":
            values[f"{layers}.weight.{experts[model]}"] = value
            continue
        if not genome.get("allow_negative_weights"):
            value = abs(value)
        value = min(value, 1.0) if parameter == "density" else value
        place = layers if genome.get("layer_granularity") else ""
        where = [told, f"knot_{group}"] if genome.get("smooth") else [place, told]
        name = ".".join(filter(None, (parameter, experts[model], *where)))
        values.setdefault(name, value)  # what stands after `*` fits nothing
    return values


def decoded(config: ExperimentConfig, case: str, point: NDArray[np.float64]) -> tuple[Any, Recipe]:
    space = space_for(config)
    values = values_of(case, config, point)
    names = [gene.name for gene in space.genes]
    assert set(names) <= set(values)
    genome = space.codec.genome({name: values[name] for name in names})
    return space, space.decode(genome)


def made_by(recipe: Recipe) -> dict[str, Tensor]:
    return merged_tensors(recipe, open_recipe_models(recipe))


def test_the_oracle_is_the_version_that_parity_is_claimed_for() -> None:
    assert METADATA["mergekit"] == "0.1.5"
    assert {case: [evolve_file(case), genotype(case).tolist()] for case in GENOMES} == FILES


@pytest.mark.parametrize("case", GENOMES)
def test_a_genotype_merges_to_what_mergekit_makes_of_it(folder: Path, case: str) -> None:
    config = read_experiment(folder / f"{case}.yaml")
    space, recipe = decoded(config, case, genotype(case))
    torch.testing.assert_close(flat(made_by(recipe)), GOLDEN[f"out/{case}"], rtol=0, atol=2e-6)
    assert space.decode(space.encode(recipe)) == recipe


@pytest.mark.parametrize("case", GENOMES)
def test_the_search_begins_at_mergekits_first_genotype(folder: Path, case: str) -> None:
    config = read_experiment(folder / f"{case}.yaml")
    space, recipe = decoded(config, case, np.array(FIRST[case]))
    mean = config.searcher.options["x0"]
    assert space.decode(mean) == recipe
    assert config.searcher.options["sigma0"] == 1 / 6
    assert config.budget.candidates == 100
    assert config.dtype == "bfloat16"


@pytest.mark.slow
@pytest.mark.skipif(PYTHON not in os.environ, reason=f"{PYTHON} names no interpreter with mergekit")
def test_mergekit_itself_agrees_on_every_genotype(tmp_path: Path) -> None:
    """`make test-mergekit` runs this: the golden file is not needed, nor trusted."""
    place = tmp_path.resolve()
    write_models(place, states())
    made, first, version = mergekit_evolves(place)
    assert version == "0.1.5"
    assert first == FIRST
    for case, expected in made.items():
        _, recipe = decoded(read_experiment(place / f"{case}.yaml"), case, genotype(case))
        found = made_by(recipe)
        assert found.keys() == expected.keys(), case
        torch.testing.assert_close(flat(found), flat(expected), rtol=0, atol=2e-6)


def test_there_are_as_many_groups_as_in_mergekit() -> None:
    assert all(len(FIRST[case]) == num_groups(GENOMES[case]) for case in GENOMES)
