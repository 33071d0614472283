"""Sweeps: what their files may say, how their runs go on, and what the table is made of."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console
from scipy.stats import ttest_1samp

from evomerge.cli import main
from evomerge.errors import ConfigurationError
from evomerge.experiment import sweep_runs
from evomerge.experiment.run import run_experiment
from evomerge.experiment.sweep import fair_share, read_sweep
from evomerge.experiment.sweep_runs import run_sweep
from evomerge.ledger import Ledger
from evomerge.lock import RunLock
from evomerge.pools import PoolConfig
from evomerge.results import sweep as results
from evomerge.results.sweep import over_seeds, summary
from evomerge.sweep_view import print_summary

sys.path.insert(0, str(Path(__file__).parent / "results"))
from small_run import write_experiment


def write(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


# --- the file -------------------------------------------------------------------------------------


def test_runs_come_seed_by_seed_with_all_searchers(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "experiment: quickstart\nseeds: [5, 2]\n"
        "searchers: {few: {kind: random, population: 3}, cma: {kind: cma_es}}\n"
        "change: {budget: {candidates: 7}}\n",
    )
    runs = read_sweep(path)
    assert [run.name for run in runs] == ["few-5", "cma-5", "few-2", "cma-2"]
    assert [run.config.seed for run in runs] == [5, 5, 2, 2]
    assert {run.config.budget.candidates for run in runs} == {7}
    assert runs[0].config.searcher.options == {"population": 3}
    assert runs[0].config.name == "few-5"


def test_short_forms(tmp_path: Path, tiny_zoo: Path) -> None:
    runs = read_sweep(write(tmp_path, "experiment: quickstart\nsearchers: [random, cma_es]\n"))
    assert [run.name for run in runs][:3] == ["random-0", "cma_es-0", "random-1"]
    runs = read_sweep(write(tmp_path, "experiment: quickstart\nseeds: 2\n"))
    assert [run.name for run in runs] == ["cma_es-0", "cma_es-1"]  # the experiment's own
    # The experiment may stand in the file, and what is changed may be a file beside it.
    inner = yaml.safe_load(write_experiment(tmp_path / "other", tiny_zoo).read_text())
    (tmp_path / "other" / "fitness.yaml").rename(tmp_path / "mine_fitness.yaml")
    del inner["fitness"]
    text = yaml.safe_dump(
        {"experiment": inner, "seeds": 1, "change": {"fitness": "mine_fitness.yaml"}}
    )
    (run,) = read_sweep(write(tmp_path, text))
    assert set(run.config.fitness.tasks) == {"sort", "back"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("experiment: quickstart\nsedes: 3\n", r"mine.yaml:2 sedes: unknown key .did you mean 'se"),
        ("experiment: quikstart\n", r"mine.yaml:1 experiment -> quikstart: no such file.*'quickst"),
        ("experiment: quickstart\nseeds: 0\n", r"mine.yaml:2 seeds: should be greater than or eq"),
        ("experiment: quickstart\nseeds: [1, 1]\n", r"mine.yaml:2 seeds: .*a seed stands twice"),
        ("experiment: quickstart\nseeds: []\n", r"mine.yaml:2 seeds"),
        (
            "experiment: quickstart\nsearchers:\n  a: {kind: cmaes}\n"
            "  b: {kind: random, populatoin: 3}\n",
            r"mine.yaml:3 searchers.a.kind: unknown searcher 'cmaes' .did you mean 'cma_es'[^\n]*\n"
            r".*mine.yaml:4 searchers.b.populatoin: unknown key .did you mean 'population'",
        ),
        (
            "experiment: quickstart\nsearchers: {../x: {kind: random}}\n",
            r"mine.yaml:2 searchers: '../x' is to be a folder's name",
        ),
        (
            "experiment: quickstart\nsearchers: [random, {kind: random, population: 3}]\n",
            r"mine.yaml:2 searchers.1: random stands twice .write a mapping",
        ),
        (
            "experiment: quickstart\nsearchers: [3]\n",
            r"mine.yaml:2 searchers.0: should be a kind, or a mapping with a kind, got 3",
        ),
        (
            "experiment: quickstart\nchange: {bugdet: {candidates: 3}}\n",
            r"mine.yaml:2 change: an experiment has no key 'bugdet' .did you mean 'budget'",
        ),
        ("experiment: quickstart\nchange: {seed: 3}\n", r"mine.yaml:2 change: 'seed' is the sweep"),
        (
            "experiment: quickstart\nchange: {budget: {candidates: many}}\n",
            r"mine.yaml -> .*quickstart.yaml:\d+ budget.candidates: should be a valid integer",
        ),
        (
            "experiment: {base: zoo:tiny/base}\n",
            r"mine.yaml -> .*mine.yaml:1 experiment.experts: this key is missing",
        ),
        ("- a\n", "expected a mapping"),
    ],
)
def test_what_a_file_cannot_say_is_told_with_its_line(text: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_sweep(write(tmp_path, text))
    assert re.search(told, str(caught.value)), str(caught.value)


@pytest.mark.parametrize(
    ("workers", "jobs", "share"), [(8, 1, 8), (8, 3, 2), (2, 4, 1), (0, 4, 0), (9, 2, 4)]
)
def test_runs_at_once_share_the_workers(
    workers: int, jobs: int, share: int, tmp_path: Path
) -> None:
    (run,) = read_sweep(write(tmp_path, "experiment: quickstart\nseeds: 1\n"))
    config = run.config.model_copy(update={"pool": PoolConfig(workers=workers)})
    assert fair_share(config, jobs).pool.workers == share
    auto = run.config.model_copy(update={"pool": PoolConfig()})
    expected = max(1, PoolConfig().num_workers // jobs) if jobs > 1 else "auto"
    assert fair_share(auto, jobs).pool.workers == expected


# --- the table ------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 5, 20])
def test_an_interval_over_seeds_is_students(count: int) -> None:
    values = np.random.default_rng(count).normal(0.8, 0.02, count)
    found = over_seeds(list(values))
    assert found is not None
    expected = ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high))
    assert found["standard_error"] == pytest.approx(values.std(ddof=1) / count**0.5)
    assert over_seeds([]) is None
    alone = over_seeds([0.5])
    assert alone == {"mean": 0.5, "standard_error": None, "low": None, "high": None, "seeds": 1}


def finals(
    values: dict[tuple[str, int], float | None], fronts: dict[tuple[str, int], list[Any]]
) -> Callable[[Path], dict[str, Any]]:
    """What `status` says of such runs."""

    def row(point: list[float]) -> dict[str, Any]:
        return {"holdout": {name: {"value": v} for name, v in zip("ab", point, strict=True)}}

    def told(folder: Path) -> dict[str, Any]:
        searcher, _, seed = folder.name.rpartition("-")
        value = values[searcher, int(seed)]
        final = None
        if value is not None:
            final = {
                "best": {"holdout_mean": {"value": value}},
                "front": [row(point) for point in fronts.get((searcher, int(seed)), [])],
                "references": {"base": row([0.0, 0.0]), "x": row([1.0, 0.0])},
                "gain_over_best_reference": {"value": value - 0.5},
            }
        state = "stopped" if value is None else "finished"
        facts = {"state": state, "ended": "no disk" if value is None else "finished"}
        facts |= {"candidates": 10, "item_evaluations": 100, "seconds": 60.0, "final": final}
        return facts | {"incumbent": {"mean": {"value": 0.9}}}

    return told


def test_the_table_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {("r", 0): 0.5, ("r", 1): 0.7, ("r", 2): 0.6, ("c", 0): 0.6, ("c", 1): 0.6}
    # The box is [0, 1] x [0, 2] with a margin of a tenth: (1, 1) is half of the second objective.
    fronts = {("r", 0): [[1.0, 1.0]], ("c", 0): [[0.0, 2.0], [1.0, 0.0]]}
    folders: dict[str, dict[int, Path]] = {"r": {}, "c": {}}
    for searcher in ("r", "c"):
        for seed in range(3):
            folders[searcher][seed] = folder = tmp_path / f"{searcher}-{seed}"
            folder.mkdir()
            (folder / "ledger.sqlite").touch()
    monkeypatch.setattr(results, "status", finals({**values, ("c", 2): None}, fronts))
    found = summary(folders)
    first, second = found["searchers"]
    assert (first["finished"], second["finished"], second["of"]) == (3, 2, 3)
    assert first["held_out"]["mean"] == pytest.approx(0.6)
    assert first["held_out"]["standard_error"] == pytest.approx(0.1 / 3**0.5)
    assert second["gain"]["mean"] == pytest.approx(0.1)
    assert first["against_first"] is None
    paired = second["against_first"]  # +0.1 and -0.1; the third seed has no pair
    assert (paired["mean"], paired["seeds"]) == (pytest.approx(0.0), 2)
    assert (paired["better"], paired["worse"]) == (1, 1)
    assert first["hypervolume"]["mean"] == pytest.approx(1.1 * 0.6 / 1.21)
    assert second["hypervolume"]["mean"] == pytest.approx((1.1 * 0.1 + 0.1 * 1.0) / 1.21)
    (failed,) = [run for run in found["runs"] if run["state"] == "failed"]
    assert (failed["searcher"], failed["seed"], failed["reason"]) == ("c", 2, "no disk")


@pytest.mark.parametrize("terminal", [True, False])
def test_no_figure_of_the_table_is_cut_off(terminal: bool) -> None:
    """On 80 columns cells are broken into lines; in a file a row is one line for each of its."""
    found = {"mean": 0.8125, "standard_error": 0.0125, "low": 0.7875, "high": 0.8375, "seeds": 3}
    keys = ("held_out", "gain", "against_first", "search", "hypervolume", "minutes")
    row = dict.fromkeys(keys, found) | {"item_evaluations": found | {"mean": 129_600.0}}
    rows = [{"searcher": name, "finished": 3, "of": 3} | row for name in ("random", "cma_es")]
    text = io.StringIO()
    console = Console(file=text, width=80, force_terminal=terminal, no_color=True)
    print_summary(console, {"searchers": rows, "runs": []})
    told = re.sub(r"\x1b\[[0-9;]*m", "", text.getvalue())
    assert "…" not in told
    words = told.split()
    for word in ("random", "cma_es", "3/3", "±0.013", "129.6k"):
        assert word in words
    assert ("[+0.787, +0.838]" in told) is not terminal


# --- the runs -------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path, tiny_zoo: Path) -> Path:
    """A sweep of two searchers whose runs take seconds."""
    write_experiment(tmp_path, tiny_zoo)
    return write(
        tmp_path,
        "experiment: experiment.yaml\nseeds: [4]\n"
        "searchers: {random: {kind: random, population: 6}, cma: {kind: cma_es, population: 6}}\n",
    )


def evomerge(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "evomerge", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The command line in this process."""
    monkeypatch.setattr(sys, "argv", ["evomerge", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


def digest(folder: Path) -> str:
    ledger = Ledger(folder / "ledger.sqlite", read_only=True)
    try:
        return ledger.digest()
    finally:
        ledger.close()


def mentioning(folder: Path) -> list[str]:
    """Processes whose command line names the folder, less this one."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in text and int(path.parent.name) != os.getpid():
            found.append(text)
    return found


def test_a_run_that_fails_stops_no_other_and_the_same_command_goes_on(
    file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "sweep"
    (out / "random-4").mkdir(parents=True)
    with RunLock(out / "random-4"):
        code = call(monkeypatch, "sweep", file, "--out", out)
    said = capsys.readouterr().out
    assert code == 1, said
    assert "random-4: failed with exit code 4: " in said
    assert "cma-4: finished" in said
    assert re.search(r"failed: random, seed 4: .*works on this run", said)
    assert "1 of 2 runs are not finished" in said
    runs = read_sweep(file)
    assert digest(out / "cma-4") == digest(run_experiment(runs[1].config, tmp_path / "alone"))
    done = digest(out / "cma-4"), (out / "cma-4" / "ledger.sqlite").stat().st_mtime_ns
    assert run_sweep(runs, out, jobs=2) == {"random-4": 0, "cma-4": 0}
    assert done == (digest(out / "cma-4"), (out / "cma-4" / "ledger.sqlite").stat().st_mtime_ns)
    # What is finished costs no process, wherever it is measured.
    monkeypatch.setattr(sweep_runs, "_start", None)
    elsewhere = read_sweep(file)
    changed = [r.config.model_copy(update={"pool": PoolConfig(workers=3)}) for r in elsewhere]
    planned = [type(r)(r.searcher, r.seed, c) for r, c in zip(elsewhere, changed, strict=True)]
    assert set(run_sweep(planned, out).values()) == {0}
    assert call(monkeypatch, "sweep", file, "--out", out) == 0
    assert "The best of each run, on the holdout" in capsys.readouterr().out
    assert call(monkeypatch, "sweep", file, "--out", out, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["finished"] for row in found["searchers"]] == [1, 1]
    assert found["searchers"][1]["against_first"]["seeds"] == 1


@pytest.mark.slow
def test_results_of_another_experiment_are_not_in_the_table(
    file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The file was changed since: runs that there are refuse it, and must not pass for its runs."""
    out = tmp_path / "sweep"
    random, cma = read_sweep(file)
    for run in (random, cma):
        run_experiment(run.config, out / run.name)
    text = file.read_text()
    file.write_text(text.replace("{kind: random, population: 6}", "{kind: random, population: 4}"))
    assert call(monkeypatch, "sweep", file, "--out", out, "--json") == 0
    found = {run["searcher"]: run for run in json.loads(capsys.readouterr().out)["runs"]}
    assert (found["random"]["state"], found["random"]["held_out"]) == ("stopped", None)
    assert found["cma"]["state"] == "finished"
    assert call(monkeypatch, "sweep", file, "--out", out) == 1
    assert re.search(r"failed: random, seed 4: .*searcher\.", capsys.readouterr().out)
    file.write_text(text)
    assert call(monkeypatch, "sweep", file, "--out", out) == 0
    # A ledger that cannot be read takes no other run's row away.
    (out / "cma-4" / "ledger.sqlite").write_bytes(b"no database" * 1000)
    capsys.readouterr()
    assert call(monkeypatch, "sweep", file, "--out", out, "--summary") == 0
    said = capsys.readouterr().out
    assert re.search(r"failed: cma, seed 4: .*cannot be read as a ledger", said)
    assert re.search(r"random +1/1 +0\.\d", said)


@pytest.mark.slow
def test_ctrl_c_ends_all_in_time_and_nothing_is_lost(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    text = file.read_text() + "change: {budget: {candidates: 400}}\n"
    file.write_text(text)
    process = evomerge("sweep", file, "--out", out, "--jobs", 2)
    until = time.monotonic() + 100
    ledgers = [out / name / "ledger.sqlite" for name in ("random-4", "cma-4")]
    while time.monotonic() < until and not all(path.exists() for path in ledgers):
        time.sleep(0.1)
    time.sleep(0.5)
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=15)
    assert time.monotonic() - start < 10
    assert process.returncode == 130, said
    assert "The same command goes on." in said
    assert mentioning(out) == []
    file.write_text(text.replace("400", "12"))
    assert set(run_sweep(read_sweep(file), out, jobs=2).values()) == {0}
    (random, _) = read_sweep(file)
    assert summary({"random": {4: out / "random-4"}})["searchers"][0]["finished"] == 1
    assert digest(out / "random-4") == digest(run_experiment(random.config, tmp_path / "alone"))


def test_no_driver_outlives_a_sweep_that_is_killed(file: Path, tmp_path: Path) -> None:
    """Nor one that a signal found half started: it would hold its run's lock against the next."""
    out = tmp_path / "sweep"
    file.write_text(file.read_text() + "change: {budget: {candidates: 4000}}\n")
    process = evomerge("sweep", file, "--out", out)
    until = time.monotonic() + 100
    while time.monotonic() < until and not (out / "random-4" / "run.lock").exists():
        time.sleep(0.1)
    assert mentioning(out / "random-4")
    process.kill()
    process.communicate()
    until = time.monotonic() + 10
    while time.monotonic() < until and mentioning(out):
        time.sleep(0.1)
    assert mentioning(out) == []
