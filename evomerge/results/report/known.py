"""What several sections of a report need to know of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge.pareto import best, knee, non_dominated
from evomerge.records import Candidate, CandidateId, Estimate, Evaluation, Score
from evomerge.results.account import Account, ObjectiveFacts
from evomerge.results.exported_rows import knee_of
from evomerge.results.progress import mean_of
from evomerge.results.references import ARITHMETIC
from evomerge.results.report.marks import told

MAX_POINTS = 1500  # of candidates that a chart shows: more cannot be told apart
POINT = "arithmetic"  # what a point of the grid is called here, and its coefficient
RECOMMENDED = "recommended after"  # so many candidates: see results/final.py
MAX_REFERENCES = 12  # that a chart shows


@dataclass(frozen=True)
class Row:
    """A model with its scores, everything maximised. mean: of those that were measured."""

    name: str
    candidate: CandidateId | None
    scores: Mapping[str, Estimate]
    mean: Estimate

    def value(self, objective: ObjectiveFacts) -> float:
        """A score in the user's sign."""
        return objective.shown(self.scores[objective.name].value)


class Known:
    """A run's account, and what follows from it."""

    def __init__(self, account: Account) -> None:
        self.account = account
        self.objectives = account.objectives

    @property
    def final(self) -> Mapping[str, Any] | None:
        """The final table."""
        return self.account.final

    @cached_property
    def measured_objectives(self) -> tuple[ObjectiveFacts, ...]:
        """Those that are no costs, or all where there are only costs."""
        return tuple(o for o in self.objectives if o.cost is None) or self.objectives

    @cached_property
    def mean_objective(self) -> ObjectiveFacts:
        """What the mean of a score is: the one measured objective, or the mean of several."""
        if len(self.measured_objectives) == 1:
            return self.measured_objectives[0]
        return ObjectiveFacts("mean of the objectives")

    @cached_property
    def scored(self) -> list[tuple[Evaluation, Score]]:
        """The candidates that have a score, in the order of asking."""
        found = sorted(self.account.evaluations.values(), key=lambda e: e.id)
        return [(e, e.score) for e in found if e.score is not None]

    @cached_property
    def top_rung(self) -> int:
        """The rung of those that no race has dropped."""
        return max((score.rung for _, score in self.scored), default=0)

    @cached_property
    def shown_candidates(self) -> list[tuple[Evaluation, Score]]:
        """The scored candidates, or evenly some of them."""
        if len(self.scored) <= MAX_POINTS:
            return self.scored
        places = np.linspace(0, len(self.scored) - 1, MAX_POINTS).round().astype(int)
        return [self.scored[place] for place in places]

    @property
    def left_out(self) -> str:
        """That charts do not show all candidates, if so."""
        if len(self.shown_candidates) == len(self.scored):
            return ""
        shown, scored = len(self.shown_candidates), len(self.scored)
        return f"Of {scored:,} candidates {shown:,} are drawn, evenly over the search."

    # --- the models that are shown by name --------------------------------------------------------

    @property
    def part(self) -> str:
        """Whose items the scores of `front`, `chosen` and `references` rest on."""
        return "search" if self.final is None else "holdout"

    @cached_property
    def chosen(self) -> Row | None:
        """The best candidate: the chosen one, or before the end the best by its search score."""
        if self.final is not None:
            return _of_final(self.final["best"])
        top = best([evaluation for evaluation, _ in self.scored])
        return None if top is None or top.score is None else _of_score(top.id, top.score)

    @cached_property
    def chosen_candidate(self) -> Candidate | None:
        """The same as a candidate, with its recipe."""
        if self.chosen is None or self.chosen.candidate is None:
            return None
        return self.account.ledger.candidates[self.chosen.candidate]

    @cached_property
    def front(self) -> list[Row]:
        """The front of a run with several objectives; of one that goes on, by search scores."""
        if len(self.objectives) < 2:
            return []
        if self.final is not None:
            return [_of_final(row) for row in self.final["front"] if "holdout" in row]
        alive = [(e.id, s) for e, s in self.scored if s.rung == self.top_rung]
        if not alive:
            return []
        kept = non_dominated(np.array([s.values for _, s in alive]))
        return [_of_score(*pair) for pair, is_best in zip(alive, kept, strict=True) if is_best]

    @cached_property
    def knee(self) -> Row | None:
        """Where the front bulges most, by the items that choices are made on."""
        if len(self.front) < 3:
            return None
        if self.final is not None:
            chosen = knee_of(self.final["front"])
            return next((row for row in self.front if row.candidate == chosen), None)
        values = [[row.scores[o.name].value for o in self.objectives] for row in self.front]
        return self.front[knee(values)]

    @cached_property
    def references(self) -> list[Row]:
        """The models themselves, their average, and the best point of the grid; on `part`."""
        if self.final is not None:
            rows = self.final["references"].items()
            found = [_of_final(row, label) for label, row in rows if "holdout" in row]
            return found[:MAX_REFERENCES]
        return self.references_searched

    @cached_property
    def references_searched(self) -> list[Row]:
        """The same on the search items, as the search knew them."""
        rows = [
            Row(
                named(label, None),
                None,
                {name: _estimate(e) for name, e in entry["objectives"].items()},
                _estimate(entry["mean"]),
            )
            for label, entry in self.account.references_told.items()
        ]
        if not rows and self.final is not None:  # older ledgers have them in the final table alone
            rows = [
                _of_final(row, label, "search")
                for label, row in self.final["references"].items()
                if "search" in row
            ]
        grid = [row for row in rows if row.name.startswith(POINT)]
        others = [row for row in rows if not row.name.startswith(POINT)]
        champion = sorted(grid, key=lambda row: -row.mean.value)[:1]
        return [*others, *champion][:MAX_REFERENCES]

    def values(self, objective: ObjectiveFacts) -> NDArray[np.float64]:
        """Of the candidates that are drawn, in the user's sign."""
        found = [score.objectives[objective.name].value for _, score in self.shown_candidates]
        return objective.sign * np.array(found, dtype=np.float64)


def named(label: str | None, candidate: CandidateId | None) -> str:
    """What a row is called."""
    if label and label.startswith(RECOMMENDED):
        return "the searcher's recommendation"
    if label:
        return label.replace(ARITHMETIC, POINT)
    return f"candidate {candidate}"


def _of_final(row: Mapping[str, Any], label: str = "", part: str = "holdout") -> Row:
    scores = {name: Estimate(**estimate) for name, estimate in row[part].items()}
    mean = Estimate(**row[f"{part}_mean"], num_items=sum(e.num_items for e in scores.values()))
    return Row(named(label or row["label"], row["candidate"]), row["candidate"], scores, mean)


def _of_score(id_: CandidateId, score: Score) -> Row:
    return Row(named(None, id_), id_, score.objectives, _estimate(mean_of(score)))


def _estimate(told: Mapping[str, Any]) -> Estimate:
    return Estimate(told["value"], told["standard_error"], told["num_items"])


def score_rows(known: Known, rows: Sequence[Row]) -> list[list[str]]:
    """Rows of a table: a name, and each objective with its interval."""
    return [
        [
            row.name,
            *(
                told(o, row.scores[o.name]) if o.name in row.scores else "-"
                for o in known.objectives
            ),
        ]
        for row in rows
    ]
