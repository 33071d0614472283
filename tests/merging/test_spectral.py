"""Spectral operators: brute force in numpy straight from the formulas, and what must hold."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from tiny_states import merger_of, recipe_of

from evomerge.errors import CandidateError
from evomerge.merging import spectra
from evomerge.merging.operators.isotropic import _directions

SHAPES = [(8, 5), (4, 9), (6, 6), (2, 7), (30, 3)]
# All of them, as the invariants try them; none changes what has no base but its zeros.
TRIALS = [
    ("star", {}),
    ("star", {"eta": 75}),
    ("iso_c", {"alpha": 0.7}),
    ("iso_cts", {}),
    ("iso_cts", {"common": 0.4}),
    ("tsv_m", {}),
    ("tsv_m", {"rank": 0.6}),
    ("opcm", {"length": "none"}),
    ("opcm", {"alpha": 0.2}),
    ("lore", {"mu": 1, "lambda": 0.5}),
    ("svd_task_arithmetic", {"rank": 0.5}),
]


def normal(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def low_rank(seed, shape, rank):
    return normal(seed, shape[0], rank) @ normal(seed + 1, rank, shape[1]) / rank


def models_of(taus, base=None):
    base = torch.zeros_like(taus[0]) if base is None else base
    models = [base, *(base + tau for tau in taus)]
    return {m: {"x.weight": v} for m, v in zip(("base", *"abcd"), models, strict=False)}


def merged(taus, operator, *, base=None, **parameters):
    states = models_of(taus, base)
    recipe = recipe_of(states, operator, list(states)[1:], **parameters)
    return dict(merger_of(states).tensors(recipe))["x.weight"]


def svd(matrix):
    return np.linalg.svd(matrix, full_matrices=False)


def exact(taus):
    return [tau.double().numpy() for tau in taus]


# --- brute force ----------------------------------------------------------------------------------


def star(tau, eta):
    u, s, v = svd(tau)
    kept, total = 0, 0.0
    while kept < len(s) and (kept == 0 or total < eta / 100 * s.sum() * (1 - 1e-12)):
        total += s[kept]
        kept += 1
    return (u[:, :kept] * s[:kept]) @ v[:kept] * (s.sum() / total)


def thresholded(matrix, threshold):
    u, s, v = svd(matrix)
    return (u * np.maximum(s - threshold, 0)) @ v


def cut(tau, rank):
    u, s, v = svd(tau)
    return (u[:, :rank] * s[:rank]) @ v[:rank]


def kinds(shape):
    """Task vectors of three experts: ordinary, of low rank, some that did not move."""
    return {
        "ordinary": [normal(seed, *shape) for seed in (1, 2, 3)],
        "low rank": [low_rank(seed, shape, 2) for seed in (1, 5, 9)],
        "unmoved": [normal(1, *shape), torch.zeros(shape), torch.zeros(shape)],
        "short": [1e-3 * normal(seed, *shape) for seed in (1, 2, 3)],
    }


@pytest.mark.parametrize("kind", kinds((2, 2)))
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("eta", [0, 40, 77, 100])
def test_star_is_the_mean_of_cut_and_rescaled_task_vectors(shape, kind, eta):
    taus, base = kinds(shape)[kind], normal(4, *shape)
    taus = [(base + tau) - base for tau in taus]  # as float32 models hold them
    if kind == "low rank" and eta == 100:
        eta = 99.9  # rounding has given them all directions
    found = merged(taus, "star", base=base, eta=eta, alpha=0.7)
    moved = [star(tau, eta) if tau.any() else tau for tau in exact(taus)]
    expected = base.double().numpy() + 0.7 * np.mean(moved, 0)
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-6)


@pytest.mark.parametrize("kind", kinds((2, 2)))
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [0.0, 0.5, 1.0])
def test_svd_task_arithmetic_adds_weighted_low_rank_task_vectors(shape, kind, rank):
    taus, weights = kinds(shape)[kind], {"a": 0.5, "b": -1.0, "c": 2.0}
    found = merged(taus, "svd_task_arithmetic", weight=weights, rank=rank, **{"lambda": 0.5})
    number = max(1, int(rank * min(shape)))
    parts = [w * cut(tau, number) for w, tau in zip(weights.values(), exact(taus), strict=True)]
    np.testing.assert_allclose(found.numpy(), 0.5 * sum(parts), atol=5e-6)


def lore(models, mu, rounds):
    """In turns, as the paper's algorithm: theta_0, then all differences."""
    deltas = [np.zeros_like(model) for model in models]
    for _ in range(rounds):
        common = np.mean([m - d for m, d in zip(models, deltas, strict=True)], 0)
        deltas = [thresholded(model - common, mu / 2) for model in models]
    return common, deltas


def price(models, mu, common, deltas):
    return sum(
        np.sum((common + delta - model) ** 2) + mu * svd(delta)[1].sum()
        for model, delta in zip(models, deltas, strict=True)
    )


@pytest.mark.parametrize("kind", kinds((2, 2)))
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("mu", "rounds"), [(0.5, 1), (0.5, 4), (4.0, 6), (1e3, 3), (0.0, 2)])
def test_lore_takes_turns(shape, kind, mu, rounds):
    taus, base = kinds(shape)[kind], normal(4, *shape)
    weights = {"a": 0.5, "b": -1.0, "c": 2.0}
    found = merged(taus, "lore", base=base, mu=mu, rounds=rounds, weight=weights, **{"lambda": 0.5})
    common, deltas = lore(exact([base + tau for tau in taus]), mu, rounds)
    weighted = [w * d for w, d in zip(weights.values(), deltas, strict=True)]
    np.testing.assert_allclose(found.numpy(), common + 0.5 * np.mean(weighted, 0), atol=5e-6)


def test_lore_finds_the_least_price_of_its_formula():
    """Another optimiser on theta_0 alone; the best differences from it are known."""
    models, mu = exact([normal(seed, 5, 4) for seed in (1, 2, 3)]), 2.0

    def of(flat):
        common = flat.reshape(5, 4)
        deltas = [thresholded(model - common, mu / 2) for model in models]
        rests = [model - common - delta for model, delta in zip(models, deltas, strict=True)]
        return price(models, mu, common, deltas), -2 * np.sum(rests, 0).ravel()

    best = minimize(of, np.zeros(20), jac=True, method="L-BFGS-B", tol=1e-12).fun
    taus = [torch.from_numpy(model).float() for model in models]
    prices = []
    for rounds in (1, 3, 10, 300):
        values = {"mu": mu, "rounds": rounds}
        common = merged(taus, "lore", weight=0, **values).double().numpy()
        deltas = [
            merged(taus, "lore", weight={m: 3.0 * (m == one) for m in "abc"}, **values)
            .double()
            .numpy()
            - common
            for one in "abc"
        ]
        prices.append(price(models, mu, common, deltas))
    assert prices == sorted(prices, reverse=True)
    assert best - 1e-5 <= prices[-1] <= best * 1.0005
    assert prices[0] > best * 1.001


# --- what must hold -------------------------------------------------------------------------------


def rotation(seed, size):
    return torch.linalg.qr(normal(seed, size, size).double()).Q


@pytest.mark.parametrize(("operator", "parameters"), TRIALS)
@given(seed=st.integers(0, 2**16), shape=st.sampled_from([(9, 4), (4, 9), (20, 5)]))
@settings(max_examples=6, deadline=None)
def test_rotated_task_vectors_merge_to_the_rotated_merge(operator, parameters, seed, shape):
    taus = [normal(seed + k, *shape) for k in range(3)]
    q, p = rotation(seed + 5, shape[0]), rotation(seed + 6, shape[1])
    rotated = [(q @ tau.double() @ p.t()).float() for tau in taus]
    expected = (q @ merged(taus, operator, **parameters).double() @ p.t()).float()
    torch.testing.assert_close(merged(rotated, operator, **parameters), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("operator", "parameters"), TRIALS)
@given(seed=st.integers(0, 2**16), shape=st.sampled_from(SHAPES))
@settings(max_examples=4, deadline=None)
def test_signs_of_singular_vectors_do_not_matter(operator, parameters, seed, shape):
    taus = [normal(seed + k, *shape) for k in range(3)]
    expected = merged(taus, operator, **parameters)
    signs = iter(range(10**6))
    plain = spectra._eigh

    def flipped(symmetric):
        values, vectors = plain(symmetric)
        return values, vectors * normal(next(signs), len(values)).sign().double()

    with mock.patch.object(spectra, "_eigh", flipped):
        found = merged(taus, operator, **parameters)
    assert next(signs) > 0
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize(("operator", "parameters"), TRIALS)
@pytest.mark.parametrize("shape", [(12, 8), (8, 12)])
def test_directions_that_nobody_moved_in_stay_as_they_are(operator, parameters, shape):
    """Experts with LoRAs in three directions: nothing is added outside of what they span."""
    taus = [low_rank(10 * k, shape, 1) for k in range(3)]
    found = merged(taus, operator, **parameters).double()
    values = torch.linalg.svdvals(found)
    assert values[2] > 1e-3 or operator in ("lore", "opcm")
    assert values[3] < 1e-5


@pytest.mark.parametrize("shape", SHAPES)
def test_iso_c_has_a_flat_spectrum(shape):
    taus = [normal(k, *shape) for k in range(3)]
    values = torch.linalg.svdvals(merged(taus, "iso_c", alpha=1.5))
    expected = 1.5 * torch.linalg.svdvals(sum(taus)).mean()
    torch.testing.assert_close(values, expected.expand(len(values)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("operator", ["iso_c", "iso_cts"])
def test_the_mean_over_directions_keeps_the_nuclear_norm(operator):
    taus = [low_rank(10 * k, (12, 8), 1) for k in range(3)]
    over_all = torch.linalg.svdvals(merged(taus, operator))
    over_those = torch.linalg.svdvals(merged(taus, operator, mean_over="directions"))
    total = torch.linalg.svdvals(sum(taus)).sum()
    torch.testing.assert_close(over_those.sum(), total)
    torch.testing.assert_close(over_all, over_those * 3 / 8, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_iso_cts_with_all_in_common_is_iso_c(shape):
    taus = [normal(k, *shape) for k in range(3)]
    found, expected = merged(taus, "iso_cts", common=1), merged(taus, "iso_c")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_iso_cts_has_a_flat_spectrum_and_rounds_down_where_there_are_no_more(shape):
    """With nothing in common and an odd number of directions, the published code fails."""
    taus = [normal(k, *shape) for k in range(2)]
    values = torch.linalg.svdvals(merged(taus, "iso_cts", common=0))
    torch.testing.assert_close(values, values.mean().expand(len(values)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("count", "tasks", "common", "nearest", "down"),
    [
        (768, 8, 0.8, (616, 19), (616, 19)),  # 614 asked for, 154 / 8 = 19.25
        (10, 4, 0.8, (10, 0), (10, 0)),  # 2 / 4, half to even
        (10, 4, 0.7, (6, 1), (10, 0)),  # 3 / 4: fewer in common than asked for
        (7, 2, 0.0, (1, 3), (1, 3)),  # 7 / 2 would be 4
        (5, 1, 1.0, (5, 0), (5, 0)),
    ],
)
def test_iso_cts_divides_what_is_not_common(count, tasks, common, nearest, down):
    assert _directions(count, tasks, common, "nearest") == nearest
    assert _directions(count, tasks, common, "down") == down


@pytest.mark.parametrize("shape", SHAPES)
def test_star_keeps_the_nuclear_norm_in_fewer_directions(shape):
    tau = normal(3, *shape)
    before = torch.linalg.svdvals(tau)
    after = torch.linalg.svdvals(merged([tau], "star", eta=60))
    torch.testing.assert_close(after.sum(), before.sum())
    shares = before.cumsum(0) / before.sum()
    assert int((after > 1e-5).sum()) == int((shares < 0.6).sum()) + 1


def orthogonal(shape, rank, count):
    """Task vectors of low rank with no direction in common, on either side."""
    left, right = rotation(1, shape[0]), rotation(2, shape[1])
    sizes = torch.linspace(1, 2, rank).double()
    slices = [slice(k * rank, (k + 1) * rank) for k in range(count)]
    return [((left[:, one] * sizes) @ right[:, one].t()).float() for one in slices]


@pytest.mark.parametrize("shape", [(12, 9), (9, 12), (9, 9)])
@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize(("operator", "parameters"), [("tsv_m", {}), ("opcm", {"length": "none"})])
def test_task_vectors_with_nothing_in_common_are_summed(operator, parameters, rank, shape):
    taus = orthogonal(shape, rank, 3)
    found = merged(taus, operator, **parameters)
    torch.testing.assert_close(found, sum(taus), atol=1e-5, rtol=1e-5)


def test_tsv_m_of_one_expert_many_times_is_what_it_keeps_of_it():
    tau = normal(3, 12, 9)
    expected = torch.from_numpy(cut(tau.double().numpy(), 3)).float()
    torch.testing.assert_close(merged([tau] * 3, "tsv_m"), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("length", "factor"), [("none", None), ("tensor", 1), ("model", 1)])
def test_opcm_adds_nothing_in_directions_that_are_taken(length, factor):
    taus = [normal(k, 9, 6) for k in range(2)]
    found = merged(taus, "opcm", alpha=0.6, length=length)
    norms = [float(tau.norm()) for tau in taus]
    if factor:
        assert float(found.norm()) == pytest.approx(np.mean(norms), rel=1e-5)
        return
    (first, second), found = (tau.double() for tau in taus), found.double()
    u, s, v = torch.linalg.svd(first, full_matrices=False)
    taken = int((s.cumsum(0) / s.sum() <= 0.6).sum())
    added = u.t() @ (found - first) @ v.t()
    assert added[:taken, :taken].abs().max() < 1e-5
    assert added.diagonal().abs().max() < 1e-5
    rest = u.t() @ second @ v.t()
    torch.testing.assert_close(added[taken:, :taken], rest[taken:, :taken], atol=1e-5, rtol=1e-4)


# --- what is shared, and what cannot be merged ----------------------------------------------------


def counted(merger, states, operator, **parameters):
    """How many matrices are decomposed for a candidate."""
    with mock.patch.object(spectra, "_eigh", side_effect=spectra._eigh) as calls:
        value = dict(merger.tensors(recipe_of(states, operator, list("abc"), **parameters)))
    return calls.call_count, value["x.weight"]


@pytest.mark.parametrize("cache_bytes", [2**24, 2**15])
def test_spectra_are_made_once_for_all_operators_and_values(cache_bytes):
    """Without room in memory they go to files, as do prepared shifts."""
    states = models_of([normal(k, 200, 180) for k in range(3)])
    merger = merger_of(states, cache_bytes)
    assert counted(merger, states, "star")[0] == 3
    assert counted(merger, states, "star", eta=70)[0] == 0
    assert counted(merger, states, "svd_task_arithmetic", rank=0.3)[0] == 0
    assert counted(merger, states, "tsv_m")[0] == 2  # of the joined vectors, left and right
    count, value = counted(merger, states, "tsv_m", alpha=0.3)
    assert count == 0
    alone = counted(merger_of(states), states, "tsv_m", alpha=0.3)[1]
    assert torch.equal(value, alone)
    assert counted(merger, states, "opcm")[0] == 2  # also for the whole model's length
    assert counted(merger, states, "opcm", **{"lambda": 0.4})[0] == 0
    assert counted(merger, states, "lore", mu=1, rounds=2)[0] == 6
    assert counted(merger, states, "lore", mu=1, rounds=2, weight=0.3)[0] == 0


@pytest.mark.parametrize("size", [1e-20, 1.0, 1e10])
def test_small_singular_values_are_accurate_too(size):
    """Values that are known, down to 1e-5 of the largest; below 1e-6 there are none."""
    known = 10.0 ** -torch.linspace(0, 5, 11).double()
    known = torch.cat([known, torch.tensor([1e-9, 0]).double()])
    matrix = size * (rotation(1, 40)[:, :13] * known) @ rotation(2, 13).t()
    spectrum = spectra.spectrum_of(matrix.t() @ matrix, "x")
    torch.testing.assert_close(spectrum.values[:11] / size, known[:11], rtol=1e-5, atol=0)
    assert spectrum.rank == 11
    top = spectrum.top(4)
    left = matrix @ top.coordinates
    torch.testing.assert_close(left.t() @ left, torch.eye(4).double(), atol=1e-8, rtol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(("operator", "parameters"), TRIALS)
def test_what_is_not_finite_is_refused_by_name(operator, parameters, bad):
    taus = [normal(k, 5, 4) for k in range(3)]
    taus[1][2, 1] = bad
    with pytest.raises(CandidateError, match=r"x\.weight"):
        merged(taus, operator, **parameters)


@pytest.mark.parametrize(("operator", "parameters"), TRIALS)
def test_nothing_moved_nothing_merged(operator, parameters):
    base = normal(1, 6, 4)
    found = merged([torch.zeros(6, 4)] * 3, operator, base=base, **parameters)
    torch.testing.assert_close(found, base)
