"""What a merge costs in memory: models stay in their mapped files, however many they are."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from contained import contained
from safetensors.torch import save_file

from evomerge.checkpoints.open import open_checkpoint
from evomerge.experiment.recipes import open_recipe_models
from evomerge.merging import OPERATORS as ALL_OPERATORS
from evomerge.recipe import Recipe
from evomerge.results.export import export_model

MB = 2**20
OPERATORS = {
    "linear": {},
    "task_arithmetic": {},
    "ties": {},
    "ties of each tensor": {"trim": "tensor"},
    "dare_linear": {},
    "sce": {},
    "magmax": {},
}
MANY = [name for name, one in ALL_OPERATORS.items() if (one.max_sources or 99) >= 16]


def save_models(folder: Path, count: int, rows: int) -> dict[str, str]:
    """Models of 14 tensors in bfloat16, as folders; the base is "base"."""
    config = {"model_type": "unknown", "vocab_size": rows}  # with a config they are written sharded
    paths = {}
    folder.mkdir()
    for number in range(count + 1):
        generator = torch.Generator().manual_seed(number)
        state = {
            f"layers.{i}.w": torch.randn(rows, 256, generator=generator).bfloat16()
            for i in range(14)
        }
        name = f"x{number}" if number else "base"
        (folder / name).mkdir()
        save_file(state, folder / name / "model.safetensors", metadata={"format": "pt"})
        (folder / name / "config.json").write_text(json.dumps(config))
        paths[name] = str(folder / name)
    return paths


def anonymous() -> int:
    """This process's bytes that are in no file."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon")


def grown(work: Callable[[], object]) -> int:
    """By how much anonymous memory grew at most while something was done, in bytes."""
    before = highest = anonymous()
    ended = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not ended.wait(0.002):
            highest = max(highest, anonymous())

    thread = threading.Thread(target=watch)
    thread.start()
    work()
    ended.set()
    thread.join()
    return highest - before


def peaks(folder: Path, operator: str, counts: tuple[int, int], rows: int) -> list[int]:
    """The growth of merges of so many experts, in bytes, each in a child of its own.

    Small models are merged first, so imports and the kernels for both numbers of sources are there,
    and all children start with what memory the compiler has left behind.
    """
    folders = {"small": folder / "small", "large": folder / "large"}
    paths = {
        size: save_models(path, max(counts), rows=2 if size == "small" else rows)
        for size, path in folders.items()
    }

    def merge(size: str, count: int) -> None:
        chosen = {n: paths[size][n] for n in ("base", *(f"x{k + 1}" for k in range(count)))}
        default = {"operator": operator.split()[0], "parameters": OPERATORS.get(operator, {})}
        data = {"base": "base", "models": chosen, "default": default}
        recipe = Recipe.model_validate(data)
        export_model(recipe, open_recipe_models(recipe), folder / "out")

    def work(count: int, _: Any) -> int:
        merge("small", count)
        # What the compiler gave back would hide what a merge takes.
        ctypes.CDLL(None).malloc_trim(0)
        return grown(lambda: merge("large", count))

    for count in counts:
        merge("small", count)
    found = []
    for count in counts:
        ended = contained(partial(work, count), [Path("/")], limit_s=None)
        assert ended.result is not None
        found.append(int(ended.result))
    return found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("operator", OPERATORS)
def test_eight_models_take_no_more_memory_than_two(tmp_path: Path, operator: str) -> None:
    two, eight = peaks(tmp_path, operator, (2, 8), rows=2048)  # 14 MB each
    # Of TIES the order of one whole task vector, 14 MB, is there for a moment before it goes to a
    # file: the watch sees it or not. Six of them, or six models, would be 84 MB.
    more = (20 if operator.startswith("ties") else 14) * MB
    assert eight < two + more, f"{two / MB:.0f} MB with two, {eight / MB:.0f} MB with eight"
    assert eight < 40 * MB


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("operator", MANY)
def test_sixteen_models_take_no_more_memory_than_two(tmp_path: Path, operator: str) -> None:
    """16 models of 59 million parameters, 2 GB in all."""
    two, sixteen = peaks(tmp_path, operator, (2, 16), rows=16_384)
    # What ranks entries takes some copies of one tensor, 8 MB. 14 more models are 1.6 GB.
    assert sixteen < two + 60 * MB, f"{two / MB:.0f} MB with two, {sixteen / MB:.0f} MB with 16"
    assert sixteen < 250 * MB


@pytest.fixture
def limited() -> Iterator[Path]:
    """The process list of a memory control group of 640 MB, page cache and all."""
    version_1, version_2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    group = (version_1 if version_1.is_dir() else version_2) / f"evomerge-{os.getpid()}"
    try:
        group.mkdir()
        limit = "memory.limit_in_bytes" if version_1.is_dir() else "memory.max"
        (group / limit).write_text(str(640 * MB))
    except OSError as error:
        pytest.skip(f"control groups cannot be made here: {error}")
    yield group / "cgroup.procs"
    group.rmdir()


@pytest.mark.slow
@pytest.mark.parametrize("operator", ["linear", "task_arithmetic", "ties", "dare_ties"])
def test_models_larger_than_memory(tmp_path: Path, limited: Path, operator: str) -> None:
    """Three models of 1 GB each, 640 MB for the process, its libraries and what it has read."""
    paths = save_models(tmp_path / "models", 2, rows=150_000)
    recipe = {"evomerge_recipe": 1, "base": "base", "models": paths}
    recipe["default"] = {"operator": operator, "parameters": {"weight": {"x1": 0.25, "x2": 0.5}}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    inside = 'echo $$ > "$0" && exec "$@"'
    merge = [sys.executable, "-m", "evomerge", "merge", str(tmp_path / "recipe.yaml")]
    command = ["sh", "-c", inside, str(limited), *merge, "--out", str(tmp_path / "out")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
    assert ended.returncode == 0, ended.stderr[-2000:]
    base, one, two, merged = (
        open_checkpoint(path, name="x") for path in (*paths.values(), tmp_path / "out")
    )
    assert merged.size_bytes == base.size_bytes > 1_000 * MB
    for name in ("layers.0.w", "layers.13.w"):
        found, origin, first, second = (
            model.tensor(name)[-1000:].float() for model in (merged, base, one, two)
        )
        if operator == "linear":
            expected = (0.25 * first + 0.5 * second) / 0.75
        elif operator == "task_arithmetic":
            expected = origin + 0.25 * (first - origin) + 0.5 * (second - origin)
        else:  # what exactly is tested elsewhere
            assert found.isfinite().all()
            assert not torch.equal(found, origin)
            continue
        step = 2**-8 * expected.abs() + 1e-6  # of bfloat16
        assert ((found - expected).abs() <= step).all()
