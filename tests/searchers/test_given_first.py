"""The user's own merges come first, in every searcher, and each is asked for once at first."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from searcher_calls import SMALL, Setting, bowls, evaluation

from evomerge.records import Facts
from evomerge.searchers import SEARCHERS, make_searcher


@pytest.mark.parametrize("kind", sorted(SEARCHERS))
@pytest.mark.parametrize("num_given", [1, 3])
def test_given_genomes_are_asked_for_first_and_the_search_goes_on(
    kind: str, num_given: int
) -> None:
    setting = Setting(kind, 4, options=SMALL[kind])
    several = 2 if "several_objectives" in setting.needs else 1
    experts, gram = setting.experts()
    space = setting.space()
    generator = np.random.default_rng(8)
    given = tuple(space.sample(generator) for _ in range(num_given))
    facts = Facts(
        designs=(*given, *experts),
        given=given,
        objectives=tuple(f"f{i}" for i in range(several)),
        experts=experts,
        gram=gram,
    )
    searcher: Any = make_searcher(kind, space, 3, facts, SMALL[kind])
    asked: list[Any] = []
    while len(asked) < num_given + 6 and (genomes := searcher.ask(5)):
        told = [evaluation(len(asked) + i, g, bowls(g, several)) for i, g in enumerate(genomes)]
        asked += genomes
        searcher.tell(told)
    assert asked[:num_given] == list(given)
    assert len(asked) > num_given + 3
    searcher.recommend()
