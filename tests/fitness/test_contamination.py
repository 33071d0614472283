"""Public benchmarks are recognised; the oracle is what lm-evaluation-harness has and evaluates."""

from __future__ import annotations

import logging
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import lm_eval.tasks
import pytest
import yaml

from evomerge.cli import main
from evomerge.documents import read_yaml
from evomerge.experiment.config import read_experiment
from evomerge.experiment.plan import plan_experiment
from evomerge.experiment.run import run_experiment
from evomerge.files import catalogue_folder
from evomerge.fitness.contamination import BENCHMARKS, benchmark_of, contamination_warning
from evomerge.fitness.lm_eval_files import _read
from evomerge.records import Objective

sys.path.insert(0, str(Path(__file__).parents[1] / "results"))
from small_run import write_experiment

REGISTRY = Path(lm_eval.tasks.__file__).parent
FILES = {  # lm-eval's own file -> the benchmark that published scores are of
    "agieval/aqua-rat.yaml": "AGIEval",
    "aime/aime24.yaml": "AIME",
    "anli/anli_r1.yaml": "ANLI",
    "arc/arc_challenge.yaml": "ARC",
    "arc/arc_easy.yaml": "ARC",
    "bbh/zeroshot/boolean_expressions.yaml": "BIG-bench Hard",
    "ceval/ceval-valid_law.yaml": "C-Eval",
    "cmmlu/cmmlu_anatomy.yaml": "CMMLU",
    "commonsense_qa/default.yaml": "CommonsenseQA",
    "coqa/default.yaml": "CoQA",
    "drop/default.yaml": "DROP",
    "glue/mnli/default.yaml": "GLUE",
    "gpqa/zeroshot/gpqa_main_zeroshot.yaml": "GPQA",
    "gsm8k/gsm8k-cot.yaml": "GSM8K",
    "gsm8k/gsm8k.yaml": "GSM8K",
    "hellaswag/hellaswag.yaml": "HellaSwag",
    "hendrycks_math/hendrycks_math500.yaml": "MATH",
    "humaneval/humaneval.yaml": "HumanEval",
    "ifeval/ifeval.yaml": "IFEval",
    "lambada/lambada_openai.yaml": "LAMBADA",
    "logiqa/logiqa.yaml": "LogiQA",
    "mathqa/mathqa.yaml": "MathQA",
    "mbpp/mbpp.yaml": "MBPP",
    "medmcqa/medmcqa.yaml": "MedMCQA",
    "medqa/medqa.yaml": "MedQA",
    "mgsm/direct/mgsm_direct_de.yaml": "MGSM",
    "minerva_math/minerva_math_algebra.yaml": "MATH",
    "mmlu/default/mmlu_anatomy.yaml": "MMLU",
    "mmlu_pro/mmlu_pro_law.yaml": "MMLU-Pro",
    "nq_open/nq_open.yaml": "Natural Questions",
    "openbookqa/openbookqa.yaml": "OpenBookQA",
    "piqa/piqa.yaml": "PIQA",
    "pubmedqa/pubmedqa.yaml": "PubMedQA",
    "race/race.yaml": "RACE",
    "sciq/sciq.yaml": "SciQ",
    "siqa/siqa.yaml": "Social IQa",
    "super_glue/boolq/default.yaml": "BoolQ",
    "super_glue/copa/default.yaml": "SuperGLUE",
    "swag/swag.yaml": "SWAG",
    "toxigen/toxigen.yaml": "ToxiGen",
    "triviaqa/default.yaml": "TriviaQA",
    "truthfulqa/truthfulqa_mc1.yaml": "TruthfulQA",
    "wikitext/wikitext.yaml": "WikiText",
    "winogrande/default.yaml": "WinoGrande",
}


def lm_evals_own(file: str) -> dict[str, Any]:
    """A file of lm-eval's, as a user may copy it, under a task name that tells nothing."""
    return {**_read((REGISTRY / file).resolve(), allow_code=False), "task": "mine"}


@pytest.mark.parametrize(("file", "title"), FILES.items())
def test_copies_of_lm_evals_files_are_told_by_their_data(file: str, title: str) -> None:
    config = lm_evals_own(file)
    assert benchmark_of(config, is_registered=False) == title
    # On the split to train on, the same data are nobody's test; nor where it is cut.
    evaluated = config.get("test_split") or config["validation_split"]
    if evaluated != "train":
        for split in ("train", "train[:200]"):
            trained = {**config, "test_split": split}
            assert benchmark_of(trained, is_registered=False) is None


@pytest.mark.parametrize("file", FILES)
def test_a_validation_split_counts_where_no_other_is_published(file: str) -> None:
    config = lm_evals_own(file)
    test, validation = config.get("test_split"), config.get("validation_split")
    if test == "test" and validation == "validation":
        assert benchmark_of({**config, "test_split": None}, is_registered=False) is None
    if test is None and validation in ("validation", "val"):
        assert benchmark_of(config, is_registered=False) == FILES[file]


@pytest.mark.parametrize(
    ("task", "told"),
    [
        ("gsm8k_cot", "GSM8K"),
        ("mmlu_anatomy", "MMLU"),
        ("mmlu_pro_law", "MMLU-Pro"),
        ("leaderboard_musr_team_allocation", "MuSR"),
        ("race", "race"),  # all of lm-eval's tasks are public, by whatever name
        ("babi", "babi"),
    ],
)
def test_lm_evals_own_tasks_are_told_by_their_name(task: str, told: str) -> None:
    assert benchmark_of({"task": task, "test_split": "train"}, is_registered=True) == told


@pytest.mark.parametrize(
    ("task", "file", "told"),
    [
        ("mine", "gsm8k.jsonl", "GSM8K"),
        ("mine", "GSM8K-test.jsonl", "GSM8K"),
        ("mine", "hellaswag/items.jsonl", "HellaSwag"),
        ("mine", "HellaSwag_val.jsonl", "HellaSwag"),
        ("my_gsm8k", "items.jsonl", "GSM8K"),
        ("mine", "truthful_qa.jsonl", "TruthfulQA"),
        ("mine", "gsm8k_train.jsonl", None),  # whatever split it is loaded as
        ("mine", "gsm8k-dev.jsonl", None),
        ("mine", "hellaswag_train.jsonl", None),
        ("mine", "gsm8kids.jsonl", None),  # only whole words
        ("mine", "mygsm8k.jsonl", None),
        ("mine", "gsm8k/mine/items.jsonl", None),  # too far up to tell
        ("drop_race_math", "items.jsonl", None),  # words of every day
        ("piquant", "squadron/arc.jsonl", None),
    ],
)
def test_files_are_told_by_their_names(task: str, file: str, told: str | None) -> None:
    for split, loaded in (("test", {"test": file}), ("train", file), ("test", {"test": [file]})):
        config = {
            "task": task,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": loaded},
            "test_split": split,
        }
        assert benchmark_of(config, is_registered=False) == told


def test_the_files_of_another_split_do_not_count() -> None:
    config = {
        "task": "mine",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"train": "gsm8k.jsonl", "test": "mine.jsonl"}},
        "test_split": "test",
    }
    assert benchmark_of(config, is_registered=False) is None


def test_every_benchmark_is_recognised_by_each_of_its_names() -> None:
    for benchmark in BENCHMARKS:
        for name in benchmark.names:
            for written in (name, name.upper(), name.replace("_", "-"), f"my {name} items"):
                config = {"task": "t", "dataset_path": f"x/{written}", "test_split": "test"}
                assert benchmark_of(config, is_registered=False) == benchmark.title


def test_nothing_in_the_catalogue_is_a_benchmark() -> None:
    files = sorted((catalogue_folder("fitness") / "tasks").rglob("*.yaml"))
    assert len(files) > 5
    for file in files:
        assert benchmark_of(read_yaml(file).data, is_registered=False) is None, file


class Known:
    """A task that knows what it is of."""

    def __init__(self, benchmark: str | None) -> None:
        self.benchmark = benchmark


def test_only_tasks_that_an_objective_uses_are_told_of_each_name_once() -> None:
    tasks = {
        "a": Known("MMLU"),
        "b": Known("MMLU"),
        "c": Known("ARC"),
        "d": Known(None),
        "e": object(),
        "f": Known("GSM8K"),
    }

    def told(*names: str) -> str | None:
        return contamination_warning([Objective("o", dict.fromkeys(names, 1.0))], tasks)

    assert told("d", "e") is None
    assert "scores on MMLU are no longer" in (told("a", "b", "d") or "")
    assert "scores on ARC, GSM8K and MMLU are no longer" in (told("f", "a", "b", "c") or "")
    assert contamination_warning([Objective("size", {}, cost="parameters")], tasks) is None
    many = {f"t{n}": Known(f"T{n}") for n in range(9)}
    warning = contamination_warning([Objective("o", dict.fromkeys(many, 1.0))], many)
    assert "T4, T5 and 3 more are" in (warning or "")


def test_run_validate_and_plan_warn_once(
    tiny_zoo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    tiny = catalogue_folder("fitness") / "tasks" / "tiny"
    task = yaml.safe_load((tiny / "sort.yaml").read_text())
    task["dataset_kwargs"]["data_files"]["test"] = "gsm8k_test.jsonl"
    shutil.copy(tiny / "sort.jsonl", tmp_path / "gsm8k_test.jsonl")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(task))
    tasks = {
        "mine": {"task": "evomerge_tiny_sort", "path": "mine.yaml"},
        "back": {"task": "evomerge_tiny_back", "path": str(tiny / "back.yaml")},
    }
    sizes = {"budget": {"candidates": 2}, "searcher": {"kind": "random", "population": 2}}
    path = write_experiment(tmp_path, tiny_zoo, tasks=tasks, objectives={"o": "mine"}, **sizes)
    wanted = "scores on GSM8K are no longer comparable with published ones"

    for verb in ("validate", "plan"):
        monkeypatch.setattr(sys, "argv", ["evomerge", verb, str(path)])
        with pytest.raises(SystemExit) as caught:
            main()
        printed = capsys.readouterr().out
        assert caught.value.code == 0
        assert len(re.findall(wanted, " ".join(printed.split()))) == 1, printed
    assert [wanted in line for line in plan_experiment(read_experiment(path))["warnings"]] == [True]

    with caplog.at_level(logging.WARNING):
        run_experiment(read_experiment(path), tmp_path / "run")
    assert len([line for line in caplog.messages if wanted in line]) == 1
    assert (tmp_path / "run" / "run.log").read_text().count(wanted) == 1

    caplog.clear()  # the same task, but no objective
    path = write_experiment(tmp_path, tiny_zoo, tasks=tasks, objectives={"o": "back"}, **sizes)
    assert plan_experiment(read_experiment(path))["warnings"] == []
