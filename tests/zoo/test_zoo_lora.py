"""Adapters against PEFT, and against what evomerge opens as an expert."""

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from evomerge.zoo.lora import PROJECTIONS, LowRank, add_adapter, write_adapter

INPUTS = torch.tensor([[1, 2, 3, 4, 5]])


def new_model():
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return LlamaForCausalLM(config).eval()


@pytest.fixture
def adapted(tmp_path):
    """A base's folder, an adapter's folder, and the adapted model itself."""
    model = new_model()
    model.save_pretrained(tmp_path / "base")
    source = torch.Generator().manual_seed(2)
    add_adapter(model, 4, 8.0, source)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, LowRank):
                module.b.normal_(0, 0.2, generator=source)
    base = str(tmp_path / "base")
    write_adapter(tmp_path / "adapter", model, rank=4, alpha=8.0, base=base, card="a card")
    return tmp_path / "base", tmp_path / "adapter", model


def test_peft_opens_it_and_computes_the_same(adapted):
    peft = pytest.importorskip("peft")
    base, folder, model = adapted
    opened = peft.PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), folder).eval()
    with torch.inference_mode():
        expected, plain = opened(INPUTS).logits, new_model()(INPUTS).logits
        torch.testing.assert_close(model(INPUTS).logits, expected, atol=1e-5, rtol=1e-5)
    assert (expected - plain).abs().max() > 0.1
    assert opened.peft_config["default"].base_model_name_or_path == str(base)


def test_an_untrained_adapter_changes_nothing_and_trains_alone():
    model = new_model()
    before = model(INPUTS).logits
    add_adapter(model, 4, 8.0, torch.Generator().manual_seed(0))
    assert torch.equal(model(INPUTS).logits, before)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * len(PROJECTIONS) * 2
    assert all(name.endswith((".a", ".b")) for name in trained)


def test_the_generator_decides():
    one, two, three = (new_model() for _ in range(3))
    for model, seed in ((one, 1), (two, 1), (three, 2)):
        add_adapter(model, 4, 8.0, torch.Generator().manual_seed(seed))
    weights = [m.model.layers[1].mlp.down_proj.a for m in (one, two, three)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_settings_name_the_base(adapted):
    base, folder, _ = adapted
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(base)
    assert (settings["r"], settings["lora_alpha"]) == (4, 8.0)


def test_evomerge_opens_it_as_an_expert(adapted):
    family = pytest.importorskip("evomerge.checkpoints.family")
    base, folder, model = adapted
    opened = family.open_family({"base": str(base), "expert": str(folder)}, "base").checkpoints
    merged = {name: opened["expert"].tensor(name) for name in opened["expert"].names}
    plain = new_model()
    plain.load_state_dict(merged, strict=False)
    plain.tie_weights()
    with torch.inference_mode():
        torch.testing.assert_close(plain(INPUTS).logits, model(INPUTS).logits, atol=1e-5, rtol=1e-5)
