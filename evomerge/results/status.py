"""What a run folder says of itself, read from the ledger alone."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from evomerge.errors import ConfigurationError
from evomerge.ledger import Ledger
from evomerge.lock import holder
from evomerge.pareto import best
from evomerge.records import Candidate, CandidateId, Evaluation, Score


def status(folder: Path, ledger: Ledger) -> dict[str, Any]:
    """State, counts, the incumbent and, once it is there, the final table; as JSON."""
    evaluations = ledger.evaluations()
    final = ledger.final()
    driver = holder(folder)
    top = best(list(evaluations.values()))
    return {
        "state": "running" if driver is not None else "finished" if final else "stopped",
        "driver": driver,
        "candidates": len(evaluations),
        "failed": sum(e.failure is not None for e in evaluations.values()),
        "failed_items": ledger.num_failed_items,
        "item_evaluations": ledger.item_evaluations,
        "incumbent": incumbent(top) if top else None,
        "final": final,
    }


def incumbent(evaluation: Evaluation) -> dict[str, Any]:
    """The best candidate so far, by its search score."""
    score = evaluation.score or Score({})
    return {
        "candidate": evaluation.id,
        "objectives": {name: asdict(e) for name, e in score.objectives.items()},
    }


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
