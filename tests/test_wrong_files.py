"""Wrong experiment files: every mistake with file, line and nearest name, at once and at once.

The oracle is the table in wrong_files.py, written by hand from the files.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from evomerge.cli import main
from evomerge.documents import read_yaml
from evomerge.errors import ConfigurationError
from evomerge.experiment.first_look import checked_experiment
from evomerge.experiment.look_at_tasks import missing

sys.path.insert(0, str(Path(__file__).parent))
from wrong_files import CASES, E, Wrong, good_files

LONGEST_S = 1.0  # of processor time, for looking at the files alone; a few hundredths are usual
ANSWER_S = 1.0  # the same of a whole process
AS_PROCESSES = (
    "five in three files",
    "a broken space hides nothing else",
    "run that goes on from itself",
)


@pytest.fixture(scope="module", autouse=True)
def imported(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What the first look imports, which a fresh clone has to compile, is no look's cost."""
    path = CASES[0].write(tmp_path_factory.mktemp("imported"))
    with pytest.raises(ConfigurationError):
        checked_experiment(path)


def test_the_files_without_mistakes_are_right(tmp_path: Path) -> None:
    path = Wrong("good", {}, ()).write(tmp_path)
    assert list(checked_experiment(path).experts) == ["math", "code"]
    assert len(CASES) >= 80
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_every_mistake_is_said_at_once_and_nothing_else(
    case: Wrong, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = case.write(tmp_path)
    monkeypatch.chdir(tmp_path)
    for verb in ("validate", "run"):
        monkeypatch.setattr(sys, "argv", ["evomerge", verb, str(path)])
        begun = time.process_time()
        with pytest.raises(SystemExit) as caught:
            main()
        took = time.process_time() - begun
        told = _plain(capsys.readouterr().err, tmp_path)
        assert caught.value.code == 2
        assert took < 2 * LONGEST_S  # a process full of other tests' objects is slower
        _check(case, told)
    assert not (tmp_path / "runs" / "wrong").exists()


@pytest.mark.parametrize("name", AS_PROCESSES)
def test_a_process_answers_within_a_second_and_without_torch(name: str, tmp_path: Path) -> None:
    [case] = [case for case in CASES if case.name == name]
    path = case.write(tmp_path)
    for verb in ("validate", "run"):
        before = os.times()
        command = [sys.executable, "-X", "importtime", "-m", "evomerge", verb, str(path)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        after = os.times()
        lines = done.stderr.splitlines()
        told = [line for line in lines if not line.startswith("import time:")]
        loaded = {line.rpartition("|")[2].strip() for line in lines if "|" in line}
        assert done.returncode == 2
        assert not {"torch", "transformers", "scipy", "ray", "lm_eval"} & loaded
        _check(case, _plain("\n".join(told), tmp_path))
        spent = after.children_user + after.children_system
        spent -= before.children_user + before.children_system
        assert spent < 3 * ANSWER_S  # half of it is the trace of the imports; and other tests run


def test_what_is_said_is_in_the_order_of_the_files(tmp_path: Path) -> None:
    [case] = [case for case in CASES if case.name == "five in three files"]
    path = case.write(tmp_path)
    with pytest.raises(ConfigurationError) as caught:
        checked_experiment(path)
    lines = [re.match(r"(.*?):(\d+)", str(problem)) for problem in caught.value.problems]
    places = [(Path(found[1]).name, int(found[2])) for found in lines if found]
    files = list(dict.fromkeys(file for file, _ in places))
    assert places == sorted(places, key=lambda place: (files.index(place[0]), place[1]))
    assert sorted(files) == ["experiment.yaml", "fitness.yaml", "space.yaml"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("experiment: quickstart\nseeds: 3\n", "is a sweep, and an experiment is wanted here"),
        ("kind: weights\noperator: ties\n", "is a search space, and an experiment is wanted here"),
        ("tasks: {}\nobjectives: {}\n", "is a fitness, and an experiment is wanted here"),
    ],
)
def test_another_kind_of_file_is_called_by_its_name(text: str, told: str, tmp_path: Path) -> None:
    path = Wrong("another", {E: text}, ()).write(tmp_path)
    with pytest.raises(ConfigurationError, match=told):
        checked_experiment(path)


def test_aliases_that_multiply_are_refused_as_fast_as_others(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40)]
    text = str(good_files()[E]).replace("seed: 0", "\n".join(lines) + "\nseed: *a39")
    path = Wrong("aliases", {E: text}, ()).write(tmp_path)
    begun = time.process_time()
    with pytest.raises(ConfigurationError) as caught:
        checked_experiment(path)
    assert time.process_time() - begun < LONGEST_S
    assert any(" seed: " in str(problem) for problem in caught.value.problems)
    assert read_yaml(path).lines["a39",] == 49


def _plain(text: str, folder: Path) -> str:
    for root in (folder, folder.resolve()):
        text = text.replace(f"{root}/", "")
    return text


def _check(case: Wrong, text: str) -> None:
    """Every problem of the table is there, each in a line of its own, and no other is."""
    assert "Traceback" not in text
    header, *lines = text.strip().splitlines()
    if lines:
        assert header == f"evomerge: {len(lines)} problems"
        told = [line.strip() for line in lines]
    else:
        told = [header.removeprefix("evomerge: ")]
    for place, what, hint in case.problems:
        found = [line for line in told if line.startswith(f"{place}: ") and what in line]
        assert found, f"{place}: {what} is not in\n{text}"
        assert any(hint in line for line in found)
    assert len(told) == len(case.problems), text


def test_folders_far_above_what_is_missing_are_not_listed(tmp_path: Path) -> None:
    """What lies beside it is told, and what is called nearly so; nothing else."""
    (tmp_path / "models" / "sort").mkdir(parents=True)
    looked = {
        tmp_path / "models" / "sotr": "did you mean 'sort'? valid: sort",
        tmp_path / "modles" / "sort": "did you mean 'models'?",
        tmp_path / "elsewhere" / "sort": "",
        Path("/nowhere-at-all/sort"): "",
    }
    for path, hint in looked.items():
        (problem,) = missing("base", path)
        assert problem.hint == hint
