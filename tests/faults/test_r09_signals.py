"""R9: SIGINT or SIGTERM at any instant.

Passes if: the driver ends within 10 s with exit code 130 or 143 and prints the command that resumes
the run; a second signal ends it within 1 s; no process of it lives 5 s later; and the run that is
resumed equals an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toys
from drivers import evomerge, num_measured, processes_of
from toys import Toy, forked, outcome_of, start_fork

from evomerge.errors import EvomergeError, Interrupted
from evomerge.experiment import run as runs
from evomerge.lock import holder
from evomerge.pools import PoolConfig
from evomerge.signals import SIGNALS, signals

pytestmark = pytest.mark.usefixtures("no_pictures")


def driver_of(toy: Toy, out: Path) -> Callable[[], None]:
    """A run that ends with the exit code that its errors have, and hears signals to its end."""

    def run() -> None:
        try:
            with signals(out):
                toy.run(out)
                os._exit(0)
        except EvomergeError as error:
            os._exit(error.exit_code)

    return run


def ended_by(child: int) -> tuple[int, float]:
    """The exit code of a child, and the seconds until it ended; after 30 it is killed."""
    start = time.monotonic()
    while (status := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() - start > 30:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)
    return os.waitstatus_to_exitcode(status[1]), time.monotonic() - start


@pytest.mark.parametrize("count", [6, pytest.param(25, marks=pytest.mark.slow)])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_at_any_instant(number, count, tmp_path, uninterrupted, figure):
    """Of a run that takes a second or two; what has ended by then is not hit."""
    toy = Toy("nsga2", "racing")
    expected = uninterrupted(toy)
    generator = np.random.default_rng([number, 9])
    slowest, hits = 0.0, 0
    for trial in range(count):
        out = tmp_path / str(trial)
        for _ in range(2):
            child = start_fork(driver_of(toy, out))
            if begun(out, child):
                time.sleep(float(generator.uniform(0, 0.4)))
                os.kill(child, number)
            code, seconds = ended_by(child)
            assert code in (0, 128 + number)
            hits += code != 0
            slowest = max(slowest, seconds)
        toy.run(out)
        assert outcome_of(out) == expected
        assert [p.name for p in out.iterdir() if p.name.startswith(".")] == []
    figure("R9", "from a signal to the end", slowest, 10.0)
    assert 2 * hits > count  # a quick machine is done before some of them


def last_words(driver: subprocess.Popen[str], figure: Any) -> str:
    """What a driver still prints after a signal; it and all that it has started end in time."""
    start = time.monotonic()
    said, _ = driver.communicate(timeout=30)
    figure("R9", "from a signal to the end", time.monotonic() - start, 10.0)
    start = time.monotonic()
    while processes_of(driver.pid) and time.monotonic() < start + 10:
        time.sleep(0.05)
    figure("R9", "from the end to that of the last process", time.monotonic() - start, 5.0)
    return said


def begun(out: Path, child: int) -> bool:
    """Wait until a driver has taken the lock, and so its signals; False if it ended before."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        facts = holder(out) if (out / "run.lock").exists() else None
        if facts is not None and facts["pid"] == child:
            return True
        time.sleep(0.002)
    return False


class Stuck:
    """A fitness that hears no signal when it is called for the tenth time: in C, or on purpose."""

    def __init__(self, how: str, mark: Path) -> None:
        self._how, self._mark, self._calls = how, mark, 0

    def __call__(self, state: Any) -> Any:
        self._calls += 1
        if self._calls == 10:
            self._mark.touch()
            if self._how == "computes":
                hashlib.pbkdf2_hmac("sha512", b"", b"", 200_000_000)  # minutes, and no instruction
            while True:
                with contextlib.suppress(BaseException):
                    time.sleep(60)
        return toys.fitness(state)


@pytest.mark.parametrize("how", ["computes", "swallows"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("twice", [pytest.param(False, marks=pytest.mark.slow), True])
def test_who_does_not_listen(how, number, twice, tmp_path, capfd, figure):
    """The signal ends what will not be unwound; a second one does so at once."""
    mark, out = tmp_path / "mark", tmp_path / "run"
    child = start_fork(driver_of(Toy(fitness=Stuck(how, mark)), out))
    while not mark.exists():
        time.sleep(0.01)
    time.sleep(0.1)
    start = time.monotonic()
    os.kill(child, number)
    if twice:
        time.sleep(0.3)
        start = time.monotonic()
        os.kill(child, number)
    code, _ = ended_by(child)
    seconds = time.monotonic() - start
    assert code == 128 + number
    if twice:
        figure("R9", "from a second signal to the end", seconds, 1.0)
    else:
        figure("R9", "from a signal that nobody hears to the end", seconds, 10.0)
        assert f"evomerge resume {out}" in capfd.readouterr().err
    Toy().open(out)  # it can be read


def test_a_fork_of_the_driver_tells_it_nothing(tmp_path):
    """A data loader ends its own processes by SIGTERM: no reason to end the driver."""

    def run() -> None:
        with signals():
            child = os.fork()
            if child == 0:
                time.sleep(30)
                os._exit(0)
            time.sleep(0.2)
            os.kill(child, signal.SIGTERM)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            time.sleep(0.3)
            os._exit(0 if code == -signal.SIGTERM else 9)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evomerge.signals.UNWIND_S", 0.05)
        assert forked(run) == 0


def test_what_was_there_before_is_there_again():
    before = [signal.getsignal(number) for number in SIGNALS]
    with signals(), signals():
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before
    for number in SIGNALS:
        with pytest.raises(Interrupted) as caught, signals():
            signal.raise_signal(number)
        assert caught.value.exit_code == 128 + number
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert not [thread for thread in threading.enumerate() if thread.name == "signals"]


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
        pytest.param(signal.SIGTERM, 0, marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_a_run_that_can_be_resumed(
    number, workers, experiment, tmp_path, undisturbed, figure
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
        said = last_words(driver, figure)
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


@pytest.mark.parametrize(
    "after_s",
    [0.4, 2.0, *(pytest.param(0.8 * n, marks=pytest.mark.slow) for n in range(1, 9))],
)
@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM]
)
def test_while_a_driver_starts(number, after_s, experiment, tmp_path, figure):
    """Imports, models, workers: whatever it is at."""
    out = tmp_path / "run"
    driver = evomerge("run", experiment, "--out", out, "--workers", 2)
    try:
        time.sleep(after_s)
        driver.send_signal(number)
        said = last_words(driver, figure)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(driver.pid, signal.SIGKILL)
    assert "Traceback" not in said
    if "Run folder: " in said:  # it was done, and at most Python itself was still to end
        assert driver.returncode in (0, 128 + number, -number)
        return
    assert driver.returncode == 128 + number, said
    assert (f"evomerge resume {out}" in said) == (out / runs.EXPERIMENT).exists()
