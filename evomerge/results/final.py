"""The last steps of a run: choose among the finalists on fresh items, then open the holdout.

Where a search overfits is its last choice: the best of many noisy scores is partly luck. So the
finalists (the best candidates, and the searcher's own recommendation) answer items that no searcher
saw, the choice is made there, and the holdout only reports it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from evomerge.errors import ModelError, Problem
from evomerge.fitness.agreement import nearest
from evomerge.fitness.estimators.estimate import Items, estimate, who_can_answer
from evomerge.fitness.select import Select
from evomerge.fitness.split import Split
from evomerge.ledger import FINAL, REFERENCES, Ledger
from evomerge.measurement import Measurer, requests_for
from evomerge.pareto import non_dominated
from evomerge.protocols import SearchSpace
from evomerge.records import (
    Candidate,
    CandidateId,
    Estimate,
    Evaluation,
    Genome,
    Objective,
    Score,
)
from evomerge.results.intervals import mean_estimate, mean_of_objectives, paired_gain
from evomerge.results.references import ARITHMETIC, grid_cohort
from evomerge.stopping import Spent

NUM_GRID_FINALISTS = 3
Json = dict[str, Any]


@dataclass(frozen=True)
class Finale:
    """What the last choice needs.

    told: the estimates that the searcher was told last, of those that it was told of.
    company: who is chosen from and who is reported, with whom answers may be compared.
    spent: what the search needed, where other answers may be there: of cohorts that were under way
        when it ended, which depend on the workers. None where all answers count.
    """

    ledger: Ledger
    measurer: Measurer
    objectives: tuple[Objective, ...]
    split: Split
    select: Select
    seed: int
    told: Mapping[CandidateId, Score] = field(default_factory=dict)
    company: tuple[Candidate, ...] = ()
    spent: Spent | None = None

    @property
    def measured(self) -> tuple[Objective, ...]:
        """The objectives that are no costs."""
        return tuple(o for o in self.objectives if o.cost is None)

    def best_on(self, candidates: Sequence[Candidate], items: Items) -> list[Candidate]:
        """Those that could be measured, the chosen one first, ties by the order given."""
        alive = [c for c in candidates if self.is_alive(c, items)]
        if not alive:
            return []
        estimates = [self.estimates(c, items) for c in alive]
        return [alive[i] for i in self.select.order(estimates)]

    def front_on(self, candidates: Sequence[Candidate], items: Items) -> list[Candidate]:
        """Those that no other dominates on these items."""
        alive = [c for c in candidates if self.is_alive(c, items)]
        if not alive:
            return []
        values = np.array([[e.value for e in self.estimates(c, items).values()] for c in alive])
        return [c for c, is_best in zip(alive, non_dominated(values), strict=True) if is_best]

    def estimates(self, candidate: Candidate, items: Items) -> dict[str, Estimate]:
        """Every objective on these items, which the candidate must have answered."""
        measurements = self.ledger.measurements
        peers = self.peers(items) if any(o.agreement for o in self.objectives) else ()
        return estimate(self.objectives, measurements, candidate, items, peers)

    def peers(self, items: Items) -> list[Candidate]:
        """Who of the company has answered these items."""
        known = self.ledger.measurements
        return [
            candidate
            for candidate in who_can_answer(self.company, known, items)
            if not any(known.missing(candidate.fingerprint, t, ids) for t, ids in items.items())
        ]

    def near(self, candidate: Candidate, items: Items) -> list[str]:
        """The neighbours among these, as the first objective that compares answers counts them."""
        count = next((o.agreement for o in self.objectives if o.agreement), 0)
        return nearest(candidate, self.peers(items), count) if count else []

    def is_alive(self, candidate: Candidate, items: Items) -> bool:
        """Whether there is a model that has not failed at these items, nor on the holdout."""
        measurements = self.ledger.measurements
        return candidate.recipe is not None and all(
            measurements.can_answer(candidate.fingerprint, part)
            for part in (items, self.split.holdout)
        )


def choose_and_report(
    finale: Finale,
    ranked: Sequence[Evaluation],
    num_finalists: int,
    references: Sequence[Candidate],
    grid_scores: Mapping[int, Any],
    recommended: Candidate | None,
    on_phase: Callable[[str], None],
) -> Json | None:
    """Measure the finalists and the holdout; the final table as JSON, None without candidates.

    Args:
        finale: the run's parts.
        ranked: all evaluated candidates, best first.
        num_finalists: how many of them are measured again.
        references: as they were measured before the search.
        grid_scores: the estimator's scores of the task arithmetic grid.
        recommended: the searcher's recommendation, as a candidate.
        on_phase: called with the name of what begins.
    """
    ledger, split = finale.ledger, finale.split
    fresh: Items = split.fresh if any(split.fresh.values()) else split.search
    grid = grid_cohort(references, ledger).candidates
    in_order = sorted(
        (c for c in grid if c.id in grid_scores),
        key=lambda c: (-grid_scores[c.id].rung, -grid_scores[c.id].mean, -c.id),
    )
    rivals = in_order[:NUM_GRID_FINALISTS]

    while True:  # until nobody of those shown fails; each round loses one who does
        finalists = pick_finalists(finale, ranked, num_finalists, fresh)
        if recommended is not None:
            finalists.append(recommended)
        finale = replace(finale, company=(*finalists, *rivals))
        on_phase("finalists")
        finale.measurer.measure(FINAL, requests_for([*finalists, *rivals], fresh))
        if not all(finale.is_alive(c, fresh) for c in finalists if c is not recommended):
            continue
        best = finale.best_on(finalists, fresh)[:1]
        if not best:
            return None
        front = finale.front_on(finalists, fresh) if len(finale.objectives) > 1 else []
        compared = [c for c in references if not c.label.startswith(ARITHMETIC)]
        compared += finale.best_on(rivals, fresh)[:1]
        shown = [c for c in (*best, *front, *compared) if finale.is_alive(c, {})]
        finale = replace(finale, company=tuple(shown))
        on_phase("holdout")
        finale.measurer.measure(FINAL, requests_for(shown, split.holdout))
        if all(finale.is_alive(c, {}) for c in shown):
            return final_table(finale, best[0], front, compared, fresh)


def pick_finalists(
    finale: Finale, ranked: Sequence[Evaluation], count: int, fresh: Items
) -> list[Candidate]:
    """The best candidates, no recipe twice; the best in each single objective come first.

    Those that failed in an earlier round of the last choice make room for the next best.
    """
    candidates = finale.ledger.candidates
    scored = [e for e in ranked if e.score is not None and finale.is_alive(candidates[e.id], fresh)]
    top = max((e.score.rung for e in scored if e.score), default=0)
    complete = [e for e in scored if e.score is not None and e.score.rung == top]
    champions = [
        max(complete, key=lambda e: e.score.values[k] if e.score else 0.0)
        for k in range(len(complete[0].score.values) if complete and complete[0].score else 0)
    ]
    picked: dict[str, Candidate] = {}
    for evaluation in (*(champions if len(champions) > 1 else ()), *scored):
        candidate = candidates[evaluation.id]
        if len(picked) < count:
            picked.setdefault(candidate.fingerprint, candidate)
    return list(picked.values())


def recommendation(
    genome: Genome | None, space: SearchSpace, ledger: Ledger, num_told: int
) -> Candidate | None:
    """The searcher's recommended genome as a candidate, committed before it is measured."""
    if genome is None or space.violations(genome):
        return None
    label = f"recommended after {num_told}"
    for candidate in ledger.candidates.values():
        if candidate.label == label:
            return candidate
    # After the references, and the same whether or not there were recommendations before this one.
    number = -1 - len(ledger.asked_ids()[REFERENCES]) - num_told
    candidate = Candidate(number, genome, space.decode(genome), label=label)
    ledger.asked(FINAL, 1, [candidate])
    return candidate


def final_table(
    finale: Finale,
    best: Candidate,
    front: Sequence[Candidate],
    references: Sequence[Candidate],
    fresh: Items,
) -> Json:
    """Everything that is reported, as JSON: values on the holdout with standard errors.

    The best reference is the one that is best on the holdout itself, which favours it; each
    objective has its own in `gains`.

    Raises:
        ModelError: none of the references could be measured.
    """
    measurements, split = finale.ledger.measurements, finale.split
    alive = [c for c in references if finale.is_alive(c, split.holdout)]
    if not alive:
        failures = [
            (c.label, measurements.why_not(c.fingerprint, split.holdout, FINAL)) for c in references
        ]
        raise ModelError(Problem(f"model {n}", f.reason if f else "failed") for n, f in failures)
    rows = {c.label: describe(finale, c, fresh) for c in alive}

    def gain(objectives: Sequence[Objective], values: Mapping[str, float]) -> Json:
        rival = max(alive, key=lambda c: values[c.label])
        pair = best.fingerprint, rival.fingerprint
        near = {c.fingerprint: finale.near(c, split.holdout) for c in (best, rival)}
        value, low, high = paired_gain(
            objectives, measurements, *pair, split.holdout, finale.seed, near
        )
        return {"reference": rival.label, "value": value, "low": low, "high": high}

    means = {label: row["holdout_mean"]["value"] for label, row in rows.items()}
    return {
        "best": describe(finale, best, fresh),
        "front": [describe(finale, c, fresh) for c in front],
        "references": rows,
        "gain_over_best_reference": gain(finale.objectives, means),
        "gains": {
            o.name: gain([o], {label: r["holdout"][o.name]["value"] for label, r in rows.items()})
            for o in finale.measured
        },
    }


def describe(finale: Finale, candidate: Candidate, fresh: Items) -> Json:
    """One row: what the search thought of a candidate, what fresh items and the holdout say.

    `search` are the means of all that it had to answer among the search items; `told` are the
    estimator's own estimates, which steered the search. Winner's curses are of the latter where
    there are any: with `full` the two have the same values.
    """
    split = finale.split
    row: Json = {"candidate": candidate.id, "label": candidate.label}
    measurements = finale.ledger.measurements
    if failed := measurements.failed_items(candidate.fingerprint):
        row["failed_items"] = {task: len(items) for task, items in failed.items()}
    for name, items in {"search": split.search, "fresh": fresh, "holdout": split.holdout}.items():
        answered = {
            task: measurements.answered(candidate.fingerprint, task, ids)
            for task, ids in items.items()
        }
        if name == "search" and finale.spent is not None and fresh is not split.search:
            spent, fingerprint = finale.spent, candidate.fingerprint
            answered = {t: spent.part_of(fingerprint, t, ids) for t, ids in answered.items()}
        if all(answered.values()):
            estimates = finale.estimates(candidate, answered)
            if not all(np.isfinite(e.value) for e in estimates.values()):
                continue  # nobody else answered the same: there is no agreement to tell
            row[name] = {objective: asdict(e) for objective, e in estimates.items()}
            shares = mean_of_objectives(
                finale.objectives,
                measurements,
                candidate.fingerprint,
                answered,
                finale.near(candidate, answered),
            )
            value, error = mean_estimate(shares)
            row[f"{name}_mean"] = {"value": value, "standard_error": error}
    if (score := finale.told.get(candidate.id)) is not None:
        row["told"] = {name: asdict(e) for name, e in score.objectives.items()}
        row["told_mean"] = {"value": score.mean}
    if any(objective.agreement for objective in finale.objectives):
        return row  # the search compared with other candidates than the holdout does
    if (source := next((s for s in ("told", "search") if s in row), None)) is not None:
        row["winners_curse"] = row[f"{source}_mean"]["value"] - row["holdout_mean"]["value"]
        row["winners_curses"] = {
            o.name: row[source][o.name]["value"] - row["holdout"][o.name]["value"]
            for o in finale.measured
        }
    return row
