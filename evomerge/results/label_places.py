"""Where the labels of points go, so that they cover neither each other nor the points."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

LINE = 9.0  # the height of a line of labels, in points
LEVELS = 6  # lines above and below a point that a label may be moved by
FAR = 1.5 * LINE  # from where on a thin line leads from a label to its point
COVERED = 40.0  # how bad it is to cover a marker: in square pixels of another label
DOTTED = 2.0  # and to cover a dot of the cloud
Box = tuple[float, float, float, float]  # left, bottom, right, top, in pixels


def label_points(
    figure: Any,
    axis: Any,
    labels: Mapping[str, tuple[float, float]],
    markers: Sequence[tuple[float, float]],
    cloud: Sequence[tuple[float, float]] = (),
) -> None:
    """Write each label beside its point, where it covers least.

    figure, axis: matplotlib's, with everything else drawn; the layout is made here. labels: text ->
    the point, in data coordinates. markers: points that labels should not cover; those of the cloud
    may be, where there is no better place.
    """
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    inside = axis.get_window_extent()
    points, dots = (
        axis.transData.transform(np.array(some, dtype=np.float64).reshape(-1, 2))
        for some in (markers, cloud)
    )
    legend = axis.get_legend()
    taken: list[Box] = [] if legend is None else [_box(legend)]
    for text, place in labels.items():
        note = axis.annotate(
            text,
            place,
            textcoords="offset points",
            xytext=(0, 0),
            fontsize=7,
            va="center",
            arrowprops={"arrowstyle": "-", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2},
        )
        note.set_in_layout(False)  # or the axes would move from under the places that are tried
        badness = []
        for offset, side in _offsets():
            note.set(position=offset, horizontalalignment=side)
            note.update_positions(renderer)
            box = _box(note)
            badness.append(
                sum(_overlap(box, other) for other in taken)
                + COVERED * _num_inside(points, box)
                + DOTTED * _num_inside(dots, box)
                + 10 * _outside(box, inside)
                + np.hypot(*offset)
            )
        offset, side = list(_offsets())[int(np.argmin(badness))]
        note.set(position=offset, horizontalalignment=side)
        note.update_positions(renderer)
        if abs(offset[1]) < FAR:
            note.arrow_patch.set_visible(False)
        taken.append(_box(note))


def _offsets() -> Iterator[tuple[tuple[float, float], str]]:
    """Places around a point, in points, and how a text is aligned there; the nearest first."""
    for level in range(1, LEVELS + 1):
        for sign in (1, -1):
            height = sign * (0.8 * LINE + (level - 1) * LINE)
            yield (3, height), "left"
            yield (-3, height), "right"
            yield (0, height), "center"
        if level == 1:
            yield (9, 0), "left"  # an error bar is in its way
            yield (-9, 0), "right"


def _box(artist: Any) -> Box:
    """A text's extent alone, without the line that leads to it."""
    from matplotlib.text import Text

    is_text = isinstance(artist, Text)
    extent = Text.get_window_extent(artist) if is_text else artist.get_window_extent()
    return extent.x0, extent.y0, extent.x1, extent.y1


def _overlap(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)


def _num_inside(points: NDArray[np.float64], box: Box) -> int:
    x, y = points[:, 0], points[:, 1]
    return int(((box[0] <= x) & (x <= box[2]) & (box[1] <= y) & (y <= box[3])).sum())


def _outside(box: Box, frame: Any) -> float:
    """How much of a box is not in the frame, in square pixels."""
    area = (box[2] - box[0]) * (box[3] - box[1])
    return area - _overlap(box, (frame.x0, frame.y0, frame.x1, frame.y1))
