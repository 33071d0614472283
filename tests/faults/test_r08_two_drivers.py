"""R8: two drivers on one run folder.

Passes if: the second ends within 2 s with exit code 4 and names host, process and since when; of 20
that start at once one wins; and the lock is free after kill -9.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from pathlib import Path
from statistics import median

import pytest
from drivers import evomerge
from toys import forked

from evomerge.errors import RunLocked
from evomerge.lock import RunLock, holder, refuse_locked


def hold(folder: Path, seconds: float) -> int:
    """A child that takes the lock and keeps it; its process id, once it has it."""
    ready, done = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            lock = RunLock(folder)
            os.write(done, b"!" if lock else b"")
            time.sleep(seconds)
        finally:
            os._exit(0)
    os.close(done)
    assert os.read(ready, 1) == b"!"
    os.close(ready)
    return child


def end(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


@pytest.mark.parametrize("verb", ["run --out", "run", "resume"])
def test_the_second_driver_leaves_at_once(verb, experiment, tmp_path, monkeypatch, figure):
    """A process of its own, from its start to its end: nothing heavy is imported before."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "small"
    folder.mkdir(parents=True)
    child = hold(folder, 60)
    arguments = {"run --out": ["run", experiment, "--out", folder], "run": ["run", experiment]}
    try:
        seconds, codes, said = [], [], ""
        for _ in range(3):  # the machine may be busy with something else
            start = time.monotonic()
            second = evomerge(*arguments.get(verb, ["resume", folder]))
            said, _ = second.communicate(timeout=60)
            seconds.append(time.monotonic() - start)
            codes.append(second.returncode)
        facts = holder(folder)
    finally:
        end(child)
    assert codes == [4, 4, 4], said
    figure("R8", f"`evomerge {verb}` of a run that is locked", median(seconds), 2.0)
    assert facts is not None
    assert f"process {child} on {socket.gethostname()} (since {facts['since']})" in said
    assert "Traceback" not in said
    assert [path.name for path in folder.iterdir()] == ["run.lock"]


def test_the_second_driver_is_told_who_the_first_is(tmp_path, figure):
    child = hold(tmp_path, 60)
    try:
        start = time.monotonic()
        with pytest.raises(RunLocked) as caught:
            RunLock(tmp_path)
        figure("R8", "the lock itself is refused", time.monotonic() - start, 2.0)
        with pytest.raises(RunLocked, match=f"process {child} on"):
            refuse_locked(tmp_path)
        facts = holder(tmp_path)
    finally:
        end(child)
    assert caught.value.exit_code == 4
    assert facts is not None
    assert facts["pid"] == child
    for fact in (str(child), socket.gethostname(), str(facts["since"]), str(tmp_path)):
        assert fact in str(caught.value)


def test_the_lock_is_free_after_kill_9(tmp_path, figure):
    end(hold(tmp_path, 60))
    start = time.monotonic()
    assert holder(tmp_path) is None
    with RunLock(tmp_path):
        facts = holder(tmp_path)
        assert facts is not None
        assert facts["pid"] == os.getpid()
    figure("R8", "the lock after kill -9", time.monotonic() - start, 1.0)
    assert holder(tmp_path) is None


def test_twenty_start_at_once_and_one_wins(tmp_path, figure):
    (tmp_path / "won").mkdir()
    start_read, start_write = os.pipe()
    end_read, end_write = os.pipe()
    children = []
    for number in range(20):
        if (child := os.fork()) == 0:
            code = 1
            try:
                os.close(start_write)
                os.close(end_write)
                os.read(start_read, 1)  # until the parent closes it: all at the same time
                with RunLock(tmp_path):
                    (tmp_path / "won" / str(number)).touch()
                    os.read(end_read, 1)
                code = 0
            except RunLocked as error:
                code = error.exit_code
            finally:
                os._exit(code)
        children.append(child)
    os.close(start_write)
    time.sleep(1.5)  # all but one give up meanwhile
    os.close(end_write)
    codes = sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)
    os.close(start_read)
    os.close(end_read)
    figure("R8", "winners of 20 that start at once", codes.count(0), 1, unit="")
    assert codes == [0] + 19 * [4]
    assert len(list((tmp_path / "won").iterdir())) == 1


def test_asking_who_works_keeps_nobody_out(tmp_path):
    """A reader takes the lock for an instant; a driver that starts just then waits for it."""
    (tmp_path / "run.lock").touch()
    stop = tmp_path / "stop"

    def ask() -> None:
        while not stop.exists():
            holder(tmp_path)

    child = os.fork()
    if child == 0:
        try:
            ask()
        finally:
            os._exit(0)
    try:
        for _ in range(200):
            with RunLock(tmp_path):
                pass
    finally:
        stop.touch()
        os.waitpid(child, 0)


def test_a_text_that_is_no_signature_is_somebody_all_the_same(tmp_path):
    child = hold(tmp_path, 60)
    try:
        (tmp_path / "run.lock").write_text("{")
        with pytest.raises(RunLocked, match="another process"):
            RunLock(tmp_path)
        assert holder(tmp_path) == {"host": None, "pid": None, "since": None}
    finally:
        end(child)


def test_a_run_is_refused_while_another_works_on_it(tmp_path):
    from toys import Toy

    with RunLock(tmp_path):
        assert forked(lambda: Toy().run(tmp_path)) == 1
    assert not (tmp_path / "ledger.sqlite").exists()
    assert json.loads((tmp_path / "run.lock").read_text())["pid"] == os.getpid()
