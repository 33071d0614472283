"""Whole texts of items: what was asked with what is right behind it, as the task's data say."""

from __future__ import annotations

import json

import pytest

from evomerge.errors import ConfigurationError
from evomerge.files import catalogue_folder
from evomerge.fitness import make_task
from evomerge.fitness.gold_texts import texts_of_items

TINY = catalogue_folder("fitness") / "tasks" / "tiny"


def records(name):
    return [json.loads(line) for line in (TINY / f"{name}.jsonl").read_text().splitlines()]


def test_of_generation_the_answer_follows_the_prompt():
    task = make_task("t", {"task": "evomerge_tiny_sort", "path": str(TINY / "sort.yaml")})
    known = records("sort")
    texts = texts_of_items("t", task, [3, 0, 900], None)
    assert texts == [known[i]["prompt"] + known[i]["answer"] for i in (3, 0, 900)]


def test_of_choices_the_right_one_follows_the_prompt():
    path = str(TINY / "sort_choice.yaml")
    task = make_task("t", {"task": "evomerge_tiny_sort_choice", "path": path})
    known = records("sort_choice")
    expected = [known[i]["prompt"] + known[i]["choices"][known[i]["gold"]] for i in range(20)]
    assert texts_of_items("t", task, range(20), None) == expected


def test_of_texts_there_is_no_answer_and_of_other_tasks_no_text(tmp_path):
    (tmp_path / "lines.txt").write_text("one\ntwo\n")
    task = make_task("t", {"kind": "perplexity", "path": str(tmp_path / "lines.txt")})
    assert texts_of_items("t", task, [1], None) == ["two"]
    with pytest.raises(ConfigurationError, match="a task of kind object has no texts"):
        texts_of_items("t", object(), [0], None)
