"""The Ray pool: one cluster for all tests; nodes and workers that fail, and what they are sent."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import toy_tasks
import yaml
from ray_clusters import Nodes
from toy_pools import PATIENCE_S, all_gone, answers, collect, make_jobs, make_spec
from toy_tasks import FileModule, ToyTask
from toys import outcome_of

from evomerge.checkpoints.open import open_checkpoint
from evomerge.errors import ConfigurationError, ModelError, NoWorkersLeft
from evomerge.experiment import doctor
from evomerge.experiment import run as runs
from evomerge.experiment.doctor import examine_cluster
from evomerge.pools import PoolConfig, WorkerSpec, make_pool, ray_cluster
from evomerge.pools.crew import Gone
from evomerge.pools.dispatch import ATTEMPTS, Dispatcher
from evomerge.pools.inline import InlinePool
from evomerge.pools.ray_cluster import Cluster
from evomerge.pools.ray_crew import RayCrew, Seats


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return toy_tasks.write_models(tmp_path_factory.mktemp("models"))


@contextmanager
def ray_pool(
    spec: WorkerSpec, log: Path | None = None, only: str = "", cpus: float = 1.0, **options: Any
) -> Iterator[Dispatcher]:
    """A pool over the session's cluster; only: the id of the one node that has workers."""

    def seats(node: Any) -> Seats:
        allowed = not only or node.id == only
        return Seats(int(node.cpus // cpus) if allowed else 0, cpus, why="not in this test")

    crew = RayCrew(Cluster("auto", 2.0), spec, seats, log=log, **options)
    pool = Dispatcher(crew)
    pool.events = []  # type: ignore[attr-defined]
    wait = crew.wait

    def listen(timeout_s: float) -> list[Any]:
        events = wait(timeout_s)
        pool.events += events  # type: ignore[attr-defined]
        return events

    crew.wait = listen  # type: ignore[method-assign]
    try:
        yield pool
    finally:
        pool.close()


def wait_for_workers(pool: Dispatcher, count: int) -> dict[str, str]:
    """Worker -> node, of those that are ready."""
    until = time.monotonic() + PATIENCE_S
    while len(pool._seats) < count and time.monotonic() < until:
        pool.collect(0.2)
    assert len(pool._seats) >= count
    return {worker: seat.node for worker, seat in pool._seats.items()}


def pids(pool: Dispatcher) -> dict[str, int]:
    return {name: member.pid for name, member in pool._crew._members.items() if member.ready}


# --- jobs -----------------------------------------------------------------------------------------


def test_workers_answer_as_the_driver_itself_and_are_replaced(ray_nodes, models, tmp_path):
    """A worker is killed at a job, and one that is idle; nobody notices it in the answers."""
    jobs = make_jobs(models, 12)
    expected = answers(collect(InlinePool(make_spec(models)), jobs))
    once = tmp_path / "once"
    log = tmp_path / "log"
    with ray_pool(make_spec(models, once=str(once)), log) as pool:
        outcomes = collect(pool, jobs)
        assert answers(outcomes) == expected
        assert len({outcome.worker for outcome in outcomes.values()}) <= 2
        first = pids(pool)
        assert len(first) == 2
        once.touch()
        assert answers(collect(pool, jobs)) == expected
        assert not once.exists()
        os.kill(next(iter(pids(pool).values())), signal.SIGKILL)
        assert answers(collect(pool, jobs)) == expected
        wait_for_workers(pool, 2)
        last = pids(pool)
        assert len(last) == 2
        assert len(set(first.values()) - set(last.values())) >= 1
    assert all_gone([*first.values(), *last.values()], 10)
    assert re.search(r"process \d+; what it has printed is in worker-\w+-\*\.err", log.read_text())


@pytest.mark.slow
def test_a_job_that_kills_is_given_up_and_no_other(ray_nodes, models):
    jobs = make_jobs(models, 20)
    harmless = answers(collect(InlinePool(make_spec(models)), jobs))
    spec = make_spec(models)
    deadly = replace(
        spec, python_tasks=spec.python_tasks | {"second": ToyTask("second", at_items=6)}
    )
    with ray_pool(deadly) as pool:
        outcomes = answers(collect(pool, jobs))
    responses, failure = outcomes.pop(5)
    assert responses == []
    assert failure.kind == "worker"
    assert f"died {ATTEMPTS} times" in failure.reason
    assert outcomes == {n: o for n, o in harmless.items() if n != 5}


@pytest.mark.slow
def test_workers_that_never_start(ray_nodes, models, tmp_path):
    log = tmp_path / "log"
    told = pytest.raises(NoWorkersLeft, match="while they start: RuntimeError: this module")
    with ray_pool(make_spec(models, "raises"), log, patience_s=0.0) as pool, told:
        collect(pool, make_jobs(models, 3))
    assert re.search(r'-0: .*File ".*toy_tasks.py"', log.read_text())  # which says where
    assert "\x1b" not in log.read_text()


# --- nodes ----------------------------------------------------------------------------------------


@pytest.fixture
def second(ray_nodes: Nodes, tmp_path: Path) -> Iterator[tuple[Any, Path]]:
    """A second node, and its working directory."""
    folder = tmp_path / "second"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        node = ray_nodes.add(1)
    yield node, folder
    if node in ray_nodes.cluster.worker_nodes:
        ray_nodes.lose(node)
    ray_nodes.wait_for(1)


def test_nodes_that_lack_a_model_or_have_another(ray_nodes, models, second, tmp_path):
    """Models are at relative paths here, so that each node finds its own; or does not."""
    node, folder = second
    home = ray_nodes.head_folder
    relative = {name: f"models/{name}.safetensors" for name in models}
    toy_tasks.write_models(home / "models")
    spec = replace(make_spec(relative), build=FileModule(models["base"]))
    jobs = make_jobs(models, 12)
    with ray_pool(spec) as pool:
        outcomes = collect(pool, jobs)  # the head's worker is there before, or goes on alone
        until = time.monotonic() + PATIENCE_S
        while not pool._refused and time.monotonic() < until:
            pool.collect(0.2)
        told = str(pool._refused[0])
        complaints = pool._crew.complaints()
    name = next(one.name for one in Cluster("auto", 1).nodes().values() if one.id == node.node_id)
    assert told.startswith(name)
    assert "models/base.safetensors" in told
    assert all(name in str(problem) for problem in complaints)
    assert not any(outcome.failure for outcome in outcomes.values())
    assert not any(outcome.worker.startswith(name) for outcome in outcomes.values())
    # Now it has them, but one is another.
    toy_tasks.write_models(folder / "models")
    shutil.copy(folder / "models" / "left.safetensors", folder / "models" / "right.safetensors")
    sums = {name: open_checkpoint(path, name=name).sha256() for name, path in models.items()}
    changed = pytest.raises(ModelError, match=f"{name} model right: .*has changed")
    with ray_pool(replace(spec, sha256=sums), only=node.node_id, patience_s=0.0) as pool, changed:
        collect(pool, jobs)


@pytest.mark.slow
def test_nodes_come_and_go(ray_nodes, models, second):
    """A node is lost with its worker at a job, and another comes: the answers stay the same."""
    node, _ = second
    jobs = make_jobs(models, 16)
    expected = answers(collect(InlinePool(make_spec(models)), jobs))
    with ray_pool(make_spec(models, sleep_s=0.5)) as pool:
        places = wait_for_workers(pool, 3)
        assert node.node_id in places.values()
        for job in jobs:
            pool.submit(job)
        outcomes = {o.job.id: o for o in pool.collect(1.0)}
        ray_nodes.lose(node)
        until = time.monotonic() + PATIENCE_S
        while len(outcomes) < len(jobs) and time.monotonic() < until:
            outcomes |= {o.job.id: o for o in pool.collect(0.5)}
        assert answers(outcomes) == expected
        gone = [event for event in pool.events if isinstance(event, Gone)]
        assert [event.why for event in gone] == ["node"]  # no death, which would be the job's
        assert set(pool._crew._nodes) == {ray_nodes.cluster.head_node.node_id}
        another = ray_nodes.add(1)
        try:
            assert another.node_id in wait_for_workers(pool, 3).values()
            assert answers(collect(pool, jobs)) == expected
        finally:
            ray_nodes.lose(another)


def test_another_version_of_evomerge_is_refused(ray_nodes, models, monkeypatch):
    monkeypatch.setattr("evomerge.pools.ray_crew.version", lambda _: "9.9.9")
    told = pytest.raises(ModelError, match=r"has evomerge .*, and the driver 9\.9\.9")
    with ray_pool(make_spec(models), patience_s=0.0) as pool, told:
        collect(pool, make_jobs(models, 2))


# --- what is sent ---------------------------------------------------------------------------------


def test_only_small_things_travel(ray_nodes, models, tmp_path, monkeypatch):
    """What is pickled is measured; and what workers log arrives, with their devices."""
    import ray

    heard: list[Any] = []
    understood = RayCrew._understood

    def listen(crew: RayCrew, worker: str, call: str, job: int, said: Any) -> Any:
        heard.append(said)
        return understood(crew, worker, call, job, said)

    monkeypatch.setattr(RayCrew, "_understood", listen)
    log = tmp_path / "log"
    jobs = make_jobs(models, 6)
    with ray_pool(make_spec(models, warn=True), log) as pool:
        collect(pool, jobs)
        sent = [pool._crew._spec_for(Seats(1, 1.0)), *map(ray.cloudpickle.dumps, jobs)]
    replies = [ray.cloudpickle.dumps(one) for one in heard]
    assert len(replies) >= 6
    assert max(map(len, sent + replies)) < 4000
    assert not any(b"torch" in pickled for pickled in sent[1:] + replies)
    said = [line for line in log.read_text().splitlines() if "the toy task first" in line]
    assert len(said) == 6
    assert all(re.search(r"-[01] WARNING .* CUDA_VISIBLE_DEVICES ''", line) for line in said)


def test_runs_share_a_cluster(ray_nodes, models):
    """Who was there first gives half of its workers to the second, and has them back later."""
    jobs = make_jobs(models, 12)
    expected = answers(collect(InlinePool(make_spec(models)), jobs))
    slow = make_spec(models, sleep_s=0.3)

    def settle(pools: list[Dispatcher], counts: list[int]) -> None:
        until = time.monotonic() + PATIENCE_S
        while [len(pool._seats) for pool in pools] != counts and time.monotonic() < until:
            for pool in pools:
                outcomes[pool] += pool.collect(0.1)
        assert [len(pool._seats) for pool in pools] == counts

    with ray_pool(slow) as first:
        outcomes: dict[Dispatcher, list[Any]] = {first: []}
        settle([first], [2])
        for job in jobs:
            first.submit(job)
        with ray_pool(slow) as second:
            outcomes[second] = []
            settle([first, second], [1, 1])
            assert answers(collect(second, jobs)) == expected
        settle([first], [2])
        while len(outcomes[first]) < len(jobs):
            outcomes[first] += first.collect(0.1)
    assert answers({outcome.job.id: outcome for outcome in outcomes[first]}) == expected


def test_a_run_without_a_share_waits_for_one(ray_nodes, models, caplog):
    """More runs than workers: the last comes to its turn, instead of ending for want of workers."""
    head = ray_nodes.cluster.head_node.node_id
    jobs = make_jobs(models, 3)
    alone = {"only": head, "cpus": 2.0, "patience_s": 0.0}
    with ray_pool(make_spec(models), **alone) as one, ray_pool(make_spec(models), **alone) as two:
        until = time.monotonic() + 20
        while sorted(p._crew.num_workers for p in (one, two)) != [0, 1]:
            assert time.monotonic() < until
            for pool in (one, two):
                pool.collect(0.2)
        first, last = (one, two) if one._crew.num_workers else (two, one)
        last.submit(jobs[0])
        for _ in range(5):
            assert last.collect(0.1) == []
        assert "other runs have all 1 workers" in caplog.text
        first._crew._shares.leave()
        first._crew._shares.of = lambda _: 0  # it is over
        outcomes: list[Any] = []
        while not outcomes and time.monotonic() < until + PATIENCE_S:
            first.collect(0.1)
            outcomes = last.collect(0.1)
    assert [outcome.failure for outcome in outcomes] == [None]


# --- clusters -------------------------------------------------------------------------------------


def test_an_address_where_nobody_is(tmp_path):
    """The command line says so, in a moment and in words."""
    free = socket.create_server(("127.0.0.1", 0))
    port = free.getsockname()[1]
    free.close()
    path = tmp_path / "x.yaml"
    quickstart = Path(__file__).parents[2] / "experiments" / "quickstart.yaml"
    content = yaml.safe_load(quickstart.read_text())
    for key in ("space", "fitness"):
        content[key] = str((quickstart.parent / content[key]).resolve())
    content["pool"] = {"kind": "ray", "address": f"127.0.0.1:{port}"}
    path.write_text(yaml.safe_dump(content))
    start = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-m", "evomerge", "run", path, "--out", tmp_path / "out"],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert ended.returncode == 2, ended.stderr
    assert f"pool.address 127.0.0.1:{port}: no Ray cluster can be joined" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert time.monotonic() - start < 60  # with all imports; Ray alone would try for minutes


@pytest.mark.parametrize("address", ["ray://127.0.0.1:1", "127.0.0.1:1", "nowhere", "ray://a:b"])
def test_addresses_are_looked_at_before_ray_waits_for_them(address):
    start = time.monotonic()
    with pytest.raises(ConfigurationError, match=f"pool.address {address}: no Ray cluster"):
        ray_cluster._knock(address)
    assert time.monotonic() - start < ray_cluster.CONNECT_S + 2


def test_auto_joins_what_ray_start_made_and_no_other(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    noted = tmp_path / "ray" / "ray_current_cluster"
    noted.parent.mkdir()
    assert ray_cluster._found() == "local"
    with socket.create_server(("127.0.0.1", 0)) as somebody:
        here = f"127.0.0.1:{somebody.getsockname()[1]}"
        noted.write_text(here)
        assert ray_cluster._found() == here
    assert ray_cluster._found() == "local"  # it was killed, and its file is still there
    monkeypatch.setenv("RAY_ADDRESS", "ray://elsewhere:1")
    assert ray_cluster._found() == "ray://elsewhere:1"


def test_without_ray_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'evomerge\[ray\]'"):
        make_pool(PoolConfig(kind="ray"), WorkerSpec(models={"a": "b"}, base="a"), None)


DRIVER = """
import os, sys
sys.path[:0] = {paths!r}
os.environ["RAY_ADDRESS"] = {address!r}
import test_ray as t, toy_tasks
from toy_pools import make_jobs, make_spec
from pathlib import Path
folder = Path({folder!r})
models = toy_tasks.write_models(folder)
import signal
signal.signal(signal.SIGTERM, lambda *_: sys.exit(77))
with t.ray_pool(make_spec(models, pids=str(folder / "pids"), sleep_s=600.0), cpus=0.5) as pool:
    assert signal.getsignal(signal.SIGTERM).__module__ == "__main__"
    for job in make_jobs(models, 2):
        pool.submit(job)
    while True:
        pool.collect(0.5)
"""


@pytest.mark.slow
def test_several_drivers_share_a_cluster_and_one_is_killed(ray_nodes, models, tmp_path):
    """No worker of the killed one is left after 10 s, and the other goes on."""
    (tmp_path / "pids").mkdir()
    here = Path(__file__).parent
    script = tmp_path / "driver.py"
    paths = [str(here), str(here.parent)]
    text = DRIVER.format(paths=paths, address=ray_nodes.address, folder=str(tmp_path))
    script.write_text(text)
    driver = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE)
    try:
        with ray_pool(make_spec(models, sleep_s=0.2), cpus=1.0, most=1) as pool:
            wait_for_workers(pool, 1)
            until = time.monotonic() + PATIENCE_S
            while not list((tmp_path / "pids").iterdir()) and time.monotonic() < until:
                assert len(collect(pool, make_jobs(models, 2))) == 2
            driver.kill()
            theirs = [int(path.name) for path in (tmp_path / "pids").iterdir()]
            assert theirs
            assert all_gone(theirs, 10)
            assert len(collect(pool, make_jobs(models, 4))) == 4
    finally:
        driver.kill()
        _, errors = driver.communicate()
    assert b"Traceback" not in errors, errors.decode()


# --- whole runs -----------------------------------------------------------------------------------


def test_the_doctor_asks_every_node(ray_nodes, models, second, monkeypatch):
    """One of the nodes has no models at the paths that the experiment names."""
    node, _ = second
    toy_tasks.write_models(ray_nodes.head_folder / "models")
    relative = {name: f"models/{name}.safetensors" for name in models}
    config, spec = PoolConfig(kind="ray"), WorkerSpec(models=relative, base="base")
    found = {one.name: one for one in examine_cluster(config, spec)}
    names = {one.id: one.name for one in Cluster("auto", 1).nodes().values()}
    theirs = found.pop(names[node.node_id])
    (ours,) = found.values()
    assert (ours.workers, ours.problems) == (2, ())
    assert ours.findings["models"].startswith("3 of 3")
    assert f"evomerge {version('evomerge')}" in ours.findings["python"]
    assert theirs.workers == 0
    assert any("models/base.safetensors" in problem for problem in theirs.problems)
    assert theirs.findings["workers"].startswith("1 on cpu")
    monkeypatch.setattr(doctor, "_own_version", lambda: "9.9.9")
    told = [problem for one in examine_cluster(config, None) for problem in one.problems]
    assert len(told) == 2
    assert all("and 9.9.9 here: install the same" in problem for problem in told)


@pytest.mark.slow
def test_the_quickstart_is_the_same_on_ray(ray_nodes, tiny_zoo, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "write_pictures", lambda *_: None)
    config = runs.read_experiment(Path(__file__).parents[2] / "experiments" / "quickstart.yaml")
    outcomes = [
        outcome_of(runs.run_experiment(config.model_copy(update={"pool": pool}), tmp_path / name))
        for name, pool in {
            "local": PoolConfig(workers=2),
            "ray": PoolConfig(kind="ray", address=ray_nodes.address),
        }.items()
    ]
    assert outcomes[0] == outcomes[1]
