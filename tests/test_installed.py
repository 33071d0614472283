"""Operators and searchers of other installed packages: found by name, refused in words."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from evomerge import installed
from evomerge.errors import ConfigurationError
from evomerge.experiment.sessions import session_facts
from evomerge.merging import OPERATORS
from evomerge.searchers import OPTIONS, SEARCHERS

Install = Callable[[str, dict[str, dict[str, str]]], None]
GOOD = """
from dataclasses import replace
from evomerge.merging import OPERATORS
from evomerge.searchers.random import RandomSearch
MINE = replace(OPERATORS["magmax"], name="mine")
OTHER = replace(OPERATORS["magmax"], name="another")
class Seek(RandomSearch):
    kind = "seek"
class Half:
    summary = "no searcher"
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Make a package that the interpreter finds as if pip had put it there."""

    def put(code: str, groups: dict[str, dict[str, str]]) -> None:
        (tmp_path / "brought.py").write_text(code)
        facts = tmp_path / "brought-1.5.dist-info"
        facts.mkdir()
        (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: brought\nVersion: 1.5\n")
        lines = [
            line
            for group, entries in groups.items()
            for line in (f"[{group}]", *(f"{name} = {at}" for name, at in entries.items()))
        ]
        (facts / "entry_points.txt").write_text("\n".join(lines) + "\n")
        monkeypatch.syspath_prepend(tmp_path)
        importlib.invalidate_caches()
        installed.named.cache_clear()

    yield put
    monkeypatch.undo()
    sys.modules.pop("brought", None)
    installed.named.cache_clear()


def test_what_a_package_brings_has_its_name_everywhere(install: Install) -> None:
    before = [*SEARCHERS], [*OPERATORS]
    install(
        GOOD,
        {
            "evomerge.operators": {"mine": "brought:MINE", "ties": "brought:OTHER"},
            "evomerge.searchers": {"seek": "brought:Seek"},
        },
    )
    assert "brought" not in sys.modules
    assert [*SEARCHERS] == [*before[0], "seek"]
    assert [*OPERATORS] == [*before[1], "mine"]  # what evomerge has itself is not replaced
    assert "brought" not in sys.modules  # listing names imports nothing
    assert SEARCHERS["seek"].kind == "seek"
    assert OPTIONS["seek"] is SEARCHERS["random"].Options
    assert OPERATORS["mine"].name == "mine"
    assert OPERATORS["mine | lines"].name == "mine | lines"
    assert OPERATORS["ties"].name == "ties"
    assert session_facts()["versions"]["brought"] == "1.5"


@pytest.mark.parametrize(
    ("code", "kind", "at", "told"),
    [
        ("import nowhere", "operators", "brought:MINE", "cannot be imported: ModuleNotFoundError"),
        (GOOD, "operators", "brought:NONE", "cannot be imported: AttributeError"),
        (GOOD, "operators", "brought:Half", "should be an evomerge.merging.Operator, got type"),
        (GOOD, "operators", "brought:OTHER", "the operator calls itself 'another'"),
        (GOOD, "searchers", "brought:MINE", "should be a class, got Operator"),
        (GOOD, "searchers", "brought:Half", "Half has no Options, multi_objective, needs"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_package(
    code: str, kind: str, at: str, told: str, install: Install
) -> None:
    install(code, {f"evomerge.{kind}": {"odd": at}})
    table = {"operators": OPERATORS, "searchers": SEARCHERS}[kind]
    assert "odd" in list(table)
    with pytest.raises(ConfigurationError, match=r"odd \(brought:\w+ of brought\)") as caught:
        table["odd"]
    assert told in str(caught.value)
    assert SEARCHERS["cma_es"].summary  # others are none the worse


def test_unknown_names_stay_unknown() -> None:
    for table in (OPERATORS, SEARCHERS):
        assert "nobody" not in table
        with pytest.raises(KeyError):
            table["nobody"]
