"""Tiny model folders whose rows are made from their tokens, so that ids can be anything."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

HIDDEN = 8
KINDS = ("llama", "gpt2", "t5", "bert")
# What holds a row for each token: name -> axis, with tied heads and without.
TABLES = {
    ("llama", True): ["model.embed_tokens.weight"],
    ("llama", False): ["lm_head.weight", "model.embed_tokens.weight"],
    ("gpt2", True): ["transformer.wte.weight"],
    ("gpt2", False): ["lm_head.weight", "transformer.wte.weight"],
    ("t5", True): ["shared.weight"],
    ("t5", False): ["lm_head.weight", "shared.weight"],
    ("bert", True): ["bert.embeddings.word_embeddings.weight", "cls.predictions.bias"],
    ("bert", False): [
        "bert.embeddings.word_embeddings.weight",
        "cls.predictions.bias",
        "cls.predictions.decoder.bias",
        "cls.predictions.decoder.weight",
    ],
}


def config_of(kind: str, num_rows: int, tied: bool, **settings: Any) -> Any:
    settings |= {"vocab_size": num_rows, "tie_word_embeddings": tied, "dtype": "float32"}
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        settings.setdefault(key, None)
    if kind == "llama":
        sizes = {"hidden_size": HIDDEN, "intermediate_size": 12, "num_hidden_layers": 2}
        return LlamaConfig(num_attention_heads=2, **sizes, **settings)
    if kind == "gpt2":
        return GPT2Config(n_embd=HIDDEN, n_layer=2, n_head=2, n_positions=32, **settings)
    if kind == "t5":
        settings["decoder_start_token_id"] = 0
        return T5Config(d_model=HIDDEN, d_ff=12, d_kv=4, num_layers=1, num_heads=2, **settings)
    sizes = {"hidden_size": HIDDEN, "intermediate_size": 12, "num_hidden_layers": 1}
    return BertConfig(num_attention_heads=2, max_position_embeddings=32, **sizes, **settings)


CLASSES: dict[str, type[PreTrainedModel]] = {
    "llama": LlamaForCausalLM,
    "gpt2": GPT2LMHeadModel,
    "t5": T5ForConditionalGeneration,
    "bert": BertForMaskedLM,
}


@cache
def row(seed: int, table: str, key: str | int, width: int) -> torch.Tensor:
    """What a model of this seed has for a token, or for its n-th padding row."""
    digest = hashlib.sha256(repr((seed, table, key)).encode()).digest()
    values = [int.from_bytes(digest[i : i + 4], "little") / 2**31 - 1 for i in range(0, 32, 4)]
    return torch.tensor(values[:width])  # the same in every version of torch


@cache
def rest(kind: str, tied: bool, seed: int) -> dict[str, torch.Tensor]:
    """All tensors that know nothing of tokens."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = CLASSES[kind](config_of(kind, 3, tied))
    with torch.no_grad():
        for parameter in module.parameters():  # fresh biases are zero, and tell nothing
            parameter.normal_(generator=torch.Generator().manual_seed(seed + parameter.numel()))
    kept: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in module.state_dict().items():
        if name not in TABLES[kind, tied] and tensor.data_ptr() not in seen:
            kept[name] = tensor.clone()
        seen.add(tensor.data_ptr())
    tables = module.get_input_embeddings().weight, getattr(module, "lm_head", None)
    shared = {tables[0].data_ptr()}
    if tables[1] is not None:
        shared.add(tables[1].weight.data_ptr())
    if kind == "bert":
        decoder = module.cls.predictions.decoder
        shared |= {decoder.weight.data_ptr(), decoder.bias.data_ptr()}
    state = module.state_dict()
    return {name: t for name, t in kept.items() if state[name].data_ptr() not in shared}


def word_level(ids: Mapping[str, int], added: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """A tokenizer.json of words."""
    tokenizer = Tokenizer(models.WordLevel(dict(ids), "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return {**json.loads(tokenizer.to_str()), "added_tokens": list(added)}


def added(id_: int, content: str, *, special: bool = False) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": id_, "content": content, **flags, "special": special}


def keys(ids: Mapping[str, int], num_rows: int) -> list[str | int]:
    """What the rows of a folder stand for, padding counted."""
    by_id = {i: token for token, i in ids.items()}
    made: list[str | int] = []
    padding = 0
    for i in range(num_rows):
        made.append(by_id.get(i, padding))
        padding += i not in by_id
    return made


def write_folder(
    folder: Path,
    ids: Mapping[str, int],
    *,
    kind: str = "llama",
    tied: bool = False,
    seed: int = 0,
    num_rows: int | None = None,
    tokenizer: Mapping[str, Any] | None = None,
    files: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Path:
    """A folder of random weights, where the rows of a table follow from seed and token alone."""
    folder.mkdir(parents=True)
    num_rows = max(ids.values()) + 1 if num_rows is None else num_rows
    config = config_of(kind, num_rows, tied, **settings)
    config.architectures = [CLASSES[kind].__name__]
    config.save_pretrained(folder)
    tensors = dict(rest(kind, tied, seed))
    for table in TABLES[kind, tied]:
        width = 1 if table.endswith("bias") else HIDDEN
        rows = [row(seed, table, key, width) for key in keys(ids, num_rows)]
        tensors[table] = torch.cat(rows) if width == 1 else torch.stack(rows)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    data = word_level(ids) if tokenizer is None else tokenizer
    (folder / "tokenizer.json").write_text(json.dumps(data))
    own = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"}
    for name, content in {"tokenizer_config.json": own, **(files or {})}.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_text(text)
    return folder


# What mergekit was asked to merge (tests/checkpoints/make_golden_vocabulary.py): name -> ids, rows.
MERGEKIT_MODELS: dict[str, tuple[dict[str, int], int]] = {
    "base": ({"<unk>": 0, "<s>": 1, "a": 2, "b": 3, "c": 4}, 8),
    "x": ({"<unk>": 0, "b": 1, "a": 2, "<s>": 3, "new": 4, "both": 5}, 6),
    "y": ({"<unk>": 0, "<s>": 1, "both": 2, "c": 3, "a": 4}, 7),
}
MERGEKIT_WEIGHTS = {"x": 0.4, "y": 0.7}
# The same rows in mergekit's words and in a recipe's: another's, one by id, zeros, a new token.
MERGEKIT_TOKENS: dict[str, Any] = {
    "both": {"source": "y", "force": True},
    "c": {"source": {"kind": "model_token", "model": "base", "token": "b"}},
    "a": {"source": {"kind": "model_token", "model": "x", "token_id": 1}, "force": True},
    "new": {"source": {"kind": "zero"}},
    "<|im|>": {"source": {"kind": "model_token", "model": "y", "token": "c"}},
}
RECIPE_TOKENS: dict[str, Any] = {
    "both": {"model": "y", "force": True},
    "c": {"model": "base", "token": "b"},
    "a": {"model": "x", "id": 1, "force": True},
    "new": {},
    "<|im|>": {"model": "y", "token": "c"},
}
MERGEKIT_MULTIPLE = 5
