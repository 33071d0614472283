"""What a search begins with: the user's merges, and another run; kept in the ledger."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from toys import SPLIT, Toy, outcome_of

from evomerge.errors import ConfigurationError
from evomerge.experiment import run as runs
from evomerge.experiment.config import read_experiment
from evomerge.experiment.start import recorded_start
from evomerge.experiment.wire import wire
from evomerge.ledger import LEDGER, Ledger
from evomerge.recipe import Merge, Recipe


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "write_pictures", lambda *_: None)


def ledger_of(folder: Path) -> Ledger:
    return Ledger(folder / LEDGER, read_only=True)


def recipe_file(folder: Path, id_: int, path: Path) -> tuple[Path, Any]:
    """A candidate's recipe as a file, and its merge of each layer."""
    ledger = ledger_of(folder)
    candidate = ledger.candidates[id_]
    assert candidate.recipe is not None
    path.write_text(candidate.recipe.to_json())
    return path, merges_of(candidate.recipe)


def merges_of(recipe: Recipe) -> list[Merge]:
    return [recipe.merge_for(layer, "weight") for layer in (0, 1)]


@pytest.mark.parametrize("searcher", ["random", "cma_es", "nsga2"])
def test_the_users_merges_come_first_and_the_run_needs_their_files_no_more(
    searcher: str, tmp_path: Path
) -> None:
    other = Toy("random", seed=9).run(tmp_path / "other", budget=4)
    chosen = [recipe_file(other, i, tmp_path / f"{i}.json") for i in (2, 3)]
    keys = {"designs": [str(path) for path, _ in chosen]}
    toy = Toy(searcher, keys=keys)
    whole = outcome_of(toy.run(tmp_path / "whole", budget=40))
    toy.run(tmp_path / "parts", budget=10)
    asked = [ledger_of(tmp_path / "parts").candidates[i].recipe for i in (0, 1)]
    assert [merges_of(recipe) for recipe in asked if recipe] == [merges for _, merges in chosen]
    for path, _ in chosen:
        path.unlink()
    assert outcome_of(toy.run(tmp_path / "parts", budget=40))["digest"] == whole["digest"]


def test_what_the_space_cannot_say_is_refused(tmp_path: Path) -> None:
    (tmp_path / "far.yaml").write_text(
        "base: base\nmodels: {base: memory:base, left: memory:left, right: memory:right}\n"
        "default: {operator: task_arithmetic, parameters: {weight: {left: 9.0, right: 0.0}}}\n"
    )
    (tmp_path / "strange.yaml").write_text(
        "base: base\nmodels: {base: memory:base, up: memory:up}\n"
        "default: {operator: task_arithmetic}\n"
    )
    keys = {"designs": [str(tmp_path / n) for n in ("far.yaml", "strange.yaml", "none.yaml")]}
    with pytest.raises(ConfigurationError) as caught:
        Toy("random", keys=keys).run(tmp_path / "run")
    text = str(caught.value)
    assert "far.yaml" in text
    assert "it merges 'up', which is no model of this run" in text
    assert "none.yaml" in text


def test_a_warm_start_is_what_the_other_run_was_told(tmp_path: Path) -> None:
    other = Toy("random", seed=9).run(tmp_path / "other", budget=24)
    toy = Toy("cma_es", keys={"warm_start": str(other)})
    with pytest.raises(ConfigurationError, match="was told first, second; this run has mean"):
        toy.run(tmp_path / "run")
    toy = Toy("nsga2", keys={"warm_start": str(other)})
    whole = outcome_of(toy.run(tmp_path / "whole", budget=32))
    toy.run(tmp_path / "parts", budget=16)
    start = recorded_start(tmp_path / "parts" / LEDGER)
    assert start is not None
    evaluations = ledger_of(other).evaluations()
    expected = {i: e for i, e in evaluations.items() if e.score is not None}
    assert {e.id: (e.genome, e.score) for e in start.warm_start} == {
        i: (e.genome, e.score) for i, e in expected.items()
    }
    parts = wire(toy.config(), toy.given())
    assert parts.start.warm_start == start.warm_start
    shutil.rmtree(other)
    assert outcome_of(toy.run(tmp_path / "parts", budget=32))["digest"] == whole["digest"]


def test_a_run_keeps_the_budget_that_it_had(tmp_path: Path) -> None:
    toy, folder = Toy("random"), tmp_path / "run"
    for given, kept in ((8, 8), (24, 24), (16, 24)):  # begun, given more, its first file run again
        toy.run(folder, budget=given)
        assert read_experiment(folder / runs.EXPERIMENT).budget.candidates == kept
    assert len(ledger_of(folder).evaluations()) == 24


def test_another_start_is_another_experiment(tmp_path: Path) -> None:
    other = Toy("random", seed=9).run(tmp_path / "other", budget=8)
    Toy("random").run(tmp_path / "run", budget=8)
    # A run that is resumed begins with what it began with; a fresh one elsewhere, with the other.
    keys = {"warm_start": str(other)}
    Toy("random", keys=keys).run(tmp_path / "fresh", budget=8)
    first, second = (ledger_of(tmp_path / n).meta["identity"] for n in ("run", "fresh"))
    assert "start" not in first
    assert len(second["start"]) == 64
    # The same folder is not gone on with as if nothing had been said.
    with pytest.raises(ConfigurationError, match="run start: the run there has designs"):
        Toy("random", keys=keys).run(tmp_path / "run", budget=16)
    assert "warm_start" not in (tmp_path / "run" / runs.EXPERIMENT).read_text()
    # What has another name and says the same is no other start.
    moved = other.rename(tmp_path / "moved")
    Toy("random", keys={"warm_start": str(moved)}).run(tmp_path / "fresh", budget=16)


def test_candidates_of_another_space_are_translated(tmp_path: Path) -> None:
    shared = {
        "kind": "weights",
        "operator": "task_arithmetic",
        "search": {"weight": {"per": ["expert"], "range": [0, 1]}},
    }
    other = Toy("random", seed=9, keys={"space": shared}).run(tmp_path / "other", budget=8)
    toy = Toy("nsga2", keys={"warm_start": str(other)})
    parts = wire(toy.config(), toy.given())
    recipes = [ledger_of(other).candidates[e.id].recipe for e in parts.start.warm_start]
    assert len(recipes) > 4
    for evaluation, recipe in zip(parts.start.warm_start, recipes, strict=True):
        assert len(evaluation.genome) == len(parts.space.genes)
        assert recipe is not None
        found = parts.space.decode(evaluation.genome)
        weights = [[m.parameters["weight"] for m in merges_of(r)] for r in (recipe, found)]
        assert weights[0] == weights[1]


def test_a_run_that_has_searched_on_held_out_items_is_refused(tmp_path: Path) -> None:
    other = Toy("random", seed=9).run(tmp_path / "other", budget=8)
    toy = Toy("random", keys={"warm_start": str(other)})
    config = toy.config()
    moved = config.fitness.split.model_copy(update={"seed": 5})
    fitness = config.fitness.model_copy(update={"split": moved})
    with pytest.raises(ConfigurationError, match="that are held out here"):
        wire(config.model_copy(update={"fitness": fitness}), toy.given())
    assert SPLIT["holdout"] > 0


@pytest.mark.parametrize(("there", "here"), [("racing", "full"), ("full", "racing")])
def test_who_was_asked_everything_stands_with_those_who_are(
    there: str, here: str, tmp_path: Path
) -> None:
    """A higher rung outranks whatever the values are; a run without a race has one rung."""
    other = Toy("random", there, seed=9).run(tmp_path / "other", budget=16)
    toy = Toy("nsga2", here, keys={"warm_start": str(other)})
    rungs = {e.id: e.score.rung for e in ledger_of(other).evaluations().values() if e.score}
    by = {("racing", "full"): -2, ("full", "racing"): 2}[there, here]
    start = wire(toy.config(), toy.given()).start
    assert {e.id: e.score.rung for e in start.warm_start if e.score} == {
        id_: rung + by for id_, rung in rungs.items()
    }
    assert max(rungs.values()) == (2 if there == "racing" else 0)


@pytest.mark.parametrize("missing", ["nowhere", ""])
def test_no_run_is_told(missing: str, tmp_path: Path) -> None:
    toy = Toy("random", keys={"warm_start": str(tmp_path / missing)})
    with pytest.raises(ConfigurationError, match="no run here"):
        toy.run(tmp_path / "run")
