"""Files that are right, in ways that a first look may take for mistakes."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from evomerge.errors import ConfigurationError
from evomerge.experiment.first_look import checked_experiment
from evomerge.searchers import SEARCHERS

sys.path.insert(0, str(Path(__file__).parent))
from wrong_files import TASK, F, Wrong, good_files

RECORD = '{"question": "1+1=", "answer": "2"}\n'
FEW = {"tasks/sums.jsonl": RECORD * 3}  # fewer than the split asks for


def _fitness(sums: str) -> dict[str, str | bytes]:
    text = good_files()[F]
    assert isinstance(text, str)
    lines = [f"  {sums}" if line.startswith("  sums:") else line for line in text.splitlines()]
    return {F: "\n".join(lines) + "\n"}


def _task(*edits: tuple[str, str], more: str = "") -> str:
    text = TASK
    for old, new in edits:
        assert text.count(old) == 1, (text, old)
        text = text.replace(old, new)
    return text + more


IN_FOLDER = _fitness("sums: {task: sums, path: tasks}")
OF_GROUP = _fitness("sums: {task: all_of_it, path: tasks}")
RIGHT: Mapping[str, dict[str, str | bytes]] = {
    "a tag in a folder": {**OF_GROUP, "tasks/sums.yaml": _task(more="tag: all_of_it\n")},
    "one of several tags": {**OF_GROUP, "tasks/sums.yaml": _task(more="tag: [x, all_of_it]\n")},
    "a tag in an included file": {
        **OF_GROUP,
        "tasks/sums.yaml": _task(more="include: _tag.yaml\n"),
        "tasks/_tag.yaml": "tag: all_of_it\n",
    },
    "a group beside the named one": {
        **_fitness("sums: {task: all_of_it, path: tasks/other.yaml}"),
        "tasks/other.yaml": "group: other\ntask: [sums]\n",
        "tasks/group.yaml": "group: all_of_it\ntask: [sums]\n",
    },
    "of two tasks of a name the first is meant": {
        **IN_FOLDER,
        "tasks/zzz.yaml": _task(("sums.jsonl", "gone.jsonl")),
    },
    "a pattern of data files": {"tasks/sums.yaml": _task(("sums.jsonl", "su?s.jsonl"))},
    "a data file whose name looks like a pattern": {
        "tasks/sums.yaml": _task(("sums.jsonl", "sums[1].jsonl")),
        "tasks/sums[1].jsonl": RECORD * 60,
    },
    "items are made by included code": {
        **FEW,
        "tasks/sums.yaml": _task(more="include: _code.yaml\n"),
        "tasks/_code.yaml": "process_docs: !function code.process\n",
    },
    "empty lines of a text are items": {
        "tasks/sums.yaml": _task(("path: json", "path: text"), ("sums.jsonl", "sums.txt")),
        "tasks/sums.txt": "1+1=\n\n\n\n" * 15,
    },
    "a table's first row is data": {
        "tasks/sums.yaml": _task(
            ("path: json", "path: csv"),
            ("sums.jsonl", "sums.csv"),
            ("{data_files", "{column_names: [question, answer], data_files"),
        ),
        "tasks/sums.csv": "1+1=,2\n" * 3,
    },
    "code has options of its own": {
        **_fitness("sums: {kind: 'python:code.py:grade', num_items: 90, teacher: any, of: them}"),
        "code.py": "",
    },
}


@pytest.mark.parametrize("name", RIGHT)
def test_nothing_is_said_of_what_is_right(name: str, tmp_path: Path) -> None:
    checked_experiment(Wrong(name, RIGHT[name], ()).write(tmp_path))


def test_files_of_the_home_folder_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    run = home / "run"
    run.mkdir(parents=True)
    (run / "ledger.sqlite").touch()
    path = Wrong("home", {}, ()).write(tmp_path / "work")
    shutil.move(path.parent / "recipe.yaml", home)
    shutil.copy(path.parent / "words.txt", home)
    monkeypatch.setenv("HOME", str(home))
    more = "designs: [~/recipe.yaml]\nwarm_start: ~/run\ncalibration: {texts: ~/words.txt}\n"
    path.write_text(path.read_text() + more)
    assert checked_experiment(path).warm_start == str(run)


def test_calibration_may_take_a_task_of_a_group(tmp_path: Path) -> None:
    path = Wrong("calibration", {}, ()).write(tmp_path)
    path.write_text(path.read_text() + "calibration: {task: sums/sums}\n")
    checked_experiment(path)


def test_a_run_that_has_begun_needs_no_files_to_begin_with(tmp_path: Path) -> None:
    path = Wrong("begun", {}, ()).write(tmp_path)
    more = "designs: [gone.yaml]\nwarm_start: gone\ncalibration: {texts: gone.txt}\n"
    path.write_text(path.read_text() + more)
    run = tmp_path / "run"
    with pytest.raises(ConfigurationError, match="gone"):
        checked_experiment(path, run=run)
    run.mkdir()
    (run / "experiment.yaml").touch()
    checked_experiment(path, run=run)


class _Broken(Mapping[str, type]):
    """evomerge's own searchers, and one whose package cannot be imported."""

    def __iter__(self) -> Iterator[str]:
        return iter(["broken", *SEARCHERS])

    def __len__(self) -> int:
        return len(list(self))

    def __getitem__(self, kind: str) -> type:
        if kind == "broken":
            raise ConfigurationError("cannot be imported")
        return SEARCHERS[kind]


def test_a_broken_package_is_in_the_way_of_none_but_its_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evomerge.experiment.first_look.SEARCHERS", _Broken())
    path = Wrong("good", {}, ()).write(tmp_path)
    checked_experiment(path)
    fitness = path.with_name(F)
    two = "objectives: {skill: sums, fluent: words}"
    fitness.write_text(fitness.read_text().replace("objectives:\n  skill: {tasks: [sums]}", two))
    with pytest.raises(ConfigurationError, match="searchers that can: "):
        checked_experiment(path)
