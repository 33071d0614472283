"""Items without an answer, counted where the test has taken answers away, and told once a run."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from evomerge.cli import main
from evomerge.errors import ConfigurationError
from evomerge.experiment.config import read_experiment
from evomerge.experiment.plan import plan_experiment
from evomerge.experiment.run import run_experiment
from evomerge.experiment.tasks import answer_warnings, check_answers
from evomerge.files import catalogue_folder
from evomerge.fitness.lm_eval_task import LmEvalTask
from evomerge.records import Objective

sys.path.insert(0, str(Path(__file__).parents[1] / "results"))
from small_run import write_experiment

ASSETS = Path(__file__).parent / "assets"
ALL = ("copy", "digits", "finish", "read", "pick", "guess", "letter", "blank")
GENERATED = {"task": "assets_copy", "num_fewshot": 0}
LIKELY = {"task": "assets_finish"}
CHOSEN = {"task": "assets_pick"}
LETTER = {"task": "assets_letter"}


def with_items(folder: Path, name: str, changes: dict[int, dict[str, Any]]) -> Path:
    """The assets, with other values in some records of a file."""
    copied = shutil.copytree(ASSETS, folder / "tasks")
    rows = [json.loads(line) for line in (copied / name).read_text().splitlines()]
    for number, values in changes.items():
        rows[number] |= values
    (copied / name).write_text("\n".join(map(json.dumps, rows)))
    return copied


def to(template: Any, **more: Any) -> dict[str, Any]:
    """A task whose answers are what a template makes."""
    return {"overrides": {"doc_to_target": template, **more}}


@pytest.mark.parametrize("name", ALL)
def test_tasks_with_answers_have_them(name):
    assert LmEvalTask(name, task=f"assets_{name}", path=ASSETS).unanswered == []


@pytest.mark.parametrize(
    ("file", "options", "values", "is_answer"),
    [
        ("copy.json", GENERATED, {"answer": None}, False),
        ("copy.json", GENERATED, {"answer": ""}, False),
        ("copy.json", GENERATED, {"answer": " \n"}, False),
        ("copy.json", GENERATED, {"answer": "None"}, True),  # the word itself
        ("copy.json", GENERATED, {"answer": "0"}, True),
        ("copy.json", GENERATED | to("answer"), {"answer": None}, False),  # the field as it is
        ("copy.json", GENERATED | to("answer"), {"answer": "None"}, True),
        ("copy.json", GENERATED | to(" {{answer}}"), {"answer": None}, False),
        ("copy.json", GENERATED | to("{{answer.strip()}}"), {"answer": None}, False),  # it chokes
        ("copy.json", GENERATED | to("{{[answer, '']}}"), {"answer": ""}, False),
        ("copy.json", GENERATED | to("{{[answer, 'b']}}"), {"answer": ""}, True),
        ("copy.json", LIKELY, {"answer": None}, False),
        ("copy.json", LIKELY, {"answer": ""}, False),
        ("pick.json", CHOSEN, {"gold": None}, False),
        ("pick.json", CHOSEN, {"gold": 9}, False),
        ("pick.json", CHOSEN, {"gold": -1}, False),
        ("pick.json", CHOSEN, {"choices": []}, False),
        ("letter.json", LETTER, {"gold": None}, False),
        ("letter.json", LETTER | to("{{gold}}"), {"gold": 3}, True),
        ("blank.json", {"task": "assets_blank"}, {"gold": None}, False),
    ],
)
def test_what_is_an_answer(tmp_path, file, options, values, is_answer):
    folder = with_items(tmp_path, file, {3: values, 5: values})
    for code in (False, True):  # templates are rendered here or by lm-eval
        task = LmEvalTask("t", path=folder, allow_code=code, **options)
        assert task.unanswered == ([] if is_answer else [3, 5])
    first = LmEvalTask("t", path=folder, limit=4, **options)
    assert first.unanswered == ([] if is_answer else [3])


def test_an_answer_may_be_one_of_the_choices_by_its_text(tmp_path):
    folder = with_items(tmp_path, "letter.json", {3: {"gold": 7}})
    rows = [json.loads(line) for line in (folder / "letter.json").read_text().splitlines()]
    for row in rows:
        row["gold"] = "abcdefgh"[row["gold"]]
    (folder / "letter.json").write_text("\n".join(map(json.dumps, rows)))
    assert LmEvalTask("t", path=folder, **LETTER).unanswered == [3]


OWN = "def scored(doc, results):\n    return {'exact_match': 1.0}\n"
OWN_METRIC = "def exact(references, predictions):\n    return float(len(predictions[0]) > 2)\n"


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        ("process_results: !function own.scored", OWN),
        ("metric_list: [{metric: !function own.exact, aggregation: mean}]", OWN_METRIC),
    ],
)
def test_what_a_task_judges_by_itself_needs_no_answer(tmp_path, lines, code):
    folder = with_items(tmp_path, "copy.json", {})
    (folder / "own.py").write_text(code)
    (folder / "own.yaml").write_text(f'include: copy.yaml\ntask: own\ndoc_to_target: ""\n{lines}')
    assert LmEvalTask("t", task="own", path=folder, allow_code=True).unanswered == []
    (folder / "own.yaml").write_text('include: copy.yaml\ntask: own\ndoc_to_target: ""\n')
    assert len(LmEvalTask("t", task="own", path=folder, allow_code=True).unanswered) > 10


class Known:
    """A task of four items that knows which of them have no answer."""

    items = range(4)

    def __init__(self, *unanswered: int) -> None:
        self.unanswered = unanswered


def test_only_objectives_that_compare_with_answers_are_warned_of():
    tasks: dict[str, Any] = {
        "one": Known(2),
        "two": Known(1, 3),
        "none": Known(),
        "all": Known(0, 1, 2, 3),
        "other": object(),
    }

    def told(**options: Any) -> list[str]:
        objectives = [Objective("o", dict.fromkeys(tasks, 0.2), **options)]
        return list(answer_warnings(tasks, objectives))

    assert told()[:2] == [
        "task one: 1 of 4 items has no answer (first: item 2)",
        "task two: 2 of 4 items have no answer (first: item 1)",
    ]
    assert len(told()) == len(told(column="margin")) == len(told(column="loglikelihood")) == 3
    assert told(column="length") == told(agreement=3) == []
    assert list(answer_warnings(tasks, [Objective("o", {"none": 1.0})])) == []


def test_tasks_in_which_none_has_an_answer_are_refused_all_at_once():
    tasks: dict[str, Any] = {name: Known(0, 1, 2, 3) for name in ("a", "b")} | {"c": Known(0)}
    with pytest.raises(ConfigurationError) as caught:
        check_answers(tasks, [Objective("o", dict.fromkeys(tasks, 0.3))])
    assert [str(problem) for problem in caught.value.problems] == [
        f"task {name}: none of its 4 items has an answer "
        "(doc_to_target of the task finds none in its data)"
        for name in ("a", "b")
    ]
    check_answers(tasks, [Objective("o", dict.fromkeys(tasks, 0.3), column="length")])


# --- where it is told -----------------------------------------------------------------------------


def misspelt(folder: Path, zoo: Path, every: int, **changes: Any) -> Path:
    """An experiment on 70 items, of which one in `every` has an `anwser` and no `answer`."""
    tiny = catalogue_folder("fitness") / "tasks" / "tiny"
    task = yaml.safe_load((tiny / "sort.yaml").read_text())
    rows = [json.loads(line) for line in (tiny / "sort.jsonl").read_text().splitlines()[:70]]
    for number, row in enumerate(rows):
        if number % every == 0:
            row["anwser"], row["answer"] = row["answer"], None
    (folder / "sort.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "mine.yaml").write_text(yaml.safe_dump(task))
    tasks = {"sort": {"task": "evomerge_tiny_sort", "path": "mine.yaml"}}
    sizes = {"budget": {"candidates": 2}, "searcher": {"kind": "random", "population": 2}}
    given = {"tasks": tasks, "objectives": {"o": "sort"}, **sizes, **changes}
    return write_experiment(folder, zoo, **given)


def said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str
) -> tuple[int, str]:
    """The exit code of a command, and all that it printed, on one line."""
    monkeypatch.setattr(sys, "argv", ["evomerge", *words])
    with pytest.raises(SystemExit) as caught:
        main()
    printed = capsys.readouterr()
    return int(caught.value.code or 0), " ".join((printed.out + printed.err).split())


def test_validate_plan_run_and_score_say_how_many_have_none(
    tiny_zoo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = misspelt(tmp_path, tiny_zoo, 2)
    wanted = "task sort: 35 of 70 items have no answer (first: item 0)"

    code, printed = said(capsys, monkeypatch, "validate", str(path))
    assert (code, printed.count(f"warning: {wanted}")) == (0, 1), printed
    assert plan_experiment(read_experiment(path))["warnings"] == [wanted]

    out = tmp_path / "run"
    code, printed = said(capsys, monkeypatch, "run", str(path), "--out", str(out))
    assert (code, printed.count(f"warning: {wanted}")) == (0, 1), printed
    assert (out / "run.log").read_text().count(wanted) == 1

    caplog.clear()
    fitness = str(tmp_path / "fitness.yaml")
    with caplog.at_level(logging.WARNING):
        said(capsys, monkeypatch, "score", str(tiny_zoo / "base"), "--fitness", fitness)
    assert caplog.messages == [wanted]

    # The length of an answer is compared with nothing.
    path = misspelt(
        tmp_path, tiny_zoo, 2, objectives={"o": {"tasks": ["sort"], "column": "length"}}
    )
    assert plan_experiment(read_experiment(path))["warnings"] == []


def test_validate_run_and_score_refuse_a_task_without_answers(
    tiny_zoo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = misspelt(tmp_path, tiny_zoo, 1)
    wanted = "task sort: none of its 70 items has an answer"
    fitness = str(tmp_path / "fitness.yaml")
    for words in (
        ("validate", str(path)),
        ("run", str(path), "--out", str(tmp_path / "run")),
        ("score", str(tiny_zoo / "base"), "--fitness", fitness),
    ):
        code, printed = said(capsys, monkeypatch, *words)
        assert (code, wanted in printed) == (2, True), printed

    # Agreement asks nobody what is right.
    given = {"objectives": {"o": {"tasks": ["sort"], "agreement": 1}}}
    run_experiment(read_experiment(misspelt(tmp_path, tiny_zoo, 1, **given)), tmp_path / "agreed")
