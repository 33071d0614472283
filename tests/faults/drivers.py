"""Drivers in processes of their own: the command line as a shell starts it, and who lives on."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

from evomerge.errors import ConfigurationError, LedgerDamaged
from evomerge.experiment import run as runs
from evomerge.ledger import Ledger

EXPERIMENT = """
name: small
base: {zoo}/base
experts: {{sort: {zoo}/sort, back: {zoo}/back}}
space: per_expert
fitness:
  tasks:
    sort: {{kind: lm_eval, task: evomerge_tiny_sort_choice, path: {tasks}}}
  objectives: {{sort: sort}}
  split: {{search: 16, fresh: 8, holdout: 16}}
  finalists: 2
searcher: {{kind: cma_es, population: 6}}
budget: {{candidates: 24}}
"""


def evomerge(*arguments: Any) -> subprocess.Popen[str]:
    """The command line, in a session of its own, as a shell would start it."""
    return subprocess.Popen(
        [sys.executable, "-m", "evomerge", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=os.environ | {"COLUMNS": "500"},
    )


def num_measured(folder: Path) -> int:
    """Outcomes that a run has committed; 0 before it has begun."""
    try:
        with contextlib.closing(Ledger(folder / runs.LEDGER, read_only=True)) as ledger:
            return len(list(ledger.events("measured")))
    except (ConfigurationError, LedgerDamaged):
        return 0


def processes_of(session: int) -> list[int]:
    """The processes of a session that are alive."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, its_session = stat.read_text().rsplit(")", 1)[1].split()[:4]
            if int(its_session) == session and state != "Z":
                found.append(int(stat.parent.name))
    return found


def two_models(folder: Path, expert: Path, **default: Any) -> Path:
    """A recipe of a good base and the expert."""
    (folder / "base").mkdir(exist_ok=True)
    save_file({"a": torch.ones(2), "b": torch.ones(2)}, folder / "base" / "model.safetensors")
    path = folder / "recipe.yaml"
    content = {
        "base": "base",
        "models": {"base": "base", "expert": str(expert)},
        "default": {"operator": "task_arithmetic", **default},
    }
    path.write_text(yaml.safe_dump(content))
    return path


def command_line(*arguments: str) -> tuple[int, str, str]:
    """Call it in this process: exit code, standard output and error; a traceback is raised."""
    from evomerge.cli import main

    sys.argv = ["evomerge", *arguments]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as error:
            return int(error.code or 0), out.getvalue(), err.getvalue()
    return 0, out.getvalue(), err.getvalue()
