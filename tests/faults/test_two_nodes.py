"""Two `ray start` processes as two nodes, the command line as a third: the whole journey of a run.

It begins on one node, which is killed; goes on on another that comes; its driver is killed; and it
is resumed by the local pool. Passes if it has the digest of a run that was local all along. Who has
not the cluster's token is not let in.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from drivers import evomerge, num_measured, processes_of
from started_nodes import TOKEN, Started
from toys import outcome_of

pytestmark = pytest.mark.slow
BUDGET = 180


@pytest.fixture
def place() -> Iterator[Path]:
    folder = tempfile.mkdtemp(prefix="em-", dir="/tmp")  # sockets want a short path
    yield Path(folder)
    shutil.rmtree(folder, ignore_errors=True)


def wait_until(true: Callable[[], bool], seconds: float) -> float:
    """Seconds that it took."""
    start = time.monotonic()
    while not true():
        assert time.monotonic() < start + seconds
        time.sleep(0.05)
    return time.monotonic() - start


def test_from_node_to_node_to_this_machine(experiment, tmp_path, place, figure, monkeypatch):
    out, local = tmp_path / "run", tmp_path / "local"
    nodes = [Started(place, 0)]
    driver = None
    try:
        nodes[0].wait()
        address = nodes[0].address
        nodes.append(Started(place, 1, address))
        nodes[1].wait()
        run = ("run", experiment, "--budget", BUDGET, "--pool", "ray", "--address", address)
        stranger = evomerge(*run, "--out", tmp_path / "stranger")
        said, _ = stranger.communicate(timeout=120)
        assert stranger.returncode == 2, said
        assert "RAY_AUTH_MODE=token" in said
        assert "Traceback" not in said
        for name, value in TOKEN.items():
            monkeypatch.setenv(name, value)
        driver = evomerge(*run, "--out", out)
        wait_until(lambda: num_measured(out) >= 20 or driver.poll() is not None, 120)
        assert driver.poll() is None, driver.communicate()[0]
        nodes[1].kill()
        before = num_measured(out)
        nodes.append(Started(place, 2, address))
        took = wait_until(lambda: num_measured(out) > before + 5, 120)
        figure("R3", "a node by `ray start` is killed, started anew, and answers", took, 60.0)
        wait_until(lambda: num_measured(out) >= before + 60, 120)
        assert driver.poll() is None
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
        assert num_measured(out) < 2 * BUDGET  # it was in the middle of it
    finally:
        for node in reversed(nodes):
            node.kill()
        if driver is not None and driver.poll() is None:
            os.killpg(driver.pid, signal.SIGKILL)
    assert not any(processes_of(node.session) for node in nodes)
    log = (out / "run.log").read_text()
    assert "has left the cluster" in log
    assert "workers die" not in log  # a node that is lost is nobody's fault
    resumed = evomerge("resume", out, "--pool", "local", "--workers", 2)
    said, _ = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, said
    whole = evomerge("run", experiment, "--out", local, "--budget", BUDGET, "--workers", 0)
    said, _ = whole.communicate(timeout=300)
    assert whole.returncode == 0, said
    assert outcome_of(out) == outcome_of(local)


def test_all_is_lost_with_the_head(experiment, tmp_path, place, figure, monkeypatch, undisturbed):
    """Ray itself would end the driver after a minute, with exit code 1 and in words of its own."""
    for name, value in TOKEN.items():
        monkeypatch.setenv(name, value)
    out, path = tmp_path / "run", tmp_path / "patient.yaml"
    path.write_text(experiment.read_text() + "pool: {kind: ray, patience_s: 5}\n")
    nodes = [Started(place, 0)]
    driver = None
    try:
        nodes[0].wait()
        nodes.append(Started(place, 1, nodes[0].address))
        nodes[1].wait()
        driver = evomerge("run", path, "--out", out, "--address", nodes[0].address)
        wait_until(lambda: num_measured(out) >= 5 or driver.poll() is not None, 120)
        assert driver.poll() is None, driver.communicate()[0]
        for node in nodes:  # workers alone would go on for a while
            node.kill()
        took = wait_until(lambda: driver.poll() is not None, 100)
        said, _ = driver.communicate()
    finally:
        for node in reversed(nodes):
            node.kill()
        if driver is not None and driver.poll() is None:
            os.killpg(driver.pid, signal.SIGKILL)
    assert driver.returncode == 7, said
    assert "the Ray cluster does not answer any more" in said
    assert "Traceback" not in said
    figure("R3", "a run whose head and nodes are lost ends (patience_s: 5)", took, 60.0)
    resumed = evomerge("resume", out, "--pool", "local", "--workers", 1)
    said, _ = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, said
    assert outcome_of(out) == undisturbed
