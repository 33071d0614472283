"""A run's candidate as a model of the next, and limits and costs on real, tiny language models."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from dropping import Dropping, dropping
from safetensors.torch import load_file
from small_run import write_experiment
from toys import Toy

import evomerge
from evomerge.errors import ConfigurationError, ModelError
from evomerge.experiment import run as runs
from evomerge.experiment.config import read_experiment
from evomerge.experiment.recipes import open_recipe_models, read_recipe
from evomerge.experiment.score import score_model
from evomerge.experiment.stacked import pinned, run_model
from evomerge.experiment.wire import resolve, wire
from evomerge.wording import in_short

__all__ = ["dropping"]  # the fixture


@pytest.fixture(scope="module")
def first(tiny_zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two experts."""
    folder = tmp_path_factory.mktemp("first")
    path = write_experiment(folder, tiny_zoo, budget={"candidates": 6})
    return runs.run_experiment(read_experiment(path), folder / "runs" / "first")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def second(folder: Path, zoo: Path, reference: str, **changes: Any) -> Path:
    experts = {"merged": reference, "rot": str(zoo / "rot")}
    return write_experiment(folder, zoo, experts=experts, budget={"candidates": 6}, **changes)


def test_the_folder_is_what_export_writes_and_is_written_once(first: Path, cache: Path) -> None:
    run = evomerge.Run(first)
    seen: list[str] = []
    for reference, candidate in ((f"run:{first}", run.best().id), (f"run:{first}#2", 2)):
        folder = run_model(reference, lambda what, done, total: seen.append(what))
        exported = run.export(candidate, cache / f"by_hand_{candidate}")
        one, other = (load_file(f / "model.safetensors") for f in (folder, exported))
        assert one.keys() == other.keys()
        assert all(one[name].equal(other[name]) for name in one)
        assert folder == cache / "merged" / run.candidate(candidate).fingerprint
        before = (folder / "model.safetensors").stat()
        assert run_model(reference) == folder
        assert (folder / "model.safetensors").stat() == before
    assert f"merging run:{first}#2" in seen


def test_a_search_over_a_runs_candidate(first: Path, tiny_zoo: Path, tmp_path: Path) -> None:
    """The references say that the expert is what the first run's table says of its best."""
    path = second(tmp_path / "a" / "b", tiny_zoo, f"run:{os.path.relpath(first, tmp_path / 'a/b')}")
    out = runs.run_experiment(read_experiment(path), tmp_path / "second")
    best = evomerge.Run(first).best()
    frozen = read_experiment(out / runs.EXPERIMENT)
    assert frozen.experts["merged"] == f"run:{first}#{best.id}"
    ours, theirs = (evomerge.Run(folder).status()["final"] for folder in (out, first))
    assert ours["references"]["merged"]["holdout"] == theirs["best"]["holdout"]
    # It goes on, and exports, when the cache was emptied.
    shutil.rmtree(tmp_path / "cache")
    digest = evomerge.Run(out).ledger.digest()
    runs.run_experiment(read_experiment(out / runs.EXPERIMENT), out)
    assert evomerge.Run(out).ledger.digest() == digest
    evomerge.Run(out).export(folder=tmp_path / "model")
    # And the next one stacks on this one.
    assert (Path(resolve(f"run:{out}")) / "config.json").exists()


def test_a_run_that_finds_a_better_one_later_changes_nothing(
    first: Path, tiny_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = second(tmp_path, tiny_zoo, f"run:{first}")
    out = runs.run_experiment(read_experiment(path), tmp_path / "second")
    before = evomerge.Run(out).ledger.meta["identity"]
    other = evomerge.Run(first).candidate(1 if evomerge.Run(first).best().id == 0 else 0)
    monkeypatch.setattr("evomerge.experiment.stacked.best_candidate", lambda *_: other)
    assert pinned(f"run:{first}") == f"run:{first}#{other.id}"
    parts = wire(read_experiment(out / runs.EXPERIMENT))
    assert json.loads(json.dumps(parts.identity)) == before


def test_recipes_and_scores_take_a_run(first: Path, tiny_zoo: Path, tmp_path: Path) -> None:
    relative = os.path.relpath(first, tmp_path)
    recipe = {
        "evomerge_recipe": 1,
        "base": "base",
        "models": {
            "base": str(tiny_zoo / "base"),
            "x": f"run:{relative}#1",
        },
        "default": {"operator": "linear", "parameters": {"weight": 1}},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    parsed = read_recipe(tmp_path / "recipe.yaml")
    assert parsed.models["x"].path == f"run:{first}#1"
    merged = open_recipe_models(parsed)["x"]
    wanted = evomerge.Run(first).merge(1)
    assert all(merged.tensor(name).equal(wanted[name]) for name in merged.names)
    rows = score_model(f"run:{first}", str(first.parents[1] / "fitness.yaml"))
    final = evomerge.Run(first).status()["final"]
    assert rows["holdout"] == final["best"]["holdout"]


def test_two_processes_at_once(first: Path, cache: Path) -> None:
    context = multiprocessing.get_context("fork")
    with context.Pool(3) as pool:
        folders = set(pool.map(run_model, [f"run:{first}"] * 3))
    assert len(folders) == 1
    kept = [p.name for p in (cache / "merged").iterdir() if not p.name.startswith(".")]
    assert kept == [next(iter(folders)).name]


def test_what_is_not_there(first: Path, tiny_zoo: Path, tmp_path: Path) -> None:
    typo = first.with_name("frist")
    cases = {
        f"run:{typo}": "frist: no run here .*did you mean 'first'",
        f"run:{first}#77": r"first: no candidate 77 to merge \(last: 11\)",
        f"run:{tmp_path}": "no run here",
    }
    for reference, told in cases.items():
        with pytest.raises(ConfigurationError, match=told):
            run_model(reference)
        with pytest.raises(ConfigurationError, match=r"model merged: .*no (run|candidate)"):
            wire(read_experiment(second(tmp_path / "second", tiny_zoo, reference)))
    with pytest.raises(ConfigurationError, match="expected run:FOLDER"):
        run_model("run:")
    toy = Toy(budget=8)
    memory = toy.run(tmp_path / "memory")
    with pytest.raises(ConfigurationError, match="were state dicts in memory"):
        run_model(f"run:{memory}")


def test_a_run_whose_models_have_changed(first: Path, tiny_zoo: Path, tmp_path: Path) -> None:
    copies = tmp_path / "zoo"
    shutil.copytree(tiny_zoo, copies)
    path = write_experiment(tmp_path, copies, budget={"candidates": 2})
    run = runs.run_experiment(read_experiment(path), tmp_path / "run")
    shutil.copy(copies / "rot" / "model.safetensors", copies / "sort" / "model.safetensors")
    with pytest.raises(ModelError, match=r"model sort: .* has changed since"):
        run_model(f"run:{run}#0")


def test_search_in_python_takes_a_run(first: Path, tiny_zoo: Path, tmp_path: Path) -> None:
    run = evomerge.search(
        models={"merged": f"run:{first}#1", "rot": str(tiny_zoo / "rot")},
        base=str(tiny_zoo / "base"),
        fitness=lambda model: {"norm": -float(model.model.norm.weight.norm())},
        searcher={"kind": "nsga2", "population": 4},
        costs=["flops_per_token"],
        budget=4,
        out=tmp_path / "run",
    )
    assert run.config.experts["merged"] == f"run:{first}#1"
    row = run.status()["final"]["best"]["holdout"]["flops_per_token"]
    assert row["value"] < -1000
    assert row["num_items"] == 0


def test_limits_and_costs_of_language_models(
    tiny_zoo: Path, tmp_path: Path, dropping: list[Dropping]
) -> None:
    """The oracle is transformers, which loads what is exported and counts."""
    from transformers import AutoModelForCausalLM

    path = write_experiment(
        tmp_path,
        tiny_zoo,
        objectives={"mean": {"tasks": ["sort", "back"]}, "size": {"cost": "parameters"}},
        searcher={"kind": "nsga2", "population": 6},
        limits={"layers": {"of_base": 0.75}},
    )
    run = evomerge.Run(runs.run_experiment(read_experiment(path), tmp_path / "run"))
    whole = AutoModelForCausalLM.from_pretrained(tiny_zoo / "base")
    num_layers = whole.config.num_hidden_layers
    for row in run.front():
        folder = run.export(row["candidate"], tmp_path / f"model_{row['candidate']}")
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert model.config.num_hidden_layers <= 0.75 * num_layers
        size = sum(p.numel() for p in model.parameters())
        assert row["holdout"]["size"] == {"value": -size, "standard_error": 0.0, "num_items": 0}
        scored = score_model(str(folder), str(tmp_path / "fitness.yaml"))
        assert scored["holdout"]["size"]["value"] == -size
        assert f"| {in_short(size)} |" in (folder / "README.md").read_text()
    assert (run.folder / "front.png").exists()
