"""TensorBoard: event files in a folder."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from evomerge.documents import Strict
from evomerge.trackers.figures import Row
from evomerge.trackers.protocol import TrackedRun


class TensorBoardConfig(Strict):
    """Options of `tensorboard`.

    folder: below which the run has one for its event files, so that TensorBoard compares runs that
        share it; by default the files are in `tensorboard` in the run's folder.
    """

    kind: Literal["tensorboard"]
    folder: str | None = None


class TensorBoardTracker:
    """Scalars by candidate number, and the final table as text."""

    name = "tensorboard"
    summary = "Event files for TensorBoard, by default in the run's folder."
    package = "tensorboard"
    Options: ClassVar[type[TensorBoardConfig]] = TensorBoardConfig

    def __init__(self, config: TensorBoardConfig) -> None:
        self._config = config
        self._writer: Any = None

    def begin(self, run: TrackedRun) -> int:
        """Go on in the folder; what a killed session may have written twice is marked as void."""
        from torch.utils.tensorboard import SummaryWriter

        folder = run.folder / "tensorboard"
        if self._config.folder is not None:
            folder = Path(self._config.folder) / f"{run.name}-{run.id[:8]}".replace("/", "_")
        is_new = run.last < 0
        _let_a_second_begin(folder)
        self._writer = SummaryWriter(str(folder), purge_step=None if is_new else run.last + 1)
        if is_new:
            text = json.dumps(dict(run.parameters), indent=1, default=str)
            self._writer.add_text("experiment", _code(text), 0)
        return run.last

    def log(self, rows: Sequence[Row]) -> None:
        """Write scalars, and see that they are on the disk."""
        for row in rows:
            for name, value in row.figures.items():
                self._writer.add_scalar(name, value, row.step, row.moment)
        self._writer.flush()

    def finish(self, figures: Mapping[str, float], table: str, step: int) -> None:
        """Write the final table."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        self._writer.add_text("final", table, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()


def _let_a_second_begin(folder: Path) -> None:
    """Wait, up to a second, until a new event file sorts behind those that are there.

    TensorBoard reads files in the order of their names: the second they were made in, then the
    process. What a killed session wrote is void only if it is read before what says so.
    """
    made = [int(file.name.split(".")[3]) for file in folder.glob("events.out.tfevents.*")]
    end = time.monotonic() + 1.1
    while made and int(time.time()) <= max(made) and time.monotonic() < end:
        time.sleep(0.02)


def _code(text: str) -> str:
    """As Markdown that shows it as it is."""
    return "\n".join(f"    {line}" for line in text.splitlines())
