"""How many workers a node gets, and on what: from bytes, without loading a model.

Everything here is a function of numbers, so that a plan for other machines than this one can be
made from the headers of the models' files. What a machine has is read in `nodes.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

MEMORY_SHARE = 0.9  # of what is free: the rest is for the driver, the system, and bad estimates
EVEN = 0.8  # of GPUs that share a model, that are dealt out; parts of models are not split
WORKERS_PER_GPU = 8  # more of them take turns and gain nothing
# Measured on Linux with torch 2.13 on the CPU, as docs/placement.md tells.
LIBRARY_BYTES = 500_000_000  # Python, torch, transformers, lm-eval and what a task keeps
ACTIVATION_BYTES = 500_000_000  # at most, for a model of a GB or less
ACTIVATION_SHARE = 0.05  # of the model, beside that
PREPARED_BYTES = 8  # that operators keep for a parameter of a model, at most
# What CUDA takes of a GPU and of the node's memory: .82 and .4 GB of an H200 with CUDA 13.
CONTEXT_BYTES = 1_000_000_000
CUDA_HOST_BYTES = 1_000_000_000

Prepare = bool | Literal["auto"]


@dataclass(frozen=True)
class Gpu:
    """A GPU's free memory."""

    memory_bytes: int


@dataclass(frozen=True)
class Node:
    """A machine: processors and bytes that may be used there."""

    name: str
    cpus: int
    memory_bytes: int
    gpus: tuple[Gpu, ...] = ()


@dataclass(frozen=True)
class Demand:
    """Bytes that one worker needs, and threads.

    model_bytes: the model that is measured, with the largest structure that it may take.
    cache_bytes: what operators have prepared, beside the model.
    activation_bytes: of forward passes.
    merge_bytes: of models that are copied to a GPU to merge one tensor; on the CPU they are mapped.
    shared_bytes: of all models' files: one copy in the page cache serves all workers of a node, and
        one on the GPU each of its workers.
    """

    model_bytes: int
    cache_bytes: int = 0
    activation_bytes: int = 0
    merge_bytes: int = 0
    shared_bytes: int = 0
    threads: int = 1

    def on_cpu(self, ahead: bool = False) -> int:
        """Bytes of the node's memory for a worker without a GPU."""
        models = self.model_bytes * (2 if ahead else 1)
        return LIBRARY_BYTES + models + self.cache_bytes + self.activation_bytes

    def on_gpus(self, ahead: bool = False) -> int:
        """Bytes of GPU memory, on one or several; what CUDA takes of each is not counted."""
        if ahead:  # merging and measuring at once
            working = self.merge_bytes + self.activation_bytes + self.model_bytes
        else:
            working = max(self.merge_bytes, self.activation_bytes)
        return self.model_bytes + self.cache_bytes + working

    def shelf_on(self, room_bytes: int, ahead: bool = False) -> int:
        """Bytes of a GPU for copies of the models, of what a worker may take of it in all."""
        left = room_bytes - CONTEXT_BYTES - self.on_gpus(ahead)
        return max(0, min(self.shared_bytes, left))

    @property
    def beside_gpu(self) -> int:
        """Bytes of the node's memory for a worker on a GPU: orders of magnitudes stay there."""
        return LIBRARY_BYTES + CUDA_HOST_BYTES + self.cache_bytes


def demand_of(
    parameters: int,
    bytes_per_parameter: float,
    *,
    shared_bytes: int,
    num_models: int,
    cache_bytes: int,
    largest_parameters: int = 0,
    growth: float = 1.0,
    spare_bytes: int = 0,
    threads: int = 1,
) -> Demand:
    """What a worker needs, from what the headers of the files say.

    Args:
        parameters: of the base.
        bytes_per_parameter: in the dtype that is measured.
        shared_bytes: of all models' files.
        num_models: the base among them.
        cache_bytes: the budget for prepared data; small models fill less.
        largest_parameters: of the base's largest tensor.
        growth: the largest structure's parameters, as a multiple of the base's.
        spare_bytes: of copied layers that are kept for later candidates, where layers are arranged.
        threads: of a worker.
    """
    model = math.ceil(parameters * bytes_per_parameter * max(1.0, growth))
    return Demand(
        model_bytes=model + min(spare_bytes, model),
        cache_bytes=min(cache_bytes, PREPARED_BYTES * parameters * num_models),
        activation_bytes=math.ceil(min(model, ACTIVATION_BYTES) + ACTIVATION_SHARE * model),
        merge_bytes=math.ceil(largest_parameters * bytes_per_parameter * (num_models + 1)),
        shared_bytes=shared_bytes,
        threads=threads,
    )


@dataclass(frozen=True)
class Placement:
    """What a node gets.

    gpus_per_worker: 0 on the CPU, a fraction where workers share a GPU, whole where one worker
        spans GPUs.
    device: of a worker that sees nothing but its own GPUs; "auto" spreads a model over them.
    ahead: whether a second model is kept, in which the next recipe is prepared.
    shelf_bytes: of copies of the models that each worker keeps on its GPUs.
    reasons: in words, what bounds the number, and what will be slow.
    """

    workers: int
    gpus_per_worker: float = 0.0
    device: Literal["cpu", "cuda", "auto"] = "cpu"
    ahead: bool = False
    shelf_bytes: int = 0
    reasons: tuple[str, ...] = field(default=())


def place(
    node: Node,
    demand: Demand,
    *,
    workers: int | None = None,
    prepare: Prepare = "auto",
) -> Placement:
    """Workers of one node.

    Args:
        node: with its GPUs, if workers may use them.
        demand: of a worker.
        workers: the user's own number. It is kept to; what the memory will not hold is said.
        prepare: whether recipes are prepared while others are measured; `auto`: where that costs
            nothing else. Whether processors are left for it is not looked at.
    """
    if node.gpus:
        return _on_gpus(node, demand, workers, prepare)
    return _on_cpu(node, demand, workers, prepare)


# --- processors -----------------------------------------------------------------------------------


def _on_cpu(node: Node, demand: Demand, asked: int | None, prepare: Prepare) -> Placement:
    each, usable = demand.on_cpu(), int(node.memory_bytes * MEMORY_SHARE)
    reasons = []
    if usable < each:
        reasons.append(f"a worker needs {_gb(each)}, {_has(node.memory_bytes)}")
        bare = LIBRARY_BYTES + demand.model_bytes  # the rest is a budget, and an estimate
        return Placement((asked or 0) if bare <= node.memory_bytes else 0, reasons=tuple(reasons))
    kept = min(demand.shared_bytes, usable // 2)
    if demand.shared_bytes > usable - each:
        reasons.append(
            f"the models' files ({_gb(demand.shared_bytes)}) do not stay in memory: "
            "merges read them from the disk"
        )

    def fit(ahead: bool) -> int:
        bytes_each = demand.on_cpu(ahead)
        return max((usable - kept) // bytes_each, min(1, usable // bytes_each))

    by_cpus = max(1, node.cpus // demand.threads)
    number, bound = _number(fit(False), by_cpus, asked, f"{node.cpus} processors", each)
    reasons = [bound, *reasons]
    ahead = prepare is True or (prepare == "auto" and number <= fit(True))
    return Placement(number, ahead=ahead, reasons=tuple(reasons))


def _number(
    by_memory: int, by_cpus: int, asked: int | None, processors: str, each: int
) -> tuple[int, str]:
    """How many workers, and what bounds them."""
    if asked is not None:
        if asked > by_memory:
            return asked, f"{asked} asked for; memory for {by_memory} of {_gb(each)} is expected"
        return asked, f"{asked} asked for"
    if by_memory < by_cpus:
        return by_memory, f"memory for {by_memory} of {_gb(each)}"
    return by_cpus, processors


# --- GPUs -----------------------------------------------------------------------------------------


def _on_gpus(node: Node, demand: Demand, asked: int | None, prepare: Prepare) -> Placement:
    smallest = min(gpu.memory_bytes for gpu in node.gpus)
    usable = int(smallest * MEMORY_SHARE) - CONTEXT_BYTES
    host = int(node.memory_bytes * MEMORY_SHARE) // demand.beside_gpu
    count, each = len(node.gpus), demand.on_gpus()
    if usable * count < each:
        what = f"a worker needs {_gb(each)} of GPU memory, {count} x {_gb(smallest)} are there"
        return Placement(0, reasons=(what,))
    if host < 1:
        what = f"a worker on a GPU needs {_gb(demand.beside_gpu)} of the node's memory, "
        return Placement(0, reasons=(what + _has(node.memory_bytes),))
    if each > usable:
        return _spanning(node, demand, asked, prepare, usable, host)
    by_cpus = max(1, node.cpus // demand.threads // count)

    whole = int(smallest * MEMORY_SHARE)
    wants_two = prepare is True and whole >= demand.on_gpus(True) + CONTEXT_BYTES
    # Copies of the models on the GPU save more time than more workers there do.
    shelf = demand.shelf_on(whole, wants_two)
    if 2 * shelf < demand.shared_bytes:
        shelf = 0

    def fit(ahead: bool) -> int:  # on one GPU
        return min(WORKERS_PER_GPU, whole // (demand.on_gpus(ahead) + CONTEXT_BYTES + shelf))

    capacity = min(fit(wants_two) * count, host)
    takes = demand.on_gpus(wants_two) + CONTEXT_BYTES + shelf
    number, bound = _number(
        capacity, by_cpus * count, asked, f"{node.cpus} processors for {count} GPUs", takes
    )
    per_gpu = math.ceil(number / count)
    ahead = wants_two or (prepare == "auto" and per_gpu <= fit(True) and number <= host)
    kept = demand.shelf_on(whole // max(1, per_gpu), ahead)
    reasons = [bound]
    if prepare is True and not ahead:
        reasons.append("no GPU has room for a second model")
    if host < fit(wants_two) * count:
        reasons.append("memory of the node, beside the GPUs")
    if kept < demand.shared_bytes:
        reasons.append(_copied(kept, demand))
    return Placement(number, _fraction(per_gpu), "cuda", ahead, kept, tuple(reasons))


def _copied(kept: int, demand: Demand) -> str:
    return (
        f"the GPU has room for {_gb(kept)} of the models ({_gb(demand.shared_bytes)}): "
        "the rest is copied there for every candidate"
    )


def _spanning(
    node: Node, demand: Demand, asked: int | None, prepare: Prepare, usable: int, host: int
) -> Placement:
    """One model over several GPUs, over all that are there if no second worker fits."""
    count, each = len(node.gpus), demand.on_gpus()
    needed = math.ceil(each / usable)
    fitting = min(count // needed, host)
    number = fitting if asked is None else min(asked, fitting)
    span = count // max(1, number)
    reasons = [f"a worker needs {_gb(each)}: {needed} GPUs or more"]
    if asked is not None and asked > fitting:
        reasons.append(f"{asked} asked for, {count} GPUs are enough for {fitting}")
    # Parts are not split, so that some GPUs hold more of the model than others.
    room = int(usable * span * EVEN) + CONTEXT_BYTES
    fits_two = usable * span >= demand.on_gpus(True)
    costs_copies = demand.shelf_on(room, True) < demand.shelf_on(room)
    ahead = fits_two and (prepare is True or (prepare == "auto" and not costs_copies))
    if prepare is True and not ahead:
        reasons.append("the GPUs have no room for a second model")
    if (kept := demand.shelf_on(room, ahead)) < demand.shared_bytes:
        reasons.append(_copied(kept, demand))
    return Placement(number, float(span), "auto", ahead, kept, tuple(reasons))


def _fraction(workers: int) -> float:
    """Of a GPU, in steps of 1/10,000 as Ray counts, such that all of them fit."""
    return math.floor(10_000 / workers) / 10_000 if workers else 0.0


def gpus_of(number: int, placement: Placement) -> tuple[int, ...]:
    """Which GPUs of its node the worker of that number, from 0, is to see."""
    if placement.gpus_per_worker >= 1:
        span = int(placement.gpus_per_worker)
        return tuple(range(number * span, (number + 1) * span))
    return (number // int(1 / placement.gpus_per_worker),) if placement.gpus_per_worker else ()


def _has(memory_bytes: int) -> str:
    share = round(MEMORY_SHARE * 100)
    return f"the node has {_gb(memory_bytes)}, of which {share} % may be used"


def _gb(number: float) -> str:
    return f"{number / 1e9:.1f} GB"
