"""What an experiment file says, and what is made of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from evomerge.documents import Document
from evomerge.errors import ConfigurationError
from evomerge.experiment.config import parse_experiment, read_experiment
from evomerge.fitness.config import read_fitness


def experiment(**changes: Any) -> dict[str, Any]:
    data = {
        "base": "base",
        "experts": {"a": "a", "b": "sub/b"},
        "space": "per_expert",
        "fitness": fitness(),
        "searcher": {"kind": "cma_es"},
        "budget": {"candidates": 10},
    }
    return {key: value for key, value in {**data, **changes}.items() if value is not None}


def fitness(**changes: Any) -> dict[str, Any]:
    data = {
        "tasks": {"t": {"task": "t", "path": "tasks/t.yaml"}, "u": {"task": "u"}},
        "objectives": {
            "both": {"tasks": {"t": 1, "u": 3}},
            "loss": {"tasks": "u", "minimize": True},
        },
    }
    data["objectives"]["loss"]["tasks"] = ["u"]
    return {**data, **changes}


def test_objectives_have_weights_that_sum_to_one_and_a_sign() -> None:
    config = read_fitness(Document(fitness(objectives={**fitness()["objectives"], "short": "t"})))
    both, loss, short = config.all_objectives()
    assert (both.name, both.weights, both.sign) == ("both", {"t": 0.25, "u": 0.75}, 1)
    assert (loss.weights, loss.sign) == ({"u": 1.0}, -1)
    assert (short.weights, short.column) == ({"t": 1.0}, "score")


def test_paths_are_relative_to_the_file_that_has_them(tmp_path: Path) -> None:
    (tmp_path / "fit").mkdir()
    (tmp_path / "fit" / "f.yaml").write_text(yaml.safe_dump(fitness()))
    path = tmp_path / "exp" / "e.yaml"
    path.parent.mkdir()
    models = {"base": "../models/base", "experts": {"a": "zoo:tiny/sort", "b": "/abs/b"}}
    path.write_text(yaml.safe_dump(experiment(fitness="../fit/f.yaml", **models)))
    config = read_experiment(path)
    assert config.models() == {
        "base": str(tmp_path / "models" / "base"),
        "a": "zoo:tiny/sort",
        "b": "/abs/b",
    }
    assert config.fitness.tasks["t"]["path"] == str(tmp_path / "fit" / "tasks" / "t.yaml")
    assert "path" not in config.fitness.tasks["u"]


def test_older_runs_keep_their_identity() -> None:
    """Keys that they did not know are not in it, unless they are used."""
    identity = parse_experiment(Document(experiment())).identity()
    assert "limits" not in identity
    assert all("cost" not in o for o in identity["fitness"]["objectives"].values())


def test_an_experiment_is_frozen_as_it_was_read(tmp_path: Path) -> None:
    objectives = {"x": "t", "size": {"cost": "bytes"}}
    limits = {"parameters": "120e6", "layers": {"of_base": 0.5}}
    data = experiment(limits=limits, fitness=fitness(objectives=objectives), base="run:some/run#3")
    config = parse_experiment(Document(data))
    assert config.base == f"run:{Path('some/run').resolve()}#3"
    (tmp_path / "frozen.yaml").write_text(config.to_yaml())
    assert read_experiment(tmp_path / "frozen.yaml") == config


def test_what_decides_the_trajectory_and_what_does_not() -> None:
    one = parse_experiment(Document(experiment())).identity()
    alike: list[dict[str, Any]] = [
        {"name": "other"},
        {"budget": {"hours": 2}},
        {"pool": {"workers": 3}},
        {"base": "elsewhere"},  # models count by their content
    ]
    for changes in alike:
        assert parse_experiment(Document(experiment(**changes))).identity() == one
    other: list[dict[str, Any]] = [
        {"seed": 1},
        {"searcher": {"kind": "cma_es", "population": 9}},
        {"experts": {"b": "sub/b", "a": "a"}},
        {"in_flight": 3},
        {"space": "per_layer"},
        {"fitness": fitness(split={"search": 3})},
        {"dtype": "bfloat16"},
        {"limits": {"layers": 3}},
        {"fitness": fitness(objectives={"x": "t", "size": {"cost": "bytes"}})},
    ]
    for changes in other:
        assert parse_experiment(Document(experiment(**changes))).identity() != one, changes


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"base": None}, ["base: this key is missing"]),
        ({"fitness": None, "space": None}, ["space: this key is missing", "fitness: this key is"]),
        ({"budget": {"candidates": 0, "hours": -1}}, ["budget.candidates: ", "budget.hours: "]),
        (
            {"searcher": {"kind": "cma_es", "sigma0": "big", "restars": 3}},
            ["searcher.sigma0", "searcher.restars: unknown key (did you mean 'restarts'"],
        ),
        ({"searcher": {"population": 3}}, ["searcher.kind: this key is missing"]),
        ({"searcher": "cma_es"}, ["searcher: should be a mapping, got 'cma_es'"]),
        ({"experts": {}}, ["experts: Dictionary should have at least 1 item"]),
        ({"seed": 2**32}, ["seed: should be less than"]),
        ({"dtype": "int8"}, ["dtype: should be 'float32', 'bfloat16' or 'float16', got 'int8'"]),
        ({"fitness": fitness(tasks={})}, ["fitness.tasks: "]),
        (
            {"fitness": fitness(objectives={"x": {"tasks": {"t": 0}}})},
            ["fitness.objectives.x.tasks: task weights must be positive"],
        ),
        (
            {"fitness": fitness(objectives={"x": {"tasks": {"t": float("nan")}}})},
            ["fitness.objectives.x.tasks.t: should be a finite"],
        ),
        (
            {"fitness": fitness(select={"weights": {"both": 0}})},
            ["fitness.select.weights: weights must not be negative"],
        ),
        (
            {"fitness": fitness(select={"kind": "nee"})},
            ["fitness.select.kind: should be 'weights' or 'knee', got 'nee'"],
        ),
        (
            {"fitness": fitness(split={"search": 0, "seed": 2**64})},
            ["fitness.split.search: ", "fitness.split.seed: "],
        ),
        (
            {"fitness": fitness(split={"search": 1.5, "fresh": -1, "holdout": 0.0})},
            [
                "fitness.split.search: should be a number of items from 1, or a share below 1, got",
                "fitness.split.fresh: should be a number of items from 0, or a share",
                "fitness.split.holdout: should be a number of items from 1, or a share",
            ],
        ),
        (
            {"fitness": fitness(split={"search": 0.5, "fresh": 0.5})},
            ["fitness.split.search: the shares sum to 1: nothing is left"],
        ),
        (
            {"fitness": fitness(estimator={"kind": "rcing"})},
            ["fitness.estimator.kind: unknown kind 'rcing' (did you mean 'racing'"],
        ),
        (
            {"fitness": fitness(estimator={"kind": "subset"})},
            ["fitness.estimator.items: this key is missing"],
        ),
        (
            {"fitness": fitness(estimator={"kind": "racing", "rungs": [9, 3]})},
            ["fitness.estimator.rungs: rungs must rise"],
        ),
        (
            {"fitness": fitness(tasks={"t": {"kind": "lmeval"}, "u": {"task": "u", "limit": 0}})},
            [
                "fitness.tasks.u.limit: should be greater",
                "fitness.tasks.t.kind: unknown kind 'lmeval' (did you mean 'lm_eval'",
            ],
        ),
        (
            {"fitness": fitness(tasks={"t": {}, "u": 3})},
            ["fitness.tasks.t.task: this key is missing", "fitness.tasks.u: should be a mapping"],
        ),
        (
            {
                "space": {
                    "kind": "weights",
                    "operator": "ties",
                    "search": {"weight": {"rnge": [0, 1]}},
                }
            },
            [
                "space.search.weight.rnge: unknown key (did you mean 'range'",
            ],
        ),
        (
            {"fitness": fitness(objectives={"x": "t", "size": {"cost": "paramters"}})},
            ["fitness.objectives.size.cost: should be 'parameters', 'layers', 'bytes' or"],
        ),
        (
            {"fitness": fitness(objectives={"x": "t", "s": {"cost": "bytes", "tasks": ["t"]}})},
            ["fitness.objectives.s.tasks: a cost is known without asking the model anything"],
        ),
        (
            {"fitness": fitness(objectives={"x": "t", "s": {"cost": "bytes", "minimize": False}})},
            ["fitness.objectives.s.minimize: a cost is always minimised"],
        ),
        (
            {"fitness": fitness(objectives={"x": {"column": "score"}})},
            ["fitness.objectives.x.tasks: names no task (or name a `cost`)"],
        ),
        (
            {"fitness": fitness(objectives={"size": {"cost": "layers"}})},
            ["fitness.objectives: needs at least one task"],
        ),
        ({"limits": {"layers": 0.5}}, ["limits.layers: "]),
        ({"limits": {"layer": 5}}, ["limits.layer: unknown key (did you mean 'layers'"]),
        ({"limits": {"bytes": {"of_bas": 0.5}}}, ["limits.bytes"] * 2),
        ({"space": {}, "seed": "x"}, ["space.kind: unknown kind None", "seed: "]),
    ],
)
def test_every_mistake_has_its_place(changes: dict[str, Any], told: list[str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_experiment(Document(experiment(**changes)))
    problems = [str(problem) for problem in caught.value.problems]
    assert len(problems) == len(told), problems
    for start in told:
        assert any(problem.startswith(start) for problem in problems), problems


def test_a_parameter_may_not_be_given_leave_in_a_file() -> None:
    entry = {"task": "t", "allow_code": True}
    with pytest.raises(ConfigurationError, match=r"^tasks\.t\.allow_code: .*leave") as caught:
        read_fitness(Document(fitness(tasks={"t": entry, "u": {"task": "u"}})))
    assert len(caught.value.problems) == 1
    code = {"kind": "python:evil.py:f", "allow_code": True, "of_entry": entry}
    with pytest.raises(ConfigurationError, match=r"tasks\.t\.allow_code(.|\n)*tasks\.t\.of_entry"):
        read_fitness(Document(fitness(tasks={"t": code, "u": {"task": "u"}})))
