"""What holds for every operator of the table, whatever it computes."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_states import merger_of, recipe_of

from evomerge.merging import OPERATORS

SHAPES = [(), (1,), (5,), (3, 1), (1, 4), (4, 3), (2, 3, 2), (40,)]
# Values of parameters, beside the defaults, at which more of an operator's code runs.
TRIALS = {
    "slerp": [{"t": 0.3}],
    "nuslerp": [
        {"vectors": along, "deltas": deltas}
        for along in ("tensor", "rows", "columns")
        for deltas in (False, True)
    ]
    + [{"straight_above": 0.5}],
    "multislerp": [{}, {"deltas": True}, {"normalize_weights": False}],
    "ties": [{}, {"trim": "tensor"}, {"compat": "mergekit"}],
    "model_stock": [{}, {"filter_wise": True}, {"compat": "mergekit"}],
    "sce": [{}, {"select_topk": 0.4}, {"select_topk": 0.4, "compat": "mergekit"}],
    "ram": [{}, {"epsilon": 0.5}],
    "ramplus_tl": [{}, {"epsilon": 0.5, "alpha": 2}],
    "nearswap": [{}, {"t": 0.2}],
    "passthrough": [{}, {"scale": -0.7}],
    "fisher": [{}, {"normalize": True, "labels": "data"}],
    "regmean_plusplus": [{}, {"alpha": 1.0}],
    "regmean": [{}, {"alpha": 1.0}, {"alpha": 0.0}],
    "lora_svd": [{}, {"rank": 1}],
    "lora_lego": [{}, {"rank": 2}, {"rank": 2, "keep_norms": False, "keep_variance": False}],
    "layer_swap": [
        {},
        {"bottom": 0.4, "top": 0.3, "transition": 0.7, "blend": "linear", "outside": "mean"},
        {"bottom": 0, "top": 0, "outside": "inner"},
    ],
    "mwa": [{}, {"metric": {"a": 1, "b": 2, "c": 0.5}, "penalty": 2, "lower_is_better": True}],
    "consensus_ta": [{}, {"threshold": {"a": 0.1, "b": 1, "c": 0.6}, "min_tasks": 1}],
    "tall_mask": [{}, {"threshold": 1}],
    "cabs": [
        {},
        {"n": 1, "m": 4},
        {"n": 2, "m": 5, "tail": "dropped", "priority": {"a": 0, "b": 1, "c": 2}},
    ],
    "pcb": [{}, {"ratio": 0.4}, {"ratio": 0.6, "competition": "pairs"}, {"competition": "raw"}],
    "widen": [{}, {"above": 0.5, "score": 0.7}],
    "star": [{}, {"eta": 80}, {"eta": 0}],
    "iso_c": [{}, {"mean_over": "directions"}],
    "iso_cts": [{}, {"common": 0.4}, {"common": 0, "mean_over": "directions", "rounding": "down"}],
    "tsv_m": [{}, {"rank": 0.7}],
    "opcm": [{}, {"alpha": 0.2, "length": "tensor"}, {"alpha": 1, "length": "none"}],
    "lore": [{}, {"mu": 1, "rounds": 4, "lambda": 0.5}],
    "svd_task_arithmetic": [{}, {"rank": 0.6, "lambda": 0.5}],
}
# Operators for which the order of the sources matters.
SEQUENTIAL = {"cabs", "layer_swap", "opcm", "tall_mask"}
CASES = [(name, trial) for name in OPERATORS for trial in TRIALS.get(name, [{}])]
CASES += [("ties | lines", {}), ("dare_linear | lines | lines", {"lines2_beta": 0.9})]
MODELS = ("base", "a", "b", "c")


def sources_of(operator: str) -> list[str]:
    return list(MODELS[1:])[: OPERATORS[operator].max_sources]


def family_of(tensors):
    """Models by name; tensors of both layers of a model, and outside them."""
    places = ("layers.0.mlp", "layers.1.mlp", "embed", "layers.0.norm", "layers.1.norm", "head")
    states = {model: {} for model in MODELS}
    for i, by_model in enumerate(tensors):
        for model, value in zip(MODELS, by_model, strict=True):
            states[model][f"{places[i]}.weight"] = value
    return states


def merged(states, operator, **parameters):
    recipe = recipe_of(states, operator, sources_of(operator), **parameters)
    return dict(merger_of(states, operator=operator).tensors(recipe))


@st.composite
def families(draw):
    """A few tensors of any shape, some of them with models that did not move."""
    shapes = draw(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    tensors = []
    for shape in shapes:
        base = torch.randn(shape, generator=generator)
        moves = draw(st.lists(st.sampled_from([1.0, 1.0, 1e-3, 0.0]), min_size=3, max_size=3))
        moved = [base + move * torch.randn(shape, generator=generator) for move in moves]
        tensors.append([base, *moved])
    return family_of(tensors)


@pytest.mark.parametrize(("operator", "parameters"), CASES)
@given(states=families(), chunk=st.sampled_from([1, 4, 16]))
@settings(max_examples=8, deadline=None)
def test_the_result_does_not_depend_on_blocks_or_chunks(operator, parameters, states, chunk):
    """In one block that holds all tensors; in blocks of some; each alone and cut into pieces."""
    together = merged(states, operator, **parameters)
    with (
        mock.patch("evomerge.merging.operator.CHUNK", chunk),
        mock.patch("evomerge.merging.blocks.CHUNK", chunk),
        mock.patch("evomerge.merging.deltas.CHUNK", chunk, create=True),
        mock.patch("evomerge.merging.operators.cabs.CHUNK", chunk),
    ):
        apart = merged(states, operator, **parameters)
    for name, value in together.items():
        torch.testing.assert_close(apart[name], value, atol=1e-6, rtol=1e-6)


def awkward():
    """Tensors on which a formula may divide by nothing, by kind."""
    generator = torch.Generator().manual_seed(5)
    x, y = (torch.randn(4, 3, generator=generator) for _ in range(2))
    zero, one = torch.zeros(4, 3), torch.ones(4, 3)
    return {
        "all zero": [zero] * 4,
        "all equal": [x] * 4,
        "zero base": [zero, x, y, x + y],
        "zero experts": [x, zero, zero, zero],
        "one expert moved": [x, x, y, x],
        "constant": [zero, one, 2 * one, 3 * one],
        "opposite": [zero, x, -x, y],
        "opposite to the base": [x, -x, -x, y],
        "parallel": [x, 2 * x, 3 * x, 0.5 * x],
        "denormal": [1e-40 * x, 1e-40 * y, 2e-40 * x, 1e-40 * (x + y)],
        "minute": [1e-20 * x, 1e-20 * y, 2e-20 * x, 1e-20 * (x + y)],
        "huge": [1e10 * x, 1e10 * y, 2e10 * x, 1e10 * (x + y)],
        "tied": [t.sign() for t in (x, y, x + y, x - y)],
        "one row": [t[:1] for t in (x, y, x + y, x - y)],
        "width 1": [t[:, :1] for t in (x, y, x + y, x - y)],
        "one dimension": [t[0] for t in (x, y, x + y, x - y)],
        "one entry": [t[0, :1] for t in (x, y, x + y, x - y)],
        "no dimension": [t[0, 0] for t in (x, y, x + y, x - y)],
    }


@pytest.mark.parametrize("kind", awkward())
@pytest.mark.parametrize(("operator", "parameters"), CASES)
def test_awkward_tensors_make_a_finite_model(operator, parameters, kind):
    """Finite numbers of moderate size; never a warning."""
    models = awkward()[kind]
    (value,) = merged(family_of([models]), operator, **parameters).values()
    assert torch.isfinite(value).all()
    assert value.abs().max() <= 10 * max(float(model.abs().max()) for model in models)


@pytest.mark.parametrize(("operator", "parameters"), CASES)
@pytest.mark.parametrize("size", [1.0, 1e-3])
def test_merging_a_model_with_itself_gives_the_model(operator, parameters, size):
    if parameters.keys() & {"scale", "normalize_weights"}:
        pytest.skip("scaled on purpose")
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(1)) * size
    (value,) = merged(family_of([[x] * 4]), operator, **parameters).values()
    torch.testing.assert_close(value, x, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize(("operator", "parameters"), CASES)
def test_low_precision_is_computed_in_float32_and_cast_once(operator, parameters):
    generator = torch.Generator().manual_seed(2)
    base = torch.randn(8, 12, generator=generator)
    models = [base, *(base + 0.1 * torch.randn(8, 12, generator=generator) for _ in range(3))]
    low = [model.bfloat16() for model in models]
    (value,) = merged(family_of([low]), operator, **parameters).values()
    high = family_of([[model.float() for model in low]])
    (exact,) = merged(high, operator, **parameters).values()
    assert value.dtype == torch.bfloat16
    assert torch.equal(value, exact.bfloat16())


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_order_of_sources_matters_only_where_it_is_said(operator):
    if OPERATORS[operator].max_sources == 1:
        pytest.skip("one source")
    generator = torch.Generator().manual_seed(3)
    states = family_of([[torch.randn(5, 4, generator=generator) for _ in range(4)]])
    sources = sources_of(operator)
    one, other = (
        dict(merger_of(states, operator=operator).tensors(recipe_of(states, operator, order)))
        for order in (sources, sources[::-1])
    )
    for name, value in one.items():
        if operator in SEQUENTIAL:
            assert not torch.allclose(other[name], value, atol=1e-2)
        else:
            torch.testing.assert_close(other[name], value, atol=2e-6, rtol=1e-5)
