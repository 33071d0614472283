"""Operators outside the task-vector family, against their formulas written out by brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from tiny_states import merger_of, recipe_of

from evomerge.errors import CandidateError, ConfigurationError
from evomerge.merging.operator import chunks
from evomerge.merging.operators.soup import greedy_soup

NUMBERS = st.floats(-2, 2, allow_subnormal=False, width=32)
EXPERTS = ("a", "b", "c")


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def merged(states, operator, sources=None, **parameters):
    recipe = recipe_of(states, operator, sources, **parameters)
    return dict(merger_of(states).tensors(recipe))


def models_of(*tensors):
    return {name: {"x": tensor} for name, tensor in zip(("base", *EXPERTS), tensors, strict=False)}


# --- MagMax, LiNeS, soups -------------------------------------------------------------------------


@given(rows=st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=15))
@settings(max_examples=60, deadline=None)
def test_magmax_takes_the_farthest_move_and_of_equal_ones_the_last(rows):
    states = models_of(*torch.tensor(rows).t().contiguous())
    value = merged(states, "magmax", **{"lambda": 0.7})["x"].tolist()
    for (base, *moved), got in zip(rows, value, strict=True):
        taus = [float(np.float32(x) - np.float32(base)) for x in moved]
        largest = max(abs(tau) for tau in taus)
        last = [tau for tau in taus if abs(tau) == largest][-1]
        assert got == pytest.approx(base + 0.7 * last, abs=1e-6)


def test_magmax_gives_ties_to_the_later_source(merge):
    states = models_of(torch.zeros(1), torch.ones(1), -torch.ones(1))
    assert merge(states, "magmax", ["a", "b"])["x"].item() == -0.5
    assert merge(states, "magmax", ["b", "a"])["x"].item() == 0.5


@given(alpha=st.floats(-2, 2), beta=st.floats(-2, 2), w=st.tuples(*[st.floats(-2, 2)] * 2))
@settings(max_examples=40, deadline=None)
def test_lines_scales_each_layer_by_its_depth(alpha, beta, w):
    places = {"embed": 0.0, "head": 0.0} | {f"layers.{i}.mlp": i / 3 for i in range(4)}
    states = {
        model: {f"{place}.weight": normal(3, 2, seed=10 * m + i) for i, place in enumerate(places)}
        for m, model in enumerate(("base", "a", "b"))
    }
    weight = dict(zip("ab", w, strict=True))
    value = merged(states, "lines", weight=weight, alpha=alpha, beta=beta)
    for place, depth in places.items():
        base, a, b = (states[model][f"{place}.weight"] for model in ("base", "a", "b"))
        expected = base + (alpha + beta * depth) * (w[0] * (a - base) + w[1] * (b - base))
        torch.testing.assert_close(value[f"{place}.weight"], expected, atol=1e-5, rtol=1e-5)


def test_a_model_of_one_layer_has_the_first_scale(merge):
    states = {m: {"layers.0.mlp.up": torch.full((2,), float(m == "a"))} for m in ("base", "a")}
    assert (
        merge(states, "lines", alpha=0.3, beta=5)["layers.0.mlp.up"].tolist()
        == [pytest.approx(0.3)] * 2
    )


def test_a_uniform_soup_is_the_mean(family, merge):
    value = merge(family, "uniform_soup")
    for name in ("head.weight", "layers.0.norm.weight"):
        mean = sum(family[model][name].double() for model in EXPERTS) / 3
        torch.testing.assert_close(value[name].double(), mean, atol=1e-7, rtol=1e-6)


def recipe_1(names, score_of):
    """Algorithm 1 of the paper, word by word."""
    ingredients = []
    for name in names:
        with_it = score_of((*ingredients, name))
        without = score_of(tuple(ingredients)) if ingredients else -math.inf
        if with_it >= without:
            ingredients.append(name)
    return tuple(ingredients)


@given(scores=st.lists(st.floats(0, 1), min_size=1, max_size=6), seed=st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_a_greedy_soup_is_recipe_1(scores, seed):
    rank = sorted(range(len(scores)), key=lambda i: -scores[i])
    names = [f"m{i}" for i in rank]

    def score_of(kept):  # any function of a set, the models' own scores for one
        if len(kept) == 1:
            return scores[int(kept[0][1:])]
        key = sum(7 ** int(name[1:]) for name in kept) + seed
        return np.random.default_rng(key).integers(0, 10) / 10

    asked = []
    found = greedy_soup(names, lambda kept: asked.append(kept) or score_of(kept))
    assert found == recipe_1(names, score_of)
    assert len(asked) == len(names)


def test_a_greedy_soup_of_nothing_and_of_no_number():
    assert greedy_soup([], lambda kept: 1) == ()
    assert greedy_soup(["a", "b"], lambda kept: math.nan) == ("a",)
    found = greedy_soup(["a", "b", "c"], lambda kept: math.nan if kept[-1] == "b" else 1)
    assert found == ("a", "c")
    found = greedy_soup(["a", "b"], lambda kept: math.nan if kept == ("a",) else 1)
    assert found == ("a", "b")
    with pytest.raises(ConfigurationError, match="'a' stands twice"):
        greedy_soup(["a", "b", "a"], lambda kept: 1)


# --- on spheres -----------------------------------------------------------------------------------


def test_the_karcher_mean_is_the_nearest_point_of_the_sphere(merge):
    """It minimises the sum of squared angles; here a minimiser finds the same point."""
    models = [normal(3, seed=seed) + 1 for seed in range(4)]
    units = torch.stack([x / x.norm() for x in models[1:]]).double().numpy()
    value = merge(models_of(*models), "karcher", max_iter=200, tol=1e-9)["x"].double().numpy()
    length = np.mean([float(x.norm()) for x in models[1:]])
    assert np.linalg.norm(value) == pytest.approx(length, rel=1e-6)

    def spread(point):
        point = point / np.linalg.norm(point)
        return (np.arccos(np.clip(units @ point, -1, 1)) ** 2).sum()

    best = minimize(spread, units.sum(0), method="Nelder-Mead", options={"xatol": 1e-9})
    nearest = best.x / np.linalg.norm(best.x) * length
    np.testing.assert_allclose(value, nearest, atol=1e-4)


def test_the_karcher_mean_of_two_is_halfway(merge):
    states = models_of(torch.zeros(2), torch.tensor([2.0, 0]), torch.tensor([0, 4.0]))
    torch.testing.assert_close(merge(states, "karcher")["x"], torch.full((2,), 3 / 2**0.5))


@pytest.mark.parametrize("seed", range(5))
def test_the_karcher_mean_of_opposite_models_is_the_first_at_the_mean_length(merge, seed):
    """Every point half-way is as near: none is better, but rounding must not choose."""
    x = normal(5, 3, seed=seed)
    value = merge(models_of(x, x, -3 * x), "karcher")["x"]
    torch.testing.assert_close(value, 2 * x)


def test_a_model_without_direction_counts_for_the_length_alone(merge):
    x = normal(5, 3)
    for operator in ("karcher", "multislerp"):
        value = merge(models_of(x, x, 0 * x, 2 * x), operator)["x"]
        torch.testing.assert_close(value, x)


@pytest.mark.parametrize("operator", ["nuslerp", "multislerp"])
def test_opposite_models_are_interpolated_linearly(merge, operator):
    x = normal(5, 3)
    value = merge(models_of(x, x, -3 * x), operator, weight={"a": 0.25, "b": 0.75})["x"]
    expected = (0.25 - 2.25) * x if operator == "nuslerp" else value
    torch.testing.assert_close(value, expected)
    even = merge(models_of(x, x, -x), operator, weight={"a": 0.5, "b": 0.5})["x"]
    torch.testing.assert_close(even, torch.zeros_like(x))


def test_three_directions_that_cancel_are_no_model(merge):
    angles = [torch.tensor([math.cos(a), math.sin(a)]) for a in (0, 2 * math.pi / 3, -2.0943951)]
    with pytest.raises(CandidateError, match="directions of a tensor cancel"):
        merge(models_of(torch.zeros(2), *angles), "multislerp")


@pytest.mark.parametrize("operator", ["nuslerp", "multislerp"])
def test_weights_that_cancel_are_refused(family, merge, operator):
    with pytest.raises(CandidateError, match="no scale"):
        merge(family, operator, ["a", "b"], weight={"a": 1, "b": -1})


@given(t=st.floats(0, 1), seed=st.integers(0, 99), along=st.sampled_from(["rows", "columns"]))
@settings(max_examples=40, deadline=None)
def test_nuslerp_of_rows_is_slerp_of_each_row(t, seed, along):
    x, y = normal(4, 3, seed=seed), normal(4, 3, seed=seed + 1000)
    weight = {"a": 1 - t, "b": t}
    states = models_of(torch.zeros(4, 3), x, y)
    value = merged(states, "nuslerp", ["a", "b"], weight=weight, vectors=along)["x"]
    pairs = (x, y, value) if along == "rows" else (x.t(), y.t(), value.t())
    for p, q, got in zip(*(pair.double() for pair in pairs), strict=True):
        angle = torch.acos((p @ q) / p.norm() / q.norm())
        expected = (p * torch.sin((1 - t) * angle) + q * torch.sin(t * angle)) / torch.sin(angle)
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@given(t=st.floats(0, 1), size=st.floats(0, 0.1), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_nuslerp_that_goes_straight_near_parallels_is_slerp(t, size, seed):
    """Slerp is compared with mergekit's own; here the first source stands for the base."""
    x = normal(6, 5, seed=seed)
    states = models_of(x, x, x + size * normal(6, 5, seed=seed + 1000))
    weight = {"a": 1 - t, "b": t}
    found = merged(states, "nuslerp", ["a", "b"], weight=weight, straight_above=0.9995)["x"]
    expected = merged(states, "slerp", ["b"], t=t)["x"]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_nuslerp_goes_straight_where_it_is_told(merge):
    x = normal(6, 5)
    states = models_of(x, x, x + 0.02 * normal(6, 5, seed=1))
    weight = {"a": 0.5, "b": 0.5}
    straight, round_ = (
        merge(states, "nuslerp", ["a", "b"], weight=weight, straight_above=above)["x"]
        for above in (0.9995, 1.0)
    )
    torch.testing.assert_close(straight, (states["a"]["x"] + states["b"]["x"]) / 2)
    assert 1e-5 < (straight - round_).abs().max() < 1e-3


# --- from the base --------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3])
def test_model_stock_is_the_papers_formula(merge, count):
    base = normal(6, 5)
    experts = [base + 1e-4 * (normal(6, 5, seed=9) + normal(6, 5, seed=s)) for s in range(count)]
    value = merge(models_of(base, *experts), "model_stock")["x"].double() - base.double()
    taus = [(expert.double() - base.double()).flatten() for expert in experts]
    cosines = [
        float(p @ q / p.norm() / q.norm()) for i, p in enumerate(taus) for q in taus[i + 1 :]
    ]
    cosine = sum(cosines) / len(cosines)
    t = count * cosine / (1 + (count - 1) * cosine)
    expected = (t * sum(taus) / count).view(6, 5)
    torch.testing.assert_close(value, expected, atol=2e-7, rtol=1e-3)


def test_model_stock_of_opposite_experts_is_the_base(merge):
    base, tau = normal(4, 4), normal(4, 4, seed=1)
    states = models_of(torch.zeros(4, 4), tau, -tau)
    assert torch.equal(merge(states, "model_stock")["x"], torch.zeros(4, 4))
    unmoved = models_of(base, base, base + tau)
    torch.testing.assert_close(merge(unmoved, "model_stock")["x"], base)


def published_sce(base, experts, share):
    """SCE entry by entry, as the paper has it."""
    taus = [[float(x) for x in (expert - base).flatten()] for expert in experts]
    columns = list(zip(*taus, strict=True))
    spread = [float(np.var(column)) if len(set(column)) > 1 else 0.0 for column in columns]
    count = int(share * sum(s > 0 for s in spread))
    chosen = range(len(columns))
    if share < 1:
        chosen = sorted(chosen, key=lambda i: -spread[i])[:count]
    energy = [sum(tau[i] ** 2 for i in chosen) for tau in taus]
    result = [float(x) for x in base.flatten()]
    for i in chosen:
        sign = 1 if sum(columns[i]) >= 0 else -1
        agreeing = [(e, x) for e, x in zip(energy, columns[i], strict=True) if x * sign > 0]
        if agreeing:
            result[i] += sum(e * x for e, x in agreeing) / sum(e for e, _ in agreeing)
    return torch.tensor(result).view_as(base)


@pytest.mark.parametrize("share", [0.0, 0.03, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("size", [1.0, 1e-4])
def test_sce_is_the_papers_at_any_scale(merge, share, size):
    base = normal(7, 5)
    experts = [base + size * normal(7, 5, seed=seed) * seed for seed in (1, 2, 3)]
    value = merge(models_of(base, *experts), "sce", select_topk=share)["x"]
    torch.testing.assert_close(value, published_sce(base, experts, share), atol=1e-6, rtol=0)


def test_sce_keeps_all_that_tie_with_the_last_one_selected(merge):
    tau = torch.tensor([1.0, -1.0, 1.0, 0.5])
    value = merge(models_of(torch.zeros(4), tau, 0 * tau), "sce", select_topk=0.25)["x"]
    assert value.tolist() == [1, -1, 1, 0]


def test_sce_counts_no_rounding_as_variance(merge):
    tau = normal(50)
    taus = [torch.cat([tau, torch.tensor([float(k)])]) for k in range(3)]
    value = merge(models_of(torch.zeros(51), *taus), "sce", select_topk=0.9)["x"]
    assert torch.equal(value, torch.zeros(51))  # int(.9 x 1) entries


@pytest.mark.parametrize("epsilon", [0.0, 1e-5, 0.5])
def test_ram_averages_what_moved_and_scales_what_one_moved_alone(merge, epsilon):
    base = normal(40)
    moves = [normal(40, seed=s) * (normal(40, seed=s + 50) > 0.3) for s in (1, 2, 3)]
    experts = [base + move for move in moves]
    taus = [[float(x) for x in expert - base] for expert in experts]
    columns = list(zip(*taus, strict=True))
    active = [[abs(x) > epsilon for x in column] for column in columns]
    shared = [sum(row[k] and sum(row) > 1 for row in active) for k in range(3)]
    alone = [sum(row[k] and sum(row) == 1 for row in active) for k in range(3)]
    factors = [1 + 0.6 * min(2.0, s / a) for s, a in zip(shared, alone, strict=True)]
    assert min(alone) > 0
    plain, scaled = [], []
    for x, column, row in zip(base.tolist(), columns, active, strict=True):
        kept = [tau for tau, here in zip(column, row, strict=True) if here]
        mean = sum(kept) / max(1, len(kept))
        plain.append(x + mean)
        scaled.append(x + mean * (factors[row.index(True)] if len(kept) == 1 else 1))
    states = models_of(base, *experts)
    value = merge(states, "ram", epsilon=epsilon)["x"]
    torch.testing.assert_close(value, torch.tensor(plain), atol=1e-6, rtol=0)
    value = merge(states, "ramplus_tl", epsilon=epsilon, r=0.6, alpha=2)["x"]
    torch.testing.assert_close(value, torch.tensor(scaled), atol=1e-6, rtol=0)


def test_nearswap_never_moves_farther_than_t(merge):
    base, other = normal(200), normal(200, seed=1)
    value = merge(models_of(base, other), "nearswap", ["a"], t=0.3)["x"]
    near = (base - other).abs() <= 0.3
    torch.testing.assert_close(value[near], other[near])
    far = base + 0.3 * (other - base).sign()
    torch.testing.assert_close(value[~near], far[~near])


@pytest.mark.parametrize("fence", [0.0, 1.5, 3.0])
def test_arcee_fusion_takes_what_stands_out(merge, fence):
    base, other = normal(9, 8), normal(9, 8, seed=1)
    p, q = base.double().softmax(-1), other.double().softmax(-1)
    divergence = (q * (q / p).log()).sum(-1, keepdim=True)
    importance = (other - base).abs().double() * divergence
    ordered = sorted(importance.flatten().tolist())
    first, median, third = (ordered[int(share * 71)] for share in (0.25, 0.5, 0.75))
    taken = importance >= median + fence * (third - first)
    assert 0 < taken.sum() < 72
    value = merge(models_of(base, other), "arcee_fusion", ["a"], fence=fence)["x"]
    assert torch.equal(value, torch.where(taken, other, base))


def test_passthrough_may_take_the_base(family, merge):
    value = merge(family, "passthrough", ["base"], scale=2)
    torch.testing.assert_close(value["head.weight"], 2 * family["base"]["head.weight"])
    same = merge(family, "passthrough", ["b"])
    assert torch.equal(same["head.weight"], family["b"]["head.weight"])


@pytest.mark.parametrize(("rows", "width"), [(10, 1), (10, 7), (3, 100), (0, 5), (5, 0)])
def test_pieces_cover_all_rows_and_are_no_larger_than_a_chunk(monkeypatch, rows, width):
    monkeypatch.setattr("evomerge.merging.operator.CHUNK", 20)
    pieces = list(chunks(rows, width))
    assert [i for piece in pieces for i in range(piece.start, piece.stop)] == list(range(rows))
    for piece in pieces:
        assert (piece.stop - piece.start) * width <= max(20, width)
