"""The task-vector family against references written here from the papers and their code."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_states import merger_of, recipe_of

from evomerge.errors import CandidateError
from evomerge.merging import OPERATORS
from evomerge.merging import sparsify as sparsifying

NUMBERS = st.floats(-2, 2, allow_subnormal=False, width=32)
EXPERTS = ("a", "b", "c")


def states_of(taus, base=0.25):
    """A base of one value and experts at the given offsets, by tensor name."""
    first = next(iter(taus.values()))
    states = {"base": {name: torch.full_like(value, base) for name, value in first.items()}}
    for expert, tensors in taus.items():
        states[expert] = {name: base + value for name, value in tensors.items()}
    return states


def published_ties(states, experts, weights, density, scale):
    """TIES as in the paper, algorithm 1, entry by entry, trimmed over the whole model."""
    names = sorted(states["base"])
    flat = {m: torch.cat([s[n].reshape(-1) for n in names]) for m, s in states.items()}
    trimmed = []
    for expert in experts:
        tau = [float(x) for x in flat[expert] - flat["base"]]
        kept = max(1, int(density * len(tau)))
        limit = sorted((abs(x) for x in tau), reverse=True)[kept - 1]
        trimmed.append([x if abs(x) >= limit else 0.0 for x in tau])
    merged = []
    for j in range(len(trimmed[0])):
        column = [w * tau[j] for w, tau in zip(weights, trimmed, strict=True)]
        sign = (sum(column) > 0) - (sum(column) < 0)
        agreeing = [x for x in column if x * sign > 0]
        merged.append(sum(agreeing) / max(1, len(agreeing)))
    total = flat["base"] + scale * torch.tensor(merged)
    sizes = [states["base"][n].numel() for n in names]
    return {
        n: part.view(states["base"][n].shape)
        for n, part in zip(names, total.split(sizes), strict=True)
    }


@pytest.mark.parametrize("density", [0.05, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.7, -0.4, 0.2)])
def test_ties_is_the_papers_by_default(family, merge, density, weights):
    del family["base"]["only_here"]
    for state in family.values():
        del state["steps"]
    merged = merge(
        family,
        "ties",
        weight=dict(zip(EXPERTS, weights, strict=True)),
        density=density,
        **{"lambda": 0.8},
    )
    expected = published_ties(family, EXPERTS, weights, density, 0.8)
    for name, tensor in expected.items():
        torch.testing.assert_close(merged[name], tensor, atol=1e-6, rtol=0)


def test_the_trim_scope_can_be_chosen(merge):
    # One tensor moves ten times as far as the other: the whole model's top half is in it alone.
    small, large = torch.tensor([0.1, 0.2]), torch.tensor([1.0, 2.0])
    states = states_of({"a": {"s": small, "l": large}}, base=0.0)
    whole = merge(states, "ties", density=0.5, trim="model")
    each = merge(states, "ties", density=0.5, trim="tensor")
    assert whole["s"].tolist() == [0, 0]
    assert whole["l"].tolist() == [1, 2]
    torch.testing.assert_close(each["s"], torch.tensor([0, 0.2]))
    torch.testing.assert_close(each["l"], torch.tensor([0, 2.0]))
    default = merge(states, "ties", density=0.5)
    mergekit = merge(states, "ties", density=0.5, compat="mergekit")
    assert all(
        torch.equal(default[n], whole[n]) and torch.equal(mergekit[n], each[n]) for n in "sl"
    )


def test_what_cancels_takes_the_sign_of_the_majority(merge):
    tau = torch.tensor([1.0, 2.0, 3.0, 4.0])
    other = torch.tensor([-1.0, -1.0, -4.0, -6.0])  # sums: 0, +, -, -
    states = states_of({"a": {"x": tau}, "b": {"x": other}}, base=0.0)
    published = merge(states, "ties", density=1.0)["x"]
    assert published.tolist() == [-1, 2, -4, -6]
    assert merge(states, "ties", density=1.0, compat="mergekit")["x"].tolist() == [1, 2, -4, -6]


def test_the_majority_is_the_tensors_however_it_is_cut(merge, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(-2, 3, (700,), generator=generator).float()
    b = torch.randint(-2, 3, (700,), generator=generator).float()
    states = states_of({"a": {"x": a, "y": a[:9]}, "b": {"x": b, "y": b[:9]}}, base=0.0)
    whole = merge(states, "ties", density=1.0)
    for module in ("operator", "blocks"):
        monkeypatch.setattr(f"evomerge.merging.{module}.CHUNK", 64)
    cut = merge(states, "ties", density=1.0)
    assert torch.equal(whole["x"], cut["x"])
    assert torch.equal(whole["y"], cut["y"])


def test_tied_magnitudes_are_all_kept(merge):
    states = states_of({"a": {"x": torch.tensor([1.0, -1.0, 1.0, 0.5])}}, base=0.0)
    for density in (0.25, 0.5, 0.75):
        assert merge(states, "ties", density=density)["x"].tolist() == [1, -1, 1, 0]


@pytest.mark.parametrize("compat", ["published", "mergekit"])
@pytest.mark.parametrize("operator", ["task_arithmetic", "ties", "dare_linear", "dare_ties"])
@pytest.mark.parametrize(
    "tau", [torch.zeros(5), torch.full((5,), 0.5), torch.ones(1), torch.ones(4, 1)]
)
@pytest.mark.parametrize("density", [0.0, 1e-9, 0.3, 1.0])
def test_awkward_task_vectors_stay_finite(merge, operator, tau, density, compat):
    parameters = {} if operator == "task_arithmetic" else {"density": density}
    states = states_of({"a": {"x": tau}, "b": {"x": -tau}})
    merged = merge(states, operator, compat=compat, **parameters)["x"]
    assert torch.isfinite(merged).all()
    if not tau.any():
        assert torch.equal(merged, states["base"]["x"])


def test_a_density_too_small_for_one_entry_keeps_one(merge):
    states = states_of({"a": {"x": torch.tensor([1.0, 3.0, 2.0])}}, base=0.0)
    assert merge(states, "ties", density=1e-6)["x"].tolist() == [0, 3, 0]
    assert merge(states, "ties", density=0)["x"].tolist() == [0, 0, 0]


def test_normalising_never_explodes(merge):
    tau = torch.ones(4)
    states = states_of({"a": {"x": tau}, "b": {"x": -tau}}, base=0.0)
    weight = {"a": 1.0, "b": -0.99}
    assert merge(states, "ties", weight=weight, density=1.0)["x"].abs().max() <= 1
    with pytest.raises(CandidateError, match="both signs"):
        merge(states, "ties", weight=weight, density=1.0, compat="mergekit")
    with pytest.raises(CandidateError, match="nothing to normalise by"):
        merge(
            states,
            "task_arithmetic",
            weight={"a": 1.0, "b": -0.9999},
            normalize=True,
            compat="mergekit",
        )


# --- random draws ---------------------------------------------------------------------------------


def test_dare_drops_and_rescales_as_the_paper_says(merge):
    tau = torch.full((40_000,), 0.5)
    states = states_of({"a": {"x": tau}}, base=0.0)
    merged = merge(states, "dare_linear", density=0.3)["x"]
    kept = merged != 0
    torch.testing.assert_close(merged[kept], torch.full((int(kept.sum()),), 0.5 / 0.3))
    # Binomial: .3 +- 4 standard deviations of sqrt(.3 x .7 / 40000) = .0023
    assert abs(float(kept.float().mean()) - 0.3) < 0.0092
    matched = merge(states, "dare_linear", density=0.3, rescale="l1")["x"]
    torch.testing.assert_close(matched.abs().sum(), tau.sum(), rtol=1e-5, atol=0)
    assert merge(states, "dare_linear", density=0.3, rescale="none")["x"].max() == 0.5


def test_draws_are_independent_between_sources_tensors_and_seeds():
    keys = [(s, t, e) for s in (0, 1) for t in ("x", "y") for e in ("a", "b")]
    drawn = [torch.empty(20_000, dtype=torch.int16) for _ in keys]
    for key, draws in zip(keys, drawn, strict=True):
        sparsifying.draw_into(*key, draws)
    drawn = [draws.double() for draws in drawn]
    correlations = torch.corrcoef(torch.stack(drawn)).fill_diagonal_(0)
    assert correlations.abs().max() < 0.03  # 4.2 standard deviations of 1 / sqrt(20000)
    uniform = drawn[0].add(sparsifying.HALF).div(2 * sparsifying.HALF).sort().values
    distance = (uniform - torch.linspace(0, 1, 20_000)).abs().max()
    assert distance < 1.63 / 20_000**0.5  # Kolmogorov-Smirnov, 1 %


@pytest.mark.parametrize("operator", ["dare_linear", "dare_ties"])
def test_masks_do_not_depend_on_the_order_of_sources(family, merge, operator):
    one = merge(family, operator, ["a", "b", "c"], density=0.4, mask_seed=5)
    other = merge(family, operator, ["c", "a", "b"], density=0.4, mask_seed=5)
    fresh = merge(family, operator, ["a", "b", "c"], density=0.4, mask_seed=6)
    for name in one:
        torch.testing.assert_close(one[name], other[name])
    assert any(not torch.equal(one[name], fresh[name]) for name in one)


# --- invariants -----------------------------------------------------------------------------------


@given(tau=st.lists(NUMBERS, min_size=1, max_size=20), which=st.sampled_from("ab"))
@settings(max_examples=50, deadline=None)
def test_one_hot_weights_give_the_expert_back(tau, which):

    x = torch.tensor(tau)
    states = {"base": {"x": x.cos()}, "a": {"x": x}, "b": {"x": x.sin()}}
    weight = {name: float(name == which) for name in "ab"}
    out = torch.empty_like(x)
    merger_of(states).merge_tensor(recipe_of(states, "task_arithmetic", weight=weight), "x", out)
    torch.testing.assert_close(out, states[which]["x"], atol=1e-6, rtol=1e-6)


def test_every_row_cites_its_paper():
    for operator in OPERATORS.values():
        assert "https://" in operator.paper
        assert operator.summary
