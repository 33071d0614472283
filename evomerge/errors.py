"""Everything that can go wrong for a user, as one tree.

    EvomergeError                 exit code
    ├── ConfigurationError        2    a file or an argument says something impossible
    ├── ModelError                3    a model cannot be read, or does not fit the others
    ├── RunLocked                 4    another driver works on the run folder
    ├── LedgerDamaged             5    the ledger is unreadable, newer, or contradicts the replay
    ├── DiskFull                  6
    ├── NoWorkersLeft             7    the pool cannot measure anything any more
    └── Interrupted               130 / 143   SIGINT / SIGTERM; the run can be resumed

    CandidateError                -    one candidate cannot be merged or measured: a status with a
                                       reason, never the end of a search

An error lists *all* the problems that were found, each with its place, what was expected, what was
got, and the nearest valid name.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: where it is, what it is, and what would be right."""

    where: str
    what: str
    hint: str = ""

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text} ({self.hint})" if self.hint else text


class EvomergeError(Exception):
    """The root of all errors that a user can cause or mend."""

    exit_code = 1

    def __init__(self, problems: str | Problem | Iterable[Problem]) -> None:
        if isinstance(problems, str):
            problems = [Problem("", problems)]
        elif isinstance(problems, Problem):
            problems = [problems]
        self.problems: tuple[Problem, ...] = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class ConfigurationError(EvomergeError):
    """A file or an argument says something that cannot be done."""

    exit_code = 2


class ModelError(EvomergeError):
    """A model cannot be read, or does not fit the others."""

    exit_code = 3


class RunLocked(EvomergeError):
    """Another driver works on the same run folder."""

    exit_code = 4


class LedgerDamaged(EvomergeError):
    """The ledger cannot be read, comes from a newer version, or contradicts its replay."""

    exit_code = 5


class DiskFull(EvomergeError):
    """A write did not fit on the disk; what was committed before is intact."""

    exit_code = 6


class NoWorkersLeft(EvomergeError):
    """The pool can no longer measure anything."""

    exit_code = 7


class Interrupted(EvomergeError):
    """A signal ended the run at a point from which it can be resumed."""

    def __init__(self, signal_number: int) -> None:
        self.exit_code = 128 + signal_number
        super().__init__("interrupted")


class CandidateError(Exception):
    """One candidate cannot be merged or measured; the message is the reason that is recorded."""


def _closest(name: str, names: Sequence[str]) -> list[str]:
    """The name that is most alike, or begins alike, if there is one."""
    alike = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    begins = [other for other in names if len(name) > 3 and other.startswith(name[:3])]
    return alike or begins[:1] or difflib.get_close_matches(name, names, n=1, cutoff=0.5)


def nearest(name: str, valid: Iterable[str], *, only_close: bool = False) -> str:
    """A hint that names the closest valid spelling and then all of them, or the closest alone."""
    names = sorted(valid)
    if not names:
        return ""
    close = _closest(name, names)
    if only_close:
        return f"did you mean {close[0]!r}?" if close else ""
    shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    return f"did you mean {close[0]!r}? valid: {shown}" if close else f"valid: {shown}"
