from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from tiny_states import recipe_of
from torch import nn

from evomerge.checkpoints.anatomy import anatomy_of
from evomerge.checkpoints.open import open_checkpoint
from evomerge.errors import CandidateError, ModelError
from evomerge.merging.materialise import Merger
from evomerge.merging.resident import Resident
from evomerge.merging.targets import targets_of
from evomerge.recipe import Recipe
from evomerge.results.export import export_model

MODELS = ("base", "a", "b")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.norm = nn.BatchNorm1d(8)
        self.second = nn.Linear(8, 4)


def checkpoints(models=MODELS, net=Net):
    states = {}
    for i, name in enumerate(models):
        torch.manual_seed(i)
        states[name] = net().state_dict()
    return {name: open_checkpoint(state, name=name) for name, state in states.items()}


def recipe(operator="task_arithmetic", **parameters):
    return recipe_of(MODELS, operator, **parameters)


def test_the_module_holds_the_recipe_whatever_was_written_before():
    opened = checkpoints()
    resident = Resident.open(opened, "base", build=Net)
    fresh = Merger(opened, anatomy_of(opened["base"]), "base", 0)
    for one in [
        recipe(weight=0.5),
        recipe("ties"),
        recipe("dare_ties", density=0.5),
        recipe("ties"),
    ]:
        resident.write(one)
        state = resident.module.state_dict()
        for name, expected in fresh.tensors(one):
            assert torch.equal(state[name], expected), name


def test_only_what_changed_is_written():
    resident = Resident.open(checkpoints(), "base", build=Net)
    everything = len(resident.module.state_dict())
    assert resident.write(recipe(weight=0.5)) == everything
    assert resident.write(recipe(weight=0.5)) == 0
    assert resident.write(recipe(weight={"a": 0.5, "b": 0.5})) == 0
    copied = 1  # the counter of batches
    assert resident.write(recipe(weight=0.6)) == everything - copied


def test_after_an_error_everything_is_written_again():
    resident = Resident.open(checkpoints(), "base", build=Net)
    good, bad = recipe("linear"), recipe("linear", weight={"a": 1, "b": -1})
    resident.write(good)
    with pytest.raises(CandidateError):
        resident.write(bad)
    assert resident.write(good) == len(resident.module.state_dict())


def test_the_module_is_for_inference():
    module = Resident.open(checkpoints(), "base", build=Net, dtype=torch.bfloat16).module
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert module.first.weight.dtype == torch.bfloat16


def test_a_module_that_does_not_fit_is_refused_with_all_differences():
    class Other(Net):
        def __init__(self):
            super().__init__()
            self.second = nn.Linear(8, 5)
            self.third = nn.Linear(2, 2)

    with pytest.raises(ModelError) as caught:
        Resident.open(checkpoints(), "base", build=Other)
    assert len(caught.value.problems) == 4
    with pytest.raises(ModelError, match="build"):
        Resident.open(checkpoints(), "base")


@pytest.fixture(scope="module")
def llamas(tmp_path_factory):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    folder = tmp_path_factory.mktemp("llamas")
    for i, name in enumerate(MODELS):
        torch.manual_seed(i)
        LlamaForCausalLM(config).save_pretrained(folder / name)
    return folder


def test_a_transformers_folder_is_opened_and_its_ties_stay(llamas):
    from transformers import LlamaForCausalLM

    opened = {name: open_checkpoint(llamas / name, name=name) for name in MODELS}
    resident = Resident.open(opened, "base")
    assert resident.tokenizer is None
    resident.write(recipe(weight={"a": 1, "b": 0}))
    module = resident.module
    assert module.lm_head.weight.data_ptr() == module.model.embed_tokens.weight.data_ptr()
    expert = LlamaForCausalLM.from_pretrained(llamas / "a").eval()
    tokens = torch.arange(10)[None]
    torch.testing.assert_close(module(tokens).logits, expert(tokens).logits, atol=1e-5, rtol=1e-5)
    resident.write(recipe(weight=0))
    base = LlamaForCausalLM.from_pretrained(llamas / "base").eval()
    assert torch.equal(module(tokens).logits, base(tokens).logits)


def test_weights_that_are_missing_are_told(llamas, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(llamas / "base", tmp_path / "base")
    state = load_file(tmp_path / "base" / "model.safetensors")
    del state["model.norm.weight"]
    save_file(state, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    opened = {"base": open_checkpoint(tmp_path / "base", name="base")}
    with pytest.raises(ModelError, match=r"model\.norm\.weight"):
        Resident.open(opened, "base")


def test_what_merges_alike_is_written_in_one_step(llamas):
    """Fewer steps, every tensor once, and the values of the tensors merged one by one."""
    opened = {name: open_checkpoint(llamas / name, name=name) for name in MODELS}
    merger = Merger(opened, anatomy_of(opened["base"]), "base", 2**20)
    one = recipe(weight=0.3)
    plan = merger.plan(one)
    assert len(plan) < len(merger.groups)
    assert sorted(name for group in plan for name in group.names) == sorted(opened["base"].names)
    for name, merged in merger.tensors(one):
        alone = torch.empty_like(merged)
        merger.merge_tensor(one, name, alone)
        torch.testing.assert_close(merged, alone, rtol=0, atol=1e-6)


TINY = {
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
DECODER = {**TINY, "vocab_size": 32, "num_key_value_heads": 1}
ELSEWHERE = {
    "Mixtral": ("MixtralForCausalLM", {**DECODER, "num_local_experts": 3}),
    "Qwen2Moe": (
        "Qwen2MoeForCausalLM",
        {**DECODER, "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 8},
    ),
    "GPTNeoX": ("GPTNeoXForCausalLM", {**TINY, "vocab_size": 32}),
    "ViT": ("ViTForImageClassification", {**TINY, "image_size": 8, "patch_size": 4}),
}


@pytest.mark.parametrize("kind", ELSEWHERE)
@pytest.mark.parametrize("trained", [True, False])
def test_tensors_that_a_class_calls_otherwise_or_puts_together(tmp_path, kind, trained):
    """The oracle: the exported folder, loaded by transformers. Untrained biases are all alike."""
    import transformers

    name, sizes = ELSEWHERE[kind]
    model_class = getattr(transformers, name)
    opened = {}
    for seed, model in enumerate(MODELS):
        torch.manual_seed(seed)
        module = model_class(getattr(transformers, f"{kind}Config")(**sizes))
        if trained:
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        module.save_pretrained(tmp_path / model)
        opened[model] = open_checkpoint(tmp_path / model, name=model)
    resident = Resident.open(opened, "base")
    torch.manual_seed(9)
    given = torch.randn(1, 3, 8, 8) if kind == "ViT" else torch.arange(10)[None]
    for one in (recipe(weight={"a": 0.3, "b": 0.9}), recipe("ties"), recipe(weight=0.0)):
        resident.write(one)
        out = export_model(one, opened, tmp_path / "out")
        loaded = model_class.from_pretrained(out, dtype=torch.float32).eval()
        with torch.no_grad():
            expected = loaded(given).logits
            torch.testing.assert_close(resident.module(given).logits, expected, rtol=0, atol=1e-5)


def test_what_is_nowhere_in_the_module_is_told():
    class Renamed(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)

    module = Renamed()
    with torch.no_grad():
        module.two.weight.copy_(module.one.weight)
    other = open_checkpoint({"x.weight": module.one.weight, "y.weight": torch.ones(4, 4)}, name="o")
    with pytest.raises(ModelError) as caught:
        targets_of(module, other)
    told = str(caught.value)
    assert "x.weight: the module has no such tensor" in told, "it could be either"
    assert "y.weight: the module has no such tensor" in told
    assert "two.weight: the module needs it" in told


def test_memory_that_runs_out_while_layers_are_copied_leaves_no_false_ones(
    tiny_zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evomerge.merging import stack

    models = {
        name: open_checkpoint(tiny_zoo / name, name=name) for name in ("base", "sort", "back")
    }

    def stacked(*layers: tuple[str, int]) -> Recipe:
        return Recipe.model_validate(
            {
                "base": "base",
                "models": {name: name for name in models},
                "default": {"operator": "passthrough", "sources": ["base"]},
                "slots": [
                    {"layer": layer, "merges": {"default": {"sources": [model]}}}
                    for model, layer in layers
                ],
            }
        )

    all_back = [("back", layer) for layer in range(6)]
    resident = Resident.open(models, "base")
    resident.write(stacked(*(("sort", layer) for layer in range(6)), ("back", 5)))
    copied = []

    class Scarce:
        """Copies once, and then has no memory."""

        @staticmethod
        def deepcopy(value: object, *memo: object) -> object:
            copied.append(value)
            if len(copied) > 1:
                raise torch.OutOfMemoryError("no room")
            return copy.deepcopy(value, *memo)

    with monkeypatch.context() as patched:
        patched.setattr(stack, "copy", Scarce)
        with pytest.raises(torch.OutOfMemoryError):
            resident.write(stacked(*all_back, ("sort", 0), ("base", 0), ("base", 1), ("base", 2)))
    last = stacked(*all_back, ("base", 0))
    fresh = Resident.open(models, "base")
    tokens = torch.arange(1, 12)[None]
    answers = []
    for one in (resident, fresh):
        one.write(last)
        with torch.no_grad():
            answers.append(one.module(tokens).logits)
    assert torch.equal(*answers)
