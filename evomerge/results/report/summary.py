"""What was searched, what was found, and whether it was worth it, in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from math import hypot

import numpy as np
from numpy.typing import NDArray

from evomerge.records import Estimate
from evomerge.results.account import ObjectiveFacts
from evomerge.results.report.known import Known, Row, named, score_rows
from evomerge.results.report.marks import better, half_width, number, signed
from evomerge.results.report.parts import Figures, Part, Section, Table, Text
from evomerge.stopping import CONFIDENCE


def summary(known: Known) -> Section:
    """The summary in words, with the numbers that matter most."""
    parts: list[Part] = [Text(found(known), strong=verdict(known)), Figures(figures(known))]
    parts += [Text(text) for text in _more(known) if text]
    if known.chosen is not None or known.references:
        parts.append(scores(known))
    return Section("summary", "Summary", parts)


def _more(known: Known) -> tuple[str, ...]:
    return front_in_words(known), luck(known), searched(known), spent(known)


def searched(known: Known) -> str:
    """What there was to search, and with what."""
    run = known.account
    experts, objectives = list(run.experts), known.objectives
    text = f"The search merged {count(len(experts), 'expert')}"
    text += f" ({listed(experts)})" if experts else ""
    base = run.experiment.get("base")
    text += f" with the base {base}." if isinstance(base, str) else "."
    space, searcher = (run.experiment.get(key) for key in ("space", "searcher"))
    if isinstance(space, dict) and "kind" in space:
        operator = f" of the operator {space['operator']}" if space.get("operator") else ""
        text += f" Its space, {space['kind']}{operator},"
        text += f" has {count(len(run.genes), 'gene')}" if run.genes else " was searched"
        if isinstance(searcher, dict) and "kind" in searcher:
            join = ", searched by" if run.genes else " by"
            text += f"{join} {searcher['kind']}"
        text += "."
    aims = [f"{o.name} ({better(o)})" for o in objectives]
    return text + (f" It looked for {listed(aims)}." if aims else "")


def spent(known: Known) -> str:
    """What it cost, and how it ended."""
    run = known.account
    failed = sum(e.failure is not None for e in run.evaluations.values())
    text = f"It tried {count(len(run.evaluations), 'candidate')}"
    text += f", {failed:,} of which failed" if failed else ""
    text += f", with {run.ledger.item_evaluations:,} item evaluations in all"
    text += f" and {duration(run.seconds)} of work"
    sessions = len(run.sessions)
    text += f" in {sessions} sessions." if sessions > 1 else "."
    ended = (known.final or {}).get("ended")
    return f"{text} It ended because {ended}." if ended else text


def verdict(known: Known) -> str:
    """Whether the search was worth it, in a sentence."""
    if known.final is None:
        return "This run is not finished." if known.chosen else "Nothing was found so far."
    gain = known.final["gain_over_best_reference"]
    rival = named(gain["reference"], None)
    by_mean = f", by {known.mean_objective.name}" if len(known.objectives) > 1 else ""
    by_mean = by_mean.replace(", by mean of", ", by the mean of")
    if gain["low"] > 0:
        return f"The search was worth it{by_mean}: what it found is better than {rival}."
    if gain["high"] < 0:
        return f"The search was not worth it{by_mean}: {rival} is better than what it found."
    return f"It is not shown that the search was worth it{by_mean}: {rival} may be as good."


def found(known: Known) -> str:
    """What the best is, and by how much."""
    if known.chosen is None:
        if not known.account.evaluations:
            return "No candidate has been evaluated yet."
        return "No candidate could be measured; the failures below say why."
    best = f"{known.chosen.name} scores {scored(known, known.chosen)}"
    if known.final is None:
        return (
            f"So far the best is {best}, on the search items. Only a finished run is measured on "
            "the holdout: until then part of that score is luck."
        )
    gain = known.final["gain_over_best_reference"]
    sign = known.mean_objective.sign
    low, high = sorted((sign * gain["low"], sign * gain["high"]))
    items = sum(known.account.num_items.get("holdout", {}).values())
    where = f"the {items:,} items of the holdout" if items else "the holdout"
    text = f"On {where}, which no choice has seen, {best}. "
    text += f"Against {named(gain['reference'], None)}, the best of what needs no search, "
    text += f"that is {signed(sign * gain['value'])}"
    text += " on the mean of the objectives" if len(known.measured_objectives) > 1 else ""
    text += f", with a 95 % interval of [{signed(low)}, {signed(high)}]"
    text += " (paired bootstrap over items)."
    return text


def front_in_words(known: Known) -> str:
    """The front beside the references, by their values alone."""
    if not known.front:
        return ""
    text = f"The front has {count(len(known.front), 'candidate')}"
    is_one = len(known.front) == 1
    text += ". " if is_one else ", none of which is better in everything than another. "
    ours, theirs = (
        np.array([[row.scores[o.name].value for o in known.objectives] for row in rows])
        for rows in (
            known.front,
            [r for r in known.references if len(r.scores) == len(known.objectives)],
        )
    )
    if not len(theirs):
        return text
    free = sum(not any(_dominates(other, own) for other in theirs) for own in ours)
    beaten = sum(any(_dominates(own, other) for own in ours) for other in theirs)
    text += f"References beat {len(ours) - free:,} of {len(ours):,} (as good in everything, better "
    text += f"in something); of {count(len(theirs), 'reference')}, {beaten:,} are so beaten by one "
    return text + "of the front."


def _dominates(one: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    return bool((one >= other).all() and (one > other).any())


def scored(known: Known, row: Row) -> str:
    """A row's scores in a sentence."""
    parts = [f"{o.name} {short_told(o, row.scores[o.name])}" for o in known.objectives]
    return listed(parts)


def short_told(objective: ObjectiveFacts, estimate: Estimate) -> str:
    """A value with half of its 95 % interval."""
    value = objective.shown(estimate.value)
    if estimate.is_cost:
        return number(value, is_cost=True)
    return f"{number(value)} ± {number(half_width(estimate))}"


def luck(known: Known) -> str:
    """The winner's curse."""
    curse = (known.final or {}).get("best", {}).get("winners_curse")
    if curse is None or known.chosen is None or known.final is None:
        return ""
    sign = known.mean_objective.sign
    value = known.chosen.mean.value
    text = f"Winner's curse: the search itself had said {number(sign * (value + curse))} of it, "
    text += f"and the holdout says {number(sign * value)}. "
    error = known.final["best"].get("search_mean", {}).get("standard_error", 0.0)
    chance = CONFIDENCE * hypot(error, known.chosen.mean.standard_error)
    if abs(curse) <= chance:
        return text + f"By chance alone they may differ by {number(chance)}."
    if curse > 0:
        return text + f"So {number(curse)} of what the search promised was luck."
    return text + "It is better than the search had promised."


def figures(known: Known) -> list[tuple[str, str, str]]:
    """The numbers that are looked at first."""
    run, tiles = known.account, []
    sign = known.mean_objective.sign
    name = (
        "mean of the objectives"
        if len(known.measured_objectives) > 1
        else known.mean_objective.name
    )
    if known.final is not None:
        gain = known.final["gain_over_best_reference"]
        low, high = sorted((sign * gain["low"], sign * gain["high"]))
        reference = named(gain["reference"], None)
        tiles.append(
            (
                f"gain over {reference}",
                signed(sign * gain["value"]),
                f"95 %: {signed(low)} to {signed(high)}",
            )
        )
    if known.chosen is not None:
        mean = known.chosen.mean
        more = f"± {number(half_width(mean))}, on the {known.part} items"
        tiles.append((f"best {name}", number(sign * mean.value), more))
    if known.front:
        tiles.append(("front", f"{len(known.front):,}", "candidates"))
    failed = sum(e.failure is not None for e in run.evaluations.values())
    tiles.append(("candidates", f"{len(run.evaluations):,}", f"{failed:,} failed"))
    tiles.append(
        ("item evaluations", f"{run.ledger.item_evaluations:,}", "answers of a model to an item")
    )
    tiles.append(("time", duration(run.seconds), "of drivers' work"))
    return tiles


def scores(known: Known) -> Table:
    """The chosen one beside the references."""
    chosen = [] if known.chosen is None else [known.chosen]
    columns = ["model", *(f"{o.name} ({better(o)})" for o in known.objectives)]
    title = f"The best beside the references, on the {known.part} items, with 95 % intervals"
    return Table(title, columns, score_rows(known, [*chosen, *known.references]))


def count(number: int, noun: str) -> str:
    """How many of something."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def listed(names: Sequence[str], most: int = 8) -> str:
    """Names in a row; of many the first."""
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def duration(seconds: float) -> str:
    """A time as people read it."""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60:,} h {minutes % 60} min"
