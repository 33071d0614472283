"""Genes that never change the merged model are found; those that seldom do are not taken for it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from random_files import made
from stand_ins import llama, space_of

from evomerge.checkpoints.anatomy import Anatomy, Place
from evomerge.cli import main
from evomerge.files import catalogue_folder
from evomerge.search_spaces.dead import dead_genes

PER_EXPERT = {"per": ["expert"], "range": [0.1, 1]}
SHARED = {"range": [0.1, 1]}
SEVERAL = {"choose": "several", "search": {"weight": SHARED}}
MERGE = {"operator": "ties", "search": {"weight": SHARED, "density": SHARED}}


def weights(operator: str, fixed: Any = None, **search: Any) -> dict[str, Any]:
    return {"kind": "weights", "operator": operator, "search": search, "fixed": fixed or {}}


def dead(space: Any) -> set[str]:
    """The names of the genes that are called dead, of which each is told as such."""
    problems = dead_genes(space)
    assert all("never changes the merged model" in problem.what for problem in problems)
    return {problem.where.removeprefix("space: gene ") for problem in problems}


@pytest.mark.parametrize(
    ("data", "experts", "names"),
    [
        # A weight that is divided by itself, and one that all experts share.
        (weights("linear", weight=PER_EXPERT), 1, {"weight.expert_0"}),
        (weights("linear", weight=SHARED), 3, {"weight"}),
        (weights("multislerp", weight=SHARED), 3, {"weight"}),
        # It would not be divided, and what nothing reads is a flag.
        (weights("linear", {"normalize": False}, weight=PER_EXPERT), 1, set()),
        (weights("task_arithmetic", {"weight": 0}, normalize={}), 3, {"normalize"}),
        # A model whose weight is 0 has a density, which nobody sees.
        (
            weights("ties", {"weight.expert_1": 0}, weight=PER_EXPERT, density=PER_EXPERT),
            3,
            {"density.expert_1"},
        ),
        (
            weights("dare_linear", {"weight": 0}, density=PER_EXPERT),
            2,
            {"density.expert_0", "density.expert_1"},
        ),
        # Nothing is dropped, so nothing is rescaled.
        (weights("dare_linear", {"density": 1}, rescale={}), 3, {"rescale"}),
        (weights("della", {"density": 1, "epsilon": 0}, rescale={}), 3, {"rescale"}),
        (weights("dare_linear", {"density": 0.5}, rescale={}), 3, set()),
        # Others make it moot.
        (weights("task_arithmetic", {"weight.*": 0}, weight=PER_EXPERT, **{"lambda": SHARED}), 2,
         {"lambda"}),
        (weights("task_arithmetic", {"lambda": 0}, weight=PER_EXPERT), 2,
         {"weight.expert_0", "weight.expert_1"}),
        (weights("lines", {"weight": 0}, alpha=SHARED, beta=SHARED), 2, {"alpha", "beta"}),
        # Between its ends there is one number with six decimals.
        (weights("task_arithmetic", weight={"range": [0, 1e-7]}), 2, {"weight"}),
        # What hardly moves has a rule of its own in SCE.
        (weights("sce", {"select_topk": 0.5}, compat={}), 3, set()),
        (
            {"kind": "masks", "operator": "linear", "mask": {"per": ["expert", "layer"]},
             "fixed": {"weight": 0, "normalize": False}},
            2,
            {f"mask.expert_{e}.layer_{i}" for e in range(2) for i in range(4)},
        ),
        (
            {"kind": "layer_swap", "bottom": [0, 0], "top": [0, 0], "transition": [0, 2]},
            2,
            {"transition"},
        ),
        (
            {"kind": "layer_choice", "layers": {"experts": False, "merges": {
                "one": {"operator": "task_arithmetic", "fixed": {"weight": 0},
                        "search": {"lambda": SHARED}},
                "two": {"operator": "linear"},
            }}},
            2,
            {f"layer_{i}.one.lambda" for i in range(4)},
        ),
    ],
)  # fmt: skip
def test_genes_that_do_nothing_are_found(
    data: dict[str, Any], experts: int, names: set[str]
) -> None:
    space = made(data, [f"expert_{i}" for i in range(experts)], llama(4))
    assert dead(space) == names


def test_what_others_hide_everywhere_has_no_gene() -> None:
    """The last layer has a norm alone, and norms have a value of their own."""
    places = {f"l.{i}.{c}": Place(i, c) for i in range(2) for c in ("mlp", "norm")}
    places["l.2.norm"] = Place(2, "norm")
    roles = {name: f"l.*.{place.component}" for name, place in places.items()}
    anatomy = Anatomy(places, 3, roles, dict.fromkeys(places, 1))
    weight = {"per": ["layer"], "range": [0, 1], "apart": ["norms"]}
    space = made(weights("task_arithmetic", weight=weight), ["a"], anatomy)
    names = [gene.name for gene in space.genes]
    assert names == ["weight.layer_0", "weight.layer_1", "weight.norms"]
    assert dead(space) == set()


def test_the_labels_of_gradients_make_a_difference() -> None:
    weight = {"per": ["expert"], "range": [0.1, 1]}
    fisher = weights("fisher", weight=weight, labels={"options": ["sampled", "data"]})
    assert dead(space_of(fisher, 2, 2)) == set()


RARE: dict[str, tuple[dict[str, Any], int, int]] = {
    "a merge among 26 experts": (
        {"kind": "layer_choice", "layers": {"merges": {"ties": MERGE}}}, 8, 26,
    ),
    "two layers of 144": (
        {"kind": "layer_stack", "repeats": 3, "layers": [1, 2], "scales": {"range": [0.5, 1.5]}},
        16, 3,
    ),
    "two layers at 16 places": (
        {"kind": "layer_stack", "arrange": "by_position", "keep_base": False, "layers": [1, 2],
         "scales": {"range": [0.5, 1.5]}}, 16, 3,
    ),
    "one layer is kept": ({"kind": "layer_pruning", "remove": 29, "layers": SEVERAL}, 30, 3),
    "one layer is not set": (
        {"kind": "layer_pruning", "remove": 29, "by": "flag", "layers": SEVERAL}, 30, 3,
    ),
    "twenty numbers without repeats": (
        {"kind": "layer_pruning", "remove": 20, "repeats": "reject", "layers": SEVERAL}, 80, 3,
    ),
    "late steps": (
        {"kind": "layer_walk", "steps": 2.0, "merges": {"average": {"operator": "linear"}}}, 40, 8,
    ),
    "late steps that cannot skip": ({"kind": "layer_walk", "steps": 2.0, "skip": False}, 24, 2),
    "one switch of forty": (
        {"kind": "masks", "operator": "ties", "mask": {"per": ["expert", "layer"], "most": 1}},
        40, 3,
    ),
    "weights that are mostly off": (
        weights("ties", weight={"per": ["expert", "layer"], "range": [-1, 1], "gate": 0.99},
                density={"per": ["expert", "layer"], "range": [0.1, 1]}), 3, 3,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RARE)
def test_genes_that_seldom_matter_are_not_called_dead(name: str) -> None:
    data, num_layers, num_experts = RARE[name]
    assert dead(space_of(data, num_layers, num_experts)) == set()


@pytest.mark.parametrize("name", RARE)
def test_a_gene_matters_where_the_space_says_so(name: str) -> None:
    data, num_layers, num_experts = RARE[name]
    space = space_of(data, num_layers, num_experts)
    generator = np.random.default_rng(0)
    for number in range(len(space.genes)):
        point = space.where_it_matters(number, space.sample(generator), generator)
        assert len(point) == len(space.genes)
        assert space.active(point)[number], space.genes[number].name
        if data["kind"] == "layer_walk":
            assert space.violations(point) == []


def test_steps_after_the_only_layer_do_nothing() -> None:
    data = {"kind": "layer_walk", "steps": 3, "merges": {"average": {"operator": "linear"}}}
    assert dead(space_of(data, 1, 2)) == {"step_1", "step_2"}


def test_on_the_command_line(
    tiny_zoo: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tasks = catalogue_folder("fitness") / "tasks" / "tiny"
    fitness = {
        "tasks": {"sort": {"task": "evomerge_tiny_sort", "path": str(tasks / "sort.yaml")}},
        "objectives": {"mean": {"tasks": ["sort"]}},
        "split": {"search": 24, "fresh": 12, "holdout": 30},
    }
    space = weights("dare_linear", {"density": 1}, rescale={}, weight=PER_EXPERT)
    experiment = {
        "base": str(tiny_zoo / "base"),
        "experts": {"sort": str(tiny_zoo / "sort"), "back": str(tiny_zoo / "back")},
        "space": "space.yaml",
        "fitness": "fitness.yaml",
        "searcher": {"kind": "random"},
        "budget": {"candidates": 4},
    }
    for name, data in (("fitness", fitness), ("space", space), ("experiment", experiment)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(data))
    monkeypatch.setattr("sys.argv", ["evomerge", "validate", str(tmp_path / "experiment.yaml")])
    with pytest.raises(SystemExit) as ended:
        main()
    told = re.sub(r"\s+", " ", capsys.readouterr().err)
    assert ended.value.code == 2
    assert "space: gene rescale: never changes the merged model" in told
    assert "weight" not in told
