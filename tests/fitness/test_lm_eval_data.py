"""What is said where lm-eval cannot build a task: it must name what the test has broken."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import datasets.exceptions
import httpx
import huggingface_hub.errors
import pytest
from requests import exceptions as requests

from evomerge.errors import ConfigurationError
from evomerge.fitness.lm_eval_data import OFFLINE, why_not_built
from evomerge.fitness.lm_eval_guard import TemplateGuard
from evomerge.fitness.lm_eval_task import LmEvalTask

ASSETS = Path(__file__).parent / "assets"
ROWS = (ASSETS / "copy.json").read_bytes().splitlines(keepends=True)
LEAD = b"".join(ROWS[:2])
TAIL = b"".join(ROWS[3:])


def refusal(folder: Path, *edits: tuple[str, str], **options: Any) -> str:
    """What is said of the task that answers with its question, with its file edited."""
    for name in ("copy.json", "copy_shots.json"):
        if not (folder / name).exists():
            shutil.copy(ASSETS / name, folder)
    text = (ASSETS / "copy.yaml").read_text()
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    (folder / "copy.yaml").write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        LmEvalTask("mine", task="assets_copy", path=folder / "copy.yaml", **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LEAD + b'{"question": "x",\n' + TAIL, ":3: not valid JSON: Expecting property name"),
        (LEAD + b'\n\n{"question": "x" "answer": "y"}\n', ":5: not valid JSON: Expecting ',' del"),
        (LEAD + b"3\n" + TAIL, ":3: expected a record, got int"),
        (b'[{"question": "x", "answer": "y"},\n{"question" 1}]', ":2: not valid JSON: Expecting"),
        (LEAD + b'{"question": "x", "answer": "\xff"}\n', ":3: not valid UTF-8: invalid start"),
        (b"", ": no items"),
        (b"\n \n", ": no items"),
        (b"[]", ": no items"),
    ],
)
@pytest.mark.parametrize("name", ["copy.json", "copy_shots.json"])
def test_a_broken_file_is_named_with_its_first_bad_line(tmp_path, content, message, name):
    (tmp_path / name).write_bytes(content)
    text = refusal(tmp_path, num_fewshot=2)
    assert text.startswith(f"{tmp_path / name}{message}")
    assert "offline" not in text
    assert "\n" not in text


def test_every_broken_file_is_named_and_said_once(tmp_path, monkeypatch):
    said: list[logging.LogRecord] = []  # `datasets` has its own word on it, and counts otherwise
    for name in ["datasets", *logging.root.manager.loggerDict]:
        if name.partition(".")[0] == "datasets":
            monkeypatch.setattr(logging.getLogger(name), "handle", said.append)
    (tmp_path / "copy_shots.json").write_bytes(LEAD + b"3\n")
    (tmp_path / "copy.json").write_bytes(b"")
    assert [line.partition(":")[0] for line in refusal(tmp_path).splitlines()] == [
        str(tmp_path / "copy_shots.json"),
        str(tmp_path / "copy.json"),
    ]
    assert said == []


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("csv", "", "{file}: no items"),
        ("csv", "question,answer\n", "{file}: no items"),
        ("text", "", "{file}: no items"),
        ("parquet", "", "{file}: no items"),
        (
            "csv",
            "question,answer\na,b\na,b,c\n",
            "Expected 2 fields in line 3, saw 3 (data: {file})",
        ),
        ("parquet", "question", "not a parquet file. (data: {file})"),
    ],
)
def test_other_formats_are_named_too(tmp_path, kind, content, message):
    (tmp_path / "copy.json").write_text(content)
    alone = [("    train: copy_shots.json\n", ""), ("training_split: train\n", "")]
    text = refusal(tmp_path, ("dataset_path: json", f"dataset_path: {kind}"), *alone)
    assert message.format(file=tmp_path / "copy.json") in text
    assert "offline" not in text
    assert "DatasetGenerationError" not in text  # it says nothing


def test_files_that_only_lm_eval_can_read_are_not_judged(tmp_path):
    (tmp_path / "copy.json.gz").write_bytes(b"\x1f\x8b no gzip \xff")
    text = refusal(tmp_path, ("test: copy.json", "test: copy.json.gz"))
    assert f"(data: {tmp_path / 'copy_shots.json'}, {tmp_path / 'copy.json.gz'})" in text
    assert "UTF-8" not in text


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "{{answer}}",
            "{{anwser}}",
            " doc_to_target: the data have no field 'anwser' "
            "(did you mean 'answer'? valid: answer, question)",
        ),
        ("{{question}}", "{{qestion}}:", " doc_to_text: the data have no field 'qestion' (did you"),
        (
            "{{answer}}",
            "{{answer.text}}",
            " doc_to_target: the template cannot be rendered: 'str object' has no attribute 'text' "
            "(fields: question, answer)",
        ),
        ("test_split: test", "test_split: tset", ": lm-eval cannot build the task: KeyError: 't"),
    ],
)
def test_a_field_that_is_not_there_is_named_with_those_that_are(tmp_path, old, new, message):
    text = refusal(tmp_path, (old, new))
    assert text.startswith(f"{tmp_path / 'copy.yaml'}{message}")
    assert "offline" not in text


def test_a_field_is_named_where_code_is_allowed(tmp_path):
    text = refusal(tmp_path, ("{{answer}}", "{{anwser}}"), allow_code=True)
    assert text == f"{tmp_path / 'copy.yaml'}: the data have no field 'anwser'"


# --- what is not here -----------------------------------------------------------------------------

HUB = {"dataset_path": "someone/data"}
HERE = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "/x/items.jsonl"}}}
AWAY = {"dataset_path": "json", "dataset_kwargs": {"data_files": ["https://x.org/items.jsonl"]}}


def hint_of(error: Exception, config: dict[str, Any]) -> str:
    guard = TemplateGuard(Path("t.yaml"), config, allow_code=False)
    (problem,) = why_not_built(error, Path("t.yaml"), config, guard)
    assert type(error).__name__ in problem.what
    return problem.hint


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("Couldn't reach 'someone/data' on the Hub (OfflineModeIsEnabled)"),
        huggingface_hub.errors.OfflineModeIsEnabled("offline"),
        huggingface_hub.errors.LocalEntryNotFoundError("not in the cache"),
        datasets.exceptions.DatasetNotFoundError("no such dataset"),
        FileNotFoundError("Couldn't find any data file"),
        httpx.ConnectError("no route"),
        requests.ConnectionError("no route"),
        ValueError("Couldn't find cache for someone/data for config 'a'"),
    ],
)
def test_what_was_not_reached_is_said_to_be_elsewhere(error):
    assert hint_of(error, HUB) == OFFLINE
    assert hint_of(error, AWAY) == OFFLINE
    wrapped = RuntimeError("something else")
    wrapped.__cause__ = error
    assert hint_of(wrapped, HUB) == OFFLINE


@pytest.mark.parametrize(
    ("error", "config"),
    [
        (FileNotFoundError("gone"), HERE),
        (FileNotFoundError("Couldn't find any data file at /x"), {"dataset_path": "/x"}),
        (PermissionError("no"), HERE),
        (PermissionError("no"), HUB),
        (KeyError("tset"), HUB),
        (ValueError("Instruction"), HUB),
        (StopIteration(), HERE),
    ],
)
def test_nothing_else_is_blamed_on_the_net(error, config):
    assert hint_of(error, config) == ""


def test_data_of_the_hub_and_of_urls_are_said_to_be_elsewhere(tmp_path):
    assert OFFLINE in refusal(tmp_path, ("dataset_path: json", "dataset_path: someone/data"))
    url = ("test: copy.json", "test: https://localhost:1/items.json")
    assert OFFLINE in refusal(tmp_path, url)
