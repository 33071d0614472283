"""CatCMA with margin against cmaes itself; drift; a mixed toy that `cma_es` is slower at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cmaes import CatCMAwM
from searcher_calls import Cube, Setting, evaluation

from evomerge.errors import ConfigurationError
from evomerge.genes import Choice, Count, Flag, Integer, Real
from evomerge.records import Facts, Genome
from evomerge.searchers.cells import cells_of, places
from evomerge.searchers.cma_es_mixed import CmaEsMixed

# Of `mixed`: flags at 0, 3, 6, 9; choices of 3 at 1, 4, 7, 10; reals at 2, 8; integers at 5, 11.
SPACE = Cube(12, "mixed")
CELLS = cells_of(SPACE)
BEST = places(np.random.default_rng(4).uniform(0.2, 0.8, 12), CELLS)


def value(genome: Genome) -> float:
    """Maximised, 0 at BEST; discrete values that are wrong cost little beside the reals' scale."""
    numbers = places(np.array(genome), CELLS)
    away = np.where(CELLS == 8, (numbers - BEST) ** 2, (numbers != BEST).astype(float))
    reals = np.where(CELLS == 0, (numbers - BEST) ** 2, 0.0)
    return -float(100 * reals.sum() + 0.01 * away[CELLS > 0].sum())


def made(**options: Any) -> CmaEsMixed:
    searcher = Setting("cma_es_mixed", 12, 3, options=options, shape="mixed").make()
    assert isinstance(searcher, CmaEsMixed)
    return searcher


def test_the_genomes_are_the_librarys() -> None:
    searcher = made(population=10)
    generator = np.random.default_rng(np.random.SeedSequence(3))
    library = CatCMAwM(
        x_space=[[0.0, 1.0]] * 2,
        z_space=[list(range(8))] * 2,
        c_space=[2, 3, 2, 3, 2, 3, 2, 3],
        population_size=10,
        mean=np.array([0.5, 0.5, 3.5, 3.5]),
        sigma=1 / 6,
        cov=np.diag([1.0, 1.0, 64.0, 64.0]),
        seed=int(generator.integers(2**31)),
    )
    for generation in range(15):
        solutions = [library.ask() for _ in range(10)]
        genomes = searcher.ask(100)
        for genome, solution in zip(genomes, solutions, strict=True):
            assert [genome[2], genome[8]] == solution.x.tolist()
            assert places(np.array(genome), CELLS)[[5, 11]].tolist() == solution.z.tolist()
            names = places(np.array(genome), CELLS)[[0, 1, 3, 4, 6, 7, 9, 10]]
            assert names.tolist() == solution.c.argmax(axis=1).tolist()
        told = [evaluation(10 * generation + i, g, [value(g)]) for i, g in enumerate(genomes)]
        searcher.tell(told)
        order = np.argsort([-value(g) for g in genomes], kind="stable")
        library.tell([(solutions[i], position) for position, i in enumerate(order)])


def evaluations_to_the_best(kind: str, seed: int, most: int, **options: Any) -> int:
    """How many candidates until all discrete values are right and the reals to .001."""
    searcher = Setting(kind, 12, seed, options=options, shape="mixed").make()
    count = 0
    while count < most:
        genomes = searcher.ask(100)
        for i, genome in enumerate(genomes):
            if value(genome) > -1e-4:
                return count + i + 1
        searcher.tell([evaluation(count + i, g, [value(g)]) for i, g in enumerate(genomes)])
        count += len(genomes)
    return most


def test_it_finds_the_best_of_a_mixed_space_where_others_do_not() -> None:
    most, seeds = 1500, range(3)
    found = [evaluations_to_the_best("cma_es_mixed", seed, most) for seed in seeds]
    frozen = [evaluations_to_the_best("cma_es", seed, most, discrete="ignore") for seed in seeds]
    drawn = [evaluations_to_the_best("random", seed, most) for seed in seeds]
    assert max(found) < most
    assert np.median(found) < 0.8 * np.median(frozen)
    assert min(drawn) == most


def test_it_learns_from_the_told_genomes_not_from_its_own() -> None:
    searcher = made(population=10)
    target = np.array([0.75, 1 / 6, 0.9, 0.25, 5 / 6, 0.9375, 0.75, 0.5, 0.1, 0.25, 1 / 6, 0.0625])
    for generation in range(20):
        told = [
            [*target[:2], 0.9 + 0.001 * i, *target[3:8], 0.1 + 0.001 * i, *target[9:]]
            for i in range(len(searcher.ask(100)))
        ]
        searcher.tell(
            [
                evaluation(10 * generation + i, np.array(g).tolist(), [0.0])
                for i, g in enumerate(told)
            ]
        )
    believed = np.array(searcher.recommend())
    assert places(believed, CELLS)[CELLS > 0].tolist() == places(target, CELLS)[CELLS > 0].tolist()
    assert np.allclose(believed[[2, 8]], [0.9, 0.1], atol=0.1)


def first(value_of: Callable[[CmaEsMixed], Any], **more: Any) -> Any:
    searcher = Setting("cma_es_mixed", 12, 3, shape="mixed", **more).make()
    assert isinstance(searcher, CmaEsMixed)
    return value_of(searcher)


def test_the_first_distribution_is_that_of_the_designs_or_of_a_warm_start() -> None:
    design = np.random.default_rng(0).random(12).tolist()
    known = tuple(
        evaluation(i, g, [value(g)])
        for i, g in enumerate(np.random.default_rng(1).random((400, 12)).tolist())
    )
    numbers = places(np.array(design), CELLS)

    def names(searcher: CmaEsMixed) -> Any:
        return searcher._strategy._q

    at_design = {"designs": (design,), "options": {"x0": "designs"}}
    assert (
        first(names, **at_design).argmax(axis=1).tolist()
        == numbers[[0, 1, 3, 4, 6, 7, 9, 10]].astype(int).tolist()
    )
    assert first(lambda s: s._strategy._mean, **at_design)[:2].tolist() == [design[2], design[8]]
    best = sorted(known, key=lambda e: -value(e.genome))[:40]
    mean = np.mean([e.genome for e in best], axis=0)
    found = first(lambda s: s._strategy._mean, warm_start=known)
    assert np.allclose(found[:2], mean[[2, 8]])
    assert np.allclose(first(names, warm_start=known).sum(axis=1), 1.0)
    assert not np.allclose(first(names, warm_start=known), first(names))


def test_too_many_genes_and_missing_designs_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="at most 200 genes, got 201") as caught:
        Setting("cma_es_mixed", 201).make()
    assert "use cma_es" in str(caught.value)
    with pytest.raises(ConfigurationError, match="use x0: center"):
        Setting("cma_es_mixed", 3, options={"x0": "designs"}).make()


@pytest.mark.parametrize(
    "genes",
    [
        (Flag("a"),),
        (Flag("a"), Choice("b", ("x", "y", "z"))),
        (Integer("a", 0, 1),),
        (Integer("a", 0, 4), Choice("b", ("x", "y", "z"))),
        (Real("a", 0, 1), Flag("b")),
        (Flag("a"), Flag("b"), Flag("c")),
    ],
)
def test_spaces_of_any_types(genes: tuple[Any, ...]) -> None:
    class Space:
        constraints = (Count(("a", "b", "c"), 1, 1),) if len(genes) == 3 else ()

    Space.genes = genes  # type: ignore[attr-defined]
    space: Any = Space()
    searcher = CmaEsMixed(space, 0, Facts())
    count = 0
    for _ in range(60):
        genomes = searcher.ask(100)
        searcher.tell([evaluation(count + i, g, [-sum(g)]) for i, g in enumerate(genomes)])
        count += len(genomes)
        assert all(len(g) == len(genes) and 0 <= min(g) <= max(g) <= 1 for g in genomes)
