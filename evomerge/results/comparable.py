"""Whether runs can be compared at all, and what makes them less comparable."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from evomerge.errors import ConfigurationError, Problem
from evomerge.recipe import canonical_json
from evomerge.results.contender import Contender


def same(values: Iterable[Any]) -> bool:
    """Whether all are equal."""
    every = list(values)
    return all(value == every[0] for value in every)


def check_comparable(runs: Sequence[Contender]) -> None:
    """That the scores are of the same thing.

    Raises:
        ConfigurationError: they are not; names every run that differs from the first.
    """
    first, problems = runs[0], []
    for run in runs[1:]:
        hint = "a score says nothing of another one: compare runs of the same tasks"
        if run.yardstick != first.yardstick:
            what = f"its score is {told(run)}; that of {first.name} is {told(first)}"
            problems.append(Problem(str(run.folder), what, hint))
        elif other := [t for t in first.items if run.items.get(t) != first.items[t]]:
            what = f"the items of {', '.join(other)} are others than those of {first.name}"
            problems.append(Problem(str(run.folder), what, hint))
    if problems:
        raise ConfigurationError(problems)


def told(run: Contender) -> str:
    """What a score is made of, in a line."""
    parts = [
        f"{share:+.3g} {task}" + (f".{column}" if column != "score" else "")
        for (task, column, _), share in run.yardstick.items()
    ]
    return " ".join(parts).removeprefix("+") or "a cost"


def without_repeats(runs: Sequence[Contender]) -> tuple[list[Contender], list[str]]:
    """Each experiment and seed once: the same run again is no further evidence."""
    kept: dict[str, Contender] = {}
    notices = []
    for run in runs:
        said = {"settings": dict(run.settings), "budget": dict(run.budget), "seed": run.seed}
        key = canonical_json(said)
        if (known := kept.setdefault(key, run)) is not run:
            why = f"is {known.name} again: the same experiment and seed"
            notices.append(f"{run.name} {why}; it is left out")
    return list(kept.values()), notices


def notices(runs: Sequence[Contender]) -> list[str]:
    """What makes runs less comparable, in words."""
    found = []
    if len(runs) > 1 and not same(run.objectives for run in runs):
        names = "; ".join(f"{r.name}: {', '.join(o.name for o in r.objectives)}" for r in runs)
        found.append(
            f"the runs have other objectives ({names}), though the same tasks make up their scores:"
            " scores are compared, fronts are not"
        )
    if not same(run.holdout for run in runs):
        found.append(
            "the runs hold out other items: their chosen models are compared unpaired, by standard"
            " errors"
        )
    if not same(None if run.split is None else run.split.search for run in runs):
        found.append("the runs search on other items: their curves differ by that too")
    if not same(run.aspect("estimator") for run in runs):
        found.append(
            "the runs have other estimators: search scores may be biased in other ways, so judge"
            " by the holdout"
        )
    if not same(run.models for run in runs):
        found.append("the runs merge other models: what differs may be theirs")
    if waiting := [f"{run.name} ({run.state})" for run in runs if run.final is None]:
        found.append(f"not finished, so there are search curves alone: {', '.join(waiting)}")
    return found


def differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys that are not the same in all."""
    keys = sorted({key for one in settings for key in one})
    return [key for key in keys if not same(one.get(key) for one in settings)]
