"""R1: the driver is killed, for every searcher that there is.

Passes if: a run that was killed three times and resumed equals one that never was. Each searcher is
also given the user's own merges and another run to begin with, and those of one objective are given
one number of two.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import toys
from searchers.searcher_calls import SMALL
from toys import Toy, forked, outcome_of

from evomerge.experiment import run as runs
from evomerge.ledger import LEDGER, Ledger
from evomerge.searchers import SEARCHERS

BUDGET = {"gp": 9}  # it takes a second for each candidate that it models; the others have 30
OPTIONS = {**SMALL, "nsga2": {"population": 8, "steady": True}}
# One number of two, for searchers of one objective.
SCALARISE = {"cma_es": "chebyshev", "frank_wolfe": "weighted_sum", "kinship": "chebyshev"}


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "write_pictures", lambda *_: None)
    monkeypatch.setitem(toys.ESTIMATORS, "subset", {"kind": "subset", "items": 10})
    for kind in SEARCHERS:
        searcher: dict[str, Any] = {"kind": kind, **OPTIONS[kind]}
        if not SEARCHERS[kind].multi_objective:
            searcher["scalarise"] = {"kind": SCALARISE.get(kind, "parego")}
        monkeypatch.setitem(toys.SEARCHERS, f"{kind} of two", searcher)


def toy_of(kind: str, **keys: Any) -> Toy:
    """A search with that searcher; `full` where it wants complete responses."""
    needs = SEARCHERS[kind].needs
    keys = {**keys, "seed": 4} | ({"space": {"kind": "niches"}} if "lineages" in needs else {})
    estimator = "subset" if "complete_responses" in needs else "racing"
    return Toy(f"{kind} of two", estimator, keys=keys)


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=pytest.mark.slow) if k == "gp" else k for k in SEARCHERS]
)
@pytest.mark.parametrize("begins", [pytest.param("cold", marks=pytest.mark.slow), "warm"])
def test_killed_in_the_middle_it_equals_an_uninterrupted_run(
    kind: str, begins: str, tmp_path: Path
) -> None:
    keys: dict[str, Any] = {}
    if begins == "warm":
        other = toy_of("m2n2" if kind == "m2n2" else "random").run(tmp_path / "other", 12)
        ledger = Ledger(other / LEDGER, read_only=True)
        recipe = ledger.candidates[3].recipe
        ledger.close()
        assert recipe is not None
        (tmp_path / "mine.json").write_text(recipe.to_json())
        keys = {"designs": [str(tmp_path / "mine.json")], "warm_start": str(other)}
    toy = toy_of(kind, **keys)
    budget = BUDGET.get(kind, 30)
    whole = outcome_of(toy.run(tmp_path / "whole", budget))
    parts = tmp_path / "parts"
    num_tells = sum(1 for _ in Ledger(tmp_path / "whole" / LEDGER, read_only=True).events("told"))
    assert num_tells > 1
    for place in ("ask.after_commit:2", "result.after_commit:4", "tell.before_commit:1"):
        killed = forked(lambda: toy.run(parts, budget), place)
        assert killed == -9, place
    toy.run(parts, budget)
    assert outcome_of(parts) == whole
