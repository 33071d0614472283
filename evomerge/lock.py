"""One driver a run folder: a lock that the operating system drops when its holder dies."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from evomerge.errors import RunLocked

PATIENCE_S = 0.5  # a reader (`holder`) has the lock for an instant, a new holder needs one to sign


class RunLock:
    """An exclusive lock on a run folder; the file names who holds it and since when.

    Raises:
        RunLocked: another process holds it.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "run.lock"
        # Opened without truncation: until the lock is ours, the text belongs to its holder.
        self._file = os.fdopen(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644), "r+")
        until = time.monotonic() + PATIENCE_S
        while not self._taken():
            if time.monotonic() > until:
                self._file.seek(0)
                facts = _facts(self._file.read())
                self._file.close()
                raise RunLocked(f"{folder}: {_described(facts)} works on this run")
            time.sleep(0.02)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        facts = {"host": socket.gethostname(), "pid": os.getpid(), "since": now}
        try:
            self._file.truncate(0)
            # Not through the file's buffer: what a full disk refuses would be written at closing.
            os.write(self._file.fileno(), json.dumps(facts).encode())
        except OSError:
            self._file.close()
            raise

    def _taken(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        """Let the next driver in. The file stays: removing it would race with a waiting driver."""
        self._file.close()

    def __enter__(self) -> RunLock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.release()


def _facts(text: str) -> dict[str, object]:
    """What a holder wrote; empty if it has not signed yet."""
    try:
        facts = json.loads(text)
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}


def _described(facts: Mapping[str, object]) -> str:
    if not all(facts.get(key) for key in ("pid", "host", "since")):
        return "another process"
    return f"process {facts['pid']} on {facts['host']} (since {facts['since']})"


def refuse_locked(folder: Path) -> None:
    """Say at once that somebody works on a run, before anything heavy is imported.

    Raises:
        RunLocked: as `RunLock` would.
    """
    if (facts := holder(folder)) is not None:
        raise RunLocked(f"{folder}: {_described(facts)} works on this run")


def holder(folder: Path) -> dict[str, object] | None:
    """Who works on a run folder now; None if nobody does."""
    path = folder / "run.lock"
    try:
        with path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                # A holder that has not signed yet is there all the same.
                return _facts(file.read()) or dict.fromkeys(("host", "pid", "since"))
    except FileNotFoundError:
        pass
    return None
