"""Every catalogue file loads, validates, and is dry-run; names lead to files."""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import yaml

from evomerge.documents import read_yaml
from evomerge.errors import ConfigurationError
from evomerge.experiment.config import BudgetConfig, read_experiment
from evomerge.experiment.paths import find_in_catalogue
from evomerge.experiment.plan import plan_experiment
from evomerge.experiment.run import run_experiment
from evomerge.experiment.sweep import read_sweep
from evomerge.experiment.tasks import make_tasks, task_entries
from evomerge.experiment.wire import wire
from evomerge.files import catalogue_folder
from evomerge.fitness.config import SplitConfig, read_fitness
from evomerge.merging import OPERATORS
from evomerge.merging.table import POST_STEPS
from evomerge.search_spaces import SPACES, parse_space
from evomerge.zoo import ZOOS

GENES = {
    "accuracy_against_size": 18,
    "cycle_qd": 24,
    "evolutionary_dfs": 72,
    "evolutionary_ps": 6,
    "evolutionary_ps_then_dfs": 72,
    "fisher": 3,
    "gptailor": 26,
    "gptailor_1_of_6": 25,
    "kinship": 3,
    "lora_concat": 3,
    "lora_experts": 4,
    "m2n2": "none: its genomes are lineages",
    "m2n2_digits": "none: its genomes are lineages",
    "map_pareto": 3,
    "merge3": 6,
    "model_glue": 9,
    "quickstart": 3,
    "quickstart_label_free": 3,
    "quickstart_pareto": 3,
    "quickstart_racing": 3,
    "quickstart_irt": 3,
    "random_baseline": 3,
    "recycle": 15,
    "reinforced_merging": 8,
    "smollm2": 5,
    "smollm2_conflict": 10,
    "smollm2_conflict_map": 2,
    "smollm2_evolutionary_dfs": 360,
    "smollm2_evolutionary_ps": 6,
    "smollm2_gptailor_10": 123,
    "smollm2_gptailor_20": 126,
    "smollm2_gptailor_30": 129,
    "smollm2_layer_swapping": 3,
    "smollm2_m2n2": "none: its genomes are lineages",
    "smollm2_merge3": 3,
    "smollm2_ps_then_dfs": 240,
    "smollm2_per_expert": 3,
    "smollm2_per_layer": 96,
    "smollm2_pruned": 30,
    "smollm2_three_skills": 15,
    "smollm2_three_skills_map": 3,
    "smollm2_ties": 6,
    "smollm2_two_of_five": 5,
    "smollm2_two_of_five_cma": 5,
    "smollm2_two_of_five_front": 5,
    "smollm2_two_of_five_front_random": 5,
    "smollm2_two_of_five_map": 5,
    "smollm2_two_of_five_random": 5,
    "mergekit_evolve": 6,
    "task_arithmetic_per_layer": 24,
    "ties": 6,
}
RUNS_CODE = ("m2n2_digits",)  # of the catalogue itself; to be allowed all the same
AFTER = {
    "evolutionary_ps_then_dfs": "evolutionary_ps",
    "smollm2_ps_then_dfs": "smollm2_evolutionary_ps",
}
GERMAN = ("smollm2_german", "smollm2_layer_swapping")


def catalogue(kind: str) -> list[Path]:
    return sorted(catalogue_folder(kind).glob("*.yaml"))


def dry_runs() -> list[Any]:
    """The experiments; those of a real model take many seconds each."""
    return [
        pytest.param(p, id=p.stem, marks=[pytest.mark.slow] * p.stem.startswith("smollm2"))
        for p in catalogue("experiments")
    ]


def skip_unless_made(path: Path) -> None:
    """What needs the family of a real model is tried where somebody has made it."""
    if path.stem.startswith("smollm2"):
        for family in ("smollm2", *(["smollm2_german"] if path.stem in GERMAN else [])):
            if not ZOOS[family].is_made(0):
                pytest.skip(f"needs `evomerge zoo {family}`, which fetches and trains a real model")


@pytest.mark.parametrize(
    ("kind", "at_least"),
    [("search_spaces", 4), ("fitness", 4), ("experiments", 4), ("experiments/sweeps", 1)],
)
def test_there_is_something_and_it_says_what_it_is(kind: str, at_least: int) -> None:
    assert len(catalogue(kind)) >= at_least
    for path in sorted(catalogue_folder(kind).rglob("*.yaml")):
        lines = path.read_text().splitlines()
        comment = list(takewhile(lambda line: line.startswith("#"), lines))
        assert len(comment) >= 2, f"{path} says what it is, and what to expect"
        assert len(" ".join(comment)) > 100
        assert all(len(line) <= 100 for line in lines)


@pytest.mark.parametrize("path", catalogue("search_spaces"), ids=lambda path: path.stem)
def test_search_spaces_are_valid(path: Path) -> None:
    assert parse_space(read_yaml(path)).kind in SPACES


@pytest.mark.parametrize("path", catalogue("fitness"), ids=lambda path: path.stem)
def test_fitness_files_are_valid_and_their_tasks_have_the_items(path: Path) -> None:
    skip_unless_made(path)
    config = read_fitness(read_yaml(path))
    tasks = make_tasks(task_entries(config, allow_code=False))
    split = config.split
    for task in tasks.values():
        assert len(task.items) >= split.search + split.fresh + (split.holdout or 1)
        assert len(task.fingerprint) == 64
    assert {t for o in config.objectives.values() for t in o.tasks} == set(tasks)


@pytest.mark.parametrize("path", dry_runs())
def test_experiments_are_dry_run(
    path: Path, tiny_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_unless_made(path)
    monkeypatch.chdir(tmp_path)
    if path.stem in AFTER:  # it goes on from the best of another one, found with less effort here
        first = read_experiment(path.with_stem(AFTER[path.stem]))
        few_items = {"split": SplitConfig(search=12, fresh=0, holdout=12)}
        with_less = {
            "fitness": first.fitness.model_copy(update=few_items),
            "budget": BudgetConfig(candidates=4),
            **{"cohort": 4, "in_flight": 4},
        }
        run_experiment(first.model_copy(update=with_less), Path("runs", AFTER[path.stem]))
    config = read_experiment(path)
    assert config.name == path.stem
    assert not config.allow_code, "who runs it says so"
    config = config.model_copy(update={"allow_code": path.stem in RUNS_CODE})
    figures = plan_experiment(config)
    assert figures["genes"] == GENES[path.stem]
    assert figures["the recipe at the centre"] if config.space.kind != "niches" else True
    assert figures["a random recipe"]
    assert figures["bytes moved by such a candidate"].endswith(" MB")
    assert figures["candidates"] == config.budget.candidates
    assert int(figures["items: all"].replace(",", "")) > 1000


@pytest.mark.parametrize("path", catalogue("experiments/sweeps"), ids=lambda path: path.stem)
def test_sweeps_are_of_experiments_that_are_wired(path: Path, tiny_zoo: Path) -> None:
    runs = {run.searcher: run for run in read_sweep(path)}
    assert len(runs) >= 2
    for run in runs.values():
        wire(run.config)


@pytest.mark.parametrize("path", dry_runs())
def test_a_resolved_experiment_is_read_back_the_same(path: Path, tmp_path: Path) -> None:
    config = read_experiment(path)
    copy = tmp_path / "experiment.yaml"
    copy.write_text(config.to_yaml())
    assert read_experiment(copy) == config
    assert yaml.safe_load(copy.read_text())["space"]["kind"] == config.space.kind


@pytest.mark.parametrize("kind", ["search_spaces", "fitness", "experiments"])
def test_names_lead_to_the_catalogue_and_paths_to_files(kind: str, tmp_path: Path) -> None:
    for path in catalogue(kind):
        assert find_in_catalogue(path.stem, kind, tmp_path) == path
        assert find_in_catalogue(path.name, kind, tmp_path) == path
    name = catalogue(kind)[0].stem
    near = tmp_path / f"{name}.yaml"
    near.write_text("kind: mine\n")
    assert find_in_catalogue(near.name, kind, tmp_path) == near  # the user's own comes first
    with pytest.raises(ConfigurationError, match=f"did you mean '{name}'"):
        find_in_catalogue(name[:-1], kind, tmp_path)


def test_the_readme_names_all_operators_and_counts_the_spaces() -> None:
    text = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    [row] = [line for line in text.splitlines() if line.startswith("| operators |")]
    lacking = [name for name in OPERATORS if f"`{name}`" not in row]
    lacking += [name for name in POST_STEPS if f"\\| {name}`" not in row]
    assert not lacking
    assert f"{len(catalogue('search_spaces'))} files that read like the papers" in text
