"""SIGINT and SIGTERM: the first unwinds what goes on, the second ends the process at once.

Python calls its handlers between two of its instructions. A library that computes for a minute, or
a callback that swallows every exception, would keep a signal waiting; so the system tells a thread
of signals as well, which ends the process when unwinding takes too long. What was committed to a
ledger is safe at any instant, and workers end with their driver.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from evomerge.errors import Interrupted
from evomerge.files import EXPERIMENT

SIGNALS = (signal.SIGINT, signal.SIGTERM)
UNWIND_S = 8.0  # how long the first signal may take
WITH_PARENT = "EVOMERGE_END_WITH_PARENT"  # set by who starts a driver, and holds its standard input

_folders: list[Path | None] = []  # of the runs that are going on


class _Signal(BaseException):
    """A signal on its way out; no Exception, so that nobody takes it for a candidate's failure."""

    def __init__(self, number: int) -> None:
        self.number = number


@contextmanager
def signals(folder: Path | None = None) -> Iterator[None]:
    """Turn SIGINT and SIGTERM into Interrupted; may be entered again inside itself.

    folder: of a run; where the process has to be ended before it is unwound, standard error tells
        how to go on with it.

    Raises:
        Interrupted: one of them came.
    """
    _folders.append(folder)
    try:
        if _handled() or threading.current_thread() is not threading.main_thread():
            yield  # by whoever handles them already
        else:
            with _handlers():
                yield
    except _Signal as caught:
        raise Interrupted(caught.number) from None
    finally:
        _folders.pop()


def go_on(folder: Path) -> str:
    """What to tell somebody who has ended a run."""
    if not (folder / EXPERIMENT).exists():
        return "interrupted; nothing has begun"
    return f"interrupted; nothing is lost. Go on with: evomerge resume {folder}"


def _handled() -> bool:
    return signal.getsignal(signal.SIGINT) in (_interrupt, _ignore)


def _interrupt(number: int, _frame: Any) -> None:
    for each in SIGNALS:
        signal.signal(each, _ignore)  # the thread sees to the second
    raise _Signal(number)


def _ignore(_number: int, _frame: Any) -> None:
    """A handler, and not SIG_IGN, which programs that are started now would inherit."""


@contextmanager
def _handlers() -> Iterator[None]:
    # A pair of sockets, because the system may only be given what does not block.
    ours, systems = socket.socketpair()
    systems.setblocking(False)
    watcher = threading.Thread(target=_watch, args=(ours,), daemon=True, name="signals")
    watcher.start()
    wakeup = signal.set_wakeup_fd(systems.fileno(), warn_on_full_buffer=False)
    previous = {number: signal.signal(number, _interrupt) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        systems.close()  # the watcher reads the end of it, and leaves
        watcher.join()
        ours.close()


def end_with_parent() -> None:
    """Take the end of standard input for a SIGTERM: whoever held the other end is gone."""

    def wait() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True, name="parent").start()


def _in_child() -> None:
    """A process that is forked has no watcher, and must not tell ours of its own signals."""
    if _handled():
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


os.register_at_fork(after_in_child=_in_child)


def _watch(told: socket.socket) -> None:
    """Wait for a signal, then for a second one or the time to be over; then end the process."""
    came = 0
    while True:
        try:
            numbers = told.recv(16)
        except TimeoutError:
            break
        if not numbers:
            return
        if mine := [number for number in numbers if number in SIGNALS]:
            if came or len(mine) > 1:
                os._exit(128 + mine[-1])
            came = mine[0]
            told.settimeout(UNWIND_S)
    with suppress(OSError):
        for folder in filter(None, _folders):
            sys.stderr.write(f"\n{go_on(folder)}\n")
        sys.stderr.flush()
    os._exit(128 + came)
