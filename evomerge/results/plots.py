"""Pictures of a run: how it converged, and its front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge.files import write_bytes
from evomerge.records import Evaluation
from evomerge.results.label_places import label_points
from evomerge.wording import in_short

# Okabe & Ito's palette, which colour-blind people can tell apart.
BLUE, ORANGE, GREEN, GREY, BLACK = "#0072B2", "#D55E00", "#009E73", "#9a9a9a", "#222222"
SIZE = (7.2, 4.2)  # inches
NEAR = 0.015  # models so near, by the axis, share a label


def write_pictures(
    folder: Path,
    evaluations: Sequence[Evaluation],
    final: Mapping[str, Any],
    signs: Mapping[str, int] | None = None,
) -> list[Path]:
    """`convergence.png`, and `front.png` where there are several objectives.

    signs: objective -> -1 if it is to be small; of costs that is known.
    """
    scored = sorted((e for e in evaluations if e.score is not None), key=lambda e: e.id)
    pictures = [draw_convergence(folder / "convergence.png", scored, final, signs)]
    if final["front"]:
        pictures.append(draw_front(folder / "front.png", scored, final, signs))
    return pictures


def draw_convergence(
    path: Path,
    scored: Sequence[Evaluation],
    final: Mapping[str, Any],
    signs: Mapping[str, int] | None = None,
) -> Path:
    """Each candidate's search score, the best so far, and the references as lines."""
    figure, axes = new_figure(1)
    axis = axes[0]
    measured = [name for name in final["best"]["holdout"] if not _is_cost(final["best"], name)]
    sign = (signs or {}).get(measured[0], 1) if len(measured) == 1 else 1
    ids = np.array([e.id for e in scored])
    means = np.array([e.score.mean for e in scored if e.score])
    rungs = np.array([e.score.rung for e in scored if e.score])
    complete = rungs == rungs.max()
    axis.plot(ids[~complete], means[~complete], ".", color=GREY, alpha=0.6, label="dropped early")
    axis.plot(ids[complete], means[complete], ".", color=BLUE, alpha=0.7, label="candidate")
    if not (~complete).any():
        axis.lines[0].remove()
    best = np.maximum.accumulate(np.where(complete, means, -np.inf))
    axis.step(ids, best, where="post", color=BLUE, linewidth=1.5, label="best so far (search)")
    rows = {"found": final["best"], **final["references"]}
    heights = _apart([row["holdout_mean"]["value"] for row in rows.values()])
    for (label, row), height in zip(rows.items(), heights, strict=True):
        color = ORANGE if label == "found" else BLACK
        value = row["holdout_mean"]["value"]
        axis.axhline(value, color=color, linewidth=1, linestyle="--")
        axis.annotate(
            f"{plain(label)} {sign * value:.3f}",
            (1.01, height),
            xycoords=("axes fraction", "data"),
            color=color,
            fontsize=8,
            va="center",
        )
    axis.set_xlabel("candidate")
    axis.set_ylabel("mean of the objectives")
    if sign < 0:
        _show_turned(axis.yaxis)
    axis.set_title("Search scores; dashed: on the holdout", loc="left", fontsize=10)
    axis.legend(loc="lower right", fontsize=8, framealpha=0.9, edgecolor="none")
    return save(figure, path)


def draw_front(
    path: Path,
    scored: Sequence[Evaluation],
    final: Mapping[str, Any],
    signs: Mapping[str, int] | None = None,
) -> Path:
    """The front on the holdout, pair by pair of objectives, with one standard error."""
    return save(front_figure(scored, final, signs), path)


def front_figure(
    scored: Sequence[Evaluation], final: Mapping[str, Any], signs: Mapping[str, int] | None = None
) -> Any:
    """The same as a figure: better is to the right and above, in the user's own units."""
    names = list(final["best"]["holdout"])
    pairs = list(combinations(names, 2))[:3]
    figure, axes = new_figure(len(pairs))
    rivals = final["references"]
    clouds = {n: [e.score.objectives[n].value for e in scored if e.score] for n in names}
    for axis, (x, y) in zip(axes, pairs, strict=True):
        axis.plot(clouds[x], clouds[y], ".", color=GREY, alpha=0.35, label="candidates (search)")
        _crosses(axis, final["front"], x, y, color=BLUE, label="front (holdout)")
        _crosses(axis, [final["best"]], x, y, color=ORANGE, label="chosen (holdout)", size=8)
        _crosses(axis, list(rivals.values()), x, y, color=BLACK, label="references", marker="s")
        for side, name in ((axis.xaxis, x), (axis.yaxis, y)):
            side.set_label_text(plain(name))
            if (signs or {}).get(name, -1 if _is_cost(final["best"], name) else 1) < 0:
                _show_turned(side)
    axes[0].legend(fontsize=7, frameon=False, loc="lower left")
    for axis, (x, y) in zip(axes, pairs, strict=True):
        rows = [final["best"], *final["front"], *rivals.values()]
        markers = [(row["holdout"][x]["value"], row["holdout"][y]["value"]) for row in rows]
        cloud = list(zip(clouds[x], clouds[y], strict=True))
        label_points(figure, axis, _labels(rivals, x, y, _spans(axis)), markers, cloud)
    return figure


def _spans(axis: Any) -> tuple[float, float]:
    """How much of each objective an axis shows."""
    return tuple(high - low for low, high in (axis.get_xlim(), axis.get_ylim()))


def _labels(
    rows: Mapping[str, Mapping[str, Any]], x: str, y: str, spans: Sequence[float]
) -> dict[str, tuple[float, float]]:
    """Label -> where it stands; models that lie on top of each other share a label."""
    groups: list[tuple[list[str], tuple[float, float]]] = []
    for label, row in rows.items():
        place = (row["holdout"][x]["value"], row["holdout"][y]["value"])
        for names, other in groups:
            if all(abs(p - o) < NEAR * u for p, o, u in zip(place, other, spans, strict=True)):
                names.append(label)
                break
        else:
            groups.append(([label], place))
    short = "task_arithmetic", "arithmetic"
    return {plain(", ".join(names).replace(*short)): place for names, place in groups}


def _show_turned(side: Any) -> None:
    """Say what is to be small as its user does: inside, everything is maximised."""
    side.set_major_formatter(lambda value, _: in_short(0.0 - value))
    side.set_label_text(f"{side.get_label_text()} (less is better)")


def _is_cost(row: Mapping[str, Any], name: str) -> bool:
    return bool(row["holdout"][name]["num_items"] == 0)


def _crosses(
    axis: Any,
    rows: Sequence[Mapping[str, Any]],
    x: str,
    y: str,
    *,
    color: str,
    label: str,
    marker: str = "o",
    size: float = 4,
) -> None:
    """Points of the holdout with one standard error in both directions."""
    axis.errorbar(
        [row["holdout"][x]["value"] for row in rows],
        [row["holdout"][y]["value"] for row in rows],
        xerr=[row["holdout"][x]["standard_error"] for row in rows],
        yerr=[row["holdout"][y]["standard_error"] for row in rows],
        fmt=marker,
        markersize=size,
        linewidth=0.8,
        color=color,
        label=label,
    )


def new_figure(columns: int) -> tuple[Any, Any]:
    """A figure with axes side by side, all in one style; no global state of matplotlib's."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width = SIZE[0] if columns == 1 else 4.4 * columns
    figure = Figure(figsize=(width, SIZE[1]), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.2)
    return figure, axes


def drawn(figure: Any, form: str = "png", dpi: int = 150) -> bytes:
    """A figure as the bytes of a file; of the same figure always the same."""
    from matplotlib import rc_context

    file = BytesIO()
    metadata = {"Date": None} if form == "svg" else {}
    with rc_context({"svg.hashsalt": "evomerge"}):
        figure.savefig(file, dpi=dpi, format=form, metadata=metadata)
    return file.getvalue()


def save(figure: Any, path: Path) -> Path:
    """Write a figure as PNG."""
    write_bytes(path, drawn(figure))
    return path


def plain(text: str) -> str:
    """Text from outside as matplotlib draws it: no formula, nor a label that legends leave out."""
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def _apart(values: Sequence[float], gap: float = 0.028) -> NDArray[np.float64]:
    """Heights near the values, for labels that must not overlap."""
    heights = np.array(values, dtype=np.float64)
    order = np.argsort(heights)
    for below, above in pairwise(order):
        heights[above] = max(heights[above], heights[below] + gap)
    return heights
