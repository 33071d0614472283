"""Pictures are drawn whatever the run was like: one objective or more, raced or not, one number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evomerge.records import Estimate, Evaluation, Failure, Score
from evomerge.results.plots import front_figure, write_pictures


def row(candidate: int, values: dict[str, float]) -> dict[str, Any]:
    holdout = {n: {"value": v, "standard_error": 0.01, "num_items": 9} for n, v in values.items()}
    mean = {"value": sum(values.values()) / len(values), "standard_error": 0.01}
    return {"candidate": candidate, "label": "", "holdout": holdout, "holdout_mean": mean}


@pytest.mark.parametrize("names", [["a"], ["a", "b"], ["a", "b", "c"], ["a", "b", "c", "d"]])
@pytest.mark.parametrize("raced", [True, False])
def test_pictures_are_drawn(names: list[str], raced: bool, tmp_path: Path) -> None:
    evaluations = [
        Evaluation(
            i,
            [0.5],
            Score({n: Estimate(i / 9, 0.1, 9) for n in names}, rung=i % 3 if raced else 0),
        )
        for i in range(9)
    ]
    evaluations.append(Evaluation(9, [0.5], None, Failure("merge", "no")))
    best = row(8, dict.fromkeys(names, 0.9))
    references = {n: row(-i, dict.fromkeys(names, i / 20)) for i, n in enumerate("xyzuvw", 1)}
    front = [best, row(7, dict.fromkeys(names, 0.8))] if len(names) > 1 else []
    final = {"best": best, "front": front, "references": references}
    pictures = write_pictures(tmp_path, evaluations, final)
    assert [p.name for p in pictures] == ["convergence.png", "front.png"][: 1 + bool(front)]
    for picture in pictures:
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert 10_000 < picture.stat().st_size < 500_000
    assert sorted(tmp_path.iterdir()) == sorted(pictures)  # no parts are left


def test_a_cost_has_a_front_too(tmp_path: Path) -> None:
    def priced(candidate: int, accuracy: float, size: float) -> dict[str, Any]:
        made = row(candidate, {"accuracy": accuracy})
        made["holdout"]["size"] = {"value": -size, "standard_error": 0.0, "num_items": 0}
        return made

    evaluations = [
        Evaluation(
            i, [0.5], Score({"accuracy": Estimate(i / 9, 0.1, 9), "size": Estimate(-s, 0, 0)})
        )
        for i, s in enumerate((1.3e8, 1.1e8, 0.9e8))
    ]
    front = [priced(0, 0.5, 1.3e8), priced(2, 0.4, 0.9e8)]
    references = {n: priced(-i, i / 9, 1.3e8) for i, n in enumerate("xyz", 1)}
    final = {"best": front[0], "front": front, "references": references}
    for picture in write_pictures(tmp_path, evaluations, final):
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    evaluation = Evaluation(0, [0.5], Score({"a": Estimate(0.5, 0.1, 9)}))
    final = {"best": row(0, {"a": 0.5}), "front": [], "references": {"x": row(-1, {"a": 0.2})}}
    one, other = (
        write_pictures(tmp_path / name, [evaluation], final)[0].read_bytes() for name in "ab"
    )
    assert one == other


def test_names_are_no_formulas(tmp_path: Path) -> None:
    names = [r"a$\foo{$", "_b^$x"]
    score = Score({name: Estimate(0.5, 0.1, 9) for name in names})
    best = row(0, dict.fromkeys(names, 0.5))
    references = {r"r$\bar$": row(-1, dict.fromkeys(names, 0.2))}
    final = {"best": best, "front": [best], "references": references}
    assert len(write_pictures(tmp_path, [Evaluation(0, [0.5], score)], final)) == 2


def test_what_is_to_be_small_is_shown_as_its_user_counts_it() -> None:
    best = row(0, {"accuracy": 0.5, "loss": -2.5})
    best["holdout"]["size"] = {"value": -1.3e8, "standard_error": 0.0, "num_items": 0}
    values = {name: e["value"] for name, e in best["holdout"].items()}
    score = Score({n: Estimate(v, 0.0, 0 if n == "size" else 9) for n, v in values.items()})
    final = {"best": best, "front": [best], "references": {}}
    figure = front_figure([Evaluation(0, [0.5], score)], final, {"loss": -1})
    accuracy_loss, accuracy_size, loss_size = figure.axes
    assert accuracy_loss.get_xlabel() == "accuracy"
    assert accuracy_loss.get_ylabel() == loss_size.get_xlabel() == "loss (less is better)"
    assert accuracy_size.get_ylabel() == loss_size.get_ylabel() == "size (less is better)"
    assert accuracy_loss.yaxis.get_major_formatter()(-2.5, None) == "2.5"
    assert loss_size.yaxis.get_major_formatter()(-1.3e8, None) == "130M"
    assert loss_size.yaxis.get_major_formatter()(0.0, None) == "0"
