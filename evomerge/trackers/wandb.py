"""Weights & Biases: a run of a project, online or as files to be sent later."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from evomerge.documents import Strict
from evomerge.trackers.figures import Row
from evomerge.trackers.protocol import TrackedRun


class WandbConfig(Strict):
    """Options of `wandb`.

    project, entity: whose run it is.
    mode: `offline` writes files, which `wandb sync` sends later; by default what WANDB_MODE says.
    folder: of those files; by default the run's.
    """

    kind: Literal["wandb"]
    project: str = "evomerge"
    entity: str | None = None
    mode: Literal["online", "offline"] | None = None
    folder: str | None = None


class WandbTracker:
    """A run whose id is that of the search, so that all its sessions are one run."""

    name = "wandb"
    summary = "A run of a Weights & Biases project, online or offline."
    package = "wandb"
    Options: ClassVar[type[WandbConfig]] = WandbConfig

    def __init__(self, config: WandbConfig) -> None:
        self._config = config
        self._run: Any = None

    def begin(self, run: TrackedRun) -> int:
        """Go on with the run of that id, or begin it."""
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # of its own errors, to its makers
        import wandb

        config = self._config
        folder = Path(config.folder or run.folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=config.project,
            entity=config.entity,
            mode=config.mode,
            dir=str(folder),
            id=run.id,
            name=run.name,
            resume="allow",
            config=dict(run.parameters),
            settings=wandb.Settings(console="off", silent=True, x_disable_stats=True),
        )
        for group in ("candidate", "best", "search", "front"):
            self._run.define_metric(f"{group}/*", step_metric="candidate/number")
        on_server = -1 if self._run.offline else int(self._run.step) - 1
        return max(run.last, on_server)

    def log(self, rows: Sequence[Row]) -> None:
        """Hand the rows to W&B's own process, which sends or writes them."""
        for row in rows:
            figures = {**row.figures, "candidate/number": row.step}
            self._run.log(figures, step=row.step)

    def finish(self, figures: Mapping[str, float], table: str, step: int) -> None:
        """The final table, as the run's summary and notes, which have no `step`."""
        del step
        self._run.summary.update(dict(figures))
        self._run.notes = table

    def close(self) -> None:
        """Hand over what is left."""
        if self._run is not None:
            self._run.finish()
