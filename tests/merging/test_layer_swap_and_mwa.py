"""Layer swapping beside the search space of that name; averages weighed by a metric."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny_states import merger_of, recipe_of

from evomerge.checkpoints.anatomy import anatomy_of
from evomerge.checkpoints.open import open_checkpoint
from evomerge.documents import Document
from evomerge.errors import CandidateError
from evomerge.search_spaces import make_space, parse_space


def merged(states, operator, sources=None, **parameters):
    recipe = recipe_of(states, operator, sources, **parameters)
    return dict(merger_of(states).tensors(recipe))


def layered(num_layers, models=("base", "a", "b"), extra=()):
    generator = torch.Generator().manual_seed(num_layers)
    names = [f"layers.{i}.mlp.weight" for i in range(num_layers)]
    names += [f"layers.{i}.norm.weight" for i in range(num_layers)]
    return {
        m: {n: torch.randn(3, 2, generator=generator) for n in (*names, *extra)} for m in models
    }


# --- layer swapping -------------------------------------------------------------------------------


@given(
    num_layers=st.integers(2, 12),
    cuts=st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(0, 3)),
)
@settings(max_examples=60, deadline=None)
def test_whole_layers_are_swapped_as_the_search_space_says(num_layers, cuts):
    bottom, top, transition = cuts
    borders = (bottom > 0) + (top > 0)
    assume(bottom + top + borders * transition < num_layers)
    states = layered(num_layers)
    last = num_layers - 1
    value = merged(
        states,
        "layer_swap",
        ["a", "b"],
        bottom=min(1, round(bottom / last, 6)),
        top=min(1, round(top / last, 6)),
        transition=min(1, round(transition / last, 6)),
    )
    ranges = {k: [v, v] for k, v in zip(("bottom", "top"), cuts, strict=False)}
    config = parse_space(
        Document({"kind": "layer_swap", **ranges, "transition": [0, transition + 1]})
    )
    checkpoints = {name: open_checkpoint(state, name=name) for name, state in states.items()}
    anatomy = anatomy_of(checkpoints["base"])
    template = recipe_of(states, "linear", ["a", "b"])
    space = make_space(config, template, anatomy)
    genome = space.codec.genome({"transition": transition})
    expected = dict(merger_of(states).tensors(space.decode(genome)))
    for name, tensor in expected.items():
        torch.testing.assert_close(value[name], tensor, atol=1e-6, rtol=1e-6)


def test_the_defaults_are_the_papers_of_32_layers():
    states = layered(32)
    value = merged(states, "layer_swap", ["a", "b"])
    whose = []
    for i in range(32):
        name = f"layers.{i}.mlp.weight"
        a, b = states["a"][name], states["b"][name]
        found = [
            x
            for x, y in (("a", a), ("b", b), ("ab", (a + b) / 2))
            if torch.allclose(value[name], y)
        ]
        whose += found
    assert whose == ["a"] * 5 + ["ab"] + ["b"] * 23 + ["ab"] + ["a"] * 2


@pytest.mark.parametrize(("outside", "share"), [("outer", 1.0), ("inner", 0.0), ("mean", 0.5)])
def test_what_is_outside_the_layers(outside, share):
    states = layered(3, extra=("embed.weight", "head.weight"))
    value = merged(states, "layer_swap", ["a", "b"], outside=outside)
    for name in ("embed.weight", "head.weight"):
        expected = share * states["a"][name] + (1 - share) * states["b"][name]
        torch.testing.assert_close(value[name], expected, atol=1e-6, rtol=1e-6)


def test_a_linear_blend_falls_along_the_transition():
    states = {
        m: {n: torch.full_like(t, float(m == "a")) for n, t in s.items()}
        for m, s in layered(11).items()
    }
    value = merged(
        states, "layer_swap", ["a", "b"], bottom=0.2, top=0, transition=0.4, blend="linear"
    )
    shares = [float(value[f"layers.{i}.mlp.weight"][0, 0]) for i in range(11)]
    expected = [1, 1, 1, 0.75, 0.5, 0.25, 0, 0, 0, 0, 0]
    assert shares == pytest.approx(expected, abs=1e-6)


# --- averages by a metric -------------------------------------------------------------------------


@given(
    metric=st.tuples(*[st.floats(1e-3, 1e3)] * 3),
    penalty=st.floats(0, 5),
    lower=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_mwa_is_the_mean_by_powers_of_the_metric(metric, penalty, lower):
    states = layered(1, models=("base", "a", "b", "c"))
    given_ = dict(zip("abc", metric, strict=True))
    value = merged(states, "mwa", metric=given_, penalty=penalty, lower_is_better=lower)
    powers = [m ** (-penalty if lower else penalty) for m in metric]
    for name, found in value.items():
        expected = sum(
            p / sum(powers) * states[m][name].double() for p, m in zip(powers, "abc", strict=True)
        )
        torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


def test_mwa_at_its_ends():
    states = layered(1)
    mean = merged(states, "mwa", ["a", "b"], penalty=0, metric={"a": 0, "b": 3})
    best = merged(states, "mwa", ["a", "b"], penalty=1000, metric={"a": 2.0, "b": 2.1})
    none = merged(states, "mwa", ["a", "b"], metric={"a": 0, "b": 3})
    huge = merged(states, "mwa", ["a", "b"], penalty=1000, metric={"a": 1e12, "b": 1e12})
    for name in mean:
        a, b = states["a"][name], states["b"][name]
        torch.testing.assert_close(mean[name], (a + b) / 2)
        torch.testing.assert_close(best[name], b)
        torch.testing.assert_close(none[name], b)
        torch.testing.assert_close(huge[name], (a + b) / 2)


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"metric": 0.0}, "no checkpoint has a metric above 0"),
        ({"metric": {"a": 0, "b": 1}, "lower_is_better": True}, "must be above 0, got \\[0.0, 1.0"),
    ],
)
def test_metrics_of_which_no_share_follows_are_refused(parameters, told):
    with pytest.raises(CandidateError, match=told):
        merged(layered(1), "mwa", ["a", "b"], **parameters)
    assert math.isclose(np.ones(2).sum(), 2)
