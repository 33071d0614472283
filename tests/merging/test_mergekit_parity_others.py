"""Parity with mergekit 0.1.5 outside the task-vector family; make_golden_others.py recorded it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from evomerge.merging import OPERATORS

GOLDEN = Path(__file__).parent / "golden" / "mergekit_others.safetensors"
MODELS = ("base", "a", "b", "c")


def load():
    with safe_open(GOLDEN, "pt") as file:
        metadata = file.metadata()
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return stored, json.loads(metadata["cases"]), json.loads(metadata["versions"])


STORED, CASES, VERSIONS = load()
PAIRS = sorted(tuple(name.split("/")[1:]) for name in STORED if name.startswith("out/"))


def ours(method, parameters, sources, base):
    """What a case is called here."""
    parameters = {
        name: dict(zip(sources, value, strict=True)) if isinstance(value, list) else value
        for name, value in parameters.items()
    }
    if method == "nuslerp":
        flatten = parameters.pop("nuslerp_flatten", True)
        along = "columns" if parameters.pop("nuslerp_row_wise", False) else "rows"
        parameters["vectors"] = "tensor" if flatten else along
    if method in ("nuslerp", "multislerp"):
        parameters["deltas"] = base is not None
    if any(parameter.name == "compat" for parameter in OPERATORS[method].parameters):
        parameters["compat"] = "mergekit"
    return parameters


def states_of(tensor):
    return {model: {tensor: STORED[f"in/{tensor}/{model}"]} for model in MODELS}


def test_the_oracle_is_the_version_that_parity_is_claimed_for():
    assert VERSIONS["mergekit"] == "0.1.5"
    assert {case for case, _ in PAIRS} == set(CASES)


@pytest.mark.parametrize(("case", "tensor"), PAIRS)
def test_equals_mergekit(case, tensor, merge):
    method, parameters, sources, base, _ = CASES[case]
    given = ours(method, parameters, sources, base)
    merged = merge(states_of(tensor), method, list(sources), **given)[tensor]
    expected = STORED[f"out/{case}/{tensor}"]
    assert merged.dtype == expected.dtype
    difference = (merged.double() - expected.double()).abs()
    if expected.dtype == torch.bfloat16:  # one step: 8 bits of significand
        size = torch.maximum(merged.double().abs(), expected.double().abs())
        assert (difference <= 2.0**-7 * size).all()
        assert (difference == 0).double().mean() > 0.95
    else:
        assert difference.max() <= 1e-6 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("case", [name for name, row in CASES.items() if row[0] == "model_stock"])
def test_short_task_vectors_look_orthogonal_to_mergekit_alone(case, merge):
    """The cosine of task vectors does not change with their length, but mergekit's does."""
    _, parameters, sources, _, _ = CASES[case]
    states = states_of("short")
    base = states["base"]["short"]
    long = {m: {"short": base + 100 * (s["short"] - base)} for m, s in states.items()}
    shifts = {
        (name, compat): (
            merge(family, "model_stock", list(sources), compat=compat, **parameters)["short"] - base
        )
        for name, family in (("short", states), ("long", long))
        for compat in ("published", "mergekit")
    }
    scaled = shifts["long", "published"]
    torch.testing.assert_close(100 * shifts["short", "published"], scaled, rtol=1e-3, atol=2e-4)
    assert not torch.allclose(100 * shifts["short", "mergekit"], scaled, rtol=1e-2, atol=1e-3)


def test_short_task_vectors_are_weighed_alike_by_mergekit_alone(merge):
    """SCE: an expert that moved three times as far counts nine times as much, at any scale."""
    base = torch.zeros(4)
    states = {"base": {"x": base}, "a": {"x": base + 3e-4}, "b": {"x": base + 1e-4}}
    published = merge(states, "sce")["x"]
    torch.testing.assert_close(published, torch.full((4,), (9 * 3e-4 + 1e-4) / 10))
    mergekit = merge(states, "sce", compat="mergekit")["x"]
    torch.testing.assert_close(mergekit, torch.full((4,), 2e-4))
