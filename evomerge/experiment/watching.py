"""Who watches a run, and its log."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from evomerge.experiment.resumption import Resumed
from evomerge.experiment.wire import Parts
from evomerge.files import NO_SPACE, disk_errors, disk_full
from evomerge.ledger import Ledger
from evomerge.protocols import Observer


class Watcher(Observer, Protocol):
    """An observer that also wants to know what the driver is at.

    One that somebody writes needs only those methods that it wants to be told by.
    """

    def progress(self, what: str, done: int, total: int) -> None:
        """Something that takes a while goes on: training a zoo, reading a model."""

    def warning(self, text: str) -> None:
        """Something is odd, and the run goes on."""

    def started(self, parts: Parts, ledger: Ledger) -> None:
        """The parts are there; the ledger is open."""

    def resumed(self, found: Resumed) -> None:
        """The run had been begun before: what was found, once it is replayed."""

    def phase(self, name: str) -> None:
        """`references`, `search`, `finalists` or `holdout` begins."""

    def finished(self, final: Mapping[str, Any]) -> None:
        """The run has its final table, made now or before."""

    def ended(self, why: str) -> None:
        """The session is over: `finished`, `interrupted`, or the error that ended it."""


class WarningHandler(logging.Handler):
    """Passes warnings on to those who watch."""

    def __init__(self, watchers: Sequence[Watcher]) -> None:
        super().__init__(logging.WARNING)
        self._watchers = watchers

    def emit(self, record: logging.LogRecord) -> None:
        """Tell every watcher."""
        for watcher in self._watchers:
            if (told := getattr(watcher, "warning", None)) is not None:
                told(record.getMessage())


class RunLog(logging.FileHandler):
    """Writes the run's own log; a full disk ends the run here as anywhere."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Called where a line could not be written.

        Raises:
            DiskFull: that is why.
        """
        error = sys.exc_info()[1]
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            raise disk_full(Path(self.baseFilename), len(record.getMessage())) from error
        super().handleError(record)

    def close(self) -> None:
        """Close it; what the disk had no room for is lost, and was told of."""
        with suppress(OSError):
            super().close()


@contextmanager
def run_log(path: Path, watchers: Sequence[Watcher]) -> Iterator[None]:
    """Log to the run's own file for as long as the run goes; warnings also to the watchers."""
    with disk_errors(path):
        file = RunLog(path, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s driver %(levelname)s %(message)s"))
    handlers = (file, WarningHandler(watchers))
    root = logging.getLogger("evomerge")
    for handler in handlers:
        root.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()
