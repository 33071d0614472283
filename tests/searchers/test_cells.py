"""Cells against the codec that decodes them."""

from __future__ import annotations

import numpy as np
import pytest
from searcher_calls import Cube, genes_of

from evomerge.genes import Count, Flag
from evomerge.search_spaces.codec import Codec
from evomerge.searchers.cells import cells_of, middles, places, snapped


@pytest.mark.parametrize("shape", ["reals", "mixed", "conditional"])
def test_a_snapped_point_has_the_same_values(shape: str) -> None:
    space = Cube(9, shape)  # type: ignore[arg-type]
    codec, cells = Codec(space.genes), cells_of(space)
    points = np.random.default_rng(0).random((200, 9))
    points[0], points[1] = 0.0, 1.0
    moved = snapped(points, cells)
    for point, other in zip(points.tolist(), moved.tolist(), strict=True):
        assert codec.values(point) == codec.values(other)
    assert np.array_equal(snapped(moved, cells), moved)
    assert np.array_equal(middles(places(points, cells), cells), moved)
    assert (moved == points).all() == (shape == "reals")


def test_flags_that_are_counted_keep_their_coordinates() -> None:
    genes = genes_of("mixed", 9)
    flags = tuple(gene.name for gene in genes if isinstance(gene, Flag))
    space = Cube(9, "mixed", (Count(flags, 1, 1),))
    codec, cells = Codec(genes, space.constraints), cells_of(space)
    for point in np.random.default_rng(1).random((100, 9)):
        assert codec.values(point.tolist()) == codec.values(snapped(point, cells).tolist())
