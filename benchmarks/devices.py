"""What a GPU makes of an experiment: merging, scoring, candidates a minute, and memory.

    python benchmarks/devices.py experiments/smollm2_three_skills.yaml [--items 32] [--out FILE]

The models, tasks and experts of any experiment file serve; a coefficient for each expert is drawn
anew for each candidate. First one worker after another, each in this process: the processor (one
thread), then the GPU; medians over the jobs but the first, which prepares and warms up. Merging is
told for each operator, scoring for `--items` of each task. Then whole pools on the GPU, with more
and more workers (and with preparing ahead, if asked): jobs a minute once all workers have answered,
and the memory of a worker, on the GPU and beside it, next to what placement reckons with.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evomerge.experiment.config import read_experiment
from evomerge.experiment.wire import Parts, wire
from evomerge.merging import OPERATORS
from evomerge.pools import PoolConfig, make_pool
from evomerge.pools.placement import CONTEXT_BYTES
from evomerge.pools.worker import Worker
from evomerge.records import Job, Parameter

MERGED = ("task_arithmetic", "ties", "dare_ties", "breadcrumbs", "slerp", "model_stock", "tsv_m")
TURNS = 5
JOBS_OF_A_WORKER = 12
CPU_JOBS = 3


def jobs(parts: Parts, operator: str, items: int, number: int) -> Iterator[Job]:
    """Candidates of one operator; without items they are merged alone."""
    generator = np.random.default_rng(0)
    experts = tuple(parts.config.experts)[: OPERATORS[operator].max_sources]
    for id_ in range(number):
        values = {
            parameter.name: drawn(parameter, experts, generator)
            for parameter in OPERATORS[operator].parameters
            if parameter.kind == "real" and parameter.phase == "apply"
        }
        default = parts.template.default.model_copy(
            update={
                "operator": operator,
                "sources": experts,
                "parameters": values,
            }
        )
        recipe = parts.template.model_copy(update={"default": default})
        asked = {t: tuple(range(items)) for t in parts.config.fitness.tasks} if items else {}
        yield Job(id_, id_, recipe, asked)


def drawn(parameter: Parameter, experts: Sequence[str], generator: np.random.Generator) -> Any:
    """Somewhere near its default."""

    def value() -> float:
        found = float(parameter.default) * generator.uniform(0.8, 1.0)
        return float(np.clip(found, parameter.low, parameter.high))

    return {expert: value() for expert in experts} if parameter.per_source else value()


def median_ms(seconds: Sequence[float]) -> float:
    return 1e3 * statistics.median(seconds[1:])


def alone(
    parts: Parts, device: str, items: int, operators: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """One worker in this process."""
    before = memory(device)
    worker = Worker(replace(parts.worker, device=device, ahead=False, threads=1), device)
    for operator in operators:
        done = [worker.run(job) for job in jobs(parts, operator, 0, TURNS + 1)]
        failed = next((one.failure for one in done if one.failure), None)
        seconds = [one.merge_s for one in done]
        yield {
            "device": device,
            "merge": operator,
            "first_s": seconds[0],
            "ms": median_ms(seconds),
            **({"failed": str(failed)} if failed else {}),
        }
    turns = CPU_JOBS if device == "cpu" else 2 * TURNS
    done = [worker.run(job) for job in jobs(parts, "task_arithmetic", items, turns + 1)]
    yield {
        "device": device,
        "items": items * len(parts.config.fitness.tasks),
        "score_ms": median_ms([one.measure_s for one in done]),
        "forward_ms": median_ms([one.forward_s for one in done]),
        "memory_mb": (memory(device) - before) / 1e6,
    }


def memory(device: str) -> int:
    """Bytes that are taken on the GPU by anyone."""
    if device == "cpu":
        return 0
    free, total = torch.cuda.mem_get_info()
    return total - free


def private_bytes(pid: str) -> int:
    """What a process has for itself, and no other process shares."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private"))


def pooled(parts: Parts, workers: int, ahead: bool, items: int, log: Path) -> dict[str, Any]:
    """Jobs a minute of a pool, counted from when each worker has answered once."""
    before, mine = memory("cuda"), {p.name for p in Path("/proc").iterdir() if p.name.isdigit()}
    start = time.perf_counter()
    pool = make_pool(PoolConfig(device="cuda", workers=workers, ahead=ahead), parts.worker, log)
    try:
        total = workers * JOBS_OF_A_WORKER
        for job in jobs(parts, "task_arithmetic", items, workers + total):
            pool.submit(job)
        done, begun, seen = [], None, set()
        while len(done) < total or begun is None:
            found = pool.collect(60.0)
            done += found
            seen |= {one.worker for one in found}
            if begun is None and len(seen) == workers:
                begun, opened, done = time.perf_counter(), time.perf_counter() - start, []
        seconds = time.perf_counter() - begun
        taken = memory("cuda") - before
        host = [private_bytes(p) for p in new_processes(mine)]
    finally:
        pool.close()
    failures = [one.failure for one in done if one.failure]
    return {
        "workers": workers,
        "ahead": ahead,
        "opened_s": opened,
        "jobs_a_minute": 60 * len(done) / seconds,
        "merge_ms": 1e3 * statistics.median(one.merge_s for one in done),
        "score_ms": 1e3 * statistics.median(one.measure_s for one in done),
        "gpu_mb_each": taken / workers / 1e6,
        "host_mb_most": max(host, default=0) / 1e6,
        **({"failed": str(failures[0])} if failures else {}),
    }


def new_processes(before: set[str]) -> Iterator[str]:
    """Processes of ours that were not there before and use the GPU."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and entry.name not in before:
            try:
                if "nvidia" in (entry / "maps").read_text():
                    yield entry.name
            except OSError:
                continue


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--items", type=int, default=32, help="of each task")
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4, 8])
    parser.add_argument("--operators", nargs="*", default=MERGED, choices=list(OPERATORS))
    parser.add_argument("--ahead", action="store_true", help="pools that prepare ahead, too")
    parser.add_argument("--no-cpu", action="store_true", help="leave the processor out")
    parser.add_argument("--out", type=Path, help="a file for the rows, as JSON lines")
    options = parser.parse_args()
    torch.set_num_threads(1)
    parts = wire(read_experiment(options.experiment))
    rows: list[dict[str, Any]] = []

    def tell(row: dict[str, Any]) -> None:
        row = {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}
        rows.append(row)
        print(json.dumps(row), flush=True)
        if options.out is not None:
            options.out.write_text("".join(json.dumps(one) + "\n" for one in rows))

    demand = parts.worker.demand
    tell(
        {
            "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none",
            "machine": platform.machine(),
            "torch": torch.__version__,
            "experiment": options.experiment.stem,
            "reckoned_gpu_mb": None if demand is None else (demand.on_gpus() + CONTEXT_BYTES) / 1e6,
        }
    )
    if not options.no_cpu:
        for row in alone(parts, "cpu", options.items, options.operators):
            tell(row)
    if torch.cuda.is_available():
        for row in alone(parts, "cuda", options.items, options.operators):
            tell(row)
        torch.cuda.empty_cache()
        for workers in options.workers:
            for ahead in (False, True) if options.ahead else (False,):
                tell(pooled(parts, workers, ahead, options.items, Path("devices.log").absolute()))


if __name__ == "__main__":
    main()
