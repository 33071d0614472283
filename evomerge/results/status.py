"""Whom a run has chosen, read from the ledger alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evomerge.errors import ConfigurationError
from evomerge.ledger import Ledger
from evomerge.pareto import best
from evomerge.records import Candidate, CandidateId


def best_candidate(folder: Path, ledger: Ledger) -> Candidate:
    """The chosen candidate; before a run is finished, the best by its search score.

    Raises:
        ConfigurationError: nothing was measured yet.
    """
    if (final := ledger.final()) is not None:
        return ledger.candidates[final["best"]["candidate"]]
    top = best(list(ledger.evaluations().values()))
    if top is None:
        raise ConfigurationError(f"{folder}: no candidate has a score yet")
    return ledger.candidates[top.id]


def final_rows(ledger: Ledger) -> dict[CandidateId, dict[str, Any]]:
    """The rows of the final table by candidate; none before a run is finished."""
    final = ledger.final()
    if final is None:
        return {}
    rows = [final["best"], *final["front"], *final["references"].values()]
    return {row["candidate"]: row for row in rows}
