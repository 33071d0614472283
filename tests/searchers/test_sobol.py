"""The Sobol searcher, beside scipy alone."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import qmc
from searcher_calls import Setting

from evomerge.errors import ConfigurationError


def test_the_points_are_scipys_whatever_the_batches() -> None:
    searcher = Setting("sobol", 7, seed=3).make()
    asked = searcher.ask(5) + searcher.ask(0) + searcher.ask(1) + searcher.ask(58)
    generator = np.random.default_rng(np.random.SeedSequence(3))
    expected = qmc.Sobol(7, scramble=True, seed=generator).random(64)
    assert np.array_equal(asked, expected)


@pytest.mark.parametrize("num_genes", [2, 8])
def test_the_discrepancy_is_below_that_of_random_points(num_genes: int) -> None:
    found = {
        kind: [
            qmc.discrepancy(np.array(Setting(kind, num_genes, seed=seed).make().ask(64)))
            for seed in range(10)
        ]
        for kind in ("random", "sobol")
    }
    assert max(found["sobol"]) < min(found["random"])


def test_too_many_genes_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="at most 21201 genes, got 21202"):
        Setting("sobol", 21202).make()


def test_designs_come_first_where_they_are_wanted() -> None:
    designs = ([0.1, 0.2], [0.3, 0.4], [0.1, 0.2])
    plain = Setting("sobol", 2, designs=designs).make().ask(6)
    wanted = Setting("sobol", 2, designs=designs, options={"designs": True}).make()
    assert wanted.ask(1) + wanted.ask(5) == [designs[0], designs[1], *plain[:4]]
