"""MLflow: a run in a tracking store."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal
from uuid import uuid4

from evomerge.documents import Strict
from evomerge.trackers.figures import Row
from evomerge.trackers.protocol import TrackedRun

PART = 1000  # metrics that MLflow takes at once
PARAMETERS = 100  # that it takes at once
MAX_CHARACTERS = 500  # of a parameter
TAG = "evomerge.run"
NUMBER = "candidate/failed"  # what every row has: its newest step is the last that was logged


class MlflowConfig(Strict):
    """Options of `mlflow`.

    uri: the tracking store: a server's address, `sqlite:///...`, or the path of a file that becomes
        one; by default `mlflow.db` in the run's folder.
    experiment: MLflow's experiment, which the run is one of.
    """

    kind: Literal["mlflow"]
    uri: str | None = None
    experiment: str = "evomerge"


class MlflowTracker:
    """A run that its tag finds again, wherever the search goes on."""

    name = "mlflow"
    summary = "A run in an MLflow store: a server, or a local SQLite file."
    package = "mlflow"
    Options: ClassVar[type[MlflowConfig]] = MlflowConfig

    def __init__(self, config: MlflowConfig) -> None:
        self._config = config
        self._client: Any = None
        self._run = ""

    def begin(self, run: TrackedRun) -> int:
        """Find the run, or make it; the store knows what was logged."""
        for switch in ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
            os.environ.setdefault(switch, "true")
        logging.getLogger("mlflow").setLevel(logging.WARNING)  # tables that it makes, for one
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        uri = self._config.uri or str(run.folder / "mlflow.db")
        if "://" not in uri and uri != "databricks":
            path = Path(uri).expanduser().resolve()
            if not path.exists():
                _make_store(path, in_run=path.parent == run.folder.resolve())
            uri = f"sqlite:///{path}"
        self._client = MlflowClient(tracking_uri=uri)
        experiment = self._experiment(run, is_local=uri.startswith("sqlite:"))
        found = self._client.search_runs([experiment], f"tags.`{TAG}` = '{run.id}'", max_results=1)
        if found:
            self._run = found[0].info.run_id
            self._client.set_terminated(self._run, "RUNNING")
            history = self._client.get_metric_history(self._run, NUMBER)
            return max((metric.step for metric in history), default=-1)
        made = self._client.create_run(experiment, run_name=run.name, tags={TAG: run.id})
        self._run = made.info.run_id
        parameters = [
            Param(_key(key), str(value)[:MAX_CHARACTERS]) for key, value in run.parameters.items()
        ]
        for start in range(0, len(parameters), PARAMETERS):
            self._client.log_batch(self._run, params=parameters[start : start + PARAMETERS])
        return -1

    def _experiment(self, run: TrackedRun, *, is_local: bool) -> str:
        known = self._client.get_experiment_by_name(self._config.experiment)
        if known is not None:
            return str(known.experiment_id)
        files = (run.folder / "mlflow").as_uri() if is_local else None
        made = self._client.create_experiment(self._config.experiment, artifact_location=files)
        return str(made)

    def log(self, rows: Sequence[Row]) -> None:
        """Log whole rows, as many at once as it takes."""
        for metrics in _parts(rows):
            self._client.log_batch(self._run, metrics=metrics)

    def finish(self, figures: Mapping[str, float], table: str, step: int) -> None:
        """Log the final table, as metrics and as a tag that MLflow shows as Markdown."""
        row = Row(step, time.time(), figures)
        self.log([row])
        self._client.set_tag(self._run, "mlflow.note.content", table[:5000])
        self._client.set_terminated(self._run, "FINISHED")

    def close(self) -> None:
        """Nothing is held open."""


def _make_store(path: Path, *, in_run: bool) -> None:
    """Make a store's file, which appears whole: MLflow cannot go on with tables made halfway.

    in_run: whether it is in the run's own folder, where nobody else makes one.
    """
    from mlflow.tracking import MlflowClient

    path.parent.mkdir(parents=True, exist_ok=True)
    if in_run:
        for left in path.parent.glob(f".{path.name}.*.part*"):  # by a session that was killed
            left.unlink(missing_ok=True)
    # A name of its own each time: MLflow keeps a store that it has opened by its address.
    part = path.with_name(f".{path.name}.{uuid4().hex[:8]}.part")
    MlflowClient(tracking_uri=f"sqlite:///{part}").search_experiments(max_results=1)
    try:
        os.link(part, path)  # never in the place of another run's
    except FileExistsError:
        pass
    except OSError:  # a disk without links
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)


def _parts(rows: Sequence[Row]) -> Iterator[list[Any]]:
    """Metrics in parts that hold whole rows: one that is logged is logged completely."""
    from mlflow.entities import Metric

    part: list[Any] = []
    for row in rows:
        metrics = [
            Metric(_key(name), value, round(1000 * row.moment), row.step)
            for name, value in row.figures.items()
        ]
        if part and len(part) + len(metrics) > PART:
            yield part
            part = []
        part += metrics
    if part:
        yield part


def _key(name: str) -> str:
    """A name that MLflow takes."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "_-. /") else "_" for c in name)[:250]
