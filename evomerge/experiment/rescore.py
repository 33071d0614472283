"""Whether an exported model answers as its merge did in the search.

The folder is loaded as anybody would load it, by transformers alone, asked a sample of the run's
items again, and compared with the responses in the ledger. Answers depend on the batch in their
last bits; so a sample that differs is asked once more in the run's own batches, where equal models
give equal answers to the last bit, on the same kind of processor and with the same versions; with
others, but for last bits.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evomerge.checkpoints.input_scales import says_scales
from evomerge.checkpoints.open import Checkpoint, open_checkpoint
from evomerge.errors import CandidateError, EvomergeError, ModelError, Problem
from evomerge.experiment.compared_answers import CHANGED, Comparison, Place, places_of
from evomerge.experiment.config import ExperimentConfig
from evomerge.experiment.sessions import changes, session_facts, sessions_of
from evomerge.experiment.tasks import task_entries
from evomerge.fitness import PYTHON_TASK, make_task
from evomerge.fitness.split import Split, split_items
from evomerge.ledger import Ledger
from evomerge.protocols import PreparedTask, Progress, Task
from evomerge.records import Candidate, ItemId

if TYPE_CHECKING:
    from torch import nn

Json = dict[str, Any]

SAMPLE = 32  # items of each task, by default
SHARE = 0.05  # of the sampled scores may differ where the processor or a version does
_VERSIONS = itertools.count(1)  # of what is loaded: tasks keep answers by it
DECIDES = ("torch", "transformers", "numpy", "machine", "processor", "instructions", "scoring")


class Rescorer:
    """Asks exported models of one run what their merges were asked.

    num_items: of each task; 0 asks nothing, None everything that the holdout was asked.
    checkpoints: the run's models, for tasks that have a teacher. allow_code: whether tasks may run
    code: the user's word.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        ledger: Ledger,
        checkpoints: Mapping[str, Checkpoint],
        num_items: int | None,
        *,
        allow_code: bool = False,
    ) -> None:
        self._config = config
        self._ledger = ledger
        self._checkpoints = checkpoints
        self._num_items = num_items
        self._allow_code = allow_code
        self._tokenizers: dict[bytes, Any] = {}
        self._ready: set[str] = set()

    def check(self, candidate: Candidate, folder: Path, progress: Progress | None = None) -> Json:
        """What was asked, and that the answers are the recorded ones; or why nothing was asked.

        Raises:
            ModelError: the folder cannot be loaded, or answers otherwise than the merge did.
        """
        if why := self._why_not(folder):
            return {"verified": False, "why": why}
        with self._as_a_worker():
            model = self._loaded(folder)
            tasks: Json = {}
            problems: list[Problem] = []
            names = list(self._tasks)
            for number, name in enumerate(names):
                if progress is not None:
                    progress(f"verifying {folder.name}", number, len(names))
                tasks[name] = self._task(name, candidate, model)
                problems += tasks[name].pop("problems", ())
            if progress is not None:
                progress(f"verifying {folder.name}", len(names), len(names))
        if problems:
            raise ModelError([Problem(f"{folder}: {p.where}", p.what, p.hint) for p in problems])
        asked = [told for told in tasks.values() if told.get("items")]
        if not asked:
            why = "; ".join(f"{name}: {told['why']}" for name, told in tasks.items())
            return {"verified": False, "why": why, "tasks": tasks}
        return {"verified": True, "tasks": tasks, "otherwise": list(self._changes)}

    def _why_not(self, folder: Path) -> str:
        if self._num_items == 0:
            return "nobody asked for it"
        if (folder / "adapter_config.json").exists():
            return "an adapter's answers may differ from the merge's: see what it lost"
        if not (folder / "config.json").exists():
            return "it is no transformers model (there is no config.json)"
        return ""

    # --- the model --------------------------------------------------------------------------------

    @contextmanager
    def _as_a_worker(self) -> Iterator[None]:
        """With the threads that workers have, on which the last bits depend."""
        import torch
        from transformers.utils import logging as transformers_logging

        before, had_bar = torch.get_num_threads(), transformers_logging.is_progress_bar_enabled()
        torch.set_num_threads(self._config.threads_per_worker)
        transformers_logging.disable_progress_bar()  # there is one already
        try:
            yield
        finally:
            torch.set_num_threads(before)
            if had_bar:
                transformers_logging.enable_progress_bar()

    def _loaded(self, folder: Path) -> Loaded:
        """The folder, by the class that its config names."""
        from evomerge.merging.input_scales import apply_scales
        from evomerge.merging.module import module_of

        checkpoint = open_checkpoint(str(folder), name=folder.name)
        module = module_of(checkpoint, None)
        if says_scales(checkpoint.config):
            module = apply_scales(module)
        return Loaded(self._placed(module), self._tokenizer(checkpoint, folder))

    def _placed(self, module: nn.Module) -> nn.Module:
        """Where workers have theirs, in evaluation mode."""
        import torch

        pool = self._config.pool
        wants_gpu = pool.device != "cpu" and pool.workers != 0
        device = "cuda" if wants_gpu and torch.cuda.is_available() else "cpu"
        return module.eval().requires_grad_(False).to(device)

    def _tokenizer(self, checkpoint: Checkpoint, folder: Path) -> Any:
        """The folder's tokenizer; one for folders with the same files, so tasks are read once."""
        from evomerge.merging.module import tokenizer_of

        names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
        others = ("vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja")
        files = [folder / name for name in (*names, *others)]
        key = b"".join(f.read_bytes() + b"\0" if f.exists() else b"\1" for f in files)
        if key not in self._tokenizers:
            self._tokenizers[key] = tokenizer_of(checkpoint)
        return self._tokenizers[key]

    # --- the tasks --------------------------------------------------------------------------------

    @cached_property
    def _tasks(self) -> dict[str, Task | str]:
        """Each task, or why it cannot be asked here."""
        try:
            entries = task_entries(self._config.fitness, allow_code=self._allow_code)
        except EvomergeError as error:
            return {name: _first(error) for name in self._config.fitness.tasks}
        known = self._ledger.meta.get("identity", {}).get("items", {})
        found: dict[str, Task | str] = {}
        for name, entry in entries.items():
            if entry.get("kind") == PYTHON_TASK:
                found[name] = "its fitness is a Python function, which is not at hand"
                continue
            try:
                task = make_task(name, entry)
            except EvomergeError as error:
                found[name] = _first(error)
                continue
            found[name] = task
            if not getattr(task, "deterministic", True):
                found[name] = "it measures time, which is never the same twice"
            elif known.get(name, task.fingerprint) != task.fingerprint:
                found[name] = "its items are no longer those that the run has measured"
        return found

    @cached_property
    def _split(self) -> Split:
        told = self._config.fitness.split
        items = {task: range(number) for task, number in self._ledger.meta["num_items"].items()}
        return split_items(items, told.search, told.fresh, told.holdout, told.seed)

    @cached_property
    def _changes(self) -> tuple[str, ...]:
        """What is other than in the run, and may change last bits."""
        told = changes([session.facts for session in sessions_of(self._ledger)], session_facts())
        return tuple(text for text in told if text.split(" was ")[0] in DECIDES)

    def _prepared(self, name: str, task: Task) -> Task:
        """Let a task's teacher answer, once."""
        if isinstance(task, PreparedTask) and name not in self._ready:
            from evomerge.merging.module import module_of, tokenizer_of

            teacher = Loaded(None, None)

            def write(model: str) -> None:
                origin = self._checkpoints[model]
                teacher.module = self._placed(module_of(origin, self._dtype))
                teacher.tokenizer = tokenizer_of(origin)
                teacher.version = next(_VERSIONS)

            task.prepare(teacher, write)
        self._ready.add(name)
        return task

    @property
    def _dtype(self) -> Any:
        import torch

        return None if self._config.dtype is None else getattr(torch, self._config.dtype)

    # --- the comparison ---------------------------------------------------------------------------

    def _task(self, name: str, candidate: Candidate, model: Loaded) -> Json:
        task = self._tasks[name]
        if isinstance(task, str):
            return {"why": task}
        recorded = [r for r in self._ledger.recorded(candidate.fingerprint) if r.task == name]
        places = places_of(recorded)
        part, known, items = self._sample(name, places)
        if not items:
            return {"why": "the run has no answer of this candidate to it"}
        comparison = Comparison(recorded, places)
        try:
            self._prepared(name, task)
            if self._num_items is not None:
                comparison.add(task.respond(model, items))
            again = range(len(recorded)) if self._num_items is None else comparison.jobs
            for job in sorted({places[item][0] for item in items} & set(again)):
                comparison.add(
                    task.respond(model, recorded[job].items.tolist()),
                    job,
                    tolerance=CHANGED if self._changes else 0.0,
                )
        except (CandidateError, EvomergeError) as error:
            return {"problems": [Problem(f"task {name}", f"cannot be asked: {error}")]}
        told: Json = {"part": part, "items": len(comparison.asked), "of": known}
        told |= {"different": len(comparison.different)}
        told |= {"to_the_last_bit": len(comparison.asked) - len(comparison.inexact)}
        many = len(comparison.different) > SHARE * len(comparison.asked)
        if comparison.different and (many or not self._changes):
            told["problems"] = comparison.problems(name, self._changes)
        return told

    def _sample(self, name: str, places: Mapping[ItemId, Place]) -> tuple[str, int, list[ItemId]]:
        """The part, how many of its items were answered, and which are asked again.

        They are of the holdout, far apart; of others where nobody asked for the holdout.
        """
        for part in ("holdout", "fresh", "search"):
            known = [item for item in getattr(self._split, part).get(name, ()) if item in places]
            if known:
                count = len(known) if self._num_items is None else min(self._num_items, len(known))
                chosen = np.linspace(0, len(known) - 1, count).round().astype(int)
                return part, len(known), [known[place] for place in chosen.tolist()]
        return "", 0, []


@dataclass
class Loaded:
    """A model that transformers has loaded; fulfils `protocols.ResidentModel`."""

    module: Any
    tokenizer: Any
    version: int = field(default_factory=partial(next, _VERSIONS))


def _first(error: EvomergeError) -> str:
    return str(error.problems[0])
