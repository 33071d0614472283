"""Searches whose estimator learns from what was told before, and searches of lineages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toys
from toys import Toy, outcome_of

from evomerge.errors import ConfigurationError
from evomerge.experiment import run as runs
from evomerge.fitness.config import pools_by_content


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "write_pictures", lambda *_: None)


@pytest.mark.parametrize(
    "estimator",
    [
        {"kind": "shrinkage", "items": 8, "of": {"kind": "irt"}},
        {"kind": "shrinkage", "items": 6, "rotate": True, "incumbents": 1},
        {"kind": "irt", "items": 8},
    ],
)
def test_what_is_learnt_does_not_depend_on_where_a_run_stopped(
    estimator: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(toys.ESTIMATORS, "learning", estimator)
    toy = Toy("random", "learning")
    toy.run(tmp_path / "parts", 56)
    toy.run(tmp_path / "parts", 80)
    toy.run(tmp_path / "whole", 80)
    parts, whole = outcome_of(tmp_path / "parts"), outcome_of(tmp_path / "whole")
    assert parts["evaluations"] == whole["evaluations"]
    assert parts["final"] == whole["final"]


def test_lineages_are_searched_to_the_end(tmp_path: Path) -> None:
    Toy("random", keys={"space": {"kind": "niches"}}).run(tmp_path, 12)
    assert outcome_of(tmp_path)["final"] is not None


def test_lineages_have_no_neighbours_to_shrink_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(toys.ESTIMATORS, "learning", {"kind": "shrinkage", "items": 8})
    with pytest.raises(ConfigurationError, match="genomes are lists of numbers"):
        Toy("random", "learning", keys={"space": {"kind": "niches"}}).run(tmp_path, 12)
    assert not (tmp_path / runs.LEDGER).exists()


def test_a_pool_counts_by_its_content(tmp_path: Path) -> None:
    answers = np.random.default_rng(0).integers(0, 2, (40, 30))
    for name in ("a.npz", "b.npz"):
        np.savez(tmp_path / name, responses=answers)
    np.savez(tmp_path / "c.npz", responses=1 - answers)

    def identity(name: str) -> Any:
        inner = {"kind": "irt", "pool": {"t": str(tmp_path / name)}}
        return pools_by_content({"kind": "racing", "estimator": inner})

    assert identity("a.npz") == identity("b.npz") != identity("c.npz")
    history = {"kind": "irt", "pool": "history"}
    assert pools_by_content(history) == history
