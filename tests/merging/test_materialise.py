from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_states import merger_of, recipe_of

from evomerge.checkpoints.anatomy import anatomy_of
from evomerge.checkpoints.derived import Derived, Made
from evomerge.checkpoints.open import open_checkpoint
from evomerge.errors import CandidateError, ConfigurationError, ModelError
from evomerge.merging import OPERATORS, spectra
from evomerge.merging.cache import Cache
from evomerge.merging.materialise import Merger, check_recipe
from evomerge.merging.operator import CHUNK
from evomerge.recipe import Recipe

PARAMETERS = {"slerp": {"t": 0.3}}


def layered(family, **changes):
    data = {
        "base": "base",
        "models": {name: name for name in family},
        "default": {"operator": "task_arithmetic", "parameters": {"weight": 0.3}},
        "slots": [{"layer": 0}, {"layer": 1, "merges": {"mlp": {"operator": "linear"}}}],
        "outside": {"embedding": {"parameters": {"weight": {"a": 1, "b": 0, "c": 0}}}},
    }
    return Recipe.model_validate(data | changes)


@pytest.mark.parametrize(
    "operator", sorted(name for name in OPERATORS if not OPERATORS[name].needs_adapters)
)
def test_one_tensor_alone_equals_its_part_of_the_whole(family, operator):
    sources = ["a", "b", "c"][: OPERATORS[operator].max_sources]
    recipe = recipe_of(family, operator, sources, **PARAMETERS.get(operator, {}))
    merger = merger_of(family)
    for name, whole in merger.tensors(recipe):
        alone = torch.empty_like(whole)
        merger.merge_tensor(recipe, name, alone)
        torch.testing.assert_close(alone, whole, atol=1e-6, rtol=1e-6)


def test_every_tensor_takes_the_merge_of_its_place(family):
    merged = dict(merger_of(family).tensors(layered(family)))
    torch.testing.assert_close(merged["embed.weight"], family["a"]["embed.weight"])
    name = "layers.1.mlp.up.weight"
    mean = torch.stack([family[m][name] for m in "abc"]).mean(0)
    torch.testing.assert_close(merged[name], mean)
    name = "layers.0.mlp.up.weight"
    base = family["base"][name]
    torch.testing.assert_close(
        merged[name], base + 0.3 * sum(family[m][name] - base for m in "abc")
    )


def test_integers_and_what_only_the_base_has_are_copied(family):
    merged = dict(merger_of(family).tensors(recipe_of(family, "linear")))
    assert merged["steps"].item() == 0
    assert merged["steps"].dtype == torch.int64
    assert merged["only_here"].tolist() == [1, 1]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_arithmetic_is_in_float32_and_cast_once(family, dtype):
    low = {
        model: {
            name: value.to(getattr(torch, dtype)) if value.is_floating_point() else value
            for name, value in state.items()
        }
        for model, state in family.items()
    }
    high = {
        m: {n: v.float() if v.is_floating_point() else v for n, v in s.items()}
        for m, s in low.items()
    }
    for operator in ("linear", "task_arithmetic", "ties"):
        merged = dict(merger_of(low).tensors(recipe_of(low, operator, weight=0.4)))
        exact = dict(merger_of(high).tensors(recipe_of(high, operator, weight=0.4)))
        for name, value in merged.items():
            assert torch.equal(value, exact[name].to(value.dtype))


def test_the_recipes_dtype_is_that_of_the_output(family):
    recipe = recipe_of(family, "linear").model_copy(update={"dtype": "bfloat16"})
    merged = dict(merger_of(family).tensors(recipe))
    assert merged["head.weight"].dtype == torch.bfloat16
    assert merged["steps"].dtype == torch.int64


@pytest.mark.parametrize("cache_bytes", [0, 500, 2**24])
def test_the_cache_changes_nothing_but_time(family, cache_bytes):
    merger = merger_of(family, cache_bytes)
    for weight in (0.1, 0.5, 0.1):
        for operator in ("ties", "dare_ties", "linear"):
            recipe = recipe_of(family, operator, weight=weight)
            fresh = dict(merger_of(family).tensors(recipe))
            for name, value in merger.tensors(recipe):
                assert torch.equal(value, fresh[name])
    whole_model = sum(merger.family.ranked(name).nbytes for name in ("a", "b", "c"))
    assert merger.family.cache.used_bytes <= cache_bytes + whole_model


def test_a_density_of_the_second_source_alone_is_noticed(family):
    merger = merger_of(family)
    for operator, compat in (("ties", "published"), ("dare_ties", "mergekit")):
        for second in (0.2, 0.9):
            density = {"a": 0.5, "b": second, "c": 0.5}
            recipe = recipe_of(family, operator, density=density, compat=compat)
            fresh = dict(merger_of(family).tensors(recipe))
            assert all(torch.equal(value, fresh[name]) for name, value in merger.tensors(recipe))


def test_another_mask_seed_gives_other_draws(family):
    merger = merger_of(family)
    one, other = (
        dict(merger.tensors(recipe_of(family, "dare_linear", mask_seed=seed))) for seed in (0, 1)
    )
    assert not torch.equal(one["embed.weight"], other["embed.weight"])


def test_the_cache_keeps_what_fits_of_a_walk_that_does_not():
    class Data:
        nbytes = 4

    made = []
    cache = Cache(budget_bytes=8)
    for _ in range(3):
        cache.next_candidate()
        for key in "abc":
            cache.get(key, lambda key=key: made.append(key) or Data())
    assert made == ["a", "b", "c", "c", "c"]
    cache.next_candidate()
    for key in "cab":  # another order throws nothing out that the last candidate used
        cache.get(key, lambda key=key: made.append(key) or Data())
    assert made.pop() == "c"
    for _ in range(3):  # two candidates later, what they did not use gives way
        cache.next_candidate()
        cache.get("d", lambda: made.append("d") or Data())
    assert made[5:] in (["d"], ["d", "d"], ["d", "d", "d"])
    assert cache.used_bytes == 8


def test_what_is_kept_always_makes_no_room_for_anything():
    class Data:
        nbytes = 4

    made = []
    cache = Cache(budget_bytes=6)
    cache.get("order", lambda: made.append("order") or Data(), always=True)
    for key in "abcd":
        cache.next_candidate()
        cache.get(key, Data)
    cache.get("order", lambda: made.append("order") or Data(), always=True)
    assert made == ["order"]


def test_a_tensor_that_is_not_finite_is_named(family):
    family["b"]["layers.1.mlp.up.weight"][2, 1] = float("inf")
    with pytest.raises(CandidateError, match=r"layers\.1\.mlp\.up\.weight: .*not finite"):
        dict(merger_of(family).tensors(recipe_of(family, "linear")))


def test_what_overflows_the_output_dtype_is_not_finite(family):
    half = {m: {"x": torch.full((3,), 30000.0, dtype=torch.float16)} for m in ("base", "a", "b")}
    with pytest.raises(CandidateError, match=r"x: .*not finite"):
        dict(merger_of(half).tensors(recipe_of(half, "linear", normalize=False, weight=2)))


def test_all_problems_of_a_recipe_are_told_with_their_places(family):
    recipe = layered(family, outside={"head": {"operator": "tise"}, "norm": {"operator": "linaer"}})
    merger = merger_of(family)
    problems = check_recipe(recipe, merger.anatomy)
    assert any("outside head" in str(problem) and "'ties'" in str(problem) for problem in problems)
    with pytest.raises(ConfigurationError):
        merger.plan(recipe)


def test_shapes_that_differ_and_names_that_are_unknown_are_errors(family):
    family["b"]["head.weight"] = torch.zeros(2, 4)
    merger = merger_of(family)
    recipe = recipe_of(family, "linear")
    with pytest.raises(ModelError, match=r"b: head\.weight: expected shape \(3, 4\)"):
        dict(merger.tensors(recipe))
    with pytest.raises(ModelError, match=r"embed\.weight"):
        merger.merge_tensor(recipe, "embd.weight", torch.zeros(1))


def test_what_is_computed_counts_in_the_budget_and_views_do_not():
    size = 3 * CHUNK
    states = {name: {"x": torch.zeros(size).bfloat16()} for name in ("base", "a", "b")}
    for made in (False, True):
        merger = merger_of(states)
        if made:
            tensor = Made((size,), torch.float32, lambda: torch.ones(size))
            merger.checkpoints["a"] = Derived(merger.checkpoints["a"], {"x": tensor}, change="")
        recipe = recipe_of(states, "task_arithmetic", weight=1.0)
        (value,) = dict(merger.tensors(recipe)).values()
        assert float(value.max()) == float(made)
        assert merger.family.cache.used_bytes == 4 * size * made


@pytest.mark.parametrize("once", [False, True])
def test_readings_before_the_first_tensor_are_told(once: bool) -> None:
    told: list[tuple[str, int, int]] = []
    states = {
        name: {f"layers.{i}.w": torch.randn(5, 7) for i in range(3)} for name in ("base", "x")
    }
    opened = {name: open_checkpoint(state, name=name) for name, state in states.items()}
    merger = Merger(
        opened,
        anatomy_of(opened["base"]),
        "base",
        once=once,
        progress=lambda *heard: told.append(heard),
    )
    recipe = recipe_of(states, "ties", ["x"], density=0.5)
    merged = dict(merger.tensors(recipe))
    assert told == [("ranking x", 35 * n, 105) for n in (1, 2, 3)] * 2
    again = dict(merger_of(states).tensors(recipe))
    assert all(torch.equal(merged[name], again[name]) for name in merged)


def test_what_is_wrong_everywhere_is_said_once() -> None:
    states = {
        name: {f"layers.{i}.w": torch.randn(5, 7) for i in range(3)} for name in ("base", "x")
    }
    wrong = {"merges": {"default": {"parameters": {"dense": 0.5, "lambda": 99}}}}
    slots = [{"layer": i, **wrong} for i in range(3)]
    recipe = Recipe.model_validate({**recipe_of(states, "ties").model_dump(), "slots": slots})
    with pytest.raises(ConfigurationError) as caught:
        merger_of(states).plan(recipe)
    assert len(caught.value.problems) == 2
    assert "slot 0 mlp and 2 more: parameters.dense: ties has no" in str(caught.value)


@pytest.mark.parametrize("operator", ["sce", "dare_linear", "ties", "regmean", "star", "opcm"])
def test_what_is_in_files_is_kept_beyond_the_budget(
    operator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = {
        name: {f"layers.{i}.w": torch.randn(600, 600) for i in range(2)} for name in ("base", "x")
    }
    one, calls = OPERATORS[operator], []

    def counted(*given: Any) -> Any:
        calls.append(1)
        return one.prepare(*given)

    monkeypatch.setitem(OPERATORS, operator, replace(one, prepare=counted))
    merger = merger_of(states, cache_bytes=200_000)
    candidates = [recipe_of(states, operator, ["x"]) for _ in range(3)]
    merged = [dict(merger.tensors(recipe)) for recipe in candidates]
    assert len(calls) == 2
    roomy = dict(merger_of(states, cache_bytes=2**30).tensors(candidates[0]))
    for name, expected in roomy.items():
        assert all(torch.equal(one[name], expected) for one in merged)


@pytest.mark.parametrize(
    ("operator", "parameter", "values", "budget"),  # what one value takes, and half of it again
    [
        ("iso_cts", "common", (0.2, 0.5, 0.8), 3_700_000),
        ("lore", "mu", (0.0, 0.5, 1.0), 6_000_000),
    ],
)
def test_what_is_dear_to_prepare_is_prepared_once_for_each_value(
    operator: str,
    parameter: str,
    values: tuple[float, ...],
    budget: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("evomerge.merging.cache._SLOW", 10**15)  # whatever the clock says
    states = {
        name: {f"layers.{i}.w": torch.randn(300, 300) for i in range(2)}
        for name in ("base", "x", "y")
    }
    recipes = [recipe_of(states, operator, ["x", "y"], **{parameter: value}) for value in values]
    decompose, calls = spectra._eigh, []

    def counted(*given: Any) -> Any:
        calls.append(1)
        return decompose(*given)

    monkeypatch.setattr(spectra, "_eigh", counted)
    merged: dict[int, list[dict[str, torch.Tensor]]] = {}
    counts = []
    for cache_bytes in (2**30, budget):
        merger = merger_of(states, cache_bytes=cache_bytes)
        calls.clear()
        merged[cache_bytes] = [
            dict(merger.tensors(recipe))
            for _ in range(3)
            for recipe in recipes
            for _ in range(3)  # until what was before is idle
        ]
        counts.append(len(calls))
        assert merger.family.cache.used_bytes <= cache_bytes
    assert counts[0] == counts[1] > 0
    for roomy, tight in zip(*merged.values(), strict=True):
        assert all(torch.equal(roomy[name], tight[name]) for name in roomy)
