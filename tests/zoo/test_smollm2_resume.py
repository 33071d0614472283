"""Whatever ends the training, what is complete counts and only the rest is made again."""

import json
import os

import pytest

from evomerge.errors import ConfigurationError
from evomerge.zoo import smollm2 as family
from evomerge.zoo.smollm2 import card, is_made, read_table, smollm2
from evomerge.zoo.smollm2.experts import MEASURED, Job, TrainingFailed, run_jobs
from evomerge.zoo.smollm2.stages import EXPERTS, MODELS, STAGES

ROW = {
    "base": {"value": 0.25, "standard_error": 0.02, "num_items": 500},
    "expert": {"value": 0.75, "standard_error": 0.02, "num_items": 500},
    "seconds": 1,
}


def toy(job, report):
    """Stands for the training: writes what an expert's folder needs, and notes its process."""
    for step in range(2):
        report(step + 1, 2)
    skill = job.stage.skill
    if (job.folder / f"kill {skill}").exists():
        os._exit(9)
    if (job.folder / f"fail {skill}").exists():
        raise ValueError("no luck")
    begun = job.folder / f".{skill}.part"
    begun.mkdir(exist_ok=True)
    (begun / MEASURED).write_text(json.dumps(ROW))
    (begun / "model").write_text(f"{skill} {job.seed}")
    begun.rename(job.folder / skill)
    with (job.folder / "log").open("a") as log:
        log.write(f"{skill} {os.getpid()}\n")


def jobs(folder):
    return [Job(stage, 3, folder, {}, "base", "card") for stage in STAGES]


def trained(folder):
    return [line.split()[0] for line in (folder / "log").read_text().splitlines()]


def test_experts_are_trained_each_in_a_process_of_its_own(tmp_path):
    calls = []
    run_jobs(jobs(tmp_path), lambda *call: calls.append(call), run=toy)
    assert sorted(trained(tmp_path)) == sorted(EXPERTS)
    processes = {line.split()[1] for line in (tmp_path / "log").read_text().splitlines()}
    assert len(processes) == len(EXPERTS)
    assert str(os.getpid()) not in processes
    assert {name for name, *_ in calls} == set(EXPERTS)


@pytest.mark.parametrize(("how", "told"), [("kill", "ended with 9"), ("fail", "no luck")])
def test_only_what_is_missing_is_trained_again(tmp_path, how, told):
    (tmp_path / f"{how} sums").touch()
    with pytest.raises(TrainingFailed, match=f"(?s)zoo:smollm2/sums: .*{told}"):
        run_jobs(jobs(tmp_path), run=toy, at_once=1)
    assert trained(tmp_path) == ["sentiment", "domain"]
    (tmp_path / f"{how} sums").unlink()
    run_jobs(jobs(tmp_path), run=toy, at_once=1)
    assert trained(tmp_path) == list(EXPERTS)


@pytest.fixture
def made_up(monkeypatch, tmp_path):
    """The family with a made-up base, and experts that are trained by `toy`."""
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path))
    monkeypatch.setattr(family, "_require_libraries", lambda: None)
    monkeypatch.setattr(family, "STAGES", STAGES[:3])  # a process takes half a second to start

    def make_base(part, seed, progress):
        (part / "base").mkdir(exist_ok=True)
        return {}

    monkeypatch.setattr(family, "_make_base_and_tasks", make_base)
    monkeypatch.setattr(family, "run_jobs", lambda j, p: run_jobs(j, p, run=toy, at_once=1))
    return tmp_path / "zoo"


def test_an_interrupted_family_goes_on(made_up):
    def interrupt(what, done, total):
        if what == "sums":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        smollm2(seed=3, progress=interrupt)
    part = made_up / ".smollm2-seed3.part"
    assert trained(part)[:2] == ["sentiment", "domain"]
    assert not is_made(3)
    folder = smollm2(seed=3)
    assert trained(folder) == list(EXPERTS[:3])  # each once
    assert is_made(3)
    assert not part.exists()
    assert read_table(folder) == dict.fromkeys(EXPERTS[:3], ROW)
    expected = {*MODELS[:4], "zoo.json", "table.json", "log"}
    assert {path.name for path in folder.iterdir()} == expected


def test_a_complete_family_is_returned_at_once(made_up, monkeypatch):
    folder = smollm2(seed=1)
    monkeypatch.setattr(family, "_make", None)  # to call it would fail
    assert smollm2(seed=1) == folder


def test_what_another_recipe_left_is_no_beginning(made_up, monkeypatch):
    part = made_up / ".smollm2-seed0.part"
    (part / "sums").mkdir(parents=True)
    (part / "making.json").write_text('{"zoo": "smollm2", "seed": 0}')
    assert trained(smollm2()) == list(EXPERTS[:3])


def test_another_seed_is_another_family(made_up):
    one, two = smollm2(seed=0), smollm2(seed=1)
    assert one != two
    assert (one / "sums" / "model").read_text() != (two / "sums" / "model").read_text()


def test_a_folder_of_somebody_elses_is_refused(made_up, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigurationError, match="no zoo"):
        smollm2(tmp_path / "mine")


def test_missing_libraries_are_named_before_anything_is_fetched(monkeypatch, tmp_path):
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path))
    monkeypatch.setattr(family.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"accelerate and gguf.*evomerge\[smollm2\]"):
        smollm2()
    assert list(tmp_path.iterdir()) == []


def test_cards_say_what_and_whose(tmp_path):
    for name in MODELS:
        text = card(name, 4)
        assert text.startswith("---\nlicense: apache-2.0\n")
        assert "SmolLM2-135M-Instruct by Hugging Face" in text
