"""Work done in a forked child that is watched: what it opens, how long it takes, how it ends."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WATCHED = ("open", "os.listdir", "os.scandir", "subprocess.Popen", "os.system", "os.exec")


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    result: what its work returned; None if it was killed.
    signal: what killed it; SIGALRM means that it took too long.
    outside: what it opened or listed, or ran, that it was not allowed to.
    """

    result: Any
    signal: int
    outside: tuple[str, ...]
    cpu_s: float  # not the clock's: the machine may be busy with something else
    grown_kb: int


class Watch:
    """Notes every file that is opened outside the allowed folders; it cannot be taken off again."""

    def __init__(self, allowed: Sequence[Path]) -> None:
        python = [sys.prefix, sys.base_prefix, str(Path(__file__).parents[1] / "evomerge")]
        # Libraries look at the kernel's list of processors when they are first used.
        self._always = [os.path.realpath(path) for path in (*python, "/proc/stat")]
        self.allow(allowed)
        self.outside: list[str] = []
        sys.addaudithook(self._note)

    def allow(self, folders: Sequence[Path]) -> None:
        """From now on these, and Python's own, may be read."""
        self._allowed = [*self._always, *(os.path.realpath(folder) for folder in folders)]

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in WATCHED:
            return
        path = arguments[0] if arguments else ""
        if isinstance(path, int):  # a descriptor that is open already
            return
        if event in ("open", "os.listdir", "os.scandir"):
            real = os.path.realpath(os.fsdecode(path) if path is not None else ".")
            if any(real == start or real.startswith(start + os.sep) for start in self._allowed):
                return
        self.outside.append(f"{event} {path}")


def contained(
    work: Callable[[Watch], Any], allowed: Sequence[Path], *, limit_s: float | None = 5.0
) -> Ended:
    """Do the work in a child; what it returns must be JSON.

    The peak is the child's own: its memory is counted from the fork on.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)  # a hang in C ends too
            signal.setitimer(signal.ITIMER_REAL, limit_s or 0)
            before, start = _resident_kb(), time.process_time()
            watch = Watch(allowed)
            result = work(watch)
            spent = time.process_time() - start
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            told = {"result": result, "outside": watch.outside, "cpu_s": spent}
            with os.fdopen(writer, "w") as stream:
                json.dump(told | {"grown_kb": max(0, peak - before)}, stream)
            os._exit(0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as stream:
        text = stream.read()
    status = os.waitpid(child, 0)[1]
    killed_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if not text:
        return Ended(None, killed_by, (), 0.0, 0)
    told = json.loads(text)
    return Ended(told["result"], killed_by, tuple(told["outside"]), told["cpu_s"], told["grown_kb"])


def _resident_kb() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024
