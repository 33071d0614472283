"""The report of made-up and of real runs; the oracles are the ledger and an HTML parser."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))
import released_runs
from made_up import MadeUp, make

from evomerge.cli.report import report as report_verb
from evomerge.errors import ConfigurationError, DiskFull, Interrupted
from evomerge.experiment import run as runs
from evomerge.results import report as reports
from evomerge.results.account import Account
from evomerge.results.report import report, write_report
from evomerge.results.report.page import as_json
from evomerge.run import Run

RELEASED = Path(__file__).parents[2] / "assets" / "ledgers"
HOSTILE = "</script><img src=x onerror=alert(1)>&lt;b&gt;'\"{{7*7}}<b>é"
THREE = MadeUp(
    name="three",
    objectives=("first", "second", "size"),
    costs={"size": "parameters"},
    small=("second",),
)
VOID = {"meta", "link", "br", "path", "rect", "line"}


class Page(HTMLParser):
    """What a browser would see: elements, texts, tables and the data of charts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.rows: list[list[str]] = []
        self.scripts: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        assert self._open == [], "elements that nobody closes"
        ids = [of["id"] for _, of in self.elements if "id" in of]
        assert len(ids) == len(set(ids))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        inside = self._open[-1] if self._open else ""
        if inside == "script":
            self.scripts[-1] += data
        elif inside in ("td", "th"):
            self.rows[-1][-1] += data
        if inside not in ("script", "style"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        """All that is written, in one line."""
        return " ".join(" ".join(self.texts).split())

    @property
    def charts(self) -> list[dict[str, Any]]:
        """What plotly is given."""
        found: list[dict[str, Any]] = json.loads(self.scripts[0])
        return found

    def ids(self, tag: str) -> list[str | None]:
        """The ids of such elements."""
        return [of.get("id") for name, of in self.elements if name == tag]


def page_of(folder: Path) -> Page:
    with Account(folder) as account:
        return Page(report(account))


def strings(value: Any) -> Iterator[str]:
    """Every text in a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from (text for pair in value.items() for part in pair for text in strings(part))
    elif isinstance(value, list):
        yield from (text for part in value for text in strings(part))


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with three objectives, of which one is a cost and one is to be small."""
    return make(tmp_path_factory.mktemp("three") / "run", THREE)


# --- what it says ---------------------------------------------------------------------------------


def test_a_finished_run_has_every_section_and_its_numbers(three: Path) -> None:
    page = page_of(three)
    assert page.ids("section") == [
        *("summary", "front", "convergence", "recipe", "genes", "calibration", "time"),
        *("failures", "configuration", "reproduction"),
    ]
    drawn = {chart["id"] for chart in page.charts}
    assert {"parallel", "front-0", "front-1", "front-2", "hypervolume"} <= drawn
    assert {"convergence-chart", "coefficients-weight-0", "genes-0", "failure-reasons"} <= drawn
    assert {"calibration-0", "calibration-1", "time-phases", "time-workers"} <= drawn
    with Account(three) as account:
        final, digest = account.final, account.ledger.digest()
        assert final is not None
        best = final["best"]
        text = account.experiment_text.strip()
    assert "The search was worth it" in page.text
    assert "+0.123 on the mean of the objectives" in page.text
    assert "[+0.045, +0.201]" in page.text
    assert f"candidate {best['candidate']} scores" in page.text
    assert digest in page.text
    assert " ".join(text.split()) in page.text
    assert "8 of 60 candidates failed" in page.text
    row = next(row for row in page.rows if row[0] == f"candidate {best['candidate']}")
    first = best["holdout"]["first"]["value"]
    assert row[1] == f"{first:.3f} [{first - 1.96 * 0.03:.3f}, {first + 1.96 * 0.03:.3f}]"


def test_costs_and_what_is_to_be_small_have_the_users_sign(three: Path) -> None:
    page = page_of(three)
    with Account(three) as account:
        final = account.final
    assert final is not None
    row = next(r for r in page.rows if r[0] == f"candidate {final['best']['candidate']}")
    assert row[2].startswith(f"{-final['best']['holdout']['second']['value']:.3f} [")
    assert row[3] == f"{-final['best']['holdout']['size']['value'] / 1e6:.4g}M"
    (pair,) = [chart for chart in page.charts if chart["id"] == "front-1"]  # first, size
    assert min(pair["data"][0]["y"]) > 1e6
    assert pair["data"][-1]["y"] == [
        pytest.approx(-final["best"]["holdout"]["size"]["value"], rel=1e-6)
    ]
    assert "size (smaller is better)" in page.text


def test_all_points_of_a_chart_are_in_its_table(three: Path) -> None:
    page = page_of(three)
    (pair,) = [chart for chart in page.charts if chart["id"] == "front-0"]
    shown = {row[0] for row in page.rows if row[-1] == "candidate, by search scores"}
    with Account(three) as account:
        scored = {f"candidate {e.id}" for e in account.evaluations.values() if e.score}
    assert shown == scored
    assert len(pair["data"][0]["x"]) == len(scored)
    tables = sum(tag == "table" for tag, _ in page.elements)
    assert tables >= len(page.charts)


def test_headings_are_in_order_and_everything_has_a_name(three: Path) -> None:
    page = page_of(three)
    levels = [int(tag[1]) for tag, _ in page.elements if tag in ("h1", "h2", "h3")]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert levels.count(1) == 1
    known = {of["id"] for _, of in page.elements if "id" in of}
    for tag, of in page.elements:
        if of.get("role") in ("img", "region") or tag == "nav":
            assert of.get("aria-label")
        if "aria-labelledby" in of:
            assert of["aria-labelledby"] in known
        if tag == "a":
            assert (of["href"] or "")[1:] in known
        if of.get("class") == "scroll" or tag == "pre":
            assert of.get("tabindex") == "0"


def test_many_candidates_are_drawn_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evomerge.results.report.known.MAX_POINTS", 20)
    page = page_of(make(tmp_path / "run", MadeUp()))
    assert "Of 52 candidates 20 are drawn, evenly over the search." in page.text
    (pair,) = [chart for chart in page.charts if chart["id"] == "front-0"]
    assert len(pair["data"][0]["x"]) == 20


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (MadeUp(ended=False), "This run is not finished. So far the best is candidate"),
        (MadeUp(ended=False, objectives=("only",)), "This run is not finished."),
        (MadeUp(candidates=0, ended=False), "No candidate has been evaluated yet."),
        (MadeUp(failing=1), "No candidate could be measured"),
        (MadeUp(candidates=8, failing=0, objectives=("only",)), "Nothing failed."),
        (MadeUp(experts=("alone",), num_layers=1, objectives=("only",)), "merged by"),
    ],
)
def test_every_run_has_a_report(tmp_path: Path, run: MadeUp, said: str) -> None:
    page = page_of(make(tmp_path / "run", run))
    assert said in page.text
    assert "summary" in page.ids("section")
    assert "configuration" in page.ids("section")


@pytest.mark.parametrize("kind", ["finished", "stopped"])
def test_runs_of_released_versions_have_a_report(tmp_path: Path, kind: str) -> None:
    for version in sorted(RELEASED.iterdir()):
        folder = tmp_path / version.name
        shutil.copytree(version / kind, folder)
        expected = json.loads((folder / "expected.json").read_text())["now"]
        page = page_of(folder)
        assert expected["digest"] in page.text
        assert f"tried {expected['candidates']} candidates" in page.text
        assert ("not finished" in page.text) == (kind == "stopped")
        assert {"convergence", "recipe", "time"} <= set(page.ids("section"))


# --- what it must not do --------------------------------------------------------------------------


def test_nothing_of_models_or_tasks_becomes_markup(tmp_path: Path) -> None:
    names = [f"{HOSTILE}{number}" for number in range(3)]
    hostile = MadeUp(
        name=HOSTILE,
        experts=names[:2],
        objectives=names,
        costs={names[2]: HOSTILE},
        reason=HOSTILE,
        worker=HOSTILE,
        operator=HOSTILE,
    )
    page = page_of(make(tmp_path / "run", hostile))
    assert len(page.scripts) == 3
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"img", "b"} - {"b"}
    assert [of for _, of in page.elements if any(name.startswith("on") for name in of)] == []
    allowed = ("<br>", "<b>", "</b>", '<span style="font-size:11px">', "</span>")
    texts = list(strings(page.charts))
    assert any("alert(1)" in text for text in texts)
    for text in texts:
        for tag in allowed:
            text = text.replace(tag, "")
        assert "<" not in text, text
    assert HOSTILE in page.text
    assert "49" not in page.text.split("{{7*7}}")[1][:10]
    assert all(of["href"] != HOSTILE for tag, of in page.elements if tag == "a")


def test_json_in_a_script_neither_ends_it_nor_begins_another() -> None:
    value = {"a</script>": ["<!--", "<script>", "&amp;", 0.1234567891, None, True, 3]}
    text = as_json(value)
    assert not set("<>&") & set(text)
    assert json.loads(text) == {"a</script>": [*value["a</script>"][:3], 0.1234568, None, True, 3]}


def test_the_policy_lets_the_three_scripts_run_and_nothing_be_loaded(three: Path) -> None:
    page = page_of(three)
    (policy,) = [of["content"] for _, of in page.elements if "http-equiv" in of]
    rules = dict(rule.split(" ", 1) for rule in (policy or "").split("; "))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    hashes = [
        "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"
        for text in page.scripts[1:]
    ]
    assert rules["script-src"].split() == hashes
    assert set(rules) == {
        *("default-src", "script-src", "style-src", "img-src", "base-uri", "form-action")
    }
    assert rules["img-src"] == "data:"
    for _, of in page.elements:
        assert "src" not in of
        assert not (of.get("href") or "").startswith(("http", "//"))


def test_equal_ledgers_have_equal_reports(tmp_path: Path, three: Path) -> None:
    shutil.copytree(three, tmp_path / "run")
    first, second = write_report(three), write_report(tmp_path / "run", tmp_path / "there.html")
    assert first == three / "report.html"
    assert first.read_bytes() == second.read_bytes()


# --- who writes it --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run, of models without layers to speak of."""
    models = released_runs.ASSETS / "0.1.0" / "models"
    return released_runs.go_on("finished", tmp_path_factory.mktemp("small") / "run", models).folder


def test_a_run_ends_with_its_report(small: Path) -> None:
    written = (small / "report.html").read_text()
    with Account(small) as account:
        page = Page(written)
        assert account.ledger.digest() in page.text
        final = account.final
        assert final is not None
        assert f"candidate {final['best']['candidate']}" in page.text
    again = Run(small, in_memory=released_runs.given(small)).report(small / "again.html")
    assert written == again.read_text()


def test_a_report_that_cannot_be_written_stops_no_run(
    three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("no")

    folder = Path(shutil.copytree(three, tmp_path / "run"))
    (folder / "report.html").unlink(missing_ok=True)
    with Account(folder) as account:
        before = account.ledger.digest()
    runs.report_if_possible(folder)
    assert (folder / "report.html").exists()
    assert caplog.text == ""
    (folder / "report.html").unlink()
    monkeypatch.setattr(reports, "write_report", broken)
    runs.report_if_possible(folder)
    assert "report.html could not be written: ZeroDivisionError: no" in caplog.text
    assert not (folder / "report.html").exists()
    with Account(folder) as account:
        assert account.ledger.digest() == before
    monkeypatch.setattr(reports, "write_report", lambda _: raising(Interrupted(2)))
    with pytest.raises(Interrupted):
        runs.report_if_possible(folder)


def test_a_picture_that_cannot_be_drawn_stops_no_run(
    three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Account(three) as account:
        final, evaluations = account.final, account.evaluations
        objectives = account.objectives
    assert final is not None
    parts: Any = SimpleNamespace(objectives=objectives)
    (tmp_path / "front.png").mkdir()
    runs.draw_if_possible(tmp_path, evaluations, final, parts)
    assert "a picture could not be drawn" in caplog.text
    for error in (Interrupted(2), DiskFull("full")):  # these are for the user
        monkeypatch.setattr(runs, "write_pictures", lambda *_, error=error: raising(error))
        with pytest.raises(type(error)):
            runs.draw_if_possible(tmp_path, evaluations, final, parts)


def raising(error: BaseException) -> None:
    raise error


def test_the_verb_says_where_the_report_is(
    three: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report_verb(three, tmp_path / "x" / "y.html")
    assert str(tmp_path / "x" / "y.html") in capsys.readouterr().out.replace("\n", "")
    assert (tmp_path / "x" / "y.html").exists()
    with pytest.raises(ConfigurationError, match="no run here"):
        report_verb(tmp_path, None)
