"""Parity of Iso-C, Iso-CTS, TSV-M and OPCM with FusionBench 0.2.33, on whole models."""

from __future__ import annotations

import golden_fusionbench as golden
import pytest
import torch

METHODS = ("iso_c", "iso_cts", "tsv_m", "opcm")
# FusionBench gives each of T experts floor(min(m, n) / T) directions: of such a matrix, none.
THIN = {"tsv_m": ("small.weight",)}


def test_the_oracle_is_the_version_that_parity_is_claimed_for():
    assert golden.VERSIONS["fusion-bench"] == "0.2.33"
    assert {golden.CASES[case][0] for case, _ in golden.cases_of(*METHODS)} == set(METHODS)


@pytest.mark.parametrize(("case", "family"), golden.cases_of(*METHODS))
def test_equals_fusionbench(case, family, merge):
    method, parameters, experts, _ = golden.CASES[case]
    states, expected = golden.states_of(case, family), golden.expected(case, family)
    merged = merge(states, method, list(experts), **parameters)
    left_out = THIN.get(case, ())
    assert merged.keys() == expected.keys()
    for name in merged.keys() - left_out:
        difference = (merged[name] - expected[name]).abs().max()
        assert difference <= 1e-6 * max(1.0, float(expected[name].abs().max())), name
    for name in left_out:
        assert torch.equal(expected[name], states["base"][name])
        assert not torch.allclose(merged[name], states["base"][name], atol=1e-3)


def test_opcm_projects_heads_and_not_embeddings(merge):
    """As the published code, which projects linear layers."""
    generator = torch.Generator().manual_seed(0)
    names = ("embed_tokens.weight", "lm_head.weight")
    values = [torch.randn(6, 4, generator=generator) for _ in range(3)]
    states = {
        model: dict.fromkeys(names, value)
        for model, value in zip(("base", "a", "b"), values, strict=True)
    }
    base, first, second = values
    merged = merge(states, "opcm", length="none")
    torch.testing.assert_close(merged[names[0]], first + second - base)
    assert not torch.allclose(merged[names[1]], first + second - base, atol=0.1)
