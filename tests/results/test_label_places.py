"""Labels beside points; the oracle is where matplotlib has drawn them."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from matplotlib.text import Annotation, Text

from evomerge.results.label_places import label_points
from evomerge.results.plots import new_figure

IN_A_ROW = [(x, 0.0) for x in (0.1, 0.12, 0.14, 0.5, 0.97, 0.99, 1.0)]
SCATTERED = [tuple(p) for p in np.random.default_rng(0).random((8, 2)).tolist()]


@pytest.mark.parametrize("points", [IN_A_ROW, SCATTERED], ids=["in a row", "scattered"])
def test_labels_cover_neither_each_other_nor_points_and_stay_inside(
    points: list[tuple[float, float]],
) -> None:
    figure, (axis,) = new_figure(1)
    axis.plot(*zip(*points, strict=True), "s")
    label_points(figure, axis, {f"model {i}": p for i, p in enumerate(points)}, points)
    figure.draw_without_rendering()
    notes = [child for child in axis.get_children() if isinstance(child, Annotation)]
    assert len(notes) == len(points)
    boxes = [Text.get_window_extent(note) for note in notes]
    for one, other in combinations(boxes, 2):
        width = min(one.x1, other.x1) - max(one.x0, other.x0)
        height = min(one.y1, other.y1) - max(one.y0, other.y0)
        assert min(width, height) <= 0
    frame = axis.get_window_extent()
    for box in boxes:
        assert not any(box.contains(*at) for at in axis.transData.transform(points))
        assert frame.x0 <= box.x0
        assert box.x1 <= frame.x1
