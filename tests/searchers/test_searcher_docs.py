"""The documentation of searchers is what they declare, and names them all."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from evomerge.cli import app
from evomerge.searchers import SEARCHERS, reference

DOCS = Path(__file__).parents[2] / "docs"


def test_the_options_are_written_down_as_they_are_declared() -> None:
    made = reference.markdown()
    assert (DOCS / "searcher_options.md").read_text() == made, (
        "evomerge searchers --markdown > docs/searcher_options.md"
    )
    for searcher in SEARCHERS.values():
        for option in searcher.Options.model_fields:
            assert f"| `{option}` |" in made


def test_every_searcher_has_a_row_in_the_guide_and_in_the_readme() -> None:
    text = (DOCS / "searchers.md").read_text()
    part = text.split("## All of them")[1].split("\n## ")[0]
    assert re.findall(r"^\| `([a-z0-9_]+)` \|", part, re.MULTILINE) == list(SEARCHERS)
    rows = (DOCS.parent / "README.md").read_text().splitlines()
    row = next(line for line in rows if line.startswith("| searchers |"))
    assert set(re.findall(r"`([a-z0-9_]+)`", row)) == set(SEARCHERS)


@pytest.mark.parametrize("kind", [*SEARCHERS, None])
def test_the_command_line_tells_of_each(kind: str | None) -> None:
    run = CliRunner()
    shown = run.invoke(app, ["searchers", *([kind] if kind else [])])
    assert shown.exit_code == 0
    told = json.loads(run.invoke(app, ["searchers", *([kind] if kind else []), "--json"]).stdout)
    rows = [told] if kind else told
    assert [row["kind"] for row in rows] == ([kind] if kind else list(SEARCHERS))
    for row in rows:
        assert row["summary"].split(":")[0].split()[0] in shown.stdout
        assert {o["name"] for o in row["options"]} == set(
            SEARCHERS[row["kind"]].Options.model_fields
        )
