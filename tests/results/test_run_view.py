"""Runs as Python shows them: what is said is the ledger's, and nothing from outside is markup."""

from __future__ import annotations

import re
import shutil
import sqlite3
import sys
from base64 import b64decode
from contextlib import closing
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import python_runs

import evomerge
from evomerge.ledger import LEDGER
from evomerge.results.run_view import Rows

OLD = Path(__file__).parents[1] / "assets" / "ledgers" / "0.1.0"
NSGA = {"kind": "nsga2", "population": 6}


class Read(HTMLParser):
    """The tags that are open, the text, and the pictures."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text: list[str] = []
        self.images: list[bytes] = []
        self.seen: set[str] = set()
        self.feed(page)
        self.close()
        assert self.tags == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        if tag == "img":
            source = str(dict(attributes)["src"])
            assert source.startswith("data:image/png;base64,")
            self.images.append(b64decode(source.partition(",")[2]))
            assert dict(attributes)["alt"]
        else:
            self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.tags.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> evomerge.Run:
    folder = tmp_path_factory.mktemp("view")
    costs = ["parameters"]
    return python_runs.search(folder / "run", python_runs.answers, searcher=NSGA, costs=costs)


def without_end(run: evomerge.Run, folder: Path, *kinds: str) -> evomerge.Run:
    """The same as it was before events of these kinds."""
    shutil.copytree(run.folder, folder)
    with closing(sqlite3.connect(folder / LEDGER)) as db:
        for kind in kinds:
            db.execute("DELETE FROM events WHERE kind = ?", (kind,))
        db.commit()
    return evomerge.Run(folder)


def test_a_line(run: evomerge.Run, tmp_path: Path) -> None:
    final = run.status()["final"]
    best = final["best"]["holdout_mean"]
    half = 1.96 * best["standard_error"]
    ends = f"[{best['value'] - half:.3f}, {best['value'] + half:.3f}]"
    said = f"finished, 24 candidates, best mean {best['value']:.3f} {ends} on the holdout"
    assert repr(run) == f"Run({run.folder}: {said})"
    part = without_end(run, tmp_path / "part", "final", "ended")
    mean = part.status()["incumbent"]["mean"]
    ends = f"[{mean['low']:.3f}, {mean['high']:.3f}]"
    assert repr(part).endswith(f"best mean {mean['value']:.3f} {ends} by its search score)")
    none = without_end(run, tmp_path / "none", "final", "ended", "told", "measured", "references")
    assert "nothing is scored yet" in repr(none)
    assert "nothing is scored yet" in "".join(Read(none._repr_html_()).text)
    shutil.rmtree(tmp_path / "none")
    assert "no run here" in repr(none)
    assert "no run here" in none._repr_html_()


def test_html_tells_everything_of_the_final_table(run: evomerge.Run) -> None:
    page = Read(run._repr_html_())
    text = " | ".join(page.text)
    final = run.status()["final"]
    for row in [*final["references"].values(), *final["front"][:5]]:
        for name in ("left", "right"):
            assert f"{row['holdout'][name]['value']:.3f} [" in text or (
                row["holdout"][name]["standard_error"] == 0
            )
    assert "| 12 |" in text  # a cost has the user's sign, and no interval
    assert "parameters, smaller is better" in text
    gain = final["gain_over_best_reference"]
    assert f"{gain['value']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]" in text
    (picture,) = page.images
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < 100_000


def test_an_unfinished_run_has_its_search(run: evomerge.Run, tmp_path: Path) -> None:
    part = without_end(run, tmp_path / "part", "final", "ended")
    page = Read(part._repr_html_())
    text = " | ".join(page.text)
    incumbent = part.status()["incumbent"]
    assert f"best so far: no. {incumbent['candidate']}" in text
    right = incumbent["objectives"]["right"]
    assert f"{right['value']:.3f} [{right['low']:.3f}, {right['high']:.3f}]" in text
    assert "On the search's items" in text
    assert len(page.images) == 1
    assert part.best().id == incumbent["candidate"]


def test_names_are_text(run: evomerge.Run, tmp_path: Path) -> None:
    name = "<b>$x_$&\"'<script>alert(1)</script>"
    shutil.copytree(run.folder, tmp_path / "named")
    with closing(sqlite3.connect(tmp_path / "named" / LEDGER)) as db:
        (about,) = db.execute("SELECT value FROM meta WHERE key = 'about'").fetchone()
        value = '"' + name.replace('"', '\\"') + '"'
        changed = re.sub(r'"name": ""', lambda _: f'"name": {value}', about, count=1)
        changed = changed.replace('"name": "left"', f'"name": {value}')
        assert changed != about
        db.execute("UPDATE meta SET value = ? WHERE key = 'about'", (changed,))
        db.commit()
    page = Read(evomerge.Run(tmp_path / "named")._repr_html_())
    assert name in page.text
    assert page.seen.isdisjoint({"b", "script"})


def test_rows_of_the_front_are_a_table(run: evomerge.Run) -> None:
    rows = run.front()
    assert isinstance(rows, Rows)
    assert rows == run.status()["final"]["front"]
    lines = repr(rows).splitlines()
    assert len(lines) == len(rows)
    assert lines[0].startswith(f"no. {rows[0]['candidate']}: left ")
    assert lines[0].endswith("parameters 12")
    page = Read(rows._repr_html_())
    assert page.text[0] == "model"


def test_a_candidate_is_a_line(run: evomerge.Run) -> None:
    best = run.best()
    assert repr(best).startswith(f"Candidate({best.id}, genome=[")
    assert best.fingerprint[:12] in repr(best)
    assert len(repr(best)) < 100
    long = evomerge.Candidate(3, [0.123456] * 500, None, ("too long",))
    assert repr(long).count("0.1235") == 8
    assert "500 in all" in repr(long)
    assert "too long" in repr(long)


def test_runs_of_released_versions(tmp_path: Path) -> None:
    shutil.copytree(OLD, tmp_path / "old")
    for kind, state in (("finished", "finished, 12"), ("stopped", "stopped, 4")):
        run = evomerge.Run(tmp_path / "old" / kind)
        assert state in repr(run)
        assert len(Read(run._repr_html_()).images) == 1


def test_comparisons_show_themselves(run: evomerge.Run, tmp_path: Path) -> None:
    other = python_runs.search(tmp_path / "other", python_runs.answers, costs=["parameters"])
    found = run.compare(other)
    assert found == run.compare(other.folder)
    assert found["words"][0] in repr(found)
    page = Read(found._repr_html_())
    assert "nsga2" in page.text
    assert len(page.images) == 1
    assert found.plot(tmp_path / "x.svg").read_bytes().startswith(b"<?xml")


def test_the_documented_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/python.md, as it stands there."""
    text = (Path(__file__).parents[2] / "docs" / "python.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    names = {"print": lambda value: said.append(repr(value))}
    exec(compile(code, "docs/python.md", "exec"), names)  # noqa: S102 - our own page
    run, merged = names["run"], names["merged"]
    assert said[0].startswith("Run(runs/mine: finished, 40 candidates, best mean 0.7")
    assert said[1].count("left") == len(run.front())  # type: ignore[attr-defined]
    weights = run.best().recipe.default.parameters["weight"]  # type: ignore[attr-defined]
    expected = sum(weights[n] * names["wanted"][n] for n in weights)  # type: ignore[index]
    torch.testing.assert_close(merged["layers.0.weight"], expected)  # type: ignore[index]
    assert (tmp_path / "models" / "mine" / "model.safetensors").exists()
    assert len(code.strip().splitlines()) <= 30
