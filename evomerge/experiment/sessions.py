"""Sessions of a run: where and with what drivers worked on it, and how they ended."""

from __future__ import annotations

import os
import platform
import socket
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from evomerge import installed
from evomerge.errors import EvomergeError
from evomerge.ledger import Ledger
from evomerge.measurement import notify

Facts = Mapping[str, Any]

RECORDED_VERSIONS = (
    *("evomerge", "torch", "transformers", "lm_eval", "numpy", "scipy"),
    *("cma", "cmaes", "pymoo", "optuna", "ribs"),  # what searchers are built on
)
ELSEWHERE = ("host", "pid", "pool", "budget")  # of a session's facts; they change no result


def session_facts() -> dict[str, Any]:
    """Where and with what the driver runs: what a replay that drifts is explained by."""
    import torch

    from evomerge.fitness.likelihoods import REVISION

    versions = {}
    for package in RECORDED_VERSIONS:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "absent"
    versions |= dict(installed.versions())  # their operators and searchers
    return {
        "versions": versions,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),  # what torch's kernels use
        "scoring": REVISION,
        "host": socket.gethostname(),
        "pid": os.getpid(),
    }


def processor() -> str:
    """The processor's model, as far as the system tells."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor()


@contextmanager
def noted_end(ledger: Ledger, watchers: Sequence[Any] = ()) -> Iterator[None]:
    """Note in the ledger how a session ends, and tell it; one that is killed notes nothing."""
    why = "finished"
    try:
        yield
    except EvomergeError as error:
        why = "; ".join(map(str, error.problems))
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise
    except BaseException:
        why = "interrupted"
        raise
    finally:
        with suppress(EvomergeError, sqlite3.Error):  # the disk may be what the session ended by
            ledger.note("ended", {"why": why})
        notify(watchers, "ended", why)


@dataclass
class Session:
    """One driver's work on a run.

    facts: as it noted them. jobs, items: whose answers it committed. told: candidates.
    ended: how, as far as it could say; empty for one that was killed, or wrote an older ledger.
    """

    facts: Facts
    jobs: int = 0
    items: int = 0
    told: set[int] = field(default_factory=set)
    ended: str = ""

    def __str__(self) -> str:
        how = f"; {self.ended}" if self.ended else "; its end is not recorded: killed"
        host = self.facts.get("host", "an unknown host")
        return f"{host} ({len(self.told):,} candidates, {self.items:,} item evaluations{how})"


def sessions_of(ledger: Ledger) -> list[Session]:
    """All sessions that are recorded, in order."""
    found: list[Session] = []
    seen: set[int] = set()
    for kind, _, data in ledger.events("session", "measured", "told", "ended"):
        if kind == "session":
            found.append(Session(data))
        elif not found:
            continue  # written by hand: a driver notes its session first
        elif kind == "measured":
            found[-1].jobs += 1
            found[-1].items += data["num_items"] if data["failure"] is None else 0
        elif kind == "told":
            new = {entry["id"] for entry in data} - seen
            found[-1].told |= new
            seen |= new
        else:
            found[-1].ended = data["why"]
    return found


def changes(earlier: Sequence[Facts], now: Facts) -> list[str]:
    """What an answer or a genome may depend on and is not as in earlier sessions, in words.

    Facts that older sessions did not note are left out.
    """
    found = []
    current = _flat(now)
    recorded = [_flat(facts) for facts in earlier]
    for key, value in current.items():
        others = [facts[key] for facts in recorded if facts.get(key, value) != value]
        if key not in ELSEWHERE and others:
            was = " or ".join(str(other) for other in dict.fromkeys(others))
            found.append(f"{key} was {was}, is {value}")
    return found


def _flat(facts: Facts) -> dict[str, Any]:
    """The versions beside the other facts."""
    rest = {key: value for key, value in facts.items() if key != "versions"}
    return {"scoring": 1, **facts.get("versions", {}), **rest}  # the first revision noted none
