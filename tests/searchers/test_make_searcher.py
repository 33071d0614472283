"""What a user gets wrong, and what is imported when."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from searcher_calls import Cube, Setting

from evomerge.errors import ConfigurationError
from evomerge.records import Facts
from evomerge.searchers import SEARCHERS, make_searcher


def problems_of(kind: str, num_genes: int = 3, **more: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        Setting(kind, num_genes, **more).make()
    return str(caught.value)


def test_an_unknown_kind_names_the_nearest() -> None:
    valid = ", ".join(sorted(SEARCHERS))
    assert f"did you mean 'cma_es'? valid: {valid}" in problems_of("cmaes")


def test_every_wrong_option_is_named_with_the_nearest_valid_one() -> None:
    text = problems_of("nsga2", options={"populaton": 8, "mutation_eta": "20"})
    assert "searcher.populaton (nsga2): unknown key (did you mean 'population'?" in text
    assert "searcher.mutation_eta (nsga2): should be a valid number, got '20'" in text


@pytest.mark.parametrize("kind", sorted(SEARCHERS))
@pytest.mark.parametrize("population", [0, -3, True, 8.5, "8"])
def test_a_population_is_a_whole_number_above_zero(kind: str, population: object) -> None:
    assert "searcher.population" in problems_of(kind, options={"population": population})


def test_several_objectives_need_a_searcher_that_can() -> None:
    text = problems_of("cma_es", num_objectives=2)
    assert "cma_es searches one objective, got 2: f0, f1" in text
    missing = {"lineages", "experts"}  # in this space
    able = [n for n, kind in SEARCHERS.items() if kind.multi_objective and not missing & kind.needs]
    assert f"searchers that can: {', '.join(able)}" in text


def test_all_problems_are_told_at_once() -> None:
    cube: Any = Cube(0)
    with pytest.raises(ConfigurationError) as caught:
        make_searcher("cma_es", cube, -1, Facts(objectives=("a", "b")), {})
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    ("options", "designs", "told"),
    [
        ({"x0": [0.5, 0.5]}, (), "expected 3 values in [0, 1], got 2"),
        ({"x0": [0.5, 0.5, 1.5]}, (), "expected 3 values in [0, 1], got 3"),
        ({"x0": "designs"}, (), "use x0: center"),
        ({"x0": "centre"}, (), "should be 'center', 'designs' or"),
    ],
)
def test_a_first_mean_fits_the_space(
    options: dict[str, Any], designs: tuple[list[float], ...], told: str
) -> None:
    assert told in problems_of("cma_es", options=options, designs=designs)


@pytest.mark.parametrize("designs", [([0.5, 0.5],), ([0.5, 0.5, float("nan")],)])
@pytest.mark.parametrize("kind", ["cma_es", "nsga2"])
def test_a_design_that_does_not_fit_the_space_is_refused(kind: str, designs: Any) -> None:
    options = {"x0": "designs"} if kind == "cma_es" else {}
    with pytest.raises(ValueError, match="designs"):
        Setting(kind, 3, designs=designs, options=options).make()


def test_the_table_is_read_without_the_libraries() -> None:
    code = (
        "import sys; from evomerge.searchers import SEARCHERS; "
        "[kind.Options() for kind in SEARCHERS.values()]; "
        "heavy = {'cma', 'cmaes', 'optuna', 'pymoo', 'ribs', 'torch', 'scipy', 'matplotlib'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout == "[]\n"
