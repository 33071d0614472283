"""Passes with a factor for each entry: threads, pieces and files change not a bit of them."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import torch
from tiny_states import merger_of, recipe_of

from evomerge.errors import CandidateError

CASES = [
    ("consensus_ta", {"min_tasks": 1}),
    ("tall_mask", {}),
    ("cabs", {"n": 3, "m": 8}),
    ("pcb", {"ratio": 0.3}),
    ("widen", {}),
    ("layer_swap", {"outside": "mean"}),
    ("mwa", {}),
]
SHAPES = {"embed.weight": (70, 55), "layers.0.mlp.weight": (31, 129), "layers.0.norm.weight": (7,)}


def states_of(dtype):
    generator = torch.Generator().manual_seed(8)
    return {
        model: {n: torch.randn(s, generator=generator).to(dtype) for n, s in SHAPES.items()}
        for model in ("base", "a", "b", "c")
    }


def merged(merger, states, operator, parameters):
    sources = ["a", "b"] if operator == "layer_swap" else ["a", "b", "c"]
    return dict(merger.tensors(recipe_of(states, operator, sources, **parameters)))


@pytest.mark.parametrize(("operator", "parameters"), CASES)
def test_threads_change_nothing(operator, parameters):
    states = states_of(torch.bfloat16)
    one = merged(merger_of(states), states, operator, parameters)
    with (
        mock.patch("evomerge.merging.entrywise._PER_THREAD", 100),
        mock.patch("torch.get_num_threads", return_value=3),
    ):
        three = merged(merger_of(states), states, operator, parameters)
    assert all(torch.equal(three[name], value) for name, value in one.items())


@pytest.mark.parametrize(("operator", "parameters"), CASES)
def test_what_is_prepared_can_be_in_files(operator, parameters, monkeypatch):
    """A cache without room: what can go to a file does, the rest is made again."""
    states = states_of(torch.float32)
    one = merged(merger_of(states), states, operator, parameters)
    monkeypatch.setattr("evomerge.merging.cache._WORTH_A_FILE", 1)
    merger = merger_of(states, cache_bytes=0)
    for _ in range(2):
        other = merged(merger, states, operator, parameters)
        assert all(torch.equal(other[name], value) for name, value in one.items())
    assert merger.family.cache.used_bytes < 2**12  # what is kept of whole models, numbers


@pytest.mark.parametrize("operator", ["cabs", "pcb", "widen", "mwa"])
def test_a_model_that_is_not_finite_is_seen(operator):
    """By the kernels, which look while they write."""
    states = states_of(torch.float32)
    states["a"]["layers.0.mlp.weight"][3, 5] = np.nan
    with pytest.raises(CandidateError, match="the merged tensor is not finite"):
        merged(merger_of(states), states, operator, {"n": 8, "m": 8} if operator == "cabs" else {})


@pytest.mark.parametrize("operator", ["cabs", "widen"])
@pytest.mark.parametrize("stored", ["alike", "mixed"])
def test_with_more_sources_than_they_read_at_once_the_kernels_are_as_torch(stored, operator):
    """They are read in turns, and turns are filled up."""
    number = 9
    kinds = [torch.float32, torch.bfloat16, torch.float16] if stored == "mixed" else [torch.float16]
    generator = torch.Generator().manual_seed(number)
    states = {
        f"m{k}": {
            name: torch.randn(shape, generator=generator).to(kinds[k % len(kinds)])
            for name, shape in SHAPES.items()
        }
        for k in range(number)
    } | {"base": {n: torch.randn(s, generator=generator) for n, s in SHAPES.items()}}
    sources = [name for name in states if name != "base"]
    recipe = recipe_of(
        states, operator, sources, **({"n": 2, "m": 16} if operator == "cabs" else {})
    )
    one = dict(merger_of(states).tensors(recipe))
    with mock.patch("evomerge.merging.reads.kernels", return_value=None):
        other = dict(merger_of(states).tensors(recipe))
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, atol=1e-5, rtol=1e-5)
