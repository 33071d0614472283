"""Files and recipes on which evomerge and mergekit have to agree, and models to merge with them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

MODELS = ("base", "a", "b")
LAYERS = 4
DEEP = 6  # layers of the model "deep"
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 8,
    "hidden_size": 4,
    "intermediate_size": 6,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 2,
    "max_position_embeddings": 16,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
INSIDE = {
    "self_attn.q_proj": (4, 4),
    "self_attn.k_proj": (2, 4),
    "self_attn.v_proj": (2, 4),
    "self_attn.o_proj": (4, 4),
    "mlp.gate_proj": (6, 4),
    "mlp.up_proj": (6, 4),
    "mlp.down_proj": (4, 6),
    "input_layernorm": (4,),
    "post_attention_layernorm": (4,),
}


def states() -> dict[str, dict[str, Tensor]]:
    """A base, two fine-tunes of it, and one that has grown deeper, from a seed."""
    generator = torch.Generator().manual_seed(29)
    shapes = {"model.embed_tokens.weight": (8, 4), "lm_head.weight": (8, 4)}
    shapes |= {"model.norm.weight": (4,)} | {
        f"model.layers.{i}.{part}.weight": shape
        for i in range(LAYERS)
        for part, shape in INSIDE.items()
    }
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    made = {"base": base}
    for model in MODELS[1:]:
        made[model] = {
            name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
            for name, tensor in base.items()
        }
    made["deep"] = {name: 1.5 * tensor for name, tensor in base.items()}
    for i in range(LAYERS, DEEP):
        for part, shape in INSIDE.items():
            grown = torch.randn(shape, generator=generator)
            made["deep"][f"model.layers.{i}.{part}.weight"] = grown
    return made


def write_models(folder: Path, models: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Each model as a Hugging Face folder."""
    for model, state in models.items():
        (folder / model).mkdir(parents=True, exist_ok=True)
        save_file(dict(state), folder / model / "model.safetensors", metadata={"format": "pt"})
        config = CONFIG | ({"num_hidden_layers": DEEP} if model == "deep" else {})
        (folder / model / "config.json").write_text(json.dumps(config))


# --- files for mergekit, read by evomerge ---------------------------------------------------------

READ = {
    "linear": """
models:
  - model: base
    parameters: {weight: 0.2}
  - model: a
    parameters: {weight: 1}
  - model: b
    parameters: {weight: 0.4}
merge_method: linear
dtype: float32
""",
    "linear_base_is_added": """
models:
  - model: a
  - model: b
base_model: base
merge_method: linear
parameters: {weight: 0.5, normalize: false}
dtype: float32
""",
    "slerp_gradients_and_filters": """
slices:
  - sources:
      - {model: base, layer_range: [0, 4]}
      - {model: a, layer_range: [0, 4]}
merge_method: slerp
base_model: base
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5
dtype: float32
""",
    "slerp_outside": """
models: [{model: base}, {model: a}]
merge_method: slerp
base_model: base
parameters:
  t:
    - {filter: embed_tokens, value: 0.1}
    - {filter: lm_head, value: 0.9}
    - {filter: layernorm, value: 0.6}
    - {filter: model.norm, value: 0.7}
    - {value: [0.2, 0.8]}
dtype: float32
""",
    "task_arithmetic": """
models:
  - model: a
    parameters: {weight: [0.1, 0.9, 0.3]}
  - model: b
    parameters: {weight: -0.5}
base_model: base
merge_method: task_arithmetic
parameters: {lambda: 0.7, normalize: false, int8_mask: true}
dtype: float32
""",
    "ties": """
models:
  - model: base
  - model: a
    parameters:
      density: [1, 0.7, 0.1]
      weight: 1.0
  - model: b
    parameters:
      density: 0.5
      weight:
        - filter: q_proj
          value: 0.9
        - filter: down_proj
          value: [0, 0.3, 0.7, 1]
        - filter: layers.1.mlp
          value: 0.25
        - value: 0.5
merge_method: ties
base_model: base
parameters: {normalize: true, int8_mask: true}
dtype: float32
""",
    "precedence": """
slices:
  - sources:
      - model: a
        layer_range: [0, 2]
        parameters: {weight: {filter: self_attn, value: 0.1}}
      - {model: b, layer_range: [0, 2]}
      - {model: base, layer_range: [0, 2]}
    parameters: {weight: {filter: mlp, value: 0.3}}
  - sources:
      - {model: a, layer_range: [2, 3], parameters: {weight: [0.9, 0.6]}}
      - {model: b, layer_range: [2, 3]}
      - {model: base, layer_range: [2, 3]}
    parameters: {normalize: true}
  - sources:
      - {model: b, layer_range: [3, 4]}
      - {model: base, layer_range: [3, 4]}
merge_method: task_arithmetic
base_model: base
parameters: {weight: "5e-1"}
dtype: float32
""",
    "passthrough_stack": """
slices:
  - sources: [{model: a, layer_range: [0, 3]}]
  - sources: [{model: b, layer_range: [1, 4]}]
  - sources: [{model: base, layer_range: [2, 4]}]
merge_method: passthrough
dtype: float32
""",
    "passthrough_scaled": """
slices:
  - sources: [{model: a, layer_range: [0, 2]}]
  - sources:
      - model: a
        layer_range: [1, 2]
        parameters:
          scale:
            - {filter: o_proj, value: 0.0}
            - {filter: down_proj, value: 0.0}
            - {value: 1.0}
  - sources: [{model: a, layer_range: [2, 4]}]
merge_method: passthrough
base_model: a
dtype: float32
""",
    "other_layers": """
slices:
  - sources:
      - {model: a, layer_range: [0, 2], parameters: {weight: 0.75}}
      - {model: b, layer_range: [2, 4], parameters: {weight: 0.25}}
  - sources:
      - {model: b, layer_range: [1, 3], parameters: {weight: [0.2, 0.6]}}
merge_method: linear
base_model: base
dtype: float32
""",
    "shorter": """
slices:
  - sources:
      - {model: base, layer_range: [0, 1]}
      - {model: a, layer_range: [1, 2]}
  - sources:
      - {model: base, layer_range: [3, 4]}
      - {model: a, layer_range: [3, 4]}
merge_method: slerp
base_model: base
parameters: {t: [0.2, 0.4]}
dtype: float32
""",
    "deeper_stack": """
slices:
  - sources: [{model: base, layer_range: [0, 2]}]
  - sources: [{model: deep, layer_range: [1, 6]}]
merge_method: passthrough
dtype: float32
""",
    "deeper_merge": """
slices:
  - sources:
      - {model: base, layer_range: [0, 3]}
      - {model: deep, layer_range: [3, 6], parameters: {weight: [0.2, 0.8]}}
  - sources:
      - {model: deep, layer_range: [4, 6], parameters: {weight: 0.7}}
      - {model: a, layer_range: [2, 4]}
parameters: {weight: 0.3}
merge_method: linear
dtype: float32
""",
    "deeper_begun": """
slices:
  - sources:
      - {model: base, layer_range: [0, 4]}
      - {model: deep, layer_range: [0, 4]}
base_model: base
parameters: {weight: 0.3}
merge_method: task_arithmetic
dtype: float32
""",
    "shallower_base": """
slices:
  - sources:
      - {model: deep, layer_range: [1, 4]}
      - {model: base, layer_range: [0, 3]}
  - sources:
      - {model: deep, layer_range: [5, 6]}
      - {model: base, layer_range: [3, 4]}
base_model: deep
parameters: {weight: 0.3}
merge_method: task_arithmetic
dtype: float32
""",
    "modules": """
modules:
  default:
    models:
      - {model: a, parameters: {weight: {filter: v_proj, value: 0.8}}}
      - {model: b}
    parameters: {weight: 0.3}
base_model: base
parameters: {weight: 0.6, lambda: 0.5}
merge_method: task_arithmetic
dtype: float32
out_dtype: bfloat16
""",
    "dare_dense": """
models:
  - {model: a, parameters: {weight: 0.5}}
  - {model: b, parameters: {weight: 0.25, density: 1.0}}
base_model: base
merge_method: dare_ties
dtype: float32
""",
    "della_dense": """
models:
  - {model: a, parameters: {weight: 0.5, epsilon: 0.1}}
  - {model: b, parameters: {weight: 0.25}}
base_model: base
merge_method: della
parameters: {density: 1.0, lambda: 1.1}
dtype: float32
""",
    "breadcrumbs": """
models:
  - {model: a, parameters: {weight: 0.5, gamma: 0.1}}
  - {model: b, parameters: {weight: 0.25}}
base_model: base
merge_method: breadcrumbs
parameters: {density: [0.9, 0.6]}
dtype: float32
""",
    "model_stock": """
models: [{model: a}, {model: b}]
base_model: base
merge_method: model_stock
dtype: float32
""",
    "sce": """
models: [{model: a}, {model: b}]
base_model: base
merge_method: sce
parameters: {select_topk: 0.4}
dtype: float32
""",
    "nuslerp_rows": """
models:
  - {model: a, parameters: {weight: 0.3}}
  - {model: b, parameters: {weight: 0.9}}
merge_method: nuslerp
parameters:
  nuslerp_flatten: false
  nuslerp_row_wise: [false, true]
dtype: float32
""",
    "nuslerp_deltas": """
models:
  - {model: a, parameters: {weight: 0.3}}
  - {model: b, parameters: {weight: 0.9}}
base_model: base
merge_method: nuslerp
dtype: float32
""",
    "multislerp": """
models: [{model: a}, {model: b}, {model: base}]
merge_method: multislerp
parameters: {weight: [0.3, 0.9], normalize_weights: true}
dtype: float32
""",
    "karcher": """
models: [{model: a}, {model: b}]
base_model: base
merge_method: karcher
parameters: {max_iter: 8, tol: 1e-6}
dtype: float32
""",
    "nearswap": """
models: [{model: base}, {model: b}]
base_model: base
merge_method: nearswap
parameters: {t: [0.001, 0.05]}
dtype: float32
""",
    "ramplus_tl": """
models: [{model: a}, {model: b}]
base_model: base
merge_method: ramplus_tl
parameters: {r: 0.3, epsilon: 0.05}
dtype: float32
""",
    "arcee_fusion": """
models: [{model: base}, {model: a}]
base_model: base
merge_method: arcee_fusion
dtype: float32
""",
}


# --- recipes, written for mergekit ----------------------------------------------------------------


def _weights(a: float, b: float) -> dict[str, Any]:
    return {"parameters": {"weight": {"a": a, "b": b}}}


def _only(model: str, layer: int) -> dict[str, Any]:
    return {"layer": layer, "merges": {"default": {"sources": [model]}}}


WRITE: dict[str, dict[str, Any]] = {
    "linear": {
        "default": {
            "operator": "linear",
            "sources": ["base", "a", "b"],
            "parameters": {"weight": {"base": 0.2, "a": 1, "b": 0.5}},
        }
    },
    "linear_without_base": {"default": {"operator": "linear", "parameters": {"weight": 0.5}}},
    "slerp": {
        "default": {"operator": "slerp", "sources": ["a"], "parameters": {"t": 0.4}},
        "outside": {"head": {"parameters": {"t": 0.9}}, "norm": {"parameters": {"t": 0.1}}},
    },
    "task_arithmetic_by_layer_and_component": {
        "default": {"operator": "task_arithmetic", **_weights(0.5, 0.5)},
        "outside": {"embedding": _weights(0.3, 0.1)},
        "slots": [
            {
                "layer": i,
                "merges": {"attention": _weights(0.1 * i, 0.4), "mlp": _weights(0.7, 0.2)},
            }
            for i in range(LAYERS)
        ],
        "dtype": "bfloat16",
    },
    "ties": {
        "default": {
            "operator": "ties",
            "parameters": {
                "compat": "mergekit",
                "weight": {"a": 0.6, "b": 0.4},
                "density": {"a": 0.3, "b": 0.7},
                "lambda": 0.9,
            },
        }
    },
    "passthrough_stack": {
        "default": {"operator": "passthrough", "sources": ["a"]},
        "outside": {c: {"sources": ["b"]} for c in ("head", "norm")},
        "slots": [_only("a", 0), _only("a", 1), _only("b", 1), _only("b", 2), _only("b", 1)],
    },
    "other_layers": {
        "default": {"operator": "linear", "sources": ["a", "b"], **_weights(0.75, 0.25)},
        "slots": [{"layer": i, "layers": {"b": 3 - i}} for i in range(LAYERS)],
    },
    "deeper": {
        "models": {"base": "base", "deep": "deep"},
        "default": {
            "operator": "linear",
            "sources": ["base", "deep"],
            "parameters": {"weight": {"base": 0.75, "deep": 0.25}},
        },
        "slots": [{"layer": i % 4, "layers": {"deep": 5 - i}} for i in range(DEEP)],
    },
    "deeper_in_order": {
        "models": {"base": "base", "deep": "deep"},
        "default": {"operator": "task_arithmetic", "parameters": {"weight": 0.4}},
        "slots": [{"layer": i} for i in range(LAYERS)],
    },
    "one_tensor": {
        "default": {"operator": "task_arithmetic", **_weights(0.5, 0.5)},
        "tensors": {"model.layers.2.mlp.up_proj.weight": _weights(0, 1)},
    },
    "nuslerp_deltas": {
        "default": {
            "operator": "nuslerp",
            "parameters": {"weight": {"a": 1, "b": 0.5}, "deltas": True, "vectors": "rows"},
        },
    },
}


def recipe_data(case: str, folder: Path) -> dict[str, Any]:
    """A recipe of WRITE over the models of a folder."""
    case_data = {"base": "base", "models": {m: m for m in MODELS}, **WRITE[case]}
    return case_data | {"models": {m: str(folder / p) for m, p in case_data["models"].items()}}
