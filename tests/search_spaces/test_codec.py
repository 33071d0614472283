"""The codec over random genes: there and back, constraints kept, inactive genes without effect."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stand_ins import named as named_of

from evomerge.errors import ConfigurationError
from evomerge.genes import (
    All,
    AllDifferent,
    AtLeast,
    Beyond,
    Choice,
    Condition,
    Constraint,
    Count,
    Flag,
    Gene,
    Integer,
    Level,
    NoneIs,
    OneOf,
    Real,
)
from evomerge.search_spaces.codec import Codec

UNIT = st.floats(0, 1) | st.sampled_from([0.0, 0.5, 1.0])


@st.composite
def conditions(draw: st.DrawFn, before: list[Gene]) -> Condition | None:
    """A condition on the genes before, that some values fulfil."""
    if not before or draw(st.booleans()):
        return None
    gene = draw(st.sampled_from(before))
    found: Condition
    if isinstance(gene, Flag):
        flags = [g.name for g in before if isinstance(g, Flag)]
        found = draw(
            st.sampled_from([OneOf(gene.name, (True,)), OneOf(gene.name, (False,))])
            | st.integers(1, len(flags)).map(lambda n: AtLeast(tuple(flags), n))
        )
    elif isinstance(gene, Choice):
        found = OneOf(gene.name, (draw(st.sampled_from(gene.options)),))
    elif isinstance(gene, Integer):
        found = NoneIs((gene.name,), draw(st.integers(gene.low, gene.high)))
    elif isinstance(gene, Level):
        found = OneOf(gene.name, (draw(st.sampled_from(gene.levels)),))
    else:
        found = Beyond(gene.name, draw(st.floats(0, max(abs(gene.low), abs(gene.high)))))
    other = draw(conditions(before[:-1])) if draw(st.booleans()) else None
    return found if other is None else All((found, other))


@st.composite
def codecs(draw: st.DrawFn) -> Codec:
    """Genes of all types, some in groups that are bound, some conditional on earlier ones."""
    genes: list[Gene] = []
    constraints: list[Constraint] = []
    for number in range(draw(st.integers(1, 6))):
        when = draw(conditions(genes))
        kind = draw(
            st.sampled_from(["real", "log", "integer", "level", "choice", "flag", "some", "count"])
        )
        name = f"g{number}"
        if kind == "real":
            low = draw(st.integers(-50, 50)) / 10
            span = draw(st.integers(1, 50)) / 10
            decimals = draw(st.sampled_from([4, 6]))
            genes.append(Real(name, low, low + span, decimals=decimals, when=when))
        elif kind == "log":
            low = draw(st.sampled_from([1e-6, 0.01, 3.0]))
            genes.append(Real(name, low, low * draw(st.floats(2, 1e4)), log=True, when=when))
        elif kind == "integer":
            low = draw(st.integers(-5, 5))
            genes.append(Integer(name, low, low + draw(st.integers(1, 9)), when))
        elif kind == "level":
            levels = draw(st.lists(st.integers(-30, 30), min_size=2, max_size=6, unique=True))
            genes.append(Level(name, tuple(level / 3 for level in sorted(levels)), when))
        elif kind == "choice":
            options = tuple("abcdefg"[: draw(st.integers(2, 7))])
            genes.append(Choice(name, options, when))
        elif kind == "flag":
            genes.append(Flag(name, when))
        elif kind == "some":
            count = draw(st.integers(2, 5))
            names = tuple(f"{name}_{i}" for i in range(count))
            genes += [Integer(n, 1, count + draw(st.just(2))) for n in names]
            repeats = draw(st.sampled_from(["next", "reject"]))
            constraints.append(AllDifferent(names, repeats))
        else:
            names = tuple(f"{name}_{i}" for i in range(draw(st.integers(2, 6))))
            genes += [Flag(n) for n in names]
            least = draw(st.integers(0, len(names) - 1))
            most = draw(st.integers(max(1, least), len(names) - (least == len(names))))
            if least == most == len(names):
                most = least = least - 1
            constraints.append(Count(names, least, max(most, least)))
    return Codec(genes, constraints)


@settings(max_examples=400, deadline=None)
@given(codecs(), st.data())
def test_values_come_back_and_constraints_hold(codec: Codec, data: st.DataObject) -> None:
    size = len(codec.genes)
    genome = data.draw(st.lists(UNIT, min_size=size, max_size=size))
    values = codec.values(genome)
    for gene, value in zip(codec.genes, values, strict=True):
        if isinstance(gene, Real | Integer):
            assert gene.low <= value <= gene.high  # type: ignore[operator]
        if isinstance(gene, Integer):
            assert isinstance(value, int)
        if isinstance(gene, Level):
            assert value in gene.levels
        if isinstance(gene, Choice):
            assert value in gene.options
    named = dict(zip((g.name for g in codec.genes), values, strict=True))
    broken = False
    for constraint in codec.constraints:
        bound = [named[name] for name in constraint.genes]
        if isinstance(constraint, Count):
            assert constraint.least <= sum(map(bool, bound)) <= constraint.most
        elif constraint.repeats == "next":
            assert len(set(bound)) == len(bound)
        else:
            broken = broken or len(set(bound)) < len(bound)
    told = codec.violations(genome)
    assert bool(told) == broken
    assert all("stands twice" in what for what in told)
    if broken:
        return
    back = codec.genome(named_of(codec, genome))
    assert all(0.0 <= x <= 1.0 for x in back)
    assert named_of(codec, back) == named_of(codec, genome)
    assert codec.genome(named_of(codec, back)) == back


@settings(max_examples=200, deadline=None)
@given(codecs(), st.data())
def test_genes_that_do_not_matter_change_no_other(codec: Codec, data: st.DataObject) -> None:
    size = len(codec.genes)
    genome = data.draw(st.lists(UNIT, min_size=size, max_size=size))
    idle = [
        i
        for i, active in enumerate(codec.active(codec.values(genome)))
        if not active and not any(codec.genes[i].name in c.genes for c in codec.constraints)
    ]
    moved = list(genome)
    for i in idle:
        moved[i] = data.draw(UNIT)
    assert named_of(codec, moved) == named_of(codec, genome)


def test_every_value_of_a_discrete_gene_has_the_same_share_of_the_cube() -> None:
    codec = Codec([Integer("n", 3, 7), Choice("c", ("x", "y", "z")), Flag("f")])
    points = np.linspace(0, 1, 30_001)
    for number, options in enumerate([range(3, 8), "xyz", (False, True)]):
        found = [codec.values([p] * 3)[number] for p in points]
        for option in options:
            assert found.count(option) / len(found) == pytest.approx(1 / len(options), abs=1e-3)


def test_a_log_scale_has_equal_ratios() -> None:
    codec = Codec([Real("x", 1e-4, 1.0, log=True)])
    found = [float(codec.values([p])[0]) for p in (0, 0.25, 0.5, 0.75, 1)]
    assert found == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1])


def test_all_different_by_moving_on_is_complete() -> None:
    """Brute force: every set of values is reached, and a set without repeats stays as it is."""
    genes = [Integer(f"r{i}", 0, 4) for i in range(3)]
    codec = Codec(genes, [AllDifferent(tuple(g.name for g in genes))])
    reached = set()
    for places in itertools.product(range(5), repeat=3):
        values = codec.values([(p + 0.5) / 5 for p in places])
        assert len(set(values)) == 3
        if len(set(places)) == 3:
            assert tuple(values) == places
        reached.add(frozenset(values))
    assert len(reached) == math.comb(5, 3)


def test_a_count_keeps_the_highest() -> None:
    codec = Codec(
        [Flag(f"f{i}") for i in range(5)], [Count(tuple(f"f{i}" for i in range(5)), 2, 3)]
    )
    assert codec.values([0.9, 0.6, 0.8, 0.7, 0.1]) == [True, False, True, True, False]
    assert codec.values([0.1, 0.2, 0.3, 0.4, 0.9]) == [False, False, False, True, True]
    assert codec.values([0.1, 0.2, 0.3, 0.0, 0.0]) == [False, True, True, False, False]


@pytest.mark.parametrize(
    ("genes", "constraints", "told"),
    [
        ([], [], "no genes"),
        ([Real("x", 1, 1)], [], "x: expected low < high"),
        ([Real("x", 0, 1, log=True)], [], "x: a log scale begins above 0"),
        ([Integer("n", 2, 2)], [], "n: can only be 2"),
        ([Choice("c", ("a",))], [], "c: expected two or more different options"),
        ([Level("l", (0.5,))], [], "l: expected two or more numbers, each higher"),
        ([Level("l", (0.5, 0.2))], [], "l: expected two or more numbers, each higher"),
        ([Level("l", (0.5, 0.5 + 1e-12))], [], "l: expected two or more numbers, each higher"),
        ([Flag("f"), Flag("f")], [], "f: two genes have this name"),
        ([Flag("f", OneOf("g", (True,)))], [], "f: matters only when g is yes, and no gene"),
        ([Flag("f"), Flag("g", AtLeast(("f",), 2))], [], "g: never matters: at least 2 of f set"),
        (
            [Choice("c", ("a", "b")), Flag("g", OneOf("c", ("z",)))],
            [],
            "g: never matters: c is z cannot be",
        ),
        (
            [Real("w", -1, 1), Flag("g", Beyond("w", 1.5))],
            [],
            "g: never matters: |w| >= 1.5 cannot be",
        ),
        ([Flag("f")], [Count(("f", "q"), 0, 1)], "f, q set: no gene 'q'"),
        ([Flag("f"), Flag("g")], [Count(("f", "g"), 2, 2)], "leaves nothing to choose"),
        ([Flag("f"), Flag("g")], [Count(("f", "g"), 2, 3)], "expected 0 <= least <= most <= 2"),
        ([Real("x", 0, 1)], [Count(("x",), 0, 1)], "expected flags"),
        ([Integer("n", 0, 3), Integer("m", 0, 4)], [AllDifferent(("n", "m"))], "of one range"),
        (
            [Integer(f"n{i}", 0, 1) for i in range(3)],
            [AllDifferent(("n0", "n1", "n2"))],
            "3 different numbers do not fit into 0 to 1",
        ),
        (
            [Flag("f"), Flag("g")],
            [Count(("f", "g"), 0, 1), Count(("g", "f"), 1, 1)],
            "is in two constraints",
        ),
    ],
)
def test_declarations_that_make_no_sense_are_refused(
    genes: list[Gene], constraints: list[Any], told: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Codec(genes, constraints)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"q": 1}, "no gene 'q'"),
        ({"x": 3.0}, "x: 3.0 is outside"),
        ({"x": "much"}, "x: cannot be 'much'"),
        ({"n": 1.5}, "n: cannot be 1.5"),
        ({"c": "z"}, "c: cannot be 'z'"),
        ({"f": 1}, "f: cannot be 1"),
        ({"f": True, "g": True}, "cannot be True (1 of f, g set)"),
    ],
)
def test_values_that_no_gene_has_are_refused(values: dict[str, Any], told: str) -> None:
    codec = Codec(
        [Real("x", 0, 1), Integer("n", 0, 3), Choice("c", ("a", "b")), Flag("f"), Flag("g")],
        [Count(("f", "g"), 1, 1)],
    )
    with pytest.raises(ValueError, match=re.escape(told)):
        codec.genome(values)


@pytest.mark.parametrize("genome", [None, "ab", [0.1], [[0.1, 0.2]], [0.1, "x"], {"a": 1}])
def test_what_is_no_genome_is_told(genome: Any) -> None:
    codec = Codec([Flag("f"), Flag("g")])
    assert codec.violations(genome) == ["expected a list of 2 numbers"]


def test_levels_are_read_as_people_write_them() -> None:
    codec = Codec([Level("l", (-0.0, 1 / 3))])
    assert codec.values(codec.genome({"l": 0.333333})) == [1 / 3]
    assert repr(codec.values([0.0])) == "[0.0]"  # never -0.0, which reads otherwise
    with pytest.raises(ValueError, match="l: cannot be"):
        codec.genome({"l": 0.34})
