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


@pytest.mark.parametrize("options", [{}, {"variant": "bayesian"}, {"variant": "nested"}])
@pytest.mark.parametrize("design", [None, 2])
def test_map_asks_for_all_given_genomes_whatever_the_design(
    options: dict[str, Any], design: int | None
) -> None:
    setting = Setting("map_pareto", 3)
    experts, _ = setting.experts()
    generator = np.random.default_rng(8)
    given = tuple(setting.space().sample(generator) for _ in range(14))  # half the design is 10
    facts = Facts((*given, *experts), ("f0", "f1"), given, experts)
    searcher = make_searcher("map_pareto", setting.space(), 3, facts, {**options, "design": design})
    assert searcher.ask(14) == list(given)
