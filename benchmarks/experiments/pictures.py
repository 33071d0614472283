"""What the searches gained, and a front beside everything that needs no search, as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from study_tables import gap, shown_name

from evomerge.files import write_bytes
from evomerge.pareto import non_dominated
from evomerge.results.plots import BLACK, BLUE, GREY, ORANGE

Json = dict[str, Any]
GRID = "best of the grid, in hindsight"
COLORS = {GRID: BLUE, "random search": ORANGE}


def draw_gains(path: Path, found: Mapping[str, Sequence[Json]]) -> None:
    """A row for each study: what it found minus the best single coefficient, and minus random."""
    rows = {name: told for name, told in found.items() if told}
    figure = Figure(figsize=(7.2, 0.6 + 0.28 * len(rows)), layout="constrained")
    axis = figure.subplots()
    for rival, color in COLORS.items():
        for place, told in enumerate(rows.values()):
            if (own := gap(told, rival)) is None:
                continue
            value, low, high = own
            height = -place + (0.14 if rival == GRID else -0.14)
            axis.plot([low, high], [height, height], color=color, linewidth=1.5)
            label = f"found minus {rival}" if place == 0 else None
            axis.plot(value, height, "o", color=color, markersize=4, label=label)
    axis.axvline(0, color=BLACK, linewidth=0.8)
    axis.set_yticks([-n for n in range(len(rows))], [shown_name(name) for name in rows], fontsize=8)
    axis.set_xlabel("held-out mean, 95 % intervals")
    axis.legend(fontsize=8, loc="lower right", frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def draw_front(path: Path, told: Json) -> None:
    """Two objectives: what was found, random search, and the references with the grid."""
    fronts = told["fronts"]
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axis = figure.subplots()
    styles = {
        "references and grid": (GREY, "s"),
        "random search": (ORANGE, "^"),
        "found": (BLUE, "o"),
    }
    corner = np.array(fronts["base"])
    for name, (color, marker) in styles.items():
        if name not in fronts:
            continue
        points = np.array(fronts[name]["points"])
        inside = points[(points > corner).all(axis=1)]
        axis.plot(*inside.T, marker, color=color, markersize=4, alpha=0.7, label=name)
        front = inside[non_dominated(inside)]
        front = front[np.argsort(front[:, 0])]
        axis.step(*front.T, where="pre", color=color, linewidth=1)
    axis.plot(*corner, "x", color=BLACK, label="base", linestyle="none")
    axis.set_xlabel(fronts["objectives"][0])
    axis.set_ylabel(fronts["objectives"][1])
    axis.legend(fontsize=8, loc="upper left", frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    write_bytes(path, buffer.getvalue())
