"""The final table against numpy and scipy on what the ledger has, and what is printed of it."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy.stats import bootstrap
from small_run import write_experiment

from evomerge.experiment.config import read_experiment
from evomerge.experiment.run import run_experiment
from evomerge.fitness.split import split_items
from evomerge.run import Run
from evomerge.score_tables import final_table, front_table, gains_table, summary

SIZES = {"search": 48, "fresh": 24, "holdout": 120}
RACE = {"kind": "racing", "rungs": [6, 16], "keep": 0.5, "incumbents": 4}


def finished(folder: Path, zoo: Path, candidates: int = 18, **changes: Any) -> Run:
    budget = {"candidates": candidates}
    path = write_experiment(folder, zoo, split=SIZES, budget=budget, **changes)
    run_experiment(read_experiment(path), folder / "run")
    return Run(folder / "run")


@pytest.fixture(scope="module")
def two_skills(tiny_zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    objectives = {"sorting": "sort", "turning": {"tasks": ["back"]}}
    searcher = {"kind": "nsga2", "population": 6}
    folder = tmp_path_factory.mktemp("two_skills")
    parts = {"objectives": objectives, "searcher": searcher, "estimator": RACE}
    return finished(folder, tiny_zoo, candidates=30, **parts)


def final_of(run: Run) -> dict[str, Any]:
    final = run.ledger.final()
    assert final is not None
    return final


def answers(run: Run, candidate: int, task: str) -> np.ndarray:
    """The scores of the holdout's items, found anew."""
    from evomerge.experiment.wire import wire

    tasks = wire(run.config).tasks
    items = {name: made.items for name, made in tasks.items()}
    split = split_items(items, SIZES["search"], SIZES["fresh"], SIZES["holdout"], 0)
    fingerprint = run.ledger.candidates[candidate].fingerprint
    return run.ledger.measurements.values(fingerprint, task, split.holdout[task])


def printed(*things: Any) -> str:
    console = Console(width=140, file=io.StringIO())
    for thing in things:
        console.print(thing)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_each_objective_has_a_gain_over_its_own_best_reference(two_skills: Run) -> None:
    final = final_of(two_skills)
    assert set(final["gains"]) == {"sorting", "turning"}
    for objective, task in (("sorting", "sort"), ("turning", "back")):
        gain = final["gains"][objective]
        scores = {
            label: answers(two_skills, row["candidate"], task)
            for label, row in final["references"].items()
        }
        # Sort and back are what two of the references were trained for.
        assert gain["reference"] == max(scores, key=lambda label: scores[label].mean()) == task
        ours = answers(two_skills, final["best"]["candidate"], task)
        theirs = scores[gain["reference"]]
        assert gain["value"] == pytest.approx(ours.mean() - theirs.mean())
        row = final["best"]["holdout"][objective]
        assert row["value"] == pytest.approx(ours.mean())
        assert row["standard_error"] == pytest.approx(ours.std(ddof=1) / len(ours) ** 0.5)
        interval = bootstrap(
            (ours, theirs),
            lambda x, y, axis: x.mean(axis=axis) - y.mean(axis=axis),
            paired=True,
            vectorized=True,
            n_resamples=10_000,
            method="percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval
        step = 1.01 / SIZES["holdout"]  # gaps are whole items; quantiles fall on either side
        assert abs(gain["low"] - interval.low) <= step
        assert abs(gain["high"] - interval.high) <= step


def test_the_curse_is_of_what_the_searcher_was_told(two_skills: Run) -> None:
    final = final_of(two_skills)
    evaluations = two_skills.ledger.evaluations()
    shown = [final["best"], *final["front"]]
    # Incumbents have answered more items than those that the newest estimate is of.
    assert any(abs(row["told_mean"]["value"] - row["search_mean"]["value"]) > 0.01 for row in shown)
    for row in shown:
        score = evaluations[row["candidate"]].score
        assert score is not None
        told = dict(zip(("sorting", "turning"), score.values, strict=True))
        for name, value in told.items():
            assert row["told"][name]["value"] == value
            assert row["winners_curses"][name] == pytest.approx(
                value - row["holdout"][name]["value"]
            )
        assert row["winners_curse"] == pytest.approx(np.mean(list(row["winners_curses"].values())))
    for row in final["references"].values():  # no searcher was told of these
        assert "told" not in row
        assert row["winners_curse"] == pytest.approx(
            row["search_mean"]["value"] - row["holdout_mean"]["value"]
        )


def test_a_front_is_of_fresh_items_and_reported_on_the_holdout(two_skills: Run) -> None:
    final = final_of(two_skills)
    rows = final["front"]
    assert final["best"]["candidate"] in {row["candidate"] for row in rows}
    fresh = np.array([[row["fresh"][n]["value"] for n in ("sorting", "turning")] for row in rows])
    for one in fresh:
        assert not ((fresh >= one).all(axis=1) & (fresh > one).any(axis=1)).any()
    for row in rows:
        assert {e["num_items"] for e in row["holdout"].values()} == {SIZES["holdout"]}
    table = printed(front_table(rows))
    for row in rows:
        e = row["holdout"]["sorting"]
        assert f"{e['value']:.3f} ±{e['standard_error']:.3f}" in table


def test_all_of_it_is_printed(two_skills: Run) -> None:
    final = final_of(two_skills)
    table = printed(final_table(final))
    assert f"{final['best']['told_mean']['value']:.3f}" in table.splitlines()[-2]
    lines = printed(gains_table(final)).splitlines()
    assert "against the reference that is best there" in lines[0]
    for name, gain in final["gains"].items():
        (line,) = [line for line in lines if line.split()[:1] == [name]]
        curse = final["best"]["winners_curses"][name]
        holdout = final["best"]["holdout"][name]["value"]
        cells = [f"{gain['value']:+.3f}", f"[{gain['low']:+.3f}, {gain['high']:+.3f}]"]
        cells += [f"{holdout + curse:.3f}", f"{holdout:.3f}", f"{curse:+.3f}"]
        assert re.findall(r"\[.*?\]|\S+", line)[1:] == [gain["reference"], *cells]
    words = summary(final)
    curse, holdout = final["best"]["winners_curse"], final["best"]["holdout_mean"]["value"]
    assert f"Winner's curse (search minus holdout): {curse:+.3f}" in words
    assert f"had said {holdout + curse:.3f}, the holdout says {holdout:.3f}" in words


def test_what_is_to_be_small_is_shown_as_its_user_counts_it(two_skills: Run) -> None:
    final = final_of(two_skills)
    best, rows = final["best"], final["front"]
    value = best["holdout"]["sorting"]["value"]
    both = {"sorting": -1, "turning": -1}
    for signs, mean, one in (({"sorting": -1}, 1, -1), (both, -1, -1), ({}, 1, 1)):
        table = printed(final_table(final, signs))
        assert ("sorting ↓" in table) == (one < 0)
        row = table.splitlines()[-2]
        told, held = best["told_mean"]["value"], best["holdout_mean"]["value"]
        for expected in (one * value, mean * held, mean * told):
            assert f" {expected:.3f}" in row
        assert f" {one * value:.3f} " in printed(gains_table(final, signs))
        assert f"the holdout says {mean * held:.3f}." in summary(final, signs)
        assert f" {one * rows[0]['holdout']['sorting']['value']:.3f} " in printed(
            front_table(rows, signs)
        )


def test_one_objective_needs_no_second_table_and_its_gain_is_the_whole(
    tiny_zoo: Path, tmp_path: Path
) -> None:
    run = finished(tmp_path, tiny_zoo, searcher={"kind": "cma_es", "population": 6})
    final = final_of(run)
    assert final["gains"] == {"mean": final["gain_over_best_reference"]}
    assert gains_table(final) is None
    best = final["best"]
    if "told" in best:  # with `full`, what was told is the mean of all search items
        (told,), (search,) = best["told"].values(), best["search"].values()
        assert (told["value"], told["num_items"]) == (search["value"], search["num_items"])
        assert "the search had said" in summary(final)
    else:
        assert "no winner's curse" in summary(final)


def test_the_table_of_an_older_run_is_shown_as_it_was(two_skills: Run) -> None:
    final = dict(final_of(two_skills))
    final.pop("gains")
    for row in (final["best"], *final["front"], *final["references"].values()):
        for key in ("told", "told_mean", "winners_curses"):
            row.pop(key, None)
    assert gains_table(final) is None
    assert "best:" in printed(final_table(final))
    assert "Winner's curse" in summary(final)


def test_a_recommendation_without_a_score_says_so(two_skills: Run) -> None:
    final = dict(final_of(two_skills))
    for key in ("told", "told_mean", "search", "search_mean", "winners_curse", "winners_curses"):
        final["best"].pop(key)
    assert "without a score of its own: no winner's curse" in summary(final)
    assert printed(gains_table(final)).count("sorting") == 1
