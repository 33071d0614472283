"""R4: the disk is full, at each write.

Passes if: the driver ends with exit code 6 and names the path, what is needed and what is free; the
ledger opens and has what was committed; the run that is resumed with more room equals one that was
never short of it; and neither run nor export is begun with less than 1.2 x the room that it takes.
"""

from __future__ import annotations

import logging
import os
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drivers import command_line
from results.small_run import write_experiment
from small_disk import on_disk_of, resize
from toys import Toy, forked, outcome_of

from evomerge.checkpoints import shards
from evomerge.checkpoints import write as writing
from evomerge.errors import DiskFull
from evomerge.experiment import run as runs
from evomerge.experiment import sessions
from evomerge.experiment.room import projected_bytes
from evomerge.experiment.wire import wire
from evomerge.ledger import LEDGER, Ledger
from evomerge.results import plots

SAYS = re.compile(r"^(/\S+): no space left on the disk: needs (\S+ \S+), (\S+ \S+) free ")
TOY = Toy("nsga2", "racing")
MB = 1_000_000


@pytest.fixture
def disk(tmp_path: Path) -> Callable[[int, Callable[[Path], Any]], Any]:
    """Do something on a disk of some size, in a child."""

    def on(size_bytes: int, work: Callable[[Path], Any]) -> Any:
        folder = tmp_path / "disk"
        try:
            return on_disk_of(size_bytes, folder, partial(work, folder))
        except PermissionError as error:
            pytest.skip(f"no disk can be mounted here: {error}")

    return on


def fill(folder: Path) -> None:
    """Leave not a byte."""
    with (folder / "balloon").open("ab", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue


def ended(work: Callable[[], Any], said: Path) -> tuple[int, str]:
    """The exit code of a driver, and what it said; in a child, as its memory is its own."""

    def driver() -> None:
        try:
            work()
        except DiskFull as error:
            said.write_text(str(error))
            os._exit(error.exit_code)

    said.unlink(missing_ok=True)
    return forked(driver), said.read_text() if said.exists() else ""


def committed(folder: Path) -> int:
    """How many events the ledger has, if it is there yet; it must open."""
    if not (folder / LEDGER).exists():
        return 0
    with closing(Ledger(folder / LEDGER, read_only=True)) as ledger:
        return len(list(ledger.events("asked", "measured", "told")))


# --- one write after the other --------------------------------------------------------------------


def before(
    patch: pytest.MonkeyPatch, home: Any, name: str, count: int, action: Callable[[], Any]
) -> None:
    """Do something just before a function is called for the so-manieth time."""
    real, calls = getattr(home, name), [0]

    def wrapped(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == count:
            action()
        return real(*arguments, **options)

    patch.setattr(home, name, wrapped)


def log_at_length(folder: Path) -> None:
    fill(folder)
    logging.getLogger("evomerge").warning("x" * 10_000)


# What is written -> where the disk is filled: a module or class, a function, which of its calls.
WRITES: dict[str, tuple[Any, str, int]] = {
    "run/run.lock": (runs, "RunLock", 1),
    "run/run.log": (runs, "known_start", 1),
    "run/experiment.yaml": (runs, "write_text", 1),
    "run/ledger.sqlite, new": (Ledger, "create", 1),
    "run/ledger.sqlite, session": (sessions, "version", 1),
    "run/ledger.sqlite, ask": (Ledger, "asked", 3),
    "run/ledger.sqlite, result": (Ledger, "measured", 60),
    "run/ledger.sqlite, tell": (Ledger, "told", 2),
    "run/convergence.png": (plots, "write_bytes", 1),
    "run/front.png": (plots, "write_bytes", 2),
    "run/ledger.sqlite, final": (runs, "write_pictures", 1),
}


@pytest.mark.parametrize("what", WRITES)
def test_full_before_a_write(what: str, disk, tmp_path, uninterrupted, monkeypatch):
    expected = uninterrupted(TOY)
    monkeypatch.setattr(runs, "check_room", lambda *_: None)
    home, name, count = WRITES[what]

    def work(folder: Path) -> Any:
        out = folder / "run"

        def short_of_room() -> None:
            with pytest.MonkeyPatch.context() as patch:
                action = log_at_length if what == "run/run.log" else fill
                before(patch, home, name, count, partial(action, folder))
                if what.endswith("final"):
                    patch.setattr(runs, "write_pictures", lambda *_: fill(folder))
                TOY.run(out)

        found = ended(short_of_room, tmp_path / "said")
        (folder / "balloon").unlink()
        events = committed(out)
        TOY.run(out)
        return *found, events, outcome_of(out)

    code, said, events, outcome = disk(20 * MB, work)
    assert code == 6
    match = SAYS.match(said)
    assert match, said
    assert match[1] == str(tmp_path / "disk" / what.split(",")[0])
    assert match[3] == "0 bytes"
    assert "what was committed" not in said
    assert events > {"ask": 40, "result": 59, "tell": 60}.get(what.split(", ")[-1], -1)
    assert outcome == expected


def sweep(disk: Any, sizes: list[int], said: Path, expected: Any) -> list[tuple[int, str]]:
    """Run on disks of these sizes, then with room enough."""
    found = []
    for size in sizes:

        def work(folder: Path, size: int = size) -> Any:
            first = ended(lambda: TOY.run(folder / "run"), said)
            resize(folder, 20 * MB)
            committed(folder / "run")
            TOY.run(folder / "run")
            return *first, outcome_of(folder / "run")

        code, text, outcome = disk(size, work)
        assert outcome == expected, size
        assert code == 6, (size, code)
        assert SAYS.match(text), text
        found.append((code, text))
    return found


@pytest.mark.parametrize("count", [4, pytest.param(40, marks=pytest.mark.slow)])
def test_disks_of_any_size(count, disk, tmp_path, uninterrupted, monkeypatch, figure):
    """Wherever it happens to become full; a run of this size takes 1.5 MB."""
    monkeypatch.setattr(runs, "check_room", lambda *_: None)
    monkeypatch.setattr(runs, "write_pictures", lambda *_: None)
    sizes = np.geomspace(4096, 1.2 * MB, count).astype(int).tolist()
    found = sweep(disk, sizes, tmp_path / "said", uninterrupted(TOY))
    name = "disks that became full somewhere"
    figure("R4", name, len(found), count, unit="", at_least=True)


# --- a model that is exported ---------------------------------------------------------------------

EXPORTS: dict[str, tuple[Any, str, int]] = {
    "the folder": (writing, "staged_folder", 1),
    "the shard": (shards.ShardWriter, "_started", 1),
    "the small files": (shards.ShardWriter, "finish", 1),
}


@pytest.mark.parametrize("what", EXPORTS)
def test_full_while_a_model_is_exported(what, disk, tmp_path, no_pictures, monkeypatch):
    run = TOY.open(TOY.run(tmp_path / "run"))
    home, name, count = EXPORTS[what]

    def work(folder: Path) -> Any:
        target = folder / "model"
        run.export(folder=target)
        first = {path.name: path.read_bytes() for path in target.iterdir()}

        def short_of_room() -> None:
            with pytest.MonkeyPatch.context() as patch:
                before(patch, home, name, count, partial(fill, folder))
                run.export(folder=target)

        found = ended(short_of_room, tmp_path / "said")
        (folder / "balloon").unlink()
        kept = {path.name: path.read_bytes() for path in target.iterdir()} == first
        run.export(folder=target)
        again = {path.name: path.read_bytes() for path in target.iterdir()} == first
        return *found, kept, again, sorted(path.name for path in folder.iterdir())

    code, said, kept, again, left = disk(5 * MB, work)
    assert code == 6
    assert SAYS.match(said), said
    assert f"{tmp_path / 'disk' / 'model'}" in said
    assert kept
    assert again
    assert left == ["model"]


def test_an_export_that_will_not_fit_is_not_begun(disk, tmp_path, no_pictures):
    run = TOY.open(TOY.run(tmp_path / "run"))
    needed = 1.2 * sum(tensor.nbytes for tensor in run.merge().values())

    def work(folder: Path) -> Any:
        fill(folder)
        found = ended(lambda: run.export(folder=folder / "model"), tmp_path / "said")
        return *found, sorted(path.name for path in folder.iterdir())

    code, said, left = disk(1 * MB, work)
    assert code == 6
    assert f"model: no space left on the disk: needs {needed:.0f} bytes, 0 bytes free" in said
    assert left == ["balloon"]


# --- before anything is begun ---------------------------------------------------------------------


@pytest.mark.parametrize("searcher", ["random", "nsga2"])
@pytest.mark.parametrize("estimator", ["full", "racing"])
def test_what_a_run_takes_is_not_underestimated(searcher, estimator, tmp_path, no_pictures):
    for budget in (8, 160):
        toy = Toy(searcher, estimator, budget)
        out = toy.run(tmp_path / str(budget))
        size = sum(path.stat().st_size for path in out.iterdir())
        projected = projected_bytes(wire(toy.config(), toy.given()))
        assert size < projected < size + 6 * MB
    more = Toy(searcher, estimator, 100_000)
    assert projected_bytes(wire(more.config(), more.given())) > 100 * MB


def test_a_run_that_will_not_fit_is_not_begun(tiny_zoo, disk, tmp_path):
    """By the command line; the budget is more than the disk can hold."""
    changes: Any = {"budget": {"candidates": 100_000}}
    path = write_experiment(tmp_path / "experiment", tiny_zoo, **changes)

    def work(folder: Path) -> Any:
        found = only_checked(str(path), folder)
        return found, sorted(p.name for p in (folder / "run").iterdir())

    (code, _, err), left = disk(50 * MB, work)
    assert code == 6, err
    match = SAYS.match(err.removeprefix("evomerge: "))
    assert match, err
    assert float(match[2].split()[0]) > 100
    assert LEDGER not in left
    code, _, err = disk(500 * MB, partial(only_checked, str(path)))
    assert code == 0, err


def only_checked(path: str, folder: Path) -> Any:
    """Run up to where a ledger would be made."""
    with pytest.MonkeyPatch.context() as patch:

        def stop(*_: Any) -> None:
            raise SystemExit(0)

        patch.setattr(runs, "open_ledger", stop)
        return command_line("run", path, "--out", str(folder / "run"))


# --- what does not need a disk of its own ---------------------------------------------------------


def test_a_ledger_that_may_not_grow(tmp_path):
    """SQLite's own limit is told as a full disk is; what was committed is there."""
    path = tmp_path / "l.sqlite"
    with closing(Ledger.create(path, {"identity": {}}, {"t": 3})) as ledger:
        ledger.note("session", {"host": "here"})
        (pages,) = ledger._db.execute("PRAGMA page_count").fetchone()
        ledger._db.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(DiskFull) as caught:
            ledger.note("session", {"host": "x" * 100_000})
        assert SAYS.match(str(caught.value))
        assert "needs 116.4 kB" in str(caught.value)
        ledger._db.execute("PRAGMA max_page_count = 1000000")
        ledger.note("session", {"host": "there"})
    with closing(Ledger(path, read_only=True)) as ledger:
        assert [data["host"] for _, _, data in ledger.events("session")] == ["here", "there"]


def test_a_reader_of_a_full_disk_is_told_so(disk):
    """Even reading takes a few bytes: SQLite indexes its log in a file."""

    def work(folder: Path) -> Any:
        path = folder / "l.sqlite"
        Ledger.create(path, {"identity": {}}, {"t": 3}).close()
        with closing(sqlite3.connect(path)) as db:
            db.execute("PRAGMA journal_mode = WAL")
        fill(folder)
        try:
            Ledger(path, read_only=True).close()
        except DiskFull as error:
            return str(error)
        return "opened"

    assert SAYS.match(disk(MB, work))


def test_a_disk_that_is_full_is_no_candidates_fault(tmp_path, no_pictures):
    """A task that writes where nothing fits ends the run, and fails no candidate."""

    def broken(state: Any) -> Any:
        raise OSError(28, "No space left on device", str(tmp_path / "task.tmp"))

    with pytest.raises(DiskFull) as caught:
        Toy(fitness=broken).run(tmp_path / "run")
    assert "task.tmp: no space left" in str(caught.value)
