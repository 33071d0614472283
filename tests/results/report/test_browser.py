"""The report in a real browser, as wide as a desk's screen and as a phone's; without one, skipped.

The pictures are left in pytest's folder for whoever wants to look: `pytest --basetemp=pictures`.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from browser import CHROMIUM, DRIVER, OVERLAPS, UNDRAWN, WIDER, Browser, browser
from made_up import MadeUp, make

from evomerge.results.report import write_report

RELEASED = Path(__file__).parents[2] / "assets" / "ledgers" / "0.1.0"
WIDTHS = {"desktop": 1280, "phone": 390, "small phone": 360}
HOSTILE = "</script><img src=x onerror=alert(1)>"
LONG = "a-very-long-name-of-a-model-that-was-fine-tuned-on-much-instruct-v0.2"
RUNS = {
    "one objective": MadeUp(objectives=("accuracy",)),
    "two, with a cost": MadeUp(objectives=("mean", "size"), costs={"size": "parameters"}),
    "three": MadeUp(objectives=("first", "second", "third"), experts=("one", "two", "three")),
    "many layers": MadeUp(objectives=("accuracy",), num_layers=48, kind="components"),
    "a stack": MadeUp(objectives=("accuracy",), num_layers=30, kind="stack"),
    "stretches": MadeUp(objectives=("accuracy",), num_layers=6, kind="segments"),
    "long names": MadeUp(
        name=LONG * 2,
        objectives=[f"{LONG}-{k}" for k in range(4)],
        experts=[f"{LONG}-{k}" for k in range(9)],
        reason=f"{LONG}: " * 9,
        worker=LONG * 2,
    ),
    "hostile": MadeUp(
        name=HOSTILE,
        objectives=[f"{HOSTILE}{k}" for k in range(3)],
        experts=[f"{HOSTILE}{k}" for k in range(2)],
        reason=HOSTILE,
        worker=HOSTILE,
        operator=HOSTILE,
    ),
    "not finished": MadeUp(ended=False),
    "all failed": MadeUp(failing=1),
}

pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="there is no chromium here")


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


def look(page: Browser, path: Path, widths: Any = WIDTHS) -> None:
    """What must be so of every report at every width."""
    for name, width in widths.items():
        page.open(path, width)
        page.photograph(path.with_name(f"{path.stem} {name}.png"))
        assert page.ask(UNDRAWN) == []
        assert page.ask(WIDER) == [0, []], width
        assert page.ask(OVERLAPS) == [], width
        assert page.ask("return document.images.length") == 0
        assert page.complaints() == []
        assert page.requests() == []


def test_a_report_in_a_browser(opened: Browser, tmp_path: Path) -> None:
    widths = {name: WIDTHS[name] for name in ("desktop", "small phone")}
    look(opened, write_report(make(tmp_path / "run", RUNS["hostile"])), widths)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*RUNS, "released"])
def test_every_report_in_a_browser(opened: Browser, tmp_path: Path, kind: str) -> None:
    if kind == "released":
        shutil.copytree(RELEASED / "finished", tmp_path / "run")
    else:
        make(tmp_path / "run", RUNS[kind])
    path = write_report(tmp_path / "run")
    look(opened, path)
    opened.open(path, 1280, dark=True)
    assert opened.ask(UNDRAWN) == []
    assert opened.complaints() == []


def test_the_checks_see_what_is_wrong(opened: Browser, tmp_path: Path) -> None:
    """A page that overlaps, asks for something, complains and is too wide is told so."""
    path = tmp_path / "wrong.html"
    path.write_text(
        "<p style='width:3000px'>wide</p><img src='http://127.0.0.1:9/x.png'>"
        "<div class=chart id=c><svg class=main-svg><text y=20>one</text><text y=22>two</text></svg>"
        "</div><script>console.error('oh')</script>"
    )
    opened.open(path, 390)
    assert opened.ask(UNDRAWN) == ["c"]
    assert opened.ask(WIDER)[0] > 0
    assert opened.ask(OVERLAPS) == [["c", "one", "two"]]
    assert any("oh" in line for line in opened.complaints())
    assert "http://127.0.0.1:9/x.png" in opened.requests()


@pytest.mark.slow
def test_a_keyboard_reaches_everything(opened: Browser, tmp_path: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    opened.open(write_report(make(tmp_path / "run", RUNS["one objective"])), 1280)
    body = opened.driver.switch_to.active_element
    body.send_keys(Keys.TAB)
    skip = opened.driver.switch_to.active_element
    assert skip.text == "Skip to the content"
    assert skip.rect["x"] >= 0  # it shows itself
    seen = set()
    for _ in range(40):
        element = opened.driver.switch_to.active_element
        seen.add((element.tag_name, element.get_attribute("class")))
        element.send_keys(Keys.TAB)
    assert ("summary", "") in seen
    assert ("div", "scroll") in seen
    assert ("pre", "") in seen
    opened.ask("document.querySelector('summary').focus()")
    opened.driver.switch_to.active_element.send_keys(Keys.ENTER)
    assert opened.ask("return document.querySelector('details').open")
