"""The real base and, where somebody has made it, the real family. Never fetches anything."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge.files import cache_folder
from evomerge.zoo.smollm2 import default_folder, is_made, read_table
from evomerge.zoo.smollm2.stages import EXPERTS

pytestmark = pytest.mark.slow

TEXTS = (
    "Hello world, naïve café",
    "Großartig! 23 + 45 = 68",
    "  two blanks,\ttab\nline\r\n",
    "def f(x):\n    return x ** 2  # §",
    "日本語 и русский 🙂",
    "<|im_start|>user\nHi<|im_end|>\n",
)


@pytest.fixture(scope="module")
def gguf():
    for library in ("gguf", "accelerate"):
        pytest.importorskip(library)
    file = cache_folder() / "downloads" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not file.exists():
        pytest.skip(f"{file} is not there; `evomerge zoo smollm2` fetches it")
    return file


@pytest.fixture(scope="module")
def base(gguf, tmp_path_factory):
    from evomerge.zoo.smollm2.base import write_base

    folder = tmp_path_factory.mktemp("smollm2") / "base"
    write_base(gguf, folder, "a card")
    return folder


def test_the_folder_is_an_ordinary_one(base):
    config = json.loads((base / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert "quantization_config" not in config
    model = AutoModelForCausalLM.from_pretrained(base)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_weights_are_those_that_the_gguf_library_dequantizes(base, gguf):
    """An oracle beside transformers: no permutation belongs to these tensors."""
    from gguf import GGUFReader, dequantize

    model = AutoModelForCausalLM.from_pretrained(base)
    names = {
        "token_embd.weight": "model.embed_tokens.weight",
        "blk.0.ffn_down.weight": "model.layers.0.mlp.down_proj.weight",
        "blk.29.attn_output.weight": "model.layers.29.self_attn.o_proj.weight",
        "blk.7.attn_v.weight": "model.layers.7.self_attn.v_proj.weight",
        "blk.7.attn_norm.weight": "model.layers.7.input_layernorm.weight",
    }
    state = model.state_dict()
    found = set()
    for tensor in GGUFReader(gguf).tensors:
        if tensor.name in names:
            found.add(tensor.name)
            expected = torch.tensor(dequantize(tensor.data, tensor.tensor_type))
            assert torch.equal(
                state[names[tensor.name]], expected.reshape_as(state[names[tensor.name]])
            )
    assert found == set(names)


def test_it_computes_what_transformers_computes_from_the_gguf_file(base, gguf, tmp_path):
    (tmp_path / "model.gguf").symlink_to(gguf)
    packed = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="model.gguf", dtype=torch.float32
    )
    tokenizer = AutoTokenizer.from_pretrained(base)
    inputs = tokenizer("The capital of France is", return_tensors="pt")
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.inference_mode():
        logits = model(**inputs).logits
        torch.testing.assert_close(logits, packed(**inputs).logits, atol=2e-3, rtol=1e-3)
    assert tokenizer.decode(logits[0, -1].argmax()) == " Paris"


@pytest.mark.parametrize("text", TEXTS)
def test_the_tokenizer_goes_there_and_back(base, text):
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert len(tokenizer) == 49_152
    assert (tokenizer.eos_token, tokenizer.bos_token) == ("<|im_end|>", "<|im_start|>")


@pytest.mark.parametrize("expert", EXPERTS)
def test_every_expert_is_clearly_better_than_the_base(expert):
    if not is_made(0):
        pytest.skip("the family is not there; `evomerge zoo smollm2` makes it")
    row = read_table(default_folder(0))[expert]
    gain = row["expert"]["value"] - row["base"]["value"]
    error = (row["expert"]["standard_error"] ** 2 + row["base"]["standard_error"] ** 2) ** 0.5
    assert gain > 3 * error
