"""Runs beside each other; the oracles are the ledger read by brute force, scipy, and moocore."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import moocore
import numpy as np
import pytest
from scipy.stats import bootstrap, t

sys.path.insert(0, str(Path(__file__).parent))
import python_runs

from evomerge.cli import main
from evomerge.errors import ConfigurationError
from evomerge.ledger import LEDGER, REFERENCES, Ledger
from evomerge.results import significance
from evomerge.results.compare import compare
from evomerge.results.compare_plot import write_plot
from evomerge.results.contender import Group, read_contender
from evomerge.results.pairs import score_pairs
from evomerge.results.significance import ALIKE, BY_ERROR, BY_ITEM, BY_SEED

OLD = Path(__file__).parents[1] / "assets" / "ledgers" / "0.1.0"
SEEDS = (0, 1, 2)
CMA = {"kind": "cma_es", "population": 6}
NSGA = {"kind": "nsga2", "population": 6}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    folder, known = tmp_path_factory.mktemp("compared"), set[str]()

    def make(name: str, fitness: Any = python_runs.mean, **changes: Any) -> Path:
        if name not in known:
            python_runs.search(folder / name, fitness, **changes)
            known.add(name)
        return folder / name

    return make


@pytest.fixture(scope="module")
def sweep(made: Callable[..., Path]) -> list[Path]:
    """Two searchers, three seeds each."""
    few = [made(f"random-{seed}", seed=seed) for seed in SEEDS]
    return few + [made(f"cma-{seed}", seed=seed, searcher=CMA, budget=36) for seed in SEEDS]


@pytest.fixture(scope="module")
def fronts(made: Callable[..., Path]) -> list[Path]:
    one = made("front-random", python_runs.answers)
    return [one, made("front-nsga", python_runs.answers, searcher=NSGA, budget=30)]


@pytest.fixture
def unfinished(sweep: list[Path], tmp_path: Path) -> Path:
    """A run as its driver left it when it was stopped before the last choice."""
    shutil.copytree(sweep[0], tmp_path / "unfinished")
    with closing(sqlite3.connect(tmp_path / "unfinished" / LEDGER)) as db:
        db.execute("DELETE FROM events WHERE kind IN ('final', 'ended')")
        db.commit()
    return tmp_path / "unfinished"


def by_brute_force(folder: Path, items: int) -> tuple[float, float, int] | None:
    """The best search score, its error, and its candidate, when so many items had been answered."""
    spent, best = 0, None
    with closing(Ledger(folder / LEDGER, read_only=True)) as ledger:
        for kind, cohort, data in ledger.events("measured", "told", "scored"):
            if kind == "measured":
                is_spent = cohort >= REFERENCES and data["failure"] is None
                spent += data["num_items"] if is_spent else 0
            elif spent > items:
                break
            else:
                for entry in data:
                    if entry["score"] is not None:
                        told = list(entry["score"].values())
                        value = float(np.mean([v for v, _, _ in told]))
                        error = float(np.sqrt(sum(e**2 for _, e, _ in told))) / len(told)
                        if best is None or value > best[0]:
                            best = value, error, entry["id"]
    return best


# --- curves ---------------------------------------------------------------------------------------


def test_curves_are_what_was_best_when_so_much_was_spent(sweep: list[Path]) -> None:
    found = compare(sweep)
    assert found["budget"] == found["grid"][-1]
    assert found["budget"] == min(r["search_item_evaluations"] for r in found["runs"])
    for run, folder in zip(found["runs"], sweep, strict=True):
        for place in range(0, len(found["grid"]), 7):
            expected = by_brute_force(folder, found["grid"][place])
            if expected is None:
                assert run["curve"]["value"][place] is None
                continue
            value, error, _ = expected
            assert run["curve"]["value"][place] == pytest.approx(value)
            assert run["curve"]["low"][place] == pytest.approx(value - 1.96 * error)
            assert run["curve"]["high"][place] == pytest.approx(value + 1.96 * error)


def test_a_group_is_the_mean_of_its_seeds(sweep: list[Path]) -> None:
    found = compare(sweep)
    assert [group["name"] for group in found["groups"]] == [
        "random, candidates=24",
        "cma_es, candidates=36",
    ]
    for group in found["groups"]:
        own = [run for run in found["runs"] if run["group"] == group["name"]]
        assert group["seeds"] == list(SEEDS)
        values = np.array([run["curve"]["value"] for run in own], dtype=float)[:, -1]
        low, high = t.interval(0.95, 2, values.mean(), values.std(ddof=1) / 3**0.5)
        if np.ptp(values):
            assert group["search"]["low"] == pytest.approx(low)
            assert group["search"]["high"] == pytest.approx(high)
        assert group["search"]["value"] == pytest.approx(values.mean())
        held = [run["held_out"]["value"] for run in own]
        assert group["held_out"]["mean"] == pytest.approx(np.mean(held))


def test_hypervolumes_are_moocores(fronts: list[Path]) -> None:
    found = compare(fronts)
    finals, searched = [], []
    for folder in fronts:
        with closing(Ledger(folder / LEDGER, read_only=True)) as ledger:
            finals.append(ledger.final())
            scores = [e.score.values for e in ledger.evaluations().values() if e.score]
            told = next(data for _, _, data in ledger.events("references"))
            references = [[o["value"] for o in row["objectives"].values()] for row in told.values()]
            searched.append((np.array(scores), np.array(references)))

    def share(points: Any, box: Any) -> float:
        low, spread = np.min(box, axis=0), np.ptp(box, axis=0)
        corner = np.array([-0.1, -0.1])
        scaled = (np.array(points) - low) / spread
        hypervolume = moocore.hypervolume(scaled, ref=corner, maximise=True)
        return float(hypervolume / 1.1**2)

    # On the holdout.
    def values(rows: Any) -> list[list[float]]:
        return [[row["holdout"][name]["value"] for name in ("left", "right")] for row in rows]

    box = [p for f in finals for p in values([*f["front"], *f["references"].values()])]
    for run, final in zip(found["runs"], finals, strict=True):
        assert run["hypervolume"] == pytest.approx(share(values(final["front"]), box))
    # On the search's items, at the end of the run with the fewest, which spent the whole budget.
    # The box is of the fronts on the way, which are among all that was scored.
    assert found["runs"][0]["search_item_evaluations"] == found["budget"]
    step_fronts = []
    for scores, _ in searched:
        for end in range(6, len(scores) + 1, 6):  # a generation is told at once
            part = scores[:end]
            step_fronts += [p for p in part if not ((part >= p).all(1) & (part > p).any(1)).any()]
    box = np.vstack([*step_fronts, *(references for _, references in searched)])
    assert found["runs"][0]["hypervolume_search"] == pytest.approx(share(searched[0][0], box))
    assert found["groups"][0]["curve"]["hypervolume"][-1] == found["runs"][0]["hypervolume_search"]


# --- what can be told -----------------------------------------------------------------------------


def test_single_runs_are_compared_item_by_item(
    made: Callable[..., Path], sweep: list[Path]
) -> None:
    folders = [sweep[0], made("narrow", space=narrow())]
    found = compare(folders)
    (pair,) = found["pairs"]
    assert (pair["method"], pair["count"]) == (BY_ITEM, 100)
    means = [run["held_out"]["value"] for run in found["runs"]]
    assert pair["value"] == pytest.approx(means[0] - means[1])
    assert pair["better"] == "first"
    assert pair["p_holm"] == pair["p"] < 0.05
    assert found["words"][0].startswith(f"{pair['first']} is better than {pair['second']} by 0.")


def test_the_intervals_are_scipys(made: Callable[..., Path], sweep: list[Path]) -> None:
    one, other = (read_contender(p, p.name) for p in (sweep[0], made("narrow", space=narrow())))
    assert one.shares is not None
    assert other.shares is not None
    gap = significance.over_items(one.shares, other.shares)
    theirs = bootstrap(
        (one.shares["right"], other.shares["right"]),
        lambda x, y, axis: (x - y).mean(axis=axis),
        paired=True,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(1),
    )
    assert gap.low == pytest.approx(theirs.confidence_interval.low, abs=0.0101)  # an item's step
    assert gap.high == pytest.approx(theirs.confidence_interval.high, abs=0.0101)
    # Their items are the holdout's: what each says is the final table's.
    assert one.final is not None
    assert one.shares["right"].mean() == pytest.approx(one.final["best"]["holdout_mean"]["value"])
    assert len(one.shares["right"]) == 100


def narrow() -> dict[str, Any]:
    """A space without a good merge in it."""
    search = {"weight": {"per": ["expert"], "range": [-0.3, -0.2]}}
    return {"kind": "weights", "operator": "task_arithmetic", "search": search}


def test_seeds_are_paired(made: Callable[..., Path], sweep: list[Path]) -> None:
    poor = [made(f"narrow-{s}", seed=s, space=narrow()) for s in SEEDS[:2]]
    found = compare([*sweep, *poor])
    assert [pair["method"] for pair in found["pairs"]] == [BY_SEED] * 3
    assert [pair["count"] for pair in found["pairs"]] == [3, 2, 2]
    for pair in found["pairs"]:
        held = {
            name: {r["seed"]: r["held_out"]["value"] for r in found["runs"] if r["group"] == name}
            for name in (pair["first"], pair["second"])
        }
        first, second = held[pair["first"]], held[pair["second"]]
        gaps = [first[s] - second[s] for s in first.keys() & second.keys()]
        assert pair["value"] == pytest.approx(np.mean(gaps))
    raw = [pair["p"] for pair in found["pairs"]]
    assert [pair["p_holm"] for pair in found["pairs"]] == significance.holm(raw)


def test_a_model_that_two_runs_chose_is_one(sweep: list[Path]) -> None:
    run = read_contender(sweep[0], "one")
    (pair,) = score_pairs([Group("a", (run,)), Group("b", (replace(run, name="other"),))], None)
    assert (pair["method"], pair["better"]) == (ALIKE, "not told apart")
    assert pair["words"] == "a and b chose the same model."


def test_less_is_better_where_it_is(made: Callable[..., Path]) -> None:
    good, poor = (
        read_contender(p, p.name) for p in (made("random-0"), made("narrow", space=narrow()))
    )
    turned = [
        replace(run, objectives=(replace(run.objectives[0], sign=-1),)) for run in (good, poor)
    ]
    assert good.held_out is not None
    assert turned[0].held_out is not None
    assert turned[0].held_out["value"] == -good.held_out["value"]
    assert turned[0].held_out["low"] == -good.held_out["high"]
    (straight,) = score_pairs([Group("a", (good,)), Group("b", (poor,))], None)
    (other,) = score_pairs([Group("a", (turned[0],)), Group("b", (turned[1],))], None)
    assert other["value"] == pytest.approx(-straight["value"])
    assert straight["better"] == other["better"] == "first"  # inside, more is better


# --- which runs -----------------------------------------------------------------------------------


def test_runs_are_grouped_by_an_aspect(made: Callable[..., Path], sweep: list[Path]) -> None:
    poor = [made(f"narrow-{s}", seed=s, space=narrow()) for s in SEEDS[:2]]
    found = compare([*sweep[:2], *poor], by="space")
    assert [group["runs"] for group in found["groups"]] == [
        ["random-0", "random-1"],
        ["narrow-0", "narrow-1"],
    ]
    assert found["pairs"][0]["method"] == BY_SEED
    found = compare([*sweep, *poor], by="searcher")
    assert [group["name"] for group in found["groups"]] == ["random", "cma_es"]
    assert len(found["groups"][0]["runs"]) == 5
    assert any("differ in other things too" in notice for notice in found["notices"])
    with pytest.raises(ConfigurationError, match="did you mean 'searcher'"):
        compare(sweep, by="searchr")


def test_what_differs_is_told_by_key(sweep: list[Path]) -> None:
    found = compare([sweep[0], sweep[3]])
    assert {row["key"]: list(row["values"].values()) for row in found["differs"]} == {
        "budget.candidates": [[24], [36]],
        "searcher.kind": [["random"], ["cma_es"]],
    }
    assert compare([sweep[0], sweep[1]])["differs"] == []  # the seed is what a group differs in


def test_the_same_run_again_is_no_evidence(sweep: list[Path], tmp_path: Path) -> None:
    shutil.copytree(sweep[0], tmp_path / "copy")
    found = compare([sweep[0], tmp_path / "copy", sweep[3]])
    assert [run["name"] for run in found["runs"]] == ["random-0", "cma-0"]
    assert found["notices"] == [
        "copy is random-0 again: the same experiment and seed; it is left out"
    ]
    with pytest.raises(ConfigurationError, match="is given twice"):
        compare([sweep[0], sweep[0]])


def test_other_tasks_are_refused(sweep: list[Path], fronts: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"front-random: its score is .*left.*right"):
        compare([sweep[0], *fronts])
    other = python_runs.search(tmp_path / "errors", python_runs.errors, budget=6)
    with pytest.raises(ConfigurationError, match=r"errors: the items of right are others than tho"):
        compare([sweep[0], other.folder])
    with pytest.raises(ConfigurationError, match="no run here"):
        compare([sweep[0], tmp_path / "nowhere"])


def test_other_holdouts_are_compared_unpaired(sweep: list[Path], made: Callable[..., Path]) -> None:
    split = {"search": 60, "fresh": 20, "holdout": 100, "seed": 3}
    found = compare([sweep[0], made("other-split", split=split)])
    assert found["pairs"][0]["method"] == BY_ERROR
    assert any("hold out other items" in notice for notice in found["notices"])
    assert any("search on other items" in notice for notice in found["notices"])


def test_unfinished_runs_have_curves_alone(sweep: list[Path], unfinished: Path) -> None:
    found = compare([sweep[3], unfinished])
    last = found["runs"][1]
    assert last["state"] == "stopped"
    assert last["held_out"] is None
    assert last["chosen"] is None
    expected = by_brute_force(unfinished, found["budget"])
    assert expected is not None
    assert last["search"]["value"] == pytest.approx(expected[0])
    assert found["pairs"] == []
    assert any("unfinished (stopped)" in notice for notice in found["notices"])
    assert found["words"] == [
        "Fewer than two of them are finished: nothing can be told on the holdout."
    ]


def test_runs_of_released_versions(tmp_path: Path) -> None:
    """Two objectives beside one of the same tasks, raced, one of them killed."""
    shutil.copytree(OLD, tmp_path / "old")
    found = compare([tmp_path / "old" / "finished", tmp_path / "old" / "stopped"])
    assert [run["candidates"] for run in found["runs"]] == [12, 4]
    assert any("fronts are not" in notice for notice in found["notices"])
    final = json.loads((OLD / "finished" / "expected.json").read_text())["now"]
    assert found["runs"][0]["chosen"] == final["best"]
    assert found["runs"][0]["item_evaluations"] == final["item_evaluations"]


def test_costs_are_the_ledgers(sweep: list[Path]) -> None:
    for run, folder in zip(compare(sweep)["runs"], sweep, strict=True):
        with closing(Ledger(folder / LEDGER, read_only=True)) as ledger:
            assert run["item_evaluations"] == ledger.item_evaluations
            assert run["seconds"] == ledger.seconds_spent()
            assert run["candidates"] == len(ledger.evaluations())


# --- the command line -----------------------------------------------------------------------------


def run_cli(capsys: Any, monkeypatch: Any, *arguments: Any) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["evomerge", "compare", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


def test_the_verb(
    sweep: list[Path], fronts: list[Path], tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    code, out, _ = run_cli(capsys, monkeypatch, *sweep, "--json")
    assert code == 0
    assert json.loads(out) == json.loads(json.dumps(compare(sweep)))
    code, out, _ = run_cli(capsys, monkeypatch, *sweep, "--csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["level"] for row in rows] == ["run"] * 6 + ["group"] * 2
    assert float(rows[0]["held_out"]) == compare(sweep)["runs"][0]["held_out"]["value"]
    for number, name in enumerate(("x.png", "x.svg", "x.html")):
        picture = tmp_path / name
        code, out, _ = run_cli(capsys, monkeypatch, *fronts, "--plot", picture)
        assert code == 0
        assert "random" in out
        starts = (b"\x89PNG", b"<?xml", b"<!DOCTYPE html>")
        assert picture.read_bytes().startswith(starts[number])
    page = picture.read_text()
    assert "<svg" in page
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl", "").replace(
        "http://creativecommons", ""
    ).replace("https://matplotlib.org", "")


def test_a_sweeps_folder_stands_for_its_runs(sweep: list[Path], tmp_path: Path) -> None:
    for run in (sweep[0], sweep[3]):
        shutil.copytree(run, tmp_path / run.name)
        (tmp_path / f"{run.name}.log").write_text("what was printed\n")
    (tmp_path / "run.lock").touch()
    runs = sorted(path for path in tmp_path.iterdir() if path.is_dir())
    told = compare(runs)
    assert compare([tmp_path]) == told
    assert compare(sorted(tmp_path.iterdir())) == told  # as a shell writes out runs/sweep/*
    with pytest.raises(ConfigurationError, match="no run here"):
        compare([tmp_path / "run.lock"])


def test_the_verb_says_what_is_wrong(sweep: list[Path], capsys: Any, monkeypatch: Any) -> None:
    code, _, err = run_cli(capsys, monkeypatch, *sweep, "--plot", "x.jpg")
    assert code == 2
    assert "x.jpg: is no name for a picture" in err
    code, _, err = run_cli(capsys, monkeypatch, *sweep, "nowhere")
    assert code == 2
    assert "nowhere: no run here" in err


def test_names_from_outside_are_text(sweep: list[Path], tmp_path: Path) -> None:
    name = "_$<script>alert(1)</script>$"
    found = compare(sweep[:4:3])
    text = json.dumps(found).replace("random, candidates=24", name)
    page = write_plot(tmp_path / "x.html", json.loads(text)).read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
