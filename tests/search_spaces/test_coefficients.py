"""Coefficients of experts, curves over depth and switches: formulas of others, and moments."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from random_files import UNIT
from scipy import stats
from scipy.special import softmax
from stand_ins import space_of

from evomerge.recipe import Recipe
from evomerge.search_spaces.shares import shares

EXPERTS = ["expert_0", "expert_1", "expert_2"]


def points(size: int) -> st.SearchStrategy[list[float]]:
    return st.lists(UNIT, min_size=size, max_size=size)


def weights_of(recipe: Recipe, layer: int | None, component: str) -> Any:
    return recipe.merge_for(layer, component).parameters["weight"]


def coefficients(recipe: Recipe) -> NDArray[np.float64]:
    """Of the experts in the first layer, in their order."""
    found = weights_of(recipe, 0, "mlp")
    return np.array([found[expert] for expert in EXPERTS])


def bound(values: str, **more: Any) -> Any:
    weight = {"per": ["expert"], "values": values, **more}
    return space_of({"kind": "weights", "operator": "linear", "search": {"weight": weight}}, 2)


# --- coefficients ---------------------------------------------------------------------------------


@pytest.mark.parametrize("experts", [2, 3, 5, 16])
def test_a_simplex_is_sampled_uniformly(experts: int) -> None:
    """Moments and margins of Dirichlet(1, ..., 1), over 100,000 points."""
    count = 100_000
    genes = np.random.default_rng(0).random((count, experts - 1))
    found = shares("simplex", genes)
    assert found.min() >= 0
    np.testing.assert_allclose(found.sum(axis=1), 1.0, rtol=0, atol=1e-9)
    expected = stats.dirichlet(np.ones(experts))
    spread = np.sqrt(expected.var() / count)
    assert (np.abs(found.mean(axis=0) - expected.mean()) < 4.5 * spread).all()
    # A variance's own spread; that of an exponential's, nearly, is 8 times its square.
    margin = 4.5 * expected.var().max() * np.sqrt(8 / count)
    np.testing.assert_allclose(np.cov(found.T), expected.cov(), rtol=0, atol=margin)
    for column in found.T:
        assert stats.kstest(column, stats.beta(1, experts - 1).cdf).statistic < 2.2 / count**0.5
    largest = found.max(axis=1)  # the broken stick's longest piece: the harmonic number over n
    assert largest.mean() == pytest.approx(
        sum(1 / i for i in range(1, experts + 1)) / experts, 0.01
    )


@settings(max_examples=100, deadline=None)
@given(points(3))
def test_softmax_is_scipys(genome: list[float]) -> None:
    logits = -3 + 6 * np.array(genome)
    found = coefficients(bound("softmax", range=[-3, 3]).decode(genome))
    np.testing.assert_allclose(found, softmax(logits), rtol=1.1e-4, atol=0)


@settings(max_examples=100, deadline=None)
@given(points(3), st.sampled_from([(0, 1), (-1, 1), (0.2, 2)]))
def test_normalised_is_divided_by_the_sum_of_magnitudes(
    genome: list[float], ends: tuple[float, float]
) -> None:
    raw = ends[0] + (ends[1] - ends[0]) * np.array(genome)
    found = coefficients(bound("normalised", range=list(ends)).decode(genome))
    total = np.abs(raw).sum()
    expected = raw / total if total else np.full(3, 1 / 3)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)
    assert np.abs(found).sum() == pytest.approx(1, abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(points(6))
def test_a_gate_switches_experts_off(genome: list[float]) -> None:
    search = {
        "weight": {"per": ["expert"], "range": [-1, 1], "gate": 0.3},
        "density": {"per": ["expert"], "range": [0.1, 1]},
    }
    space = space_of({"kind": "weights", "operator": "ties", "search": search}, 2)
    raw = np.round(-1 + 2 * np.array(genome[:3]), 6)
    found = coefficients(space.decode(genome))
    np.testing.assert_allclose(found, np.where(np.abs(raw) < 0.3, 0, raw), rtol=0, atol=1e-6)
    on = (np.abs(raw) >= 0.3).tolist()
    assert space.active(genome) == [True] * 3 + on
    density = space.decode(genome).merge_for(0, "mlp").parameters["density"]
    for number, expert in enumerate(EXPERTS):
        if on[number]:
            assert density[expert] == pytest.approx(0.1 + 0.9 * genome[3 + number], abs=1e-6)


@settings(max_examples=100, deadline=None)
@given(st.lists(UNIT, min_size=9, max_size=9))
def test_layerwise_fusion_slerps_the_two_best_by_the_softmax_of_their_scores(
    genome: list[float],
) -> None:
    """Su & Geiping 2025; three parts with scores of their own, one pair by their sums."""
    weight = {"per": ["expert", "component"], "values": "pair", "range": [0, 1]}
    merges = {"slerp": {"operator": "nuslerp", "search": {"weight": weight}}}
    data = {
        "kind": "layer_choice",
        "layer_groups": 1,
        "layers": {"experts": False, "merges": merges},
    }
    recipe = space_of(data, 2).decode(genome)
    scores = torch.tensor(genome, dtype=torch.float64).mul(1e4).round().div(1e4).view(3, 3)
    sums = scores.mul(1e4).round().sum(dim=0)
    merge = recipe.merge_for(0, "attention")
    best = [EXPERTS.index(source) for source in merge.sources or ()]
    assert sums[best].tolist() == torch.topk(sums, 2).values.tolist()
    for part, row in zip(("attention", "mlp", "norm"), scores, strict=True):
        found = weights_of(recipe, 1, part)
        share = torch.softmax(row[best], dim=0)
        assert [found[EXPERTS[i]] for i in best] == pytest.approx(share.tolist(), abs=1e-8)


# --- curves ---------------------------------------------------------------------------------------

# What mergekit 0.1.5 makes of these gradients, layer by layer (mergekit.config.evaluate_setting).
GRADIENTS = [
    ([0.1, 0.9, 0.4, 0.7], [0.1, 0.58, 0.8, 0.5, 0.52, 0.7]),
    ([0.1, 0.9, 0.4, 0.7], [0.1, 0.4, 0.7, 0.8375, 0.65, 0.4625, 0.475, 0.5875, 0.7]),
    ([0.2, 1.1], [0.2, 0.425, 0.65, 0.875, 1.1]),
    ([0.3, 0.0, 0.8, 0.2, 0.6], [0.3, 0.0, 0.8, 0.2, 0.6]),
]


def curve(num_layers: int, **said: Any) -> Any:
    search = {"weight": said}
    data = {"kind": "depth_profile", "operator": "task_arithmetic", "search": search}
    return space_of(data, num_layers)


def along(recipe: Recipe, num_layers: int, component: str = "mlp") -> list[Any]:
    return [weights_of(recipe, layer, component) for layer in range(num_layers)]


@pytest.mark.parametrize(("knots", "values"), GRADIENTS)
def test_knots_are_mergekits_gradients(knots: list[float], values: list[float]) -> None:
    space = curve(len(values), knots=len(knots), range=[0, 2])
    recipe = space.decode([knot / 2 for knot in knots])
    assert along(recipe, len(values)) == pytest.approx(values, abs=1e-9)
    assert weights_of(recipe, None, "embedding") == knots[0]
    assert weights_of(recipe, None, "norm") == weights_of(recipe, None, "head") == knots[-1]


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(2, 12), st.integers(1, 5))
def test_knots_are_interpolated_as_numpy_does(
    data: st.DataObject, num_layers: int, count: int
) -> None:
    counts = {"attention": min(count, num_layers), "mlp": 2, "other": 1}
    space = curve(num_layers, knots=counts, range=[0, 1])
    genome = data.draw(points(sum(counts.values())))
    recipe = space.decode(genome)
    knots = np.round(genome, 4)
    depth = np.linspace(0, 1, num_layers)
    first = knots[: counts["attention"]]
    if len(first) > 1:
        expected = np.interp(depth, np.linspace(0, 1, len(first)), first)
    else:
        expected = np.repeat(first, num_layers)
    np.testing.assert_allclose(along(recipe, num_layers, "attention"), expected, atol=1e-4)
    line = knots[-3] + (knots[-2] - knots[-3]) * depth
    np.testing.assert_allclose(along(recipe, num_layers), line, rtol=0, atol=1e-4)
    others = [*along(recipe, num_layers, "norm"), weights_of(recipe, None, "head")]
    np.testing.assert_allclose(others, knots[-1], rtol=0, atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(points(6), st.integers(2, 12))
def test_a_straight_line_is_that_of_lines(genome: list[float], num_layers: int) -> None:
    """Wang et al. 2025: alpha + beta l / (L - 1), for each expert."""
    straight = {"first": [0, 1], "growth": [-0.5, 1]}
    recipe = curve(num_layers, per=["expert"], straight=straight).decode(genome)
    for number, expert in enumerate(EXPERTS):
        alpha, beta = genome[2 * number], -0.5 + 1.5 * genome[2 * number + 1]
        found = [each[expert] for each in along(recipe, num_layers)]
        expected = [alpha + beta * layer / (num_layers - 1) for layer in range(num_layers)]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1.1e-4)


# --- masks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("on", itertools.product((0.0, 1.0), repeat=4))
def test_a_mask_leaves_the_base_where_it_is_off(on: tuple[float, ...]) -> None:
    mask = {"per": ["layer", "component"], "layer_groups": 2, "least": 1, "most": 3}
    data = {"kind": "masks", "operator": "task_arithmetic", "mask": mask, "outside": "base"}
    space = space_of(data, num_layers=4)
    assert [gene.name for gene in space.genes][:3] == [
        f"mask.layers_0_1.{component}" for component in ("attention", "mlp", "norm")
    ]
    genome = [*on[:2], 0.0, *on[2:], 0.0]
    recipe = space.decode(genome)
    wanted = [bool(x) for x in genome]
    if sum(wanted) == 0:
        wanted[0] = True  # one has to be on, and none is higher than the first
    if sum(wanted) == 4:
        wanted[4] = False  # three may be, and the last of those that are as high goes
    for layer, (number, component) in itertools.product(
        range(4), enumerate(("attention", "mlp", "norm"))
    ):
        merge = recipe.merge_for(layer, component)
        if wanted[3 * (layer // 2) + number]:
            assert (merge.operator, len(merge.sources)) == ("task_arithmetic", 3)
        else:
            assert (merge.operator, merge.sources) == ("passthrough", ("base",))
    assert recipe.merge_for(None, "head").sources == ("base",)


@settings(max_examples=100, deadline=None)
@given(points(3 * 2 + 3))
def test_an_expert_is_left_out_of_the_layers_where_its_switch_is_off(genome: list[float]) -> None:
    search = {"weight": {"per": ["expert"], "range": [0, 1]}}
    mask = {"per": ["expert", "layer"], "least": 1, "most": 2}
    data = {"kind": "masks", "operator": "task_arithmetic", "mask": mask, "search": search}
    with_all = space_of({**data, "mask": {**mask, "layers_per_group": 2}}, 4)
    recipe = with_all.decode(genome)
    weight = np.round(genome[6:], 6)
    for layer in range(4):
        on = []
        for number in range(3):
            mine = genome[2 * number : 2 * number + 2]
            both_low = max(mine) < 0.5 and mine.index(max(mine)) == layer // 2
            on.append(mine[layer // 2] >= 0.5 or both_low)
        kept = np.where(on, weight, 0.0)
        merge = recipe.merge_for(layer, "mlp")
        if merge.operator == "passthrough":
            assert not kept.any()
        else:
            found = [merge.parameters["weight"][expert] for expert in EXPERTS]
            np.testing.assert_allclose(found, kept, rtol=0, atol=1e-6)
    outside = [weights_of(recipe, None, "head")[expert] for expert in EXPERTS]
    np.testing.assert_allclose(outside, weight, rtol=0, atol=1e-6)
