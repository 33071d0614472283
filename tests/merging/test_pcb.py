"""PCB against the authors' steps written out over whole models, in float64."""

from __future__ import annotations

import math
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_states import merger_of, recipe_of

from evomerge.errors import CandidateError
from evomerge.merging.order import values_at

EXPERTS = ("a", "b", "c")


def merged(states, sources=None, **parameters):
    recipe = recipe_of(states, "pcb", sources, **parameters)
    return dict(merger_of(states).tensors(recipe))


def models_of(shapes, seed=0, size=1.0, count=3):
    generator = torch.Generator().manual_seed(seed)
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    moved = {
        name: {n: x + size * torch.randn(x.shape, generator=generator) for n, x in base.items()}
        for name in EXPERTS[:count]
    }
    return {"base": base, **moved}


def clipped(row, low_share, high_share):
    """The authors' clamp: places int(d low) and int(d high - 1) of the sorted row."""
    ordered = sorted(row)
    low, high = ordered[int(len(row) * low_share)], ordered[int(len(row) * high_share - 1)]
    high = max(low, high)
    return [min(max(x, low), high) for x in row]


def scaled(row):
    low, high = min(row), max(row)
    return [(x - low) / (high - low) if high > low else 0.0 for x in row]


def pcb(taus, weights, ratio, clip, competition):
    """Shifts of all entries; taus: a list for each expert."""
    count, size = len(taus), len(taus[0])
    sizes = [clipped([abs(x) for x in tau], clip, 1 - clip) for tau in taus]
    parts = [scaled(row) for row in sizes]
    signed = [
        [float(np.sign(x)) * p for x, p in zip(tau, row, strict=True)]
        for tau, row in zip(taus, parts, strict=True)
    ]
    betas = []
    for k in range(count):
        row = []
        for j in range(size):
            if competition == "pairs":
                between = sum(math.tanh(signed[k][j] * other[j]) for other in signed)
            elif competition == "raw":
                between = math.tanh(taus[k][j] * sum(other[j] for other in taus))
            else:
                between = math.tanh(taus[k][j] * sum(other[j] for other in signed))
            row.append(math.exp(count * parts[k][j] ** 2) * between)
        betas.append(scaled(clipped(row, 1 - ratio, 1) if ratio < 1 else row))
    shifts = []
    for j in range(size):
        over = sum(
            w * betas[k][j] * float(np.sign(taus[k][j])) * sizes[k][j]
            for k, w in enumerate(weights)
        )
        shifts.append(over / max(sum(beta[j] for beta in betas), 1e-12))
    return shifts


@pytest.mark.parametrize("competition", ["sum", "pairs", "raw"])
@pytest.mark.parametrize(("ratio", "clip"), [(0.05, 0.01), (0.3, 0.0001), (0.9, 0.1)])
@pytest.mark.parametrize("size", [1.0, 1e-2])
def test_shifts_are_the_authors_over_the_whole_model(competition, ratio, clip, size):
    shapes = {"embed.weight": (20, 7), "layers.0.mlp.weight": (11, 9), "layers.0.norm": (13,)}
    states = models_of(shapes, size=size)
    weight = {"a": 0.8, "b": 1.3, "c": 1.0}
    value = merged(states, weight=weight, ratio=ratio, clip=clip, competition=competition)
    taus = [
        [float(np.float32(x) - np.float32(y)) for n in shapes for x, y in _pairs(states, model, n)]
        for model in EXPERTS
    ]
    shifts = iter(pcb(taus, list(weight.values()), ratio, clip, competition))
    for name in shapes:
        for found, origin in zip(
            value[name].view(-1).tolist(), states["base"][name].view(-1).tolist(), strict=True
        ):
            assert found - origin == pytest.approx(next(shifts), abs=2e-5 * size + 3e-7, rel=1e-4)


def _pairs(states, model, name):
    one, base = states[model][name].view(-1), states["base"][name].view(-1)
    return zip(one.tolist(), base.tolist(), strict=True)


def test_the_kernel_is_as_torch_over_many_tiles():
    states = models_of({"embed.weight": (3, 1500), "head.weight": (2, 700)}, seed=3)
    one = merged(states, ratio=0.3)
    with (
        mock.patch("evomerge.merging.reads.kernels", return_value=None),
        mock.patch("evomerge.merging.operators.pcb.CHUNK", 3 * 2048),  # in pieces of two tiles
    ):
        other = merged(states, ratio=0.3)
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, atol=1e-6, rtol=1e-6)


def test_one_expert_that_counts_alone_counts_in_full():
    """Its beta cancels: the clipped task vector itself, at most one twentieth of the entries."""
    states = models_of({"embed.weight": (40, 50)}, seed=4, count=1)
    value = merged(states, clip=0.0)["embed.weight"]
    shift, tau = (
        x["embed.weight"] - states["base"]["embed.weight"]
        for x in ({"embed.weight": value}, states["a"])
    )
    moved = shift != 0
    assert 0.04 < moved.float().mean() <= 0.05
    torch.testing.assert_close(shift[moved], tau[moved], atol=1e-6, rtol=1e-5)


def test_the_whole_model_is_read_once_for_all_weights_and_again_for_another_ratio():
    states = models_of({"embed.weight": (20, 7), "layers.0.mlp.weight": (11, 9)})
    merger = merger_of(states)
    with mock.patch("evomerge.merging.operators.pcb.values_at", wraps=values_at) as read:
        for weight, ratio, times in ((1, 0.05, 2), (0.5, 0.05, 2), (1, 0.1, 3), (0.9, 0.05, 3)):
            recipe = recipe_of(states, "pcb", list(EXPERTS), weight=weight, ratio=ratio)
            dict(merger.tensors(recipe))
            assert read.call_count == times


def test_rearranged_layers_have_no_whole_task_vectors():
    states = models_of({f"layers.{i}.mlp.weight": (4, 4) for i in range(2)})
    recipe = recipe_of(states, "pcb", list(EXPERTS))
    moved = recipe.model_validate(
        {**recipe.model_dump(), "slots": [{"layer": 0, "layers": {"a": 1}}, {"layer": 1}]}
    )
    with pytest.raises(CandidateError, match="pcb looks at whole task vectors"):
        dict(merger_of(states).tensors(moved))


@given(
    rows=st.lists(
        st.lists(
            st.one_of(
                st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-40]),
                st.floats(width=32, allow_nan=False, allow_infinity=False),
            ),
            min_size=5,
            max_size=5,
        ),
        min_size=1,
        max_size=40,
    ),
    step=st.integers(1, 7),
    eager=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_places_of_an_order_that_comes_in_pieces(rows, step, eager):
    """Of any sign and size, with ties: numpy's sort is the oracle."""
    table = torch.tensor(rows).t().contiguous()  # (5, entries)
    places = [0, len(rows) // 2, len(rows) - 1]
    pieces = [table[:, start : start + step] for start in range(0, len(rows), step)]
    if eager:
        with mock.patch("evomerge.merging.order.kernels", return_value=None):
            found = values_at(lambda: pieces, lambda size: places)
    else:
        found = values_at(lambda: pieces, lambda size: places)
    np.testing.assert_array_equal(found, np.sort(table.numpy(), 1)[:, places])
