"""How many workers: worked by hand, and what must hold for any machine."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.checkpoints.anatomy import anatomy_of
from evomerge.checkpoints.open import open_checkpoint
from evomerge.errors import ConfigurationError
from evomerge.merging.materialise import Merger
from evomerge.merging.table import OPERATORS
from evomerge.pools.nodes import cuda_gpus, free_memory, num_processors, this_node
from evomerge.pools.placement import (
    CONTEXT_BYTES,
    CUDA_HOST_BYTES,
    LIBRARY_BYTES,
    MEMORY_SHARE,
    PREPARED_BYTES,
    WORKERS_PER_GPU,
    Demand,
    Gpu,
    Node,
    demand_of,
    place,
)
from evomerge.recipe import Merge, ModelSource, Recipe

GB = 10**9


def smollm2() -> Demand:
    """134.5M parameters in float32, and five experts."""
    return demand_of(
        134_515_008,
        4,
        shared_bytes=6 * 538_060_032,
        num_models=6,
        cache_bytes=2 * GB,
        largest_parameters=49_152 * 576,
    )


def seven(parameters: float, largest: int) -> Demand:
    """A model in bfloat16, and three experts."""
    return demand_of(
        int(parameters),
        2,
        shared_bytes=int(4 * 2 * parameters),
        num_models=4,
        cache_bytes=2 * GB,
        largest_parameters=largest,
    )


SEVEN = seven(7e9, 32_000 * 4_096)
SEVENTY = seven(70e9, 128_256 * 8_192)
TINY = demand_of(300_000, 4, shared_bytes=4_800_000, num_models=4, cache_bytes=2 * GB)
EIGHT = Node("eight", 128, 1_000 * GB, (Gpu(80 * GB),) * 8)


# --- by hand --------------------------------------------------------------------------------------


def test_a_small_model_on_a_laptop() -> None:
    """0.5 libraries + 0.538 model + 2 cache + (0.5 + 0.05 x 0.538) activations = 3.565 GB.

    0.9 x 24 - 3.228 of files = 18.37 GB: five by memory, four with a second model; two processors.
    """
    assert smollm2().on_cpu() == pytest.approx(3.565 * GB, rel=1e-3)
    found = place(Node("laptop", 2, 24 * GB), smollm2())
    assert (found.workers, found.device, found.gpus_per_worker, found.ahead) == (2, "cpu", 0, True)
    found = place(Node("many processors", 64, 24 * GB), smollm2())
    assert (found.workers, found.ahead) == (5, False)  # 18.37 / 4.103 = 4.5
    assert found.reasons == ("memory for 5 of 3.6 GB",)


def test_memory_for_none_for_one_and_for_one_with_a_slow_disk() -> None:
    """3.565 GB at 90 % of 3.96 GB; the files need 3.228 GB beside it."""
    none = place(Node("n", 4, int(3.9 * GB)), smollm2())
    assert none.workers == 0
    (reason,) = none.reasons
    assert "needs 3.6 GB" in reason
    assert "has 3.9 GB" in reason
    one = place(Node("n", 4, int(4.1 * GB)), smollm2())
    assert (one.workers, one.ahead) == (1, False)
    assert "models' files (3.2 GB) do not stay in memory" in " ".join(one.reasons)


def test_seven_billion_parameters_share_gpus() -> None:
    """14 model + 2 cache + 5 x 0.262 of one tensor = 17.31 GB, and 1 for CUDA: 72 / 18.3 = 3.

    But then each would copy 56 GB of models for each candidate; one a GPU keeps 53.7 of them there.
    """
    assert SEVEN.on_gpus() == pytest.approx(17.31 * GB, rel=1e-3)
    found = place(EIGHT, SEVEN)
    assert (found.workers, found.gpus_per_worker, found.device) == (8, 1, "cuda")
    assert found.shelf_bytes == pytest.approx((72 - 17.31 - 1) * GB, rel=1e-3)
    assert not found.ahead
    large = replace(EIGHT, gpus=(Gpu(180 * GB),) * 8)  # 162 / (18.3 + 56) = 2
    found = place(large, SEVEN)
    assert (found.workers, found.gpus_per_worker) == (16, 0.5)
    assert found.shelf_bytes == SEVEN.shared_bytes
    small = replace(EIGHT, gpus=(Gpu(45 * GB),) * 8)  # 40.5 - 18.3 = 22.2: less than half of them
    found = place(small, SEVEN)
    assert (found.workers, found.gpus_per_worker) == (16, 0.5)
    assert found.shelf_bytes == pytest.approx((20.25 - 17.31 - 1) * GB, rel=1e-2)
    asked = place(EIGHT, SEVEN, workers=32)
    assert asked.reasons[0] == "32 asked for; memory for 8 of 72.0 GB is expected"
    assert asked.reasons[1].startswith("the GPU has room for 0.0 GB of the models (56.0 GB)")
    # Two models, 42.5 GB with what both take, leave 28.5 GB: more than half of the models.
    assert place(small, SEVEN, prepare=True).ahead
    tight = replace(EIGHT, gpus=(Gpu(25 * GB),) * 8)
    assert "no GPU has room for a second model" in place(tight, SEVEN, prepare=True).reasons
    two = place(EIGHT, SEVEN, prepare=True)
    assert (two.workers, two.ahead) == (8, True)
    assert two.shelf_bytes + SEVEN.on_gpus(True) + CONTEXT_BYTES <= 0.9 * 80 * GB
    assert two.shelf_bytes > 20 * GB
    few = place(replace(large, cpus=8), SEVEN)
    assert (few.workers, few.gpus_per_worker, few.ahead) == (8, 1, True)
    assert few.reasons == ("8 processors for 8 GPUs",)


def test_seventy_billion_parameters_span_gpus() -> None:
    """140 + 2 + max(0.5 + 7, 5 x 2.1 of one tensor) = 152.5 GB; 72 - 1 of a GPU: three.

    Two workers on eight GPUs then have four each.
    """
    assert SEVENTY.on_gpus() == pytest.approx(152.5 * GB, rel=1e-3)
    found = place(EIGHT, SEVENTY)
    assert (found.workers, found.gpus_per_worker, found.device) == (2, 4, "auto")
    assert not found.ahead  # 140 + 140 + 2 + 7.5 + 10.5 = 300 GB > 4 x 71
    assert found.reasons == (
        "a worker needs 152.5 GB: 3 GPUs or more",
        "the GPU has room for 74.7 GB of the models (560.0 GB): the rest is copied there for every "
        "candidate",
    )
    alone = place(EIGHT, SEVENTY, workers=1)  # on all eight
    assert alone.shelf_bytes == pytest.approx((8 * 71 * 0.8 - 152.5) * GB, rel=1e-2)
    assert not alone.ahead  # a second model would take the place of copies
    assert place(EIGHT, SEVENTY, workers=1, prepare=True).ahead
    two = replace(EIGHT, gpus=EIGHT.gpus[:2])
    assert place(two, SEVENTY).workers == 0
    assert place(two, SEVENTY).reasons == (
        "a worker needs 152.5 GB of GPU memory, 2 x 80.0 GB are there",
    )


def test_tiny_models_share_one_gpu() -> None:
    found = place(Node("n", 16, 64 * GB, (Gpu(80 * GB),)), TINY)
    assert (found.workers, found.gpus_per_worker, found.ahead) == (8, 0.125, True)
    # 8 x 1.5 GB of the node's own memory are not there: 7.2 / 1.5 = 4
    found = place(Node("n", 16, 8 * GB, (Gpu(80 * GB),)), TINY)
    assert (found.workers, found.gpus_per_worker) == (4, 0.25)


def test_fractions_add_up_to_no_more_than_a_gpu() -> None:
    """Ray counts in ten thousandths and rounds: seven times 0.142857 would be 1.0003."""
    found = place(Node("n", 7, 64 * GB, (Gpu(80 * GB),)), TINY)
    assert found.workers == 7
    assert round(found.gpus_per_worker * 10_000) * 7 <= 10_000


def test_a_users_number_is_kept_and_what_it_means_is_told() -> None:
    laptop = Node("laptop", 2, 24 * GB)
    assert place(laptop, smollm2(), workers=1).ahead
    four, five, six = (place(laptop, smollm2(), workers=count) for count in (4, 5, 6))
    assert [found.workers for found in (four, five, six)] == [4, 5, 6]
    assert [found.ahead for found in (four, five, six)] == [True, False, False]
    assert six.reasons == ("6 asked for; memory for 5 of 3.6 GB is expected",)
    assert place(replace(laptop, memory_bytes=GB), smollm2(), workers=2).workers == 0


def test_structures_and_dtypes_count() -> None:
    plain = demand_of(1_000, 4, shared_bytes=0, num_models=2, cache_bytes=0)
    half = demand_of(1_000, 2, shared_bytes=0, num_models=2, cache_bytes=0)
    grown = demand_of(
        1_000, 4, shared_bytes=0, num_models=2, cache_bytes=0, growth=1.5, spare_bytes=100
    )
    assert (plain.model_bytes, half.model_bytes, grown.model_bytes) == (4_000, 2_000, 6_100)


@pytest.mark.parametrize(
    "operator",
    [name for name, o in OPERATORS.items() if o.needs == "nothing" and not o.needs_adapters],
)
def test_no_operator_keeps_more_than_is_reckoned_with(operator: str) -> None:
    generator = torch.Generator().manual_seed(0)
    states = {
        name: {f"layers.{n}.w": torch.randn(16, 512, generator=generator) for n in range(3)}
        for name in ("base", "a", "b", "c")
    }
    opened = {name: open_checkpoint(state, name=name) for name, state in states.items()}
    sources = {name: ModelSource(path=name) for name in opened}
    seen = 0
    for parameters in ({}, {"trim": "model"}, {"density": 0.5}):
        for count in (1, 2, 3):
            experts = ("a", "b", "c")[:count]
            merge = Merge(operator=operator, sources=experts, parameters=parameters)
            merger = Merger(opened, anatomy_of(opened["base"]), "base", 10**9)
            with contextlib.suppress(ConfigurationError):  # not all take all of these
                for _ in merger.tensors(Recipe(base="base", models=sources, default=merge)):
                    pass
                each = merger.family.cache.used_bytes / (3 * 16 * 512 * (count + 1))
                seen += 1
                assert each <= PREPARED_BYTES
    assert seen


# --- what must hold -------------------------------------------------------------------------------

sizes = st.integers(0, 300 * GB)
nodes = st.builds(
    Node,
    st.just("n"),
    st.integers(1, 256),
    st.integers(0, 2_000 * GB),
    st.integers(0, 16).flatmap(
        lambda count: st.integers(0, 200 * GB).map(lambda size: (Gpu(size),) * count)
    ),
)
demands = st.builds(
    Demand,
    model_bytes=sizes,
    cache_bytes=st.integers(0, 20 * GB),
    activation_bytes=st.integers(0, 20 * GB),
    merge_bytes=st.integers(0, 20 * GB),
    shared_bytes=sizes,
    threads=st.integers(1, 16),
)


@settings(max_examples=500, deadline=None)
@given(nodes, demands, st.sampled_from([True, False, "auto"]))
def test_nothing_is_taken_that_is_not_there(node: Node, demand: Demand, prepare: Any) -> None:
    found = place(node, demand, prepare=prepare)
    assert prepare or not found.ahead
    assert found.reasons
    if not node.gpus:
        if prepare is True:  # it is the user's word, as the number of workers is
            return
        assert found.workers * demand.on_cpu(found.ahead) <= node.memory_bytes * MEMORY_SHARE
        assert found.workers * demand.threads <= max(node.cpus, demand.threads)
        return
    size = node.gpus[0].memory_bytes
    host = found.workers * (LIBRARY_BYTES + CUDA_HOST_BYTES + demand.cache_bytes)
    assert host <= node.memory_bytes * MEMORY_SHARE
    assert found.workers * found.gpus_per_worker <= len(node.gpus)
    if found.device == "cuda":
        on_one = min(found.workers, int(1 / found.gpus_per_worker))
        assert on_one <= WORKERS_PER_GPU
        each = demand.on_gpus(found.ahead) + CONTEXT_BYTES + found.shelf_bytes
        assert on_one * each <= size * MEMORY_SHARE
        assert found.shelf_bytes <= demand.shared_bytes
    elif found.workers:
        span = int(found.gpus_per_worker)
        each = demand.on_gpus(found.ahead) + found.shelf_bytes
        assert each <= span * (size * MEMORY_SHARE - CONTEXT_BYTES) + 1


@settings(max_examples=500, deadline=None)
@given(nodes, demands, st.integers(0, 500 * GB), st.integers(0, 100 * GB))
def test_more_memory_is_never_fewer_workers_but_where_it_holds_the_models(
    node: Node, demand: Demand, more: int, more_gpu: int
) -> None:
    larger = replace(
        node,
        memory_bytes=node.memory_bytes + more,
        gpus=tuple(Gpu(gpu.memory_bytes + more_gpu) for gpu in node.gpus),
    )
    smaller_demand = replace(demand, model_bytes=demand.model_bytes // 2)
    found = place(node, demand)
    for better in (place(larger, demand), place(node, smaller_demand)):
        assert better.workers >= found.workers or better.shelf_bytes > found.shelf_bytes


@settings(max_examples=500, deadline=None)
@given(nodes, demands)
def test_every_gpu_is_used_where_the_node_can_feed_it(node: Node, demand: Demand) -> None:
    found = place(node, demand)
    host = int(node.memory_bytes * MEMORY_SHARE) // demand.beside_gpu
    if not node.gpus or not found.workers or host < len(node.gpus):
        return
    if found.device == "cuda":
        assert found.workers >= len(node.gpus)
    else:  # whole GPUs for each: fewer are left over than there are workers
        assert len(node.gpus) - found.workers * found.gpus_per_worker < found.workers


@settings(max_examples=300, deadline=None)
@given(nodes, demands)
def test_preparing_ahead_costs_no_worker(node: Node, demand: Demand) -> None:
    with_it, without = place(node, demand), place(node, demand, prepare=False)
    assert with_it.workers == without.workers
    assert with_it.gpus_per_worker == without.gpus_per_worker


# --- this machine ---------------------------------------------------------------------------------


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"proc/meminfo": "MemAvailable: 8000000 kB\n", **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_limits_of_a_container_of_version_2(tmp_path: Path) -> None:
    """A limit of the parent binds too; pages of files are not taken for good."""
    root = machine(
        tmp_path,
        {
            "proc/self/cgroup": "0::/pod/box\n",
            "sys/fs/cgroup/pod/memory.max": "4000000000\n",
            "sys/fs/cgroup/pod/memory.current": "3000000000\n",
            "sys/fs/cgroup/pod/memory.stat": "anon 9\nactive_file 500000000\n"
            "inactive_file 1500000000\n",
            "sys/fs/cgroup/pod/box/memory.max": "max\n",
            "sys/fs/cgroup/pod/box/cpu.max": "50000 100000\n",
        },
    )
    assert free_memory(root) == 3_000_000_000
    assert num_processors(root) == 1
    node = this_node("here", gpus=False, root=root)
    assert node == Node("here", 1, 3_000_000_000)


def test_limits_of_a_container_of_version_1(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/\n3:memory:/docker/abc\n1:name=systemd:/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "2000000000\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "500000000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
    )
    assert free_memory(root) == 1_500_000_000
    assert num_processors(root) == 1


def test_no_limits(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        {
            "proc/self/cgroup": "0::/\n2:memory:/\n2:cpu:/\n",
            "sys/fs/cgroup/memory.max": "max\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
    )
    assert free_memory(root) == 8_192_000_000
    assert num_processors(root) == num_processors(tmp_path / "nothing") >= 1
    assert free_memory(tmp_path / "nothing") > GB  # no /proc: all memory that there is


def test_gpus_are_told_with_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda one: (70 * GB + one, 80 * GB))
    assert cuda_gpus() == (Gpu(70 * GB), Gpu(70 * GB + 1))
    assert cuda_gpus(whole=True) == (Gpu(80 * GB), Gpu(80 * GB))  # a cluster shares them out
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cuda_gpus() == ()
