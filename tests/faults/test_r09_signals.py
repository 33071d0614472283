"""R9: SIGINT or SIGTERM at any instant.

Passes if: the driver ends within 10 s with exit code 130 or 143 and prints the command that resumes
the run; a second signal ends it within 1 s; no process of it lives 5 s later; and the run that is
resumed equals an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import Any

import pytest
import toys
from drivers import evomerge, num_measured, processes_of
from toys import Toy, forked, outcome_of

from evomerge.errors import Interrupted
from evomerge.experiment import run as runs
from evomerge.pools import PoolConfig

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_of_a_measurement_is_nobodys_failure(
    number, tmp_path, uninterrupted
):
    """A user's function may catch every Exception; the signal passes all the same."""

    def run() -> None:
        try:
            Toy(fitness=Interrupted40(number)).run(tmp_path)
        except Interrupted as error:
            os._exit(error.exit_code)

    assert forked(run) == 128 + number
    toy = Toy(fitness=Interrupted40())
    toy.run(tmp_path)
    assert outcome_of(tmp_path) == uninterrupted(toy)


class Interrupted40:
    """The toy fitness; a signal comes while it is called for the fortieth time."""

    def __init__(self, number: int = 0) -> None:
        self._number = number
        self._calls = 0

    def __repr__(self) -> str:
        return "Interrupted40"

    def __call__(self, state: Any) -> Any:
        self._calls += 1
        if self._number and self._calls == 40:
            try:
                os.kill(os.getpid(), self._number)
                time.sleep(5)
            except Exception:
                return {}
        return toys.fitness(state)


@pytest.mark.parametrize(
    ("number", "workers"),
    [
        (signal.SIGINT, 2),
        pytest.param(signal.SIGTERM, 2, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 0, marks=pytest.mark.slow),
        (signal.SIGTERM, 0),
    ],
)
def test_a_signal_ends_a_run_that_can_be_resumed(
    number, workers, experiment, tmp_path, undisturbed
):
    out = tmp_path / "run"
    driver = evomerge("run", experiment, "--out", out, "--workers", workers)
    try:
        until = time.monotonic() + 60
        while num_measured(out) < 35 and time.monotonic() < until and driver.poll() is None:
            time.sleep(0.05)
        if number == signal.SIGINT:
            os.killpg(driver.pid, number)  # Ctrl-C reaches the workers as well
        else:
            driver.send_signal(number)
        said, _ = driver.communicate(timeout=10)
        time.sleep(0 if not processes_of(driver.pid) else 5)
        assert processes_of(driver.pid) == []
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(driver.pid, signal.SIGKILL)
    assert driver.returncode == 128 + number
    assert f"evomerge resume {out}" in said
    assert "Traceback" not in said
    assert "leaked" not in said
    assert 35 <= num_measured(out) < 60
    config = runs.read_run_config(out)
    inline = config.model_copy(update={"pool": PoolConfig(workers=0)})
    runs.run_experiment(inline, out)
    assert outcome_of(out) == undisturbed
