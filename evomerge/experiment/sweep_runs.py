"""The runs of a sweep, each a driver process of its own, some at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from evomerge.errors import EvomergeError
from evomerge.experiment.config import read_experiment
from evomerge.experiment.sweep import PlannedRun
from evomerge.files import EXPERIMENT, write_text
from evomerge.ledger import LEDGER
from evomerge.lock import RunLock
from evomerge.pools import PoolConfig
from evomerge.results.sweep import log_of
from evomerge.results.watch import status
from evomerge.signals import WITH_PARENT, signals

LOOK_S = 0.2  # between two looks at the children
# After the first signal, and after the second; then they are killed. In all less than `signals`
# gives this process.
ENDS_IN_S = (5.0, 1.5)


@dataclass
class _Child:
    run: PlannedRun
    process: subprocess.Popen[bytes]
    log: IO[bytes]

    def close(self) -> None:
        """Let go of what the process had."""
        self.log.close()
        if self.process.stdin is not None:
            self.process.stdin.close()


Look = Callable[[Mapping[str, int | None]], None]


def run_sweep(
    runs: Sequence[PlannedRun],
    folder: Path,
    *,
    jobs: int = 1,
    arguments: Sequence[str] = (),
    look: Look = lambda _: None,
) -> dict[str, int]:
    """Run what is not finished; a run that fails stops no other.

    Args:
        runs: what there is to run; each is put into the folder under its name.
        folder: of the sweep.
        jobs: runs that go on at once.
        arguments: more of them for each driver's command line.
        look: called again and again with run -> None while it runs, its exit code once it is over.

    Returns:
        Run -> exit code, 0 for those that were finished before.

    Raises:
        Interrupted: SIGINT or SIGTERM; no child is left, and the same call goes on.
        RunLocked: somebody else works on the sweep.
    """
    folder.mkdir(parents=True, exist_ok=True)
    codes: dict[str, int] = {}
    children: list[_Child] = []
    with RunLock(folder), signals():
        waiting = deque(run for run in runs if not is_done(run, folder / run.name))
        codes = {run.name: 0 for run in runs if run not in waiting}
        try:
            while waiting or children:
                while waiting and len(children) < jobs:
                    children.append(_start(waiting.popleft(), folder, arguments))
                for child in [c for c in children if c.process.poll() is not None]:
                    children.remove(child)
                    child.close()
                    codes[child.run.name] = child.process.returncode
                look({**codes, **{child.run.name: None for child in children}})
                time.sleep(LOOK_S)
        finally:
            _stop(children)
    return codes


def is_done(run: PlannedRun, folder: Path) -> bool:
    """Whether the run is finished with this very experiment; where it is measured does not count.

    What cannot be read is not done: its driver says why.
    """
    if not (folder / LEDGER).exists():
        return False
    elsewhere = {"pool": PoolConfig(), "name": "", "allow_code": False, "trackers": ()}
    try:
        before = read_experiment(folder / EXPERIMENT)
        same = before.model_copy(update=elsewhere) == run.config.model_copy(update=elsewhere)
        return same and status(folder)["state"] == "finished"
    except EvomergeError:
        return False


def is_of(run: PlannedRun, folder: Path) -> bool:
    """Whether what is in a run's folder is of this experiment, wherever its models are now."""
    try:
        before = read_experiment(folder / EXPERIMENT)
        said = [
            (config.model_copy(update={"allow_code": False}).identity(), config.budget)
            for config in (before, run.config)
        ]
    except (EvomergeError, OSError):
        return False
    return said[0] == said[1]


def _start(run: PlannedRun, folder: Path, arguments: Sequence[str]) -> _Child:
    out = folder / run.name
    experiment = folder / f"{run.name}.yaml"
    write_text(experiment, run.config.to_yaml())
    command = [sys.executable, "-m", "evomerge", "run", str(experiment), "--out", str(out)]
    log = log_of(out).open("wb")
    process = subprocess.Popen(
        [*command, *arguments],
        stdin=subprocess.PIPE,  # whose end tells the driver that this process is gone
        stdout=log,
        stderr=subprocess.STDOUT,
        env=os.environ | {WITH_PARENT: "1"},
        start_new_session=True,  # Ctrl-C on a terminal reaches them once: through `_stop`
    )
    return _Child(run, process, log)


def _stop(children: Sequence[_Child]) -> None:
    """End the children in time: politely, at once, by force."""
    for number, patience_s in zip((signal.SIGINT, signal.SIGTERM), ENDS_IN_S, strict=True):
        for child in children:
            if child.process.poll() is None:
                child.process.send_signal(number)
        until = time.monotonic() + patience_s
        while time.monotonic() < until and any(c.process.poll() is None for c in children):
            time.sleep(0.02)
    for child in children:
        with suppress(ProcessLookupError):  # its workers as well
            os.killpg(child.process.pid, signal.SIGKILL)
        child.process.wait()
        child.close()
