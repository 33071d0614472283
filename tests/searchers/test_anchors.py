"""Known figures on textbook functions, measured by the benchmark's code."""

from __future__ import annotations

import importlib.util
import statistics
from pathlib import Path
from types import ModuleType

import pytest

SEEDS = range(11)


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "searchers.py"
    spec = importlib.util.spec_from_file_location("benchmark_of_searchers", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "anchor"),
    [
        ("sphere", 1420),
        pytest.param("ellipsoid", 4100, marks=pytest.mark.slow),
        pytest.param("rosenbrock", 5300, marks=pytest.mark.slow),
    ],
)
def test_cma_es_needs_as_many_evaluations_as_is_known(
    benchmark: ModuleType, name: str, anchor: float
) -> None:
    function, _ = benchmark.FUNCTIONS[name]
    median = statistics.median(benchmark.cma_es(function, seed).figure for seed in SEEDS)
    assert median == pytest.approx(anchor, rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "anchor"), [("zdt1", 0.870), ("zdt2", 0.536), ("zdt3", 1.327), ("zdt6", 0.493)]
)
def test_nsga2_reaches_the_known_hypervolume(
    benchmark: ModuleType, name: str, anchor: float
) -> None:
    assert benchmark.front("nsga2", name, 0).figure == pytest.approx(anchor, abs=0.004)


@pytest.mark.slow
def test_nsga3_reaches_the_known_hypervolume(benchmark: ModuleType) -> None:
    assert benchmark.front("nsga3", "dtlz2", 0).figure == pytest.approx(0.744, abs=0.004)


@pytest.mark.parametrize(
    ("kind", "name", "generations"), [("nsga2", "zdt1", 40), ("nsga3", "dtlz2", 25)]
)
def test_it_is_as_far_as_the_library_alone_after_a_tenth_of_the_time(
    benchmark: ModuleType, kind: str, name: str, generations: int
) -> None:
    found, library = (
        statistics.mean(run(kind, name, seed, generations).figure for seed in range(2))
        for run in (benchmark.front, benchmark.plain_front)
    )
    assert found == pytest.approx(library, rel=0.15)
