"""A run as Python shows it: in a line, and in a notebook as HTML that needs nothing beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.results.account import Account, ObjectiveFacts
from evomerge.results.inline_html import image, table
from evomerge.results.plots import BLACK, BLUE, drawn, front_figure, new_figure, plain
from evomerge.results.watch import status
from evomerge.stopping import CONFIDENCE
from evomerge.wording import in_short

Json = Mapping[str, Any]

MAX_FRONT_ROWS = 10
DPI = 80  # a picture is some 30 kB in a notebook's file


class Rows(list[dict[str, Any]]):
    """Rows of a final table: a list, which shows itself as a table."""

    objectives: tuple[ObjectiveFacts, ...] = ()

    def __repr__(self) -> str:
        lines = [
            f"{_label(row)}: "
            + ", ".join(f"{o.name} {_short(o, row['holdout'][o.name])}" for o in self.objectives)
            for row in self
        ]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return _table(self.objectives, [(_label(row), row["holdout"]) for row in self])


def in_a_line(folder: Path) -> str:
    """State, candidates, and the best score with its 95 % interval.

    Raises:
        ConfigurationError, LedgerDamaged: there is no run, or it cannot be read.
    """
    with Account(folder) as run:
        facts = status(folder)
        said = f"{folder}: {facts['state']}, {facts['candidates']} candidates"
        return f"{said}, {_best(run, facts)}"


def as_html(folder: Path) -> str:
    """A sentence, a table of references, front and best, and a picture; finished or not.

    Raises:
        ConfigurationError, LedgerDamaged: there is no run, or it cannot be read.
    """
    with Account(folder) as run:
        facts = status(folder)
        said = (
            f"{facts['state']}: {facts['candidates']} candidates, "
            f"{in_short(facts['item_evaluations'])} item evaluations; {_best(run, facts)}."
        )
        if run.final is not None:
            said += f" {_gain(run)}"
        parts = [f"<p><strong>{escape(run.name)}</strong> is {escape(said)}</p>"]
        if rows := list(_rows(run, facts)):
            where = "the holdout" if run.final is not None else "the search's items"
            caption = f"On {where}, with 95 % intervals:"
            parts += [f"<p>{caption}</p>", _table(run.objectives, rows, last_is_best=True)]
        if (picture := _picture(run)) is not None:
            about = "the front" if _has_front(run) else "how the search converged"
            parts.append(image(picture, about))
        return f"<div>{''.join(parts)}</div>"


# --- words ----------------------------------------------------------------------------------------


def _measured(run: Account) -> list[ObjectiveFacts]:
    return [objective for objective in run.objectives if objective.cost is None]


def _sign(run: Account) -> int:
    """Of the score: that of the one measured objective, if there is one alone."""
    measured = _measured(run)
    return measured[0].sign if len(measured) == 1 else 1


def _interval(value: float, error: float) -> str:
    if error == 0:
        return f"{value:.4g}"
    half = CONFIDENCE * error
    return f"{value:.3f} [{value - half:.3f}, {value + half:.3f}]"


def _best(run: Account, facts: Json) -> str:
    names = [objective.name for objective in _measured(run)]
    name = names[0] if len(names) == 1 else "mean"
    if run.final is not None:
        found, where = run.final["best"]["holdout_mean"], "on the holdout"
    elif facts["incumbent"] is not None:
        found, where = facts["incumbent"]["mean"], "by its search score"
    else:
        return "nothing is scored yet"
    value = _sign(run) * found["value"]
    return f"best {name} {_interval(value, found['standard_error'])} {where}"


def _gain(run: Account) -> str:
    if run.final is None:
        raise ValueError("not finished")
    gain = run.final["gain_over_best_reference"]
    text = f"Gain over the best reference, {gain['reference']}: {gain['value']:+.3f}"
    if gain["low"] == gain["high"]:
        return f"{text}."
    return f"{text} [{gain['low']:+.3f}, {gain['high']:+.3f}] (95 %, paired by item)."


def _label(row: Json) -> str:
    label = str(row["label"]).replace("task_arithmetic", "arithmetic")
    return label or f"no. {row['candidate']}"


def _short(objective: ObjectiveFacts, estimate: Json) -> str:
    value = objective.shown(estimate["value"])
    if objective.cost is not None:
        return in_short(value)
    return _interval(value, estimate["standard_error"])


# --- the table ------------------------------------------------------------------------------------


def _rows(run: Account, facts: Json) -> Iterator[tuple[str, Json]]:
    """(label, objective -> estimate) of references, front, and the best, which comes last."""
    if run.final is None:
        for name, told in run.references_told.items():
            yield name.replace("task_arithmetic", "arithmetic"), told["objectives"]
        if facts["incumbent"] is not None:
            number = facts["incumbent"]["candidate"]
            yield f"best so far: no. {number}", facts["incumbent"]["objectives"]
        return
    best = run.final["best"]
    for row in run.final["references"].values():
        yield _label(row), row["holdout"]
    others = [row for row in run.final["front"] if row["candidate"] != best["candidate"]]
    others.sort(key=lambda row: -row["holdout_mean"]["value"])
    for row in others[:MAX_FRONT_ROWS]:
        yield f"front: {_label(row)}", row["holdout"]
    if len(others) > MAX_FRONT_ROWS:
        yield f"{len(others) - MAX_FRONT_ROWS} more on the front", {}
    yield f"best: {_label(best)}", best["holdout"]


def _table(
    objectives: Sequence[ObjectiveFacts],
    rows: Sequence[tuple[str, Json]],
    last_is_best: bool = False,
) -> str:
    heads = ["model"]
    for objective in objectives:
        heads.append(f"{objective.name}{', smaller is better' if objective.sign < 0 else ''}")
    cells = [
        [label, *(_short(o, told[o.name]) if o.name in told else "" for o in objectives)]
        for label, told in rows
    ]
    return table(heads, cells, last_is_bold=last_is_best)


# --- the picture ----------------------------------------------------------------------------------


def _has_front(run: Account) -> bool:
    return run.final is not None and len(run.final["front"]) > 0


def _picture(run: Account) -> bytes | None:
    if run.final is not None and _has_front(run):
        signs = {objective.name: objective.sign for objective in run.objectives}
        scored = sorted(
            (e for e in run.evaluations.values() if e.score is not None), key=lambda e: e.id
        )
        return drawn(front_figure(scored, run.final, signs), dpi=DPI)
    return _convergence(run) if any(step.incumbent for step in run.steps) else None


def _convergence(run: Account) -> bytes:
    """The incumbent with its interval over item evaluations, and the references as lines."""
    figure, axes = new_figure(1)
    axis, sign = axes[0], _sign(run)
    steps = [step for step in run.steps if step.incumbent is not None]
    means = [step.incumbent["mean"] for step in steps if step.incumbent]
    items = np.array([step.item_evaluations for step in steps])
    value = sign * np.array([mean["value"] for mean in means])
    half = CONFIDENCE * np.array([mean["standard_error"] for mean in means])
    axis.step(items, value, where="post", color=BLUE, label="best so far")
    axis.fill_between(items, value - half, value + half, step="post", color=BLUE, alpha=0.15)
    best = sorted(
        ((sign * told["mean"]["value"], name) for name, told in run.references_told.items()),
        key=lambda pair: -sign * pair[0],
    )
    for height, name in best[:1]:
        axis.axhline(height, color=BLACK, linewidth=1, linestyle="--")
        label = plain(name.replace("task_arithmetic", "arithmetic"))
        axis.annotate(
            f"best reference: {label}",
            (0.99, height),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="right",
            fontsize=8,
        )
    axis.set_xlabel("item evaluations, references included")
    measured = _measured(run)
    axis.set_ylabel(plain(measured[0].name) if len(measured) == 1 else "mean of the objectives")
    axis.xaxis.set_major_formatter(lambda number, _: in_short(number))
    axis.set_title("Search score of the best so far, 95 % interval", loc="left", fontsize=10)
    return drawn(figure, dpi=DPI)
