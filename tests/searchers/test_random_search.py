"""Random search is numpy's uniform stream, cut into genomes."""

from __future__ import annotations

import numpy as np
from searcher_calls import Setting


def test_the_stream_is_numpys() -> None:
    expected = np.random.default_rng(np.random.SeedSequence(11)).random((9, 4))
    searcher = Setting("random", 4, 11).make()
    assert np.array_equal(searcher.ask(2) + searcher.ask(7), expected)
