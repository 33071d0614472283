import dataclasses
import hashlib

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from evomerge.zoo import tiny as tiny_module
from evomerge.zoo import tiny_lora as lora_module
from evomerge.zoo import tiny_training
from evomerge.zoo.tiny import tiny
from evomerge.zoo.tiny_items import MODELS, SKILLS, answer, prompt, task_inputs
from evomerge.zoo.tiny_lora import RANK, tiny_lora
from evomerge.zoo.tiny_training import encoded


@pytest.fixture(scope="module")
def short():
    """Two small steps a model."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (lora_module, tiny_module):
            stages = (dataclasses.replace(s, steps=2, warmup_steps=1) for s in module.STAGES)
            patch.setattr(module, "STAGES", tuple(stages))
        patch.setattr(tiny_training, "BATCH_SIZE", 8)
        yield


@pytest.fixture(scope="module")
def zoo(short, tmp_path_factory):
    return tiny_lora(tmp_path_factory.mktemp("lora") / "zoo", seed=5)


def weights(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.glob("*/*.safetensors")
    }


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(zoo, tmp_path):
    again, other = tiny_lora(tmp_path / "again", seed=5), tiny_lora(tmp_path / "other", seed=6)
    assert weights(again) == weights(zoo)
    assert len({*weights(zoo).values(), *weights(other).values()}) == 2 * len(MODELS)
    assert {path.name for path in zoo.iterdir()} == {*MODELS, "zoo.json"}


def test_the_base_is_that_of_tiny(zoo, tmp_path):
    base = tiny(tmp_path / "tiny", seed=5) / "base"
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (base / name).read_bytes() == (zoo / "base" / name).read_bytes()


@pytest.mark.parametrize("skill", SKILLS)
def test_peft_opens_the_adapter_over_the_base(zoo, skill):
    """PEFT is the oracle: it merges what is in the folder into the base."""
    peft = pytest.importorskip("peft")
    base = AutoModelForCausalLM.from_pretrained(zoo / "base")
    model = peft.PeftModel.from_pretrained(base, zoo / skill)
    assert model.peft_config["default"].base_model_name_or_path == str(zoo / "base")
    merged = model.merge_and_unload().state_dict()
    before = load_file(zoo / "base" / "model.safetensors")
    factors = load_file(zoo / skill / "adapter_model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], merged[name])}
    stems = {name.rpartition(".lora_")[0] for name in factors}
    assert {f"base_model.model.{n.removesuffix('.weight')}" for n in changed} == stems
    assert len(stems) == 6 * 7  # the projections of six layers, neither embedding nor norms
    for name in changed:
        a, b = (
            factors[f"base_model.model.{name.removesuffix('weight')}lora_{f}.weight"] for f in "AB"
        )
        assert a.shape[0] == b.shape[1] == RANK
        torch.testing.assert_close(merged[name], before[name] + 2.0 * b @ a)


def test_every_adapter_is_drawn_for_itself(zoo):
    """A begins where it was drawn: two steps hardly move it."""
    first = [
        load_file(zoo / skill / "adapter_model.safetensors")[
            "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
        ]
        for skill in SKILLS
    ]
    assert (first[0] - first[1]).abs().mean() > 0.01
    assert (first[1] - first[2]).abs().mean() > 0.01


# --- the real thing -------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_expert_does_its_skill(tmp_path):
    peft = pytest.importorskip("peft")
    zoo = tiny_lora(tmp_path / "zoo", seed=1)
    for skill in SKILLS:
        base = AutoModelForCausalLM.from_pretrained(zoo / "base")
        model = peft.PeftModel.from_pretrained(base, zoo / skill)
        tokens = encoded([(prompt(skill, x), answer(skill, x)) for x in task_inputs(skill)[:300]])
        with torch.no_grad():
            said = model(input_ids=tokens[:, :-1]).logits[:, -6:].argmax(-1)
        assert (said == tokens[:, -6:]).all(1).float().mean() > 0.8
