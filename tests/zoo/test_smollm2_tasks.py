"""The task files, the catalogue's entries, and what a reference to the family says."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from smollm2_data import made_up_data
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from evomerge.documents import read_yaml
from evomerge.errors import ConfigurationError
from evomerge.experiment.config import read_experiment
from evomerge.experiment.paths import find_in_catalogue
from evomerge.experiment.tasks import task_entries
from evomerge.files import catalogue_folder
from evomerge.fitness.config import read_fitness
from evomerge.fitness.lm_eval_task import LmEvalTask
from evomerge.zoo import smollm2 as family
from evomerge.zoo import zoo_path
from evomerge.zoo.smollm2.items import SKILLS, task_questions
from evomerge.zoo.smollm2.stages import EXPERTS, MODELS
from evomerge.zoo.smollm2.table import holdout_accuracy
from evomerge.zoo.smollm2.tasks import FRESH, HOLDOUT, SEARCH, holdout_items, split, write_tasks
from evomerge.zoo.tiny_folders import BOS, VOCABULARY

TEMPLATES = catalogue_folder("fitness") / "tasks" / "smollm2"
FITNESS = ("smollm2", "smollm2_conflict", "smollm2_german")


@pytest.fixture(scope="module")
def data():
    return made_up_data()


@pytest.fixture(scope="module")
def tasks(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo") / "tasks"
    write_tasks(folder, data, SKILLS)
    return folder


def test_every_skill_has_a_task_file_and_its_items(tasks):
    expected = {f"{skill}.{kind}" for skill in SKILLS for kind in ("yaml", "jsonl")}
    assert {path.name for path in tasks.iterdir()} == expected
    assert {path.stem for path in TEMPLATES.iterdir()} == set(SKILLS)


@pytest.mark.parametrize("skill", SKILLS)
def test_lm_eval_reads_what_was_written(tasks, data, skill):
    """lm-eval's own reading of the documents is the oracle."""
    task = LmEvalTask(skill, task=f"evomerge_smollm2_{skill}", path=tasks / f"{skill}.yaml")
    questions = task_questions(skill, data)
    assert len(task.items) == len(questions) >= SEARCH + FRESH + HOLDOUT
    for document, question in zip(task._docs, questions, strict=True):
        assert task._task.doc_to_text(document) == question.prompt
        assert tuple(task._task.doc_to_choice(document)) == question.choices
        assert task._task.doc_to_target(document) == question.gold


def test_no_item_is_committed():
    assert {path.suffix for path in TEMPLATES.iterdir()} == {".yaml"}


@pytest.mark.parametrize("name", FITNESS)
def test_the_fitness_asks_the_familys_tasks(name):
    config = read_fitness(read_yaml(catalogue_folder("fitness") / f"{name}.yaml"))
    assert (config.split.holdout >= 500, config.split.seed) == (True, 0)
    for skill, entry in config.tasks.items():
        family_name = "smollm2_german" if name == "smollm2_german" else "smollm2"
        assert entry["path"] == f"zoo:{family_name}/tasks/{skill}.yaml"
        assert entry["task"] == f"evomerge_smollm2_{skill}"


@pytest.mark.parametrize("name", ["smollm2", "smollm2_german"])
def test_the_fitness_splits_as_the_table_does(name):
    config = read_fitness(read_yaml(catalogue_folder("fitness") / f"{name}.yaml"))
    assert (config.split.search, config.split.fresh, config.split.holdout) == (
        SEARCH,
        FRESH,
        HOLDOUT,
    )
    assert (SEARCH >= 300, HOLDOUT >= 500) == (True, True)


def test_the_parts_of_a_split_do_not_meet():
    parts = split("sums", 1008)
    found = [set(part["sums"]) for part in (parts.search, parts.fresh, parts.holdout)]
    assert [len(part) for part in found] == [SEARCH, FRESH, HOLDOUT]
    assert len(set.union(*found)) == SEARCH + FRESH + HOLDOUT
    assert list(holdout_items("sums", 1008)) == sorted(found[2])


@pytest.mark.parametrize("name", FITNESS[:2])
def test_the_experiments_are_valid(name):
    config = read_experiment(find_in_catalogue(name, "experiments", catalogue_folder("fitness")))
    assert set(config.experts) <= set(EXPERTS)
    assert all(path == f"zoo:smollm2/{model}" for model, path in config.models().items())


def test_a_family_that_is_not_there_is_not_trained_by_a_reference(monkeypatch, tmp_path):
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path))
    for reference in (*(f"zoo:smollm2@2/{m}" for m in MODELS), "zoo:smollm2@2/tasks/sums.yaml"):
        with pytest.raises(ConfigurationError, match="evomerge zoo smollm2 --seed 2"):
            zoo_path(reference)
    assert list(tmp_path.iterdir()) == []
    config = read_fitness(read_yaml(catalogue_folder("fitness") / "smollm2.yaml"))
    with pytest.raises(ConfigurationError) as caught:
        task_entries(config, allow_code=False)
    assert len(caught.value.problems) == 5  # all at once
    assert "make it with: evomerge zoo smollm2 (" in str(caught.value)


def test_wrong_names_of_the_family_name_the_nearest():
    with pytest.raises(ConfigurationError, match=r"did you mean 'tasks/sums\.yaml'"):
        zoo_path("zoo:smollm2/tasks/sum.yaml")
    with pytest.raises(ConfigurationError, match="did you mean 'sentiment'"):
        zoo_path("zoo:smollm2/sentimant")


def test_a_task_of_the_zoo_is_found_once_the_family_is_there(monkeypatch, tmp_path):
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path))
    family.write_label(_made(tmp_path), family._label(0, family.STAGES))
    config = read_fitness(read_yaml(catalogue_folder("fitness") / "smollm2.yaml"))
    entries = task_entries(config, allow_code=False)
    folder = tmp_path / "zoo" / "smollm2-seed0"
    assert entries["sums"]["path"] == str(folder / "tasks" / "sums.yaml")
    assert "zoo:" in config.tasks["sums"]["path"]  # the experiment itself names no machine's path


def _made(cache):
    folder = cache / "zoo" / "smollm2-seed0"
    folder.mkdir(parents=True)
    return folder


def test_the_table_agrees_with_lm_eval(tasks, data):
    """The packed accuracy against the task's own scores, with a random model."""
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=0.5,
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = LlamaForCausalLM(config).eval()
    characters = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocab=VOCABULARY, merges=[])), bos_token=BOS
    )
    row = holdout_accuracy(model, characters, "sums", data)
    task = LmEvalTask("sums", task="evomerge_smollm2_sums", path=tasks / "sums.yaml")
    resident = SimpleNamespace(module=model, tokenizer=characters, version=0)
    wanted = holdout_items("sums", len(task.items))
    score = task.respond(resident, wanted).columns["score"]
    assert row["num_items"] == len(wanted) == HOLDOUT
    assert row["value"] == pytest.approx(float(np.mean(score)), abs=1e-6)
    assert 0.1 < row["value"] < 0.4  # a random model guesses one of four
    expected = np.std(score) / np.sqrt(HOLDOUT)
    assert row["standard_error"] == pytest.approx(expected, rel=1e-5)
