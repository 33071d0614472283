"""Help and documentation say what the declarations say."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from evomerge.cli import main
from evomerge.merging import OPERATORS, reference

DOCUMENT = Path(__file__).parents[2] / "docs" / "operators.md"


@pytest.fixture
def evomerge(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["evomerge", *arguments])
        monkeypatch.setenv("COLUMNS", "100")
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    return call


def test_the_document_is_what_the_command_prints(evomerge):
    """If it is not: evomerge operators --markdown > docs/operators.md"""
    code, out, _ = evomerge("operators", "--markdown")
    assert code == 0
    assert out == DOCUMENT.read_text()


def test_the_document_knows_every_operator_and_parameter():
    sections = reference.markdown().split("\n## ")
    titles = [section.splitlines()[0] for section in sections[1:]]
    assert titles == [*OPERATORS, "Post-steps", "Greedy soup"]
    for section, operator in zip(sections[1:], OPERATORS.values(), strict=False):
        assert operator.summary in section
        for parameter in operator.parameters:
            assert f"| `{parameter.name}` |" in section
            assert parameter.help in section


def test_a_table_has_as_many_cells_in_each_row():
    for line in reference.markdown().splitlines():
        if line.startswith("| "):
            cells = line.replace("\\|", "").count("|") - 1
            assert cells == 4, line


def test_the_list_names_all_with_papers_and_parameters(evomerge):
    code, out, _ = evomerge("operators")
    assert code == 0
    for name, operator in OPERATORS.items():
        assert name in out
        assert next(w for w in operator.paper.split() if "https" in w).rstrip(",") in out
    assert "select_topk 1 (0 to 1)" in out
    assert "max_iter 10 (1 to 1000, whole)" in out


def test_one_operator_is_shown_in_full(evomerge):
    _, out, _ = evomerge("operators", "model_stock")
    assert "models: 2 or more, and the base" in out
    assert "needs:  nothing beside the weights" in out
    assert "https://arxiv.org/abs/2403.19522" in out
    assert "published, mergekit" in out
    assert "t is not clipped" in out


def test_json_is_the_declaration(evomerge):
    everything = json.loads(evomerge("operators", "--json")[1])
    assert [row["name"] for row in everything] == list(OPERATORS)
    one = json.loads(evomerge("operators", "karcher", "--json")[1])
    assert one in everything
    operator = OPERATORS["karcher"]
    assert one["max_sources"] is None
    assert one["needs_base"] is False
    assert [row["default"] for row in one["parameters"]] == [
        parameter.default for parameter in operator.parameters
    ]


def test_what_is_not_there_is_told(evomerge):
    code, _, err = evomerge("operators", "tis")
    assert code == 2
    assert "did you mean 'ties'" in err
    code, _, err = evomerge("operators", "--markdown", "--json")
    assert code == 2
    assert "stands alone" in err
