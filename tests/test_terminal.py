"""What a terminal shows of a run; the oracle is the ledger, read from the folder by another."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console
from toys import Toy

from evomerge.experiment import run as runs
from evomerge.panel import Panel, clean
from evomerge.pareto import non_dominated
from evomerge.results.progress import Found
from evomerge.results.watch import status
from evomerge.terminal import TerminalView

KEYS = {
    *("item_evaluations", "candidates", "failed", "incumbent", "asked", "under_way", "front"),
    *("references", "budget", "objectives"),
}


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "write_pictures", lambda *_: None)


class Compared(TerminalView):
    """Compares what it knows with what the folder says, at every tell of the search."""

    looks = 0

    def told(self, evaluations: Any) -> None:
        super().told(evaluations)
        assert self._standing is not None
        self._take_notes()
        ours = self._standing.facts(time.time(), "running", None, "search")
        theirs = status(self._ledger.path.parent)
        assert {k: ours[k] for k in KEYS} == {k: theirs[k] for k in KEYS}
        assert [f["reason"] for f in ours["failures"]] == [f["reason"] for f in theirs["failures"]]
        self.looks += 1


def raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who watch may fail in tests."""

    def notify(observers: Any, event: str, *facts: Any) -> None:
        for observer in observers:
            getattr(observer, event)(*facts)

    for module in ("evomerge.loop", "evomerge.measurement", "evomerge.experiment.run"):
        monkeypatch.setattr(f"{module}.notify", notify)


@pytest.mark.parametrize(
    ("searcher", "estimator"), [("nsga2", "full"), ("nsga2", "racing"), ("cma_es", "shrinkage")]
)
def test_the_driver_knows_what_the_folder_says(
    searcher: str, estimator: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so does one that goes on with the run."""
    raised(monkeypatch)
    for budget in (27, 44):
        view = Compared(Console(file=io.StringIO(), width=100))
        with view:
            Toy(searcher, estimator).run(tmp_path, budget, watchers=(view,))
        assert view.looks >= 2


def drawn(width: int, facts: Any, panel: Panel, **options: Any) -> list[str]:
    text = io.StringIO()
    console = Console(file=text, width=width, markup=False, **options)
    console.print(panel.of(facts, [("reading a model", 3, 7)]))
    return text.getvalue().splitlines()


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("run")
    Toy("nsga2", budget=27).run(folder)
    return status(folder) | {"state": "running", "phase": "search"}


def test_no_line_wraps_and_no_line_goes_away(facts: dict[str, Any]) -> None:
    long = [{"candidate": 10**9, "reason": "x\n\x1b[2J wörld 世界 " * 40, "time": 0.0}] * 5
    objectives = {f"an objective of a very long name {i}": (-1) ** i for i in range(20)}
    best = facts["incumbent"]["objectives"]["first"] | {"value": -1e9, "low": -1e9, "high": 1e9}
    told = {"candidate": 1, "objectives": dict.fromkeys(objectives, best), "mean": best}
    crowded = facts | {"objectives": objectives, "incumbent": told, "failures": long}
    crowded["references"] = {"asked": 3, "measured": 2, "told": {"a [bold]name[/] " * 9: told}}
    for width in (20, 40, 60, 80, 200):
        panel = Panel()
        heights = []
        for each in (facts, crowded, facts | {"failures": []}, facts | {"phase": "references"}):
            lines = drawn(width, each, panel)
            assert max(map(cell_len, lines)) <= width
            assert "\x1b" not in "".join(lines)
            heights.append(len(lines))
        assert heights[1] == heights[2] == heights[3] == max(heights) <= 24
    assert clean("a\x1b[31mb\n c") == "a [31mb c"


def test_what_is_shown(facts: dict[str, Any]) -> None:
    text = "\n".join(drawn(60, facts, Panel()))
    best = facts["incumbent"]
    assert f"best: no. {best['candidate']} " in text
    for name in ("first", "second"):
        e = best["objectives"][name]
        assert re.search(rf"{name} +{e['value']:.3f} \[{e['low']:.3f}, {e['high']:.3f}\]", text)
    assert "reference: " in text
    assert "[search]" in text
    assert "27 of 27 candidates" in text
    assert f"{facts['failed']} of 27 candidates" in text
    costly = facts | {"objectives": {"first": -1, "second": 1}}
    e = best["objectives"]["first"]
    assert f"{-e['value']:.3f} [{-e['high']:.3f}, {-e['low']:.3f}]" in "\n".join(
        drawn(60, costly, Panel())
    )


def test_nothing_but_ascii_and_no_colour_where_that_is_wanted(
    facts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    Console(file=file, width=80, force_terminal=True).print(Panel().of(facts))
    file.flush()
    text = raw.getvalue().decode("ascii")
    assert "####" in text
    assert not re.search(r"\x1b\[(3\d|9\d)m", text)


def test_a_panel_on_a_terminal_and_lines_elsewhere(tmp_path: Path) -> None:
    for terminal in (True, False):
        text = io.StringIO()
        console = Console(
            file=text, width=60, force_terminal=terminal, soft_wrap=not terminal, markup=False
        )
        with TerminalView(console) as view:
            Toy("nsga2", budget=24).run(tmp_path / str(terminal), watchers=(view,))
        shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.getvalue())
        assert ("[search]" in shown or "[holdout]" in shown) is terminal
        assert ("\nsearch ...\n" in shown) is not terminal
        assert shown.startswith("reading base ...\n") is not terminal
        assert "2 experts, 6 genes, nsga2, first, second; 48 search" in shown
        assert not terminal or text.getvalue().endswith("\x1b[2K")  # the table takes its place


def test_a_view_that_cannot_draw_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evomerge.terminal.TerminalView._draw", lambda _: 1 / 0)
    with TerminalView(Console(file=io.StringIO(), force_terminal=True)) as view:
        Toy(budget=8).run(tmp_path, watchers=(view,))
    assert status(tmp_path)["state"] == "finished"


def test_the_front_is_what_brute_force_finds() -> None:
    """Told cohort by cohort, with candidates that are scored anew, and rungs."""
    generator = np.random.default_rng(0)
    found, known = Found(), {}
    for number in range(40):
        ids = [*range(5 * number, 5 * number + 5)]
        ids += generator.choice(5 * number, 2, replace=False).tolist() if number else []
        entries = [
            {
                "id": id_,
                "score": {
                    n: [float(v), 0.1, 9]
                    for n, v in zip("ab", generator.integers(0, 12, 2), strict=True)
                },
                "rung": int(generator.integers(0, 2 + number // 20)),
                "failure": None,
            }
            for id_ in ids
        ]
        cut = number % 7 == 6
        found.told(entries, cut_short=cut)
        now = known | {e["id"]: e for e in entries}
        known = known if cut else now
        top = max(e["rung"] for e in now.values())
        pool = [e for e in now.values() if e["rung"] == top]
        values = np.array([[v[0] for v in e["score"].values()] for e in pool])
        front = {pool[i]["id"] for i in np.flatnonzero(non_dominated(values))}
        assert set(found.front()) == front
        mean = max(values.mean(axis=1))
        best = found.incumbent()
        assert best is not None
        assert best["mean"]["value"] == pytest.approx(mean)
