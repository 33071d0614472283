from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_states import merger_of, recipe_of

from evomerge.errors import CandidateError

VECTORS = st.lists(st.floats(-3, 3, allow_subnormal=False, width=32), min_size=1, max_size=12)


@given(
    values=VECTORS,
    weights=st.lists(st.floats(0.01, 5), min_size=1, max_size=4),
)
@settings(max_examples=50, deadline=None)
def test_the_average_of_equal_models_is_the_model(values, weights):
    x = torch.tensor(values)
    names = [f"m{i}" for i in range(len(weights))]
    states = {name: {"x": x} for name in ("base", *names)}
    recipe = recipe_of(states, "linear", names, weight=dict(zip(names, weights, strict=True)))
    merged = dict(merger_of(states).tensors(recipe))["x"]
    torch.testing.assert_close(merged, x, atol=2e-6, rtol=1e-6)


def test_weights_that_cancel_are_refused(family, merge):
    with pytest.raises(CandidateError, match="no scale"):
        merge(family, "linear", weight={"a": 1, "b": -1, "c": 0})


@given(base=VECTORS, seed=st.integers(0, 99), t=st.sampled_from([0.0, 1.0]))
@settings(max_examples=50, deadline=None)
def test_slerp_ends_at_its_ends(base, seed, t):
    x = torch.tensor(base)
    y = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    states = {"base": {"x": x}, "a": {"x": y}}
    merged = dict(merger_of(states).tensors(recipe_of(states, "slerp", t=t)))["x"]
    torch.testing.assert_close(merged, y if t else x, atol=1e-5, rtol=1e-5)


def test_slerp_keeps_the_length_and_halves_the_angle(merge):
    states = {"base": {"x": torch.tensor([2.0, 0.0])}, "a": {"x": torch.tensor([0.0, 2.0])}}
    merged = merge(states, "slerp", t=1 / 3)["x"]
    expected = [2 * math.cos(math.pi / 6), 2 * math.sin(math.pi / 6)]
    torch.testing.assert_close(merged, torch.tensor(expected))


@pytest.mark.parametrize("sign", [1, -1])
def test_slerp_of_parallel_vectors_is_the_straight_line(merge, sign):
    x = torch.tensor([1.0, 2.0, 3.0])
    merged = merge({"base": {"x": x}, "a": {"x": sign * 3 * x}}, "slerp", t=0.25)["x"]
    torch.testing.assert_close(merged, 0.75 * x + 0.25 * sign * 3 * x)


def test_each_tensor_has_its_own_angle(family, merge):
    together = merge(family, "slerp", ["a"], t=0.4)
    for name in ("layers.0.self_attn.q.weight", "layers.1.norm.weight"):
        alone = {model: {name: state[name]} for model, state in family.items()}
        torch.testing.assert_close(merge(alone, "slerp", ["a"], t=0.4)[name], together[name])
