"""Groups of lm-eval's tasks in a fitness file; the oracle is lm-eval's own group score."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_lm_eval_task import (
    ASSETS,
    Resident,
    character_tokenizer,
    global_generators,  # noqa: F401 - a fixture
    lm_eval_results,
    random_llama,
)

from evomerge.documents import Document
from evomerge.errors import ConfigurationError
from evomerge.experiment.config import read_experiment
from evomerge.experiment.groups import expand_groups
from evomerge.experiment.recorded import read_run
from evomerge.experiment.run import read_run_config, run_experiment
from evomerge.experiment.tasks import make_tasks, objectives_over, task_entries
from evomerge.files import catalogue_folder
from evomerge.fitness.config import FitnessConfig, read_fitness
from evomerge.fitness.lm_eval_files import is_registered
from evomerge.fitness.lm_eval_groups import find_group
from evomerge.ledger import Ledger


def fitness(task: str, path: Path = ASSETS, **options: Any) -> FitnessConfig:
    entry = {"task": task, "path": str(path), "shared_prefix": False, **options}
    more = {"task": "assets_copy", "path": str(ASSETS)}
    data = {
        "tasks": {"mine": entry, "more": more},
        "objectives": {"all": {"tasks": {"mine": 3, "more": 1}}, "one": "mine"},
    }
    return read_fitness(Document(data))


def sizes(tasks: dict[str, Any]) -> dict[str, int]:
    return {name: len(task.items) for name, task in tasks.items()}


@pytest.fixture(scope="module")
def resident() -> Resident:
    tokenizer = character_tokenizer()
    return Resident(random_llama(3, len(tokenizer)), tokenizer)


@pytest.mark.parametrize("group", ["assets_group", "assets_equal"])
@pytest.mark.parametrize("limit", [None, 20])
def test_the_weighted_mean_is_lm_evals_group_score(resident, group, limit):
    theirs = lm_eval_results(resident, ASSETS, group, batch_size=16, limit=limit)
    options = {"batch_size": 16} if limit is None else {"batch_size": 16, "limit": limit}
    config = fitness(group, **options)
    tasks = make_tasks(task_entries(config, allow_code=False))
    both, one = objectives_over(config, sizes(tasks))
    means = {
        name: task.respond(resident, task.items).columns["score"].astype(np.float64).mean()
        for name, task in tasks.items()
    }
    mean = sum(weight * means[task] for task, weight in one.weights.items())
    assert mean == pytest.approx(theirs["results"][group]["acc,none"], abs=1e-12)
    assert len({means[task] for task in one.weights}) > 2
    assert sum(both.weights.values()) == pytest.approx(1)
    assert both.weights["more"] == 0.25
    assert both.weights["mine/assets_pick"] == pytest.approx(0.75 * one.weights["mine/assets_pick"])


def test_the_tasks_of_a_group_have_its_options(resident):
    entries = task_entries(fitness("assets_group", ASSETS / "group.yaml", limit=7), allow_code=True)
    names = ["mine/assets_pick", "mine/assets_letter", "mine/assets_blank", "more"]
    assert list(entries) == names
    assert [entries[name].get("limit") for name in names] == [7, 7, 7, None]
    assert [entries[name].get("metric") for name in names] == ["acc", "acc", "acc", None]
    assert all(entry["allow_code"] for entry in entries.values())
    assert entries["mine/assets_blank"]["overrides"] == {"num_fewshot": 0}
    tasks = make_tasks(entries)
    assert len(tasks["mine/assets_letter"].items) == 7


def test_a_file_of_entries_without_groups_is_left_as_it_is():
    config = fitness("assets_pick")
    entries = task_entries(config, allow_code=False)
    assert entries == {n: {**e, "allow_code": False} for n, e in config.tasks.items()}
    tasks = make_tasks(entries)
    assert objectives_over(config, sizes(tasks)) == config.all_objectives()


def write(folder: Path, **files: str) -> Path:
    for name in ("pick.yaml", "pick.json", "pick_shots.json"):
        (folder / name).write_text((ASSETS / name).read_text())
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


def test_a_tag_weighs_its_tasks_alike(tmp_path):
    first = "include: pick.yaml\ntask: first\ntag: both\n"
    second = first.replace("first", "second") + "process_docs: null\n"
    folder = write(tmp_path, first=first, second=second, top="group: top\ntask: [both, first]\n")
    config = fitness("both", folder)
    tasks = make_tasks(task_entries(config, allow_code=False))
    weights = objectives_over(config, sizes(tasks))[1].weights
    assert weights == {"mine/first": 0.5, "mine/second": 0.5}
    config = fitness("top", folder)  # the first stands twice, and counts twice
    weights = objectives_over(config, sizes(make_tasks(task_entries(config, allow_code=False))))[
        1
    ].weights
    assert weights == {"mine/first": 2 / 3, "mine/second": 1 / 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("group: top\ntask: [assets_pcik]\n", "no task 'assets_pcik'"),
        ("group: top\ntask: []\n", "has no tasks"),
        ("group: top\ntask: [top]\n", "holds itself"),
        ("group: top\ntask: 5\n", "group top task: a member should be a task's name"),
        ("group: top\ntask: [5]\n", "group top task: a member should be a task's name"),
        ("group: top\ntask: [{num_fewshot: 2}]\n", "mapping with a `task`, got {'num_fewshot': 2}"),
        ("group: top\ntask: [assets_pick]\naggregate_metric_list: [{metirc: acc}]\n", "metirc"),
        (
            "group: top\ntask: [assets_pick]\naggregate_metric_list:\n"
            "  - {metric: acc, aggregation: median}\n",
            "median",
        ),
        ("group: top\ntask: [assets_pick]\nprocess_docs: !function code.run\n", "holds no code"),
        (
            "group: top\ntask: [assets_pick, {task: assets_pick, num_fewshot: 2}]\n",
            "stands twice in the group",
        ),
    ],
)
def test_what_a_group_cannot_be(tmp_path, monkeypatch, text, message):
    monkeypatch.setattr("evomerge.fitness.lm_eval_groups.registry", dict)  # 15 seconds
    folder = write(tmp_path, top=text)
    with pytest.raises(ConfigurationError) as caught:
        task_entries(fitness("top", folder), allow_code=False)
    assert message in str(caught.value)
    assert "task mine" in str(caught.value)


def test_names_do_not_collide():
    entry = {"task": "assets_group", "path": str(ASSETS)}
    other = {"task": "assets_copy", "path": str(ASSETS)}
    with pytest.raises(ConfigurationError, match="mine/assets_pick stands twice"):
        expand_groups({"mine": entry, "mine/assets_pick": other})


def test_a_group_lends_no_prompts():
    config = fitness("assets_group")
    tasks = {**config.tasks, "more": {"kind": "entropy", "of": "mine"}}
    config = config.model_copy(update={"tasks": tasks})
    with pytest.raises(ConfigurationError, match="task more: of: 'mine' is a group, which lends"):
        task_entries(config, allow_code=False)


EXPERIMENT = """
base: {zoo}/base
experts: {{sort: {zoo}/sort, back: {zoo}/back}}
space: per_expert
fitness:
  tasks:
    both: {{task: both, path: {folder}, limit: 24}}
  objectives: {{both: both}}
  split: {{search: 8, fresh: 8, holdout: 8}}
  finalists: 1
searcher: {{kind: random}}
cohort: 2
budget: {{candidates: {candidates}}}
pool: {{workers: 0}}
"""


def test_a_run_with_a_group_is_resumed(tiny_zoo, tmp_path):
    folder = tmp_path / "tasks"
    shutil.copytree(catalogue_folder("fitness") / "tasks" / "tiny", folder)
    members = "[evomerge_tiny_sort_choice, evomerge_tiny_back]"
    (folder / "both.yaml").write_text(f"group: both\ntask: {members}\n")

    def run(candidates: int) -> Ledger:
        file = tmp_path / "experiment.yaml"
        file.write_text(EXPERIMENT.format(zoo=tiny_zoo, folder=folder, candidates=candidates))
        run_experiment(read_experiment(file), tmp_path / "run")
        return Ledger(tmp_path / "run" / "ledger.sqlite", read_only=True)

    with contextlib.closing(run(2)) as ledger:
        before = len(list(ledger.events("measured")))
        assert set(ledger.measurements.num_items) == {
            "both/evomerge_tiny_sort_choice",
            "both/evomerge_tiny_back",
        }
    again = read_run_config(tmp_path / "run")
    assert again.fitness.tasks.keys() == {"both"}
    with contextlib.closing(run(4)) as ledger:
        assert len(list(ledger.events("measured"))) > before
    # Other weights are another search, which the entries of the fitness file do not tell.
    text = (folder / "both.yaml").read_text()
    (folder / "both.yaml").write_text(text.replace("_back]", "_back, evomerge_tiny_back]"))
    with pytest.raises(ConfigurationError, match="weights"):
        run(4)
    (folder / "both.yaml").write_text(text)
    again = read_run(tmp_path / "run")
    (objective,) = again.objectives
    assert set(objective.weights.values()) == {0.5}
    assert again.split.search.keys() == objective.weights.keys()


@pytest.mark.slow
def test_groups_of_lm_evals_registry():
    group = find_group("mmlu", None)
    assert group is not None
    assert len(group.leaves) == 57
    assert (group.metric, group.by_size) == ("acc", True)
    assert find_group("hellaswag", None) is None
    tag = find_group("ai2_arc", None)
    assert [leaf.task for leaf in tag.leaves] == ["arc_challenge", "arc_easy"]
    assert is_registered(tag.leaves[0].path)
    assert is_registered(None)
    assert not is_registered(ASSETS / "pick.yaml")
