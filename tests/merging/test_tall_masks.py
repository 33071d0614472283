"""TALL masks, consensus and MagMax: FusionBench's answers, and the paper's formula in float64."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import torch
from golden_fusionbench import CASES, cases_of, expected, states_of
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_states import merger_of, recipe_of

NUMBERS = st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0])  # sums and ties are exact


def merged(states, operator, sources=None, **parameters):
    recipe = recipe_of(states, operator, sources, **parameters)
    return dict(merger_of(states).tensors(recipe))


def masks(taus, thresholds):
    """mask_t = |tau_t| > lam_t |tau_mtl - tau_t|, (sources, entries), entry by entry."""
    found = np.zeros(taus.shape, bool)
    for j in range(taus.shape[1]):
        total = sum(float(tau) for tau in taus[:, j])
        for t in range(len(taus)):
            found[t, j] = abs(taus[t, j]) > thresholds[t] * abs(total - taus[t, j])
    return found


@pytest.mark.parametrize(("case", "family"), cases_of("tall_mask", "tall_mask_own"))
def test_a_recovered_task_is_that_of_fusionbench(case, family):
    sources, threshold = list(CASES[case][2]), CASES[case][1]["threshold"]
    value = merged(states_of(case, family), "tall_mask", sources, threshold=threshold)
    for name, found in expected(case, family).items():
        torch.testing.assert_close(value[name].double(), found.double(), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("case", "family"), cases_of("consensus_ta"))
def test_consensus_is_that_of_fusionbench(case, family):
    _, given_, experts, _ = CASES[case]
    threshold = dict(zip(experts, given_["thresholds"], strict=True))
    value = merged(
        states_of(case, family),
        "consensus_ta",
        list(experts),
        threshold=threshold,
        min_tasks=given_["min_tasks"],
        **{"lambda": given_["scale"]},
    )
    for name, found in expected(case, family).items():
        torch.testing.assert_close(value[name].double(), found.double(), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("case", "family"), cases_of("magmax"))
def test_magmax_is_that_of_fusionbench(case, family):
    _, given_, experts, _ = CASES[case]
    scale = given_.get("scale", 0.5)
    value = merged(states_of(case, family), "magmax", list(experts), **{"lambda": scale})
    for name, found in expected(case, family).items():
        torch.testing.assert_close(value[name].double(), found.double(), atol=1e-6, rtol=1e-6)


@given(
    rows=st.lists(st.tuples(*[NUMBERS] * 4), min_size=1, max_size=40),
    thresholds=st.tuples(*[st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0])] * 3),
    least=st.integers(0, 4),
    stored=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    eager=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_consensus_is_the_papers_formula(rows, thresholds, least, stored, eager):
    """Also where magnitudes tie, task vectors cancel or are zero, and dtypes differ."""
    base, *experts = torch.tensor(rows).t().contiguous()
    states = {"base": {"x": base}, "a": {"x": experts[0].to(stored)}}
    states |= {name: {"x": value} for name, value in zip("bc", experts[1:], strict=True)}
    threshold = dict(zip("abc", thresholds, strict=True))
    with (
        mock.patch("evomerge.merging.reads.kernels", return_value=None)
        if eager
        else mock.Mock(__enter__=mock.Mock(), __exit__=mock.Mock(return_value=False))
    ):
        value = merged(
            states, "consensus_ta", threshold=threshold, min_tasks=least, **{"lambda": 0.5}
        )
        first = merged(states, "tall_mask", threshold=thresholds[0])
    taus = torch.stack(experts).double().numpy() - base.double().numpy()
    total = taus.sum(0)
    agreed = masks(taus, thresholds).sum(0) >= least
    np.testing.assert_array_equal(value["x"].numpy(), base.numpy() + 0.5 * agreed * total)
    own = masks(taus, [thresholds[0]] * 3)[0]
    np.testing.assert_array_equal(first["x"].numpy(), base.numpy() + own * total)


@pytest.mark.parametrize("count", [2, 8, 9, 20])
def test_many_sources_and_long_tensors(count):
    """More sources than a loop takes at once, more entries than a tile."""
    generator = torch.Generator().manual_seed(count)
    base, *experts = (torch.randn(3, 701, generator=generator) for _ in range(count + 1))
    states = {"base": {"x": base}} | {f"m{k}": {"x": e} for k, e in enumerate(experts)}
    value = merged(states, "consensus_ta", threshold=0.3, min_tasks=2, **{"lambda": 1.0})["x"]
    taus = (torch.stack(experts).double() - base.double()).view(count, -1).numpy()
    agreed = masks(taus, [0.3] * count).sum(0) >= 2
    assert 0 < agreed.mean() < 1
    total = (taus.sum(0) * agreed).reshape(3, 701)
    torch.testing.assert_close(
        value.double(), base.double() + torch.from_numpy(total), atol=1e-5, rtol=1e-5
    )


def test_no_mask_is_needed_or_all_are():
    generator = torch.Generator().manual_seed(1)
    states = {m: {"x": torch.randn(9, generator=generator)} for m in ("base", "a", "b")}
    every = merged(states, "consensus_ta", min_tasks=0, **{"lambda": 0.3})["x"]
    plain = merged(states, "task_arithmetic", weight=0.3)["x"]
    torch.testing.assert_close(every, plain, atol=1e-6, rtol=1e-6)
    none = merged(states, "consensus_ta", min_tasks=3)["x"]
    assert torch.equal(none, states["base"]["x"])


def test_the_task_that_is_named_first_is_recovered():
    """Experts that move other entries: each mask has what its expert moved, and no more."""
    base, a, b = torch.zeros(4), torch.tensor([1.0, 2, 0, 0]), torch.tensor([0.0, 0, 3, 4])
    states = {"base": {"x": base}, "a": {"x": a}, "b": {"x": b}}
    for order, expected_ in ((["a", "b"], a), (["b", "a"], b)):
        assert torch.equal(merged(states, "tall_mask", order)["x"], expected_)
