"""What files of mergekit-evolve may say, which tasks they stand for, and a whole search by one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from mergekit_cases import states, write_models

from evomerge.cli import main
from evomerge.errors import ConfigurationError, ModelError
from evomerge.experiment.config import ExperimentConfig, read_experiment
from evomerge.run import Run

GENOME = {"models": ["a", "b"], "base_model": "base", "merge_method": "ties"}
FILE = {"genome": GENOME, "tasks": ["first"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("models").resolve()
    write_models(place, states())
    return place


def read(
    folder: Path, genome: dict[str, Any] | None = None, **changes: Any
) -> tuple[ExperimentConfig, str]:
    """The experiment of a changed file, and its notes."""
    data = {**FILE, "genome": {**GENOME, **(genome or {})}, **changes}
    data["genome"] = {k: v for k, v in data["genome"].items() if v is not None}
    path = folder / "genome.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    notes: list[str] = []
    return read_experiment(path, notes=notes), "\n".join(notes)


def problems(folder: Path, genome: dict[str, Any] | None = None, **changes: Any) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        read(folder, genome, **changes)
    return [str(problem) for problem in caught.value.problems]


# --- mistakes -------------------------------------------------------------------------------------


def test_all_mistakes_of_a_file_are_told_with_their_lines(folder: Path) -> None:
    path = folder / "wrong.yaml"
    path.write_text("""
genome:
  models: [a, b, a]
  merge_method: task_arithmetic
  layer_granulrity: 2
  filters: [mlp, mlp]
tasks:
  - {name: one, wieght: 2}
  - {name: two, metric: acc}
limt: 5
""")
    with pytest.raises(ConfigurationError) as caught:
        read_experiment(path)
    told = [str(problem).removeprefix(str(path)) for problem in caught.value.problems]
    starts = [
        ":5 genome.layer_granulrity: unknown key (did you mean 'layer_granularity'",
        ":8 tasks.0.wieght: unknown key (did you mean 'weight'",
        ":9 tasks.1.metric: expected a metric and a filter, got 'acc' (such as acc,none)",
        ":10 limt: unknown key (did you mean 'limit'",
        ":3 genome.models.2: stands twice",
        ":2 genome.base_model: task_arithmetic needs one",
        ":6 genome.filters.1: stands twice",
    ]
    assert len(told) == len(starts)
    assert all(any(one.startswith(start) for one in told) for start in starts), told
    path.write_text(path.read_text().replace("granulrity", "granularity").replace("limt", "limit"))
    with pytest.raises(ConfigurationError) as caught:
        read_experiment(path)
    told = [str(problem).removeprefix(str(path)) for problem in caught.value.problems]
    assert ":3 genome.models.2: stands twice" in told
    assert ":6 genome.filters.1: stands twice" in told
    assert ":2 genome.base_model: task_arithmetic needs one" in told
    assert len(told) == 5


@pytest.mark.parametrize(
    ("genome", "told"),
    [
        ({"merge_method": "tise"}, ["merge_method: mergekit-evolve has no 'tise' (did you mean"]),
        ({"merge_method": "della"}, ["merge_method: mergekit-evolve has no 'della'"]),
        ({"merge_method": "linear"}, ["base_model: linear has no part for it"]),
        (
            {"merge_method": "slerp", "smooth": True, "filters": ["mlp"], "base_model": None},
            ["smooth: goes with the other", "filters: goes with the other"],
        ),
        (
            {"merge_method": "slerp", "models": ["a"], "base_model": None},
            ["models: slerp is between two"],
        ),
        ({"merge_method": "linear", "models": ["a"], "base_model": None}, ["models: the mean of"]),
        ({"models": ["base"]}, ["models: nothing to merge"]),
        ({"models": []}, ["models: names no model"]),
        ({"models": ["a+lora", "base+b"]}, ["models.0: an adapter is merged as a change of"]),
        ({"layer_granularity": -1}, ["layer_granularity: should be greater"]),
        (
            {"layer_granularity": 3, "filters": ["slef_attn"], "tokenizer_source": "bass"},
            [
                "tokenizer_source: 'bass' is none of the models (did you mean 'base'",
                "layer_granularity: 3 does not divide the 4 layers (valid: 0, 1, 2, 4)",
                "filters.0: 'slef_attn' is in no tensor's name",
            ],
        ),
        ({"filters": ["mlp", "up_proj"]}, ["filters.1: 'up_proj' is in no tensor's name that"]),
    ],
)
def test_a_mistake_in_a_genome_is_told(
    folder: Path, genome: dict[str, Any], told: list[str]
) -> None:
    found = problems(folder, genome)
    assert len(found) == len(told), found
    for start in told:
        assert any(f" genome.{start}" in problem for problem in found), found


def test_other_mistakes_are_told(folder: Path) -> None:
    assert " tasks: all have weight 0" in problems(folder, tasks=[{"name": "t", "weight": 0}])[0]
    assert " tasks: names no task" in problems(folder, tasks=[])[0]
    assert " limit: should be greater" in problems(folder, limit=0)[0]
    assert "no folder" in problems(folder, task_search_path="nowhere")[0]
    with pytest.raises(ModelError):
        read(folder, {"base_model": "nowhere"})


# --- models and space -----------------------------------------------------------------------------


def test_models_have_short_names_and_none_that_is_taken(tmp_path: Path) -> None:
    made = states()
    folders = ["base", "x/base", "y/base", "uniform", "task_arithmetic", "union"]
    write_models(tmp_path, dict.fromkeys(folders, made["a"]))
    genome = {"models": folders, "base_model": None, "merge_method": "linear"}
    config, notes = read(tmp_path, genome)
    assert config.base == str(tmp_path / "base")
    assert config.experts == {
        "base_model": str(tmp_path / "base"),
        "base_model_2": str(tmp_path / "x/base"),
        "base_model_3": str(tmp_path / "y/base"),
        "uniform_model": str(tmp_path / "uniform"),
        "model_task_arithmetic": str(tmp_path / "task_arithmetic"),
        "union_model": str(tmp_path / "union"),
    }
    assert "the base, which the merges do not read, is the first model" in notes


@pytest.mark.parametrize(
    ("genome", "expected"),
    [
        ({}, (0, 1)),
        ({"allow_negative_weights": True}, (-1, 1)),
        ({"normalize": False}, (0, 2)),
        ({"normalize": False, "allow_negative_weights": True}, (-2, 2)),
        ({"merge_method": "task_arithmetic"}, (0, 2)),
        ({"merge_method": "task_arithmetic", "normalize": True}, (0, 1)),
    ],
)
def test_weights_are_bounded_where_only_their_ratios_count(
    folder: Path, genome: dict[str, Any], expected: tuple[float, float]
) -> None:
    config, notes = read(folder, genome)
    assert config.space.search["weight"].range == expected  # type: ignore[attr-defined]
    assert f"weights lie in [{expected[0]}, {expected[1]}]" in notes
    both = expected == (-1, 1)
    assert ("weights of both signs fail" in notes) == both


def test_a_random_start_is_random_and_the_same_again(folder: Path) -> None:
    starts = [read(folder, random_init=True)[0].searcher.options["x0"] for _ in range(2)]
    assert starts[0] == starts[1]
    assert len(set(starts[0])) == 4
    assert read(folder)[0].searcher.options["x0"] == [0.5, 0.5, 1.0, 1.0]


@pytest.mark.parametrize(
    ("source", "expected"), [("union", "union"), ("base", "base"), ("b", "b"), (None, None)]
)
def test_tokens_are_those_of_a_model(folder: Path, source: str | None, expected: Any) -> None:
    assert read(folder, {"tokenizer_source": source})[0].tokenizer == expected


# --- tasks ----------------------------------------------------------------------------------------


def test_tasks_are_measured_as_the_file_says(folder: Path) -> None:
    tasks = [
        "first",
        {"name": "second", "weight": 2, "metric": "exact_match,strict-match"},
        {"name": "second", "metric": "f1,none"},
        {"name": "loss", "weight": -0.5, "metric": "perplexity,none"},
        {"name": "idle", "weight": 0},
    ]
    config, notes = read(folder, tasks=tasks, limit=50, num_fewshot=3, shuffle=True)
    common = {"kind": "lm_eval", "limit": 100, "num_fewshot": 3}
    assert config.fitness.tasks == {
        "first": common
        | {"task": "first", "metric": "acc", "filter": "none", "higher_is_better": True},
        "second": common
        | {
            "task": "second",
            "metric": "exact_match",
            "filter": "strict-match",
            "higher_is_better": True,
        },
        "second_f1": common
        | {"task": "second", "metric": "f1", "filter": "none", "higher_is_better": True},
        "loss": common
        | {"task": "loss", "metric": "perplexity", "filter": "none", "higher_is_better": False},
    }
    (objective,) = config.fitness.objectives.values()
    assert objective.tasks == {"first": 1, "second": 2, "second_f1": 1, "loss": 0.5}
    assert (config.fitness.split.search, config.fitness.split.fresh) == (0.5, 0.2)
    for told in ("limit 50: a task's first 100 items", "shuffle", "idle has weight 0", "log-likel"):
        assert told in notes


def test_conversations_need_a_template(tmp_path: Path) -> None:
    write_models(tmp_path, states())
    config, notes = read(tmp_path)
    assert "chat_template" not in config.fitness.tasks["first"]
    assert "the merged model's tokenizer has no chat template" in notes
    assert "chat" not in read(tmp_path, apply_chat_template=False)[1]
    settings = json.dumps({"chat_template": "{{ messages }}"})
    (tmp_path / "b" / "tokenizer_config.json").write_text(settings)
    assert "has no chat template" in read(tmp_path)[1]
    assert "has no chat template" not in read(tmp_path, {"tokenizer_source": "b"})[1]
    (tmp_path / "base" / "tokenizer_config.json").write_text(settings)
    config, notes = read(tmp_path, fewshot_as_multiturn=False)
    assert config.fitness.tasks["first"]["chat_template"] is True
    assert config.fitness.tasks["first"]["fewshot_as_multiturn"] is False
    assert "chat" not in notes


def test_tasks_are_found_below_the_folders_then_beside_the_file(tmp_path: Path) -> None:
    write_models(tmp_path, states())
    for place in ("one/deep", "two", "."):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
    (tmp_path / "one/deep/x.yaml").write_text("task: first\n")
    (tmp_path / "two/y.yaml").write_text('include: z.yaml\ntask: "first"  # again\n')
    (tmp_path / "near.yaml").write_text("task: first\n")

    def found(**changes: Any) -> str | None:
        return read(tmp_path, **changes)[0].fitness.tasks["first"].get("path")

    assert found(task_search_path=["one", "two"]) == str(tmp_path / "one/deep/x.yaml")
    assert found(task_search_path="two") == str(tmp_path / "two/y.yaml")
    assert found() == str(tmp_path / "near.yaml")
    (tmp_path / "near.yaml").write_text("task: first_two\n")
    assert found() is None  # lm-eval's registry


# --- a whole search -------------------------------------------------------------------------------


def evomerge(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["evomerge", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    assert not caught.value.code


def test_a_file_is_searched_resumed_and_exported(
    tiny_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "words.yaml").write_text(
        """
task: words
dataset_path: json
dataset_kwargs: {data_files: {test: words.json}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: gold
target_delimiter: ""
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
    )
    rows = [
        {"question": f"S{word}=", "choices": ["".join(sorted(word)), word], "gold": 0}
        for word in ("dcbae", "edcab", "bagfe", "zyxwv", "hgfed", "kajbc", "monqp", "rtsqa")
    ]
    (tmp_path / "words.json").write_text("\n".join(json.dumps(row) for row in rows))
    path = tmp_path / "genome.yaml"
    models = {name: str(tiny_zoo / name) for name in ("base", "sort", "rot")}
    genome = {
        "models": [models["sort"], models["rot"]],
        "base_model": models["base"],
        "merge_method": "task_arithmetic",
        "layer_granularity": 2,
        "filters": ["mlp"],
    }
    path.write_text(yaml.safe_dump({"genome": genome, "tasks": ["words"]}))
    out = tmp_path / "run"
    run = ("run", str(path), "--out", str(out), "--budget", "4", "--workers", "0")
    evomerge(monkeypatch, "validate", str(path))
    evomerge(monkeypatch, *run)
    told = capsys.readouterr().out
    assert "note: mergekit-evolve's search has no bounds; here weights lie in [0, 2]" in told
    assert "prompts are asked as they are" in told
    evomerge(monkeypatch, *run)  # finished already
    evomerge(monkeypatch, "resume", str(out), "--budget", "6", "--workers", "0")
    evomerge(monkeypatch, "export", str(out), "--best", "--out", str(tmp_path / "best"))
    found = Run(out)
    assert found.status()["candidates"] == 6
    recipe = found.best().recipe
    assert recipe is not None
    assert recipe.dtype == "bfloat16"
    assert (tmp_path / "best" / "model.safetensors").exists()
