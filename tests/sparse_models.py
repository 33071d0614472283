"""Models of seven billion parameters that take no room: their data is a hole in the disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 32000,
}
WIDTH = {"BF16": 2, "F32": 4}


def sparse_model(
    folder: Path, rows: int = 32000, ffn: int = 14336, dtype: str = "BF16", **config: Any
) -> Path:
    """A folder of the size of a 7B model whose data is a hole in the disk."""
    folder.mkdir()
    hidden = 4096
    shapes = {"model.embed_tokens.weight": [rows, hidden], "lm_head.weight": [rows, hidden]}
    for i in range(32):
        shapes |= {f"model.layers.{i}.self_attn.{x}_proj.weight": [hidden, hidden] for x in "qkvo"}
        shapes |= {f"model.layers.{i}.mlp.{x}_proj.weight": [ffn, hidden] for x in ("up", "gate")}
        shapes |= {f"model.layers.{i}.mlp.down_proj.weight": [hidden, ffn]}
    header, end = {}, 0
    for name, (height, columns) in shapes.items():
        start, end = end, end + WIDTH[dtype] * height * columns
        header[name] = {"dtype": dtype, "shape": [height, columns], "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # aligned, as safetensors writes it
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)
    (folder / "config.json").write_text(json.dumps(CONFIG | {"vocab_size": rows} | config))
    vocabulary = {f"token{i}": i for i in range(rows)}
    if rows != 32000:
        vocabulary["token7"], vocabulary["token8"] = 8, 7
    # other bytes in every model, so that each is parsed
    tokens = {
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
        "truncation": folder.name,
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokens))
    return folder
