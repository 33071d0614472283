"""R3: the head of a Ray cluster is lost, and with it all that a driver elsewhere knows of it.

Passes if the driver, on a node of its own or a client of Ray (ray://), ends with exit code 7 and
without a traceback before Ray ends it, and the run is resumed to that of an undisturbed one.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from drivers import evomerge, num_measured
from started_nodes import TOKEN, Started
from toys import outcome_of

pytestmark = pytest.mark.slow
BUDGET = 120


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[Started]:
    folder = tempfile.mkdtemp(prefix="em-", dir="/tmp")  # sockets want a short path
    for name, value in TOKEN.items():
        monkeypatch.setenv(name, value)
    node = Started(Path(folder), 2)
    try:
        node.wait()
        yield node
    finally:
        node.kill()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("way", ["address", "client_address"])
def test_a_cluster_is_lost(way, head, experiment, tmp_path, figure):
    out, local = tmp_path / "run", tmp_path / "local"
    address = getattr(head, way)
    run = ("run", experiment, "--budget", BUDGET)
    driver = evomerge(*run, "--pool", "ray", "--address", address, "--out", out)
    try:
        until = time.monotonic() + 120
        while num_measured(out) < 30 and driver.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        assert driver.poll() is None, driver.communicate()[0]
        assert 30 <= num_measured(out) < BUDGET
        head.kill()
        start = time.monotonic()
        said, _ = driver.communicate(timeout=150)
        figure("R3", "the driver of a lost cluster ends", time.monotonic() - start, 55.0)
    finally:
        if driver.poll() is None:
            os.killpg(driver.pid, signal.SIGKILL)
    assert driver.returncode == 7, said
    assert f"pool.address {address}: the Ray cluster does not answer any more" in said
    assert "Traceback" not in said
    resumed = evomerge("resume", out, "--pool", "local", "--workers", 1)
    said, _ = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, said
    whole = evomerge(*run, "--out", local, "--workers", 0)
    said, _ = whole.communicate(timeout=300)
    assert whole.returncode == 0, said
    assert outcome_of(out) == outcome_of(local)
