"""Runs beside each other: at equal budgets, on the holdout, and whether the difference is chance.

Everything is read from the runs' folders; no model is opened. The form of the result is described
in docs/compare.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evomerge.errors import ConfigurationError, Problem, nearest
from evomerge.ledger import LEDGER
from evomerge.recipe import canonical_json
from evomerge.results.comparable import (
    check_comparable,
    differing,
    notices,
    same,
    without_repeats,
)
from evomerge.results.contender import ASPECTS, Contender, Group, read_contender
from evomerge.results.equal_budget import Row, box, curve, grid, mean_curve
from evomerge.results.group_names import group_names
from evomerge.results.pairs import hypervolume_pairs, score_pairs
from evomerge.results.sweep import over_seeds, shares_of_holdout

Json = dict[str, Any]
Curves = Mapping[int, Mapping[str, Row]]  # by the id of the run's object

COSTS = ("item_evaluations", "search_item_evaluations", "candidates", "seconds")


def compare(folders: Sequence[str | Path], by: str | None = None) -> Json:
    """Compare runs, as JSON.

    folders: of the runs, or of sweeps; runs that differ in their seeds alone are a group.
    by: one of `ASPECTS`: runs that are alike in that are a group, whatever else they differ in.

    Raises:
        ConfigurationError: a folder has no run or is there twice, `by` is unknown, or the runs were
            scored by other tasks.
        LedgerDamaged: a ledger cannot be read.
    """
    if by is not None and by not in ASPECTS:
        hint = f"{nearest(by, ASPECTS)}; there are {', '.join(ASPECTS)}"
        raise ConfigurationError(Problem("--by", f"runs cannot be grouped by {by!r}", hint))
    paths = _runs([Path(folder) for folder in folders])
    if not paths:
        raise ConfigurationError("no run folders were given")
    for path, count in Counter(path.resolve() for path in paths).items():
        if count > 1:
            raise ConfigurationError(Problem(str(path), "is given twice"))
    contenders = [read_contender(p, name) for p, name in zip(paths, _short(paths), strict=True)]
    check_comparable(contenders)
    kept, told = without_repeats(contenders)
    groups = _groups(kept, by)
    told += notices(kept)
    if by is not None and any(differing([run.settings for run in g.runs]) for g in groups):
        told.append(f"grouped by {by}: within a group runs differ in other things too")
    return _compared(groups, by, told)


def _runs(paths: Sequence[Path]) -> list[Path]:
    """The runs' folders: those in a sweep's; the files that it has beside them are passed by."""
    beside = {path.parent for path in paths if (path / LEDGER).exists()}
    found = []
    for path in paths:
        inside = [] if (path / LEDGER).exists() else sorted(path.glob(f"*/{LEDGER}"))
        if not (path.is_file() and path.parent in beside):
            found += [ledger.parent for ledger in inside] or [path]
    return found


def _short(paths: Sequence[Path]) -> list[str]:
    """The folders' names; whole paths where two have the same."""
    names = [path.resolve().name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _groups(runs: Sequence[Contender], by: str | None) -> list[Group]:
    """In the order of their first runs."""
    found: dict[str, list[Contender]] = {}
    for run in runs:
        whole = {"settings": dict(run.settings), "budget": dict(run.budget)}
        found.setdefault(canonical_json(whole) if by is None else run.aspect(by), []).append(run)
    members = list(found.values())
    return [Group(n, tuple(m)) for n, m in zip(group_names(members, by), members, strict=True)]


def _compared(groups: Sequence[Group], by: str | None, told: list[str]) -> Json:
    runs = [run for group in groups for run in group.runs]
    first = runs[0]
    alike = same(run.objectives for run in runs)
    has_fronts = alike and len(first.objectives) > 1
    shares = shares_of_holdout([run.final if has_fronts else None for run in runs])
    held = {id(run): share for run, share in zip(runs, shares, strict=True)}
    points = grid(runs)
    boxed = box(runs) if has_fronts else None
    curves = {id(run): curve(run, points, boxed) for run in runs}
    measured = [o.name for o in first.objectives if o.cost is None]
    found: Json = {
        "score": {
            "name": measured[0] if len(measured) == 1 else "mean of the objectives",
            "better": "higher" if first.sign > 0 else "lower",
            "objectives": [o.name for o in first.objectives] if alike else None,
        },
        "by": by,
        "budget": int(points[-1]) if len(points) else None,
        "grid": points.tolist(),
        "runs": [
            _run(run, group.name, curves[id(run)], held[id(run)])
            for group in groups
            for run in group.runs
        ],
        "groups": [_group(group, curves, held) for group in groups],
        "differs": _differences(groups),
        "pairs": score_pairs(groups, by),
        "hypervolume_pairs": hypervolume_pairs(groups, by, held),
        "notices": told,
    }
    return {**found, "words": _words(found)}


def _differences(groups: Sequence[Group]) -> list[Json]:
    """The experiment's keys that differ, with each group's values; models by their content."""
    runs = [[{**run.settings, **run.budget} for run in group.runs] for group in groups]
    return [
        {
            "key": key,
            "values": {
                group.name: list({canonical_json(s.get(key)): s.get(key) for s in own}.values())
                for group, own in zip(groups, runs, strict=True)
            },
        }
        for key in differing([settings for own in runs for settings in own])
    ]


def _run(run: Contender, group: str, own: Mapping[str, Row], share: float | None) -> Json:
    return {
        "name": run.name,
        "folder": str(run.folder),
        "experiment": run.experiment,
        "group": group,
        "seed": run.seed,
        "state": run.state,
        **run.costs,
        "search": _last(own),
        "held_out": run.held_out,
        "chosen": run.final["best"]["candidate"] if run.final else None,
        "hypervolume": share,
        "hypervolume_search": own["hypervolume"][-1] if own["hypervolume"] else None,
        "curve": dict(own),
    }


def _last(of: Mapping[str, Row]) -> Json | None:
    """What a curve comes to."""
    if not of["value"] or of["value"][-1] is None:
        return None
    return {key: of[key][-1] for key in ("value", "low", "high")}


def _group(group: Group, curves: Curves, held: Mapping[int, float | None]) -> Json:
    own = [curves[id(run)] for run in group.runs if run.steps]
    # One run has its own interval: that of the items. Several have that of the seeds.
    whole = dict(own[0]) if len(own) == 1 else mean_curve([c["value"] for c in own])
    areas = mean_curve([c["hypervolume"] for c in own])
    whole |= {"hypervolume": areas["value"]}
    whole |= {"hypervolume_low": areas["low"], "hypervolume_high": areas["high"]}
    shares = [held[id(run)] for run in group.finished]
    scores = [run.held_out["value"] for run in group.finished if run.held_out]
    held_out = over_seeds(scores)
    if len(scores) == 1 and held_out is not None and (alone := group.finished[0].held_out):
        held_out |= {key: alone[key] for key in ("standard_error", "low", "high")}
    return {
        "name": group.name,
        "runs": [run.name for run in group.runs],
        "seeds": [run.seed for run in group.runs],
        "finished": len(group.finished),
        "search": _last(whole),
        "held_out": held_out,
        "hypervolume": over_seeds([share for share in shares if share is not None]),
        "costs": {key: over_seeds([run.costs[key] for run in group.runs]) for key in COSTS},
        "curve": whole,
    }


def _words(found: Mapping[str, Any]) -> list[str]:
    """What can be told and what cannot, a sentence for each pair."""
    lines = [pair["words"] for pair in found["pairs"]]
    lines += [f"By hypervolume, {pair['words']}" for pair in found["hypervolume_pairs"]]
    if len(found["groups"]) < 2:
        return [*lines, "There is one configuration: nothing to compare it with."]
    if not found["pairs"]:
        lines.append("Fewer than two of them are finished: nothing can be told on the holdout.")
    elif all(group["finished"] == 1 for group in found["groups"]):
        lines.append(
            "Each is one run, so this is about these models; which settings are better, only "
            "several seeds can tell."
        )
    return lines
