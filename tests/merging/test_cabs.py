"""CABS against n:m masks written out group by group."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_states import merger_of, recipe_of

EXPERTS = ("a", "b", "c")
LEVELS = st.sampled_from([-2.0, -1.0, 0.0, 0.0, 1.0, 2.0, 3.0])  # many ties, many zeros


def merged(states, sources=None, **parameters):
    recipe = recipe_of(states, "cabs", sources, **parameters)
    return dict(merger_of(states).tensors(recipe))


def cabs(base, experts, weights, order, n, m, *, dense):
    """One expert after another, group by group, on what the earlier left; all flat lists."""
    out, taken = list(base), [False] * len(base)
    for k in order:
        for start in range(0, len(base), m):
            group = range(start, min(start + m, len(base)))
            if len(group) < m and not dense:
                continue
            moves = {i: experts[k][i] - base[i] for i in group if not taken[i]}
            moves = {i: move for i, move in moves.items() if move != 0}
            kept = n if len(group) == m else m
            for i in sorted(moves, key=lambda i: (-abs(moves[i]), i))[:kept]:
                out[i] += weights[k] * moves[i]
                taken[i] = True
    return out


@given(
    rows=st.lists(st.tuples(LEVELS, LEVELS, LEVELS, LEVELS), min_size=1, max_size=70),
    nm=st.sampled_from([(1, 1), (1, 4), (2, 4), (3, 5), (5, 3), (25, 60), (24, 32), (30, 31)]),
    priority=st.tuples(*[st.sampled_from([0.0, 1.0, 2.0])] * 3),
    tail=st.sampled_from(["dense", "dropped"]),
    stored=st.sampled_from([torch.float32, torch.bfloat16]),
    eager=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_groups_are_shared_out_as_the_paper_says(rows, nm, priority, tail, stored, eager):
    flat = torch.tensor(rows).t().contiguous()
    states = {m: {"x": value.to(stored)} for m, value in zip(("base", *EXPERTS), flat, strict=True)}
    parameters = {
        "n": nm[0],
        "m": nm[1],
        "tail": tail,
        "weight": {"a": 0.5, "b": -1.0, "c": 2.0},
        "priority": dict(zip(EXPERTS, priority, strict=True)),
    }
    found = None
    if eager:
        with mock.patch("evomerge.merging.reads.kernels", return_value=None):
            found = merged(states, **parameters)
    else:
        found = merged(states, **parameters)
    base, *experts = flat.double().tolist()
    order = sorted(range(3), key=lambda k: (-priority[k], k))
    expected = cabs(base, experts, [0.5, -1.0, 2.0], order, *nm, dense=tail == "dense")
    np.testing.assert_array_equal(found["x"].float().numpy(), np.float32(expected))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (64, 256), (200, 256)])
def test_long_tensors_and_the_kernels_are_as_numpy(n, m, tied):
    generator = torch.Generator().manual_seed(m)
    states = {
        model: {
            "x": torch.randn(37, 61, generator=generator),
            "y": torch.randn(5, generator=generator),
        }
        for model in ("base", *EXPERTS)
    }
    if tied:
        states = {m: {n: x.round() for n, x in state.items()} for m, state in states.items()}
    one = merged(states, n=n, m=m)
    with mock.patch("evomerge.merging.reads.kernels", return_value=None):
        other = merged(states, n=n, m=m)
    flat = [states[model]["x"].double().view(-1).tolist() for model in ("base", *EXPERTS)]
    expected = cabs(flat[0], flat[1:], [1.0] * 3, range(3), n, m, dense=True)
    for found in (one, other):
        torch.testing.assert_close(
            found["x"].double().view(-1), torch.tensor(expected).double(), atol=1e-6, rtol=1e-6
        )
        if m > 5:  # all the first's, as it is shorter than a group
            torch.testing.assert_close(found["y"], states["a"]["y"])


def test_priorities_say_who_chooses_first_and_the_order_of_sources_breaks_ties():
    base, a, b = torch.zeros(4), torch.tensor([4.0, 3, 2, 1]), torch.tensor([5.0, 1, 2, 3])
    states = {"base": {"x": base}, "a": {"x": a}, "b": {"x": b}}
    first_a = [4.0, 3, 2, 3]  # a keeps 4 and 3, b what is left: 2 and 3
    first_b = [5.0, 3, 2, 3]
    given_ = {"n": 2, "m": 4}
    assert merged(states, ["a", "b"], **given_)["x"].tolist() == first_a
    assert merged(states, ["b", "a"], **given_)["x"].tolist() == first_b
    up = {"priority": {"a": 0.1, "b": 0.2}}
    for order in (["a", "b"], ["b", "a"]):
        assert merged(states, order, **given_, **up)["x"].tolist() == first_b


def test_an_order_is_prepared_once_and_weights_cost_no_preparing():
    generator = torch.Generator().manual_seed(0)
    states = {m: {"x": torch.randn(64, generator=generator)} for m in ("base", "a", "b")}
    merger = merger_of(states)
    with mock.patch("evomerge.merging.operators.cabs._owners", wraps=_owners()) as made:
        for weight, priority in ((1, 0), (0.5, 0), (0.7, 1), (0.7, 2), (0.6, -1)):
            parameters = {"weight": weight, "priority": {"a": 0, "b": priority}, "n": 2, "m": 8}
            dict(merger.tensors(recipe_of(states, "cabs", ["a", "b"], **parameters)))
        assert made.call_count == 2  # a before b, and b before a
    assert merger.family.cache.used_bytes >= 2 * 64


def _owners():
    from evomerge.merging.operators import cabs

    return cabs._owners
