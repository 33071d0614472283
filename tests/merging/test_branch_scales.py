"""What a layer's branches add, scaled. Oracle: transformers' modules with hooks on the branches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from scaled_models import (
    BRANCHES,
    LAYERS,
    SETTINGS,
    layers_of,
    loaded,
    logits,
    opened_family,
    scale_outputs_by_hand,
    write_folder,
)
from tiny_states import merger_of

from evomerge.checkpoints.anatomy import anatomy_of
from evomerge.checkpoints.open import open_checkpoint
from evomerge.checkpoints.residual import BRANCH_ENDS, branch_outputs
from evomerge.errors import CandidateError, ConfigurationError
from evomerge.merging.materialise import Merger, check_recipe
from evomerge.merging.resident import Resident
from evomerge.recipe import Recipe
from evomerge.results.export import export_model, merged_tensors

KINDS = sorted({*BRANCH_ENDS, *SETTINGS})


def recipe_of(
    slots: Any, *, operator: str = "linear", sources: Any = ("a",), **more: Any
) -> Recipe:
    parameters = more.pop("parameters", {})
    default = {"operator": operator, "sources": sources, "parameters": parameters}
    models = {"base": "base", "a": "a"}
    return Recipe.model_validate(
        {"base": "base", "models": models, "default": default, "slots": slots, **more}
    )


def scaled(*scales: float, **more: Any) -> Recipe:
    return recipe_of([{"layer": i, "branch_scale": s} for i, s in enumerate(scales)], **more)


@pytest.mark.parametrize("kind", KINDS)
def test_the_branches_of_every_type_add_their_multiple(tmp_path: Path, kind: str) -> None:
    opened = opened_family(tmp_path, kind, ("base", "a"))
    scales = (0.5, 1.0, -1.3)
    resident = Resident.open(opened, "base")
    resident.write(scaled(*scales))
    by_hand = loaded(tmp_path / "a")
    plain = logits(by_hand)
    scale_outputs_by_hand(kind, by_hand, scales)
    expected = logits(by_hand)
    assert (expected - plain).abs().max() > 0.1
    torch.testing.assert_close(logits(resident.module), expected, rtol=0, atol=2e-6)
    exported = loaded(export_model(scaled(*scales), opened, tmp_path / "out"))
    torch.testing.assert_close(logits(exported), expected, rtol=0, atol=2e-6)
    resident.write(scaled(1, 1, 1))
    assert torch.equal(logits(resident.module), plain)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_repeated_moved_and_removed_layers_have_scales_of_their_own(
    tmp_path: Path, kind: str
) -> None:
    opened = opened_family(tmp_path, kind, ("base", "a"))
    resident = Resident.open(opened, "base")
    for number, chosen in enumerate(
        (
            [(0, 1.0), (1, 0.5), (1, 2.0), (2, 1.0)],
            [(2, 0.5), (0, 2.0)],
            [(1, 0.7), (1, 0.7), (1, 1.0)],
            [(0, 0.5), (1, 1.0), (2, 1.0)],
        )
    ):
        slots = [{"layer": layer, "branch_scale": scale} for layer, scale in chosen]
        merged = {"operator": "task_arithmetic", "parameters": {"weight": 0.4}}
        resident.write(recipe_of(slots, **merged))
        plain = recipe_of([{"layer": layer} for layer, _ in chosen], **merged)
        by_hand = loaded(export_model(plain, opened, tmp_path / f"plain{number}"))
        scale_outputs_by_hand(kind, by_hand, [scale for _, scale in chosen])
        found = logits(resident.module)
        torch.testing.assert_close(found, logits(by_hand), rtol=0, atol=2e-6)
        out = export_model(recipe_of(slots, **merged), opened, tmp_path / f"out{number}")
        torch.testing.assert_close(found, logits(loaded(out)), rtol=0, atol=2e-6)


def test_slots_share_their_tensors_where_they_scale_alike(tmp_path: Path) -> None:
    resident = Resident.open(opened_family(tmp_path, "llama", ("base", "a")), "base")
    slots = [{"layer": 1, "branch_scale": s} for s in (0.5, 2.0, 0.5)]
    resident.write(recipe_of(slots))
    first, other, again = (
        layer.mlp.down_proj.weight.data_ptr() for layer in layers_of(resident.module)
    )
    assert first == again != other
    assert resident.write(recipe_of(slots)) == 0


def test_only_the_outputs_of_branches_are_scaled(tmp_path: Path) -> None:
    opened = opened_family(tmp_path, "qwen2", ("base", "a"))
    plain, changed = (merged_tensors(scaled(*s), opened) for s in ((1, 1, 1), (1, 0.5, 1)))
    found = {name for name in plain if not torch.equal(plain[name], changed[name])}
    assert found == {
        f"model.layers.1.{end}.weight" for end in ("self_attn.o_proj", "mlp.down_proj")
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("operator", ["linear", "ties", "slerp", "dare_linear"])
def test_a_scaled_tensor_is_rounded_once(tmp_path: Path, operator: str, dtype: torch.dtype) -> None:
    """The oracle: what is merged in float32 from the same models, scaled and then rounded."""
    opened = {
        name: open_checkpoint(write_folder(tmp_path / name, "llama", seed, dtype), name=name)
        for seed, name in enumerate(("base", "a"))
    }
    scale, name = 0.3, "model.layers.1.mlp.down_proj.weight"
    given: dict[str, Any] = {"operator": operator}
    if operator == "slerp":
        given["parameters"] = {"t": 0.3}
    wide = merged_tensors(scaled(1, 1, 1, **given, dtype="float32"), opened)[name]
    merger = Merger(opened, anatomy_of(opened["base"]), "base")
    out = torch.empty_like(wide, dtype=dtype)
    merger.merge_tensor(scaled(1, scale, 1, **given), name, out)
    assert torch.equal(out, (wide * scale).to(dtype))


def test_a_multiple_that_is_too_large_is_a_failure(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", "llama", 0, torch.float16)
    opened = {name: open_checkpoint(folder, name=name) for name in ("base", "a")}
    with pytest.raises(CandidateError, match=r"layers\.1\.\S+_proj\.weight.* not finite"):
        merged_tensors(scaled(1, 1e6, 1), opened)


def test_what_is_copied_from_the_base_cannot_be_scaled(tmp_path: Path) -> None:
    base = open_checkpoint(write_folder(tmp_path / "base", "llama", 0), name="base")
    state = {n: base.tensor(n) for n in base.names if "down_proj" not in n}
    opened = {"base": base, "a": open_checkpoint(state, name="a")}
    merger = Merger(opened, anatomy_of(base), "base")
    with pytest.raises(ConfigurationError, match=r"slot 1 mlp: branch_scale: .* no other model"):
        merger.plan(scaled(1, 0.5, 1))


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("gemma2", "branches end in norms of 1 + weight"),
        ("lama", "is not known (did you mean 'llama'"),
        ("", "is not known (valid: arcee"),
    ],
)
def test_types_whose_branches_are_not_known_are_refused_by_name(kind: str, told: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        branch_outputs(kind, {"layers.0.mlp.down_proj.weight": (0, "mlp.down_proj.weight")})
    assert told in str(caught.value)
    assert f"model_type {kind!r}" in str(caught.value)


def test_a_layer_without_such_tensors_is_told() -> None:
    inside = {f"{i}.{n}": (i, n) for i in (0, 1) for n in ("self_attn.o_proj.weight", "mlp.x")}
    with pytest.raises(ConfigurationError, match=r"layer 0 has no tensor of mlp\.down_proj"):
        branch_outputs("llama", inside)


def test_a_recipe_for_unknown_branches_is_refused_before_anything_is_merged() -> None:
    states = {
        model: {f"layers.{i}.mlp.up.weight": torch.ones(2, 2) for i in range(LAYERS)}
        for model in ("base", "a")
    }
    merger = merger_of(states)
    problems = check_recipe(scaled(1, 0.5, 1), merger.anatomy)
    assert "branch_scale: model_type ''" in str(problems[0])
    with pytest.raises(ConfigurationError):
        merger.plan(scaled(1, 0.5, 1))
    merger.plan(scaled(1, 1, 1))


def test_the_cross_attention_of_gpt2_is_a_branch_too() -> None:
    names = (
        "attn.c_proj.weight",
        "crossattention.c_proj.bias",
        "mlp.c_proj.weight",
        "mlp.c_fc.weight",
    )
    assert branch_outputs("gpt2", {n: (0, n) for n in names}) == set(names[:3])


@pytest.mark.parametrize(("kind", "count"), [("mixtral", 1 + 3), ("qwen2_moe", 1 + 1 + 3 + 1)])
def test_every_name_of_a_mixture_is_that_of_a_tensor(tmp_path: Path, kind: str, count: int) -> None:
    """A misspelt alternative would never match, and never be missed."""
    anatomy = anatomy_of(open_checkpoint(write_folder(tmp_path / kind, kind, 0), name=kind))
    found = {anatomy.roles[name] for name in anatomy.branch_outputs}
    assert len(found) == count, found


def test_the_table_of_the_tests_is_of_known_types() -> None:
    assert BRANCHES.keys() <= BRANCH_ENDS.keys()
