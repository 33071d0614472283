"""The documentation of tasks names what there is, and its examples are valid."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from evomerge.documents import Document, parse
from evomerge.experiment.tasks import clock_warning
from evomerge.fitness import TASKS, make_task
from evomerge.fitness.options import needs_code

TEXT = (Path(__file__).parents[2] / "docs/tasks.md").read_text()
BLOCKS = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)


def test_every_kind_has_a_row() -> None:
    rows = re.findall(r"^\| `([a-z_]+)` \|", TEXT.split("## ")[0], re.MULTILINE)
    assert rows == list(TASKS)


@pytest.mark.parametrize("block", BLOCKS)
def test_examples_are_valid(block: str) -> None:
    for entry in yaml.safe_load(block).values():
        kind = entry.pop("kind")
        if not needs_code(kind):
            parse(TASKS[kind].options, Document(entry))


@pytest.mark.parametrize("kind", sorted(set(TASKS) - {"lm_eval"}))
def test_every_option_is_named(kind: str) -> None:
    for option in TASKS[kind].options.model_fields:
        assert f"`{option}`" in TEXT or f"{option}:" in TEXT


def test_validate_says_that_latency_is_not_deterministic() -> None:
    speed = make_task("speed", {"kind": "latency"})
    assert clock_warning({"speed": speed}) is not None
    assert "task speed measures time" in str(clock_warning({"speed": speed}))
    assert clock_warning({}) is None
