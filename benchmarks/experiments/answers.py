"""Answers that several studies need: the base, the experts and known merges are asked once.

Studies of the same models and tasks share one ledger of answers. A run that begins finds those of
its references in it, to the last bit what it would have measured itself: an answer is taken from
there only if it was asked with the same items of its task, for last bits depend on the batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from evomerge.experiment.config import ExperimentConfig
from evomerge.experiment.run import open_ledger
from evomerge.experiment.wire import Parts
from evomerge.ledger import FINAL, LEDGER, Ledger
from evomerge.measurement import Measurer, requests_for
from evomerge.pools import make_pool
from evomerge.protocols import Pool
from evomerge.recipe import Recipe, canonical_json
from evomerge.records import Candidate, Job, Measurements, Outcome, Responses
from evomerge.results.final import NUM_GRID_FINALISTS
from evomerge.results.references import grid_cohort, measure_references, models_of

Items = Mapping[str, Sequence[int]]


class Answers:
    """The known answers of a group, and a pool that measures what is not known yet.

    parts: of any experiment of the group. folder: where groups have their ledgers.
    """

    def __init__(self, folder: Path, parts: Parts) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{group_of(parts)}.sqlite"
        if path.exists():
            self._ledger = Ledger(path)
        else:
            self._ledger = Ledger.create(path, {"group": group_of(parts)}, parts.num_items)
        self._known = self._ledger.measurements
        self._parts = parts
        self._pool: Pool | None = None
        self._found: list[Outcome] = []

    def close(self) -> None:
        """Let go of the workers and the file."""
        if self._pool is not None:
            self._pool.close()
        self._ledger.close()

    # --- a pool ----------------------------------------------------------------------------------

    @property
    def slots(self) -> int:
        """As of a pool."""
        return 1 if self._pool is None else self._pool.slots

    def submit(self, job: Job) -> None:
        """As of a pool."""
        known = {(r.task, tuple(r.items.tolist())): r for r in self._recorded(job)}
        asked = [(task, tuple(items)) for task, items in job.items.items()]
        if all(part in known for part in asked):
            responses = tuple(known[part] for part in asked)
            self._found.append(Outcome(job, responses, worker="known"))
            return
        if self._pool is None:
            self._pool = make_pool(self._parts.config.pool, self._parts.worker, None)
        self._pool.submit(job)

    def _recorded(self, job: Job) -> Iterator[Responses]:
        return self._ledger.recorded(job.recipe.fingerprint)

    def collect(self, timeout_s: float) -> list[Outcome]:
        """As of a pool."""
        if self._found:
            found, self._found = self._found, []
            return found
        outcomes = [] if self._pool is None else self._pool.collect(timeout_s)
        for outcome in outcomes:
            failed = any(responses.failures for responses in outcome.responses)
            if outcome.failure is None and not failed:  # what failed is tried again
                self._ledger.measured(0, outcome)
        return outcomes

    def cancel(self) -> list[Job]:
        """As of a pool."""
        return [] if self._pool is None else self._pool.cancel()

    # --- what is asked ---------------------------------------------------------------------------

    def learn(self, run: Ledger, recipe: Recipe) -> None:
        """Take over what a run of the group knows of a recipe."""
        for responses in run.recorded(recipe.fingerprint):
            if responses.task not in self._parts.tasks:
                continue  # a judge has tasks of its own
            items = responses.items.tolist()
            if self._known.missing(recipe.fingerprint, responses.task, items):
                job = Job(0, 0, recipe, {responses.task: tuple(items)})
                self._ledger.measured(0, Outcome(job, (responses,), worker="run"))

    def of(
        self, recipes: Mapping[str, Recipe], items: Items, say: Callable[[str], None]
    ) -> Measurements:
        """The answers of some recipes to some items, measured where they are not known."""
        jobs = []
        for number, recipe in enumerate(recipes.values()):
            missing = {
                task: found
                for task, ids in items.items()
                if (found := self._known.missing(recipe.fingerprint, task, ids))
            }
            if missing:
                jobs.append(Job(number, number, recipe, missing))
        for job in jobs:
            self.submit(job)
        done = 0
        while done < len(jobs):
            say(f"holdout of known merges: {done} of {len(jobs)}")
            for outcome in self.collect(5.0):
                done += 1
                if outcome.failure is not None:
                    raise RuntimeError(f"{outcome.job.recipe.default}: {outcome.failure.reason}")
        return self._known

    def give_references(self, parts: Parts, folder: Path) -> None:
        """Begin a run's ledger with what is known of its references, or is measured now."""
        with closing(open_ledger(folder / LEDGER, parts)) as ledger:
            measurer = Measurer(self, ledger)
            references = measure_references(
                parts.template, ledger, measurer, parts.estimator, parts.split
            )
            scores = parts.estimator.scores(grid_cohort(references, ledger))
            grid = sorted(
                (c for c in grid_cohort(references, ledger).candidates if c.id in scores),
                key=lambda c: (-scores[c.id].rung, -scores[c.id].mean, -c.id),
            )
            rivals: list[Candidate] = grid[:NUM_GRID_FINALISTS]
            if any(parts.split.fresh.values()):
                measurer.measure(FINAL, requests_for(rivals, parts.split.fresh))
            holdout = requests_for(models_of(references), parts.split.holdout)
            measurer.measure(FINAL, holdout)


def group_of(parts: Parts) -> str:
    """What answers hang on: the models' content, the tasks' items, and how numbers are computed."""
    config: ExperimentConfig = parts.config
    facts: dict[str, Any] = {
        "models": {name: source.sha256 for name, source in parts.template.models.items()},
        "items": {name: task.fingerprint for name, task in parts.tasks.items()},
        "dtype": config.dtype,
        "threads": config.threads_per_worker,
    }
    return hashlib.sha256(canonical_json(facts).encode()).hexdigest()[:16]
