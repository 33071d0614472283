"""Named places where a test can kill the process, to prove that nothing is lost there.

`EVOMERGE_FAILPOINT=tell.before_commit` kills the driver, as `kill -9` would, when it first comes
to that place; `tell.before_commit:3` when it comes there for the third time. Unset, it costs one
look-up.
"""

from __future__ import annotations

import os
import signal
from collections import Counter

FAILPOINTS = (
    "ask.before_commit",
    "ask.after_commit",
    "result.before_commit",
    "result.after_commit",
    "results.before_commit",
    "results.after_commit",
    "tell.before_commit",
    "tell.after_commit",
    "export.shard",
    "export.before_index",
)

_seen: Counter[str] = Counter()


def failpoint(name: str) -> None:
    """Die here if the environment says so."""
    wanted = os.environ.get("EVOMERGE_FAILPOINT")
    if not wanted:
        return
    place, _, count = wanted.partition(":")
    _seen[name] += 1
    if place == name and _seen[name] == int(count or 1):
        os.kill(os.getpid(), signal.SIGKILL)
