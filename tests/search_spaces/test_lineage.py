"""Lineages: oracle is SLERP of whole vectors, one generation after another, in plain numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.search_spaces.dense import Dense
from evomerge.search_spaces.lineage import Gram, Lineage, cross, rounded

SEEDS, TOTAL, DEPTH = 3, 157, 30


def slerp(mix: float, low: np.ndarray, high: np.ndarray, seen: Any = None) -> np.ndarray:
    """As published: the angle of the whole vectors `seen`, or of the ends themselves."""
    a, b = (low, high) if seen is None else seen
    a, b = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    omega = np.arccos(np.clip(a @ b / norms, -1, 1)) if norms else 0.0
    if np.sin(omega) <= 1e-6:
        return (1 - mix) * low + mix * high
    return (np.sin((1 - mix) * omega) * low + np.sin(mix * omega) * high) / np.sin(omega)


def child_of(
    first: np.ndarray, second: np.ndarray, mix: float, split: int, angle: str
) -> np.ndarray:
    seen = (first, second) if angle == "whole" else None
    left = slerp(mix, first, second, seen)[:split] if seen else None
    right = slerp(1 - mix, first, second, seen)[split:] if seen else None
    if seen is None:
        left = slerp(mix, first[:split], second[:split])
        right = slerp(1 - mix, first[split:], second[split:])
    return np.concatenate([left, right])


def seeds_of(generator: np.random.Generator, count: int = SEEDS) -> np.ndarray:
    common = generator.standard_normal(TOTAL)
    return (common + generator.standard_normal((count, TOTAL))).astype(np.float32)


def gram_of(seeds: np.ndarray, block: int = 2**20) -> Gram:
    return Gram(lambda k, start, stop: seeds[k, start:stop], *seeds.shape, block)


def values_of(lineage: Lineage, seeds: np.ndarray) -> np.ndarray:
    lengths = np.diff(lineage.stops, prepend=0)
    return (np.repeat(lineage.coefficients, lengths, axis=0).T * seeds).sum(0)


def births(generator: np.random.Generator) -> list[tuple[int, int, float, int]]:
    """Parents by number (seeds first), the last birth always among them: a depth of DEPTH."""
    found = []
    for last in range(SEEDS - 1, SEEDS - 1 + DEPTH):
        pair = [last, int(generator.integers(last + 1))]
        generator.shuffle(pair)
        found.append((*pair, float(generator.random()), int(generator.integers(TOTAL))))
    return found


@pytest.mark.parametrize("angle", ["whole", "part"])
def test_one_pass_from_the_seeds_is_thirty_generations_of_slerp(angle: Any) -> None:
    for number in range(200):
        generator = np.random.default_rng(number)
        seeds = seeds_of(generator)
        gram = gram_of(seeds)
        lineages = [Lineage.seed(k, SEEDS, TOTAL) for k in range(SEEDS)]
        vectors = list(seeds)
        dense = Dense(angle)
        for k, seed in enumerate(seeds):
            dense.seed(k, seed)
        splits = set()
        for first, second, mix, split in births(generator):
            lineages.append(cross(lineages[first], lineages[second], mix, split, gram, angle))
            child = child_of(vectors[first], vectors[second], mix, split, angle)
            dense.birth(len(vectors), first, second, mix, split)
            vectors.append(child.astype(np.float32))
            splits.add(split)
            lineages[-1] = Lineage(lineages[-1].stops, rounded(lineages[-1].coefficients))
        assert len(gram.stops) <= len(splits - {0}) + 1
        size = np.abs(vectors[-1]).max()
        for found in (values_of(lineages[-1], seeds), dense.vector(len(vectors) - 1)):
            assert np.abs(found - vectors[-1]).max() < 1e-5 * size


@pytest.mark.parametrize("angle", ["whole", "part"])
def test_in_double_precision_only_rounding_is_lost(angle: Any) -> None:
    generator = np.random.default_rng(5)
    seeds = seeds_of(generator).astype(np.float64)
    gram, lineages = gram_of(seeds), [Lineage.seed(k, SEEDS, TOTAL) for k in range(SEEDS)]
    vectors = list(seeds)
    for first, second, mix, split in births(generator):
        lineages.append(cross(lineages[first], lineages[second], mix, split, gram, angle))
        vectors.append(child_of(vectors[first], vectors[second], mix, split, angle))
    assert np.allclose(values_of(lineages[-1], seeds), vectors[-1], rtol=0, atol=1e-13)


# --- Gram sums ------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sets(st.integers(1, TOTAL)), min_size=1, max_size=6), st.integers(1, TOTAL))
def test_sums_are_those_of_the_stretches_however_they_were_cut(
    cuts: list[set[int]], block: int
) -> None:
    seeds = seeds_of(np.random.default_rng(0)).astype(np.float64)
    gram = gram_of(seeds, block)
    for cut in cuts:
        stops = np.array(sorted({*cut, TOTAL}))
        starts = [0, *stops[:-1]]
        expected = [seeds[:, a:b] @ seeds[:, a:b].T for a, b in zip(starts, stops, strict=True)]
        assert np.allclose(gram.between(stops), expected, rtol=1e-12, atol=0)
    assert len(gram.stops) <= len(set().union(*cuts) | {*range(block, TOTAL, block), TOTAL})


def test_a_split_reads_the_stretch_that_it_cuts_and_no_other() -> None:
    read = []
    seeds = seeds_of(np.random.default_rng(0))

    def one(seed: int, start: int, stop: int) -> np.ndarray:
        read.append((start, stop))
        return seeds[seed, start:stop]

    gram = Gram(one, SEEDS, TOTAL, block=50)
    assert not read  # nothing before it is needed
    gram.between(np.array([TOTAL]))
    assert sorted({*read}) == [(0, 50), (50, 100), (100, 150), (150, TOTAL)]
    read.clear()
    gram.between(np.array([70, TOTAL]))
    assert sorted({*read}) == [(50, 70), (70, 100)]
    read.clear()
    gram.between(np.array([50, 70, 100, TOTAL]))
    assert not read


def test_tiny_entries_beside_large_ones_keep_their_angle() -> None:
    seeds = np.full((2, 40), 1e6)
    seeds[:, 20:22] = [[1e-6, 0], [0, 1e-6]]
    gram = gram_of(seeds)
    for split in (20, 22):
        gram.between(np.array([split, 40]))
    parents = [Lineage.seed(k, 2, 40) for k in range(2)]
    tiny = gram.between(np.array([20, 22, 40]))[1]
    assert tiny.tolist() == [[1e-12, 0], [0, 1e-12]]
    assert np.isfinite(cross(*parents, 0.5, 20, gram, "part").coefficients).all()


# --- invariants -----------------------------------------------------------------------------------

lineages = st.tuples(st.integers(0, 2**32 - 1), st.integers(0, TOTAL), st.sampled_from("wp"))


def pair_of(number: int) -> tuple[np.ndarray, Gram, Lineage, Lineage]:
    generator = np.random.default_rng(number)
    seeds = seeds_of(generator)
    gram = gram_of(seeds)
    known = [Lineage.seed(k, SEEDS, TOTAL) for k in range(SEEDS)]
    for _ in range(4):
        first, second = generator.choice(len(known), 2, replace=False)
        mix, split = float(generator.random()), int(generator.integers(TOTAL))
        known.append(cross(known[first], known[second], mix, split, gram))
    return seeds, gram, known[-2], known[-1]


@settings(max_examples=60, deadline=None)
@given(lineages, st.sampled_from([0.0, 1.0]))
def test_a_mix_of_0_or_1_puts_the_parents_end_to_end(
    drawn: tuple[int, int, str], mix: float
) -> None:
    number, split, kind = drawn
    seeds, gram, first, second = pair_of(number)
    child = cross(first, second, mix, split, gram, "whole" if kind == "w" else "part")
    left, right = (first, second) if mix == 0 else (second, first)
    expected = [values_of(left, seeds)[:split], values_of(right, seeds)[split:]]
    assert np.allclose(values_of(child, seeds), np.concatenate(expected), rtol=0, atol=1e-7)


@settings(max_examples=60, deadline=None)
@given(lineages, st.floats(0, 1))
def test_equal_parents_have_themselves_as_a_child(drawn: tuple[int, int, str], mix: float) -> None:
    number, split, kind = drawn
    _, gram, parent, _ = pair_of(number)
    child = cross(parent, parent, mix, split, gram, "whole" if kind == "w" else "part")
    at = child.at(np.union1d(parent.stops, child.stops))
    assert np.allclose(at, parent.at(np.union1d(parent.stops, child.stops)), rtol=1e-9, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(lineages, st.floats(0, 1))
def test_exchanging_parents_mirrors_the_mix(drawn: tuple[int, int, str], mix: float) -> None:
    number, split, kind = drawn
    seeds, gram, first, second = pair_of(number)
    angle: Any = "whole" if kind == "w" else "part"
    one, other = (
        values_of(cross(a, b, m, split, gram, angle), seeds)
        for a, b, m in ((first, second, mix), (second, first, 1 - mix))
    )
    assert np.allclose(one, other, rtol=0, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(lineages, st.floats(0, 1))
def test_tables_are_compact_and_end_at_the_last_entry(
    drawn: tuple[int, int, str], mix: float
) -> None:
    number, split, kind = drawn
    _, gram, first, second = pair_of(number)
    child = cross(first, second, mix, split, gram, "whole" if kind == "w" else "part")
    assert child.stops[-1] == TOTAL
    assert (np.diff(child.stops) > 0).all()
    assert (child.coefficients[1:] != child.coefficients[:-1]).any(axis=1).all()
    assert set(child.stops) <= {*first.stops, *second.stops, split}


def test_a_mix_of_a_half_joins_both_sides_of_the_split() -> None:
    _, gram, *_ = pair_of(0)
    parents = [Lineage.seed(k, SEEDS, TOTAL) for k in range(2)]
    assert cross(*parents, 0.5, 20, gram).stops.tolist() == [TOTAL]
    assert cross(*parents, 0.4, 20, gram).stops.tolist() == [20, TOTAL]
    assert cross(*parents, 0.4, 0, gram).stops.tolist() == [TOTAL]
    assert cross(*parents, 0.4, TOTAL, gram).stops.tolist() == [TOTAL]


# --- where there is no angle ----------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0, 1e-9, 5e-7, -2.0])
def test_nearly_parallel_parents_are_mixed_on_a_line(scale: float) -> None:
    generator = np.random.default_rng(1)
    one, aside = generator.standard_normal((2, TOTAL))
    aside -= one * (aside @ one) / (one @ one)
    aside *= np.linalg.norm(one) / np.linalg.norm(aside)
    other = scale * one if scale < 0 else one + scale * aside
    gram = gram_of(np.stack([one, other]))
    child = cross(*(Lineage.seed(k, 2, TOTAL) for k in range(2)), 0.3, 40, gram)
    assert rounded(child.coefficients).tolist() == [[0.7, 0.3], [0.3, 0.7]]


def test_beyond_the_threshold_it_is_an_arc() -> None:
    seeds = np.array([[1.0, 0.0], [np.cos(1e-3), np.sin(1e-3)]])
    child = cross(*(Lineage.seed(k, 2, 2) for k in range(2)), 0.3, 2, gram_of(seeds))
    expected = np.sin([0.7e-3, 0.3e-3]) / np.sin(1e-3)
    assert child.coefficients[0].tolist() != [0.7, 0.3]
    assert np.allclose(child.coefficients[0], expected, rtol=1e-9)


@pytest.mark.parametrize("angle", ["whole", "part"])
def test_zero_vectors_have_no_angle(angle: Any) -> None:
    seeds = np.ones((2, 30))
    seeds[1] = 0
    child = cross(*(Lineage.seed(k, 2, 30) for k in range(2)), 0.25, 10, gram_of(seeds), angle)
    assert child.coefficients.tolist() == [[0.75, 0.25], [0.25, 0.75]]
    seeds[1, 10:] = np.linspace(-1, 1, 20)  # one part alone is zero
    child = cross(*(Lineage.seed(k, 2, 30) for k in range(2)), 0.25, 10, gram_of(seeds), "part")
    assert child.coefficients[0].tolist() == [0.75, 0.25]
    assert np.allclose(child.coefficients[1], np.sin(np.pi / 2 * np.array([0.25, 0.75])))


# --- in memory ------------------------------------------------------------------------------------


def test_noise_is_normal_and_hangs_on_the_childs_own_seed() -> None:
    total = 200_000
    dense = Dense()
    for k in range(2):
        dense.seed(k, np.random.default_rng(k).standard_normal(total))
    dense.birth("plain", 0, 1, 0.3, 70_000)
    dense.birth("a", 0, 1, 0.3, 70_000, 0.01, (7, 1))
    dense.birth("b", 0, 1, 0.3, 70_000, 0.01, (7, 2))
    dense.birth("again", 0, 1, 0.3, 70_000, 0.01, (7, 1))
    assert (dense.vector("a") == dense.vector("again")).all()
    noise = [dense.vector(name) - dense.vector("plain") for name in "ab"]
    assert abs(np.std(noise[0]) - 0.01) < 1e-4
    assert abs(np.mean(noise[0])) < 1e-4
    assert abs(np.corrcoef(*noise)[0, 1]) < 0.01
    assert dense.vector("a").dtype == np.float32


def test_only_the_living_are_kept_and_given_vectors_stay_as_they_were() -> None:
    vector = np.ones(5, np.float32)
    dense = Dense()
    dense.seed("a", vector)
    vector[:] = 7
    dense.birth("b", "a", "a", 0.5, 2)
    assert np.allclose(dense.vector("b"), 1)
    dense.drop("a")
    assert len(dense) == 1
    with pytest.raises(KeyError):
        dense.birth("c", "a", "b", 0.5, 2)
