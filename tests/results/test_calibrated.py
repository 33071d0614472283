"""Runs whose operators look at data: the same however they are interrupted, and exported whole."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from small_run import write_experiment
from toys import outcome_of
from typer.testing import CliRunner

import evomerge
from evomerge.checkpoints.open import open_checkpoint
from evomerge.cli import app
from evomerge.errors import ConfigurationError
from evomerge.experiment import run as runs
from evomerge.experiment.config import read_experiment
from evomerge.experiment.wire import wire
from evomerge.merging.calibration import CALIBRATION, read_calibration
from evomerge.run import Run

OWN = {"of": {"sort": {"task": "sort"}, "back": {"task": "back"}}, "samples": 10}
FISHER: dict[str, Any] = {
    "kind": "weights",
    "operator": "fisher",
    "search": {"weight": {"per": ["expert"], "range": [0, 1]}},
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_zoo: Path) -> None:
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(runs, "write_pictures", lambda *_: None)


def experiment(folder: Path, zoo: Path, **changes: Any) -> Path:
    given = {"space": FISHER, "calibration": OWN, "budget": {"candidates": 6}, "cohort": 3}
    return write_experiment(folder, zoo, **{**given, **changes})


def test_a_run_that_was_killed_equals_one_that_was_not(tmp_path, tiny_zoo):
    path = experiment(tmp_path, tiny_zoo)
    config = read_experiment(path)
    whole, parts = tmp_path / "whole", tmp_path / "parts"

    def run(out: Path) -> None:
        runs.run_experiment(config, out)

    # A process of its own: where gradients were computed before, a fork cannot compute any.
    command = [sys.executable, "-m", "evomerge", "run", str(path), "--out", str(parts)]
    environment = {**os.environ, "EVOMERGE_FAILPOINT": "tell.after_commit:1"}
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert (parts / CALIBRATION).exists()
    shutil.rmtree(tmp_path / "cache")  # what was collected is collected again, the same
    run(parts)
    run(whole)
    assert outcome_of(parts) == outcome_of(whole)
    recipes = [c.recipe for c in Run(whole).ledger.candidates.values() if c.id >= 0]
    texts = read_calibration(whole / CALIBRATION)
    assert {recipe.calibration for recipe in recipes} == {texts.sha256}
    assert {recipe.default.operator for recipe in recipes} == {"fisher"}


@pytest.mark.slow
def test_workers_measure_the_same_merges_as_the_driver(tmp_path, tiny_zoo):
    """Each of two processes reads what the driver has collected, or collects it itself."""
    found = []
    for number, workers in enumerate((0, 2)):
        path = experiment(tmp_path / str(number), tiny_zoo, pool={"workers": workers})
        runs.run_experiment(read_experiment(path), tmp_path / str(number) / "out")
        found.append(outcome_of(tmp_path / str(number) / "out"))
    assert found[0] == found[1]


def test_the_texts_are_of_search_items_with_their_answers(tmp_path, tiny_zoo):
    parts = wire(read_experiment(experiment(tmp_path, tiny_zoo)))
    calibration = parts.worker.calibration
    task = parts.tasks["sort"]
    known = {
        task.prompt(item, None) + "".join(sorted(task.prompt(item, None)[1:-1]))
        for item in parts.split.search["sort"]
    }
    assert len(calibration.of["sort"]) == 10
    assert pickle.loads(pickle.dumps(parts.worker)).calibration == calibration  # noqa: S301
    assert set(calibration.of["sort"]) <= known
    held_out = {task.prompt(item, None) for item in parts.split.holdout["sort"]}
    assert not held_out & {text.partition("=")[0] + "=" for text in calibration.of["sort"]}
    other = read_experiment(experiment(tmp_path, tiny_zoo, seed=1))
    assert wire(other).worker.calibration.of["sort"] != calibration.of["sort"]


def test_a_source_that_changes_does_not_change_a_run(tmp_path, tiny_zoo):
    lines = tmp_path / "texts.txt"
    lines.write_text("Sqhxbe=behqx\nSabcde=abcde\n")
    path = experiment(tmp_path, tiny_zoo, calibration={"texts": "texts.txt"})
    config, out = read_experiment(path), tmp_path / "out"
    runs.run_experiment(config, out)
    known = (out / CALIBRATION).read_text()
    lines.write_text("Baaaaa=zzzzz\n")
    more = config.model_copy(update={"budget": config.budget.model_copy(update={"candidates": 7})})
    runs.run_experiment(more, out)
    assert (out / CALIBRATION).read_text() == known
    assert len(outcome_of(out)["evaluations"]) == 7
    fewer = read_experiment(
        experiment(tmp_path, tiny_zoo, calibration={"texts": "texts.txt", "length": 64})
    )
    with pytest.raises(ConfigurationError, match=r"calibration\.length|texts"):
        runs.run_experiment(fewer, out)


def test_a_candidate_is_exported_with_its_texts_and_merged_again(tmp_path, tiny_zoo):
    out = tmp_path / "out"
    runs.run_experiment(read_experiment(experiment(tmp_path, tiny_zoo)), out)
    run, model = Run(out), tmp_path / "model"
    candidate = next(c for c in run.ledger.candidates.values() if c.id >= 0)
    run.export(candidate, model)
    assert read_calibration(model / CALIBRATION) == read_calibration(out / CALIBRATION)
    again, recipe = tmp_path / "again", model / "evomerge_recipe.yaml"
    result = CliRunner().invoke(app, ["merge", str(recipe), "--out", str(again)])
    assert result.exit_code == 0, result.output
    one, other = (open_checkpoint(folder, name="m") for folder in (model, again))
    merged = run.merge(candidate)
    for name in one.names:
        assert torch.equal(one.tensor(name), other.tensor(name))
        assert torch.equal(one.tensor(name), merged[name])
    assert (again / CALIBRATION).exists()
    (model / CALIBRATION).unlink()
    result = CliRunner().invoke(app, ["merge", str(recipe), "--out", str(again)])
    assert "--calibration FILE" in f"{result.output} {result.exception}"
    data = yaml.safe_load(recipe.read_text())
    assert data["calibration"] == read_calibration(out / CALIBRATION).sha256


def test_merging_by_hand_takes_texts(tmp_path, tiny_zoo):
    models = {name: str(tiny_zoo / name) for name in ("sort", "back")}
    texts = ["Sqhxbe=behqx", "Babcde=dcba", "Sbbbaa=aabbb"]
    given = {"base": str(tiny_zoo / "base"), "calibration": texts}
    merged = evomerge.merge(models, "regmean | aim", parameters={"aim_omega": 0.2}, **given)
    mean = evomerge.merge(models, "linear", base=given["base"])
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.allclose(merged[name], mean[name])
    norm = "model.norm.weight"
    torch.testing.assert_close(merged[norm], mean[norm])
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    again = evomerge.merge(
        models,
        "regmean | aim",
        parameters={"aim_omega": 0.2},
        base=given["base"],
        calibration=tmp_path / "texts.txt",
    )
    assert torch.equal(again[name], merged[name])
    with pytest.raises(ConfigurationError, match="regmean looks at what models do with texts"):
        evomerge.merge(models, "regmean", base=given["base"])


def test_a_recipe_by_hand_is_scored_with_the_texts_that_are_given(tmp_path, tiny_zoo):
    path = experiment(tmp_path, tiny_zoo)
    recipe = tmp_path / "mine.yaml"
    models = {name: str(tiny_zoo / name) for name in ("base", "sort", "back")}
    recipe.write_text(
        yaml.safe_dump({"base": "base", "models": models, "default": {"operator": "regmean"}})
    )
    texts = tmp_path / "texts.txt"
    texts.write_text("Sqhxbe=behqx\nBabcde=dcba\n")
    fitness = ["--fitness", str(path.parent / "fitness.yaml"), "--json"]
    cli = CliRunner()
    with pytest.raises(ConfigurationError, match=r"regmean looks at .*--calibration FILE"):
        cli.invoke(app, ["score", str(recipe), *fitness], catch_exceptions=False)
    given = ["--calibration", str(texts)]
    scored = cli.invoke(app, ["score", str(recipe), *fitness, *given], catch_exceptions=False)
    out = tmp_path / "made"
    cli.invoke(app, ["merge", str(recipe), "--out", str(out), *given], catch_exceptions=False)
    made = cli.invoke(app, ["score", str(out), *fitness], catch_exceptions=False)
    assert json.loads(scored.stdout) == json.loads(made.stdout)


def test_what_an_experiment_cannot_read_is_said_before_it_starts(tmp_path, tiny_zoo):
    def refused(match: str, **changes: Any) -> None:
        with pytest.raises(ConfigurationError, match=match):
            wire(read_experiment(experiment(tmp_path, tiny_zoo, **changes)))

    refused("fisher looks at what models do with texts", calibration=None)
    refused(r"calibration\.task: no task 'srot' .*sort", calibration={"task": "srot"})
    of = {"srot": {"task": "sort"}}
    refused(r"calibration\.of\.srot: no such model .*sort", calibration={"of": of})
    refused("no such file", calibration={"texts": "nowhere.txt"})
    refused("either `texts`, a file, or `task`", calibration={"texts": "a.txt", "task": "sort"})
    refused("needs `texts`, `task`, or `of`", calibration={"samples": 3})


def test_validate_says_what_will_be_collected(tmp_path, tiny_zoo):
    path = experiment(tmp_path, tiny_zoo)
    result = CliRunner().invoke(app, ["validate", str(path)])
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    assert "squared gradients (sampled labels) of sort, from 10 texts with" in text
    assert "of back, from 10 texts" in text
    in_turn = {"kind": "weights", "operator": "regmean_plusplus"}
    whole = experiment(
        tmp_path, tiny_zoo, space={**in_turn, "search": {"alpha": {"range": [0, 1]}}}
    )
    result = CliRunner().invoke(app, ["validate", str(whole)])
    assert "collected for each candidate anew" in result.output
    by_layer = {**in_turn, "search": {"alpha": {"per": ["layer"], "range": [0.1, 0.9]}}}
    result = CliRunner().invoke(
        app, ["validate", str(experiment(tmp_path, tiny_zoo, space=by_layer))]
    )
    assert "it is defined where all is merged alike" in f"{result.output} {result.exception}"
    idle = experiment(tmp_path, tiny_zoo, space="per_expert")
    result = CliRunner().invoke(app, ["validate", str(idle)])
    assert "no operator of this space looks at data" in result.output
