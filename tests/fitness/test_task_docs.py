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

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "tasks.md").read_text()
OPTIONS_OF_LM_EVAL = (DOCS / "lm_eval.md").read_text().split("## Options")[1].split("\n## ")[0]
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


def test_every_option_of_lm_eval_has_a_row() -> None:
    rows = re.findall(r"^\| (`[^|]*`) \|", OPTIONS_OF_LM_EVAL, re.MULTILINE)
    named = [name for row in rows for name in re.findall("`([a-z_]+)`", row)]
    assert sorted(named) == sorted(TASKS["lm_eval"].options.model_fields)


def test_columns_are_told_where_the_table_says() -> None:
    for column in ("loglikelihood", "margin", "choice", "length", "answer"):
        (line,) = [line for line in TEXT.splitlines() if line.startswith("| `lm_eval`")]
        file = re.search(r"\]\(([a-z_]+\.md)\)", line)
        assert file is not None
        assert f"`{column}`" in (DOCS / file[1]).read_text()


def test_validate_says_that_latency_is_not_deterministic() -> None:
    speed = make_task("speed", {"kind": "latency"})
    assert clock_warning({"speed": speed}) is not None
    assert "task speed measures time" in str(clock_warning({"speed": speed}))
    assert clock_warning({}) is None
