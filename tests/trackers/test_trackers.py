"""Trackers; the oracle is the ledger, read whole. Nothing here touches a network."""

from __future__ import annotations

import json
import signal
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))
from toys import Toy, forked

import evomerge.trackers as table
from evomerge.documents import Document
from evomerge.errors import ConfigurationError
from evomerge.experiment import run as runs
from evomerge.experiment.config import read_experiment
from evomerge.files import EXPERIMENT
from evomerge.ledger import LEDGER, Ledger
from evomerge.results.account import Account, share_dominated
from evomerge.trackers import Row, TrackedRun, Tracking, tracking
from evomerge.trackers.figures import Figures


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "write_pictures", lambda *_: None)
    monkeypatch.setattr(tracking, "EVERY_S", 0.02)


class Memory:
    """A tracker as somebody may write one."""

    name = "memory"

    def __init__(self, fail: str = "") -> None:
        self.rows: list[Row] = []
        self.runs: list[TrackedRun] = []
        self.finals: list[dict[str, float]] = []
        self.closed = 0
        self.fail = fail

    def _called(self, name: str) -> None:
        if name == self.fail:
            raise SystemExit(f"{name} is out of order")

    def begin(self, run: TrackedRun) -> int:
        self._called("begin")
        self.runs.append(run)
        return run.last

    def log(self, rows: Any) -> None:
        self._called("log")
        self.rows += rows

    def finish(self, figures: Any, table: str, step: int) -> None:
        self._called("finish")
        self.finals.append(dict(figures))
        assert table.startswith("| model | first | second |")

    def close(self) -> None:
        self.closed += 1
        self._called("close")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run without a tracker."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "write_pictures", lambda *_: None)
        yield Toy("nsga2", "racing", budget=32).run(tmp_path_factory.mktemp("plain"))


def expected(folder: Path) -> dict[int, dict[str, float]]:
    """What is to be logged of each candidate."""
    with Account(folder) as account:
        return {
            id_: {"candidate/failed": float(e.failure is not None)}
            if e.score is None
            else {
                "candidate/failed": 0.0,
                "candidate/rung": e.score.rung,
                **{f"candidate/{n}": x.value for n, x in e.score.objectives.items()},
                **{f"candidate/{n}_se": x.standard_error for n, x in e.score.objectives.items()},
            }
            for id_, e in account.evaluations.items()
        }


def of_candidates(rows: list[Row]) -> dict[int, dict[str, float]]:
    return {
        row.step: {k: v for k, v in row.figures.items() if k.startswith("candidate/")}
        for row in rows
    }


def test_every_candidate_is_logged_once_and_a_run_is_as_if_nobody_had(
    plain: Path, tmp_path: Path
) -> None:
    """Through two sessions, of which the second is begun by another process' end."""
    toy, memory = Toy("nsga2", "full", budget=32), Memory()
    toy.run(tmp_path / "a", 16, watchers=(Tracking(memory),))
    assert [row.step for row in memory.rows] == list(range(16))
    assert len(memory.finals) == 1
    toy.run(tmp_path / "a", 32, watchers=(Tracking(memory),))
    toy.run(tmp_path / "a", 32, watchers=(Tracking(memory),))  # is finished: nothing is new
    assert [row.step for row in memory.rows] == list(range(32))
    assert (len(memory.finals), memory.closed) == (2, 3)
    assert len({run.id for run in memory.runs}) == 1
    assert [run.last for run in memory.runs] == [-1, 15, 31]
    assert memory.runs[0].parameters["searcher.kind"] == "nsga2"
    assert of_candidates(memory.rows) == expected(tmp_path / "a")
    toy.run(tmp_path / "b", 32)
    digests = [Ledger(tmp_path / run / LEDGER, read_only=True).digest() for run in "ab"]
    assert digests[0] == digests[1]
    assert tracking.tracked(tmp_path / "b", -1).id != memory.runs[0].id
    with Account(tmp_path / "a") as account:
        last, step = memory.rows[-1].figures, account.steps[-1]
        assert last["search/item_evaluations"] == step.item_evaluations
        assert last["search/failed"] == sum(
            e.failure is not None for e in account.evaluations.values()
        )
        assert last["front/points"] == len(step.front)
        told = [
            [x["value"] for x in r["objectives"].values()] for r in account.references_told.values()
        ]
        box = [min(c) for c in zip(*told, strict=True)], [max(c) for c in zip(*told, strict=True)]
        volumes = [
            r.figures["front/hypervolume"] for r in memory.rows if "front/hypervolume" in r.figures
        ]
        assert volumes
        assert step.incumbent is not None
        assert last["best/candidate"] == step.incumbent["candidate"]
        assert last["best/first"] == step.incumbent["objectives"]["first"]["value"]
        final = account.final
        assert final is not None
        best, base = final["best"]["holdout"], final["references"]["base"]["holdout"]
        assert memory.finals[-1]["holdout/best/second"] == best["second"]["value"]
        assert memory.finals[-1]["holdout/base/first_se"] == base["first"]["standard_error"]
        figures = Figures(tmp_path / "a")
        figures._next_volume = float("inf")
        rows = [row for part in figures.added() for row in part]
        figures._next_volume = 0.0
        volume = figures._of_front()["front/hypervolume"]
        assert volume == pytest.approx(share_dominated(step.front, *box))
        assert of_candidates(rows) == of_candidates(memory.rows)


def test_one_that_comes_later_is_told_of_all(plain: Path) -> None:
    """In a race some are scored anew, and a candidate's first score is its row."""
    memory = Memory()
    Toy("nsga2", "racing", budget=32).run(plain, watchers=(Tracking(memory),))
    assert [row.step for row in memory.rows] == list(range(32))
    with Account(plain) as account:
        told = [d for _, _, data in account.ledger.events("told") for d in data]
    first = {d["id"]: d for d in reversed(told)}
    for row in memory.rows:
        entry = first[row.step]
        assert row.figures.get("candidate/first") == (entry["score"] or {}).get("first", [None])[0]


@pytest.mark.parametrize("place", ["begin", "log", "finish", "close"])
def test_one_that_fails_is_told_of_once_and_ends_nothing(
    place: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    memory = Memory(place)
    Toy("nsga2", budget=24).run(tmp_path, watchers=(Tracking(memory),))
    told = [r.getMessage() for r in caplog.records if "tracker memory" in r.getMessage()]
    assert len(told) == (place != "close")
    assert not told or f"SystemExit: {place} is out of order" in told[0]
    memory.fail = ""
    Toy("nsga2", budget=24).run(tmp_path, watchers=(Tracking(memory),))
    assert [row.step for row in memory.rows] == list(range(24))  # it has caught up


def test_one_that_hangs_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    import threading

    released = threading.Event()

    class Hangs(Memory):
        def log(self, rows: Any) -> None:
            released.wait(20)

    monkeypatch.setattr(tracking, "FINISH_S", 0.2)
    Toy("nsga2", budget=8).run(tmp_path, watchers=(Tracking(Hangs()),))
    assert any("not logged everything within" in r.getMessage() for r in caplog.records)
    released.set()


def test_a_watcher_needs_only_what_it_wants(tmp_path: Path, caplog: Any) -> None:
    seen: list[Any] = []

    class Mine:
        def finished(self, final: Any) -> None:
            seen.append(final["best"]["candidate"])

        def ended(self, why: str) -> None:
            seen.append(why)

    Toy(budget=8).run(tmp_path, watchers=(Mine(),))
    final = Ledger(tmp_path / LEDGER, read_only=True).final()
    assert final is not None
    assert seen == [final["best"]["candidate"], "finished"]
    assert not [r for r in caplog.records if "failed to watch" in r.getMessage()]


# --- what an experiment says ----------------------------------------------------------------------


def test_what_an_experiment_may_say(tmp_path: Path) -> None:
    def of(value: Any) -> Any:
        return Toy(keys={"trackers": value}).config()

    plain_config = Toy().config()
    for value in ("tensorboard", ["tensorboard"], {"kind": "tensorboard"}):
        config = of(value)
        assert [t.kind for t in config.trackers] == ["tensorboard"]
        assert config.identity() == plain_config.identity()
    config = of([{"kind": "wandb", "project": "p", "mode": "offline"}, "mlflow"])
    (tmp_path / EXPERIMENT).write_text(config.to_yaml())
    assert read_experiment(tmp_path / EXPERIMENT) == config
    with pytest.raises(ConfigurationError, match=r"unknown tracker 'tensorbord'.*tensorboard"):
        of(["tensorbord"])
    with pytest.raises(ConfigurationError, match=r"projekt.*project"):
        of([{"kind": "wandb", "projekt": "p"}])
    folder = {
        "trackers": [{"kind": "tensorboard", "folder": "tb"}, {"kind": "mlflow", "uri": "m.db"}]
    }
    from evomerge.experiment.config import parse_experiment

    data = {**dict(plain_config), **folder}
    data = json.loads(plain_config.model_dump_json(exclude_defaults=True)) | folder
    parsed = parse_experiment(Document(data, path=tmp_path / "x.yaml"))
    assert [parsed.trackers[0].folder, parsed.trackers[1].uri] == [  # type: ignore[union-attr]
        str(tmp_path / "tb"),
        str(tmp_path / "m.db"),
    ]


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match=r"pip install 'evomerge\[wandb\]'"):
        Toy(keys={"trackers": ["wandb"]}).run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_command_line_adds_and_leaves_out() -> None:
    from evomerge.cli.inputs import changed

    config = Toy(keys={"trackers": [{"kind": "wandb", "project": "p"}]}).config()

    def kinds(track: list[str] | None) -> list[Any]:
        pool = (None, None, None)
        found = changed(config, budget={}, pool=pool, track=track).trackers
        return [(t.kind, getattr(t, "project", None)) for t in found]

    assert kinds(None) == [("wandb", "p")]
    assert kinds(["mlflow", "wandb"]) == [("wandb", "p"), ("mlflow", None)]
    assert kinds(["none"]) == []
    assert kinds(["none", "tensorboard"]) == [("tensorboard", None)]


# --- the real ones --------------------------------------------------------------------------------


def tracked_toy(folder: Path, *trackers: Any) -> Toy:
    return Toy("nsga2", budget=32, keys={"trackers": list(trackers)})


def test_tensorboard_reads_each_candidate_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    toy = tracked_toy(tmp_path, "tensorboard")
    run = tmp_path / "run"
    code = forked(lambda: toy.run(run), "tell.after_commit:2")
    assert code == -signal.SIGKILL
    # As if it had been killed between logging and noting that.
    (run / tracking.RECORD).write_text(json.dumps({"tensorboard": {"last": 3, "final": None}}))
    toy.run(run, 16)
    toy.run(run, 32)
    found = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    found.Reload()
    for name in ("candidate/failed", "candidate/first"):
        want = {step: f[name] for step, f in expected(run).items() if name in f and step > 3}
        got = [(e.step, e.value) for e in found.Scalars(name) if e.step > 3]
        assert len(got) == len(want)
        assert dict(got) == pytest.approx(want)
    assert "holdout/best/first" in found.Tags()["scalars"]
    assert {"experiment/text_summary", "final/text_summary"} <= set(found.Tags()["tensors"])


def test_a_new_event_file_sorts_behind_the_others(tmp_path: Path) -> None:
    from evomerge.trackers.tensorboard import _let_a_second_begin

    now = int(time.time())
    (tmp_path / f"events.out.tfevents.{now}.host.99999.0").touch()
    _let_a_second_begin(tmp_path)
    assert int(time.time()) > now
    # A clock that was set back does not hold a run up for longer.
    (tmp_path / f"events.out.tfevents.{now + 5000}.host.99999.0").touch()
    begin = time.monotonic()
    _let_a_second_begin(tmp_path)
    assert time.monotonic() - begin < 2


def records(file: Path) -> Iterator[bytes]:
    """What W&B has written, in LevelDB's log format: blocks of 32 kB with parts of records."""
    data, place, record = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
        size, kind = struct.unpack_from("<HB", data, place + 4)
        record += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or its last part
            yield record
            record = b""


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    toy = tracked_toy(tmp_path, {"kind": "wandb", "project": "toys"})
    run = tmp_path / "run"
    toy.run(run, 16)
    toy.run(run, 32)
    files = sorted(run.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2
    logged: list[dict[str, float]] = []
    ids = set()
    for data in (data for file in files for data in records(file)):
        record = Record()
        record.ParseFromString(data)
        ids |= {record.run.run_id} - {""}
        if items := record.history.item:
            named = {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}
            logged.append(named)
    assert ids == {tracking.tracked(run, -1).id}
    assert [row["_step"] for row in logged] == list(range(32))
    for step, figures in expected(run).items():
        assert {k: logged[step][k] for k in figures} == pytest.approx(figures)


def test_mlflow_in_a_local_store(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    store = str(tmp_path / "store.db")
    toy = tracked_toy(tmp_path, {"kind": "mlflow", "uri": store, "experiment": "toys"})
    run = tmp_path / "run"
    toy.run(run, 16)
    (run / tracking.RECORD).unlink()  # the store knows what it has
    toy.run(run, 32)
    client = MlflowClient(tracking_uri=f"sqlite:///{store}")
    experiment = client.get_experiment_by_name("toys")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.params["searcher.kind"] == "nsga2"
    for name in ("candidate/failed", "candidate/second_se"):
        want = {step: f[name] for step, f in expected(run).items() if name in f}
        got = [(m.step, m.value) for m in client.get_metric_history(found.info.run_id, name)]
        assert len(got) == len(want)
        assert dict(got) == pytest.approx(want)
    assert "holdout/best/first" in found.data.metrics
    assert found.data.tags["mlflow.note.content"].startswith("| model |")


def test_a_store_appears_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    from evomerge.trackers.mlflow import MlflowConfig, MlflowTracker

    run = TrackedRun("0" * 32, "a run", tmp_path, {}, -1)
    tracker = MlflowTracker(MlflowConfig(kind="mlflow"))
    made, search = [], MlflowClient.search_experiments

    def killed(self: Any, **options: Any) -> Any:
        search(self, **options)
        made.append(sorted(path.name for path in tmp_path.iterdir()))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "search_experiments", killed)
        with pytest.raises(KeyboardInterrupt):
            tracker.begin(run)
    assert made
    assert "mlflow.db" not in made[0]  # its tables are there already
    assert not (tmp_path / "mlflow.db").exists()
    assert tracker.begin(run) == -1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow.db"]
