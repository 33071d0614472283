"""What came of a sweep: searchers compared over seeds, read from the runs' folders."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.errors import EvomergeError
from evomerge.ledger import LEDGER
from evomerge.results.account import share_dominated
from evomerge.results.watch import status

Json = dict[str, Any]

BLANK = ("held_out", "search", "gain", "hypervolume", "minutes", "final")  # before there is a run


def summary(folders: Mapping[str, Mapping[int, Path]], unfinished: Collection[Path] = ()) -> Json:
    """All runs, and each searcher over its finished ones, as JSON.

    folders: searcher -> seed -> the run's folder, which need not be there yet. The first searcher
        is what the others are compared with, seed by seed.
    unfinished: folders whose results, if there are any, are not those of the sweep.
    """
    runs = [
        _run(name, seed, folder, is_other=folder in unfinished)
        for name, by_seed in folders.items()
        for seed, folder in by_seed.items()
    ]
    _add_hypervolumes(runs)
    finished = [run for run in runs if run["final"] is not None]
    searchers = []
    for name, by_seed in folders.items():
        own = [run for run in finished if run["searcher"] == name]
        row: Json = {"searcher": name, "finished": len(own), "of": len(by_seed)}
        for key in ("held_out", "search", "gain", "hypervolume", "item_evaluations", "minutes"):
            row[key] = over_seeds([run[key] for run in own if run[key] is not None])
        row["against_first"] = _paired(finished, next(iter(folders)), name)
        searchers.append(row)
    return {
        "searchers": searchers,
        "runs": [{key: value for key, value in run.items() if key != "final"} for run in runs],
    }


def log_of(folder: Path) -> Path:
    """What a run's driver said."""
    return folder.with_name(f"{folder.name}.log")


def failure_of(folder: Path) -> str | None:
    """Why a run's last driver failed, from what it said; None where it did not."""
    with suppress(OSError):
        lines = log_of(folder).read_text(encoding="utf-8", errors="replace").splitlines()
        said = [number for number, line in enumerate(lines) if line.startswith("evomerge: ")]
        if said:
            return "; ".join(line.strip().removeprefix("evomerge: ") for line in lines[said[-1] :])
        if any(line.startswith("Traceback") for line in lines):
            return lines[-1]
    return None


def over_seeds(values: Sequence[float]) -> Json | None:
    """Mean, standard error, and 95 % interval by Student's t; None of nothing.

    One value alone has neither error nor interval.
    """
    if not values:
        return None
    mean, count = float(np.mean(values)), len(values)
    if count == 1:
        return {"mean": mean, "standard_error": None, "low": None, "high": None, "seeds": 1}
    from scipy.stats import t

    error = float(np.std(values, ddof=1)) / count**0.5
    half = float(t.ppf(0.975, count - 1)) * error
    ends = {"low": mean - half, "high": mean + half}
    return {"mean": mean, "standard_error": error, **ends, "seeds": count}


def _run(name: str, seed: int, folder: Path, *, is_other: bool) -> Json:
    """One run, as far as it is."""
    known: Json = {"searcher": name, "seed": seed, "folder": str(folder)}
    nothing = dict.fromkeys(BLANK) | {"candidates": 0, "item_evaluations": 0}
    if not (folder / LEDGER).exists():
        reason = failure_of(folder)
        return known | nothing | {"state": _unfinished("waiting", reason), "reason": reason}
    try:
        facts = status(folder)
    except EvomergeError as error:  # of a ledger that is damaged
        return known | nothing | {"state": "failed", "reason": str(error)}
    if is_other and facts["state"] == "finished":
        reason = failure_of(folder)
        facts |= {"final": None}
        known |= {"state": _unfinished("stopped", reason), "reason": reason}
    else:
        known |= _state(facts, folder)
    final, incumbent = facts["final"], facts["incumbent"]
    return {
        **known,
        "candidates": facts["candidates"],
        "held_out": final["best"]["holdout_mean"]["value"] if final else None,
        "search": incumbent["mean"]["value"] if incumbent else None,
        "gain": final["gain_over_best_reference"]["value"] if final else None,
        "hypervolume": None,
        "item_evaluations": facts["item_evaluations"],
        "minutes": facts["seconds"] / 60,
        "final": final,
    }


def _state(facts: Json, folder: Path) -> Json:
    """`failed`, with the reason, is one that has stopped by an error of its own."""
    if facts["state"] != "stopped" or facts["ended"] == "interrupted":
        return {"state": facts["state"], "reason": None}
    reason = facts["ended"] or failure_of(folder)
    return {"state": _unfinished("stopped", reason), "reason": reason}


def _unfinished(state: str, reason: str | None) -> str:
    return state if reason is None else "failed"


def _add_hypervolumes(runs: Sequence[Json]) -> None:
    """How much of the box each front dominates on the holdout (see `shares_of_holdout`)."""
    shares = shares_of_holdout([run["final"] for run in runs])
    for run, share in zip(runs, shares, strict=True):
        run["hypervolume"] = share


def shares_of_holdout(finals: Sequence[Json | None]) -> list[float | None]:
    """How much of the box each run's front dominates on the holdout.

    The box is the same for all runs: from the worst to the best value of each objective in any
    front and any reference (see `share_dominated`).

    finals: the final tables; None stays for runs without one, or without a front.
    """
    fronts = [final for final in finals if final and final["front"]]
    if not fronts:
        return [None] * len(finals)
    names = list(fronts[0]["front"][0]["holdout"])

    def values(rows: Sequence[Json]) -> list[list[float]]:
        return [[row["holdout"][name]["value"] for name in names] for row in rows]

    everything = np.array(
        [
            point
            for final in fronts
            for point in values([*final["front"], *final["references"].values()])
        ]
    )
    worst, best = everything.min(axis=0), everything.max(axis=0)
    return [
        share_dominated(values(final["front"]), worst, best) if final and final["front"] else None
        for final in finals
    ]


def _paired(finished: Sequence[Json], first: str, name: str) -> Json | None:
    """Held-out values less the first searcher's, seed by seed."""
    if name == first:
        return None
    values = {(run["searcher"], run["seed"]): run["held_out"] for run in finished}
    seeds = sorted(seed for of, seed in values if of == name and (first, seed) in values)
    gaps = [values[name, seed] - values[first, seed] for seed in seeds]
    found = over_seeds(gaps)
    if found is None:
        return None
    return {**found, "better": sum(g > 0 for g in gaps), "worse": sum(g < 0 for g in gaps)}
