"""What goes into layers, scaled in memory. Oracle: transformers' layers called by hand."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scaled_models import (
    layers_of,
    loaded,
    logits,
    opened_family,
    scale_inputs_by_hand,
    text,
    write_folder,
)
from test_branch_scales import recipe_of
from torch import nn

from evomerge.checkpoints.open import open_checkpoint
from evomerge.errors import CandidateError, ConfigurationError, ModelError
from evomerge.merging.input_scales import hook_scales
from evomerge.merging.resident import Resident
from evomerge.results.export import export_model

STACKS = [
    [(0, 1.0), (1, 0.5), (2, 1.6)],
    [(0, 1.0), (1, 0.5), (1, 0.5), (1, 2.0), (2, 1.0)],
    [(2, 0.5), (0, 3.0)],
    [(0, 1.0), (1, 1.0), (2, 0.4)],
    [(1, 0.3)],
]


def slots_of(chosen: list[tuple[int, float]]) -> list[dict[str, Any]]:
    return [{"layer": layer, "input_scale": scale} for layer, scale in chosen]


def is_hooked(module: nn.Module) -> bool:
    return any(part._forward_pre_hooks for part in module.modules())


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox", "gemma2"])
def test_layers_get_the_multiple_of_what_they_would(tmp_path: Path, kind: str) -> None:
    opened = opened_family(tmp_path, kind, ("base", "a"))
    resident = Resident.open(opened, "base")
    for number, chosen in enumerate(STACKS):
        resident.write(recipe_of(slots_of(chosen)))
        plain = recipe_of([{"layer": layer} for layer, _ in chosen])
        by_hand = loaded(export_model(plain, opened, tmp_path / f"out{number}"))
        before = logits(by_hand)
        scale_inputs_by_hand(layers_of(by_hand), [scale for _, scale in chosen])
        expected = logits(by_hand)
        assert (expected - before).abs().max() > 0.01
        torch.testing.assert_close(logits(resident.module), expected, rtol=0, atol=2e-6)
        for use_cache in (True, False):
            again = text(resident.module, use_cache=use_cache)
            assert again == text(by_hand, use_cache=False), (chosen, use_cache)
        resident.write(plain)
        assert not is_hooked(resident.module)
        torch.testing.assert_close(logits(resident.module), before, rtol=0, atol=2e-6)


def test_layers_whose_tensors_are_elsewhere_in_memory(tmp_path: Path) -> None:
    """Experts are one tensor there, so blocks cannot be moved; they can be hooked."""
    opened = opened_family(tmp_path, "mixtral", ("base", "a"))
    resident = Resident.open(opened, "base")
    for chosen in (STACKS[0], [(1, 0.5), (1, 2.0), (0, 1.0)], STACKS[3]):
        resident.write(recipe_of(slots_of(chosen)))
        plain = recipe_of([{"layer": layer} for layer, _ in chosen])
        by_hand = loaded(export_model(plain, opened, tmp_path / "out"))
        scale_inputs_by_hand(layers_of(by_hand), [scale for _, scale in chosen])
        torch.testing.assert_close(logits(resident.module), logits(by_hand), rtol=0, atol=2e-6)
    before = logits(resident.module)
    with pytest.raises(ConfigurationError, match="2 layers, and the model in memory has 3"):
        resident.write(recipe_of(slots_of([(0, 2.0), (1, 2.0)])))
    assert torch.equal(logits(resident.module), before), "the scales are as they were"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("small") / "base", "llama", 3)


@pytest.fixture(scope="module")
def shared_resident(small: Path) -> Resident:
    """One for all examples: what was written before must not matter."""
    return Resident.open(
        {name: open_checkpoint(small, name=name) for name in ("base", "a")}, "base"
    )


def built_by_hand(folder: Path, chosen: list[tuple[int, float, float]]) -> Any:
    """A plain model with copies of its layers in a list of its own."""
    module = loaded(folder)
    made = []
    for number, (layer, _, branch_scale) in enumerate(chosen):
        block = copy.deepcopy(module.model.layers[layer])
        block.self_attn.layer_idx = number
        with torch.no_grad():
            block.self_attn.o_proj.weight.mul_(branch_scale)
            block.mlp.down_proj.weight.mul_(branch_scale)
        made.append(block)
    module.model.layers = nn.ModuleList(made)
    module.config.num_hidden_layers = len(made)
    module.config.layer_types = ["full_attention"] * len(made)
    scale_inputs_by_hand(module.model.layers, [scale for _, scale, _ in chosen])
    return module


numbers = st.sampled_from([0.25, 0.5, 1.0, 1.0, 1.7])
stacks = st.lists(st.tuples(st.integers(0, 2), numbers, numbers), min_size=1, max_size=6)


@given(stacks)
@settings(max_examples=40, deadline=None)
def test_any_stack_is_the_one_built_by_hand(
    small: Path, shared_resident: Resident, chosen: list[tuple[int, float, float]]
) -> None:
    slots = [
        {"layer": layer, "input_scale": goes_in, "branch_scale": adds}
        for layer, goes_in, adds in chosen
    ]
    shared_resident.write(recipe_of(slots))
    by_hand = built_by_hand(small, chosen)
    torch.testing.assert_close(logits(shared_resident.module), logits(by_hand), rtol=0, atol=5e-6)
    found = text(shared_resident.module, use_cache=True)
    assert found == text(by_hand, use_cache=True)


def test_the_scale_of_one_layer_may_change_alone(small: Path, shared_resident: Resident) -> None:
    shared_resident.write(recipe_of(slots_of([(0, 1.0), (1, 0.5), (2, 1.0)])))
    first, version = logits(shared_resident.module), shared_resident.version
    assert shared_resident.write(recipe_of(slots_of([(0, 1.0), (1, 0.6), (2, 1.0)]))) == 0
    assert shared_resident.version > version
    assert not torch.equal(logits(shared_resident.module), first)


def test_after_an_error_the_next_recipe_has_its_scales(
    small: Path, shared_resident: Resident
) -> None:
    shared_resident.write(recipe_of(slots_of([(0, 1.0), (1, 0.5), (2, 1.0)])))
    before = logits(shared_resident.module)
    with pytest.raises(ConfigurationError):
        shared_resident.write(recipe_of(slots_of([(0, 1.0), (7, 2.0)])))
    assert torch.equal(logits(shared_resident.module), before)
    bad = recipe_of(slots_of([(0, 2.0)]), parameters={"weight": 0.0})
    with pytest.raises(CandidateError):
        shared_resident.write(bad)
    shared_resident.write(recipe_of(slots_of([(0, 1.0), (1, 0.5), (2, 1.0)])))
    assert torch.equal(logits(shared_resident.module), before)


def test_hidden_states_keep_their_dtype(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "base", "llama", 0)
    opened = {name: open_checkpoint(folder, name=name) for name in ("base", "a")}
    resident = Resident.open(opened, "base", dtype=torch.bfloat16)
    resident.write(recipe_of(slots_of(STACKS[0])))
    seen = []
    layer = layers_of(resident.module)[1]
    layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
    logits(resident.module)
    assert seen == [torch.bfloat16]


def test_modules_without_one_list_of_layers_are_refused_by_name(tmp_path: Path) -> None:
    import transformers

    sizes = {"vocab_size": 32, "d_model": 8, "d_ff": 12, "d_kv": 4, "num_heads": 2, "num_layers": 1}
    transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes)).save_pretrained(
        tmp_path / "t5"
    )
    opened = {name: open_checkpoint(tmp_path / "t5", name=name) for name in ("base", "a")}
    resident = Resident.open(opened, "base")
    with pytest.raises(ConfigurationError, match=r"layer 1: .*T5ForConditionalGeneration are not"):
        resident.write(recipe_of(slots_of([(0, 1.0), (1, 0.5)])))


def test_a_layer_that_is_called_without_hidden_states_is_told() -> None:
    layer = nn.Identity()
    hook_scales(layer, [layer], [2.0])
    assert layer(torch.ones(1)) == 2.0
    with pytest.raises(ModelError, match="Identity: is called with input, and not with hidden"):
        layer(input=torch.ones(1))
    hook_scales(layer, [layer], [3.0])
    assert layer(torch.ones(1)) == 3.0, "the first hook is gone"
