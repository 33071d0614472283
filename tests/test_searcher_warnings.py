"""What is said of a searcher before a long run."""

from __future__ import annotations

from typing import Any

import pytest
from toys import Toy

from evomerge.experiment.config import SearcherConfig
from evomerge.experiment.searcher_warnings import searcher_warnings
from evomerge.genes import Real


class Wide:
    """A space of so many genes, and so many designs."""

    def __init__(self, num_genes: int, num_designs: int) -> None:
        self.genes = tuple(Real(f"g{i}", 0, 1) for i in range(num_genes))
        self._designs = [[i / num_designs] * num_genes for i in range(num_designs)]

    def designs(self) -> list[list[float]]:
        return [*self._designs, *self._designs]  # each counts once


@pytest.mark.parametrize(
    ("searcher", "space", "told"),
    [
        ({"kind": "gp"}, Wide(112, 3), "takes seconds to ask for a candidate of 112 genes"),
        ({"kind": "gp"}, Wide(40, 3), None),
        ({"kind": "successive"}, Wide(10, 129), "begins with the 129 designs"),
        ({"kind": "successive", "designs": False}, Wide(10, 129), None),
        ({"kind": "successive"}, Wide(10, 24), None),
        ({"kind": "sobol"}, Wide(10, 129), None),
        ({"kind": "nsga2"}, Wide(10, 129), "the budget is 48 candidates"),
        ({"kind": "cma_es"}, Wide(10, 129), None),
    ],
)
def test_designs_that_eat_the_budget_and_slow_asks_are_told(
    searcher: dict[str, Any], space: Any, told: str | None
) -> None:
    config = Toy("random").config(48).model_copy(update={"searcher": SearcherConfig(**searcher)})
    found = " ".join(searcher_warnings(config, space))
    assert (told in found) if told else not found
