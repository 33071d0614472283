"""From `pool:` and what a machine has to workers: how many, on what, and why not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

import evomerge.pools as pools
from evomerge.errors import ConfigurationError
from evomerge.pools import PoolConfig, WorkerSpec, make_pool, placement_here, seats_of
from evomerge.pools.placement import Demand, Gpu, Node, Placement, gpus_of
from evomerge.pools.ray_cluster import ClusterNode

GB = 10**9
SPEC = WorkerSpec(models={"base": "a"}, base="base", demand=Demand(4 * GB))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What a local pool was started with."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(pools, "local_pool", lambda *args: calls.append(args))
    return calls


def machine(monkeypatch: pytest.MonkeyPatch, node: Node) -> None:
    def this_node(*, gpus: bool = True) -> Node:
        return node if gpus else replace(node, gpus=())

    monkeypatch.setattr(pools, "this_node", this_node)


@pytest.mark.parametrize(
    ("memory_gb", "workers"),
    [(100, 8), (20, 4), (10, 2), (6, 1)],  # 4.5 GB each, of nine tenths
)
def test_memory_and_processors_bound_the_workers(monkeypatch, started, memory_gb, workers):
    machine(monkeypatch, Node("here", 8, memory_gb * GB))
    make_pool(PoolConfig(), SPEC, None)
    ((spec, count, *_),) = started
    assert (count, spec.device, spec.demand) == (workers, "cpu", None)


def test_what_does_not_fit_is_told_and_may_be_tried_all_the_same(monkeypatch, started):
    machine(monkeypatch, Node("here", 8, int(4.9 * GB)))
    with pytest.raises(
        ConfigurationError, match=r"needs 4\.5 GB, the node has 4\.9 GB.*workers: 1"
    ):
        make_pool(PoolConfig(), replace(SPEC, demand=Demand(4 * GB, cache_bytes=0)), None)
    make_pool(PoolConfig(workers=1), SPEC, None)
    assert started[0][1] == 1
    machine(monkeypatch, Node("here", 8, 3 * GB))  # not even the bare model
    for workers in ("auto", 1):
        with pytest.raises(ConfigurationError) as caught:
            make_pool(PoolConfig(workers=workers), SPEC, None)
        assert "tries it" not in str(caught.value)


def test_the_next_recipe_is_prepared_on_gpus_or_where_it_is_asked_for(monkeypatch, started):
    processors = Node("here", 4, 100 * GB)
    roomy, tight = (replace(processors, gpus=(Gpu(size * GB),)) for size in (80, 6))
    for node, config, ahead in [
        (processors, PoolConfig(workers=2), False),
        (processors, PoolConfig(workers=2, ahead=True), True),
        (roomy, PoolConfig(), True),
        (roomy, PoolConfig(ahead=False), False),
        (tight, PoolConfig(), False),  # there is no memory for a second model
    ]:
        machine(monkeypatch, node)
        make_pool(config, SPEC, None)
        assert started[-1][0].ahead is ahead, (node, config)


def test_small_models_share_gpus_and_each_worker_sees_its_own(monkeypatch, started):
    machine(monkeypatch, Node("here", 16, 200 * GB, (Gpu(24 * GB), Gpu(24 * GB))))
    make_pool(PoolConfig(), SPEC, None)
    spec, count, *_, visible = started[0]
    assert spec.device == "cuda"
    assert count == len(visible) == 2 * (count // 2)
    assert count > 2
    assert sorted(visible) == ["0"] * (count // 2) + ["1"] * (count // 2)
    make_pool(PoolConfig(device="cpu"), SPEC, None)
    spec, count, *_, visible = started[1]
    assert spec.device == "cpu"
    assert set(visible) == {""}  # GPUs are left to others


def test_a_large_model_spans_gpus(monkeypatch, started):
    large = replace(SPEC, demand=Demand(140 * GB, merge_bytes=2 * GB))
    machine(monkeypatch, Node("here", 64, 2000 * GB, (Gpu(80 * GB),) * 8))
    make_pool(PoolConfig(), large, None)
    spec, count, *_, visible = started[0]
    assert spec.device == "auto"
    assert [len(one.split(",")) for one in visible] == [8 // count] * count
    assert len({gpu for one in visible for gpu in one.split(",")}) == count * (8 // count)


def test_gpus_of_workers_that_share():
    placed = Placement(6, 0.3333, "cuda")
    assert [gpus_of(number, placed) for number in range(6)] == [(0,)] * 3 + [(1,)] * 3
    assert gpus_of(1, Placement(2, 3.0, "auto")) == (3, 4, 5)
    assert gpus_of(1, Placement(2)) == ()


def test_a_gpu_that_is_not_there(monkeypatch):
    machine(monkeypatch, Node("here", 8, 100 * GB))
    with pytest.raises(ConfigurationError, match="no CUDA device"):
        placement_here(PoolConfig(device="cuda"), SPEC)


def test_a_device_that_is_asked_for_is_used_by_the_driver_as_well(monkeypatch):
    opened: list[WorkerSpec] = []
    monkeypatch.setattr(pools, "InlinePool", opened.append)
    machine(monkeypatch, Node("here", 8, 100 * GB))
    with pytest.raises(ConfigurationError, match="no CUDA device"):
        make_pool(PoolConfig(workers=0, device="cuda"), SPEC, None)
    machine(monkeypatch, Node("here", 8, 100 * GB, (Gpu(24 * GB),)))
    for device in ("cuda", "cpu", "mps"):
        make_pool(PoolConfig(workers=0, device=device), SPEC, None)
    assert [spec.device for spec in opened] == ["cuda", "cpu", "mps"]


def test_nodes_without_gpus_get_no_workers_where_gpus_are_wanted():
    node = ClusterNode("id", "bare", 8.0, 0.0, 100 * GB)
    assert seats_of(node, (), PoolConfig(kind="ray"), SPEC).workers == 8
    seats = seats_of(node, (), PoolConfig(kind="ray", device="cuda"), SPEC)
    assert (seats.workers, seats.why) == (0, "no CUDA device, and pool.device is cuda")
    with_gpu = replace(node, gpus=1.0)
    config = PoolConfig(kind="ray", device="cuda")
    assert seats_of(with_gpu, (Gpu(24 * GB),), config, SPEC).device == "cuda"


@pytest.mark.parametrize("cpus", [float("inf"), float("nan"), -1.0])
def test_processors_of_a_worker_are_a_number(cpus):
    with pytest.raises(ValidationError, match="cpus_per_worker"):
        PoolConfig(kind="ray", cpus_per_worker=cpus)


def test_processors_are_offered_where_a_gpu_is_too_small(monkeypatch):
    machine(monkeypatch, Node("here", 8, 100 * GB, (Gpu(2 * GB),)))
    with pytest.raises(ConfigurationError, match=r"GPU memory.*`device: cpu` leaves the GPUs"):
        make_pool(PoolConfig(), SPEC, None)
    machine(monkeypatch, Node("here", 8, 3 * GB, (Gpu(2 * GB),)))
    with pytest.raises(ConfigurationError) as caught:
        make_pool(PoolConfig(), SPEC, None)
    assert "device: cpu" not in str(caught.value)
