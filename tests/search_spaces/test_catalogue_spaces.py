"""Every space of the catalogue: its dimensions, a thousand random points, and real models."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stand_ins import catalogue_space, experts_for, template_of

from evomerge.checkpoints.adapters import as_adapter
from evomerge.checkpoints.anatomy import anatomy_of
from evomerge.checkpoints.open import Checkpoint, open_checkpoint
from evomerge.documents import read_yaml
from evomerge.errors import CandidateError
from evomerge.files import catalogue_folder
from evomerge.merging import OPERATORS
from evomerge.merging.calibration.stand_in import StandIn
from evomerge.merging.materialise import check_recipe
from evomerge.merging.resident import Resident
from evomerge.recipe import ModelSource, Recipe
from evomerge.search_spaces import make_space, parse_space
from evomerge.search_spaces.catalogue import entries
from evomerge.search_spaces.cube import CubeSpace
from evomerge.search_spaces.dead import dead_genes

FILES = sorted(catalogue_folder("search_spaces").glob("*.yaml"))
NAMES = [path.stem for path in FILES]
PAPER = re.compile(r"arXiv:\d{4}\.\d{5}")
PLAIN = {
    "depth_thirds",
    "masked_components",
    "per_component",
    "per_layer",
    "shrink",
}  # shapes that no paper claims

# What a random point may violate.
NAMED = {
    "gptailor_7b": r"removed_0, [a-z0-9_, .]*removed_\d all different: \d+ stands twice",
    "layer_swapping": r"bottom \d+, top \d+ and transitions of \d+ leave expert_1 none of 12 .*",
    "reinforced_merging": r"the walk (goes back beyond layer 0|takes no layer"
    r"|is at layer \d+ of \d+ after \d+ steps)",
}
# Where a random point has no model: nothing but the numbers themselves tells.
UNMERGEABLE = {"linear", "model_glue"}
# Which can say neither an expert alone nor the uniform merge.
UNDESIGNED = {"lines", "lines_with_ties", "lora_lego", "pcb"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_comment_cites_a_paper_and_counts_the_genes(path: Path) -> None:
    text = path.read_text()
    comment = text[: text.index("kind:")]
    assert PAPER.search(comment) or path.stem in PLAIN
    (entry,) = (entry for entry in entries() if entry.path == path)
    assert entry.summary.endswith(".")
    assert len(entry.summary) > 20
    shapes = entry.shapes
    if path.stem == "m2n2":  # a lineage grows
        assert not shapes
        assert catalogue_space("m2n2", 6, 3).genes == ()
        return
    assert shapes
    for experts, layers, genes in shapes:
        space = catalogue_space(path.stem, layers, experts)
        assert len(space.experts) == experts
        assert len(space.genes) == genes


@pytest.mark.parametrize("name", NAMES)
def test_a_thousand_random_points_decode_or_are_named(name: str) -> None:
    space = catalogue_space(name, 12, 3)
    generator = np.random.default_rng(0)
    valid = 0
    for number in range(1000):
        genome = space.sample(generator)
        if violations := space.violations(genome):
            assert name in NAMED, violations
            assert all(re.fullmatch(NAMED[name], what) for what in violations), violations
            continue
        valid += 1
        recipe = space.decode(genome)
        if number % 20 == 0:  # decoding leaves validation out; nothing is lost by that
            assert recipe.segments or check_recipe(recipe, space.anatomy) == []
            validated = Recipe.from_json(recipe.to_json())
            assert validated == recipe
            assert validated.fingerprint == recipe.fingerprint
        if number % 5 == 0:
            back = space.encode(recipe)
            assert space.violations(back) == []
            assert space.decode(back) == recipe
    assert valid >= 20


def weighs_experts(name: str) -> bool:
    """Whether an expert alone, or a mean, could be said by the space's operator."""
    (config,) = (parse_space(read_yaml(path)) for path in FILES if path.stem == name)
    operator = getattr(config, "operator", "linear")
    return not {"weight", "t"}.isdisjoint(p.name for p in OPERATORS[operator].parameters)


@pytest.mark.parametrize("name", NAMES)
def test_designs_are_points_of_the_space(name: str) -> None:
    space = catalogue_space(name, 12, 3)
    designs = space.designs()
    assert designs or name in UNDESIGNED or not weighs_experts(name)
    for design in designs:
        assert space.violations(design) == []
        recipe = space.decode(design)
        assert recipe.segments or check_recipe(recipe, space.anatomy) == []


@pytest.mark.parametrize("name", NAMES)
def test_every_gene_matters(name: str) -> None:
    torch.set_num_threads(1)
    space = catalogue_space(name, 6, 3)
    if isinstance(space, CubeSpace):
        assert dead_genes(space) == []


@pytest.mark.parametrize("name", NAMES)
def test_decoding_is_fast(name: str) -> None:
    """`benchmarks/search_spaces.py` measures; this is for what is ten times too slow."""
    space = catalogue_space(name, 40, 8)
    generator = np.random.default_rng(0)
    genomes = [space.sample(generator) for _ in range(10)]
    started = time.process_time()
    for genome in genomes:
        if not space.violations(genome):
            space.decode(genome)
    assert (time.process_time() - started) / len(genomes) < 0.01


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_samples_are_merged_and_run(path: Path, tiny_zoo: Path) -> None:
    torch.set_num_threads(1)
    config = parse_space(read_yaml(path))
    experts = ["sort", "back", "rot"][: len(experts_for(config, 3))]
    checkpoints: dict[str, Checkpoint] = {
        n: open_checkpoint(tiny_zoo / n, name=n) for n in ["base", *experts]
    }
    operator = OPERATORS.get(getattr(config, "operator", ""))
    if operator is not None and operator.needs_adapters:
        checkpoints |= {n: as_adapter(checkpoints[n], checkpoints["base"], 8) for n in experts}
    anatomy = anatomy_of(checkpoints["base"])
    models = {name: ModelSource(path=str(tiny_zoo / name)) for name in checkpoints}
    template = Recipe.of_valid(**{**dict(template_of(experts)), "models": models})
    space: Any = make_space(config, template, anatomy, checkpoints)
    resident = Resident.open(checkpoints, "base")
    resident.merger.family.statistics = StandIn(checkpoints)
    generator = np.random.default_rng(1)
    genomes = [space.sample(generator) for _ in range(12)]
    valid = [genome for genome in genomes if not space.violations(genome)][:3]
    if isinstance(space, CubeSpace) and not space.violations(center := [0.5] * len(space.genes)):
        valid.append(center)
    valid += space.designs()[:2]
    assert valid
    tokens = torch.arange(24).view(2, 12)
    answers = []
    for genome in valid:
        try:
            resident.write(space.decode(genome))
        except CandidateError:
            assert path.stem in UNMERGEABLE
            continue
        with torch.no_grad():
            answers.append(resident.module(tokens).logits)
        assert torch.isfinite(answers[-1]).all()
    assert len({float(answer.sum()) for answer in answers}) > 1
