"""The family `smollm2_german`: what it is made from, and what a reference to it says."""

import json

import pytest
from smollm2_data import made_up_data, write_json

from evomerge.errors import ConfigurationError
from evomerge.zoo import smollm2 as family
from evomerge.zoo import zoo_path
from evomerge.zoo.smollm2 import german, read_table
from evomerge.zoo.smollm2.experts import MEASURED
from evomerge.zoo.smollm2.german import is_made, smollm2_german
from evomerge.zoo.smollm2.items import sources
from evomerge.zoo.smollm2.stages import GERMAN_TASKS

ROW = {"base": {"value": 0.5}, "expert": {"value": 0.75}, "seconds": 1}


@pytest.fixture
def jobs(monkeypatch, tmp_path):
    """Stands for the base, the files and the training; notes the jobs."""
    done = []
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(german, "smollm2", lambda seed, progress: tmp_path / f"smollm2 {seed}")
    data = made_up_data()

    def files(downloads, skills, progress):
        return write_json(tmp_path, {name: data[name] for name in sources(skills)})

    def run(all_jobs, progress):
        for job in all_jobs:
            done.append(job)
            (job.folder / job.stage.skill).mkdir()
            (job.folder / job.stage.skill / MEASURED).write_text(json.dumps(ROW))

    monkeypatch.setattr(german, "task_files", files)
    monkeypatch.setattr(family, "run_jobs", run)
    return done


def test_one_expert_starts_from_the_base_of_the_same_seed(jobs, tmp_path):
    assert not is_made(3)
    folder = smollm2_german(seed=3)
    [job] = jobs
    assert (job.stage.skill, job.seed, job.start) == ("german", 3, tmp_path / "smollm2 3" / "base")
    assert {path.name for path in folder.iterdir()} == {
        *("german", "tasks", "table.json", "zoo.json")
    }
    tasks = {f"{skill}.{kind}" for skill in GERMAN_TASKS for kind in ("yaml", "jsonl")}
    assert {path.name for path in (folder / "tasks").iterdir()} == tasks
    assert read_table(folder) == {"german": ROW}
    assert is_made(3)
    assert smollm2_german(seed=3) == folder
    assert len(jobs) == 1
    reference = "zoo:smollm2_german@3/tasks/sentiment_de.yaml"
    assert zoo_path(reference) == folder / "tasks" / "sentiment_de.yaml"


def test_a_reference_does_not_train_it(jobs):
    with pytest.raises(ConfigurationError, match="evomerge zoo smollm2_german --seed 2"):
        zoo_path("zoo:smollm2_german@2/german")
    assert jobs == []


def test_a_folder_of_somebody_elses_is_refused(jobs, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigurationError, match="no zoo"):
        smollm2_german(tmp_path / "mine")
    assert jobs == []
