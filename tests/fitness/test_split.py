"""Splits: disjoint, exact, and the same for everyone."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import ConfigurationError
from evomerge.fitness.split import split_items


@settings(max_examples=60, deadline=None)
@given(
    ids=st.lists(st.integers(0, 10**6), min_size=2, max_size=60, unique=True),
    data=st.data(),
    seed=st.integers(0, 2**64 - 1),
)
def test_parts_are_disjoint_exact_and_independent_of_order(
    ids: list[int], data: st.DataObject, seed: int
) -> None:
    search = data.draw(st.integers(1, len(ids) - 1))
    fresh = data.draw(st.integers(0, len(ids) - search - 1))
    left = len(ids) - search - fresh
    holdout = data.draw(st.none() | st.integers(1, left))
    one = split_items({"t": ids}, search, fresh, holdout, seed)
    parts = (one.search["t"], one.fresh["t"], one.holdout["t"])
    assert tuple(map(len, parts)) == (search, fresh, left if holdout is None else holdout)
    assert len(set().union(*parts)) == sum(map(len, parts))
    assert set().union(*parts) <= set(ids)
    shuffled = data.draw(st.permutations(ids))
    assert (
        split_items(
            {"other": [1, 2, 3, 4, *range(9, 99)], "t": shuffled}, search, fresh, holdout, seed
        ).search["t"]
        == parts[0]
    )


def test_the_split_is_a_keyed_hash_of_the_items() -> None:
    """Pinned to hashlib: another version of evomerge must not move items into the holdout."""
    key = (7).to_bytes(8, "big")
    ranks = {i: hashlib.blake2b(str(i).encode(), key=key).digest() for i in range(20)}
    order = sorted(range(20), key=ranks.__getitem__)
    split = split_items({"t": range(20)}, 5, 4, None, 7)
    assert split.search["t"] == tuple(sorted(order[:5]))
    assert split.fresh["t"] == tuple(sorted(order[5:9]))
    assert split.holdout["t"] == tuple(sorted(order[9:]))


def test_more_items_leave_an_item_on_its_side_of_its_neighbours() -> None:
    """Ranks do not depend on the other items, so a split of a part is a part of the split."""
    whole = split_items({"t": range(100)}, 50, 0, None, 0)
    half = split_items({"t": range(50)}, 25, 0, None, 0)
    agreeing = sum(i in whole.search["t"] for i in half.search["t"])
    assert agreeing >= 20  # 12.5 by chance


def test_tasks_of_the_same_documents_split_alike_and_seeds_differently() -> None:
    """Two metrics of one set of documents: what one searches on, the other must not report."""
    split = split_items({"a": range(50), "b": range(50)}, 20, 10, None, 0)
    assert split.search["a"] == split.search["b"]
    assert not set(split.search["a"]) & set(split.holdout["b"])
    assert split.search["a"] != split_items({"a": range(50)}, 20, 10, None, 1).search["a"]


def test_one_number_serves_for_all() -> None:
    split = split_items({"t": [0]}, 240, 240, 544, 0)
    assert split.search == split.fresh == split.holdout == {"t": (0,)}


def test_too_few_items_is_one_error_that_names_all_tasks() -> None:
    with pytest.raises(ConfigurationError) as caught:
        split_items({"a": range(9), "b": range(99), "c": range(8)}, 5, 5, 5, 0)
    assert [str(p) for p in caught.value.problems] == [
        "task a: 9 items, the split asks 5 search + 5 fresh + 5 holdout",
        "task c: 8 items, the split asks 5 search + 5 fresh + 5 holdout",
    ]


@settings(max_examples=100, deadline=None)
@given(
    count=st.integers(2, 2000),
    percents=st.tuples(st.integers(1, 98), st.integers(0, 98), st.none() | st.integers(1, 98)),
)
def test_shares_are_the_whole_items_of_them(
    count: int, percents: tuple[int, int, int | None]
) -> None:
    """In whole hundredths, so that the oracle has no rounding."""
    first, second, third = (None if p is None else p * count // 100 for p in percents)
    first = max(1, first)
    shares = [None if p is None else p / 100 for p in percents]
    last = count - first - second if third is None else max(1, third)
    if not 0 < last <= count - first - second:
        with pytest.raises(ConfigurationError, match="items, the split asks"):
            split_items({"t": range(count)}, *shares, 0)
        return
    split = split_items({"t": range(count)}, *shares, 0)
    parts = (split.search["t"], split.fresh["t"], split.holdout["t"])
    assert tuple(map(len, parts)) == (first, second, last)
    assert len(set().union(*parts)) == first + second + last


def test_shares_and_numbers_go_together() -> None:
    split = split_items({"a": range(10), "b": range(101)}, 0.5, 2, None, 0)
    assert [len(split.search[t]) for t in "ab"] == [5, 50]
    assert [len(split.fresh[t]) for t in "ab"] == [2, 2]
    assert [len(split.holdout[t]) for t in "ab"] == [3, 49]
