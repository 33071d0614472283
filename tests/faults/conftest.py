"""What the tests of faults share, and the figures that they measure.

There is one `test_rNN_*.py` a row of docs/faults.md; its docstring begins with the fault and goes
on, after "Passes if", with what must hold. A test that measures something takes the fixture
`figure` and says what it found; that is also the assertion:

    def test_...(figure):
        figure("R8", "the second driver is refused", seconds, 2.0)
        figure("R1", "runs killed at random", kills, 50, unit="", at_least=True)

`make faults` runs fast and slow tests with EVOMERGE_FIGURES naming a file. Each figure, and how
each test ended, becomes a line of JSON there, and table.py makes the table of it: of each figure
the worst value that was measured anywhere, beside its limit.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, Protocol

import pytest

ROW = re.compile(r"test_r(\d\d)_\w+\.py$")


class Figure(Protocol):
    """Note something that was measured, and fail if it is beyond its limit."""

    def __call__(
        self,
        row: str,
        what: str,
        measured: float,
        limit: float,
        *,
        unit: str = "s",
        at_least: bool = False,
    ) -> None: ...


def note(**facts: Any) -> None:
    """One line in the file of figures, if there is one; a short append is whole, or not there."""
    if path := os.environ.get("EVOMERGE_FIGURES"):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(facts) + "\n")


@pytest.fixture(scope="session")
def figure() -> Figure:
    """Note a figure: row, what was measured, the value, its limit, its unit."""

    def measure(
        row: str,
        what: str,
        measured: float,
        limit: float,
        *,
        unit: str = "s",
        at_least: bool = False,
    ) -> None:
        passed = bool(measured >= limit if at_least else measured <= limit)
        facts = {"measured": float(measured), "limit": float(limit), "unit": unit}
        note(kind="figure", row=row, what=what, **facts, at_least=at_least, passed=passed)
        sign = ">=" if at_least else "<="
        assert passed, f"{row}, {what}: {measured:g} {unit}, must be {sign} {limit:g}"

    return measure


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note how each test of a row ended."""
    found = ROW.search(report.location[0])
    if found and (report.when == "call" or report.outcome != "passed"):
        row = f"R{int(found[1])}"
        note(kind="test", row=row, test=report.nodeid, outcome=report.outcome)


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs draw nothing: matplotlib takes longer than they do."""
    from evomerge.experiment import run as runs

    monkeypatch.setattr(runs, "write_pictures", lambda *_: None)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Checksums are cached in the test's own folder."""
    folder = tmp_path / "evomerge-cache"
    monkeypatch.setenv("EVOMERGE_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def experiment(tiny_zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search of real, tiny language models with a task of lm-eval's."""
    from drivers import EXPERIMENT

    path = tmp_path_factory.mktemp("experiment") / "small.yaml"
    tasks = Path(__file__).parents[2] / "fitness" / "tasks" / "tiny" / "sort_choice.yaml"
    path.write_text(EXPERIMENT.format(zoo=tiny_zoo, tasks=tasks))
    return path


@pytest.fixture(scope="session")
def undisturbed(experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What comes of the experiment if nobody stops it."""
    from toys import outcome_of

    from evomerge.experiment import run as runs
    from evomerge.pools import PoolConfig

    out = tmp_path_factory.mktemp("undisturbed")
    changes = {"pool": PoolConfig(workers=0)}
    return outcome_of(
        runs.run_experiment(runs.read_experiment(experiment).model_copy(update=changes), out)
    )
